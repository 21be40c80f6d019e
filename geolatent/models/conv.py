"""Convolutional networks between images and codes, and the variational autoencoder made of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.utils import parametrizations

from geolatent.checks import check_boolean, check_choice, check_integer, check_sizes, requirement
from geolatent.models.vae import VAE

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
}


class ConvVAE(VAE):
    r"""Convolutional variational autoencoder with a Gaussian decoder and a tanh mean.

    The encoder halves height and width once for every entry of ``channels`` (4 x 4 kernels of
    stride 2), then has one fully connected hidden layer; the decoder is its mirror image. The
    standard deviation is one learnt number until `VAE.fit_precision` replaces it by an RBF
    network, by default of 4 d centres.

    Spectral normalisation divides the weights of every layer but the last, in encoder and decoder,
    by their largest singular value (a convolution's as a matrix of output channels against the
    rest), which bounds how fast codes and images can change. The last layer sets the scale and
    stays free.

    Parameters
    ----------
    latent_dim
        Latent dimension d.
    channels
        Channels after each halving, from the image inwards.
    hidden
        Width of the fully connected layer between the convolutions and the code.
    image_shape
        (channels, height, width); height and width divisible by 2 ** len(channels).
    activation
        "elu", "gelu", "silu", "softplus", "tanh", "leaky_relu" or "relu". Under the last two the
        metric jumps where a unit switches; the others keep it continuous.
    spectral_norm
        Normalise the weights.
    n_centers
        Centres of the RBF precision network; 0 for a constant standard deviation. Leave it 0 and
        call `VAE.fit_precision`, unless the parameters come from a checkpoint.

    References
    ----------
    M. F. Michelis, Q. Becker, "On Linear Interpolation in the Latent Space of Deep Generative
    Models", 2021, arXiv:2105.03663.
    T. Miyato, T. Kataoka, M. Koyama, Y. Yoshida, "Spectral Normalization for Generative
    Adversarial Networks", ICLR 2018, arXiv:1802.05957.

    Examples
    --------
    >>> model = ConvVAE(latent_dim=2, channels=(4, 8), hidden=16, spectral_norm=True)
    >>> mean, std = model.eval().decode(torch.zeros(5, 2))
    >>> mean.shape, std.shape
    (torch.Size([5, 1, 28, 28]), torch.Size([5, 1, 28, 28]))
    """

    def __init__(
        self,
        latent_dim: int = 16,
        channels: Sequence[int] = (32, 64),
        hidden: int = 256,
        image_shape: Sequence[int] = (1, 28, 28),
        activation: str = "elu",
        spectral_norm: bool = False,
        n_centers: int = 0,
    ) -> None:
        check_integer("latent_dim", latent_dim)
        check_boolean("spectral_norm", spectral_norm)
        check_convolutions(image_shape, channels, activation, check_integer("hidden", hidden))
        encoder = convolutional_encoder(image_shape, channels, hidden, 2 * latent_dim, activation)
        decoder = convolutional_decoder(latent_dim, hidden, channels, image_shape, activation)
        if spectral_norm:
            for network in (encoder, decoder):
                layers = [layer for layer in network if hasattr(layer, "weight")]
                for layer in layers[:-1]:
                    parametrizations.spectral_norm(layer)
        super().__init__(
            encoder,
            decoder,
            latent_dim,
            image_shape,
            {
                "latent_dim": latent_dim,
                "channels": list(channels),
                "hidden": hidden,
                "image_shape": list(image_shape),
                "activation": activation,
                "spectral_norm": spectral_norm,
            },
            n_centers,
        )
        # near its value after training; from 1, Adam's small steps would take epochs to get there
        with torch.no_grad():
            self.log_std.fill_(-1.0)


def check_convolutions(
    image_shape: Sequence[int],
    channels: Sequence[int],
    activation: str,
    hidden: int | None = None,
) -> None:
    """Raise where no convolutional networks of these sizes can be built."""
    check_sizes("channels", channels)
    check_sizes("image_shape", image_shape)
    if hidden is not None:
        check_integer("hidden", hidden)
    check_choice("activation", activation, tuple(ACTIVATIONS))
    factor = 2 ** len(channels)
    if len(image_shape) != 3 or any(size % factor for size in image_shape[1:]):
        required = (
            f"(channels, height, width), height and width divisible by {factor}, "
            f"two for each of the {len(channels)} `channels`"
        )
        raise ValueError(requirement("image_shape", required, tuple(image_shape)))


def convolutional_encoder(
    image_shape: Sequence[int],
    channels: Sequence[int],
    hidden: int | None,
    n_outputs: int,
    activation: str,
    batch_norm: bool = False,
) -> nn.Sequential:
    """Return a network (n, *image_shape) -> (n, n_outputs); see `ConvVAE`.

    Without a width of them there are no hidden fully connected layers.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise([image_shape[0], *channels]):
        layers.append(nn.Conv2d(inputs, outputs, 4, stride=2, padding=1))
        if batch_norm:
            layers.append(nn.BatchNorm2d(outputs))
        layers.append(ACTIVATIONS[activation]())
    width = math.prod(inner_shape(image_shape, channels))
    layers.append(nn.Flatten())
    if hidden is not None:
        layers += [nn.Linear(width, hidden), ACTIVATIONS[activation]()]
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, n_outputs))


def convolutional_decoder(
    latent_dim: int,
    hidden: int | None,
    channels: Sequence[int],
    image_shape: Sequence[int],
    activation: str,
    batch_norm: bool = False,
) -> nn.Sequential:
    """Return a network (n, d) -> (n, *image_shape), the mirror image of the encoder."""
    shape = inner_shape(image_shape, channels)
    layers: list[nn.Module] = []
    width = latent_dim
    if hidden is not None:
        layers.append(nn.Linear(latent_dim, hidden))
        if batch_norm:
            layers.append(nn.BatchNorm1d(hidden))
        layers.append(ACTIVATIONS[activation]())
        width = hidden
    layers += [nn.Linear(width, math.prod(shape)), nn.Unflatten(1, shape)]
    if batch_norm:
        layers.append(nn.BatchNorm2d(shape[0]))
    layers.append(ACTIVATIONS[activation]())
    *inner, last = itertools.pairwise([*reversed(channels), image_shape[0]])
    for inputs, outputs in inner:
        layers.append(nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1))
        if batch_norm:
            layers.append(nn.BatchNorm2d(outputs))
        layers.append(ACTIVATIONS[activation]())
    return nn.Sequential(*layers, nn.ConvTranspose2d(*last, 4, stride=2, padding=1))


def inner_shape(image_shape: Sequence[int], channels: Sequence[int]) -> tuple[int, int, int]:
    """Return the shape (channels, height, width) after the last halving."""
    factor = 2 ** len(channels)
    return channels[-1], image_shape[1] // factor, image_shape[2] // factor
