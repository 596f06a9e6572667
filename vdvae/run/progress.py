"""A bar on a terminal, a line per report elsewhere; both with an honest time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from vdvae.config import TrainConfig
from vdvae.training.metrics import Report


class Progress:
    """The progress of training, shown by the main process only.

    The time left takes the whole time so far, validation and pictures included, over the steps made.
    """

    def __init__(self, first_step: int, settings: TrainConfig, shown: bool) -> None:
        self.settings = settings
        self.shown = shown
        self.on_terminal = sys.stderr.isatty()
        self.began, self.first_step = time.monotonic(), first_step
        self.reported, self.reported_step = self.began, first_step
        self.bar = tqdm(
            total=settings.max_steps,
            initial=first_step,
            unit="step",
            desc="training",
            dynamic_ncols=True,
            smoothing=0,  # the average since the start, not a recent rate
            disable=not (shown and self.on_terminal),
        )

    def step(self) -> None:
        """Counts one step."""
        self.bar.update()

    def report(self, step: int, report: Report) -> float:
        """Shows how training goes after `step` steps; returns training images per second since the last report."""
        now = time.monotonic()
        images_per_second = (step - self.reported_step) * self.settings.batch_size / (now - self.reported)
        self.reported, self.reported_step = now, step
        if self.on_terminal:
            self.bar.set_postfix_str(f"{report.bits_per_dim:.3f} bits/dim, {images_per_second:,.0f} images/s")
        else:
            left = (now - self.began) / (step - self.first_step) * (self.settings.max_steps - step)
            self.say(
                f"step {step:,}/{self.settings.max_steps:,}: {report.bits_per_dim:.3f} bits/dim, "
                f"{images_per_second:,.0f} images/s, {duration(left)} left, "
                f"largest gradient norm {report.grad_norm_max:.3g}, {report.skipped} skipped"
            )
        return images_per_second

    @contextmanager
    def off_the_clock(self) -> Iterator[None]:
        """Keeps what is not training out of the images per second."""
        began = time.monotonic()
        yield
        self.reported += time.monotonic() - began

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self.shown:
            tqdm.write(text)
            sys.stdout.flush()

    def fail(self, text: str) -> None:
        """The last line, on stderr."""
        self.close()
        if self.shown:
            print(text, file=sys.stderr)

    def close(self) -> None:
        """Leaves the terminal as it was."""
        self.bar.close()


def duration(seconds: float) -> str:
    """A duration in words: `2d 03h`, `3h 05m`, `4m 09s` or `7s`."""
    whole = round(seconds)
    for name, unit, smaller_name, smaller in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= unit:
            return f"{whole // unit}{name} {whole % unit // smaller:02d}{smaller_name}"
    return f"{whole}s"
