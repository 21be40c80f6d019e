"""Generative models, their uncertainty, maps on their outputs and their checkpoints.

The room stands apart: its networks know no metric, and no metric knows them. It imports the checks
and the files at the top of the package.
"""

from geolatent.models.bigan import BiGAN
from geolatent.models.checkpoint import (
    build_model,
    load_model,
    load_weights,
    save_model,
)
from geolatent.models.conv import ConvVAE
from geolatent.models.dcgan import DCGAN
from geolatent.models.digits import digits_vae
from geolatent.models.flows import NICE, Flow
from geolatent.models.gan import GAN
from geolatent.models.glow import Glow
from geolatent.models.iaf import IAFVAE
from geolatent.models.rbf import RBFPrecision
from geolatent.models.recurrent import Forecaster, RecurrentVAE
from geolatent.models.vae import MLPVAE, VAE

__all__ = [
    "DCGAN",
    "GAN",
    "IAFVAE",
    "MLPVAE",
    "NICE",
    "VAE",
    "BiGAN",
    "ConvVAE",
    "Flow",
    "Forecaster",
    "Glow",
    "RBFPrecision",
    "RecurrentVAE",
    "build_model",
    "digits_vae",
    "load_model",
    "load_weights",
    "save_model",
]
