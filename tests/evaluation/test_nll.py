"""The exact NLL: every image once, with the right averages and standard error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import random_model, refuses
from vdvae import VDVAE
from vdvae.config import Config, load_config
from vdvae.data.prepared import Split, load_splits
from vdvae.data.storage import Images, Pixels
from vdvae.evaluation.nll import evaluate, evaluate_importance_weighted
from vdvae.evaluation.png import png_bits_per_dim, strip_bits_per_dim
from vdvae.run.directory import RunDirectory
from vdvae.run.summary import draw_pictures
from vdvae.runtime.noise import Purpose, generator
from vdvae.runtime.precision import set_matmul_precision
from vdvae.runtime.processes import World

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def split() -> Split:
    images = np.random.default_rng(0).integers(0, 256, (7, 28, 28, 1), np.uint8)
    return Split(Pixels(images), np.array([6, 0, 3, 1, 5]))


def test_every_image_once_with_the_last_batch_partial(tiny: Config, split: Split) -> None:
    """Against a plain loop over batches of 2, 2 and 1."""
    model = VDVAE(tiny.model)
    per_image = []
    for b in range(3):
        images = torch.from_numpy(split.read(np.arange(5)[2 * b : 2 * b + 2])).permute(0, 3, 1, 2)
        with torch.no_grad():
            per_image += model(images, generator(ALONE.device, 5, Purpose.EVALUATION, b)).nats_per_dim.tolist()
    expected = np.array(per_image) / math.log(2)
    nll = evaluate(model, split, 2, ALONE, seed=5)
    assert nll.num_images == 5
    assert nll.bits_per_dim == pytest.approx(expected.mean(), rel=1e-6)
    assert nll.standard_error == pytest.approx(expected.std(ddof=1) / math.sqrt(5), rel=1e-5)
    assert nll.nats_per_dim == pytest.approx(nll.bits_per_dim * math.log(2))
    assert nll.bits_per_dim == pytest.approx(nll.rate + nll.distortion)
    assert sum(nll.rate_per_resolution.values()) == pytest.approx(nll.rate)
    assert list(nll.rate_per_resolution) == [1, 7, 28]


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, "3", True, None])
def test_batches_of_no_size_are_refused(tiny: Config, split: Split, batch_size: Any) -> None:
    with refuses("batch_size whole number 1"):
        evaluate(VDVAE(tiny.model), split, batch_size, ALONE)


def test_no_images_have_no_nll(tiny: Config, split: Split) -> None:
    with refuses("no images"):
        evaluate(VDVAE(tiny.model), Split(split.storage, np.arange(0)), 3, ALONE)


def test_seeds_differ(tiny: Config, split: Split) -> None:
    torch.manual_seed(0)
    model = VDVAE(tiny.model)
    assert evaluate(model, split, 5, ALONE, seed=0) != evaluate(model, split, 5, ALONE, seed=1)
    assert evaluate(model, split, 5, ALONE, seed=0) == evaluate(model, split, 5, ALONE, seed=0)


def test_png_needs_more_than_8_bits_for_noise_and_next_to_nothing_for_black(split: Split) -> None:
    noise, taken = png_bits_per_dim(split)
    assert (noise > 8, taken) == (True, 5)
    black, taken = png_bits_per_dim(replace(split, storage=Pixels(np.zeros((7, 28, 28, 1), np.uint8))), most=3)
    assert (black < 1, taken) == (True, 3)


def split_of(images: Images) -> Split:
    return Split(Pixels(images), np.arange(len(images)))


def test_yardsticks_of_the_demo() -> None:
    """PNG with a file for each counts 57 bytes of headers per image; what shares a file needs less, WebP the least."""
    config = load_config("fashion")
    split = load_splits(config.data, config.model).test
    each, taken = png_bits_per_dim(split)
    strips = strip_bits_per_dim(split)
    assert (round(each, 2), round(each - 8 * 57 / 784, 2), taken) == (5.19, 4.61, 1000)
    assert (round(strips.png, 2), round(strips.webp, 2)) == (4.07, 3.85)


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3)])
def test_strips_hold_every_image(size: int, channels: int) -> None:
    """Noise takes its 8 bits, and in PNG a byte per row, in as many strips as WebP's longest side asks for."""
    noise = np.random.default_rng(0).integers(0, 256, (700, size, size, channels), np.uint8)
    strips = strip_bits_per_dim(split_of(noise))
    assert strips.png == pytest.approx(8 + 8 / (size * channels), rel=0.01)
    assert strips.webp == pytest.approx(8, rel=0.01)


def test_files_hold_the_levels_that_the_nll_is_measured_at() -> None:
    """5 bits of noise at 5 bits, where the lower 3 bits of its pixels are not coded."""
    noise = split_of(np.random.default_rng(0).integers(0, 256, (600, 28, 28, 1), np.uint8))
    assert strip_bits_per_dim(noise, bits=5).webp == pytest.approx(5, rel=0.05)
    assert 5 < png_bits_per_dim(noise, bits=5)[0] < 8 < png_bits_per_dim(noise)[0]


