"""Pictures that are decoded by several threads come in order, and their errors as one line."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from tests.data.prepare import archives
from vdvae.data.prepare.image_source import decoded, find_pictures, first_gap
from vdvae.errors import UserError

IMAGES = archives.random_images(30, 16)


def test_threads_decode_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vdvae.data.storage.CHUNK", 4 * IMAGES[0].size)
    for i, image in enumerate(IMAGES):
        iio.imwrite(tmp_path / f"{i:02}.png", image)
    (tmp_path / "27.png").write_bytes((tmp_path / "27.png").read_bytes()[:300])
    chunks = decoded(find_pictures(tmp_path, (".png",))[0], (16, 16, 3)).chunks(5)
    assert np.array_equal(np.concatenate([next(chunks) for _ in range(5)]), IMAGES[5:25])
    with pytest.raises(UserError, match=r"^.*/27\.png .*damaged[^\n]*$"):
        list(chunks)


@pytest.mark.parametrize(
    ("names", "gap"),
    [
        (["1.png", "2.png", "4.png"], "none between 2.png and 4.png"),
        (["a/1.png", "b/01.png"], "a/1.png and b/01.png have one number"),
        (["①.png", "2.png", "4.png"], ""),
        (["²3.png", "٣.png", "१.png"], ""),
        (["9" * 250 + ".png", "9" * 249 + "8.png"], ""),
    ],
)
def test_only_digits_are_numbers(names: list[str], gap: str) -> None:
    assert first_gap(names) == gap
