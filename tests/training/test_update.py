"""One training step: against plain PyTorch, and what a skipped update leaves untouched."""

from __future__ import annotations

import copy
import math
import shutil
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.conftest import refuses
from vdvae import VDVAE
from vdvae.config import Config, TrainConfig
from vdvae.runtime.noise import Purpose, generator
from vdvae.runtime.processes import World
from vdvae.training.optimizer import learning_rate
from vdvae.training.update import Update

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
ALONE = World(0, 1, CPU)


def make_update(config: Config, **settings: object) -> Update:
    torch.manual_seed(0)
    return Update(VDVAE(config.model), replace(config.train, **settings), ALONE)  # type: ignore[arg-type]


def random_images(count: int = 8) -> Tensor:
    return torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def snapshot(update: Update) -> list[Tensor]:
    """Weights, EMA and Adam's moments."""
    state = [value for s in update.optimizer.state_dict()["state"].values() for value in s.values()]
    return [t.detach().clone() for t in (*update.model.parameters(), *update.ema.model.parameters(), *state)]


def test_a_step_equals_plain_pytorch(tiny: Config) -> None:
    """backward, clip_grad_norm_, unfused AdamW and the average, written out."""
    settings = {"grad_clip": 0.05, "weight_decay": 0.1, "warmup_steps": 0, "ema_decay": 0.9}
    update = make_update(tiny, **settings)
    model = copy.deepcopy(update.model)
    average = copy.deepcopy(model)
    adam = torch.optim.AdamW(model.parameters(), tiny.train.lr, (0.9, 0.9), weight_decay=0.1, foreach=False)
    for step in range(3):
        update(random_images(), step)
        adam.zero_grad()
        model(random_images(), generator(CPU, 0, Purpose.TRAINING, 0, step)).nats_per_dim.mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        assert norm > 0.05
        adam.step()
        for a, p in zip(average.parameters(), model.parameters(), strict=True):
            a.data.mul_(0.9).add_(p.data, alpha=0.1)
    for ours, plain in zip(update.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-7)
    for ours, plain in zip(update.ema.model.parameters(), average.parameters(), strict=True):
        torch.testing.assert_close(ours.data, plain.data, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("micro_batch", [1, 3, 4, 100])
def test_micro_batches_have_the_gradient_of_the_whole_batch(
    tiny: Config, micro_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the posteriors' means for latents, since the noise of pieces differs from that of the whole."""
    monkeypatch.setattr("vdvae.model.vdvae.Decoder._noise", lambda _self, batch, r, *_: torch.zeros(batch, 2, r, r))
    norms = []
    for cap in (None, micro_batch):
        update = make_update(tiny, micro_batch=cap)
        update(random_images(), 0)
        norms.append(update.report())
    assert norms[0].grad_norm_max == pytest.approx(norms[1].grad_norm_max, rel=1e-5)
    assert norms[0].bits_per_dim == pytest.approx(norms[1].bits_per_dim, rel=1e-6)


def test_a_norm_at_the_threshold_is_skipped(tiny: Config) -> None:
    update = make_update(tiny)
    update(random_images(), 0)
    norm = update.report().grad_norm_max
    for threshold, skipped in ((norm, 1), (norm * 1.0001, 0)):
        update = make_update(tiny, skip_threshold=threshold)
        update(random_images(), 0)
        assert update.report().skipped == skipped


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_skipped_update_leaves_everything_as_it_was(tiny: Config, poison: float) -> None:
    """A loss that is not finite, in one micro-batch of two, when Adam has moments already."""
    update = make_update(tiny, micro_batch=4, replay=False)  # hooks are Python's
    update(random_images(), 0)
    before = snapshot(update)
    calls = iter([poison, 0.0])
    hook = update.model.register_forward_hook(
        lambda _model, _images, terms: terms._replace(rate=terms.rate + next(calls))
    )
    update(random_images(), 1)
    hook.remove()
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(update), strict=True))
    report = update.report()
    assert (report.skipped, report.nonfinite, report.skip_streak) == (1, 1, 1)
    assert math.isfinite(report.bits_per_dim)
    update(random_images(), 2)
    assert update.report().skip_streak == 0
    assert not torch.equal(before[0], snapshot(update)[0])


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_spoiled_from_outside_does_not_reach_the_ema(tiny: Config, poison: float) -> None:
    """Every update is skipped then, and the EMA that a checkpoint keeps is the last good one, to the bit."""
    update = make_update(tiny)
    update(random_images(), 0)
    before = [p.clone() for p in update.ema.model.parameters()]
    update.model.encoder.in_conv.weight.data.view(-1)[0] = poison
    for step in (1, 2):
        update(random_images(), step)
    report = update.report()
    assert (report.skipped, report.nonfinite, report.skip_streak) == (2, 2, 2)
    assert all(torch.equal(a, b) for a, b in zip(before, update.ema.model.parameters(), strict=True))
    assert all(tensor.isfinite().all() for tensor in update.state_dict()["ema"].values())


