"""The gated PixelCNN of experiments/: what a pixel depends on, probabilities, samples, and the command."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import imageio.v3 as iio
import pytest
import torch
from pixelcnn import PixelCNN, main, train
from torch import Tensor

from tests.conftest import says
from vdvae.model.config import ModelConfig
from vdvae.model.likelihood import Mixture
from vdvae.runtime.processes import World

Call = Callable[..., str]


def pixelcnn(size: int, channels: int, depth: int, bits: int = 8) -> PixelCNN:
    """A model whose parameters are so large that its probabilities differ, and so wide that no pixel of it is dead."""
    config = ModelConfig(
        enc_blocks=f"{size}d{size},1x1",
        dec_blocks=f"1x1,{size}m1",
        image_size=size,
        image_channels=1 if channels == 1 else 3,
        width=4,
        num_mixtures=2,
        bits=bits,
    )
    torch.manual_seed(0)
    model = PixelCNN(config, width=16, depth=depth)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def random_images(count: int, size: int, channels: int) -> Tensor:
    noise = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=noise)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_pixel_depends_on_those_before_it_and_on_no_other(depth: int, channels: int) -> None:
    """By the Jacobian, exactly. There is no blind spot: with 4 layers, on every pixel before it of a 5 x 5 image."""
    size = 5
    model = pixelcnn(size, channels, depth).double()
    x = model.scaled(random_images(1, size, channels)).double()
    jacobian = torch.autograd.functional.jacobian(model, x)[0, :, :, :, 0]  # [P, H, W, C, H, W]
    influence = jacobian.abs().sum((0, 3)).flatten(2).flatten(0, 1)  # [H*W, H*W], of the second on the first
    places = list(itertools.product(range(size), range(size)))
    for (i, (row, column)), (j, (its_row, its_column)) in itertools.product(enumerate(places), repeat=2):
        is_above = 1 <= row - its_row <= depth + 1 and abs(column - its_column) <= depth
        is_left = row == its_row and 1 <= column - its_column <= depth + 1
        assert bool(influence[i, j] != 0) == (is_above or is_left), (places[i], places[j])
        assert depth < size - 1 or (is_above or is_left) == (j < i)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_probabilities_of_all_images_sum_to_one(channels: int) -> None:
    model = pixelcnn(2, channels, depth=2, bits=1)
    levels = torch.tensor(list(itertools.product((0, 255), repeat=4 * channels)), dtype=torch.uint8)
    images = levels.view(-1, channels, 2, 2)  # [2^(4C), C, 2, 2]
    probabilities = model.log_prob(images).double().exp()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)
    assert probabilities.max() > 2 * probabilities.min()


def test_the_network_sees_no_more_bits_than_are_modelled() -> None:
    """Or it would be told what it should not have to predict."""
    model = pixelcnn(4, 1, depth=2, bits=3)
    images = random_images(2, 4, 1)
    assert torch.equal(model.log_prob(images), model.log_prob(images & 0b11100000))


@pytest.mark.parametrize("channels", [1, 3])
def test_samples(channels: int) -> None:
    """One evaluation per pixel, each drawn as the network says of the image as far as it is there, in raster order."""
    size = 4
    model = pixelcnn(size, channels, depth=2)
    calls: list[object] = []
    with model.register_forward_hook(lambda *call: calls.append(call)):
        images = model.sample(3, torch.Generator().manual_seed(2))
    assert len(calls) == size**2
    assert images.unique().numel() > 5
    parameters = model(model.scaled(images)).detach()  # of all pixels at once: they see only those before them
    noise = torch.Generator().manual_seed(2)
    for y, x in itertools.product(range(size), range(size)):
        here = parameters[:, :, y : y + 1, x : x + 1]
        drawn = Mixture.from_parameters(here, channels, model.binning).sample(noise)
        assert torch.equal(drawn[:, :, 0, 0], images[:, :, y, x])


def test_training() -> None:
    """For a number of updates or of minutes, to a better likelihood."""
    world = World(0, 1, torch.device("cpu"))
    images = random_images(4, 4, 1)
    model = pixelcnn(4, 1, depth=2)
    before = model.log_prob(images).mean().item()
    trained = train(model, itertools.repeat(images), 50, None, 0.9, world)
    model.load_state_dict(trained["model"])
    assert trained["updates"] == 50
    assert model.log_prob(images).mean().item() > before + 1
    trained = train(model, itertools.repeat(images), None, 0.2 / 60, 0.9, world)
    assert trained["updates"] >= 1
    assert 0.2 <= trained["seconds"] < 5


def test_an_interruption_ends_training_after_the_update() -> None:
    def batches() -> Iterator[Tensor]:
        for step in itertools.count():
            if step == 2:
                signal.raise_signal(signal.SIGINT)
            yield random_images(4, 4, 1)

    trained = train(pixelcnn(4, 1, depth=1), batches(), 10, None, 0.9, World(0, 1, torch.device("cpu")))
    assert trained["updates"] == 3


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """The command in this process, in the test's own folder: what it prints, or the one line of its error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vdvae.fast.keep_freed_memory", lambda: None)  # it would hold for the other tests

    def run_main(*arguments: object) -> str:
        monkeypatch.setattr("sys.argv", ["pixelcnn.py", *map(str, arguments)])
        status: object = 0
        try:
            main()
        except SystemExit as end:
            status = end.code
        said = capsys.readouterr()
        assert status == (2 if said.err else 0), said.err
        assert said.err.count("\n") == (1 if said.err else 0)
        return said.err or said.out

    return run_main


