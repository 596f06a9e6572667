"""The command lines over a run directory or a checkpoint."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from tests.conftest import ROOT, TINY, Command, assert_refused, call_script, says
from vdvae import load_pretrained
from vdvae.config import load_model_config
from vdvae.data.manifest import File, Manifest
from vdvae.data.splits import Rule
from vdvae.errors import CommandLine
from vdvae.released.matching import expected_tensors
from vdvae.runtime.noise import Purpose, generator


def test_evaluate_gives_one_number_however_it_is_run(run: Path, call: Command, command: Command) -> None:
    """In the run, from its directory, from its checkpoint, and in two processes: the same to the last digit."""
    at_the_end = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    results = []
    for path, start in (
        (run, call),
        (run / "checkpoints/step-00000006.pt", call),
        (run, partial(command, processes=2)),
    ):
        result = start("scripts/evaluate.py", path, "--json", "new/nll.json")
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("bits/dim") >= 3
        results.append(json.loads((run.parent / "new/nll.json").read_text()))
    assert {r["bits_per_dim"] for r in results} == {at_the_end["bits_per_dim"]}
    assert {r["standard_error"] for r in results} == {at_the_end["standard_error"]}
    assert results[0]["rate_per_resolution"] == at_the_end["rate_per_resolution"]
    facts = {"dataset": "fashion_mnist_9k_1k", "variant": None, "partial": False, "bits": 8, "num_images": 1000}
    assert {key: results[0][key] for key in facts} == {key: at_the_end[key] for key in facts} == facts


def test_sample(run: Path, call: Command) -> None:
    """A row per temperature; the same seed gives the same picture."""
    arguments = ["scripts/sample.py", run, "--temperatures", 1.0, 0.5, "--columns", 3, "--out", "grids/a.png"]
    result = call(*arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "grids/a.png\n"
    picture = iio.imread(run.parent / "grids/a.png")
    assert picture.shape == (2 * 58 + 2, 3 * 58 + 2)
    call(*arguments)
    assert (iio.imread(run.parent / "grids/a.png") == picture).all()


def test_evaluate_other_bounds(run: Path, call: Command) -> None:
    """Importance weighting is tighter than the ELBO, and the lowest layer from the prior has no rate."""
    result = call(
        *("scripts/evaluate.py", run, "--importance_samples", 5, "--prior_layers", 1, "--json", "nll.json"),
        "data.root=elsewhere",  # where the embedded set is not looked for
    )
    assert result.returncode == 0, result.stderr
    told = json.loads((run.parent / "nll.json").read_text())
    assert told["importance_weighted"]["bits_per_dim"] < told["bits_per_dim"]
    assert told["importance_weighted"]["samples"] == 5
    assert told["lowest_layers_from_the_prior"]["rate_per_resolution"]["28"] == 0
    says(result.stdout, "importance-weighted prior")


def test_evaluate_released_weights_of_five_bits(tmp_path: Path, call: Command) -> None:
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
        result = call("scripts/evaluate.py", *arguments)
        assert result.returncode == 0, result.stderr
        says(result.stdout, "exact released")
        told = json.loads((tmp_path / "nll.json").read_text())
        figures[binning] = told["bits_per_dim"]
        assert told["binning"] == binning
    assert told["bits_per_dim_by_binning"] == pytest.approx(figures)
    assert figures["exact"] != figures["released"]


def test_a_run_finds_its_images_from_any_directory(tmp_path: Path) -> None:
    """Where they were; in data/ here, if they have been moved and are the same; or where it is told."""
    write_five_bits(tmp_path / "project/data/five")
    (tmp_path / "elsewhere").mkdir()
    train = partial(call_script, tmp_path / "project", "train.py", "--hps", TINY, "model.bits=5", "data.dataset=five")
    assert train("--run_dir", "run", "--max_steps", 1).returncode == 0
    evaluate = partial(call_script, tmp_path / "elsewhere", "scripts/evaluate.py")
    assert evaluate("../project/run").returncode == 0

    (tmp_path / "project").rename(tmp_path / "moved")
    assert_refused(evaluate("../moved/run"), f"'five' {tmp_path}/project/data/five data.root=DIR")
    assert evaluate("../moved/run", "data.root=../moved/data").returncode == 0
    assert call_script(tmp_path / "moved", "scripts/reconstruct.py", "run").returncode == 0
    write_five_bits(tmp_path / "elsewhere/data/five", "0" * 64)
    assert_refused(evaluate("../moved/run"), f"'five' {tmp_path}/project/data/five")


def write_five_bits(folder: Path, checksum: str = "") -> None:
    """A prepared set of 12 gray images at 5 bits."""
    folder.mkdir(parents=True)
    np.save(folder / "images.npy", np.random.default_rng(0).integers(0, 256, (12, 28, 28, 1), np.uint8))
    rules = {split: Rule("images.npy", None, 4 * i, 4) for i, split in enumerate(("train", "valid", "test"))}
    Manifest("five", 28, 1, 5, None, False, "noise", {"images.npy": File(12, checksum)}, rules).write(folder)


def test_samples_in_a_folder_and_for_fid_are_the_same(run: Path, call: Command) -> None:
    arguments = ["scripts/sample.py", run, "--num_images", 5, "--batch_size", 2, "--temperatures", "1:1.0,28:0.5"]
    for out in ("samples.npz", "samples"):
        result = call(*arguments, "--out", out)
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


@pytest.mark.parametrize(("count", "columns"), [(20, 8), (3, 8), (8, 4)])
def test_as_many_images_in_a_png_as_were_asked_for(count: int, columns: int, run: Path, call: Command) -> None:
    """Those of an .npz, `columns` in a row, and white after the last."""
    for out in ("a.png", "a.npz"):
        arguments = ["--num_images", count, "--columns", columns, "--temperatures", 0.8, "--out", out]
        assert call("scripts/sample.py", run, *arguments).returncode == 0
    with np.load(run.parent / "a.npz") as arrays:
        samples = arrays["arr_0"][..., 0]
    rows = -(-count // columns)
    picture = iio.imread(run.parent / "a.png")
    assert picture.shape == (rows * 58 + 2, columns * 58 + 2)
    cells = picture[2:, 2:].reshape(rows, 58, columns, 58).swapaxes(1, 2).reshape(-1, 58, 58)[:, :56:2, :56:2]
    assert np.array_equal(cells[:count], samples)
    assert (cells[count:] == 255).all()


@pytest.fixture
def photos(run: Path) -> Path:
    """Five gray images of 28 x 28 and one larger."""
    folder = run.parent / "photos"
    folder.mkdir()
    for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)):
        iio.imwrite(folder / f"{i}.png", image)
    iio.imwrite(folder / "large.png", np.zeros((56, 56), np.uint8))
    return folder


def test_encode_and_decode(run: Path, photos: Path, call: Command) -> None:
    """What the library does, batch by batch: posterior means, and the same image back."""
    result = call("scripts/encode.py", run, photos, "--mode", "mean", "--batch_size", 4, "--out", "z/latents.npz")
    assert result.returncode == 0, result.stderr
    says(result.stdout, "z/latents.npz 6 1,668 3")
    with np.load(run.parent / "z/latents.npz", allow_pickle=False) as arrays:
        flat, names = torch.from_numpy(arrays["latents"]), arrays["names"].tolist()
        assert arrays["shapes"].tolist() == [[2, 1, 1], [2, 7, 7], [2, 28, 28]]
    assert [Path(name).name for name in names] == ["0.png", "1.png", "2.png", "3.png", "4.png", "large.png"]
    model = load_pretrained(run)
    images = torch.stack([torch.from_numpy(iio.imread(photos / f"{i}.png"))[None] for i in range(4)])
    assert torch.equal(flat[:4], model.flatten(model.encode(images, mode="mean")))
    arguments = ["scripts/decode.py", run, "z/latents.npz", "--pixels", "mean", "--batch_size", 4]
    result = call(*arguments, "--out", "back.npz")
    assert result.returncode == 0, result.stderr
    with np.load(run.parent / "back.npz") as arrays:
        back = torch.from_numpy(arrays["arr_0"]).permute(0, 3, 1, 2)
    assert torch.equal(back[:4], model.decode(model.unflatten(flat[:4]), output="mean").round().byte())
    assert call(*arguments, "--columns", 4).stdout == "decoded.png\n"
    assert iio.imread(run.parent / "decoded.png").shape == (2 * 58 + 2, 4 * 58 + 2)


def test_encode_some_layers(run: Path, photos: Path, call: Command) -> None:
    for option in (["--layers", 2], ["--resolution", 7]):
        result = call("scripts/encode.py", run, photos, *option)
        says(result.stdout, "latents.npz 6 100 2")


def test_bad_images_are_told_at_once_or_left_out(run: Path, photos: Path, call: Command) -> None:
    """Before anything is computed, as far as headers show them; with --skip_bad, damaged ones too."""
    good = [str(photos / f"{i}.png") for i in (0, 2, 3, 4)]
    iio.imwrite(photos / "colour.png", np.zeros((28, 28, 3), np.uint8))
    iio.imwrite(photos / "small.png", np.zeros((9, 9), np.uint8))
    iio.imwrite(photos / "wide.png", np.zeros((28, 40), np.uint8))
    (photos / "text.png").write_text("hello")
    (photos / "link.png").symlink_to("nowhere")
    for script in ("encode", "reconstruct", "interpolate"):
        result = call(f"scripts/{script}.py", run, photos)
        assert (result.returncode, result.stdout) == (2, "")
        first, *lines = result.stderr.splitlines()
        says(first, "error: 5 of 11 images mend --skip_bad")
        assert [Path(line.split()[0]).stem for line in lines] == ["colour", "link", "small", "text", "wide"]
    (photos / "1.png").write_bytes((photos / "1.png").read_bytes()[:300])
    result = call("scripts/encode.py", run, photos, "--skip_bad")
    assert (result.returncode, result.stderr.count("left out: ")) == (0, 6)
    says(result.stderr, "photos/1.png damaged")
    with np.load(run.parent / "latents.npz") as arrays:
        assert arrays["names"].tolist() == [*good, str(photos / "large.png")]
        assert len(arrays["latents"]) == 5
    result = call("scripts/interpolate.py", run, *good[:2], photos / "wide.png", "--skip_bad")
    assert (result.returncode, result.stdout) == (0, "interpolation.png\n")


def test_any_name_of_an_image_will_do(run: Path, call: Command) -> None:
    """One that is no text, too: told in words, and kept in the latents."""
    odd = run.parent / "\udcff ①\n.png"
    odd.write_bytes(iio.imwrite("<bytes>", np.zeros((28, 28), np.uint8), extension=".png"))
    result = call("scripts/encode.py", run, odd)
    assert result.returncode == 0, result.stderr
    with np.load(run.parent / "latents.npz") as arrays:
        assert arrays["names"].tolist() == [str(odd)]
    odd.write_text("no image")
    assert_refused(call("scripts/encode.py", run, odd), "\\udcff ① .png no image")


def test_reconstruct(run: Path, photos: Path, call: Command) -> None:
    """From files, and from the run's own validation images."""
    result = call("scripts/reconstruct.py", run, photos / "1.png", photos / "large.png", "--out", "a.png")
    assert result.returncode == 0, result.stderr
    picture = iio.imread(run.parent / "a.png")
    assert picture.shape == (4 * 58 + 2, 2 * 58 + 2)
    assert np.array_equal(picture[2:58:2, 2:58:2], iio.imread(photos / "1.png"))
    assert call("scripts/reconstruct.py", run, "--columns", 3).stdout == "reconstructions.png\n"
    assert iio.imread(run.parent / "reconstructions.png").shape == (4 * 58 + 2, 3 * 58 + 2)
    some = call("scripts/reconstruct.py", run, photos, "--columns", 2, "--crop", "center")
    assert (some.returncode, some.stderr) == (0, "the first 2 of 6 images; --columns N for more\n")


