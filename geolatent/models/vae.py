"""Variational autoencoders with a Gaussian decoder."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from geolatent.checks import check_batch, check_codes, check_integer, check_number, check_sizes
from geolatent.models.rbf import RBFPrecision


class VAE(nn.Module):
    r"""Variational autoencoder with Gaussian encoder and decoder; subclasses bring the networks.

        q(z|x) = N(m(x), diag s(x)^2),    p(x|z) = N(mu(z), diag sigma(z)^2),    p(z) = N(0, I).

    While the model trains, sigma is one learnt number (``log_std``). Afterwards
    `fit_precision` replaces it by an RBF precision network, whose uncertainty grows away
    from the codes of the data.

    Parameters
    ----------
    encoder
        (n, *image_shape) -> (n, 2 d): the mean and the logarithm of the standard deviation.
    decoder
        (n, d) -> (n, *image_shape) or (n, D), before the tanh that bounds the mean to [-1, 1].
    latent_dim
        Latent dimension d.
    image_shape
        (channels, height, width); D is their product.
    arguments
        What the subclass's constructor was called with, as JSON would hold it.
    n_centers
        Centres of the RBF precision network; 0 for none. Any other number makes room for the
        weights of a saved model.

    References
    ----------
    D. P. Kingma, M. Welling, "Auto-Encoding Variational Bayes", 2014, arXiv:1312.6114.
    G. Arvanitidis, L. K. Hansen, S. Hauberg, "Latent Space Oddity: on the Curvature of Deep
    Generative Models", 2018, arXiv:1710.11379.
    """

    precision: RBFPrecision | None

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        latent_dim: int,
        image_shape: Sequence[int],
        arguments: dict[str, Any],
        n_centers: int = 0,
    ) -> None:
        super().__init__()
        check_integer("n_centers", n_centers, minimum=0)
        self.latent_dim = latent_dim
        self.image_shape = tuple(image_shape)
        self.encoder = encoder
        self.decoder = decoder
        self.log_std = nn.Parameter(torch.zeros(()))
        self._arguments = arguments
        if n_centers:
            centers = torch.zeros(n_centers, latent_dim)
            output_dim = math.prod(self.image_shape)
            self.precision = RBFPrecision(centers, torch.ones(n_centers), output_dim, 1.0)
        else:
            self.precision = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments that build a model with this one's parameters."""
        n_centers = len(self.precision.centers) if self.precision is not None else 0
        return {**self._arguments, "n_centers": n_centers}

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of q(z|x), (n, *image_shape) -> (n, d) each."""
        check_batch("images", images, self.image_shape)
        mean, log_std = self.encoder(images).chunk(2, dim=-1)
        return mean, log_std.exp()

    def decode_mean(self, z: Tensor) -> Tensor:
        """Return the mean of p(x|z), in [-1, 1], (n, d) -> (n, *image_shape)."""
        check_batch("z", z, (self.latent_dim,))
        return torch.tanh(self.decoder(z)).reshape(len(z), *self.image_shape)

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of p(x|z), (n, d) -> (n, *image_shape) each."""
        mean = self.decode_mean(z)
        if self.precision is None:
            return mean, self.log_std.exp().expand_as(mean)
        return mean, self.precision.std(z).reshape(mean.shape)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Decode the mean codes of images: mean and standard deviation of the reconstructions."""
        return self.decode(self.encode(images)[0])

    def elbo_terms(
        self, images: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        r"""Return the two terms of the evidence lower bound, (n,) each, in nats.

        The first is log p(x|z) at one code z = m(x) + s(x) eps drawn from q(z|x); the second is
        the divergence KL(q(z|x) || p(z)) = 1/2 sum_i (m_i^2 + s_i^2 - 1 - 2 log s_i). The bound
        itself is their difference.
        """
        mean, std = self.encode(images)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        divergence = normal_divergences(mean, std).sum(1)
        return self.log_likelihood(images, mean + std * noise), divergence

    def log_likelihood(self, images: Tensor, z: Tensor) -> Tensor:
        """Return log p(x|z) of images and a code for each, (n, *image_shape), (n, d) -> (n,)."""
        output, output_std = self.decode(z)
        scaled = (images - output) / output_std
        log_density = -0.5 * (scaled * scaled + math.log(2.0 * math.pi)) - output_std.log()
        return log_density.flatten(1).sum(1)

    def draw_codes(
        self, images: Tensor, n: int = 1, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw codes from q(z|x), (n, images, d), with log q(z|x), (n, images), in nats."""
        mean, std = self.encode(images)
        noise = torch.randn(
            n, *mean.shape, generator=generator, device=mean.device, dtype=mean.dtype
        )
        return mean + std * noise, log_normal(noise) - std.log().sum(-1)

    def log_weights(
        self, images: Tensor, n: int = 1, generator: torch.Generator | None = None
    ) -> Tensor:
        r"""Return log p(x|z) + log p(z) - log q(z|x) at n codes drawn from q(z|x), (n, images).

        In nats. Their mean over the codes is an estimate of the evidence lower bound; the logarithm
        of the mean of their exponentials, ``logsumexp(0) - log n``, is in expectation a tighter
        bound of log p(x), and grows with n.

        References
        ----------
        Y. Burda, R. Grosse, R. Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016,
        arXiv:1509.00519.
        """
        codes, log_posterior = self.draw_codes(images, n, generator)
        log_likelihood = torch.stack([self.log_likelihood(images, each) for each in codes])
        return log_likelihood + log_normal(codes) - log_posterior

    @torch.no_grad()
    def fit_precision(
        self,
        images: Tensor,
        n_centers: int | None = None,
        scale: float = 1.5,
        floor: float = 0.01,
        min_std: float = 0.05,
        iterations: int = 200,
        seed: int = 0,
    ) -> Tensor:
        """Replace the decoder's standard deviation by an RBF precision network fitted to images.

        Centres and bandwidths come from the images' mean codes, weights from maximum likelihood
        with the decoder's mean held fixed; see `RBFPrecision`. Fitting is done in float64.

        Parameters
        ----------
        images
            Training images, (n, *image_shape).
        n_centers
            Number of centres; by default four for every latent dimension.
        scale
            Width of the bumps in mean distances within a cluster.
        floor
            Precision far from the data; the standard deviation there is ``floor ** -0.5``.
        min_std
            Noise added in quadrature to the residuals, in output units: about the smallest
            standard deviation that the network can reach. A pixel that never changes would
            otherwise ask for an infinite precision.
        iterations
            Updates of the weights.
        seed
            Seed of k-means.

        Returns
        -------
        Tensor
            The negative log-likelihood per image, up to a constant, before each update,
            (iterations,).

        Raises
        ------
        ValueError
            Where there are not more distinct codes than centres.
        """
        check_number("min_std", min_std, above=0.0)
        if n_centers is None:
            n_centers = 4 * self.latent_dim
        # in parts, for the activations of all images at once may not fit in memory
        parts = images.split(2048)
        codes = torch.cat([self.encode(part)[0] for part in parts])
        means = torch.cat([self.decode_mean(part) for part in codes.split(2048)])
        residuals = (images - means).flatten(1).double()
        codes = check_codes("codes", codes, self.latent_dim).double()
        network = RBFPrecision.from_codes(
            codes, n_centers, residuals.shape[1], scale=scale, floor=floor, seed=seed
        )
        history = network.fit(codes, residuals * residuals + min_std**2, iterations)
        self.precision = network.to(images.dtype)
        return history


