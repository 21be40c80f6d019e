"""A generative model as the experiments see it: an encoder, a decoder, a latent dimension."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from geolatent.checks import describe, requirement
from geolatent.lab.config import MetricOptions
from geolatent.metrics.base import Metric
from geolatent.metrics.pullback import GaussianPullbackMetric, PullbackMetric
from geolatent.priors import PRIORS

# images or codes that go through a network at once
_ROWS = 1024


@dataclass(frozen=True)
class LatentModel:
    """Encoder and decoder of a module, on its device and in its dtype.

    Parameters
    ----------
    module
        The model, in evaluation mode.
    encoder, decoder
        Names of its methods: images to codes or (mean, standard deviation) of the code, codes to
        images or (mean, standard deviation) of the image. A model may have no encoder, which is
        looked up when it is used.
    latent_dim
        Latent dimension d; by default the module's attribute of that name.

    Examples
    --------
    >>> from geolatent import data, models
    >>> model = LatentModel(models.digits_vae())
    >>> codes = model.encode(data.digits("test")[0][:5])
    >>> codes.shape, model.images(codes).shape
    (torch.Size([5, 2]), torch.Size([5, 1, 8, 8]))
    """

    module: nn.Module
    encoder: str = "encode"
    decoder: str = "decode"
    latent_dim: int | None = None

    def __post_init__(self) -> None:
        self._method("decoder", self.decoder)
        if self.latent_dim is None:
            found = getattr(self.module, "latent_dim", None)
            if not isinstance(found, int):
                required = f"given, for {type(self.module).__name__} has no attribute of that name"
                raise ValueError(requirement("latent_dim", required, found))
            object.__setattr__(self, "latent_dim", found)

    def _method(self, role: str, name: str) -> Callable[..., Any]:
        method = self.module if name == "forward" else getattr(self.module, name, None)
        if not callable(method):
            owner = type(self.module).__name__
            required = f"the name of a method of {owner}"
            if role == "encoder":
                required += ", for images are to be encoded here"
            raise ValueError(requirement(role, required, name))
        return method

    @property
    def dim(self) -> int:
        """Latent dimension d."""
        return self.latent_dim or 0

    @property
    def has_encoder(self) -> bool:
        """Whether images have codes."""
        return self.encoder == "forward" or callable(getattr(self.module, self.encoder, None))

    @property
    def prior(self) -> str:
        """Where codes are drawn: the model's own `prior` where it names one, else "normal"."""
        named = getattr(self.module, "prior", None)
        return named if isinstance(named, str) and named in PRIORS else "normal"

    @property
    def like(self) -> Tensor:
        """An empty tensor of the model's device and dtype."""
        parameter = next(self.module.parameters(), torch.empty(0))
        return torch.empty(0, dtype=parameter.dtype, device=parameter.device)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return the (mean) codes of images, (n, channels, height, width) -> (n, d)."""
        method = self._method("encoder", self.encoder)
        shape = getattr(self.module, "image_shape", None)
        if shape is not None and tuple(images.shape[1:]) != tuple(shape):
            required = f"the model's images, of shape {tuple(shape)}"
            raise ValueError(requirement("data", required, describe(images)))
        result = self._means(method, images)
        if result.ndim != 2 or result.shape[1] != self.dim:
            required = f"a method that returns codes of shape (n, {self.dim})"
            raise ValueError(requirement("encoder", required, f"one returning {describe(result)}"))
        return result

    @torch.no_grad()
    def images(self, codes: Tensor) -> Tensor:
        """Return the (mean) images of codes, (n, d) -> (n, channels, height, width)."""
        return self._means(self._method("decoder", self.decoder), codes)

    def _means(self, method: Callable[..., Any], inputs: Tensor) -> Tensor:
        found = (method(part) for part in inputs.to(self.like).split(_ROWS))
        return torch.cat([each[0] if isinstance(each, tuple) else each for each in found])

    @property
    def gaussian(self) -> bool:
        """Whether the decoder returns mean and standard deviation."""
        with torch.no_grad():
            probe = torch.zeros(1, self.dim).to(self.like)
            return isinstance(self._method("decoder", self.decoder)(probe), tuple)

    def metric(
        self,
        options: MetricOptions | None = None,
        features: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
    ) -> Metric:
        """Return the pull-back metric of the decoder, or of a feature map on its images.

        The seed is that of the random signs of Hutchinson's estimate.
        """
        options = options if options is not None else MetricOptions()
        decode = self._method("decoder", self.decoder)
        if not self.gaussian:
            return PullbackMetric(decode, features)
        if not options.uncertainty:
            return PullbackMetric(_Mean(self.module, decode), features)
        return GaussianPullbackMetric(
            decode, features, diagonal=options.diagonal, n_probes=options.n_probes, seed=seed
        )


class _Mean(nn.Module):
    """The mean of a Gaussian decoder; a module, so that the metric can check its parts."""

    def __init__(self, module: nn.Module, decode: Callable[..., Any]) -> None:
        super().__init__()
        self.module = module
        self._decode = decode
        self.train(module.training)

    def forward(self, z: Tensor) -> Tensor:
        return self._decode(z)[0]
