"""The same on a GPU as on a CPU: values, gradients, steps, evaluation, samples, checkpoints.

On a machine without CUDA, the tests of it are skipped, and the same code runs on the CPU alone.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import TINY, call_script, live_model
from vdvae import VDVAE, fast, load_pretrained
from vdvae.config import Config
from vdvae.data.loader import BatchOrder, first_images, training_batches
from vdvae.data.prepared import load_splits
from vdvae.evaluation.nll import evaluate
from vdvae.run import checkpoint
from vdvae.runtime.precision import PRECISIONS, set_matmul_precision
from vdvae.runtime.processes import World
from vdvae.training.update import Update

CPU = torch.device("cpu")
CUDA = pytest.param("cuda", marks=pytest.mark.cuda)


@pytest.fixture(params=["cpu", CUDA])
def device(request: pytest.FixtureRequest) -> torch.device:
    return device_of(request.param)


def device_of(name: str) -> torch.device:
    """With the number that tensors on it have."""
    set_matmul_precision("fp32")
    return torch.empty(0, device=name).device


def world(device: torch.device) -> World:
    return World(0, 1, device)


def random_images(count: int = 8) -> Tensor:
    return torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def noise() -> torch.Generator:
    return torch.Generator().manual_seed(4)


def make_update(config: Config, device: torch.device, **settings: object) -> Update:
    torch.manual_seed(0)
    given = {"precision": "fp32", "micro_batch": 8, "cuda_graph": False, "replay": False, **settings}
    return Update(VDVAE(config.model).to(device), replace(config.train, **given), world(device))  # type: ignore[arg-type]


def recorded(device: torch.device) -> dict[str, object]:
    return {"cuda_graph": True} if device.type == "cuda" else {"replay": True}


@pytest.mark.parametrize("is_prepared", [False, True])
def test_values_and_gradients_are_those_of_the_plain_model_on_a_cpu(
    tiny: Config, device: torch.device, is_prepared: bool
) -> None:
    """A CPU generator gives the same noise everywhere."""
    reference = live_model(tiny)
    model = copy.deepcopy(reference).to(device)
    if is_prepared:
        fast.prepare(model)
    results = []
    for one in (reference, model):
        results.append(one(random_images(), noise()))
        results[-1].nats_per_dim.mean().backward()
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)
    for (name, p), q in zip(reference.named_parameters(), model.parameters(), strict=True):
        assert p.grad is not None, name
        assert q.grad is not None, name
        torch.testing.assert_close(q.grad.cpu(), p.grad, rtol=2e-3, atol=5e-4 * p.grad.abs().max().item(), msg=name)


@pytest.mark.parametrize("is_prepared", [False, True])
def test_samples_have_the_noise_of_the_generator(tiny: Config, device: torch.device, is_prepared: bool) -> None:
    """Nearly all pixels: where two levels are as likely, rounding decides."""
    reference = live_model(tiny)
    model = copy.deepcopy(reference).to(device)
    if is_prepared:
        fast.prepare(model)
    with torch.no_grad():
        expected, found = (one.sample(16, generator=noise()).cpu() for one in (reference, model))
        assert (found == expected).float().mean() > 0.99
        means = [one.sample(16, output="mean", generator=noise()).cpu() for one in (reference, model)]
        torch.testing.assert_close(means[1], means[0], rtol=1e-3, atol=0.1)


def test_latents_are_those_of_a_cpu(tiny: Config, device: torch.device) -> None:
    reference = live_model(tiny)
    model = fast.prepare(copy.deepcopy(reference).to(device))
    with torch.no_grad():
        flat = [one.flatten(one.encode(random_images(), mode="mean")).cpu() for one in (reference, model)]
        torch.testing.assert_close(flat[1], flat[0], rtol=1e-3, atol=1e-3)
        images = model.decode(model.unflatten(flat[0].to(device)), output="mean").cpu()
        torch.testing.assert_close(
            images, reference.decode(reference.unflatten(flat[0]), output="mean"), rtol=1e-3, atol=0.1
        )


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_recorded_steps_are_those_of_python(tiny: Config, device: torch.device, precision: str) -> None:
    """In uneven micro-batches, with updates that are skipped because a batch has a gradient that is too large."""
    skips_if_unsupported(device, precision)
    images = first_images(load_splits(tiny.data, tiny.model).train, 16, CPU)
    batches = [images[:8], torch.zeros_like(images[:8]), images[8:]]  # of black ones, it is four times as large
    norms, reports, updates = [], [], []
    for batch in batches:
        trial = make_update(tiny, device, precision=precision, micro_batch=3)
        trial(batch.to(device), 0)
        norms.append(trial.report().grad_norm_max)
    threshold = math.sqrt(norms[1] * max(norms[0], norms[2]))
    assert norms[1] > 1.5 * threshold
    for settings in ({}, recorded(device)):
        update = make_update(tiny, device, precision=precision, micro_batch=3, skip_threshold=threshold, **settings)
        found = []
        for step in range(6):
            update(batches[step % 3].to(device), step)
            found.append(update.report())
        reports.append(found)
        updates.append(update)
    assert [r.skipped for r in reports[0]] == [r.skipped for r in reports[1]]
    assert sum(r.skipped for r in reports[0]) == 2
    for a, b in zip(*reports, strict=True):
        assert b.bits_per_dim == pytest.approx(a.bits_per_dim, rel=1e-4 if precision == "fp32" else 1e-2)
    eager, repeated = (torch.cat([p.detach().flatten() for p in update.model.parameters()]) for update in updates)
    if device.type == "cpu":
        assert torch.equal(repeated, eager)
    elif precision == "fp32":  # a GPU sums in another order each time, and Adam makes much of gradients near 0
        start = torch.cat([p.detach().flatten() for p in make_update(tiny, device).model.parameters()])
        assert (repeated - eager).norm() < 1e-2 * (eager - start).norm()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_steps_in_every_precision_stay_near_those_in_fp32(tiny: Config, device: torch.device, precision: str) -> None:
    skips_if_unsupported(device, precision)
    losses = []
    for one in ("fp32", precision):
        update = make_update(tiny, device, precision=one, **recorded(device))
        for step in range(4):
            update(random_images().to(device), step)
        report = update.report()
        assert (report.skipped, report.nonfinite) == (0, 0)
        assert all(parameter.isfinite().all() for parameter in update.model.parameters())
        losses.append(report.bits_per_dim)
    set_matmul_precision("fp32")
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


def test_evaluation_repeats_itself_and_is_that_of_the_plain_model(tiny: Config, device: torch.device) -> None:
    """With noise that the device draws, which differs from the CPU's."""
    split = load_splits(tiny.data, tiny.model).test
    plain = live_model(tiny).to(device)
    prepared = fast.prepare(copy.deepcopy(plain))
    expected, found, again = (evaluate(model, split, 250, world(device)) for model in (plain, prepared, prepared))
    assert found.bits_per_dim == pytest.approx(expected.bits_per_dim, rel=1e-5)
    assert again.bits_per_dim == pytest.approx(found.bits_per_dim, rel=1e-6)
    on_cpu = evaluate(copy.deepcopy(plain).cpu(), split, 250, world(CPU))
    assert abs(found.bits_per_dim - on_cpu.bits_per_dim) < 3 * on_cpu.standard_error


