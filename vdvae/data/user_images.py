"""Images that people name on a command line: files, folders of files, or arrays."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vdvae.data.ahead import on_all_cores
from vdvae.data.image_files import BACKGROUNDS, SUFFIXES, read_fitted, refuse_bad
from vdvae.data.prepare.image_source import find_pictures, leaving_out, other_kinds
from vdvae.data.prepared import Split
from vdvae.data.storage import Images, NpyFile, Pixels, Rows, Storage
from vdvae.errors import UserError, one_line
from vdvae.files import check_is_itself
from vdvae.model.config import ModelConfig


class FittedPictures:
    """Image files, brought to the shape that a model takes when they are read."""

    def __init__(
        self, paths: list[Path], image_shape: tuple[int, int, int], crop: bool, background: str | None
    ) -> None:
        self.paths = paths
        self.shape: tuple[int, ...] = (len(paths), *image_shape)
        self.crop = crop
        self.background = None if background is None else BACKGROUNDS[background]

    def read(self, rows: Rows) -> Images:
        """See `Storage`."""
        return np.stack([self._picture(self.paths[row]) for row in rows.tolist()])

    def find_bad(self) -> dict[str, str]:
        """What is wrong with those that cannot be taken, by path; all are decoded, side by side."""
        problems = on_all_cores(self._problem, self.paths)
        watched = tqdm(problems, "looking at images", len(self.paths), unit="image", leave=False, disable=None)
        return {str(path): problem for path, problem in zip(self.paths, watched, strict=True) if problem}

    def _problem(self, path: Path) -> str:
        try:
            self._picture(path)
        except UserError as error:
            return str(error)
        return ""

    def _picture(self, path: Path) -> Images:
        _, size, _, channels = self.shape
        return read_fitted(path, str(path), size, self.crop, channels, self.background)


def open_inputs(
    paths: list[Path], model: ModelConfig, crop: bool = False, background: str | None = None, skip_bad: bool = False
) -> tuple[Split, list[str]]:
    """Opens images; files are all decoded once, so that nothing has been computed where one cannot be taken.

    Args:
        paths: image files and folders of such, in this order; or one .npy, or .npz with `arr_0`, uint8 [N, H, W, C].
        model: what they are for. Larger square files are scaled down, gray ones repeated where it takes colour.
        crop: whether to take the middle square of files that are not square.
        background: what to put behind transparent files: a key of `BACKGROUNDS`.
        skip_bad: whether to leave out image files that cannot be taken, and to print them on stderr.

    Returns:
        the images, and a name for each.

    Raises:
        UserError: nothing there, arrays that are not such as the model takes, or files that cannot be taken, all of
            them.
    """
    image_shape = (model.image_size, model.image_size, model.image_channels)
    storage: Storage
    if any(path.suffix.lower() in (".npy", ".npz") and not path.is_dir() for path in paths):
        if len(paths) > 1:
            raise UserError("give one .npy or .npz, or image files and folders")
        storage = _array(paths[0])
        if storage.shape[1:] != image_shape:
            raise UserError(
                f"{paths[0]} has images of {list(storage.shape[1:])} (height, width, channels); the model takes "
                f"{list(image_shape)}"
            )
        names = [str(i) for i in range(storage.shape[0])]
    else:
        files = [file for path in paths for file in _files(path)]
        if not files:
            there = ", ".join(filter(None, (other_kinds(path, SUFFIXES) for path in paths)))
            but = f", but {there}; convert them" if there else ""
            raise UserError(f"{', '.join(map(str, paths))}: no PNG, JPEG, WebP or BMP there{but}")
        bad = FittedPictures(files, image_shape, crop, background).find_bad()
        if not skip_bad or len(bad) == len(files):
            refuse_bad(bad, len(files))
        for reason in bad.values():
            tqdm.write(f"left out: {one_line(reason)}", sys.stderr)
        names = [str(file) for file in files if str(file) not in bad]
        storage = FittedPictures([Path(name) for name in names], image_shape, crop, background)
    return Split(storage, np.arange(len(names))), names


def _files(path: Path) -> list[Path]:
    """A file, or those in a folder; what is left out of it is told on stderr, unless it is all."""
    if not path.is_dir():
        return [path]
    pictures, others = find_pictures(path, SUFFIXES)
    if others and pictures.names:
        tqdm.write(leaving_out(path, others, SUFFIXES), sys.stderr)
    return [path / name for name in pictures.names]


def _array(path: Path) -> Storage:
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    if path.suffix.lower() == ".npy":
        return NpyFile(path)
    check_is_itself(path)
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is {'cut off or no .npz' if path.stat().st_size else 'empty'}; write or copy it again")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if "arr_0" not in arrays:
                raise UserError(f"{path} has no arr_0, but {', '.join(arrays.files) or 'nothing'}")
            pixels = arrays["arr_0"]
    except UserError:
        raise
    except Exception as error:  # damaged bytes make NumPy fail in many ways
        raise UserError(f"arr_0 of {path} is damaged, or not of plain numbers: {error}") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 4:
        raise UserError(f"arr_0 of {path} must be uint8 [N, H, W, C] from 0 to 255, not {pixels.dtype} {pixels.shape}")
    if not pixels.size:
        raise UserError(f"arr_0 of {path} holds no images: its shape is {list(pixels.shape)}")
    return Pixels(pixels)
