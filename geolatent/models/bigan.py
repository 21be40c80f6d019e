"""A generative adversarial network with an encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from geolatent.checks import check_batch, check_boolean, check_integer
from geolatent.models.conv import (
    check_convolutions,
    convolutional_decoder,
    convolutional_encoder,
)
from geolatent.models.gan import GAN, Examples


class BiGAN(GAN):
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
        check_integer("latent_dim", latent_dim)
        check_convolutions(image_shape, channels, activation, check_integer("hidden", hidden))
        check_boolean("batch_norm", batch_norm)
        super().__init__(
            latent_dim,
            image_shape,
            "normal",
            {
                "latent_dim": latent_dim,
                "channels": list(channels),
                "hidden": hidden,
                "image_shape": list(image_shape),
                "activation": activation,
                "batch_norm": batch_norm,
            },
        )
        self.encoder = convolutional_encoder(
            image_shape, channels, hidden, latent_dim, activation, batch_norm
        )
        self.generator = convolutional_decoder(
            latent_dim, hidden, channels, image_shape, activation, batch_norm
        )
        self.discriminator = _PairDiscriminator(latent_dim, image_shape, channels, hidden)

    def encode(self, images: Tensor) -> Tensor:
        """Return the codes of images, (n, *image_shape) -> (n, d)."""
        check_batch("images", images, self.image_shape)
        return self.encoder(images)

    def forward(self, images: Tensor) -> Tensor:
        """Decode the codes of images: their reconstructions."""
        return self.decode(self.encode(images))

    def examples(self, images: Tensor, z: Tensor) -> tuple[Examples, Examples]:
        """Return images and their codes, and the images of codes with these."""
        generated = self.decode(z)
        return (images, self.encode(images)), (generated, z)

    def opponents(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of generator and encoder, which play against the discriminator."""
        yield from self.generator.parameters()
        yield from self.encoder.parameters()

    def opponents_loss(self, real: Examples, generated: Examples) -> Tensor:
        """Return the loss of generator and encoder, a number in nats.

        It is the discriminator's with the two exchanged, which has gradients even where the
        discriminator is sure (Donahue et al. 2017, section 3.4).
        """
        return self.game_loss(generated, real)


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
