"""Generated mistakes in settings and on command lines: each ends in one line and status 2, and changes nothing."""

from __future__ import annotations

import io
import json
import re
import runpy
import typing
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import imageio.v3 as iio
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import train
from tests.conftest import PRESET_NAMES, ROOT, TINY
from vdvae.config.reading import SECTIONS
from vdvae.run.directory import LOCK

Strategy = st.SearchStrategy[Any]
some, whole = st.sampled_from, st.integers


class Mistake(NamedTuple):
    """What a command is told, and the files in the current folder."""

    arguments: list[str]
    files: dict[str, bytes]
    hps: str = str(TINY)


def kind(hint: Any) -> Any:
    """int, float, bool, str or Literal: what a field takes, besides words for special cases."""
    return next((arm for arm in (hint, *typing.get_args(hint)) if arm in (int, float, bool, str)), Literal)


FIELDS = {f"{s}.{key}": kind(hint) for s, part in SECTIONS.items() for key, hint in typing.get_type_hints(part).items()}


def edited(text: str) -> Strategy:
    """Some of it replaced by a few letters."""
    letters = st.text("abcdefghilmnoprstuvxyz_-A1 ", max_size=3)
    return st.builds(lambda i, n, new: text[:i] + new + text[i + n :], *[whole(0, len(text))] * 2, letters)


def in_file(content: bytes, hps: str = f"{TINY},wrong.yaml") -> Mistake:
    return Mistake([], {"wrong.yaml": content}, hps)


@st.composite
def told(draw: st.DrawFn, values: dict[str, Strategy]) -> Mistake:
    """One of some settings, on the command line, where everything is text, or in a file behind tiny.yaml."""
    key = draw(some(sorted(values)))
    value = draw(values[key])
    if draw(st.booleans()) and (isinstance(value, str) or FIELDS.get(key) is not str):
        return Mistake([f"{key}={value}"], {})
    section, _, name = key.partition(".")
    return in_file(yaml.safe_dump({section: {name: value}}).encode())


unknown_key = some(sorted(FIELDS)).flatmap(edited).filter(lambda key: key not in FIELDS)
misspelled = unknown_key.flatmap(lambda key: told({key: st.just(1)}))

# Values of the wrong type.
words = st.text(max_size=20).map("?{}".format) | some(["", "None", "1,5", "0x10", "1 000", "½", "1/2", "--", "[1]"])
fractions = st.floats().filter(lambda number: not number.is_integer())
others = st.lists(st.none()) | st.dictionaries(st.text(max_size=3), st.none()) | st.dates() | st.binary(max_size=5)
TYPES: dict[Any, Strategy] = {
    int: words | fractions | st.booleans() | others | some([2**63, 10**30, 10**400, -(10**30), "9" * 5000, "1e300"]),
    float: words | st.booleans() | others | some([float("nan"), "nan"]),
    bool: words | whole() | st.floats() | others,
    Literal: words | fractions | st.booleans() | others,
    str: whole() | st.floats() | st.booleans() | others | st.none(),
}
wrong_type = told({key: TYPES[field] for key, field in FIELDS.items()})

# Numbers out of range: only the scaling of images may be negative, and of the others only some 0.
BELOW: dict[Any, Strategy] = {int: whole(max_value=-1), float: st.floats(max_value=-1e-6)}
NUMBERS = [key for key, field in FIELDS.items() if field in BELOW and "model.input" not in key]
ABOVE: dict[str, Strategy] = {
    **dict.fromkeys(("model.width", "model.zdim", "model.num_mixtures", "data.workers"), whole(2**16 + 1)),
    **dict.fromkeys(("model.bottleneck_multiple", "train.beta1", "train.beta2", "train.ema_decay"), st.floats(17)),
    **dict.fromkeys(("model.input_scale", "model.input_shift"), some(["inf", "-inf", 10**400])),
}
SOME_ZERO = "no_bias|decay|beta|warmup|cooldown|seed"
out_of_range = (
    told({key: BELOW[FIELDS[key]] for key in NUMBERS})
    | told({key: st.just(0) for key in NUMBERS if not re.search(SOME_ZERO, key)})
    | told(ABOVE)
)

# The block strings of tiny.yaml with a number or a letter that cannot be there, and any text.
BLOCKS = {"model.enc_blocks": "28d4,7x1,7d7,1x1", "model.dec_blocks": "1x1,7m1,28m7", "model.custom_width_str": "28:8"}
LETTERS = some([*"yzXDM.;/+*²٣\uff11é\"'()", "\0", "-1"])
SIZES = some(["0", "-1", "01", "1.5", "1e3", "٣", "\uff11", "²", "1_0", "9" * 5000, str(10**30), str(10**8)])


