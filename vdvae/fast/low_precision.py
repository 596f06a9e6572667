"""Weights in bf16 or fp16 that are cast once per update, and whose gradients are added up by few operations.

Autocast casts every weight anew in every micro-batch, and autograd casts every gradient back and adds it on its own.
In a deep and narrow model that is a third of all kernels, and none of them computes anything.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vdvae.fast.forwards import has_hooks
from vdvae.model.vdvae import VDVAE
from vdvae.runtime.flat import flat_like


class LowPrecisionWeights:
    """A model that is called with its convolutions' weights in a lower precision, under autocast to that type.

    The last layer, which computes in fp32, and what is no convolution keep their own weights. A model with hooks, which
    may be of weights, is called with all of its own.

    Args:
        model: the model.
        dtype: type of the weights and of their gradients.
        gradient: where gradients are added up; begins with those of `convolutions(model)`, laid out by `flat_like`.
    """

    def __init__(self, model: VDVAE, dtype: torch.dtype, gradient: Tensor) -> None:
        self.model = model
        self._own = convolutions(model)
        self.weights: dict[str, Tensor] = {
            name: nn.Parameter(own.detach().to(dtype), requires_grad=own.requires_grad)
            for name, own in self._own.items()
        }
        self._flat, self._places = flat_like(list(self.weights.values()))
        self._sum = gradient[: len(self._flat)]

    @property
    def tensors(self) -> list[Tensor]:
        """All that it has besides the model's own."""
        return [*self.weights.values(), self._flat]

    @torch.no_grad()
    def cast(self) -> None:
        """Takes the values of the model's own weights."""
        torch._foreach_copy_(list(self.weights.values()), list(self._own.values()))

    def __call__(self, *arguments: Any) -> Any:
        """The model's forward pass."""
        return self.model(*arguments) if has_hooks(self.model) else functional_call(self.model, self.weights, arguments)

    @torch.no_grad()
    def add_gradients(self) -> None:
        """Adds up the gradients of a backward pass, which end here."""
        found = [(place, w.grad) for place, w in zip(self._places, self.weights.values(), strict=True)]
        given = [(place, gradient) for place, gradient in found if gradient is not None]
        if len(given) < len(found):
            self._flat.zero_()
        if given:
            places, gradients = zip(*given, strict=True)
            torch._foreach_copy_(places, gradients)
            self._sum += self._flat
        for weight in self.weights.values():
            weight.grad = None


def convolutions(model: VDVAE) -> dict[str, nn.Parameter]:
    """The weights by name of all convolutions but the last layer's."""
    last = set(model.decoder.out_net.modules())
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    names = [name for name, module in model.named_modules() if isinstance(module, kinds) and module not in last]
    return {name: weight for name, weight in model.named_parameters() if name.rpartition(".")[0] in set(names)}
