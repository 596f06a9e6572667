"""How many bytes of tensors there are."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor


class Held:
    """The storages of tensors that were added, fake or real, as long as they live; views add nothing."""

    def __init__(self) -> None:
        self.bytes = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def add(self, tensor: Tensor) -> None:
        """Counts a tensor's storage until it is gone, once."""
        storage = tensor.untyped_storage()
        address, size = storage._cdata, storage.nbytes()
        if address not in self._alive:
            self.bytes += size
            self._alive[address] = weakref.ref(storage, lambda _: self._remove(address, size))

    def _remove(self, address: int, size: int) -> None:
        del self._alive[address]
        self.bytes -= size
