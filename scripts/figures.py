"""Draws the figures of a run, also while it is training: learning curves, and Figures 4, 5 and 6 of the paper.

python scripts/figures.py runs/fashion                        runs/fashion/figures/*.png
python scripts/figures.py runs/fashion --out elsewhere
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from vdvae.command_line import add_device, check_folder
from vdvae.config import load_config
from vdvae.data.loader import first_images
from vdvae.errors import CommandLine, UserError, exit_on_interrupt, exit_on_user_error
from vdvae.evaluation import figures
from vdvae.evaluation.active_units import latent_variables
from vdvae.evaluation.grids import reconstruction_grid, save_png
from vdvae.released.pretrained import find_pretrained
from vdvae.run.directory import RunDirectory
from vdvae.run.log import read_log
from vdvae.runtime.device import pick_device
from vdvae.runtime.precision import set_matmul_precision


@exit_on_interrupt()
def main() -> None:
    """Writes what there is something to draw for, prints the paths, and on stderr what is left out."""
    parser = CommandLine(description="Draws the figures of a run, as PNG files and for TensorBoard; needs matplotlib.")
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder to write; default: RUN/figures")
    add_device(parser)
    with exit_on_user_error():
        args = parser.parse_args()
        figures.check_matplotlib()
        device = pick_device(args.device)
        directory = RunDirectory(args.run)
        lines = read_log(directory)
        model = load_config(str(directory.config_file), []).model
        name, latents = args.run.resolve().name, latent_variables(model)
        resolutions = [spec.resolution for spec in model.decoder_specs]
        drawings = {
            "learning-curves": lambda: figures.learning_curves(lines),
            "gradient-norms": lambda: figures.gradient_norms({name: lines}),
            "cumulative-rate": lambda: figures.cumulative_rate({name: last_layer_rate(lines)}, resolutions),
            "rate-and-active-units": lambda: figures.rate_and_active_units(lines, latents),
            "reconstructions": lambda: figures.reconstructions(reconstructed(args.run, device), latents),
        }
        out, step = args.out or args.run / "figures", lines[-1]["step"]
        check_folder(out)
        out.mkdir(parents=True, exist_ok=True)
        # In the run's own folder, TensorBoard would go on to this newer file and read no more of a run that is
        # training. Beside the PNG files it shows the pictures as a run "figures".
        with SummaryWriter(str(out), purge_step=step) as board:
            for title, draw in drawings.items():
                try:
                    picture = figures.pixels(draw())
                except UserError as reason:
                    print(f"no {title}: {reason}", file=sys.stderr)
                    continue
                save_png(picture, out / f"{title}.png")
                board.add_image(f"figures/{title}", picture, step, dataformats="HWC")
                print(out / f"{title}.png")


def reconstructed(run: Path, device: torch.device) -> NDArray[np.uint8]:
    """The first validation images and what the newest checkpoint makes of them (paper Figure 4), uint8 [H, W, C].

    Raises:
        UserError: there is no checkpoint, or no data set.
    """
    set_matmul_precision("fp32")
    found = find_pretrained(run)
    images = first_images(found.splits().valid, found.config().train.grid_columns, device)
    return reconstruction_grid(found.model(device), images)


def last_layer_rate(lines: figures.Lines) -> list[float]:
    """The newest rate of each layer, in bits/dim, [L]: the mean over the updates since the report before.

    Raises:
        UserError: none is logged.
    """
    known: list[Any] = [line["layer_rate"] for line in lines if line.get("layer_rate")]
    if not known:
        raise UserError("no rates per layer are logged yet")
    return known[-1]


if __name__ == "__main__":
    main()
