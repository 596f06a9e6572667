"""The command lines over a run directory or a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from tests.conftest import TINY, Command
from vdvae import load_pretrained
from vdvae.config import load_model_config
from vdvae.data.datasets import Rule
from vdvae.data.manifest import File, Manifest
from vdvae.errors import CommandLine
from vdvae.released.matching import expected_tensors
from vdvae.runtime.noise import Purpose, generator


def test_evaluate_gives_one_number_however_it_is_run(run: Path, command: Command) -> None:
    """In the run, from its directory, from its checkpoint, and in two processes: the same to the last digit."""
    at_the_end = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    results = []
    for path, processes in ((run, 0), (run / "checkpoints/step-00000006.pt", 0), (run, 2)):
        result = command("scripts/evaluate.py", path, "--json", "new/nll.json", processes=processes)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("bits/dim") >= 3
        results.append(json.loads((run.parent / "new/nll.json").read_text()))
    assert {r["bits_per_dim"] for r in results} == {at_the_end["bits_per_dim"]}
    assert {r["standard_error"] for r in results} == {at_the_end["standard_error"]}
    assert results[0]["rate_per_resolution"] == at_the_end["rate_per_resolution"]
    facts = {"dataset": "fashion_mnist_9k_1k", "variant": None, "partial": False, "bits": 8, "num_images": 1000}
    assert {key: results[0][key] for key in facts} == {key: at_the_end[key] for key in facts} == facts


def test_sample(run: Path, command: Command) -> None:
    """A row per temperature; the same seed gives the same picture."""
    arguments = ["scripts/sample.py", run, "--temperatures", 1.0, 0.5, "--columns", 3, "--out", "grids/a.png"]
    result = command(*arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "grids/a.png\n"
    picture = iio.imread(run.parent / "grids/a.png")
    assert picture.shape == (2 * 58 + 2, 3 * 58 + 2)
    command(*arguments)
    assert (iio.imread(run.parent / "grids/a.png") == picture).all()


def test_evaluate_other_bounds(run: Path, command: Command) -> None:
    """Importance weighting is tighter than the ELBO, and the lowest layer from the prior has no rate."""
    result = command(
        *("scripts/evaluate.py", run, "--importance_samples", 5, "--prior_layers", 1, "--json", "nll.json"),
        "data.root=elsewhere",  # where the embedded set is not looked for
    )
    assert result.returncode == 0, result.stderr
    told = json.loads((run.parent / "nll.json").read_text())
    assert told["importance_weighted"]["bits_per_dim"] < told["bits_per_dim"]
    assert told["importance_weighted"]["samples"] == 5
    assert told["lowest_layers_from_the_prior"]["rate_per_resolution"]["28"] == 0
    assert "importance-weighted, 5 samples per image" in result.stdout
    assert "the lowest 1 of 3 layers from the prior" in result.stdout


def test_evaluate_released_weights_of_five_bits(tmp_path: Path, command: Command) -> None:
    """Under both binnings, with the one asked for first; data and batch size from the preset that is named."""
    preset = tmp_path / "five.yaml"
    preset.write_text(f"base: {TINY.stem}\nmodel: {{bits: 5}}\ndata: {{dataset: five}}\n")
    (tmp_path / TINY.name).write_text(TINY.read_text())
    write_five_bits(tmp_path / "data/five")
    weights = {name: torch.zeros(t.shape) for name, t in expected_tensors(load_model_config(str(preset))).items()}
    torch.save({"module." + name: tensor for name, tensor in weights.items()}, tmp_path / "five-model.th")
    figures = {}
    for binning in ("exact", "released"):
        arguments = ["five-model.th", "--hps", "five.yaml", "--binning", binning, "--json", "nll.json"]
        result = command("scripts/evaluate.py", *arguments)
        assert result.returncode == 0, result.stderr
        assert f"binning {binning}, the one above" in result.stdout
        told = json.loads((tmp_path / "nll.json").read_text())
        figures[binning] = told["bits_per_dim"]
        assert told["binning"] == binning
    assert told["bits_per_dim_by_binning"] == pytest.approx(figures)
    assert figures["exact"] != figures["released"]


def write_five_bits(folder: Path) -> None:
    """A prepared set of 12 gray images at 5 bits."""
    folder.mkdir(parents=True)
    np.save(folder / "images.npy", np.random.default_rng(0).integers(0, 256, (12, 28, 28, 1), np.uint8))
    rules = {split: Rule("images.npy", None, 4 * i, 4) for i, split in enumerate(("train", "valid", "test"))}
    Manifest("five", 28, 1, 5, None, False, "noise", {"images.npy": File(12, "")}, rules).write(folder)


def test_samples_in_a_folder_and_for_fid_are_the_same(run: Path, command: Command) -> None:
    arguments = ["scripts/sample.py", run, "--num_images", 5, "--batch_size", 2, "--temperatures", "1:1.0,28:0.5"]
    for out in ("samples.npz", "samples"):
        result = command(*arguments, "--out", out)
        assert result.returncode == 0, result.stderr
        assert result.stdout == f"{out}\n"
    with np.load(run.parent / "samples.npz") as arrays:
        samples = arrays["arr_0"]
    assert (samples.shape, samples.dtype) == ((5, 28, 28, 1), np.uint8)
    pngs = sorted((run.parent / "samples").iterdir())
    assert [path.name for path in pngs] == [f"{i:06}.png" for i in range(5)]
    assert np.array_equal(np.stack([iio.imread(path) for path in pngs]), samples[..., 0])
    model = load_pretrained(run)
    noise = generator(model.device, 0, Purpose.PICTURES, 2)
    last = model.sample(1, [1.0, 1.0, 0.5], generator=noise)
    assert np.array_equal(samples[4, ..., 0], last[0, 0].numpy())


@pytest.fixture
def photos(run: Path) -> Path:
    """Five gray images of 28 x 28 and one larger."""
    folder = run.parent / "photos"
    folder.mkdir()
    for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)):
        iio.imwrite(folder / f"{i}.png", image)
    iio.imwrite(folder / "large.png", np.zeros((56, 56), np.uint8))
    return folder


def test_encode_and_decode(run: Path, photos: Path, command: Command) -> None:
    """What the library does, batch by batch: posterior means, and the same image back."""
    result = command("scripts/encode.py", run, photos, "--mode", "mean", "--batch_size", 4, "--out", "z/latents.npz")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "z/latents.npz: latents of 6 images, 1,668 numbers each from the first 3 layers\n"
    with np.load(run.parent / "z/latents.npz", allow_pickle=False) as arrays:
        flat, names = torch.from_numpy(arrays["latents"]), arrays["names"].tolist()
        assert arrays["shapes"].tolist() == [[2, 1, 1], [2, 7, 7], [2, 28, 28]]
    assert [Path(name).name for name in names] == ["0.png", "1.png", "2.png", "3.png", "4.png", "large.png"]
    model = load_pretrained(run)
    images = torch.stack([torch.from_numpy(iio.imread(photos / f"{i}.png"))[None] for i in range(4)])
    assert torch.equal(flat[:4], model.flatten(model.encode(images, mode="mean")))
    arguments = ["scripts/decode.py", run, "z/latents.npz", "--pixels", "mean", "--batch_size", 4]
    result = command(*arguments, "--out", "back.npz")
    assert result.returncode == 0, result.stderr
    with np.load(run.parent / "back.npz") as arrays:
        back = torch.from_numpy(arrays["arr_0"]).permute(0, 3, 1, 2)
    assert torch.equal(back[:4], model.decode(model.unflatten(flat[:4]), output="mean").round().byte())
    assert command(*arguments, "--columns", 4).stdout == "decoded.png\n"
    assert iio.imread(run.parent / "decoded.png").shape == (2 * 58 + 2, 4 * 58 + 2)


def test_encode_some_layers(run: Path, photos: Path, command: Command) -> None:
    for option in (["--layers", 2], ["--resolution", 7]):
        result = command("scripts/encode.py", run, photos, *option)
        assert result.stdout == "latents.npz: latents of 6 images, 100 numbers each from the first 2 layers\n"


def test_reconstruct(run: Path, photos: Path, command: Command) -> None:
    """From files, and from the run's own validation images."""
    result = command("scripts/reconstruct.py", run, photos / "1.png", photos / "large.png", "--out", "a.png")
    assert result.returncode == 0, result.stderr
    picture = iio.imread(run.parent / "a.png")
    assert picture.shape == (4 * 58 + 2, 2 * 58 + 2)
    assert np.array_equal(picture[2:58:2, 2:58:2], iio.imread(photos / "1.png"))
    assert command("scripts/reconstruct.py", run, "--columns", 3).stdout == "reconstructions.png\n"
    assert iio.imread(run.parent / "reconstructions.png").shape == (4 * 58 + 2, 3 * 58 + 2)


