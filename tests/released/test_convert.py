"""From the released code's four files to a run directory and back, and what is refused."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from tests.conftest import ROOT, TINY, Command, assert_refused, refuses, says
from vdvae import load_pretrained
from vdvae.config import Config, load_config
from vdvae.errors import UserError
from vdvae.model.vdvae import VDVAE
from vdvae.released.exporting import export_run
from vdvae.released.four_files import ReleasedSet
from vdvae.released.importing import import_released
from vdvae.released.matching import expected_tensors
from vdvae.released.releases import RELEASES
from vdvae.run import checkpoint
from vdvae.run.directory import RunDirectory
from vdvae.runtime.processes import World
from vdvae.training.update import Update

CPU = World(0, 1, torch.device("cpu"))
LOG: list[Any] = [
    {"type": "hparam", "key": "lr", "value": 0.001},
    {"message": "training model tiny"},
    {"type": "train_loss", "epoch": 0, "step": 400, "elbo": 3.5, "distortion": 3.0, "rate": 0.5, "iter_time": 0.1},
    {"type": "eval_loss", "epoch": 1, "step": 450, "n_batches": 7, "elbo": 3.25, "distortion": 2.75, "rate": 0.5},
    {"type": "train_loss", "epoch": 2, "step": 800, "elbo": math.nan, "grad_norm": 210.5, "skipped_updates": 4},
    {"type": "train_loss", "epoch": 2, "step": 700, "elbo": 3.0, "distortion": 2.5, "rate": 0.5},
    {"type": "train_loss", "epoch": 3, "step": 1000, "elbo": 2.5, "distortion": 2.0, "rate": 0.5, "lr": 0.001},
    {"type": "eval_loss", "epoch": 3, "step": 1100, "elbo": 2.0},
]
"""Two processes wrote it: the second began again at an earlier step."""


@pytest.fixture
def colour(tmp_path: Path) -> Path:
    """tiny.yaml with colours, in the test's own folder."""
    content = yaml.safe_load(TINY.read_text())
    blocks = {"enc_blocks": "32d4,8x1,8d8,1x1", "dec_blocks": "1x1,8m1,32m8"}
    content["model"] |= {"image_size": 32, "image_channels": 3, **blocks}
    content["data"] = {"dataset": "cifar10"}
    content["train"] |= {"max_steps": 2000, "weight_decay": 0.0}
    path = tmp_path / "colour.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def config(colour: Path) -> Config:
    return load_config(str(colour), [])


def random_tensors(config: Config, prefix: str = "") -> OrderedDict[str, Tensor]:
    expected = expected_tensors(config.model)
    return OrderedDict((prefix + name, torch.randn(t.shape) * 0.01) for name, t in expected.items())


