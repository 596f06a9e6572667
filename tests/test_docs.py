"""The recipes of docs/ run as they stand, and the links of the documentation lead somewhere."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from paper.report import from_json, judge, page, to_json
from paper.spec import load_experiment
from torch import Tensor, nn

from tests.conftest import ROOT
from vdvae import VDVAE, __version__
from vdvae.config import load_config
from vdvae.run import checkpoint

WEIGHTS = "imagenet64-iter-1600000-model-ema.th"
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
NUM_PHOTOS = 6
VERDICTS = ("reproduced", "within the seeds' spread", "not reproduced", "not decided at this size")


def blocks(document: Path) -> list[str]:
    """The Python of a document, padded so that a traceback has the document's line numbers."""
    text = document.read_text()
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return ["\n" * text.count("\n", 0, match.start(1)) + match[1] for match in found]


def write_weights(folder: Path) -> None:
    """A checkpoint of a narrow ImageNet-64, with random weights, where the released file would be: the same layers."""
    torch.manual_seed(0)
    config = load_config("imagenet64", [])
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, width=16))
    model = VDVAE(config.model)
    for name, parameter in model.named_parameters():
        if name.endswith("prior.c4.weight"):  # zero at the start of training, and the layers all alike
            nn.init.normal_(parameter, std=0.05)
    state = model.state_dict()
    path = checkpoint.save(folder / "checkpoints", 1, config, {"model": state, "ema": state})
    path.rename(folder / WEIGHTS)


def write_photos(folder: Path) -> None:
    folder.mkdir()
    row, column = np.mgrid[:64, :64] / 10
    for i in range(NUM_PHOTOS):
        waves = [np.sin(row * (1 + i % 3) + c) * np.cos(column * (1 + i / 4)) for c in range(3)]
        iio.imwrite(folder / f"{i}.png", np.round(127.5 * (1 + np.stack(waves, -1))).astype(np.uint8))


