"""The model and its training step in the plainest form, as the released code works: channels first, one operation per
arrow of the paper's Figure 3, one tensor at a time. What the fast paths are held against, in figures and in time.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from vdvae.distributed import World
from vdvae.model.blocks import Bottleneck, ConvUnpool
from vdvae.model.decoder import DecoderBlock
from vdvae.model.likelihood import Mixture
from vdvae.model.vdvae import VDVAE, Terms
from vdvae.noise import Purpose, generator
from vdvae.training.config import TrainConfig
from vdvae.training.optimizer import learning_rate


class BaselineUpdate:
    """The training step of the released code: eager fp32; the host waits for the norm to decide on the update; the
    optimiser and the average take one tensor after another.

    Args:
        model: on its device; updated in place, and its weights laid out with channels first.
        config: the `train` section; `precision`, `compile` and `recompute_from` are not looked at.
        world: one process.
    """

    def __init__(self, model: VDVAE, config: TrainConfig, world: World) -> None:
        assert world.size == 1
        put_channels_first(model)
        self.model = model
        self.config = config
        self.world = world
        self.average = copy.deepcopy(model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=1e-8,
            weight_decay=config.weight_decay,
            foreach=False,
        )
        self.nats_per_dim = math.nan
        """of the last batch"""

    def __call__(self, images: Tensor, step: int) -> None:
        """Update number `step`, on uint8 [B, C, H, W]."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step)
        pieces = images.tensor_split(-(-len(images) // (self.config.micro_batch or len(images))))
        losses = []
        for i, piece in enumerate(pieces):
            noise = generator(self.world.device, self.config.seed, Purpose.TRAINING, i * len(piece), step)
            loss = terms(self.model, piece, noise).nats_per_dim.sum() / len(images)
            loss.backward()
            losses.append(loss.item())
        self.nats_per_dim = sum(losses)
        norm = clip_grad_norm_(self.model.parameters(), self.config.grad_clip, foreach=False).item()
        threshold = math.inf if self.config.skip_threshold == "auto" else self.config.skip_threshold
        if math.isfinite(self.nats_per_dim) and norm < threshold:
            self.optimizer.step()
            for new, averaged in zip(self.model.parameters(), self.average.parameters(), strict=True):
                averaged.mul_(self.config.ema_decay).add_(new.detach() * (1 - self.config.ema_decay))
        self.optimizer.zero_grad()


def put_channels_first(model: VDVAE) -> None:
    """Lays a model's weights out as the released code has them."""
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()


def terms(model: VDVAE, images: Tensor, noise: torch.Generator | None = None) -> Terms:
    """What `VDVAE.forward` returns."""
    activations = _bottom_up(model, (images.float() + model.config.input_shift) * model.config.input_scale)
    rates = []
    states = _first_states(model, len(images))
    for block, state, read in _layers(model, states, len(images)):
        q = _bottleneck(block.enc, torch.cat([read, activations[block.spec.resolution]], 1))
        p = _bottleneck(block.prior, read)
        z_mean, z_log_std = q.chunk(2, 1)
        p_mean, p_log_std, residual = p.split((block.zdim, block.zdim, block.width), 1)
        eps = torch.randn(z_mean.shape, generator=noise, device=z_mean.device)
        z = z_mean + torch.exp(z_log_std) * eps
        kl = (
            p_log_std
            - z_log_std
            - 0.5
            + 0.5 * (torch.exp(z_log_std) ** 2 + (z_mean - p_mean) ** 2) / torch.exp(p_log_std) ** 2
        )
        rates.append(kl.sum((1, 2, 3)))
        states[block.spec.resolution] = _through(block, state + residual, z)
    layer_rate = torch.stack(rates, 1) / model.config.dims
    distortion = -_mixture(model, states).released_log_prob(images) / model.config.dims
    return Terms(distortion, layer_rate.sum(1), layer_rate)


@torch.no_grad()
def sample(model: VDVAE, num_images: int, temperature: float = 1.0, noise: torch.Generator | None = None) -> Tensor:
    """What `VDVAE.sample` returns."""
    states = _first_states(model, num_images)
    for block, state, read in _layers(model, states, num_images):
        features = _bottleneck(block.prior, read)
        mean, log_std, residual = features.split((block.zdim, block.zdim, block.width), 1)
        eps = torch.randn(mean.shape, generator=noise, device=mean.device)
        states[block.spec.resolution] = _through(block, state + residual, mean + temperature * log_std.exp() * eps)
    return _mixture(model, states).sample(noise)


def _bottom_up(model: VDVAE, x: Tensor) -> dict[int, Tensor]:
    encoder = model.encoder
    x = F.conv2d(x.contiguous(), encoder.in_conv.weight, encoder.in_conv.bias, padding=1)
    activations = {x.shape[2]: x}
    for spec, block in zip(encoder.specs, encoder.enc_blocks, strict=True):
        assert isinstance(block, Bottleneck)
        x = x + _bottleneck(block, x)
        if spec.pool > 1:
            x = F.avg_pool2d(x, spec.pool, spec.pool)
            width = encoder.width_at[spec.output_resolution]
            x = x[:, :width] if x.shape[1] >= width else F.pad(x, (0, 0, 0, 0, 0, width - x.shape[1]))
        activations[spec.output_resolution] = x
    return activations


def _bottleneck(block: Bottleneck, x: Tensor) -> Tensor:
    for conv in (block.c1, block.c2, block.c3, block.c4):
        x = F.conv2d(F.gelu(x), conv.weight, conv.bias, padding=conv.weight.shape[-1] // 2)
    return x


def _layers(model: VDVAE, states: dict[int, Tensor], batch: int) -> Iterator[tuple[DecoderBlock, Tensor, Tensor]]:
    """Each block, the state at its door, and that which its prior and posterior read: the group's, at its start. The
    caller puts the block's result into `states`.
    """
    for i, block in enumerate(model.decoder.dec_blocks):
        assert isinstance(block, DecoderBlock)
        state = _next_state(block, states, batch)
        if i % model.config.stochastic_group == 0:
            at_start, read = dict(states), state
        else:
            read = _next_state(block, at_start, batch)
        at_start[block.spec.resolution] = read
        yield block, state, read


def _first_states(model: VDVAE, batch: int) -> dict[int, Tensor]:
    return {bias.shape[2]: bias.repeat(batch, 1, 1, 1) for bias in model.decoder.bias_xs}


def _next_state(block: DecoderBlock, states: dict[int, Tensor], batch: int) -> Tensor:
    resolution, mixin = block.spec
    x = states.get(resolution)
    if x is None:
        x = next(iter(states.values())).new_zeros(batch, block.width, resolution, resolution)
    if mixin is not None and isinstance(block.unpool, ConvUnpool):
        x = x + F.conv_transpose2d(states[mixin], block.unpool.weight, block.unpool.bias, stride=resolution // mixin)
    elif mixin is not None:
        below = states[mixin][:, : block.width]
        below = F.pad(below, (0, 0, 0, 0, 0, block.width - below.shape[1]))
        x = x + F.interpolate(below, scale_factor=resolution // mixin)
    return x


def _through(block: DecoderBlock, x: Tensor, z: Tensor) -> Tensor:
    x = x + F.conv2d(z, block.z_proj.weight, block.z_proj.bias)
    return _bottleneck(block.resnet, x) + (x if block.resnet.connected else 0)


def _mixture(model: VDVAE, states: dict[int, Tensor]) -> Mixture:
    decoder, conv = model.decoder, model.decoder.out_net.out_conv
    x = states[model.config.image_size] * decoder.gain + decoder.bias
    parameters = F.conv2d(x, conv.weight, conv.bias)
    return Mixture.from_parameters(parameters, model.config.image_channels, model.binning)