class MLPVAE(VAE):
    """Variational autoencoder of fully connected layers with ELU, for small images.

    ELU is continuously differentiable, so that the pull-back metric of the decoder is continuous.

    Parameters
    ----------
    latent_dim
        Latent dimension d.
    hidden
        Widths of the encoder's hidden layers; the decoder has them in reverse order.
    image_shape
        (channels, height, width).
    n_centers
        Centres of the RBF precision network; 0 for a constant standard deviation. Leave it 0 and
        call `VAE.fit_precision`, unless the parameters come from a checkpoint.

    Examples
    --------
    >>> model = MLPVAE(latent_dim=2, hidden=(16,))
    >>> mean, std = model.decode(torch.zeros(5, 2))
    >>> mean.shape, std.shape
    (torch.Size([5, 1, 8, 8]), torch.Size([5, 1, 8, 8]))
    """

    def __init__(
        self,
        latent_dim: int = 2,
        hidden: Sequence[int] = (128, 128),
        image_shape: Sequence[int] = (1, 8, 8),
        n_centers: int = 0,
    ) -> None:
        check_integer("latent_dim", latent_dim)
        check_sizes("hidden", hidden)
        check_sizes("image_shape", image_shape)
        pixels = math.prod(image_shape)
        widths = [pixels, *hidden]
        super().__init__(
            nn.Sequential(nn.Flatten(), *_layers([*widths, 2 * latent_dim])),
            nn.Sequential(*_layers([latent_dim, *reversed(widths)])),
            latent_dim,
            image_shape,
            {
                "latent_dim": latent_dim,
                "hidden": list(hidden),
                "image_shape": list(image_shape),
            },
            n_centers,
        )


def log_normal(z: Tensor) -> Tensor:
    """Return log N(z; 0, I), (..., d) -> (...,), in nats."""
    return -0.5 * (z * z + math.log(2.0 * math.pi)).sum(-1)


def normal_divergences(mean: Tensor, std: Tensor) -> Tensor:
    """Return KL(N(mean, std^2) || N(0, 1)) of each number, in nats."""
    return 0.5 * (mean * mean + std * std - 1.0 - 2.0 * std.log())


def _layers(widths: Sequence[int]) -> list[nn.Module]:
    """Return linear layers of these widths with ELU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ELU()]
    return layers[:-1]
