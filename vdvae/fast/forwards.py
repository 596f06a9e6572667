"""Forward passes that compute what the model's own compute, by the functions of `arithmetic`.

They replace the classes of the model's own modules; a subclass, a wrapper or a foreign block keeps its forward pass.
A fast block reads the weights inside it directly. Where a module inside it is a foreign one or has hooks, it does what
the plain block does, which calls them all. Weights and names stay the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._pytree import tree_map_only

from vdvae.fast import arithmetic, merged
from vdvae.fast.arithmetic import Affine, Bottleneck, Seen, TopDown, Way
from vdvae.fast.merged import Merged, RatedLatent
from vdvae.model.gaussian import Latent, Source
from vdvae.model.latents import Pass
from vdvae.model.vdvae import VDVAE, Block, Conv, Decoder, Encoder, Terms, TopDownBlock, channels_last, match_channels


class State(NamedTuple):
    """A state with its GELU, both `[B, width, r, r]`, as compiled blocks take it and hand it on."""

    x: Tensor
    activated: Tensor


class FastConv(Conv):
    """`arithmetic.convolution` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        """See `Conv.forward`."""
        return arithmetic.convolution(x, _affine(self))


class FastBlock(Block):
    """`arithmetic.residual_block` as a module."""

    way = Way()
    compute: Callable[..., Any] = staticmethod(arithmetic.residual_block)

    def forward(self, x: Any) -> Any:
        """See `Block.forward`; takes and returns a `State` where the encoder's blocks are compiled."""
        if not _is_own(self):
            return super().forward(_tensor(x))
        y = self.compute(_bottleneck(self), _tensor(x), _activated(x), self.residual, self.way)
        return y if isinstance(x, State) else _tensor(y)


class FastEncoder(Encoder):
    """An encoder whose blocks, where they are compiled, hand on states with their GELU."""

    is_compiled = False

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        """See `Encoder.forward`."""
        state: Any = channels_last(self.in_conv(x))
        features = {state.shape[2]: state}
        for spec, width, block in zip(self.specs, self.widths, self.enc_blocks, strict=True):
            if self.is_compiled and _is_own(block):
                state = state if isinstance(state, State) else State(state, arithmetic.gelu(state))
            else:
                state = _tensor(state)
            state = block(state)
            if spec.pool > 1:
                state = match_channels(F.avg_pool2d(_tensor(state), spec.pool), width)
            features[spec.output_resolution] = _tensor(state)
        return features


class FastTopDownBlock(TopDownBlock):
    """`arithmetic.top_down_block` as a module, or `merged.top_down_block` where weights were merged for it."""

    way = Way()
    compute: Callable[..., Any] = staticmethod(arithmetic.top_down_block)
    compute_merged: Callable[..., Any] = staticmethod(merged.top_down_block)

    def forward(
        self, x: Any, condition: Any, features: Any, source: Source, noise: Tensor | None, temperature: float
    ) -> tuple[Any, Latent]:
        """See `TopDownBlock.forward`; of a `State`, it is what `compute_merged` returns."""
        if not (isinstance(features, (Seen, Merged)) or _is_own(self)):  # the decoder gives those to its own alone
            return super().forward(_tensor(x), _tensor(condition), features, source, noise, temperature)
        weights, states = _top_down(self), (_tensor(x), _tensor(condition), _activated(condition))
        how = self.resnet.residual, self.way
        if isinstance(features, Merged):
            return self.compute_merged(weights, features, *states, noise, temperature, *how)[:2]
        if isinstance(features, Tensor):
            features = next(arithmetic.see([weights], arithmetic.gelu(features)))
        return self.compute(weights, *states, features, source, noise, temperature, *how)


