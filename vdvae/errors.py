"""What a person typed, and what was wrong with it, told in one line: exit status 2, no traceback."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from vdvae.launch import is_first
from vdvae.streams import lose_text_not_work


class UserError(ValueError):
    """Something the user asked for cannot be done; the message says what and what to do instead. Where much is at
    fault, `lines` lists it, below the message.
    """

    def __init__(self, message: str = "", lines: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.lines = lines

    def __str__(self) -> str:
        return "\n".join((super().__str__(), *self.lines))


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turns a `ValueError` or an `OSError` about a file into `error: ...` on stderr and exit status 2.

    Wraps set-up only, where nothing has been written yet: past it, an exception is our bug and keeps its
    traceback. Of several processes only the first speaks.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if is_first():
            print(f"error: {_told(error)}", file=sys.stderr)
        sys.exit(2)


@contextmanager
def exit_on_bad_image() -> Iterator[None]:
    """The same for a `UserError` past set-up, where images are read; it is told by the process that met it."""
    try:
        yield
    except UserError as error:
        print(f"error: {_told(error)}", file=sys.stderr)
        sys.exit(2)


@contextmanager
def exit_on_interrupt(and_then: str = "") -> Iterator[None]:
    """Ends a command on which Ctrl-C was pressed in one line, with exit status 130; decorates its `main`.

    Args:
        and_then: what the same command does, where it goes on.
    """
    try:
        yield
    except KeyboardInterrupt:
        if is_first():
            print("\n" + "; ".join(filter(None, ("stopped", and_then))), file=sys.stderr)
        sys.exit(130)


def one_line(text: str) -> str:
    """A text in one line that can be printed, whatever a file in it is called."""
    return " ".join(text.split()).encode(errors="backslashreplace").decode()


def _told(error: Exception) -> str:
    """The message, and below it what is listed, a line for each."""
    lines = error.lines if isinstance(error, UserError) else ()
    message = str(error) if not lines else str(error.args[0])
    return "\n  ".join(map(one_line, (message, *lines)))


def user_path(path: str | Path) -> Path:
    """A path as a person gives it, which may begin with `~` or `~user`: the shell leaves `--out=~/x` as it is.

    Raises:
        UserError: there is no such user, or it is no path.
    """
    if not isinstance(path, (str, Path)):
        raise UserError(f"a path must be text or a pathlib.Path, not {type(path).__name__}")
    if not str(path).startswith("~"):
        return Path(path)
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: no such home directory; ./{path} is a name that begins with ~") from error


def _path_argument(text: str) -> Path:
    try:
        return user_path(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


class WithDefaults(argparse.HelpFormatter):
    """Help that names the default of every option that has one, where its text does not."""

    def _get_help_string(self, action: argparse.Action) -> str:
        told = action.help or ""
        if not action.option_strings or action.nargs == 0 or action.default in (None, argparse.SUPPRESS, []):
            return told
        return told if "default" in told.lower() else f"{told}; default: %(default)s"


class CommandLine(argparse.ArgumentParser):
    """An argument parser whose errors are one line too, whose paths (`type=Path`) may begin with ~, and whose command
    goes on where stdout or stderr cannot be written; every command has one.
    """

    def __init__(self, **settings: Any) -> None:
        lose_text_not_work()
        super().__init__(**{"formatter_class": WithDefaults, **settings})
        self.register("type", Path, _path_argument)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, which in Python 3.10 and 3.11 takes `--option=--` for an option with an empty list."""
        given = sys.argv[1:] if args is None else list(args)
        for argument in given:
            if argument.startswith("--") and argument.endswith("=--"):
                self.error(f"{argument}: -- is no value")
        return super().parse_known_args(given, namespace)

    def error(self, message: str) -> NoReturn:
        """Raises what is wrong with the command line."""
        raise UserError(f"{message}; {self.prog} --help lists the arguments")


def did_you_mean(name: str, choices: list[str]) -> str:
    """`" (did you mean 'lr'?)"` or `""`: the tail of a message about an unknown name."""
    close = get_close_matches(name, choices, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