@pytest.mark.parametrize(("pixels", "images"), [(3 * 28 * 28, 3), (6 * 28 * 28 - 1, 5), (1, 1)])
def test_png_takes_fewer_images_where_they_are_large(
    pixels: int, images: int, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vdvae.evaluation.png.MOST_PIXELS", pixels)
    assert png_bits_per_dim(split)[1] == images


@pytest.fixture
def far_posterior(tiny: Config) -> VDVAE:
    """A model whose rate is large, so that bounds differ."""
    return random_model(tiny.model, std=0.15)


def test_importance_weighting_is_tighter_the_more_samples(far_posterior: VDVAE, split: Split) -> None:
    """One sample has no advantage; the more, the nearer to the NLL, by more than the noise."""
    elbo = evaluate(far_posterior, split, 2, ALONE)
    few, many = (evaluate_importance_weighted(far_posterior, split, 2, ALONE, samples) for samples in (5, 100))
    assert elbo.bits_per_dim - 0.001 > few.bits_per_dim
    assert few.bits_per_dim - 0.001 > many.bits_per_dim
    assert (few.samples, many.samples) == (5, 100)
    assert 0 < many.standard_error < 1


def test_importance_weighting_against_a_plain_loop(far_posterior: VDVAE, split: Split) -> None:
    """The first sample is that of the ELBO; the others follow from the same generator."""
    images = torch.from_numpy(split.read(np.arange(5))).permute(0, 3, 1, 2)
    noise = generator(ALONE.device, 0, Purpose.EVALUATION, 0)
    with torch.no_grad():
        weights = torch.cat([far_posterior.log_weights(images, 1, noise) for _ in range(3)]).double()
    expected = (math.log(3) - weights.logsumexp(0)) / far_posterior.config.dims / math.log(2)
    weighted = evaluate_importance_weighted(far_posterior, split, 5, ALONE, 3)
    assert weighted.bits_per_dim == pytest.approx(expected.mean().item(), rel=1e-6)
    assert weighted.standard_error == pytest.approx(expected.std().item() / math.sqrt(5), rel=1e-5)


def test_the_bound_with_the_lowest_layers_from_the_prior(far_posterior: VDVAE, split: Split) -> None:
    """No rate where nothing comes from the posterior; the upper layers' rate is that of the ELBO."""
    elbo = evaluate(far_posterior, split, 5, ALONE)
    bound = evaluate(far_posterior, split, 5, ALONE, layers=2)
    assert bound.rate_per_resolution[28] == 0
    assert bound.rate_per_resolution[1] == elbo.rate_per_resolution[1]
    assert bound.rate_per_resolution[7] == elbo.rate_per_resolution[7]
    assert bound.distortion != elbo.distortion


def test_five_bits_are_measured_under_both_binnings(tiny: Config, split: Split) -> None:
    """As two models that are configured so; eight bits under their own alone."""
    for binning in ("exact", "released"):
        config = replace(tiny.model, bits=5, binning=binning)
        torch.manual_seed(0)
        nll = evaluate(VDVAE(config), split, 5, ALONE)
        assert nll.bits_per_dim_by_binning[binning] == pytest.approx(nll.bits_per_dim, rel=1e-12)
        if binning == "exact":
            both = nll.bits_per_dim_by_binning
    assert nll.bits_per_dim_by_binning == pytest.approx(both, rel=1e-9)
    assert abs(both["exact"] - both["released"]) > 1e-4
    eight = evaluate(VDVAE(tiny.model), split, 5, ALONE)
    assert eight.bits_per_dim_by_binning == {"exact": pytest.approx(eight.bits_per_dim, rel=1e-12)}


@pytest.fixture
def in_tf32() -> Iterator[None]:
    """As train.precision=tf32 sets it for a whole process."""
    set_matmul_precision("tf32")
    yield
    set_matmul_precision("fp32")


def pictures(model: VDVAE, split: Split, folder: Path) -> None:
    directory, splits, log = RunDirectory(folder), SimpleNamespace(valid=split), SimpleNamespace(picture=print)
    draw_pictures(model, splits, 2, directory, 1, log)  # type: ignore[arg-type]


@pytest.mark.usefixtures("in_tf32")
@pytest.mark.parametrize(
    "measure",
    [
        lambda model, split, _: evaluate(model, split, 5, ALONE),
        lambda model, split, _: evaluate_importance_weighted(model, split, 5, ALONE, 1),
        pictures,
    ],
    ids=["nll", "importance", "pictures"],
)
def test_what_a_run_in_tf32_shows_of_its_model_is_in_fp32(
    tiny: Config, split: Split, tmp_path: Path, measure: Callable[[VDVAE, Split, Path], Any]
) -> None:
    """And training goes on in tf32."""
    model, seen = VDVAE(tiny.model), set()

    def settings() -> tuple[str, bool]:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    model.decoder.out_net.register_forward_hook(lambda *_: seen.add(settings()))
    measure(model, split, tmp_path)
    assert seen == {("highest", False)}
    assert settings() == ("high", True)
    model.decoder.out_net.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measure(model, split, tmp_path)
    assert settings() == ("high", True)
