"""Very Deep VAEs (Child 2020): train, evaluate, sample, and work with the latents."""

from vdvae.model.config import ModelConfig
from vdvae.model.decoder import Latent
from vdvae.model.gaussian import DiagonalGaussian
from vdvae.model.likelihood import Mixture
from vdvae.model.vdvae import VDVAE, Pass, Terms
from vdvae.pretrained import load_pretrained
from vdvae.replay import Replay

__all__ = [
    "VDVAE",
    "DiagonalGaussian",
    "Latent",
    "Mixture",
    "ModelConfig",
    "Pass",
    "Replay",
    "Terms",
    "load_pretrained",
]
