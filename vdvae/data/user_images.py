"""Images that people name on a command line: files, folders of files, or arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vdvae.data.image_files import BACKGROUNDS, SUFFIXES, read_fitted
from vdvae.data.prepare.image_source import find_pictures
from vdvae.data.prepared import Split
from vdvae.data.storage import Images, NpyFile, Pixels, Rows, Storage
from vdvae.errors import UserError
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

    def _picture(self, path: Path) -> Images:
        _, size, _, channels = self.shape
        return read_fitted(path, str(path), size, self.crop, channels, self.background)


def open_inputs(
    paths: list[Path], model: ModelConfig, crop: bool = False, background: str | None = None
) -> tuple[Split, list[str]]:
    """Opens images without decoding them.

    Args:
        paths: image files and folders of such, in this order; or one .npy, or .npz with `arr_0`, uint8 [N, H, W, C].
        model: what they are for. Larger square files are scaled down, gray ones repeated where it takes colour.
        crop: whether to take the middle square of files that are not square.
        background: what to put behind transparent files: a key of `BACKGROUNDS`.

    Returns:
        the images, and a name for each.

    Raises:
        UserError: nothing there, or arrays that are not such as the model takes.
    """
    image_shape = (model.image_size, model.image_size, model.image_channels)
    storage: Storage
    if any(path.suffix in (".npy", ".npz") for path in paths):
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
        storage = FittedPictures(files, image_shape, crop, background)
        names = [str(file) for file in files]
    if not names:
        raise UserError(f"{', '.join(map(str, paths))}: no PNG, JPEG, WebP or BMP there")
    return Split(storage, np.arange(len(names))), names


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return [path / name for name in find_pictures(path, SUFFIXES)[0].names]
    if not path.is_file():
        raise UserError(f"there is no image or folder {path}")
    return [path]


def _array(path: Path) -> Storage:
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    if path.suffix == ".npy":
        return NpyFile(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            pixels = arrays["arr_0"]
    except Exception as error:  # damaged bytes make NumPy fail in many ways
        raise UserError(f"{path} is damaged, or has no arr_0 of plain numbers: {error}") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 4:
        raise UserError(f"arr_0 of {path} must be uint8 [N, H, W, C] from 0 to 255, not {pixels.dtype} {pixels.shape}")
    return Pixels(pixels)
