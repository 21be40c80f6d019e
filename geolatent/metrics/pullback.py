"""Pull-back metrics of decoders, deterministic and Gaussian."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from geolatent.checks import check_choice, check_integer, parameter_behind, requirement
from geolatent.metrics.base import Metric
from geolatent.metrics.chords import Chords
from geolatent.metrics.kernels import DIFFERENTIABLE_KERNELS
from geolatent.metrics.map import Map


class _ImmersedMetric(Metric):
    """G = J_F^T J_F for one map F."""

    def __init__(self, immersion: Map) -> None:
        self.immersion: Map = immersion

    def _tensor(self, z: Tensor) -> Tensor:
        return gram(self.immersion.columns(z)[1])

    def _quadratic(self, z: Tensor, v: Tensor) -> Tensor:
        return self.immersion.jvp(z, v)[1].square().sum(1)


def _parameter_of(decoder: Map, features: Map | None) -> Tensor | None:
    functions = (decoder.function,) if features is None else (decoder.function, features.function)
    return parameter_behind(*functions)


class PullbackMetric(_ImmersedMetric):
    r"""Pull-back metric of a deterministic decoder f, with or without a feature map h.

    .. math::

        G(z) &= J_f^T J_f, \\
        G(z) &= J_f^T J_h^T J_h J_f,

    the Jacobian J_f at z and J_h at f(z). Lengths are those of the output, or of the features.

    Parameters
    ----------
    decoder
        f: (n, d) -> (n, ...), any module or function whose rows do not depend on one another.
    features
        h: takes what the decoder returns, gives (n, ...).

    Raises
    ------
    TypeError, ValueError
        Where a function is not callable, a module is in training mode with BatchNorm or Dropout,
        or (at the first use) returns something else than a floating-point tensor of n rows.

    Examples
    --------
    >>> decoder = lambda z: torch.stack([z[:, 0], z[:, 1], z[:, 0] * z[:, 1]], dim=1)
    >>> metric = PullbackMetric(decoder)
    >>> metric.tensor(torch.tensor([[1.0, 2.0]]))
    tensor([[[5., 2.],
             [2., 2.]]])
    >>> metric.quadratic(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, -1.0]]))
    tensor([3.])

    References
    ----------
    Tosi, Hauberg, Vellido, Lawrence, "Metrics for Probabilistic Geometries", UAI 2014,
    https://arxiv.org/abs/1411.7432.
    """

    def __init__(
        self,
        decoder: Callable[[Tensor], Tensor],
        features: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.decoder = Map(decoder, "decoder")
        self.features = None if features is None else Map(features, "features")
        if self.features is None:
            super().__init__(self.decoder)
        else:
            parts = (self.decoder, self.features)
            super().__init__(Map(self._chain, "decoder", parts=parts))

    @property
    def like(self) -> Tensor | None:
        """A parameter of the decoder, or of the features, if any."""
        return _parameter_of(self.decoder, self.features)

    def row_width(self, z: Tensor) -> int:
        """Return the size of the decoder's output, or of the features' where it is larger."""
        width = self.decoder.width(z)
        if self.features is None:
            return width
        # the check calls both maps, but not the one that they make together
        if self.features.is_known:
            return max(width, self.features.output_shape.numel())
        return max(width, self.immersion.width(z))

    def _wrap(self, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        features = None if self.features is None else self.features.function
        PullbackMetric.__init__(self, wrapper(self.decoder.function), features)

    def _chain(self, z: Tensor) -> Tensor:
        if self.features is None:
            return self.decoder(z)
        return self.features(self.decoder.apply(z))

    def check(self, name: str, z: Tensor) -> None:
        """Evaluate decoder and feature map on codes from outside; errors name ``name``."""
        output = self.decoder.check(name, z)
        if self.features is not None:
            shape = self.decoder.output_shape
            self.features.check("decoder output", output.reshape(-1, *shape))


class GaussianPullbackMetric(Metric):
    r"""Expected pull-back metric of a Gaussian decoder, with or without a feature map h.

    .. math::

        G(z) &= J_\mu^T J_\mu + J_\sigma^T J_\sigma, \\
        G(z) &= J_\mu^T J_h^T J_h J_\mu + J_\sigma^T \operatorname{diag}(J_h^T J_h) J_\sigma,

    mu(z) the decoder's mean and sigma(z) its standard deviation (not the variance), J_h at mu(z).

    Parameters
    ----------
    decoder
        (n, d) -> (mean, standard deviation), each (n, ...), of one shape.
    features
        h: takes the mean, gives (n, ...).
    diagonal
        How diag(J_h^T J_h) is had: ``"exact"``, one vector-Jacobian product per output of h;
        ``"hutchinson"``, the mean of (J_h^T u)^2 over vectors u of random signs; ``"auto"``, exact
        up to 64 outputs.
    n_probes
        Number of random sign vectors.
    seed
        Seed of the signs. They are the same at every code and in every call, so that the metric is
        a deterministic function.

    Raises
    ------
    TypeError, ValueError
        As of `PullbackMetric`, and where the standard deviation is negative at the first code that
        the metric meets: what many decoders return is the logarithm of the variance.

    Examples
    --------
    >>> decoder = lambda z: (z, torch.exp(z))
    >>> GaussianPullbackMetric(decoder).tensor(torch.zeros(1, 2))
    tensor([[[2., 0.],
             [0., 2.]]])

    References
    ----------
    Arvanitidis, Hansen, Hauberg, "Latent Space Oddity", ICLR 2018,
    https://arxiv.org/abs/1710.11379, equation 5. Michelis, Becker, "On Linear Interpolation in the
    Latent Space of Deep Generative Models", 2021, https://arxiv.org/abs/2105.03663, equation 4
    and appendix E. Hutchinson, "A stochastic estimator of the trace of the influence matrix",
    1990. Bekas, Kokiopoulou, Saad, "An estimator for the diagonal of a matrix", 2007.
    """

    def __init__(
        self,
        decoder: Callable[[Tensor], tuple[Tensor, Tensor]],
        features: Callable[[Tensor], Tensor] | None = None,
        *,
        diagonal: str = "auto",
        n_probes: int = 16,
        seed: int = 0,
    ) -> None:
        self.diagonal = check_choice("diagonal", diagonal, ("auto", "exact", "hutchinson"))
        self.n_probes = check_integer("n_probes", n_probes)
        self.seed = check_integer("seed", seed, minimum=0)
        self.decoder = Map(decoder, "decoder", n_outputs=2)
        self.features = None if features is None else Map(features, "features")
        self._plain = _ImmersedMetric(self.decoder)
        self.immersion = self.decoder if features is None else None
        self._chart = None if features is None else Map(self._weighted, "decoder")

    @property
    def like(self) -> Tensor | None:
        """A parameter of the decoder, or of the features, if any."""
        return _parameter_of(self.decoder, self.features)

    def _wrap(self, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        features = None if self.features is None else self.features.function
        GaussianPullbackMetric.__init__(
            self,
            wrapper(self.decoder.function),
            features,
            diagonal=self.diagonal,
            n_probes=self.n_probes,
            seed=self.seed,
        )

    def check(self, name: str, z: Tensor) -> None:
        """Evaluate decoder and feature map on codes from outside; errors name ``name``."""
        joint = self.decoder.check(name, z)
        std = joint.chunk(2, dim=1)[1]
        if bool((std < 0.0).any()):
            required = "one whose second output is a standard deviation, nowhere negative "
            required += "(of a log-variance, exp(log_variance / 2))"
            raise ValueError(requirement("decoder", required, f"one with {float(std.min()):.3g}"))
        if self.features is not None:
            self.features.check("decoder mean", self._mean(joint))

    def row_width(self, z: Tensor) -> int:
        """Return the size of mean and standard deviation, and of the features beside them."""
        width = self.decoder.width(z)
        if self.features is None:
            return width
        if not self.features.is_known:
            with torch.no_grad():
                self._quadratic(z[:1], torch.zeros_like(z[:1]))
        return width + self.features.output_shape.numel()

    def row_bytes(self) -> int:
        """Return the bytes that the decoder and the features make."""
        features = 0 if self.features is None else self.features.row_bytes
        return self.decoder.row_bytes + features

    @property
    def chords(self) -> Chords | None:
        """Chords of the features and, weighted by diag(J_h^T J_h), the standard deviation."""
        if self._chart is None:
            return super().chords
        return Chords(self._chart, self.decoder.output_shape.numel())

    def _weighted(self, z: Tensor) -> Tensor:
        """Return h(mu), sigma and diag(J_h^T J_h) side by side, (n, K + 2 D)."""
        joint = self.decoder(z)
        std = joint.chunk(2, dim=1)[1]
        values, norms = self._squared_column_norms(self._mean(joint))
        return torch.cat([values, std, norms.flatten(1)], dim=1)

    def _tensor(self, z: Tensor) -> Tensor:
        if self.features is None:
            return self._plain._tensor(z)
        d, n = z.shape[1], z.shape[0]
        joint, columns = self.decoder.columns(z)
        mean, mean_columns, std_columns = self._split(joint, columns)
        repeated = mean.repeat(d, *[1] * (mean.ndim - 1))
        pushed = self.features.jvp(repeated, mean_columns.flatten(0, 1))[1].reshape(d, n, -1)
        weights = self._squared_column_norms(mean)[1].flatten(1)
        flat = std_columns.flatten(2)
        return gram(pushed) + torch.einsum("inD,nD,jnD->nij", flat, weights, flat)

    def _quadratic(self, z: Tensor, v: Tensor) -> Tensor:
        if self.features is None:
            return self._plain._quadratic(z, v)
        joint, tangent = self.decoder.jvp(z, v)
        mean, mean_tangent, std_tangent = self._split(joint, tangent[None])
        pushed = self.features.jvp(mean, mean_tangent[0])[1]
        weights = self._squared_column_norms(mean)[1]
        return pushed.square().sum(1) + (weights * std_tangent[0].square()).flatten(1).sum(1)

    def _mean(self, joint: Tensor) -> Tensor:
        """Return the means in joined outputs (n, 2 D), in the shape that h expects."""
        return joint.chunk(2, dim=1)[0].reshape(-1, *self.decoder.output_shape)

    def _split(self, joint: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take the joined mean and standard deviation apart, in the shape that h expects.

        Returns the mean (n, ...) and the tangents (m, n, ...) of mean and standard deviation.
        """
        shape = self.decoder.output_shape
        m = tangents.shape[0]
        mean_tangents, std_tangents = (
            part.reshape(m, -1, *shape) for part in tangents.chunk(2, dim=2)
        )
        return self._mean(joint), mean_tangents, std_tangents

    def _squared_column_norms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return h(x) and diag(J_h^T J_h), or its estimate, of the shape of x."""
        features: Map = self.features  # type: ignore[assignment]
        differentiable = torch.is_grad_enabled() and x.requires_grad
        with DIFFERENTIABLE_KERNELS, torch.inference_mode(False), torch.enable_grad():
            point = x if x.requires_grad else x.detach().clone().requires_grad_()
            value = features(point)
            total = torch.zeros_like(x)
            for combination in self._combinations(value) if value.requires_grad else ():
                (row,) = torch.autograd.grad(
                    combination.sum(),
                    point,
                    retain_graph=True,
                    create_graph=differentiable,
                    materialize_grads=True,
                )
                total = total + row.square()
        return (value if differentiable else value.detach()), total

    def _combinations(self, values: Tensor) -> Iterator[Tensor]:
        """Yield linear combinations (n,) of outputs (n, K) whose squared gradients sum up to it."""
        n_features = values.shape[1]
        if self.diagonal == "exact" or (self.diagonal == "auto" and n_features <= 64):
            yield from values.unbind(1)
            return
        generator = torch.Generator().manual_seed(self.seed)
        signs = (
            2 * torch.randint(0, 2, (self.n_probes, n_features), generator=generator, device="cpu")
            - 1
        )
        yield from (values @ signs.to(values).T / self.n_probes**0.5).unbind(1)


def gram(columns: Tensor) -> Tensor:
    """Return the inner products of columns (d, n, D), shape (n, d, d)."""
    return torch.einsum("inD,jnD->nij", columns, columns)
