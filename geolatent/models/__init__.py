"""Generative models, their uncertainty and their checkpoints."""

from geolatent.models.checkpoint import load_model, load_weights, save_model
from geolatent.models.digits import digits_vae
from geolatent.models.rbf import RBFPrecision
from geolatent.models.vae import MLPVAE, VAE

__all__ = [
    "MLPVAE",
    "VAE",
    "RBFPrecision",
    "digits_vae",
    "load_model",
    "load_weights",
    "save_model",
]
