"""Files of torch.save, read without executing anything from them."""

from __future__ import annotations

import re
import warnings
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from vdvae.errors import UserError


def read_torch_file(path: Path) -> Any:
    """What a file of torch.save holds, with tensors on the CPU: a zip archive, whose checksums are compared, or the
    format before PyTorch 1.6, which has none.

    Raises:
        UserError: it is missing or damaged, or its pickle asks for anything but tensors and plain values.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    with path.open("rb"):
        pass  # what the system has to say against it should be heard as it is
    try:
        _compare_checksums(path)
        with warnings.catch_warnings():  # of pickle protocols, deprecated storages and the like
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make unpickling fail in any way there is
        message, is_pickle = str(error), isinstance(error, UnpicklingError)
        if is_pickle and (wanted := re.search(r"GLOBAL ([\w.]+)", message)):
            raise UserError(
                f"{path} is not read: it would call {wanted[1]}, and weights are nothing but tensors. "
                "Nothing of it was executed"
            ) from error
        reason = f"{type(error).__name__}: {message}".splitlines()[0][:90]
        if is_pickle:
            reason = "a pickle of something else, not executed"
        raise UserError(
            f"{path} is cut off, damaged, or no file of torch.save ({reason}); copy or download it again"
        ) from error


def _compare_checksums(path: Path) -> None:
    """torch.save writes a CRC-32 of each tensor and of the pickle; torch.load does not look at them."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"{damaged} does not have its checksum")