class FastDecoder(Decoder):
    """A decoder that looks at the encoder's state of each resolution once, not once for every layer that reads it.

    Where all that they do is in bf16 or fp16, or compiled, layers have merged weights.
    """

    is_compiled = False

    def forward(
        self,
        batch: int,
        features: dict[int, Tensor] | None,
        sources: Sequence[Source],
        temperatures: Sequence[float],
        generator: torch.Generator | None,
    ) -> tuple[Tensor, list[Latent]]:
        """See `Decoder.forward`."""
        by_layer: Any = None if features is None else self._see(features, sources)
        return super().forward(batch, by_layer, sources, temperatures, generator)

    def _see(self, features: dict[int, Tensor], sources: Sequence[Source]) -> dict[int, Tensor | Seen | Merged]:
        """What each layer whose z is not from its prior has of the encoder's states."""
        by_layer: dict[int, Tensor | Seen | Merged] = {}
        reading: defaultdict[tuple[int, bool], list[int]] = defaultdict(list)
        for i, source in enumerate(sources):
            if source != "prior":
                r = self.specs[i].resolution
                by_layer[i] = features[r]
                if _is_own(self.dec_blocks[i]):
                    merges = source == "posterior" and (self.is_compiled or arithmetic.is_lowered(features[r]))
                    reading[r, merges].append(i)
        for (r, merges), layers in reading.items():
            activated = arithmetic.gelu(features[r])
            weights = [_top_down(self.dec_blocks[i]) for i in layers]
            see = merged.merge if merges else arithmetic.see
            by_layer |= zip(layers, see(weights, activated), strict=True)
        return by_layer

    def _seen(self, layer: int, features: dict[int, Any]) -> Any:
        return features[layer]

    def _enter(self, layer: int, states: dict[int, Any], batch: int) -> Any:
        r, mixin = self.specs[layer]
        if isinstance(states[r], State) and mixin is None and _is_own(self.dec_blocks[layer]):
            return states[r]
        return super()._enter(layer, {r: _tensor(state) for r, state in states.items()}, batch)

    def _leave(self, state: Any) -> Tensor:
        return super()._leave(_tensor(state))


class FastVDVAE(VDVAE):
    """A model whose likelihood terms are computed with the channels last, the layout of the latents."""

    def terms(self, images: Tensor, result: Pass) -> Terms:
        """See `VDVAE.terms`."""
        merged.sum_rates([latent for latent in result.latents if isinstance(latent, RatedLatent)])
        latents = [_last(latent) if type(latent) is Latent else latent for latent in result.latents]
        return super().terms(images, result._replace(latents=latents))


def _last(latent: Latent) -> Latent:
    return tree_map_only(Tensor, lambda tensor: tensor.permute(0, 2, 3, 1), latent)


def _tensor(state: Any) -> Tensor:
    return state.x if isinstance(state, State) else state


def _activated(state: Any) -> Tensor | None:
    return state.activated if isinstance(state, State) else None


def _affine(conv: nn.Module) -> Affine:
    return Affine(conv.weight, conv.bias)  # type: ignore[arg-type]


def _bottleneck(block: Block) -> Bottleneck:
    return Bottleneck(*map(_affine, (block.c1, block.c2, block.c3, block.c4)))


def _top_down(block: Any) -> TopDown:
    prior, enc, resnet = map(_bottleneck, (block.prior, block.enc, block.resnet))
    return TopDown(prior, enc, _affine(block.z_proj), resnet)


def _is_own(module: nn.Module) -> bool:
    """Whether calling it would do nothing but the forward passes here, all the way down, so that one may go past it."""
    if _is_hooked(module) or "forward" in vars(module) or _has_any_global_hook():
        return False
    if isinstance(module, FastTopDownBlock) and type(module) is FastTopDownBlock:
        return all(map(_is_own, (module.prior, module.enc, module.z_proj, module.resnet)))
    if isinstance(module, FastBlock) and type(module) is FastBlock:
        return all(map(_is_own, (module.c1, module.c2, module.c3, module.c4)))
    return type(module) is FastConv


def _is_hooked(module: nn.Module) -> bool:
    """Whether it has hooks of its own."""
    own = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(own)


FAST: dict[type[nn.Module], type[nn.Module]] = {
    Conv: FastConv,
    Block: FastBlock,
    Encoder: FastEncoder,
    TopDownBlock: FastTopDownBlock,
    Decoder: FastDecoder,
    VDVAE: FastVDVAE,
}


def swap_forwards(model: VDVAE) -> None:
    """Gives modules their fast classes."""
    for module in model.modules():
        module.__class__ = FAST.get(type(module), type(module))


def keep_states_in(model: VDVAE, dtype: torch.dtype) -> None:
    """Has the blocks of a prepared model keep their states in this type under autocast, instead of fp32."""
    for module in model.modules():
        if isinstance(module, (FastBlock, FastTopDownBlock)):
            module.way = module.way._replace(stream=dtype)


def has_hooks(model: nn.Module) -> bool:
    """Whether PyTorch calls any, of modules or of weights, while the model runs forward or backward."""
    if _has_any_global_hook():
        return True
    for module in model.modules():
        if _is_hooked(module):
            return True
        for weight in module._parameters.values():
            if weight is not None and (weight._backward_hooks or weight._post_accumulate_grad_hooks):
                return True
    return False
