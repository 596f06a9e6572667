"""A small colour data set from the photographs that three packages ship: 16 x 16 crops.

    pip install -e '.[experiments]' && sudo apt-get install opencv-doc
    python experiments/photographs.py

Without root: apt-get download opencv-doc; dpkg -x opencv-doc_*.deb DIR, and --opencv DIR/usr/share/doc/opencv-doc. The
photographs are split, and then cropped: no crop of a test photograph is of one that was learned from.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate

from vdvae.config import DataConfig
from vdvae.data.image_files import read_picture
from vdvae.data.manifest import File, Manifest
from vdvae.data.prepare.sources import from_array
from vdvae.data.prepare.write import prepared_before, write_set
from vdvae.data.splits import Rule
from vdvae.data.storage import Images
from vdvae.errors import CommandLine, UserError, exit_on_interrupt, exit_on_user_error

NAME = "photographs16"
SIZE = 16
REDUCTIONS = (2, 4)
"""Photographs are scaled down by these factors, so that a crop shows more than a patch of one surface."""
PHOTOGRAPHS = {
    "train": [
        "skimage/astronaut.png",
        "skimage/motorcycle_left.png",
        "skimage/rocket.jpg",
        "sklearn/flower.jpg",
        "opencv/alphamat/input_images/plant.jpg",
        "opencv/data/aloeL.jpg",
        "opencv/data/apple.jpg",
        "opencv/data/baboon.jpg",
        "opencv/data/board.jpg",
        "opencv/data/graf1.png",
        "opencv/data/home.jpg",
        "opencv/data/leuvenA.jpg",
        "opencv/data/orange.jpg",
        "opencv/data/rubberwhale1.png",
        "opencv/hfs/data/000.jpg",
        "opencv/text/scenetext01.jpg",
        "opencv/text/scenetext04.jpg",
    ],
    "valid": ["skimage/chelsea.png", "opencv/data/butterfly.jpg", "opencv/data/messi5.jpg"],
    "test": [
        "skimage/coffee.png",
        "sklearn/china.jpg",
        "opencv/data/building.jpg",
        "opencv/data/fruits.jpg",
        "opencv/data/squirrel_cls.jpg",
        "opencv/text/scenetext06.jpg",
    ],
}
PACKAGES = {"skimage": ("scikit-image", "skimage/data"), "sklearn": ("scikit-learn", "sklearn/datasets/images")}
"""Python packages with photographs: import name -> distribution, folder of its photographs."""
OPENCV = Path("/usr/share/doc/opencv-doc")


@exit_on_interrupt()
def main() -> None:
    """Prepares the set, and prints what there is now."""
    parser = CommandLine(description="Prepares crops of the photographs that three packages ship.")
    parser.add_argument(
        "--opencv", type=Path, default=OPENCV, metavar="DIR", help=f"folder of opencv-doc; default: {OPENCV}"
    )
    parser.add_argument("--to", type=Path, default=Path(DataConfig.root), metavar="DIR", help="folder of prepared sets")
    with exit_on_user_error():
        args = parser.parse_args()
        manifest = prepare(args.to, args.opencv)
    counts = ", ".join(f"{rule.count:,} {split}" for split, rule in manifest.splits.items())
    print(f"{NAME}: {counts} images of {SIZE} x {SIZE} x 3, {manifest.source}")


def prepare(root: Path, opencv: Path) -> Manifest:
    """Makes `root/photographs16`, unless it is there.

    Raises:
        UserError: a package is missing, or something else is in the way.
    """
    target = root / NAME
    if (before := prepared_before(target)) is not None:
        return before
    folders = {"opencv": opencv / "examples"}
    if not folders["opencv"].is_dir():
        raise UserError(f"there is no {folders['opencv']}: apt-get install opencv-doc, or say --opencv DIR")
    versions = []
    for package, (name, folder) in PACKAGES.items():
        try:
            installed = distribution(name)  # which does not import it
        except PackageNotFoundError as error:
            raise UserError(f"{name} is missing: pip install -e '.[experiments]'") from error
        folders[package] = Path(str(installed.locate_file(folder)))
        versions.append(f"{name} {installed.version}")
    source = f"photographs of {', '.join(versions)}, opencv-doc"
    crops = {
        f"{split}.npy": from_array(np.concatenate([_crops(folders, name) for name in names]))
        for split, names in PHOTOGRAPHS.items()
    }

    def manifest(files: dict[str, File]) -> Manifest:
        splits = {split: Rule(f"{split}.npy", None, 0, files[f"{split}.npy"].count) for split in PHOTOGRAPHS}
        return Manifest(NAME, SIZE, 3, 8, None, False, source, files, splits)

    return write_set(target, crops, (SIZE, SIZE, 3), [source], manifest)


def _crops(folders: dict[str, Path], name: str) -> Images:
    """The crops of a photograph at every scale, side by side, [N, 16, 16, 3]."""
    package, _, file = name.partition("/")
    pixels = torch.from_numpy(read_picture(folders[package] / file, name)).permute(2, 0, 1)[None].float()
    crops = []
    for reduction in REDUCTIONS:
        size = (pixels.shape[2] // reduction, pixels.shape[3] // reduction)
        small = interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False)
        small = small.round().clamp(0, 255).byte()  # [1, 3, h, w]
        windows = small[0].unfold(1, SIZE, SIZE).unfold(2, SIZE, SIZE)  # [3, rows, columns, 16, 16]
        crops.append(windows.permute(1, 2, 3, 4, 0).reshape(-1, SIZE, SIZE, 3).numpy())
    return np.concatenate(crops)


if __name__ == "__main__":
    main()
