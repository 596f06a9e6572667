"""The bottom-up network: one activation per resolution for the posteriors to read (paper Figure 3, left)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from operator import itemgetter

from torch import Tensor, nn

from vdvae.model.blocks import ResidualBlock, conv, initial_scale, match_channels, pool, run
from vdvae.model.config import ModelConfig


class Encoder(nn.Module):
    """Residual blocks with average pooling between resolutions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.specs = config.encoder_specs
        self.width_at = {spec.output_resolution: config.width_at(spec.output_resolution) for spec in self.specs}
        self.in_conv = conv(config.image_channels, config.width_at(config.image_size), kernel_size=3)
        scale = initial_scale(config.residual_scaling, len(self.specs))
        self.enc_blocks = nn.ModuleList()
        for spec in self.specs:
            width, middle = config.width_at(spec.resolution), config.bottleneck_width(spec.resolution)
            self.enc_blocks.append(ResidualBlock(width, middle, width, spec.resolution, last_scale=scale))

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        """Maps scaled images `[B, C, H, W]` to the last state of each resolution r, `[B, r, r, width]`."""
        x = self.in_conv(x.permute(0, 2, 3, 1))
        activations = {x.shape[2]: x}
        for spec, alike in itertools.groupby(zip(self.specs, self.enc_blocks, strict=True), key=itemgetter(0)):
            blocks = [block for _, block in alike if isinstance(block, ResidualBlock)]
            x = run(blocks[0].recompute, _through, blocks, x)
            if spec.pool > 1:
                x = match_channels(pool(x, spec.pool), self.width_at[spec.output_resolution])
            activations[spec.output_resolution] = x
        return activations


def _through(blocks: Sequence[ResidualBlock], x: Tensor) -> Tensor:
    """If the blocks are to be recomputed, then together, so that only the first one's input is kept, and each again."""
    for block in blocks:
        x = run(block.recompute and len(blocks) > 1, block, x)
    return x
