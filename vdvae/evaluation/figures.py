"""The paper's figures, and the course of a run: from the lines of its metrics.jsonl to pictures.

Needs matplotlib, which is optional, and leaves its global state alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, groupby, pairwise
from statistics import fmean, median_low
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vdvae.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Lines = Sequence[Mapping[str, Any]]
"""Lines of metrics.jsonl, in the order of steps; a key may be missing, and a value null, in any of them."""

WINDOW = 500
"""Updates of which the largest gradient norm is shown (paper Figure 6)."""
DPI = 150
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The palette of Okabe and Ito: to be told apart whichever colours one sees."""
CROWDED = 8
"""Resolutions whose names have room above a figure; the highest of ten have one layer each."""
MOST_POINTS = 300
"""The most points of a learning curve; where there are more reports, each point is the mean of some."""
FEW_POINTS = 40
"""The most points of a curve that is compared with others."""
SETTLED = 0.05
"""The part of a run whose values may leave a learning curve's frame: they are far above all that come after."""


def check_matplotlib() -> None:
    """Raises `UserError` where there is no matplotlib."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UserError("figures need matplotlib: pip install -e '.[figures]'") from error


def learning_curves(lines: Lines) -> Figure:
    """The negative ELBO and its two parts, distortion and rate, over updates: of training batches, and of the whole
    validation and test splits.

    Raises:
        UserError: there is nothing to draw, as for the other figures.
    """
    keys = {"bits_per_dim": "negative ELBO", "distortion": "distortion", "rate": "rate"}
    if not any(_series(lines, kind, "bits_per_dim")[0] for kind in ("train", "valid", "test")):
        raise UserError("no bits/dim are logged yet")
    figure, panels = _panels(9, 3, len(keys))
    for (key, title), axes in zip(keys.items(), panels, strict=True):
        curves = {kind: _series(lines, kind, key) for kind in ("train", "valid", "test")}
        for colour, kind, label in zip(COLOURS, curves, ("training", "validation"), strict=False):
            steps, values = _thinned(*curves[kind])
            axes.plot(steps, values, color=colour, label=label, **_marks(steps))
        axes.plot(*curves["test"], "D", color=COLOURS[2], label="test", markersize=5)
        axes.set(title=title, xlabel="updates", ylabel="bits/dim")
        _frame_settled(axes, [point for curve in curves.values() for point in zip(*_thinned(*curve), strict=True)])
    handles = [line for line in panels[0].get_lines() if len(np.asarray(line.get_xdata()))]
    figure.legend(handles=handles, frameon=False, loc="outside upper center", ncols=len(handles))
    return figure


def compared_curves(runs: Mapping[str, Sequence[Lines]]) -> Figure:
    """The loss of training batches in some settings over each other, and how far each is from the first setting.

    Args:
        runs: by setting, the lines of one run per seed, the same seeds everywhere. Runs with one seed train on the
            same images in the same order, and each is compared with that of the first setting; grey is how far the
            runs of the first setting are from its first one.
    """
    curves = {
        name: [dict(zip(*_series(lines, "train", "bits_per_dim"), strict=True)) for lines in seeds]
        for name, seeds in runs.items()
    }
    if not all(curve for seeds in curves.values() for curve in seeds):
        raise UserError("no bits/dim are logged yet")
    first, *others = curves
    figure, (losses, differences) = _panels(9, 3.4, 2)
    framed: list[tuple[float, float]] = []
    for colour, (name, seeds) in zip(_cycle(len(curves)), curves.items(), strict=True):
        for i, curve in enumerate(seeds):
            points = _thinned(list(curve), list(curve.values()), FEW_POINTS)
            losses.plot(*points, color=colour, label=None if i else name, linewidth=1)
            framed += zip(*points, strict=True)
    for curve in curves[first][1:]:
        differences.plot(*_difference(curve, curves[first][0]), color="0.75", label=f"{first}, another seed")
    for colour, name in zip(_cycle(len(curves))[1:], others, strict=True):
        for pair in zip(curves[name], curves[first], strict=True):
            differences.plot(*_difference(*pair), color=colour, linewidth=1)
    _frame_settled(losses, framed)
    differences.axhline(0, color="black", linewidth=0.5)
    losses.set(title="negative ELBO of training batches", xlabel="updates", ylabel="bits/dim")
    differences.set(title=f"difference from {first}", xlabel="updates", xlim=losses.get_xlim())
    figure.legend(frameon=False, loc="outside upper center", ncols=1 + len(curves))
    return figure


def _difference(curve: Mapping[int, float], other: Mapping[int, float]) -> tuple[list[int], list[float]]:
    """How far one curve is above another, at the steps that both have."""
    steps = [step for step in curve if step in other]
    return _thinned(steps, [curve[step] - other[step] for step in steps], FEW_POINTS)


def gradient_norms(runs: Mapping[str, Lines]) -> Figure:
    """The largest gradient norm per 500 updates of each run, the skip threshold dashed, and how many updates were
    skipped (paper Figure 6).
    """
    from matplotlib.ticker import LogLocator, NullLocator

    maxima = {name: [(step, norm) for step, norm in window_maxima(lines) if norm > 0] for name, lines in runs.items()}
    if not any(maxima.values()):
        raise UserError("no gradient norms are logged yet")
    figure, (axes,) = _panels(7, 3.6)
    for colour, (name, lines) in zip(_cycle(len(runs)), runs.items(), strict=True):
        steps, norms = [step for step, _ in maxima[name]], [norm for _, norm in maxima[name]]
        axes.plot(steps, norms, color=colour, label=f"{name}: {_skipped(lines)}", **_marks(steps))
    dashed: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1, "label": "skip threshold"}
    for steps, thresholds in (_series(lines, "train", "skip_threshold") for lines in runs.values()):
        if len(set(thresholds)) == 1:
            axes.axhline(thresholds[0], **dashed)
        elif thresholds:  # "auto" moves
            axes.plot(steps, thresholds, **dashed)
        dashed["label"] = None if thresholds else dashed["label"]
    between = [b - a for lines in runs.values() for a, b in pairwise([0, *_steps(lines)])]
    window = max(WINDOW, median_low(between))  # reports may be rarer than windows
    axes.set(xlabel="updates", ylabel=f"largest gradient norm\nin {window:,} updates", yscale="log")
    axes.set_xlim(left=0)
    lowest, highest = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if highest < 1000 * lowest else (1,)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    figure.legend(frameon=False, loc="outside upper left")
    return figure


def window_maxima(lines: Lines, window: int = WINDOW) -> list[tuple[int, float]]:
    """(last step, largest gradient norm) of each `window` updates.

    A report covers the updates since the one before it, and counts where it ends: with reports that are rarer than
    windows, or don't divide them, a window is as long as its reports.
    """
    points = zip(*_series(lines, "train", "grad_norm_max"), strict=True)
    groups = [list(group) for _, group in groupby(points, lambda point: (point[0] - 1) // window)]
    return [(group[-1][0], max(norm for _, norm in group)) for group in groups]


def cumulative_rate(curves: Mapping[str, Sequence[float]], resolutions: Sequence[int]) -> Figure:
    """The rate of the first N layers from the top, for every N (paper Figure 5).

    Args:
        curves: the rate of each layer in bits/dim, [L], top-down, by label.
        resolutions: the resolution of each layer, [L]; marked by bands.
    """
    figure, (axes,) = _panels(7, 3.6)
    first, middles = 1, []
    for i, (_, group) in enumerate(groupby(resolutions)):
        count = len(list(group))
        if i % 2:
            axes.axvspan(first - 0.5, first + count - 0.5, color="0.94", linewidth=0, zorder=0)
        middles.append(first + (count - 1) / 2)
        first += count
    layers = range(1, len(resolutions) + 1)
    for colour, (label, rates) in zip(_cycle(len(curves)), curves.items(), strict=True):
        cumulative = list(accumulate(rates))
        axes.plot(layers, cumulative, color=colour, label=f"{label}: {cumulative[-1]:.3g} bits/dim", **_marks(layers))
    axes.set(xlabel="layer, from the top", ylabel="cumulative rate (bits/dim)")
    axes.set_xlim(0.5, len(resolutions) + 0.5)
    axes.set_ylim(bottom=0)
    above = axes.secondary_xaxis("top")
    above.set_xticks(middles, [str(resolution) for resolution, _ in groupby(resolutions)])
    above.tick_params(length=0)
    if len(middles) > CROWDED:
        above.tick_params(rotation=90, labelsize=8)
    above.spines["top"].set_visible(False)
    above.set_xlabel("resolution")
    axes.legend(frameon=False, loc="upper left")
    return figure


def rate_and_active_units(lines: Lines, latents: Mapping[int, int]) -> Figure:
    """The rate of each resolution over training and, where it was measured, which share of its latent variables is
    active, see `active_units.active_units`.

    Args:
        lines: the lines of one run.
        latents: the number of latent variables per resolution.
    """
    rates = _series_per_resolution(lines, "train", "rate_per_resolution")
    active = _series_per_resolution(lines, "valid", "active_units_per_resolution")
    if not rates:
        raise UserError("no rates per resolution are logged yet")
    figure, panels = _panels(9 if active else 6, 3.4, 2 if active else 1)
    colours = dict(zip(latents, _shades(len(latents)), strict=True))
    labels = {resolution: f"{resolution}x{resolution}" for resolution in latents}
    for resolution, rate in rates.items():
        steps, values = _thinned(*rate)
        panels[0].plot(steps, values, color=colours[resolution], label=labels[resolution], **_marks(steps))
    panels[0].set(xlabel="updates", ylabel="rate (bits/dim)")
    for resolution, (steps, counts) in active.items():
        shares = [100 * number / latents[resolution] for number in counts]
        panels[1].plot(steps, shares, color=colours[resolution], **_marks(steps))
        panels[1].set(xlabel="updates", ylabel="active latent variables (%)", ylim=(-3, 103))
        labels[resolution] += f": {counts[-1]:,} of {latents[resolution]:,}"
    for axes in panels:
        axes.set_xlim(left=0)
    handles, title = panels[0].get_lines(), "resolution: active" if active else "resolution"
    figure.legend(handles, [labels[r] for r in rates], title=title, frameon=False, loc="outside right upper")
    return figure


def reconstructions(grid: NDArray[np.uint8], latents: Mapping[int, int]) -> Figure:
    """Reconstructions from the latents up to each resolution, and which share of all latent variables these are (paper
    Figure 4).

    Args:
        grid: the picture that `grids.reconstruction_grid` makes, uint8 [H, W, C].
        latents: the number of latent variables per resolution, lowest first.
    """
    height, width = grid.shape[:2]
    row = height / (len(latents) + 1)
    middles = [(i + 0.5) * row for i in range(len(latents) + 1)]
    inches = 5.0 * height / width, 0.6  # of the pictures, 5 wide, and below them
    figure, (axes,) = _panels(8, sum(inches))
    figure.set_layout_engine("none")  # which would not know that pictures keep their shape
    axes.set_position((0.36, inches[1] / sum(inches), 5.0 / 8, 0.98 * inches[0] / sum(inches)))
    axes.imshow(np.broadcast_to(grid, (height, width, 3)))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    bars = axes.inset_axes((-0.4, 0, 0.28, 1))
    shares = [100 * share for share in cumulative_shares(latents).values()]
    bars.barh(middles[1:], shares, height=0.35 * row, color=COLOURS[0])
    for middle, share in zip(middles[1:], shares, strict=True):
        bars.text(share + 4, middle, f"{share:.3g} %", va="center")
    bars.set_ylim(height, 0)
    bars.set_yticks(middles, ["originals", *(f"{r}x{r}" for r in latents)])
    bars.tick_params(length=0)
    bars.set_xlim(0, 100)
    bars.set_xticks([])
    bars.spines[["top", "right", "bottom"]].set_visible(False)
    bars.set_xlabel("latent variables up to there")
    return figure


def by_setting(values: Mapping[str, Sequence[float]], heading: str, axis: str) -> Figure:
    """A figure of every seed, as a point, and their means, as a line over settings (paper Tables 1 and 3).

    Args:
        values: the value of each seed, by setting; NaN where it diverged. The first word of a setting is its place on
            the axis, and what follows, as in "75 without", the line that it belongs to.
        heading: the label of the values.
        axis: the label of the places.
    """
    figure, (axes,) = _panels(6, 3.4)
    split = {name: name.partition(" ")[::2] for name in values}  # place and line
    places, lines = (list(dict.fromkeys(parts)) for parts in zip(*split.values(), strict=True))
    for colour, line in zip(_cycle(len(lines)), lines, strict=True):
        own = {places.index(split[name][0]): seeds for name, seeds in values.items() if split[name][1] == line}
        axes.plot(list(own), [float(np.mean(seeds)) for seeds in own.values()], color=colour, label=line)
        points = [(x, y) for x, seeds in own.items() for y in seeds]
        axes.plot(*zip(*points, strict=True), "o", color=colour, markersize=4)
    axes.set_xticks(range(len(places)), places)
    axes.set(xlabel=axis, ylabel=heading)
    if len(lines) > 1:
        axes.legend(frameon=False)
    return figure


def cumulative_shares(latents: Mapping[int, int]) -> dict[int, float]:
    """The share of all latent variables that lie at no more than each resolution, 0..1; from their numbers, lowest
    resolution first.
    """
    total = sum(latents.values())
    return {r: count / total for r, count in zip(latents, accumulate(latents.values()), strict=True)}


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """A figure as uint8 [H, W, 3]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _panels(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches, and its panels side by side."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    panels = list(figure.subplots(1, columns, squeeze=False)[0])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 1.5M rather than 1500000
    return figure, panels


def _series(lines: Lines, kind: str, key: str) -> tuple[list[int], list[float]]:
    """The steps and the finite values of one key."""
    points = [(line["step"], line.get(key)) for line in lines if line["kind"] == kind]
    known = [(step, value) for step, value in points if isinstance(value, (int, float)) and math.isfinite(value)]
    return [step for step, _ in known], [value for _, value in known]


def _series_per_resolution(lines: Lines, kind: str, key: str) -> dict[int, tuple[list[int], list[float]]]:
    """As `_series`, by resolution, for a key with a value per resolution, whose names are strings in JSON."""
    having = [line for line in lines if line["kind"] == kind and line.get(key)]
    names = having[-1][key] if having else ()
    flat = [{"kind": kind, "step": line["step"], **line[key]} for line in having]
    return {int(name): _series(flat, kind, name) for name in names}


def _thinned(steps: list[int], values: list[float], most: int = MOST_POINTS) -> tuple[list[int], list[float]]:
    """Means of so many neighbours that few points remain, each at the last of its steps."""
    n = math.ceil(len(steps) / most) or 1
    firsts = range(0, len(steps), n)
    return [steps[i : i + n][-1] for i in firsts], [fmean(values[i : i + n]) for i in firsts]


def _steps(lines: Lines) -> list[int]:
    return [line["step"] for line in lines if line["kind"] == "train"]


def _skipped(lines: Lines) -> str:
    """How many updates were skipped, of those that are reported."""
    skipped, updates = int(sum(_series(lines, "train", "skipped")[1])), max(_steps(lines), default=0)
    return f"{skipped:,} of {updates:,} updates skipped ({100 * skipped / max(updates, 1):.2g} %)"


def _frame_settled(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Has the frame show all updates, and the values after the first of them."""
    last = max((step for step, _ in points), default=0)
    values = [value for step, value in points if step >= SETTLED * last]
    axes.set_xlim(left=0)
    if values and max(values) > min(values):
        margin = 0.05 * (max(values) - min(values))
        axes.set_ylim(min(values) - margin, max(values) + margin)


def _marks(points: Sequence[object]) -> dict[str, Any]:
    """Points on a line that has few of them, or even one."""
    return {"marker": "o", "markersize": 3} if len(points) <= 40 else {"linewidth": 1}


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def _shades(count: int) -> list[Any]:
    """From dark for the lowest resolution to light, without the yellow that is hard to see on white."""
    from matplotlib import colormaps

    return [colormaps["viridis"](0.85 * i / max(count - 1, 1)) for i in range(count)]
