"""The configuration that goes with a prepared set of one's own: a fragment to put behind a preset."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vdvae.config import PRESETS, DataConfig, load_config
from vdvae.data.manifest import Manifest
from vdvae.data.prepare.write import check_folder
from vdvae.data.prepared import Split, open_splits
from vdvae.data.storage import pieces
from vdvae.errors import UserError, one_line
from vdvae.files import atomic_write
from vdvae.model.blockspec import pyramid

BASE = "cifar10"
"""The preset that every fragment is made to follow."""
MARK = "# Made by scripts/prepare_data.py"
PRESET_OF_SIZE = {64: "imagenet64", 256: "ffhq256", 1024: "ffhq1024"}
ARCHITECTURE = ("enc_blocks", "dec_blocks", "width", "custom_width_str")


def is_checkouts(root: Path) -> bool:
    """Whether this is the folder of prepared sets beside configs/: a configuration need not name it, so that people
    who share one each find their own. Any other is only found by its absolute path.
    """
    return root.resolve() == (PRESETS.parent / DataConfig.root).resolve()


def check_fragment(path: Path, name: str, root: Path) -> None:
    """Raises `UserError`, before anything is prepared, where a file is in the way that was not made here for the set
    `root/name`, or that somebody added to; or where `--hps` would not take it for a path.
    """
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"--config must end in .yaml, or --hps would look for it in configs/, not {path}")
    check_folder(path.parent, "--config")
    if not path.exists():
        return
    if not (path.is_file() and path.read_bytes().startswith(MARK.encode())):
        raise UserError(f"{path} is there, and not by this script; choose another --name or --config, or move it away")
    there = _read(path)
    if not (isinstance(there, dict) and there.keys() == {"model", "data"} and there["data"] == _data(name, root)):
        raise _differs(path, root / name)


def write_fragment(manifest: Manifest, root: Path, path: Path) -> None:
    """Writes what a preset needs to know of a prepared set: its name, shape, bits, mean and scale, and, unless its
    images are as large as those of `BASE`, blocks for their size. A file that says so already stays as it is.

    Raises:
        UserError: a file is there that says something else.
    """
    mean, deviation = pixel_statistics(open_splits(manifest, root / manifest.name).train)
    model = {
        "image_size": manifest.image_size,
        "image_channels": manifest.image_channels,
        "bits": manifest.bits,
        "input_shift": round(-mean, 6),
        "input_scale": round(1 / max(deviation, 1.0), 10),
        **_architecture(manifest.image_size),
    }
    text = yaml.safe_dump({"model": model, "data": _data(manifest.name, root)}, sort_keys=False, width=1000)
    if path.exists():
        if _read(path) != yaml.safe_load(text):
            raise _differs(path, root / manifest.name)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = f"{MARK} for --hps {BASE},{one_line(path.stem)}: mean and scale of the training images."
    with atomic_write(path) as file:
        file.write(f"{mark}\n{text}".encode())


def pixel_statistics(split: Split) -> tuple[float, float]:
    """Mean and standard deviation over all pixels and channels of a split, on 0..255."""
    levels = np.zeros(256, np.int64)
    for first, n in pieces(0, len(split), math.prod(split.storage.shape[1:])):
        levels += np.bincount(split.read(np.arange(first, first + n)).ravel(), minlength=256)
    values = np.arange(256)
    mean = float((levels * values).sum() / levels.sum())
    return mean, float(np.sqrt((levels * (values - mean) ** 2).sum() / levels.sum()))


def _data(name: str, root: Path) -> dict[str, str | None]:
    """What the fragment says of where the set is."""
    data = {"dataset": name, "variant": None}
    return data if is_checkouts(root) else {**data, "root": str(root.absolute())}


def _read(path: Path) -> Any:
    """What a YAML file says; None if it is none."""
    try:
        return yaml.safe_load(path.read_bytes())
    except yaml.YAMLError:
        return None


def _differs(path: Path, target: Path) -> UserError:
    return UserError(
        f"{path} is there, and is not what this script writes for {target}: edited, or of another set; choose another "
        "--config, or move it away to have it written anew"
    )


def _architecture(size: int) -> dict[str, str | int]:
    """Nothing if `BASE` has blocks for this size; else those of the paper's model for it, or a plain pyramid."""
    if size == load_config(BASE, []).model.image_size:
        return {}
    if size in PRESET_OF_SIZE:
        model = load_config(PRESET_OF_SIZE[size], []).model
        return {key: getattr(model, key) for key in ARCHITECTURE}
    enc_blocks, dec_blocks = pyramid(size)
    return {"enc_blocks": enc_blocks, "dec_blocks": dec_blocks}