def test_the_command(run: Path, call: Call) -> None:
    """Trains and measures; the same command again only measures, and another one does not take its weights."""
    folder = run.parent / "peer"
    arguments = [run, "--updates", 2, "--width", 4, "--depth", 1, "--repeats", 1, "--run_dir", "peer"]
    says(call(*arguments, "--json", "new/peer.json"), "2 updates")
    told = json.loads((run.parent / "new/peer.json").read_text())
    at_the_end = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert told["vdvae"]["bits_per_dim"] == at_the_end["bits_per_dim"]
    assert told["updates_done"] == 2
    assert told["vdvae"]["network_evaluations_per_sample"] == 1
    assert told["pixelcnn"]["network_evaluations_per_sample"] == 28**2
    assert told["pixelcnn"]["seconds_per_sample"].keys() == {"1", "16"}
    assert iio.imread(folder / "samples.png").shape == (4 * 58 + 2, 8 * 58 + 2)

    written = (folder / "weights.pt").stat().st_mtime_ns
    call(*arguments, "--json", "peer.json")
    assert (folder / "weights.pt").stat().st_mtime_ns == written
    told_again = json.loads((run.parent / "peer.json").read_text())
    assert told_again["pixelcnn"]["bits_per_dim"] == told["pixelcnn"]["bits_per_dim"]
    assert told_again["training_seconds"] == told["training_seconds"]

    says(call(*arguments, "--depth", 2), "error: peer/weights.pt depth 1 2 --run_dir")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--updates", 0], "--updates 1 0"),
        (["run", "--minutes", "nan"], "--minutes 0 nan"),
        (["run", "--minutes", 1, "--updates", 1], "--updates --minutes"),
        (["run", "--width", 0], "--width 1 0"),
        (["run", "--json", "run"], "--json run folder"),
        (["run", "--run_dir", "run/config.yaml"], "--run_dir run/config.yaml file"),
        (["run", "--run_dir", "old"], "old/weights.pt --run_dir"),
    ],
)
def test_bad_input(arguments: list[object], words: str, run: Path, call: Call) -> None:
    (run.parent / "old").mkdir()
    torch.save({"model": {}}, run.parent / "old/weights.pt")
    before = sorted(run.parent.rglob("*"))
    says(call(*arguments), words)
    assert sorted(run.parent.rglob("*")) == before


def test_nothing_there(call: Call) -> None:
    says(call("nowhere"), "error: nowhere directory checkpoint .th")