def test_interpolate(run: Path, photos: Path, command: Command) -> None:
    """A strip with as many images as asked, and a GIF."""
    arguments = ["scripts/interpolate.py", run, photos / "0.png", photos / "1.png", "--steps", 4, "--resolution", 7]
    result = command(*arguments)
    assert result.returncode == 0, result.stderr
    assert iio.imread(run.parent / "interpolation.png").shape == (58 + 2, 4 * 58 + 2)
    assert command(*arguments, "--out", "a.gif").stdout == "a.gif\n"
    assert iio.imread(run.parent / "a.gif").shape[1:] == (60, 60, 3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["scripts/evaluate.py", "run", "--batch_size", 0], "--batch_size must be at least 1"),
        (["scripts/evaluate.py", "run", "--device", "cuda:7"], "there is no device 'cuda:7' here; use auto or cpu"),
        (["scripts/evaluate.py", "run", "--importance_samples", 0], "--importance_samples must be at least 1, not 0"),
        (["scripts/evaluate.py", "run", "--prior_layers", 3], "--prior_layers must be below the model's 3 layers"),
        (["scripts/evaluate.py", "run", "train.lr=1"], "'train.lr=1' cannot be set here; only data.key=value can"),
        (["scripts/evaluate.py", "run", "--hps", "cifar10"], "hps (--hps) is for released files"),
        (["scripts/sample.py", "run", "--temperatures", -1], "temperatures must be finite and not negative"),
        (["scripts/sample.py", "run", "--temperatures", "warm"], "'warm' is neither a number nor like 1:1.0,16:0.8"),
        (["scripts/sample.py", "run", "--temperatures", "1:0.9,16:0.8"], "no layer has resolution 16; there are 1, 7"),
        (["scripts/sample.py", "run", "--columns", 0], "--columns must be at least 1"),
        (["scripts/sample.py", "run", "--out", "a.gif"], "--out must end in .png"),
        (["scripts/sample.py", "run", "--out", "run"], "--out run is there and not empty"),
        (["scripts/sample.py", "run", "--out", "a.npz", "--temperatures", 1, 0.5], "takes one temperature"),
        (["scripts/sample.py", "run", "--num_images", 5], "--num_images is for an .npz or a folder"),
        (["scripts/sample.py", "run", "--seed", -1], "--seed must not be negative"),
        (["scripts/reconstruct.py", "run", "none.png"], "there is no image or folder none.png"),
        (["scripts/reconstruct.py", "run", "--temperature", -1], "temperatures must be finite and not negative"),
        (["scripts/encode.py", "run", "run/checkpoints"], "run/checkpoints: no PNG, JPEG, WebP or BMP there"),
        (["scripts/encode.py", "run", "photos", "--layers", 4], "layers must be from 1 to 3, not 4"),
        (["scripts/encode.py", "run", "photos", "--resolution", 14], "no layer has resolution 14; there are 1, 7, 28"),
        (["scripts/encode.py", "run", "photos", "--out", "a.npy"], "--out must be a file that ends in .npz"),
        (["scripts/encode.py", "run", "photos/wide.png"], "not square; --crop center takes its middle"),
        (["scripts/encode.py", "run", "small.png"], "is 20 x 20, smaller than 28; give a larger image"),
        (["scripts/decode.py", "run", "nan.npz"], "latents must be finite, and there is NaN or infinity among them"),
        (["scripts/decode.py", "run", "nan.npz", "--out", "a.npz"], "latents must be finite"),
        (["scripts/decode.py", "run", "odd.npz"], "no number of layers has 99 latent variables; the first 2 have 100"),
        (["scripts/decode.py", "run", "none.npz"], "there is no file none.npz"),
        (["scripts/decode.py", "run", "whole.npz"], "latents in whole.npz must be floats [N, D], not int64 (2, 100)"),
        (["scripts/interpolate.py", "run", "photos"], "an interpolation is between 2 images, and these are 1"),
        (["scripts/interpolate.py", "run", "photos", "--steps", 1], "--steps must be at least 2"),
    ],
)
def test_bad_input(arguments: list[object], said: str, run: Path, command: Command) -> None:
    (run.parent / "photos").mkdir()
    iio.imwrite(run.parent / "photos/wide.png", np.zeros((28, 40), np.uint8))
    iio.imwrite(run.parent / "small.png", np.zeros((20, 20), np.uint8))
    np.savez(run.parent / "nan.npz", latents=np.full((2, 100), np.nan))
    np.savez(run.parent / "odd.npz", latents=np.zeros((2, 99)))
    np.savez(run.parent / "whole.npz", latents=np.zeros((2, 100), np.int64))
    before = sorted(run.parent.rglob("*"))
    result = command(*arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert sorted(run.parent.rglob("*")) == before


def test_help_names_each_default_once() -> None:
    parser = CommandLine()
    parser.add_argument("--columns", default=8, help="columns of a grid")
    parser.add_argument("--layers", default=3, help="layers; default: all")
    parser.add_argument("--images", help="images to draw")
    parser.add_argument("--quiet", action="store_true", help="say nothing")
    told = [" ".join(line.split()) for line in parser.format_help().splitlines()]
    assert "--columns COLUMNS columns of a grid; default: 8" in told
    assert "--layers LAYERS layers; default: all" in told
    assert "--images IMAGES images to draw" in told
    assert "--quiet say nothing" in told


@pytest.mark.parametrize("script", ["evaluate", "sample", "reconstruct", "encode", "decode", "interpolate"])
def test_nothing_there(script: str, command: Command, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", latents=np.zeros((2, 100)))
    more = {"encode": ["a.npz"], "decode": ["a.npz"], "interpolate": ["a.npz"]}.get(script, [])
    script = f"scripts/{script}.py"
    result = command(script, "nowhere", *more)
    assert result.returncode == 2
    assert (
        result.stderr
        == "error: there is nothing at nowhere; give a run directory, a checkpoint or a released .th file\n"
    )
    (tmp_path / "empty").mkdir()
    assert "has no checkpoints/step-*.pt" in command(script, "empty", *more).stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "empty"]
