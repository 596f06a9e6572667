"""stdout and stderr that lose text rather than end the work: on a full disk, without a reader, closed, in ASCII."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import Any


def lose_text_not_work() -> None:
    """Makes stdout and stderr of this process such that writing to them never fails. What cannot be written is lost,
    characters that they cannot have become escapes, and where one is closed, /dev/null stands in.

    Streams that somebody else put there, as tests and notebooks do, stay as they are.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next file would get its number, and gloo's and NCCL's messages in it
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:  # it was closed when Python started
            stream = TextIOWrapper(FileIO(os.devnull, "w"), "utf-8", "backslashreplace", line_buffering=True)
            setattr(sys, name, stream)
        elif type(stream) is TextIOWrapper and type(_raw(stream)) is FileIO and stream.fileno() == descriptor:
            with suppress(OSError):
                stream.flush()
            lines = stream.line_buffering or stream.write_through
            writer = BufferedWriter(_Losing(descriptor, "w", closefd=False))
            setattr(sys, name, TextIOWrapper(writer, stream.encoding, "backslashreplace", line_buffering=lines))


def _raw(stream: TextIOWrapper) -> Any:
    """What is below the buffer, which `python -u` leaves out."""
    return getattr(stream.buffer, "raw", stream.buffer)


class _Losing(FileIO):
    """A file that takes whatever it is given; print, tqdm, warnings, logging and Python's end come to it in the end."""

    _told = False

    def write(self, data: Any) -> int:
        """Writes what can be written. The first failure is told on stderr, unless only the reader went away."""
        try:
            written: int | None = super().write(data)
        except OSError as error:
            if self.fileno() == 1 and error.errno != errno.EPIPE and not self._told:
                self._told = True
                with suppress(OSError):
                    os.write(2, f"warning: stdout cannot be written ({error.strerror}); its text is lost\n".encode())
            written = None
        return len(data) if written is None else written
