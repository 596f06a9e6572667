"""What ends training before its last step: SIGTERM, SIGINT, or a time limit."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import torch
import torch.distributed as dist

from vdvae.runtime.processes import World

SIGNALS = (signal.SIGTERM, signal.SIGINT)
TIME_IS_UP = 1
"""A reason to end, besides the numbers of signals, which are larger."""
ECHO_SECONDS = 5.0
"""torchrun passes on a signal that the system may have sent to every process already: so soon, it is the same one."""


class Interruption:
    """Lets the processes of a run end training together, after the same update.

    The first signal asks for that; another one ends the process at once. Processes agree by an all-reduce of one number
    per update, which is read after the next update, when it is long done: no process waits for the device.

    As a context manager, it takes over the signals.

    Args:
        world: the processes.
        max_hours: the hours, from now on, after which training ends; None for no limit.
    """

    def __init__(self, world: World, max_hours: float | None) -> None:
        self.world = world
        self.ends = time.monotonic() + max_hours * 3600 if max_hours is not None else None
        self._asked = 0
        self._asked_at = 0.0
        self._at_once = False
        self._pending: tuple[torch.Tensor, Callable[[], object]] | None = None

    def __enter__(self) -> Interruption:
        self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:
            self._finish()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agreed(self) -> int:
        """Why all processes end after this update: the number of a signal, `TIME_IS_UP`, or 0 to go on. Every
        process calls this once per update.
        """
        late = self.ends is not None and time.monotonic() >= self.ends
        reason = self._asked or (TIME_IS_UP if late else 0)
        if self.world.size == 1:
            return reason
        agreed = self._finish()
        if not agreed:
            self._begin(reason)
        return agreed

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within this context, in which the state is on disk already, a signal ends the process at once with the
        conventional status, 128 + its number.
        """
        self._at_once = True
        if self._asked:
            raise SystemExit(128 + self._asked)
        try:
            yield
        finally:
            self._at_once = False

    def _begin(self, reason: int) -> None:
        reasons = torch.full((1,), reason, device=self.world.device)
        work = dist.all_reduce(reasons, dist.ReduceOp.MAX, async_op=True)
        assert work is not None
        wait: Callable[[], object] = work.wait
        if reasons.is_cuda:
            work.wait()  # makes the stream wait, not this process
            on_device, reasons = reasons, torch.empty(1, dtype=reasons.dtype, pin_memory=True)
            reasons.copy_(on_device, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
            wait = copied.synchronize
        self._pending = reasons, wait

    def _finish(self) -> int:
        if self._pending is None:
            return 0
        reasons, wait = self._pending
        self._pending = None
        wait()
        return int(reasons.item())

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self._asked:
            echoes = ECHO_SECONDS if self.world.size > 1 else 0.0
            if number != self._asked or time.monotonic() - self._asked_at > echoes:
                os._exit(128 + number)
            return
        self._asked, self._asked_at = number, time.monotonic()
        if self.world.is_main:
            name = signal.Signals(number).name
            what = "ending" if self._at_once else "finishing this update and saving; once more ends at once"
            with suppress(OSError):  # stderr may be gone; print may be in the middle of something
                os.write(2, f"\n{name}: {what}\n".encode())
        if self._at_once:
            raise SystemExit(128 + number)
