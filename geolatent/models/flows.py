"""Normalising flows: bijections between images and codes, with the density that they give."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from geolatent.checks import (
    check_batch,
    check_choice,
    check_integer,
    check_number,
    check_sizes,
    describe,
    requirement,
)
from geolatent.models.conv import ACTIVATIONS
from geolatent.priors import LOGISTIC_SCALE, log_prior
from geolatent.requirements import import_extra

NEEDS_ZUKO = (
    "NICE and IAFVAE are made of zuko. Install it from the checkout: pip install '.[flows]'"
)
# added to standard deviations of a batch, which may be zero
LEAST_STD = 1e-6


class Flow(nn.Module):
    r"""Normalising flow: a bijection f from images x to codes z; subclasses bring the map.

    .. math::

        \log p(x) = \log p_Z(f(x)) + \log\left|\det \frac{df}{dx}\right|,

    with codes that are independent of mean 0 and variance 1: normal, or logistic, whose tails are
    longer, p_Z(z) ~ 1 / cosh(pi z / (2 sqrt 3))^2.

    Codes are flat and have as many numbers as images have pixels. Images whose pixels take L grey
    levels have no density: such pixels are spread evenly over the distance to their neighbours,
    delta = 2 / (L - 1), and then log P(x) >= E log p(x + noise) + D log delta, the bound that is
    trained.

    Parameters
    ----------
    image_shape
        (channels, height, width); the latent dimension d = D is their product.
    levels
        Grey levels between -1 and 1: 17 of scikit-learn's digits, 256 of bytes; None for data that
        have a density already.
    prior
        p_Z: ``"normal"``, which `geolatent.log_prior` is of too, or ``"logistic"``.
    arguments
        What the subclass's constructor was called with, as JSON would hold it.

    References
    ----------
    G. Papamakarios, E. Nalisnick, D. J. Rezende, S. Mohamed, B. Lakshminarayanan, "Normalizing
    Flows for Probabilistic Modeling and Inference", JMLR 2021, arXiv:1912.02762.
    L. Theis, A. van den Oord, M. Bethge, "A note on the evaluation of generative models", ICLR
    2016, arXiv:1511.01844: the bound by noise.
    """

    initialised: Tensor

    def __init__(
        self,
        image_shape: Sequence[int],
        levels: int | None,
        prior: str,
        arguments: dict[str, Any],
    ) -> None:
        super().__init__()
        check_sizes("image_shape", image_shape)
        if levels is not None:
            check_integer("levels", levels, minimum=2)
        self.image_shape = tuple(image_shape)
        self.latent_dim = math.prod(image_shape)
        self.levels = levels
        self.prior = check_choice("prior", prior, ("normal", "logistic"))
        self._arguments = {
            **arguments,
            "image_shape": list(image_shape),
            "levels": levels,
            "prior": prior,
        }
        # a buffer, so that a loaded model is not started again
        self.register_buffer("initialised", torch.tensor(False))

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments that build a model with this one's parameters."""
        return dict(self._arguments)

    @abstractmethod
    def _to_codes(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes (n, d) and log |det df/dx| (n,)."""

    @abstractmethod
    def _to_images(self, z: Tensor) -> Tensor:
        """Return the images (n, *image_shape) of codes (n, d)."""

    @abstractmethod
    def _start(self, images: Tensor) -> None:
        """Set what starts from data."""

    def encode(self, images: Tensor) -> Tensor:
        """Return the codes of images, (n, *image_shape) -> (n, d)."""
        return self.encode_with_log_det(images)[0]

    def encode_with_log_det(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes of images, (n, d), and log |det df/dx|, (n,), in nats."""
        check_batch("images", images, self.image_shape)
        return self._to_codes(images)

    def decode(self, z: Tensor) -> Tensor:
        """Return the images of codes, the inverse of `encode`, (n, d) -> (n, *image_shape)."""
        check_batch("z", z, (self.latent_dim,))
        return self._to_images(z)

    def forward(self, images: Tensor) -> Tensor:
        """Decode the codes of images: the images themselves, to rounding."""
        return self.decode(self.encode(images))

    def log_prob(self, images: Tensor) -> Tensor:
        """Return log p(x), (n, *image_shape) -> (n,), in nats."""
        codes, log_det = self.encode_with_log_det(images)
        return log_prior(codes, self.prior) + log_det

    def dequantise(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Spread pixels evenly over the distance between grey levels; nothing without levels."""
        if self.levels is None:
            return images
        noise = torch.rand(
            images.shape, generator=generator, device=images.device, dtype=images.dtype
        )
        return images + self._spacing * (noise - 0.5)

    def bits_per_dimension(
        self, images: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        r"""Return the loss, an upper bound of -log2 P(x) / D with one draw of noise, (n,).

        (-log p(x + noise) - D log delta) / (D log 2); without levels delta is 1, and it is the
        density's and may be negative.
        """
        log_density = self.log_prob(self.dequantise(images, generator))
        return -(log_density / self.latent_dim + math.log(self._spacing)) / math.log(2.0)

    @torch.no_grad()
    def sample(
        self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0
    ) -> Tensor:
        """Draw images, (n, *image_shape): decoded codes of the prior times ``temperature``.

        Below 1 they are more typical than the model's own, and less varied.
        """
        check_integer("n", n)
        check_number("temperature", temperature, at_least=0.0)
        like = next(self.parameters())
        shape = (n, self.latent_dim)
        options: Any = {"generator": generator, "device": like.device, "dtype": like.dtype}
        if self.prior == "normal":
            codes = torch.randn(shape, **options)
        else:
            # 0 would be infinitely far away
            least = torch.finfo(like.dtype).eps
            codes = torch.rand(shape, **options).clamp(least, 1.0 - least)
            codes = LOGISTIC_SCALE * (codes.log() - torch.log1p(-codes))
        return self.decode(temperature * codes)

    @torch.no_grad()
    def initialise(self, images: Tensor, generator: torch.Generator | None = None) -> None:
        """Set what starts from data, by training images; once, then never again.

        Scales and shifts are set so that what they give has mean 0 and variance 1 over the batch.
        """
        check_batch("images", images, self.image_shape)
        if len(images) < 2:
            required = "two images or more, for a variance"
            raise ValueError(requirement("images", required, describe(images)))
        if bool(self.initialised):
            return
        self._start(self.dequantise(images, generator))
        self.initialised.fill_(True)

    @property
    def _spacing(self) -> float:
        return 1.0 if self.levels is None else 2.0 / (self.levels - 1)


class NICE(Flow):
    r"""Additive couplings and one diagonal scaling.

    Half of the pixels, those of even and of odd number in turn, are shifted by a network of the
    others, x_b -> x_b + m(x_a), which has the inverse y_b -> y_b - m(y_a) and the determinant 1;
    shifts are in units of the training images' standard deviations, pixel by pixel. At the end each
    number is multiplied by a factor of its own: log |det df/dx| = sum_i log s_i is the same
    everywhere, and with a normal prior log p(x) = const - |f(x)|^2 / 2. The couplings are zuko's
    (extra ``flows``) and begin as the identity: `Flow.initialise` makes of that independent pixels.

    Parameters
    ----------
    image_shape
        (channels, height, width), of more than one pixel.
    couplings
        Number of couplings; with three or more every number depends on every pixel.
    hidden
        Widths of the hidden layers of each coupling's network.
    activation
        As in `ConvVAE`; "relu" in the paper, while the default keeps the metric continuous.
    levels, prior
        As in `Flow`. Under a normal prior a pixel that is hardly ever set makes the few images
        where it is all but impossible; MNIST wants the logistic one, as in the paper.

    References
    ----------
    L. Dinh, D. Krueger, Y. Bengio, "NICE: Non-linear Independent Components Estimation", 2014,
    arXiv:1410.8516.

    Examples
    --------
    >>> model = NICE(image_shape=(1, 8, 8), hidden=(16,), levels=17)
    >>> images = torch.zeros(5, 1, 8, 8)
    >>> model.encode(images).shape, torch.allclose(model(images), images, atol=1e-6)
    (torch.Size([5, 64]), True)
    """

    couplings: Any  # a ModuleList of zuko's

    def __init__(
        self,
        image_shape: Sequence[int] = (1, 28, 28),
        couplings: int = 4,
        hidden: Sequence[int] = (512, 512),
        activation: str = "elu",
        levels: int | None = 256,
        prior: str = "normal",
    ) -> None:
        check_integer("couplings", couplings)
        check_sizes("hidden", hidden)
        check_choice("activation", activation, tuple(ACTIVATIONS))
        super().__init__(
            image_shape,
            levels,
            prior,
            {"couplings": couplings, "hidden": list(hidden), "activation": activation},
        )
        if self.latent_dim < 2:
            raise ValueError(requirement("image_shape", "of two pixels or more", image_shape))
        flows = import_extra("zuko.flows", NEEDS_ZUKO)
        additive = import_extra("zuko.transforms", NEEDS_ZUKO).AdditiveTransform
        pixels = torch.arange(self.latent_dim)
        self.couplings = nn.ModuleList(
            flows.GeneralCouplingTransform(
                self.latent_dim,
                mask=pixels % 2 == number % 2,
                univariate=additive,
                shapes=[()],
                hidden_features=tuple(hidden),
                activation=ACTIVATIONS[activation],
            )
            for number in range(couplings)
        )
        for coupling in self.couplings:
            for parameter in coupling.hyper[-1].parameters():
                nn.init.zeros_(parameter)
            coupling.hyper.append(_Units(int((~coupling.mask).sum())))
        self.log_scale = nn.Parameter(torch.zeros(self.latent_dim))

    def _to_codes(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = images.flatten(1)
        for coupling in self.couplings:
            x = coupling()(x)
        return x * self.log_scale.exp(), self.log_scale.sum().expand(len(x))

    def _start(self, images: Tensor) -> None:
        """Make codes of mean 0 and variance 1 while the couplings' networks return constants."""
        x = images.flatten(1)
        mean, std = x.mean(0), x.std(0) + LEAST_STD
        self.log_scale.copy_(-std.log())
        for number, coupling in enumerate(self.couplings):
            changed = ~coupling.mask
            coupling.hyper[-1].units.copy_(std[changed])
            # the last two move every number once
            if number >= len(self.couplings) - 2:
                coupling.hyper[-2].bias.copy_(-mean[changed] / std[changed])

    def _to_images(self, z: Tensor) -> Tensor:
        x = z * torch.exp(-self.log_scale)
        for coupling in reversed(self.couplings):
            x = coupling().inv(x)
        return x.reshape(len(z), *self.image_shape)


class _Units(nn.Module):
    """Multiplication by standard deviations of the data.

    Without it one step size would have to do for pixels that hardly ever change and for others.
    """

    units: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        self.register_buffer("units", torch.ones(n))

    def forward(self, shift: Tensor) -> Tensor:
        return shift * self.units
