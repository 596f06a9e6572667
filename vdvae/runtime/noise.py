"""Random generators, each a pure function of what it is for, so that no random state is ever stored."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """Keeps the streams of one seed apart."""

    TRAINING = 0
    """Training; its key is the place in the global batch, and the step."""
    EVALUATION = 1
    """Evaluation; its key is the batch's index."""
    PICTURES = 2


def generator(device: torch.device, seed: int, purpose: Purpose, *key: int) -> torch.Generator:
    """A generator on `device`, seeded from (seed, purpose, key)."""
    return torch.Generator(device).manual_seed(generator_seed(seed, purpose, *key))


def generator_seed(seed: int, purpose: Purpose, *key: int) -> int:
    """The seed of the generator that `generator` returns."""
    return int(np.random.SeedSequence((seed, int(purpose), *key)).generate_state(1, np.uint64)[0] >> 1)
