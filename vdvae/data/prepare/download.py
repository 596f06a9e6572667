"""Downloads that go on where they stopped."""

from __future__ import annotations

import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from vdvae.errors import UserError

BLOCK = 1 << 20
TIMEOUT = 60
"""Seconds without an answer."""


def download(url: str, path: Path) -> None:
    """Fetches `url` to `path`, by way of `path` + `.part`; what is in that already is not fetched again.

    Raises:
        UserError: it failed; the part that came is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _append(url, part)
            break
        except (OSError, HTTPException) as error:
            got = part.stat().st_size if part.exists() else 0
            if isinstance(error, urllib.error.HTTPError) or got == before:  # no use in trying again at once
                reason = " ".join(str(error).split())
                kept = f"the {got:,} bytes that came are kept, and the same command goes on, or " if got else ""
                raise UserError(
                    f"{url} cannot be downloaded: {reason}; {kept}get it elsewhere and say where with --from"
                ) from error
    part.replace(path)


def _append(url: str, part: Path) -> None:
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if start and error.code == 416:  # nothing after what is here: it is whole
            return
        raise
    with answer:
        if answer.status != 206:
            start = 0  # the server starts over
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length else None
        with (
            part.open("r+b" if start else "wb") as file,
            tqdm(desc=part.stem, initial=start, total=total, unit="B", unit_scale=True, disable=None) as bar,
        ):
            file.seek(start)
            while block := answer.read(BLOCK):
                file.write(block)
                bar.update(len(block))
        if total is not None and part.stat().st_size < total:
            raise OSError("the connection was closed early")
