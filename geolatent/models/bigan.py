"""A generative adversarial network with an encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from geolatent.checks import check_batch, check_boolean, check_integer
from geolatent.models.conv import (
    check_convolutions,
    convolutional_decoder,
    convolutional_encoder,
)


class BiGAN(nn.Module):
    r"""Bidirectional GAN: a generator G, its encoder E, and a discriminator D of pairs.

    With z ~ N(0, I) and images x of the data,

        min_{G,E} max_D  E_x log D(x, E(x)) + E_z log(1 - D(G(z), z)),

    whose optimum has E and G inverse to one another. Generator and encoder use batch
    normalisation (off: ``batch_norm=False``): in training mode the rows of a batch depend on one
    another, so call ``eval()`` before a metric is made of `decode`. The discriminator's
    weights are spectrally normalised instead, which keeps its two opponents' gradients bounded.

    Parameters
    ----------
    latent_dim
        Latent dimension d.
    channels
        Channels after each halving of the image, as in `ConvVAE`.
    hidden
        Width of the fully connected layers.
    image_shape
        (channels, height, width); height and width divisible by 2 ** len(channels).
    activation
        Activation of generator and encoder, as in `ConvVAE`; the discriminator has leaky ReLUs.
    batch_norm
        Normalise generator and encoder.

    References
    ----------
    J. Donahue, P. Krähenbühl, T. Darrell, "Adversarial Feature Learning", ICLR 2017,
    arXiv:1605.09782.
    V. Dumoulin et al., "Adversarially Learned Inference", ICLR 2017, arXiv:1606.00704.

    Examples
    --------
    >>> model = BiGAN(latent_dim=2, channels=(4, 8), hidden=16).eval()
    >>> images = model.decode(torch.zeros(5, 2))
    >>> images.shape, model.encode(images).shape
    (torch.Size([5, 1, 28, 28]), torch.Size([5, 2]))
    """

    def __init__(
        self,
        latent_dim: int = 16,
        channels: Sequence[int] = (32, 64),
        hidden: int = 256,
        image_shape: Sequence[int] = (1, 28, 28),
        activation: str = "elu",
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        check_integer("latent_dim", latent_dim)
        check_convolutions(image_shape, channels, hidden, activation)
        check_boolean("batch_norm", batch_norm)
        self.latent_dim = latent_dim
        self.image_shape = tuple(image_shape)
        self.encoder = convolutional_encoder(
            image_shape, channels, hidden, latent_dim, activation, batch_norm
        )
        self.generator = convolutional_decoder(
            latent_dim, hidden, channels, image_shape, activation, batch_norm
        )
        self.discriminator = _PairDiscriminator(latent_dim, image_shape, channels, hidden)
        self._arguments = {
            "latent_dim": latent_dim,
            "channels": list(channels),
            "hidden": hidden,
            "image_shape": list(image_shape),
            "activation": activation,
            "batch_norm": batch_norm,
        }

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments that build a model with this one's parameters."""
        return dict(self._arguments)

    def encode(self, images: Tensor) -> Tensor:
        """Return the codes of images, (n, *image_shape) -> (n, d)."""
        check_batch("images", images, self.image_shape)
        return self.encoder(images)

    def decode(self, z: Tensor) -> Tensor:
        """Return the images of codes, in [-1, 1], (n, d) -> (n, *image_shape)."""
        check_batch("z", z, (self.latent_dim,))
        return torch.tanh(self.generator(z))

    def forward(self, images: Tensor) -> Tensor:
        """Decode the codes of images: their reconstructions."""
        return self.decode(self.encode(images))

    def opponents(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of generator and encoder, which play against the discriminator."""
        yield from self.generator.parameters()
        yield from self.encoder.parameters()

    def logits(self, images: Tensor, codes: Tensor) -> Tensor:
        """Return log(D / (1 - D)) of pairs, (n, *image_shape) and (n, d) -> (n,)."""
        return self.discriminator(images, codes)

    def game_loss(self, encoded: tuple[Tensor, Tensor], generated: tuple[Tensor, Tensor]) -> Tensor:
        r"""Return the discriminator's loss, a number in nats.

        With l = log(D / (1 - D)), the discriminator is to find l large for encoded pairs
        (x, E(x)) and small for generated pairs (G(z), z):

            mean log(1 + exp(-l(encoded))) + mean log(1 + exp(l(generated))).

        Generator and encoder minimise the same with the two exchanged, which has gradients even
        where the discriminator is sure (Donahue et al. 2017, section 3.4).

        Parameters
        ----------
        encoded, generated
            Images (n, *image_shape) and codes (n, d).
        """
        softplus = nn.functional.softplus
        return softplus(-self.logits(*encoded)).mean() + softplus(self.logits(*generated)).mean()


class _PairDiscriminator(nn.Module):
    """One number for a pair of an image and a code."""

    def __init__(
        self, latent_dim: int, image_shape: Sequence[int], channels: Sequence[int], hidden: int
    ) -> None:
        super().__init__()
        self.image_part = convolutional_encoder(image_shape, channels, hidden, hidden, "leaky_relu")
        self.code_part = nn.Sequential(nn.Linear(latent_dim, hidden), nn.LeakyReLU())
        self.joint_part = nn.Sequential(
            nn.LeakyReLU(), nn.Linear(2 * hidden, hidden), nn.LeakyReLU(), nn.Linear(hidden, 1)
        )
        for layer in list(self.modules()):
            if isinstance(layer, nn.Conv2d | nn.Linear):
                parametrizations.spectral_norm(layer)

    def forward(self, images: Tensor, z: Tensor) -> Tensor:
        joint = torch.cat([self.image_part(images), self.code_part(z)], dim=1)
        return self.joint_part(joint).squeeze(1)
