"""Forward passes that compute what the model's own compute in fewer and cheaper passes over memory.

They replace the classes of the model's own modules; a subclass, a wrapper or a foreign block keeps its forward pass. A
fast block reads some weights directly. Where their module is a foreign one or has hooks, it calls that module instead,
as the plain block does. Weights and names stay the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from vdvae.model.gaussian import DiagonalGaussian, Latent, Source
from vdvae.model.latents import Pass
from vdvae.model.vdvae import VDVAE, Block, Conv, Decoder, Terms, TopDownBlock, channels_last, draw


class FastConv(Conv):
    """A convolution whose bias gets its gradient by a sum of its own, which on CPUs costs a fraction of oneDNN's."""

    def forward(self, x: Tensor) -> Tensor:
        """See `Conv.forward`."""
        if self.kernel_size == (1, 1) or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        y: Tensor = _Convolution.apply(x, self.weight, self.bias)
        return y


class _Convolution(torch.autograd.Function):
    """Its backward pass consists of operations that can be differentiated again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        wanted, padding = [ctx.needs_input_grad[0], True, False], [weight.shape[-1] // 2] * 2
        by_x, by_weight, _ = torch.ops.aten.convolution_backward(
            gradient, x, weight, None, [1, 1], padding, [1, 1], False, [0, 0], 1, wanted
        )
        return by_x, by_weight, _rows(gradient).sum(0)


class FastBlock(Block):
    """A block that adds its last product where the sum lies."""

    def forward(self, x: Tensor) -> Tensor:
        """See `Block.forward`."""
        hidden = self.inner(self.c1(_gelu(x)))
        if self.residual and _is_own(self.c4):
            return _add_products(x, self.c4.bias, (hidden, self.c4.weight))
        hidden = self.c4(hidden)
        return x + hidden if self.residual else hidden

    def inner(self, hidden: Tensor) -> Tensor:
        """What is between the first and the last convolution, `[B, middle_channels, r, r]` to the same."""
        hidden = self.c2(_gelu(hidden))
        hidden = self.c3(_gelu(hidden))
        return _gelu(hidden)


class Features(NamedTuple):
    """The encoder's state at a resolution, `[B, width, r, r]`, and its GELU, which all layers there share."""

    state: Tensor
    activated: Tensor


class FastTopDownBlock(TopDownBlock):
    """A top-down block without concatenation: prior and posterior share the GELU of what both read, and all that is
    added to the state is added where the sum lies.
    """

    prior: FastBlock
    enc: FastBlock

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        features: Tensor | Features | None,
        source: Source,
        noise: Tensor | None,
        temperature: float,
    ) -> tuple[Tensor, Latent]:
        """See `TopDownBlock.forward`."""
        if not (_is_own(self.prior, self.enc, self.z_proj) and _is_own(self.prior.c4, self.enc.c1)):
            state = features.state if isinstance(features, Features) else features
            return super().forward(x, condition, state, source, noise, temperature)
        if isinstance(features, Tensor):
            features = Features(features, _gelu(features))
        activated = _gelu(condition)
        hidden = self.prior.inner(self.prior.c1(activated))
        last = self.prior.c4
        for_prior, for_state = last.weight.split((2 * self.zdim, self.width))
        prior_bias, state_bias = last.bias.split((2 * self.zdim, self.width))
        p, q = _gaussian(_product(hidden, for_prior, prior_bias)), None
        if features is not None:
            by_condition, by_features = self.enc.c1.weight.split(self.width, 1)
            both = _product(activated, by_condition, _rows(_product(features.activated, by_features, self.enc.c1.bias)))
            q = _gaussian(self.enc.c4(self.enc.inner(both)))
        z = draw(source, p, q, noise, temperature)
        bias = state_bias + self.z_proj.bias
        return self.resnet(_add_products(x, bias, (hidden, for_state), (z, self.z_proj.weight))), Latent(z, p, q)


class FastDecoder(Decoder):
    """A decoder that takes the GELU of the encoder's states once, not once for every layer that reads them."""

    def forward(
        self,
        batch: int,
        features: dict[int, Tensor] | None,
        sources: Sequence[Source],
        temperatures: Sequence[float],
        generator: torch.Generator | None,
    ) -> tuple[Tensor, list[Latent]]:
        """See `Decoder.forward`."""
        given: dict[int, Any] | None = features
        if features is not None and all(type(b) is FastTopDownBlock and not _is_hooked(b) for b in self.dec_blocks):
            given = {r: Features(state, _gelu(state)) for r, state in features.items()}
        return super().forward(batch, given, sources, temperatures, generator)


class FastVDVAE(VDVAE):
    """A model whose likelihood terms are computed with the channels last, the layout of the latents."""

    def terms(self, images: Tensor, result: Pass) -> Terms:
        """See `VDVAE.terms`."""
        latents = [
            Latent(z.permute(0, 2, 3, 1), _last(p), None if q is None else _last(q)) for z, p, q in result.latents
        ]
        return super().terms(images, result._replace(latents=latents))


def _last(gaussian: DiagonalGaussian) -> DiagonalGaussian:
    return DiagonalGaussian(*(tensor.permute(0, 2, 3, 1) for tensor in gaussian))


def _gelu(x: Tensor) -> Tensor:
    """GELU of a view that PyTorch takes for contiguous, which has the faster kernel on CPUs."""
    return F.gelu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _rows(x: Tensor) -> Tensor:
    """`[B, C, r, r]` as `[B*r*r, C]`."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _gaussian(features: Tensor) -> DiagonalGaussian:
    """The standard deviations side by side, because their exponential is taken twice as fast then."""
    mean, log_std = DiagonalGaussian.from_features(features)
    return DiagonalGaussian(mean, channels_last(log_std))


def _product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The 1x1 convolution of `x` `[B, C, r, r]` with weights `[K, C, 1, 1]`; bias `[K]`, or `[B*r*r, K]`."""
    b, _, h, w = x.shape
    return torch.addmm(bias, _rows(x), weight.flatten(1).t()).view(b, h, w, -1).permute(0, 3, 1, 2)


def _add_products(state: Tensor, bias: Tensor, *products: tuple[Tensor, Tensor]) -> Tensor:
    """state `[B, K, r, r]` + bias `[K]` + the 1x1 convolutions of any `x` `[B, C, r, r]` with weights `[K, C, 1, 1]`.

    A product that is added where the sum lies saves writing it and reading it again.
    """
    b, _, h, w = state.shape
    total = _rows(state) + bias
    for x, weight in products:
        factors = _rows(x), weight.flatten(1).t()
        if torch.is_autocast_enabled(x.device.type):
            total = total + factors[0] @ factors[1]  # the product has fewer bits than the sum
        else:
            total.addmm_(*factors)
    return total.view(b, h, w, -1).permute(0, 3, 1, 2)


def _is_own(*modules: nn.Module) -> bool:
    """Whether calling these would do nothing but their forward passes here, so that one may go past them."""
    return not _has_any_global_hook() and all(
        type(m) in (FastConv, FastBlock) and not _is_hooked(m) and "forward" not in vars(m) for m in modules
    )


def _is_hooked(module: nn.Module) -> bool:
    """Whether it has hooks of its own."""
    own = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(own)


FAST: dict[type[nn.Module], type[nn.Module]] = {
    Conv: FastConv,
    Block: FastBlock,
    TopDownBlock: FastTopDownBlock,
    Decoder: FastDecoder,
    VDVAE: FastVDVAE,
}


def swap_forwards(model: VDVAE) -> None:
    """Gives modules their fast classes."""
    for module in model.modules():
        module.__class__ = FAST.get(type(module), type(module))


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