def malformed(text: str) -> Strategy:
    spans = some([match.span() for match in re.finditer(r"\d+", text)])
    return (
        st.builds(lambda span, size: text[: span[0]] + size + text[span[1] :], spans, SIZES)
        | st.builds(lambda i, letter: text[:i] + letter + text[i:], whole(0, len(text)), LETTERS)
        | st.text("0123456789xdm, ").filter(lambda blocks: "28" not in blocks and blocks.strip(",") != "")
    )


malformed_blocks = told({key: malformed(text) for key, text in BLOCKS.items()})

# Values that are possible, but not with the others of tiny.yaml.
elsewhere = whole(2, 100).filter(lambda resolution: resolution not in (7, 28))
IMPOSSIBLE: dict[str, Strategy] = {
    "model.enc_blocks": some(["28", "28d28,1", "28d4,7", "28d4,7d5", "28d1,28d4,7d7", "", ",28d4,7d7"])
    | elsewhere.flatmap(lambda r: some([f"{r},28d4,7x1,7d7,1x1", f"28d4,7d7,1x{r}000"])),
    "model.dec_blocks": some(["1", "1,7m1", "1,28m1,7", "7,28m7", "28", "28m7", "1,1m1,28m1", "1,7m1,7m7,28m7", ""])
    | elsewhere.flatmap(lambda r: some([f"1x1,7m1,{r}m1,28m7", f"1x1,7m{r},28m7"])),
    "model.custom_width_str": some(["7:1", "28:8,28:16", "1:65537"]) | elsewhere.map("{}:8".format),
    "model.image_size": elsewhere,
    "model.image_channels": st.just(3),
    "model.width": st.just(1),
    "model.bits": whole().filter(lambda bits: bits != 8),
    "data.dataset": some(["cifar10", "fashion_mnist"]) | words,
    "data.variant": some(["original", "newer"]),
}
impossible = told(IMPOSSIBLE)

# Files that are no configuration, and names of none.
bomb = "[&a [1], " + ", ".join(f"&{b} [{f'*{a}, ' * 9}]" for a, b in zip("abcdefghi", "bcdefghij", strict=True)) + "]"
SYNTAX = [
    "train: !!python/object/apply:os.system ['touch made']", "train: {lr: 1e-3}\ntrain: {seed: 1}", f"train: {bomb}",
    "train: {seed: 1, seed: 1}", "1: {lr: 1}", "null: {}", "train: {2026-01-01: 1}", "? [a]\n: 1", "? {a: 1}\n: 1",
    "base: wrong", "base: ./wrong", "base: ../here/wrong", "base: nowhere", "base: [cifar10]", "base:", 'base: "\\0"',
    "train:", "[" * 2000, "- " * 2000, "train: &a {lr: *a}", "train: {lr: &a [*a]}", "train: {lr: *unknown}", "[]", "0",
    f"train: {{lr: {bomb}}}", "train: {seed: !!bool maybe}", "train: {seed: !!int ''}", "train: {seed: !!timestamp x}",
    "train: {lr: !!float ''}", "train: {seed: 2026-13-45}", f"train: {{seed: {'9' * 5000}}}", "lr = 3", "\0", "\a",
    f"train: {{seed: 0x{'f' * 5000}}}", "--- {}\n--- {}", "\t- x", "%YAML 9.9\n---\n{}", "train: lr: 1", "<<: 3",
    "'unclosed", 'data: {dataset: "\\ud800"}',
]  # fmt: skip
trees = st.recursive(
    st.none() | st.booleans() | whole() | st.floats() | st.text(),
    lambda tree: st.lists(tree) | st.dictionaries(st.text() | some([*SECTIONS, "base"]), tree),
).map(lambda tree: json.dumps(tree).encode())
CUT = TINY.read_text().index("skip_threshold")  # which must be set
no_yaml = (
    some(SYNTAX).map(lambda text: in_file(text.encode()))
    | st.binary().map(lambda rest: in_file(b"\x80" + rest))
    | (trees | st.binary()).map(lambda content: in_file(content, "wrong.yaml"))
    | whole(0, CUT).map(lambda end: in_file(TINY.read_bytes()[:end], "wrong.yaml"))
)
NAMES = [",", "\0.yaml", "a\nb.yaml", "x" * 300, "x" * 5000 + ".yaml", "\udcff.yaml", "full/there.yaml", "..", "/"]
no_preset = (
    (some(PRESET_NAMES).flatmap(edited) | st.text() | some(NAMES))
    .filter(lambda name: name.strip() not in PRESET_NAMES)
    .flatmap(lambda name: some([name, f"{TINY},{name}", f"{name},{TINY}"]).map(lambda hps: Mistake([], {}, hps)))
)

