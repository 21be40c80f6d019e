"""A variational autoencoder whose posterior is bent by an inverse autoregressive flow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from geolatent.checks import check_batch, check_integer, check_sizes
from geolatent.models.conv import (
    check_convolutions,
    convolutional_decoder,
    convolutional_encoder,
)
from geolatent.models.flows import NEEDS_ZUKO
from geolatent.models.vae import VAE, log_normal
from geolatent.requirements import import_extra


class IAFVAE(VAE):
    r"""Convolutional variational autoencoder with an inverse autoregressive flow as posterior.

    .. math::

        z_0 = m(x) + s(x) \epsilon, \qquad z_t = T_t(z_{t-1}; h(x)), \qquad
        \log q(z|x) = \log q(z_0|x) - \sum_t \log\left|\det \frac{dz_t}{dz_{t-1}}\right|.

    Each step T scales and shifts z_i by functions of z_1 ... z_{i-1} and of the context h, so that
    its determinant is a product and all numbers are made at once; the order is reversed from step
    to step. The steps begin as the identity, and are zuko's (extra ``flows``). Encoder and decoder
    are those of `ConvVAE`, of which this is the model with ``steps`` steps more.

    Parameters
    ----------
    latent_dim, channels, hidden, image_shape, activation, n_centers
        As in `ConvVAE`.
    steps
        Steps of the flow.
    context
        Numbers h that the encoder gives to every step.
    flow_hidden
        Widths of the hidden layers of each step's masked network.

    References
    ----------
    D. P. Kingma, T. Salimans, R. Jozefowicz, X. Chen, I. Sutskever, M. Welling, "Improving
    Variational Inference with Inverse Autoregressive Flow", NIPS 2016, arXiv:1606.04934.

    Examples
    --------
    >>> model = IAFVAE(latent_dim=2, channels=(4, 8), hidden=16, flow_hidden=(8,))
    >>> mean, std = model.encode(torch.zeros(5, 1, 28, 28))
    >>> mean.shape, std.shape
    (torch.Size([5, 2]), torch.Size([5, 2]))
    """

    flow: Any  # a ModuleList of steps

    def __init__(
        self,
        latent_dim: int = 2,
        channels: Sequence[int] = (32, 64),
        hidden: int = 256,
        image_shape: Sequence[int] = (1, 28, 28),
        activation: str = "elu",
        steps: int = 4,
        context: int = 16,
        flow_hidden: Sequence[int] = (64, 64),
        n_centers: int = 0,
    ) -> None:
        check_integer("latent_dim", latent_dim)
        check_integer("steps", steps)
        check_integer("context", context)
        check_sizes("flow_hidden", flow_hidden)
        check_convolutions(image_shape, channels, activation, check_integer("hidden", hidden))
        flows = import_extra("zuko.flows", NEEDS_ZUKO)
        outputs = 2 * latent_dim + context
        super().__init__(
            convolutional_encoder(image_shape, channels, hidden, outputs, activation),
            convolutional_decoder(latent_dim, hidden, channels, image_shape, activation),
            latent_dim,
            image_shape,
            {
                "latent_dim": latent_dim,
                "channels": list(channels),
                "hidden": hidden,
                "image_shape": list(image_shape),
                "activation": activation,
                "steps": steps,
                "context": context,
                "flow_hidden": list(flow_hidden),
            },
            n_centers,
        )
        order = torch.arange(latent_dim)
        self.flow = nn.ModuleList(
            flows.MaskedAutoregressiveTransform(
                latent_dim,
                context,
                order=order if step % 2 == 0 else order.flip(0),
                hidden_features=tuple(flow_hidden),
                activation=nn.ELU,
            )
            for step in range(steps)
        )
        with torch.no_grad():
            for step in self.flow:
                step.hyper[-1].weight.zero_()
                step.hyper[-1].bias.zero_()
            # as in `ConvVAE`
            self.log_std.fill_(-1.0)

    def _base(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and logarithm of the standard deviation of q(z_0|x), and the context."""
        outputs = self.encoder(images)
        mean, log_std = outputs[:, : 2 * self.latent_dim].chunk(2, dim=-1)
        return mean, log_std, outputs[:, 2 * self.latent_dim :]

    def _bend(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return the steps' output, (..., n, d), and the logarithms of their determinants."""
        log_det = z.new_zeros(z.shape[:-1])
        for step in self.flow:
            z, change = step(context).call_and_ladj(z)
            log_det = log_det + change
        return z, log_det

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of q(z|x), (n, *image_shape) -> (n, d) each.

        By the unscented transform: those of the images of the 2 d points m +- sqrt(d) s_i e_i,
        exact for a flow that is affine.

        References
        ----------
        S. Julier, J. Uhlmann, "New extension of the Kalman filter to nonlinear systems", 1997.
        """
        check_batch("images", images, self.image_shape)
        mean, log_std, context = self._base(images)
        arms = math.sqrt(self.latent_dim) * torch.diag_embed(log_std.exp()).movedim(1, 0)
        points, _ = self._bend(torch.cat([mean + arms, mean - arms]), context)
        centre = points.mean(0)
        spread = points - centre
        return centre, (spread * spread).mean(0).sqrt()

    def draw_codes(
        self, images: Tensor, n: int = 1, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw codes from q(z|x), (n, images, d), with log q(z|x), (n, images), in nats."""
        check_batch("images", images, self.image_shape)
        mean, log_std, context = self._base(images)
        noise = torch.randn(
            n, *mean.shape, generator=generator, device=mean.device, dtype=mean.dtype
        )
        codes, log_det = self._bend(mean + log_std.exp() * noise, context)
        return codes, log_normal(noise) - log_std.sum(-1) - log_det

    def elbo_terms(
        self, images: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the two terms of the evidence lower bound, (n,) each, in nats.

        Both at one code z drawn from q(z|x): log p(x|z), and log q(z|x) - log p(z), whose mean is
        the divergence.
        """
        codes, log_posterior = self.draw_codes(images, 1, generator)
        divergence = log_posterior - log_normal(codes)
        return self.log_likelihood(images, codes[0]), divergence[0]