def test_interpolate(run: Path, photos: Path, call: Command) -> None:
    """A strip with as many images as asked, and a GIF."""
    arguments = ["scripts/interpolate.py", run, photos / "0.png", photos / "1.png", "--steps", 4, "--resolution", 7]
    result = call(*arguments)
    assert result.returncode == 0, result.stderr
    assert iio.imread(run.parent / "interpolation.png").shape == (58 + 2, 4 * 58 + 2)
    assert call(*arguments, "--out", "a.gif").stdout == "a.gif\n"
    assert iio.imread(run.parent / "a.gif").shape[1:] == (60, 60, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["scripts/evaluate.py", "run", "--batch_size", 0], "--batch_size 1"),
        (["scripts/evaluate.py", "run", "--device", "cuda:7"], "device cuda:7 auto cpu"),
        (["scripts/evaluate.py", "run", "--importance_samples", 0], "--importance_samples 1"),
        (["scripts/evaluate.py", "run", "--prior_layers", 3], "--prior_layers 3"),
        (["scripts/evaluate.py", "run", "train.lr=1"], "train.lr=1 data."),
        (["scripts/evaluate.py", "run", "--hps", "cifar10"], "--hps released"),
        (["scripts/sample.py", "run", "--temperatures", -1], "temperatures negative"),
        (["scripts/sample.py", "run", "--temperatures", "warm"], "'warm' 1:1.0,16:0.8"),
        (["scripts/sample.py", "run", "--temperatures", "1:0.9,16:0.8"], "resolution 16 1, 7, 28"),
        (["scripts/sample.py", "run", "--columns", 0], "--columns 1"),
        (["scripts/sample.py", "run", "--out", "a.gif"], "--out .png"),
        (["scripts/sample.py", "run", "--out", "run"], "--out run empty"),
        (["scripts/sample.py", "run", "--out", "a.npz", "--temperatures", 1, 0.5], ".npz one temperature"),
        (["scripts/sample.py", "run", "--num_images", 5, "--temperatures", 1, 0.5], "--num_images one temperature"),
        (["scripts/sample.py", "run", "--seed", -1], "--seed negative"),
        (["scripts/reconstruct.py", "run", "none.png"], "none.png"),
        (["scripts/reconstruct.py", "run", "--temperature", -1], "temperatures negative"),
        (["scripts/encode.py", "run", "run/checkpoints"], "run/checkpoints PNG JPEG"),
        (["scripts/encode.py", "run", "photos", "--layers", 4], "layers 1 3 4"),
        (["scripts/encode.py", "run", "photos", "--resolution", 14], "resolution 14 1, 7, 28"),
        (["scripts/encode.py", "run", "photos", "--out", "a.npy"], "--out .npz"),
        (["scripts/encode.py", "run", "photos/wide.png"], "wide.png square --crop center"),
        (["scripts/encode.py", "run", "small.png"], "small.png 20 x 20 28"),
        (["scripts/decode.py", "run", "nan.npz"], "latents NaN"),
        (["scripts/decode.py", "run", "nan.npz", "--out", "a.npz"], "latents finite"),
        (["scripts/decode.py", "run", "odd.npz"], "99 100"),
        (["scripts/decode.py", "run", "none.npz"], "none.npz"),
        (["scripts/decode.py", "run", "whole.npz"], "whole.npz floats int64"),
        (["scripts/interpolate.py", "run", "one.png"], "2 images 1"),
        (["scripts/interpolate.py", "run", "photos", "--steps", 1], "--steps 2"),
    ],
)
def test_bad_input(arguments: list[object], words: str, run: Path, call: Command) -> None:
    """One line, and nothing is written."""
    (run.parent / "photos").mkdir()
    iio.imwrite(run.parent / "photos/wide.png", np.zeros((28, 40), np.uint8))
    iio.imwrite(run.parent / "small.png", np.zeros((20, 20), np.uint8))
    iio.imwrite(run.parent / "one.png", np.zeros((28, 28), np.uint8))
    np.savez(run.parent / "nan.npz", latents=np.full((2, 100), np.nan))
    np.savez(run.parent / "odd.npz", latents=np.zeros((2, 99)))
    np.savez(run.parent / "whole.npz", latents=np.zeros((2, 100), np.int64))
    before = sorted(run.parent.rglob("*"))
    assert_refused(call(*arguments), words)
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
def test_nothing_there(script: str, call: Command, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", latents=np.zeros((2, 100)))
    more = {"encode": ["a.npz"], "decode": ["a.npz"], "interpolate": ["a.npz"]}.get(script, [])
    script = f"scripts/{script}.py"
    assert_refused(call(script, "nowhere", *more), "nowhere directory checkpoint .th")
    (tmp_path / "empty").mkdir()
    assert_refused(call(script, "empty", *more), "empty checkpoints/step-*.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "empty"]


PROGRAMS = ("photographs", "pixelcnn", "propositions")
STARTED = [*sorted((ROOT / "scripts").glob("*.py")), *(ROOT / f"experiments/{name}.py" for name in PROGRAMS)]


@pytest.mark.long
@pytest.mark.parametrize("path", STARTED, ids=lambda path: path.stem)
def test_help_as_people_ask_for_it(path: Path, command: Command) -> None:
    """From any folder, with nothing on the path that tests have there."""
    result = command(path, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    says(result.stdout, f"usage: {path.name} --help")