# Command lines.
OPTIONS = ["help", "hps", "run_dir", "max_steps", "max_hours"]
JUNK = ["=", "a=b", "train.lr", "train", ".=", "train=1", ".lr=1", "train.=1", "data.lr=1", "-x", "-run_dir=x", "-1"]
NOTHING = [["--hps"], ["--run_dir"], ["--max_steps"], ["--run_dir", "--hps"], ["--", "--run_dir"], ["--hps", ""]]
unknown_option = some(OPTIONS).flatmap(edited).filter(lambda text: not any(name.startswith(text) for name in OPTIONS))
no_option = (
    (some(JUNK) | unknown_option.map("--{}".format) | st.text().filter(lambda text: text[:1] != "-")).map(lambda t: [t])
    | st.builds("--{}={}".format, some(["max_steps", "max_hours"]), words | whole(max_value=0)).map(lambda t: [t])
    | some([*NOTHING, ["--max_steps=1.5"], ["--max_hours=nan"], ["--hps=--"], ["--run_dir=--"]])
).map(lambda arguments: Mistake(arguments, {}))
PLACES = ["file", "file/x", "file/x/y", "full", ".", "..", "", "\0", "a\0b", "x" * 300, "x/" * 3000, "/dev/null/x"]
no_run_dir = (
    some(PLACES).map(lambda name: Mistake(["--run_dir", name], {}))
    | no_yaml.map(lambda wrong: Mistake(["--run_dir=run"], {"run/config.yaml": wrong.files["wrong.yaml"]}))
    | st.just(Mistake(["--run_dir=run", "model.zdim=3"], {"run/config.yaml": TINY.read_bytes()}))
)

no_data = (trees | st.binary() | st.just(b"[" * 100_000)).map(
    lambda content: Mistake(["data.dataset=a"], {"data/a/dataset.json": content})
)

several = st.builds(
    lambda one, junk: Mistake([junk, *one.arguments], one.files, one.hps),
    out_of_range | impossible | no_yaml | no_preset | no_option | no_run_dir,
    some(JUNK),
)
KINDS = [misspelled, wrong_type, out_of_range, malformed_blocks, impossible]
KINDS += [no_yaml, no_preset, no_option, no_run_dir, no_data, several]
mistakes = whole(0, len(KINDS) - 1).flatmap(KINDS.__getitem__)

# Right command lines of the scripts, and options that take neither words nor these numbers.
SCRIPTS = {
    "sample RUN": "columns num_images batch_size temperatures seed device weights hps",
    "encode RUN a.png": "batch_size layers resolution crop mode seed device weights hps",
    "decode RUN a.npz": "batch_size columns temperature pixels",
    "interpolate RUN a.png a.png": "steps layers temperature",
    "reconstruct RUN a.png": "columns split temperature background",
    "evaluate RUN": "batch_size importance_samples prior_layers binning split seed device",
    "benchmark data --hps=fashion": "seconds made_up device",
    "experiment table1-depth --gather": "scale seeds jobs",
    "figures RUN": "device",
    "prepare_data folder . --name=a --config=a.yaml": "size crop background seed held_out bits",
}
LINES = [f"{line} --{name}={{}}" for line, names in SCRIPTS.items() for name in names.split()]

np.savez(LATENTS := io.BytesIO(), latents=np.zeros((2, 100)))
IMAGE = iio.imwrite("<bytes>", np.zeros((28, 28), np.uint8), extension=".png")
THERE = {"a.png": IMAGE, "a.npz": LATENTS.getvalue(), "file": b"", "full/there.yaml/thesis.tex": b"precious"}


def check_refused(main: Callable[[], object], argv: list[str], files: dict[str, bytes]) -> None:
    """Runs a command in this process."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        here = Path(folder, "here")
        for name, content in {**THERE, **files}.items():
            (here / name).parent.mkdir(parents=True, exist_ok=True)
            (here / name).write_bytes(content)
        before = contents(here)
        patch.chdir(here)
        patch.setattr("sys.argv", argv)
        patch.setattr(train, "run", lambda *_: pytest.fail("a run was started"))
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as exit_info:
            main()
        assert contents(here) == before
    assert (exit_info.value.code, out.getvalue()) == (2, "")
    assert re.fullmatch(r"error: .+\n", err.getvalue())
    assert len(err.getvalue().splitlines()) == 1


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: b"" if path.is_dir() else path.read_bytes() for path in folder.rglob("*") if path.name != LOCK}


@pytest.mark.parametrize("examples", [150, pytest.param(1500, marks=pytest.mark.long)])
def test_train(examples: int) -> None:
    @given(mistakes)
    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    def check(mistake: Mistake) -> None:
        check_refused(train.main, ["train.py", "--hps", mistake.hps, *mistake.arguments], mistake.files)

    check()


@pytest.mark.parametrize("examples", [60, pytest.param(600, marks=pytest.mark.long)])
def test_scripts(examples: int, finished_run: Path) -> None:
    @given(some(LINES), words | some([-1, "nan"]))
    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    def check(line: str, value: Any) -> None:
        script, *arguments = [part.format(value) for part in line.replace("RUN", str(finished_run)).split()]
        path = str(ROOT / f"scripts/{script}.py")
        check_refused(partial(runpy.run_path, path, run_name="__main__"), [path, *arguments], {})

    check()