@pytest.mark.parametrize("applied", [0.0, 1.0])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_the_ema_follows_no_weight_that_is_not_finite(tiny: Config, poison: float, applied: float) -> None:
    """Not even where an update counts as applied, as one that overflows does."""
    ema = make_update(tiny).ema
    ema._weights[0].view(-1)[0] = poison
    before = [p.clone() for p in ema.model.parameters()]
    ema.update(torch.tensor(applied))
    assert all(torch.equal(a, b) for a, b in zip(before, ema.model.parameters(), strict=True))


def test_fp16_loss_scale_halves_on_overflow_and_leaves_the_step_alone(tiny: Config) -> None:
    """The scale cancels: with fp32 arithmetic inside, the step is that of fp32."""
    scale = make_update(tiny, precision="fp16").loss_scale
    assert scale.value.item() == 2**16
    scale.good_updates.fill_(1999)
    scale.update(torch.tensor(True))
    assert (scale.value.item(), scale.good_updates.item()) == (2**17, 0)
    scale.update(torch.tensor(False))
    for _ in range(200):
        scale.update(torch.tensor(False))
    assert scale.value.item() == 2**-24  # from 0 it would not come back
    scale.value.fill_(2.0**17)
    scale.update(torch.tensor(False))
    assert (scale.value.item(), scale.good_updates.item()) == (2**16, 0)
    plain, scaled = make_update(tiny), make_update(tiny)
    scaled.loss_scale.value.fill_(2.0**10)
    for step in range(2):
        plain(random_images(), step)
        scaled(random_images(), step)
    for a, b in zip(plain.model.parameters(), scaled.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_a_run_that_goes_on_in_another_precision_has_its_loss_scale(tiny: Config) -> None:
    """As on another GPU, with `train.precision: auto`; with the same one it goes on where it was."""
    scales = {name: make_update(tiny, precision=name).loss_scale for name in ("bf16", "fp16")}
    before = {name: {key: value.clone() for key, value in scale.state_dict().items()} for name, scale in scales.items()}
    for scale in scales.values():
        scale.update(torch.tensor(False))
        scale.update(torch.tensor(True))
    halved = {key: value.clone() for key, value in scales["fp16"].state_dict().items()}
    assert [value.item() for value in halved.values()] == [2**15, 1]
    for name in scales:
        fresh = make_update(tiny, precision=name).loss_scale
        fresh.load_state_dict(before["bf16"] if name == "fp16" else halved)
        assert fresh.state_dict() == before[name]
    fresh = make_update(tiny, precision="fp16").loss_scale
    fresh.load_state_dict(halved)
    assert fresh.state_dict() == halved


def test_what_is_left_to_the_hardware_must_be_resolved(tiny: Config) -> None:
    for key in ("precision", "micro_batch", "recompute_from"):
        with refuses(f"train.{key} auto vdvae.run.auto"):
            make_update(tiny, **{key: "auto"})


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_keeps_the_likelihood_in_fp32(tiny: Config, precision: str) -> None:
    update = make_update(tiny, precision=precision)
    terms = []
    original = update.model.forward
    update.model.forward = lambda *a: terms.append(original(*a)) or terms[-1]  # type: ignore[method-assign, func-returns-value]
    update(random_images(), 0)
    assert {t.dtype for t in terms[0]} == {torch.float32}
    plain = make_update(tiny)
    plain(random_images(), 0)
    half, full = update.report(), plain.report()
    assert half.bits_per_dim == pytest.approx(full.bits_per_dim, rel=1e-2)
    assert half.skipped == 0


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.filterwarnings("ignore")  # what torch says of its own compiler
def test_compiled_blocks_take_the_same_step(tiny: Config) -> None:
    plain, compiled = make_update(tiny), make_update(tiny, compile=True)
    for step in range(2):
        plain(random_images(), step)
        compiled(random_images(), step)
    for a, b in zip(plain.model.parameters(), compiled.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_report_means_over_all_images(tiny: Config) -> None:
    update = make_update(tiny, micro_batch=3)
    total = 0.0
    for step in range(2):
        with torch.no_grad():
            for first, piece in zip((0, 3, 6), random_images().tensor_split(3), strict=True):
                noise = generator(CPU, 0, Purpose.TRAINING, first, step)
                total += update.model(piece, noise).nats_per_dim.sum().item()
        update(random_images(), step)
    report = update.report()
    assert report.bits_per_dim == pytest.approx(total / 16 / math.log(2), rel=1e-5)
    assert report.bits_per_dim == pytest.approx(report.rate + report.distortion, rel=1e-6)
    assert sum(report.layer_rate) == pytest.approx(report.rate, rel=1e-5)


def test_learning_rate_warms_up_and_cools_down() -> None:
    config = TrainConfig(8, lr=1.0, max_steps=100, skip_threshold=1, warmup_steps=10, cooldown_steps=20)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:81] == [1.0] * 72
    assert rates[90] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.05)
    constant = replace(config, cooldown_steps=0)
    assert [learning_rate(constant, step) for step in range(10, 100)] == [1.0] * 90