@pytest.mark.parametrize(
    ("source", "target"),
    [
        pytest.param(*pair, marks=pytest.mark.cuda if "cuda" in pair else ())
        for pair in itertools.product(("cpu", "cuda"), repeat=2)
    ],
)
def test_a_checkpoint_goes_on_on_another_device(tiny: Config, source: str, target: str, tmp_path: Path) -> None:
    """Weights, EMA, moments, and the losses so far."""
    a, b = make_update(tiny, device_of(source)), make_update(tiny, device_of(target))
    for step in range(2):
        a(random_images().to(a.world.device), step)
    path = checkpoint.save(tmp_path, 2, tiny, a.state_dict())
    b.load_state_dict(checkpoint.read(path).state)
    for ours, theirs in ((a.model, b.model), (a.ema.model, b.ema.model)):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(p.cpu(), q.cpu())
    optimizers = [update.state_dict()["optimizer"]["state"] for update in (a, b)]
    torch.testing.assert_close(optimizers[1], optimizers[0], rtol=0, atol=0, check_device=False)
    losses = []
    for update in (a, b):
        update(random_images().to(update.world.device), 2)
        losses.append(update.report().bits_per_dim)  # of three updates: two that the file knows, and one with own noise
    assert losses[1] == pytest.approx(losses[0], rel=1e-6 if source == target else 1e-2)
    model = load_pretrained(path, device=target)
    assert model.device.type == target
    assert model(random_images()).nats_per_dim.isfinite().all()


@pytest.mark.parametrize("resident", [False, True])
def test_batches_are_those_of_a_cpu(tiny: Config, device: torch.device, resident: bool) -> None:
    split = load_splits(tiny.data, tiny.model).train
    order = BatchOrder(len(split), 8, seed=0)
    expected = training_batches(split, order, 3, world(CPU), tiny.data)
    found = training_batches(split, order, 3, world(device), replace(tiny.data, resident=resident))
    for _ in range(4):
        batch = next(found)
        assert batch.device == device
        assert torch.equal(batch.cpu(), next(expected))


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.long), CUDA], indirect=True)
def test_a_run_is_recorded_cut_off_and_resumed(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole of train.py: the run comes to the loss of one that nobody disturbed."""
    monkeypatch.setattr("vdvae.runtime.device.pick_device", lambda *_: device)
    keys = [
        "train.micro_batch=4",
        "train.precision=fp32",
        *(["train.cuda_graph=true"] if device.type == "cuda" else []),
    ]
    losses = []
    for name, cuts in (("cut", [["--max_steps", 3]]), ("whole", [])):
        for cut in (*cuts, []):
            result = call_script(tmp_path, "train.py", "--hps", TINY, "--run_dir", name, *cut, *keys)
            assert result.returncode == 0, result.stderr
        last = (tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1]
        losses.append(json.loads(last)["bits_per_dim"])
    assert losses[0] == pytest.approx(losses[1], rel=0 if device.type == "cpu" else 1e-4)


def skips_if_unsupported(device: torch.device, precision: str) -> None:
    if device.type == "cuda" and precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this card does not compute in bf16")
