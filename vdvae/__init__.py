"""Very Deep VAEs (Child 2020): train, evaluate, sample, and work with the latents."""

from vdvae.model.config import ModelConfig
from vdvae.model.gaussian import DiagonalGaussian, Latent
from vdvae.model.latents import Pass
from vdvae.model.likelihood import Mixture
from vdvae.model.vdvae import VDVAE, Terms
from vdvae.released.pretrained import load_pretrained
from vdvae.version import __version__

__all__ = [
    "VDVAE",
    "DiagonalGaussian",
    "Latent",
    "Mixture",
    "ModelConfig",
    "Pass",
    "Terms",
    "__version__",
    "load_pretrained",
]
