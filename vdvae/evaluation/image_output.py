"""Where images that a model made go: a grid, a folder of PNGs, or an .npz as FID evaluators take it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from vdvae.errors import UserError
from vdvae.evaluation.grids import encode_png, grid, save_png
from vdvae.files import write_npz


def check_output(out: Path) -> None:
    """Raises `UserError`, before anything is computed, where `write_images` could not write."""
    if out.suffix not in (".png", ".npz", ""):
        raise UserError(f"--out must end in .png (a grid) or .npz (arr_0), or be a folder without ending, not {out}")
    if not out.name:
        raise UserError(f"--out {out} has no name; give that of a folder that is not there yet")
    if out.suffix and out.is_dir():
        raise UserError(f"--out {out} is a folder")
    if not out.suffix and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is there and not empty; choose another folder")


def write_images(
    out: Path, batches: Iterable[Tensor], image_shape: tuple[int, int, int], count: int, columns: int
) -> None:
    """Writes images as they come; after an error there is nothing at `out` that was not there before.

    Args:
        out: .png for one picture with `columns` images in a row, .npz for `arr_0`, uint8 [N, H, W, C], or a folder
            for 000000.png and so on.
        batches: uint8 [n, C, H, W], `count` images together.
        image_shape: (C, H, W).
        count: N.
        columns: the images in a row of the grid.
    """
    if out.suffix == ".npz":
        c, h, w = image_shape
        chunks = (batch.permute(0, 2, 3, 1).cpu().numpy() for batch in batches)
        write_npz(out, "arr_0", (count, h, w, c), "uint8", chunks, {})
    elif out.suffix == ".png":
        images = torch.cat([batch.cpu() for batch in batches])
        blank = images.new_full((-len(images) % columns, *images.shape[1:]), 255)
        save_png(grid(torch.cat([images, blank]).split(columns)), out)
    else:
        _write_folder(out, batches)


def _write_folder(out: Path, batches: Iterable[Tensor]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        i = 0
        for batch in batches:
            for image in batch.permute(0, 2, 3, 1).cpu().numpy():
                (temporary / f"{i:06}.png").write_bytes(encode_png(image))
                i += 1
        temporary.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