@pytest.fixture(scope="module")
def latents_document(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder that all blocks of docs/latents.md ran in, one after the other, and the names they left."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("latents")
    write_weights(folder)
    write_photos(folder / "photos")
    document = ROOT / "docs/latents.md"
    source = blocks(document)
    shortened = [re.sub(r"^steps = 100$", "steps = 2", block, flags=re.MULTILINE) for block in source]
    assert sum(a != b for a, b in zip(source, shortened, strict=True)) == 1
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in shortened:
            exec(compile(block, str(document), "exec"), names)
    return folder, names


@pytest.fixture
def folder(latents_document: tuple[Path, dict[str, Any]]) -> Path:
    return latents_document[0]


@pytest.fixture
def names(latents_document: tuple[Path, dict[str, Any]]) -> dict[str, Any]:
    return latents_document[1]


def is_image_batch(images: Tensor, num_images: int) -> bool:
    return images.dtype == torch.uint8 and images.shape == (num_images, 3, 64, 64)


def test_load(names: dict[str, Any]) -> None:
    model, latents = names["model"], names["latents"]
    assert len(latents) == model.num_layers == 75
    assert (model.latent_shapes[0], model.latent_shapes[-1], model.layers_up_to(16)) == ((16, 1, 1), (16, 64, 64), 30)
    assert is_image_batch(names["images"], NUM_PHOTOS)
    assert not latents[-1].z.requires_grad


def test_features_for_brain_decoding(names: dict[str, Any]) -> None:
    features, predicted, rescaled = names["features"], names["predicted"], names["rescaled"]
    assert features.shape == (NUM_PHOTOS, 91168)
    assert features.std(0).min() > 0
    assert predicted.shape == rescaled.shape == (2, 91168)
    torch.testing.assert_close(rescaled.mean(0), features[:-2].mean(0), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(rescaled.std(0), features[:-2].std(0), atol=1e-3, rtol=1e-2)
    assert is_image_batch(names["decoded"], 2)


def test_editing(names: dict[str, Any]) -> None:
    unedited, variations = names["unedited"], names["variations"]
    assert is_image_batch(unedited, 1)
    for edited in (names["edited"], names["edited_top"], names["pulled_back"]):
        assert is_image_batch(edited, 1)
        assert not torch.equal(edited, unedited)
    assert is_image_batch(variations, 4)
    assert not torch.equal(variations[0], variations[1])


def test_interpolation_ends_at_the_two_images(names: dict[str, Any]) -> None:
    frames, model = names["frames"], names["model"]
    for frame, z in ((frames[0], names["start"]), (frames[-1], names["end"])):
        assert torch.equal(frame, model.decode(z, temperature=0.1, generator=torch.Generator().manual_seed(0)))
    assert len({frame.numpy().tobytes() for frame in frames}) == 5


def test_restoration_follows_the_gradient(names: dict[str, Any]) -> None:
    losses, begin, z = names["losses"], names["begin"], names["z"]
    assert len(losses) == 2
    assert losses[1] < losses[0] < math.inf
    assert all(not torch.equal(old.z, new) and new.isfinite().all() for old, new in zip(begin, z, strict=True))
    assert is_image_batch(names["filled"], 1)


def test_scores(names: dict[str, Any]) -> None:
    assert names["k"] == 45
    assert names["score"].shape == names["weighted"].shape == (2,)
    assert names["score"].isfinite().all()
    assert (names["weighted"] <= names["single"]).all()  # the logarithm is concave


def test_the_same_seed_gives_both_bounds_the_same_upper_layers(names: dict[str, Any]) -> None:
    model, images, seed = names["model"], names["images"][:1], torch.Generator()
    full = model(images, seed.manual_seed(0)).layer_rate
    partial = model(images, seed.manual_seed(0), layers=30).layer_rate
    torch.testing.assert_close(full[:, :30], partial[:, :30])
    assert not partial[:, 30:].any()


def test_what_is_in_a_latent(names: dict[str, Any]) -> None:
    kl, rate = names["kl"], names["terms"].rate.mean().item() / math.log(2)
    assert len(kl) == 75
    assert sum(kl) == pytest.approx(rate, rel=1e-4)
    assert sum(names["by_resolution"].values()) == pytest.approx(rate, rel=1e-4)
    assert names["surprise"].shape == (2, 16, 1, 1)
    assert names["log_ratio"].shape == (2,)
    assert names["log_ratio"].isfinite().all()
    assert is_image_batch(names["samples"], 4)


def test_a_record_gives_the_same_bounds(names: dict[str, Any]) -> None:
    for seed, bound in enumerate(names["bounds"]):
        prepared, plain = (
            names[name](names["images"][:2], torch.Generator().manual_seed(seed)).nats_per_dim
            for name in ("quick", "model")
        )
        assert torch.equal(bound, prepared)
        torch.testing.assert_close(bound, plain, rtol=1e-6, atol=0)


def test_pictures(folder: Path) -> None:
    for name, columns in (("decoded", 2), ("edited", 3), ("variations", 4), ("interpolation", 5), ("restored", 3)):
        assert iio.imread(folder / f"{name}.png").shape[1:] == (2 + 66 * columns, 3)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    assert links
    for link in links:
        if link.startswith("#"):
            assert link[1:] in anchors, link
        elif not re.match(r"https?://", link):
            assert (document.parent / link.partition("#")[0]).exists(), link


def test_the_newest_version_of_the_changelog_is_the_packages() -> None:
    versions = re.findall(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == __version__


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*-small.md")), ids=lambda path: path.stem)
def test_every_verdict_is_that_of_the_results(path: Path) -> None:
    """In docs/experiments.md, and in the table beside the JSON, which is that of its figures."""
    name = path.stem.removesuffix("-small")
    figures = json.loads(path.with_name(f"{name}.json").read_text())["small"]
    experiment = load_experiment(ROOT / "experiments", name, "small", None, Path("runs"))
    finished = from_json(experiment, figures)
    judged = judge(experiment.claims, finished)
    assert to_json(experiment, finished, judged)["claims"] == figures["claims"]
    assert path.read_text().startswith(page(experiment, finished, judged, {}))
    verdicts: dict[str, list[str]] = {}
    pairs: dict[str, list[str]] = {}
    by_chance: dict[str, str] = {}
    beside = path.read_text().splitlines()
    for claim in figures["claims"]:
        verdicts.setdefault(claim["claim"], []).append(claim["verdict"])
        if "pairs" in claim:
            against = ", all against" if all(pair["all_against"] for pair in claim["pairs"]) else ""
            count = sum(len(pair["differences"]) for pair in claim["pairs"])
            said = f"{sum(pair['as_claimed'] for pair in claim['pairs'])} of {count}{against}"
            pairs.setdefault(claim["claim"], []).append(said)
            by_chance[claim["claim"]] = f"1 in {1 / claim['by_chance']:,.0f}"
        words = (claim["claim"], claim["dataset"], f"**{claim['verdict']}**")
        assert any(all(word in line for word in words) for line in beside), words
    summary = (ROOT / "docs/experiments.md").read_text().splitlines()
    for text, each in verdicts.items():
        (row,) = [line for line in summary if f"| {text} |" in line and path.name in line]
        cells = [cell.strip() for cell in row.split("|")]
        assert [cell for cell in cells if cell in VERDICTS] == each
        assert cells[4:6] == ["; ".join(pairs.get(text, [])), by_chance.get(text, "")]
