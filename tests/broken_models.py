"""Models for tests of what commands say of them: their decoders are not finite."""

import torch
from torch import nn

from geolatent import models


class Broken(nn.Module):
    """The embedded digits model whose decoder gives NaN everywhere, or where z_1 is above 0.

    In one dimension the second coordinate is 0.
    """

    def __init__(self, latent_dim: int = 2, where: str = "everywhere") -> None:
        super().__init__()
        self.inner = models.digits_vae()
        self.latent_dim = latent_dim
        self.image_shape = self.inner.image_shape
        self.where = where

    def encode(self, images):
        mean, log_variance = self.inner.encode(images)
        return mean[:, : self.latent_dim], log_variance[:, : self.latent_dim]

    def decode(self, z):
        whole = torch.nn.functional.pad(z, (0, 2 - self.latent_dim))
        broken = torch.ones_like(z[:, 0], dtype=torch.bool)
        if self.where == "half":
            broken = z[:, 0] > 0
        mean, std = self.inner.decode(whole)
        factor = torch.where(broken, torch.nan, 1.0).reshape(-1, *[1] * (mean.ndim - 1))
        return mean * factor, std * factor
