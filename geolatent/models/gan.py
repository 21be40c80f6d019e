"""Generative adversarial networks: what all of them share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from geolatent.checks import check_batch, check_choice, check_integer
from geolatent.priors import onto_sphere

# what the discriminator tells apart: images, and what else belongs to them, (n, ...) each
Examples: TypeAlias = tuple[Tensor, ...]


class GAN(nn.Module):
    r"""Generator of images and a discriminator of its images from others; subclasses bring both.

    The discriminator D returns l = log(D / (1 - D)), which it is to make large for examples of the
    data and small for generated ones.

    Parameters
    ----------
    latent_dim
        Latent dimension d.
    image_shape
        (channels, height, width).
    prior
        Where codes are drawn: ``"normal"``, N(0, I), or ``"sphere"``, uniform on the sphere of
        radius sqrt(d), near which almost all codes of N(0, I) are in many dimensions.
    arguments
        What the subclass's constructor was called with, as JSON would hold it.

    References
    ----------
    I. Goodfellow et al., "Generative Adversarial Nets", NeurIPS 2014, arXiv:1406.2661.
    """

    generator: nn.Module
    discriminator: nn.Module

    def __init__(
        self, latent_dim: int, image_shape: Sequence[int], prior: str, arguments: dict[str, Any]
    ) -> None:
        super().__init__()
        self.latent_dim = check_integer("latent_dim", latent_dim)
        self.image_shape = tuple(image_shape)
        self.prior = check_choice("prior", prior, ("normal", "sphere"))
        self._arguments = arguments

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments that build a model with this one's parameters."""
        return dict(self._arguments)

    @abstractmethod
    def examples(self, images: Tensor, z: Tensor) -> tuple[Examples, Examples]:
        """Return examples of the data and generated ones, from images and codes of the prior."""

    def decode(self, z: Tensor) -> Tensor:
        """Return the images of codes, in [-1, 1], (n, d) -> (n, *image_shape)."""
        check_batch("z", z, (self.latent_dim,))
        return torch.tanh(self.generator(z))

    def draw_prior(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw codes from the prior, (n, d)."""
        like = next(self.parameters())
        codes = torch.randn(
            (check_integer("n", n), self.latent_dim),
            generator=generator,
            device=like.device,
            dtype=like.dtype,
        )
        return onto_sphere(codes) if self.prior == "sphere" else codes

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw images, (n, *image_shape): decoded codes of the prior."""
        return self.decode(self.draw_prior(n, generator))

    def opponents(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that play against the discriminator: the generator's."""
        yield from self.generator.parameters()

    def logits(self, *examples: Tensor) -> Tensor:
        """Return log(D / (1 - D)) of examples, (n,)."""
        return self.discriminator(*examples)

    def game_loss(self, real: Examples, generated: Examples) -> Tensor:
        r"""Return the discriminator's loss, a number in nats.

            mean log(1 + exp(-l(real))) + mean log(1 + exp(l(generated))).

        Parameters
        ----------
        real, generated
            Examples, as `examples` returns them.
        """
        softplus = nn.functional.softplus
        return softplus(-self.logits(*real)).mean() + softplus(self.logits(*generated)).mean()

    def opponents_loss(self, real: Examples, generated: Examples) -> Tensor:  # noqa: ARG002
        r"""Return the loss of the discriminator's opponents, a number in nats.

            mean log(1 + exp(-l(generated))),

        which has gradients even where the discriminator is sure (Goodfellow et al. 2014, section
        3).
        """
        return nn.functional.softplus(-self.logits(*generated)).mean()
