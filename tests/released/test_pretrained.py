"""From a run directory, a checkpoint or a released file to a model, and what is refused."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

import vdvae
from tests.conftest import ROOT, TINY, refuses
from vdvae import config as vdvae_config
from vdvae.config import load_model_config
from vdvae.errors import UserError
from vdvae.released.matching import complete_presets, expected_tensors
from vdvae.released.releases import RELEASES, Release
from vdvae.run import checkpoint

TOLD_BY_A_FRESH_PROCESS = """
import json, re, sys
from pathlib import Path
import torch
import vdvae

def memory(which):
    return int(re.findall(rf"{which}:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024

torch.set_num_threads(2)
path, codes = Path(sys.argv[1]), sys.argv[2] == "codes"
before = memory("VmRSS")
model = vdvae.load_pretrained(path)
told = {"peak": (memory("VmHWM") - before) / path.stat().st_size, "image_size": model.config.image_size}
told["blocks"] = model.config.dec_blocks
if codes:
    shape = (1, 3, model.config.image_size, model.config.image_size)
    with torch.no_grad():
        latents = model.encode(torch.randint(0, 256, shape, dtype=torch.uint8))
        images = model.decode(latents, output="mean")
    told |= {"layers": len(latents), "finite": bool(images.isfinite().all()), "shape": list(images.shape)}
print(json.dumps(told))
"""


def random_weights(hps: str) -> dict[str, Tensor]:
    return {name: torch.randn(t.shape).mul_(0.01) for name, t in expected_tensors(load_model_config(hps)).items()}


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A small model's weights, as the released code would have written them."""
    torch.manual_seed(0)
    path = tmp_path / "tiny-iter-6-model-ema.th"
    torch.save(OrderedDict(random_weights(str(TINY))), path)
    return path


# FFHQ-256 in the format before PyTorch 1.6, ImageNet-32 as it comes out of DistributedDataParallel.
@pytest.mark.parametrize(
    "release",
    [pytest.param(r, marks=[pytest.mark.long] * (r.preset != "cifar10"), id=r.preset) for r in RELEASES[:5]],
)
def test_a_released_file_of_full_size_is_recognised_within_its_size_in_memory(release: Release, tmp_path: Path) -> None:
    """Random weights under the released names; encoding and decoding an image where two cores can do it soon."""
    is_parallel = release.preset == "imagenet32"
    weights = {("module." if is_parallel else "") + name: t for name, t in random_weights(release.preset).items()}
    path = tmp_path / f"{Path(release.stem).name}-model{'' if is_parallel else '-ema'}.th"
    torch.save(OrderedDict(weights), path, _use_new_zipfile_serialization=release.preset != "ffhq256")
    del weights
    codes = release.preset in ("cifar10", "imagenet32", "imagenet64")
    result = subprocess.run(
        [sys.executable, "-c", TOLD_BY_A_FRESH_PROCESS, path, "codes" if codes else ""],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    path.unlink()
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    model = load_model_config(release.preset)
    assert told["blocks"] == model.dec_blocks
    assert told["peak"] <= 1.3
    if codes:
        size = model.image_size
        assert (told["layers"], told["finite"], told["shape"]) == (len(model.decoder_specs), True, [1, 3, size, size])


def test_the_average_by_default_and_the_trained_weights_on_demand(run: Path) -> None:
    path = run / "checkpoints/step-00000006.pt"
    state = checkpoint.read(path).state
    for weights in (None, "ema", "model"):
        for source in (run, path, str(run)):
            model = vdvae.load_pretrained(source, weights=weights)
            loaded = model.state_dict()
            assert all(torch.equal(loaded[name], tensor) for name, tensor in state[weights or "ema"].items())
    assert not torch.equal(state["ema"]["decoder.gain"], state["model"]["decoder.gain"])
    assert not vdvae.load_pretrained(run).training


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_released_files_of_every_kind(tmp_path: Path, prefix: str, is_zip: bool, dtype: torch.dtype) -> None:
    weights = random_weights(str(TINY))
    path = tmp_path / "a.th"
    saved = {prefix + name: tensor.to(dtype) for name, tensor in weights.items()}
    torch.save(OrderedDict(saved), path, _use_new_zipfile_serialization=is_zip)
    for hps in (str(TINY), TINY, load_model_config(str(TINY))):
        model = vdvae.load_pretrained(path, device="auto", hps=hps)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor.cpu(), weights[name].to(dtype).float())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"_orig_mod.module.{name}",
        lambda name: f"module.module.{name}",
        lambda name: re.sub(r"(blocks\.\d+|out_net)\.", r"\1._orig_mod.", name),
        lambda name: "module." + re.sub(r"(blocks\.\d+)\.", r"\1._checkpoint_wrapped_module._orig_mod.", name),
    ],
)
def test_names_that_wrappers_have_changed(tmp_path: Path, wrapped: Callable[[str], str], run: Path) -> None:
    """In a file of weights, and in a checkpoint."""
    weights = random_weights(str(TINY))
    torch.save({wrapped(name): tensor for name, tensor in weights.items()}, tmp_path / "a.th")
    model = vdvae.load_pretrained(tmp_path / "a.th", hps=str(TINY))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    path = run / "checkpoints/step-00000006.pt"
    content = torch.load(path, weights_only=True)
    expected = content["ema"]
    content["ema"] = {wrapped(name): tensor for name, tensor in expected.items()}
    torch.save(content, path)
    assert all(torch.equal(t, expected[name]) for name, t in vdvae.load_pretrained(run).state_dict().items())


