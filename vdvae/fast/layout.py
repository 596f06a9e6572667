"""How weights lie in memory."""

from __future__ import annotations

import torch
from torch import nn


def lay_out_channels_last(model: nn.Module) -> None:
    """Lays the weights of convolutions out as states are, channels last: cuDNN and Tensor Cores take them so, and would
    turn others before every use. Values and shapes stay the same.
    """
    for weight in model.parameters():
        if weight.dim() == 4 and weight.shape[0] > 1 and weight.shape[2] > 1:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