def write_log(path: Path, lines: list[Any]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def released_optimizer(config: Config, keys: Callable[[int], int] = lambda i: i) -> dict[str, Any]:
    shapes = [tensor.shape for tensor in expected_tensors(config.model).values()]
    moments = {
        keys(i): {"exp_avg": torch.randn(shape) * 1e-3, "exp_avg_sq": torch.rand(shape) * 1e-3}
        for i, shape in enumerate(shapes)
    }
    group = {"lr": 1e-3, "bias_correction": True, "betas": (0.9, 0.9), "eps": 1e-8, "weight_decay": 0.01, "step": 990}
    group |= {"initial_lr": 1e-3, "params": list(moments)}
    return {"state": dict(sorted(moments.items())), "param_groups": [group]}


@pytest.fixture
def released(tmp_path: Path, config: Config) -> ReleasedSet:
    """A set as the released code would have written it, at tmp_path/set/tiny-iter-1000."""
    torch.manual_seed(0)
    (tmp_path / "set").mkdir()
    files = ReleasedSet.at(str(tmp_path / "set/tiny-iter-1000"))
    torch.save(random_tensors(config, "module."), files.model)
    torch.save(random_tensors(config), files.ema)
    torch.save(released_optimizer(config), files.optimizer)
    write_log(files.log, LOG)
    return files


def prefix_of(files: ReleasedSet) -> str:
    return str(files.model).removesuffix("-model.th")


def load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def paths_below(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def by_hand(_: Config) -> int:
    return 45_000


def counted(images: int, _: Config) -> int:
    return images


def not_asked(_: Config) -> int:
    raise AssertionError("a refusal must come before the images are counted")


def taken_over(released: ReleasedSet, colour: Path, *overrides: str) -> Path:
    """The run directory made of a set, beside it."""
    run_dir = released.model.parent.parent / "run"
    import_released(prefix_of(released), run_dir, str(colour), list(overrides))
    return run_dir


@pytest.mark.parametrize("keyed_by", ["numbers", "ids"])
def test_there_and_back(keyed_by: str, released: ReleasedSet, colour: Path, config: Config, tmp_path: Path) -> None:
    """Every tensor, the steps and the epoch. Older PyTorch keyed an optimiser's state by id(), in any order."""
    if keyed_by == "ids":
        torch.save(
            released_optimizer(config, lambda i: 140_000_000_000_000 + (i * 7919) % 10_007 * 64), released.optimizer
        )
    model, ema, optimizer = load(released.model), load(released.ema), load(released.optimizer)
    moments = [optimizer["state"][key] for key in optimizer["param_groups"][0]["params"]]
    run_dir = tmp_path / "runs/new"
    made = import_released(prefix_of(released), run_dir, str(colour))
    assert (made.step, made.epoch, made.hps, made.config) == (1000, 3, str(colour), config)
    assert made.parameters == sum(tensor.numel() for tensor in ema.values())
    assert made.settings == {"weight_decay": 0.01}
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["new"]

    found = RunDirectory(run_dir).open(config, {})
    assert found is not None
    assert (found.path.name, found.step, found.config) == ("step-00001000.pt", 1000, config)
    assert load_config(str(run_dir / "config.yaml"), []) == config
    for name, tensor in ema.items():
        assert torch.equal(found.state["model"][name], model["module." + name])
        assert torch.equal(found.state["ema"][name], tensor)
    for i, moment in enumerate(moments):
        there = found.state["optimizer"]["state"][i]
        assert there["step"].item() == 990
        assert all(torch.equal(there[name], moment[name]) for name in ("exp_avg", "exp_avg_sq"))

    out = ReleasedSet.at(str(tmp_path / "out/tiny"))
    export_run(run_dir, str(tmp_path / "out/tiny"), by_hand)
    assert sorted((tmp_path / "out").iterdir()) == sorted(out)
    for before, path in ((model, out.model), (ema, out.ema)):
        after = load(path)
        assert isinstance(after, OrderedDict)
        assert list(after) == list(before)
        for name, tensor in before.items():
            assert torch.equal(after[name], tensor)
            assert after[name].is_contiguous()
            assert after[name].dtype == torch.float32
    after = load(out.optimizer)
    [group] = after["param_groups"]
    assert group["params"] == list(after["state"]) == list(range(len(moments)))
    assert group.keys() == optimizer["param_groups"][0].keys()
    assert (group["step"], group["lr"], group["betas"], group["weight_decay"]) == (990, 1e-3, (0.9, 0.9), 0.0)
    for i, moment in enumerate(moments):
        assert after["state"][i].keys() == moment.keys()
        assert all(torch.equal(after["state"][i][name], tensor) for name, tensor in moment.items())
        assert all(tensor.is_contiguous() for tensor in after["state"][i].values())
    trained = [line for line in lines_of(out.log) if line["type"] == "train_loss"]
    assert (max(line["step"] for line in trained), max(line["epoch"] for line in trained)) == (1000, 3)


def test_the_curve_goes_along(released: ReleasedSet, colour: Path, tmp_path: Path) -> None:
    """In bits/dim, in the order of steps, up to the step of the weights; and back in nats/dim."""
    run_dir = taken_over(released, colour)
    lines = lines_of(run_dir / "metrics.jsonl")
    told = [(line["kind"], line["step"], line["epoch"]) for line in lines]
    assert told == [("train", 400, 0), ("valid", 450, 1), ("train", 700, 2), ("train", 800, 2), ("train", 1000, 3)]
    assert lines[0].keys() == {"kind", "step", "epoch", "bits_per_dim", "distortion", "rate"}
    assert lines[1]["bits_per_dim"] == pytest.approx(3.25 / math.log(2))
    assert lines[0]["distortion"] == pytest.approx(3.0 / math.log(2))
    assert lines[0]["rate"] == pytest.approx(0.5 / math.log(2))
    assert math.isnan(lines[3]["bits_per_dim"])
    assert (lines[3]["grad_norm_max"], lines[3]["skipped"], lines[4]["learning_rate"]) == (210.5, 4, 0.001)

    export_run(run_dir, str(tmp_path / "out"), by_hand)
    again = lines_of(tmp_path / "out-log.jsonl")
    originals = sorted((line for line in LOG if line.get("step", math.inf) <= 1000), key=lambda line: line["step"])
    for line, original in zip(again, originals, strict=True):
        assert line.keys() == original.keys() - {"iter_time", "n_batches"}
        assert line == pytest.approx({key: original[key] for key in line}, nan_ok=True)


def test_an_update_later(released: ReleasedSet, colour: Path, config: Config, tmp_path: Path) -> None:
    """The run goes on as one that had these moments from the start, and its own lines get epochs."""
    run_dir = taken_over(released, colour)
    found = checkpoint.read_newest(run_dir / "checkpoints")
    assert found is not None
    torch.manual_seed(1)
    update = Update(VDVAE(config.model), config.train.resolved(), CPU)
    update.load_state_dict(found.state)
    for parameter, state in zip(update.model.parameters(), adam_state(update), strict=True):
        assert parameter.stride() == state["exp_avg"].stride() == state["exp_avg_sq"].stride()
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    update(images, 1000)
    optimizer = load(released.optimizer)
    gradient = _gradient(released, config, images)
    i = list(load(released.ema)).index("decoder.gain")
    after = adam_state(update)[i]["exp_avg"]
    assert torch.allclose(after, 0.9 * optimizer["state"][i]["exp_avg"] + 0.1 * gradient, rtol=1e-4, atol=1e-8)

    checkpoint.save(run_dir / "checkpoints", 1001, config, update.state_dict())
    with (run_dir / "metrics.jsonl").open("a") as file:
        for entry in (
            {"kind": "train", "step": 1001, "bits_per_dim": 3.0, "layer_rate": [0.1], "images_per_second": 9.0},
            {"kind": "valid", "step": 1001, "bits_per_dim": 3.5, "dataset": "cifar10"},
            {"kind": "train", "step": 1002, "bits_per_dim": 3.0},
            {"kind": "test", "step": 1001, "bits_per_dim": 3.0},
        ):
            file.write(json.dumps(entry) + "\n")
    for images_in_epoch, epoch, name in ((45_000, 3, "few"), (1000, 8, "many")):
        export_run(run_dir, str(tmp_path / name), partial(counted, images_in_epoch))
        *_, train, valid = lines_of(tmp_path / f"{name}-log.jsonl")
        assert train == {"type": "train_loss", "step": 1001, "epoch": epoch, "elbo": pytest.approx(3 * math.log(2))}
        assert valid == {"type": "eval_loss", "step": 1001, "epoch": epoch, "elbo": pytest.approx(3.5 * math.log(2))}
    assert load(tmp_path / "few-opt.th")["param_groups"][0]["step"] == 991


def _gradient(released: ReleasedSet, config: Config, images: Tensor) -> Tensor:
    """The gradient of `decoder.gain`, as the update at step 1000 sees it, by its own arithmetic without moments."""
    update = Update(VDVAE(config.model), config.train.resolved(), CPU)
    update.model.load_state_dict({name.removeprefix("module."): t for name, t in load(released.model).items()})
    update(images, 1000)
    return adam_state(update)[list(load(released.ema)).index("decoder.gain")]["exp_avg"] / 0.1


def adam_state(update: Update) -> list[dict[str, Tensor]]:
    """What Adam keeps for each parameter, in their order."""
    return list(update.optimizer.state_dict()["state"].values())


def test_a_checkpoint_alone_has_a_line_of_its_own(released: ReleasedSet, colour: Path, tmp_path: Path) -> None:
    source = taken_over(released, colour) / "checkpoints/step-00001000.pt"
    alone = Path(source.rename(tmp_path / "copied.pt"))
    export_run(alone, str(tmp_path / "out"), lambda _: 1000)
    assert lines_of(tmp_path / "out-log.jsonl") == [{"type": "train_loss", "epoch": 8, "step": 1000}]


def test_the_average_still_loads_alone(released: ReleasedSet, colour: Path, tmp_path: Path) -> None:
    export_run(taken_over(released, colour), str(tmp_path / "out"), by_hand)
    for path in (released.ema, tmp_path / "out-model-ema.th", tmp_path / "run"):
        model = load_pretrained(path, hps=None if path.is_dir() else str(colour))
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in load(released.ema).items())


def test_recognised_by_its_tensors(
    released: ReleasedSet, colour: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    presets = tmp_path / "configs"
    presets.mkdir()
    (presets / "mine.yaml").write_text(colour.read_text())
    monkeypatch.setattr("vdvae.config.reading.PRESETS", presets)
    monkeypatch.setattr("vdvae.released.matching.PRESETS", presets)
    overrides = ["train.weight_decay=0.01", "train.lr=5e-4", "train.beta2=0.99"]
    made = import_released(prefix_of(released), tmp_path / "run", overrides=overrides)
    assert made.hps == "mine"
    assert made.settings == {"lr": 1e-3, "beta2": 0.9}


def spoil(files: ReleasedSet, how: str) -> None:
    """Makes one thing wrong with a set."""
    model, optimizer, log = load(files.model), load(files.optimizer), files.log.read_text()
    [group] = optimizer["param_groups"]
    if how == "no log":
        files.log.unlink()
    elif how == "ema only":
        for path in (files.model, files.optimizer, files.log):
            path.unlink()
    elif how == "truncated opt":
        content = files.optimizer.read_bytes()
        files.optimizer.write_bytes(content[: len(content) // 2])
        return
    elif how == "code in opt":
        group["lr"] = Evil(files.optimizer.parent / "was-run")
    elif how == "not an optimiser":
        optimizer = model
    elif how == "two groups":
        optimizer["param_groups"].append(group)
    elif how == "a moment less":
        del optimizer["state"][group["params"].pop()]
    elif how == "an unknown key":
        group["params"][2] = 7777
    elif how == "a key twice":
        group["params"][4] = 2
    elif how == "no second moment":
        del optimizer["state"][1]["exp_avg_sq"]
    elif how == "a moment's shape":
        optimizer["state"][1]["exp_avg"] = torch.zeros(5)
    elif how == "no step":
        del group["step"]
    elif how == "other ema":
        ema = load(files.ema)
        ema["decoder.gain"] = torch.zeros(1, 9, 1, 1)
        torch.save(ema, files.ema)
    elif how == "other model":
        del model["module.decoder.gain"]
    elif how == "no train line":
        write_log(files.log, [line for line in LOG if line.get("type") != "train_loss"])
    elif how == "broken log":
        files.log.write_text(log[:-20])
    elif how == "no epoch":
        write_log(files.log, [{"type": "train_loss", "step": 1000}])
    elif how == "words":
        write_log(files.log, [{"type": "train_loss", "step": 1, "epoch": 0, "elbo": "low"}])
    elif how == "too many updates":
        write_log(files.log, [{"type": "train_loss", "step": 2001, "epoch": 4}])
    for path, content in ((files.model, model), (files.optimizer, optimizer)):
        if path.exists():
            torch.save(content, path)


class Evil:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("no log", "-log.jsonl four"),
        ("ema only", "-model-ema.th load_pretrained -opt.th"),
        ("truncated opt", "-opt.th damaged torch.save"),
        ("code in opt", "-opt.th posix.mkdir executed"),
        ("not an optimiser", "-opt.th optimiser"),
        ("two groups", "-opt.th one group"),
        ("a moment less", "-opt.th 118 moments 119"),
        ("an unknown key", "encoder.enc_blocks.0.c1.weight 7777"),
        ("a key twice", "encoder.enc_blocks.0.c2.weight `params` 2"),
        ("no second moment", "exp_avg_sq encoder.in_conv.bias"),
        ("a moment's shape", "exp_avg encoder.in_conv.bias [5] [8]"),
        ("no step", "-opt.th updates"),
        ("other ema", "-model-ema.th decoder.gain [1, 8, 1, 1] [1, 9, 1, 1]"),
        ("other model", "-model.th decoder.gain [1, 8, 1, 1] missing"),
        ("no train line", "-log.jsonl train_loss"),
        ("broken log", "-log.jsonl line 8 JSON"),
        ("no epoch", "-log.jsonl line 1 epoch None"),
        ("words", "-log.jsonl line 1 elbo 'low'"),
        ("too many updates", "2,001 train.max_steps 2,000 train.max_steps=2001"),
    ],
)
def test_bad_sets_leave_nothing_behind(
    how: str, words: str, released: ReleasedSet, colour: Path, tmp_path: Path
) -> None:
    spoil(released, how)
    before = paths_below(tmp_path)
    with refuses(words, UserError):
        taken_over(released, colour)
    assert paths_below(tmp_path) == before


def test_a_known_release_says_where_its_files_are(tmp_path: Path) -> None:
    name = Path(RELEASES[0].stem).name
    with refuses(f"download https:// /{name}-model.th /{name}-log.jsonl", UserError):
        import_released(str(tmp_path / name), tmp_path / "run")
    with refuses(f"begin /{name}", UserError):
        import_released(str(tmp_path / f"{name}-opt.th"), tmp_path / "run")


def test_the_run_directory_must_be_new_or_empty(released: ReleasedSet, colour: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / ".run.importing").mkdir()  # of a process that was killed
    (tmp_path / ".run.importing/config.yaml").touch()
    run_dir = taken_over(released, colour)
    assert not (tmp_path / ".run.importing").exists()
    before = {path: path.read_bytes() for path in paths_below(tmp_path) if path.is_file()}
    with refuses(f"{run_dir} empty RUN_DIR", UserError):
        import_released(prefix_of(released), run_dir, str(colour))
    assert {path: path.read_bytes() for path in paths_below(tmp_path) if path.is_file()} == before


def test_a_full_disk_leaves_nothing_behind(
    released: ReleasedSet, colour: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = paths_below(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr(os, "fsync", full)
        taken_over(released, colour)
    assert paths_below(tmp_path) == before
    run_dir = taken_over(released, colour)
    before = paths_below(tmp_path)
    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr("json.dumps", full)
        export_run(run_dir, str(tmp_path / "out"), by_hand)
    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        rename = Path.rename
        patched.setattr(Path, "rename", lambda path, to: full() if to.name == "out-opt.th" else rename(path, to))
        export_run(run_dir, str(tmp_path / "out"), by_hand)
    assert paths_below(tmp_path) == before


def test_exports_that_are_refused(released: ReleasedSet, colour: Path, config: Config, tmp_path: Path) -> None:
    run_dir = taken_over(released, colour)
    (tmp_path / "taken-opt.th").touch()
    fresh = Update(VDVAE(config.model), config.train.resolved(), CPU)
    no_moments = checkpoint.save(tmp_path / "none", 0, config, fresh.state_dict())
    narrow = load_config(str(colour), ["model.custom_width_str=32:4"])
    narrow_path = checkpoint.save(tmp_path / "narrow", 1, narrow, {})
    learned = load_config(str(colour), ["model.unpool=conv"])
    learned_path = checkpoint.save(tmp_path / "learned", 1, learned, {})
    before = paths_below(tmp_path)
    for run, prefix, words in (
        (run_dir, "taken", "taken-opt.th PREFIX"),
        (no_moments, "out", "no moments"),
        (narrow_path, "out", "width 4 32 model.width 8"),
        (learned_path, "out", "model.unpool conv nearest"),
        (tmp_path / "nowhere", "out", "nowhere"),
        (tmp_path, "out", "checkpoints/step-"),
        (released.ema, "out", "checkpoint project"),
    ):
        with refuses(words, UserError):
            export_run(run, str(tmp_path / prefix), not_asked)
    assert paths_below(tmp_path) == before


def test_a_grey_run_is_refused(run: Path, call: Command) -> None:
    assert_refused(call("scripts/convert_openai.py", "export", run, "out"), "model.image_channels 1 3")
    assert [path.name for path in run.parent.iterdir()] == ["run"]


def test_the_command_that_is_printed_resumes(
    released: ReleasedSet, colour: Path, call: Command, tmp_path: Path
) -> None:
    (tmp_path / "pictures").mkdir()
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)):
        iio.imwrite(tmp_path / f"pictures/{i}.png", pixels)
    prepared = call("scripts/prepare_data.py", "folder", "pictures", "--name", "noise", "--config", "noise.yaml")
    assert prepared.returncode == 0, prepared.stderr
    overrides = ["data.dataset=noise", "train.max_steps=1002"]
    made = call("scripts/convert_openai.py", "import", prefix_of(released), "my run", "--hps", colour, *overrides)
    assert made.returncode == 0, made.stderr
    python, *arguments = shlex.split(made.stdout.splitlines()[1].removeprefix("resume: "))
    assert (python, arguments[0]) == ("python", f"{ROOT}/train.py")
    result = call(*arguments)
    assert result.returncode == 0, result.stderr
    assert "after step 1,000" in result.stdout
    found = checkpoint.read(tmp_path / "my run/checkpoints/step-00001002.pt")
    assert found.state["optimizer"]["state"][0]["step"].item() == 992
    kinds = [(line["kind"], line["step"]) for line in lines_of(tmp_path / "my run/metrics.jsonl")]
    assert kinds[-4:] == [("train", 1000), ("start", 1000), ("train", 1002), ("test", 1002)]
    assert "changed: " not in result.stdout
    assert call("scripts/convert_openai.py", "export", "my run", "out").returncode == 0
    assert lines_of(tmp_path / "out-log.jsonl")[-1]["epoch"] == 1002 * 8 // 36


def test_by_command_line(released: ReleasedSet, colour: Path, call: Command, tmp_path: Path) -> None:
    script, prefix = "scripts/convert_openai.py", prefix_of(released)
    result = call(script, "import", prefix, "run", "--hps", colour, "train.lr=5e-4", "train.max_steps=1000")
    assert result.returncode == 0, result.stderr
    numbers = sum(tensor.numel() for tensor in load(released.ema).values())
    says(result.stdout, f"step 1,000 epoch 3 {numbers:,}")
    resume = f"python {ROOT}/train.py --hps {colour} --run_dir run train.lr=5e-4 train.max_steps=1000"
    assert f"resume: {resume}" in result.stdout.splitlines()
    says(result.stdout, "train.lr=0.001 train.weight_decay=0.01 train.max_steps=")
    result = call(script, "export", "run", "out")
    assert result.returncode == 0, result.stderr
    said, *written = result.stdout.splitlines()
    says(said, "run/checkpoints/step-00001000.pt 1,000")
    assert written == [f"out{ending}" for ending in ("-model.th", "-model-ema.th", "-opt.th", "-log.jsonl")]
    content = yaml.safe_load(colour.read_text())
    content["data"]["dataset"] = "holidays"
    colour.write_text(yaml.safe_dump(content))
    assert call(script, "import", prefix, "holidays", "--hps", colour).returncode == 0
    before = paths_below(tmp_path)
    for arguments, words in (
        (["export", "run", "out"], "out-model.th"),
        (["export", "holidays", "out2"], "epoch holidays"),
        (["export", "run", "out2", "more"], "arguments: more"),
        (["import", prefix, "run2"], "none presets"),
        (["import", prefix, "run2", "--hps", colour, "train.lr"], "arguments: train.lr"),
        (["import", prefix, "run2", "train.lr=fast", "--hps", colour], "train.lr number"),
        (["import", "nowhere", "run2"], "nowhere-model.th nowhere-model-ema.th"),
    ):
        assert_refused(call(script, *arguments), words)
    assert paths_below(tmp_path) == before