@pytest.mark.parametrize(("batch", "processes", "use"), [(32, 3, "30 33"), (2, 4, "4")])
def test_a_batch_that_cannot_be_divided(tiny: Config, batch: int, processes: int, use: str) -> None:
    with refuses(f"train.batch_size {processes} {use}"):
        replace(tiny.train, batch_size=batch).local_batch_size(processes)


def test_losses_between_two_reports_survive_another_number_of_processes(tiny: Config) -> None:
    """The checkpoint of two processes, read by one and by three: the sum stays."""
    update = make_update(tiny)
    update(random_images(), 0)
    state = update.metrics.state_dict(ALONE)
    state["losses"] = torch.cat([state["losses"], 2 * state["losses"]])
    for processes in (1, 2, 3):
        total = torch.zeros_like(state["losses"][0])
        for rank in range(processes):
            metrics = make_update(tiny).metrics
            metrics.load_state_dict(state, World(rank, processes, CPU))
            total += metrics.losses
        assert torch.equal(total, state["losses"].sum(0))


def test_the_optimisers_state_is_that_of_single_parameters(tiny: Config) -> None:
    """With moments as they lay in the files of before, channels last: the next step is the same."""
    update = make_update(tiny)
    update(random_images(), 0)
    state = copy.deepcopy(update.state_dict())
    assert list(state["optimizer"]["state"]) == list(range(len(list(update.model.parameters()))))
    for moments in state["optimizer"]["state"].values():
        for name in ("exp_avg", "exp_avg_sq"):
            if moments[name].dim() == 4:
                moments[name] = moments[name].to(memory_format=torch.channels_last)
    other = make_update(tiny)
    other.load_state_dict(state)
    for one in (update, other):
        one(random_images(), 1)
    assert all(torch.equal(a, b) for a, b in zip(snapshot(update), snapshot(other), strict=True))


def test_replay_divides_by_the_batch_of_each_call(tiny: Config) -> None:
    """Batches of other sizes in micro-batches of two have the norms that Python finds."""
    norms = []
    for replay in (True, False):
        update, found = make_update(tiny, micro_batch=2, lr=1e-9, replay=replay), []
        for step, batch in enumerate([8, 8, 4, 2, 8]):
            update(random_images(batch), step)
            found.append(update.report().grad_norm_max)
        norms.append(found)
    assert norms[0] == norms[1]
    assert max(norms[0]) < 2 * min(norms[0])


def test_replay_notices_weights_that_are_replaced(tiny: Config) -> None:
    updates = [make_update(tiny, replay=replay) for replay in (True, False)]
    for update in updates:
        for step in range(2):
            update(random_images(), step)
        for parameter in update.model.parameters():
            parameter.data = parameter.data * 1.5
        for step in range(2, 4):
            update(random_images(), step)
    assert all(torch.equal(a, b) for a, b in zip(*map(snapshot, updates), strict=True))


@pytest.mark.parametrize(
    "settings", [{}, {"micro_batch": 3}, {"precision": "bf16"}, {"precision": "fp16"}, {"recompute_from": 7}]
)
def test_replayed_steps_are_those_of_python(tiny: Config, settings: dict[str, object]) -> None:
    """To the last bit, with one norm too large and one that is not finite."""
    updates = [make_update(tiny, replay=replay, **settings) for replay in (True, False)]
    for update in updates:
        for step in range(6):
            update.loss_scale.value.mul_(math.nan if step == 3 else 1)
            update.threshold.value.fill_(1e-3 if step == 2 else 1e9)
            update(random_images() // (step + 1), step)
            if step == 3:
                update.loss_scale.value.fill_(1)
    replayed, plain = updates
    assert all(torch.equal(a, b) for a, b in zip(snapshot(replayed), snapshot(plain), strict=True))
    report = replayed.report()
    assert report == plain.report()
    assert (report.skipped, report.nonfinite) == (2, 1)


@pytest.mark.parametrize(
    ("key", "value"), [("cuda_graph", True), ("compress_gradients", True), ("compile", "autotune")]
)
def test_what_only_gpus_do_is_refused_elsewhere(tiny: Config, key: str, value: object) -> None:
    config = replace(tiny.train, **{key: value})  # type: ignore[arg-type]
    config.check_device(CUDA)
    with refuses(f"train.{key} cpu train.{key}=false"):
        config.check_device(CPU)


def test_states_in_bf16_where_auto_is_another_precision(tiny: Config) -> None:
    with refuses("train.bf16_states train.precision=bf16 fp32"):
        replace(tiny.train, precision="auto", bf16_states=True).check_device(CPU)


def test_compiling_without_a_compiler_is_refused(tiny: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, where PyTorch would end in an InductorError; on a GPU it has its own."""
    config = replace(tiny.train, compile=True)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    config.check_device(CUDA)
    replace(config, fast=False).check_device(CPU)  # where it has no effect
    with refuses("train.compile C++ compiler CXX train.compile=false"):
        config.check_device(CPU)
