"""Very Deep VAEs (Child 2020): train, evaluate, sample, and work with the latents."""

from vdvae.model.config import ModelConfig
from vdvae.model.decoder import Latent
from vdvae.model.gaussian import DiagonalGaussian
from vdvae.model.vdvae import VDVAE, Terms
from vdvae.pretrained import load_pretrained

__all__ = ["VDVAE", "DiagonalGaussian", "Latent", "ModelConfig", "Terms", "load_pretrained"]