def test_a_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    weights = random_weights(str(TINY))
    torch.save({**weights, "_orig_mod.decoder.gain": weights["decoder.gain"]}, tmp_path / "a.th")
    with refuses("a.th two 'decoder.gain' '_orig_mod.decoder.gain'", UserError):
        vdvae.load_pretrained(tmp_path / "a.th", hps=str(TINY))


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1\nsize 12345\n"


def archive(kind: str) -> bytes:
    """An archive with a file of weights in it."""
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("vdvae-model-ema.th", b"weights")
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz" if kind == "tar.gz" else "w") as file_of_files:
            file_of_files.addfile(tarfile.TarInfo("vdvae-model-ema.th"))
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["a-model-ema.th", "step-00000006.pt"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (LFS, "Git LFS pointer `git lfs pull`"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "web page download"),
        (b"\n  <html>\n", "web page download"),
        (b"<?xml version='1.0'?><Error><Code>BlobNotFound</Code></Error>", "web page download"),
        (archive("zip"), "zip archive unpack"),
        (archive("tar"), "tar archive unpack"),
        (archive("tar.gz"), "compressed unpack"),
        (safetensors.torch.save({"decoder.gain": torch.ones(1)}), "safetensors file torch.save"),
    ],
)
def test_what_downloads_leave_in_the_place_of_a_file(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with refuses(f"{tmp_path / name} {words}", UserError):
        vdvae.load_pretrained(tmp_path / name)


def test_weights_get_the_layout_that_a_new_model_has(released: Path, tiny: vdvae_config.Config) -> None:
    """Or convolutions would run slower, and round otherwise, than in the run that made them."""
    loaded = vdvae.load_pretrained(released, hps=str(TINY))
    for (name, new), old in zip(vdvae.VDVAE(tiny.model).named_parameters(), loaded.parameters(), strict=True):
        assert new.stride() == old.stride(), name


def test_a_preset_of_ones_own_is_recognised(released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among complete presets; a fragment and a broken file do not get in the way, two different models do."""
    folder = tmp_path / "configs"
    folder.mkdir()
    monkeypatch.setattr("vdvae.config.reading.PRESETS", folder)
    monkeypatch.setattr("vdvae.released.matching.PRESETS", folder)
    with refuses("configs presets --hps"):
        vdvae.load_pretrained(released)
    (folder / "mine.yaml").write_text(TINY.read_text())
    (folder / "fragment.yaml").write_text("model: {image_size: 28}")
    (folder / "broken.yaml").write_text("model: [")
    (folder / "same_model.yaml").write_text("base: mine\ntrain: {lr: 1e-4}")
    assert list(complete_presets()) == ["mine", "same_model"]
    assert vdvae.load_pretrained(released).config == load_model_config(str(TINY))
    (folder / "other.yaml").write_text("base: mine\nmodel: {input_shift: -3.0, bits: 5}")
    with refuses("mine other model.bits model.input_shift", UserError):
        vdvae.load_pretrained(released)
    assert vdvae.load_pretrained(released, hps="other").config.bits == 5


def damage(path: Path, how: str) -> None:
    content = torch.load(path, weights_only=True)
    if how == "a tensor is missing":
        del content["decoder.gain"]
    elif how == "a tensor is too much":
        content["decoder.extra"] = torch.zeros(2)
    elif how == "a shape is wrong":
        content["decoder.gain"] = torch.zeros(1, 9, 1, 1)
    elif how == "whole numbers":
        content["decoder.gain"] = torch.zeros(1, 8, 1, 1, dtype=torch.int64)
    elif how == "no tensors":
        content = {"epoch": 3}
    elif how == "a list":
        content = [1, 2]
    torch.save(content, path)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("a tensor is missing", "decoder.gain [1, 8, 1, 1] missing"),
        ("a tensor is too much", "decoder.extra"),
        ("a shape is wrong", "decoder.gain [1, 8, 1, 1] [1, 9, 1, 1]"),
        ("whole numbers", "'decoder.gain' torch.int64 floats"),
        ("no tensors", "checkpoint released 'epoch' int"),
        ("a list", "no named tensors"),
    ],
)
def test_tensors_that_do_not_fit(released: Path, how: str, words: str) -> None:
    damage(released, how)
    with refuses(words):
        vdvae.load_pretrained(released, hps=str(TINY))


def test_no_preset_fits(released: Path) -> None:
    with refuses("none cifar10 nearest fashion tensors", UserError):
        vdvae.load_pretrained(released)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("kept", [0, 1, 50, 0.3, 0.9, 0.999])
def test_a_file_that_is_cut_off(released: Path, is_zip: bool, kept: float) -> None:
    content = torch.load(released, weights_only=True)
    torch.save(content, released, _use_new_zipfile_serialization=is_zip)
    whole = released.read_bytes()
    released.write_bytes(whole[: int(kept * len(whole)) if 0 < kept < 1 else int(kept)])
    with refuses(f"{released} damaged torch.save", UserError):
        vdvae.load_pretrained(released)


class Evil:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("is_zip", [True, False])
def test_code_in_a_file_is_not_executed(released: Path, is_zip: bool) -> None:
    trace = released.parent / "was-run"
    content = torch.load(released, weights_only=True)
    content["decoder.gain"] = Evil(trace)
    torch.save(content, released, _use_new_zipfile_serialization=is_zip)
    with refuses("posix.mkdir tensors", UserError):
        vdvae.load_pretrained(released)
    assert not trace.exists()


def test_nothing_there(tmp_path: Path) -> None:
    with refuses("nowhere", UserError):
        vdvae.load_pretrained(tmp_path / "nowhere")
    with refuses("run directory checkpoint", UserError):
        vdvae.load_pretrained(tmp_path)
    address = "https://openaipublic.blob.core.windows.net/very-deep-vaes-assets/vdvae-assets-2/"
    name = "imagenet64-iter-1600000-model-ema.th"
    with refuses(f"download {address}{name}", UserError):
        vdvae.load_pretrained(tmp_path / name)


def test_choices_that_mean_nothing_are_refused(run: Path, released: Path) -> None:
    for path in (run, released):
        with refuses("weights 'ema' 'model' 'raw'", UserError):
            vdvae.load_pretrained(path, weights="raw")  # type: ignore[arg-type]
    with refuses("own configuration", UserError):
        vdvae.load_pretrained(run, hps="cifar10")
    with refuses("one set weights", UserError):
        vdvae.load_pretrained(released, weights="ema")
    with refuses("device 'cuda:9'"):
        vdvae.load_pretrained(run, device="cuda:9")
    with refuses("preset 'imagenet46'", UserError):
        vdvae.load_pretrained(released, hps="imagenet46")
