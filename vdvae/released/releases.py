"""The files that were published with the paper's code, and where they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vdvae.errors import UserError

SERVER = "https://openaipublic.blob.core.windows.net/very-deep-vaes-assets"


@dataclass(frozen=True)
class Release:
    """Weights that were published with the paper's code."""

    preset: str
    stem: str
    """What its files' names begin with, below `SERVER`."""
    published: str
    """The test NLL that goes with it."""
    files: tuple[str, ...] = ("-model.th", "-model-ema.th", "-opt.th", "-log.jsonl")


RELEASES = (
    Release("imagenet32", "vdvae-assets/imagenet32-iter-1700000", "2.6364 nats/dim"),
    Release("imagenet64", "vdvae-assets-2/imagenet64-iter-1600000", "2.44 nats/dim"),
    Release("ffhq256", "vdvae-assets/ffhq256-iter-1700000", "0.4232 nats/dim"),
    Release("ffhq1024", "vdvae-assets/ffhq1024-iter-1700000", "1.678 nats/dim"),
    Release("cifar10", "vdvae-assets-2/cifar10-seed0-iter-900000", "2.879 bits/dim", ("-model-ema.th",)),
    Release("cifar10", "vdvae-assets-2/cifar10-seed1-iter-1050000", "2.842 bits/dim", ("-model-ema.th",)),
    Release("cifar10", "vdvae-assets-2/cifar10-seed2-iter-650000", "2.898 bits/dim", ("-model-ema.th",)),
    Release("cifar10", "vdvae-assets-2/cifar10-seed3-iter-1050000", "2.864 bits/dim", ("-model-ema.th",)),
)


def release_of(path: Path) -> tuple[Release, str] | None:
    """The release that a file of this name belongs to, and its address; None for other names."""
    for release in RELEASES:
        for ending in release.files:
            if path.name == Path(release.stem).name + ending:
                return release, f"{SERVER}/{release.stem}{ending}"
    return None


def check_there(path: Path) -> None:
    """Raises `UserError` where there is nothing; of a released file, it says where to get it."""
    if not path.exists():
        known = release_of(path)
        where = f"download it from {known[1]}" if known else "give a run directory, a checkpoint or a released .th file"
        raise UserError(f"there is nothing at {path}; {where}")
