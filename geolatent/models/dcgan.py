"""A generative adversarial network of convolutions, without an encoder."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from geolatent.checks import check_integer
from geolatent.models.conv import (
    check_convolutions,
    convolutional_decoder,
    convolutional_encoder,
)
from geolatent.models.gan import GAN, Examples

# of the initial weights
_DEVIATION = 0.02
# of the discriminator's leaky ReLUs
_SLOPE = 0.2


class DCGAN(GAN):
    r"""Deep convolutional GAN: a generator G of images, and a discriminator D.

    With z of the prior and images x of the data,

        min_G max_D  E_x log D(x) + E_z log(1 - D(G(z))).

    The generator is one linear layer and transposed convolutions, with batch normalisation and
    ReLU but for the last, which has tanh; the discriminator is its mirror image, with leaky ReLUs
    of slope 0.2 and without batch normalisation in its first layer. Nothing else is fully
    connected. Weights start from N(0, 0.02^2). It has no encoder: images have no codes. In training
    mode the rows of a batch depend on one another, so call ``eval()`` before a metric is made of
    `decode`.

    Parameters
    ----------
    latent_dim
        Latent dimension d.
    channels
        Channels after each halving of the image, as in `ConvVAE`: the generator goes through them
        backwards.
    image_shape
        (channels, height, width); height and width divisible by 2 ** len(channels).
    activation
        Activation of the generator, as in `ConvVAE`; under the paper's "relu" the metric jumps
        where a unit switches.
    prior
        As in `GAN`.

    References
    ----------
    A. Radford, L. Metz, S. Chintala, "Unsupervised Representation Learning with Deep Convolutional
    Generative Adversarial Networks", ICLR 2016, arXiv:1511.06434.

    Examples
    --------
    >>> model = DCGAN(latent_dim=16, channels=(4, 8), prior="sphere").eval()
    >>> codes = model.draw_prior(5)
    >>> [f"{float(norm):.3f}" for norm in codes.norm(dim=1)]
    ['4.000', '4.000', '4.000', '4.000', '4.000']
    >>> model.decode(codes).shape
    torch.Size([5, 1, 28, 28])
    """

    def __init__(
        self,
        latent_dim: int = 100,
        channels: Sequence[int] = (32, 64),
        image_shape: Sequence[int] = (1, 28, 28),
        activation: str = "relu",
        prior: str = "normal",
    ) -> None:
        check_integer("latent_dim", latent_dim)
        check_convolutions(image_shape, channels, activation)
        super().__init__(
            latent_dim,
            image_shape,
            prior,
            {
                "latent_dim": latent_dim,
                "channels": list(channels),
                "image_shape": list(image_shape),
                "activation": activation,
                "prior": prior,
            },
        )
        self.generator = convolutional_decoder(
            latent_dim, None, channels, image_shape, activation, batch_norm=True
        )
        discriminator = convolutional_encoder(
            image_shape, channels, None, 1, "leaky_relu", batch_norm=True
        )
        # the first layer's batch normalisation
        del discriminator[1]
        self.discriminator = discriminator.append(nn.Flatten(0))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                nn.init.normal_(layer.weight, std=_DEVIATION)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        for layer in discriminator:
            if isinstance(layer, nn.LeakyReLU):
                layer.negative_slope = _SLOPE

    def examples(self, images: Tensor, z: Tensor) -> tuple[Examples, Examples]:
        """Return the images, and those of the codes."""
        return (images,), (self.decode(z),)

    def forward(self, z: Tensor) -> Tensor:
        """Return the images of codes, as `decode`."""
        return self.decode(z)
