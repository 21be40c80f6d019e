"""Metrics of information geometry: Fisher-Rao of a decoder's distribution, divergences."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from geolatent.callables import is_scripted
from geolatent.checks import (
    check_choice,
    check_function,
    describe,
    parameter_behind,
    requirement,
    returned,
)
from geolatent.metrics.base import Metric
from geolatent.metrics.chords import Chords
from geolatent.metrics.kernels import DIFFERENTIABLE_KERNELS
from geolatent.metrics.map import Map
from geolatent.metrics.pullback import PullbackMetric
from geolatent.metrics.ways import second_derivative

_OUTPUTS = ("probabilities", "logits")


class _FisherRaoMetric(PullbackMetric):
    """Pull-back of a sphere or torus on which distributions lie, from their parameters."""

    def __init__(
        self, decoder: Callable[[Tensor], Tensor], *, output: str = "probabilities"
    ) -> None:
        self.output = check_choice("output", output, _OUTPUTS)
        super().__init__(decoder, self._embed)

    @abstractmethod
    def _embed(self, values: Tensor) -> Tensor: ...


class BernoulliPullbackMetric(_FisherRaoMetric):
    r"""Fisher-Rao metric of a decoder whose outputs are independent Bernoulli variables.

    .. math::

        G(z) = \sum_j \frac{J_j^T J_j}{p_j (1 - p_j)}, \qquad J_j = \frac{dp_j}{dz},

    the pull-back of the Euclidean metric by F(z) = 2 arcsin sqrt(p(z)), under which the Fisher-Rao
    distance of two Bernoulli variables is |F - F'|.

    Parameters
    ----------
    decoder
        (n, d) -> (n, ...): probabilities, or their logits.
    output
        ``"probabilities"``, strictly between 0 and 1; or ``"logits"``, which lose nothing where
        probabilities round to 0 or 1.

    References
    ----------
    Arvanitidis, Gonzalez-Duque, Pouplin, Kalatzis, Hauberg, "Pulling back information geometry",
    AISTATS 2022, https://arxiv.org/abs/2106.05367. Amari, "Information Geometry and Its
    Applications", 2016, chapter 3.

    Examples
    --------
    >>> metric = BernoulliPullbackMetric(lambda z: z, output="logits")
    >>> metric.tensor(torch.zeros(1, 1))
    tensor([[[0.2500]]])
    """

    def _embed(self, values: Tensor) -> Tensor:
        if self.output == "logits":
            # 2 arctan exp(x / 2), by the Gudermannian function, which cannot overflow
            return 0.5 * math.pi + 2.0 * torch.atan(torch.tanh(values / 4.0))
        return 2.0 * torch.asin(torch.sqrt(values))

    def check(self, name: str, z: Tensor) -> None:
        """Evaluate the decoder on codes from outside: its probabilities must be inside (0, 1)."""
        if self.output == "probabilities":
            _check_probabilities(self.decoder, name, z, below_one=True)
        super().check(name, z)


class CategoricalPullbackMetric(_FisherRaoMetric):
    r"""Fisher-Rao metric of a decoder whose outputs are independent categorical variables.

    .. math::

        G(z) = \sum_k \frac{J_k^T J_k}{p_k}, \qquad J_k = \frac{dp_k}{dz},

    the pull-back of the Euclidean metric by F(z) = 2 sqrt(p(z)), which maps the simplex to a sphere
    of radius 2: the Fisher-Rao distance of p and q is 2 arccos sum_k sqrt(p_k q_k).

    Parameters
    ----------
    decoder
        (n, d) -> (n, ..., K): probabilities over the last axis, or their logits.
    output
        ``"probabilities"``, positive and of sum 1; or ``"logits"``.

    References
    ----------
    As for `BernoulliPullbackMetric`.

    Examples
    --------
    >>> two_classes = lambda z: torch.cat([z, torch.zeros_like(z)], dim=1)
    >>> metric = CategoricalPullbackMetric(two_classes, output="logits")
    >>> metric.tensor(torch.zeros(1, 1))
    tensor([[[0.2500]]])
    """

    def _embed(self, values: Tensor) -> Tensor:
        if self.output == "logits":
            return 2.0 * torch.exp(0.5 * torch.log_softmax(values, dim=-1))
        return 2.0 * torch.sqrt(values)

    def check(self, name: str, z: Tensor) -> None:
        """Evaluate the decoder on codes from outside: its probabilities must sum to 1."""
        if self.output == "probabilities":
            values = _check_probabilities(self.decoder, name, z, below_one=False)
            excess = float((values.sum(-1) - 1.0).abs().max())
            if excess > 1e-3:
                required = "a callable returning probabilities of sum 1 over the last axis"
                raise ValueError(
                    requirement("decoder", required, f"sums that are off by {excess:.3g}")
                )
        super().check(name, z)


def _check_probabilities(decoder: Map, name: str, z: Tensor, *, below_one: bool) -> Tensor:
    with decoder.explaining(name, z), torch.no_grad():
        values = decoder.apply(z)
    required = 'probabilities strictly inside (0, 1) (or output="logits")'
    if not isinstance(values, Tensor):
        raise TypeError(returned("decoder", required, values))
    # 0 and 1 have no finite Fisher information; NaN is met later, pair by pair
    if bool((values <= 0.0).any()) or (below_one and bool((values >= 1.0).any())):
        found = f"values from {float(values.min()):.3g} to {float(values.max()):.3g}"
        raise ValueError(requirement("decoder", f"a callable returning {required}", found))
    return values


class InformationMetric(Metric):
    r"""Fisher-Rao metric of independent outputs, from the information of their parameters.

        v^T G(z) v = sum_k w_k(z) (J_k v)^2,    J_k = ds_k / dz,

    with coordinates s_k and weights w_k of the outputs' parameters, which write their Fisher
    information as a sum of squares. Not the pull-back of a Euclidean metric, so there is no
    ``immersion``; but coordinates and weights at its ends give the length of a short chord.
    """

    parameters: tuple[str, ...]
    positive: tuple[str, ...]

    def __init__(self, decoder: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        self.decoder = Map(decoder, "decoder", n_outputs=len(self.parameters))
        self._chart = Map(self._joined, "decoder", parts=(self.decoder,))

    def _wrap(self, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        InformationMetric.__init__(self, wrapper(self.decoder.function))

    @abstractmethod
    def _squares(self, *parameters: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return coordinates and weights, as many, of parameters (n, D), in that shape each."""

    @property
    def like(self) -> Tensor | None:
        """A parameter of the decoder, if any."""
        return parameter_behind(self.decoder.function)

    def check(self, name: str, z: Tensor) -> None:
        """Evaluate the decoder on codes from outside: what is positive must be."""
        parts = self.decoder.check(name, z).chunk(len(self.parameters), dim=1)
        for label, values in zip(self.parameters, parts, strict=True):
            if label in self.positive:
                check_positive(values, f"{label}s")
        self._chart.width(z)  # so that its shape is known

    @property
    def chords(self) -> Chords:
        """Chords of the coordinates, weighted by the mean of their ends' weights."""
        return Chords(self._chart, self._chart.output_shape.numel() // 2)

    def row_bytes(self) -> int:
        """Return the bytes that the decoder makes."""
        return self.decoder.row_bytes

    def row_width(self, z: Tensor) -> int:
        """Return the size of all parameters."""
        return self.decoder.width(z)

    def _joined(self, z: Tensor) -> Tensor:
        """Return coordinates and weights side by side, (n, 2 K D)."""
        coordinates, weights = self._squares(*self.decoder(z).chunk(len(self.parameters), dim=1))
        return torch.cat([*coordinates, *weights], dim=1)

    def _tensor(self, z: Tensor) -> Tensor:
        values, columns = self._chart.columns(z)
        slopes = columns.chunk(2, dim=2)[0]
        return torch.einsum("inK,nK,jnK->nij", slopes, values.chunk(2, dim=1)[1], slopes)

    def _quadratic(self, z: Tensor, v: Tensor) -> Tensor:
        values, tangents = self._chart.jvp(z, v)
        return (values.chunk(2, dim=1)[1] * tangents.chunk(2, dim=1)[0].square()).sum(1)


def check_positive(values: Tensor, what: str) -> None:
    """Raise where a decoder's outputs are not positive."""
    if bool((values <= 0).any()):
        required = f"a callable returning positive {what}"
        raise ValueError(requirement("decoder", required, f"one of {float(values.min()):.3g}"))


class GaussianFisherRaoMetric(InformationMetric):
    r"""Fisher-Rao metric of a Gaussian decoder N(mu(z), diag sigma(z)^2).

    .. math::

        G(z) = J_\mu^T \operatorname{diag}(\sigma^{-2}) J_\mu
             + 2 J_\sigma^T \operatorname{diag}(\sigma^{-2}) J_\sigma,

    the Fisher information of the output's distribution. Lengths count standard deviations: unlike
    under `GaussianPullbackMetric`, the way through uncertain regions is short, for distributions
    there are hard to tell apart. There is no isometric embedding in general, so no ``immersion``.

    Parameters
    ----------
    decoder
        (n, d) -> (mean, standard deviation), each (n, ...), of one shape; the standard deviation
        positive.

    References
    ----------
    Arvanitidis, Gonzalez-Duque, Pouplin, Kalatzis, Hauberg, "Pulling back information geometry",
    AISTATS 2022, https://arxiv.org/abs/2106.05367. Costa, Santos, Strapasson, "Fisher information
    distance: a geometrical reading", 2015, https://arxiv.org/abs/1210.2354.

    Examples
    --------
    >>> metric = GaussianFisherRaoMetric(lambda z: (z[:, :1], z[:, 1:]))
    >>> metric.tensor(torch.tensor([[0.0, 2.0]]))
    tensor([[[0.2500, 0.0000],
             [0.0000, 0.5000]]])
    """

    parameters = ("mean", "standard deviation")
    positive = ("standard deviation",)

    def _squares(self, *parameters: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        precision = parameters[1] ** -2
        return parameters, (precision, 2.0 * precision)


class GammaFisherRaoMetric(InformationMetric):
    r"""Fisher-Rao metric of a decoder whose outputs are independent gamma variables.

    .. math::

        v^T G v = \sum (\psi'(a) - 1 / a) \, da^2 + a \, (d \log(a / b))^2,
        \qquad da = J_a v, \dots,

    with the concentration a(z), the rate b(z) and the trigamma function psi': concentration and
    mean a / b are orthogonal.

    Parameters
    ----------
    decoder
        (n, d) -> (concentration, rate), each (n, ...), of one shape, positive.

    References
    ----------
    Arwini, Dodson, "Information Geometry: Near Randomness and Near Independence", 2008, chapter 3.

    Examples
    --------
    >>> metric = GammaFisherRaoMetric(lambda z: (torch.ones_like(z), z))  # exponential variables
    >>> metric.tensor(torch.tensor([[2.0]]))
    tensor([[[0.2500]]])
    """

    parameters = ("concentration", "rate")
    positive = ("concentration", "rate")

    def _squares(self, *parameters: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        a, b = parameters
        return (a, torch.log(a / b)), (torch.polygamma(1, a) - 1.0 / a, a)


class BetaFisherRaoMetric(InformationMetric):
    r"""Fisher-Rao metric of a decoder whose outputs are independent beta variables.

    .. math::

        v^T G v = \sum \psi'(a) \, da^2 + \psi'(b) \, db^2 - \psi'(a + b) (da + db)^2,

    with da = J_a v, db = J_b v and the trigamma function psi'.

    Parameters
    ----------
    decoder
        (n, d) -> (a, b), each (n, ...), of one shape, positive: the concentrations that belong to 1
        and to 0, torch's ``concentration1`` and ``concentration0``.

    References
    ----------
    Le Brigant, Preston, Puechmorel, "Fisher-Rao geometry of Dirichlet distributions", 2021,
    https://arxiv.org/abs/2005.05608.

    Examples
    --------
    >>> metric = BetaFisherRaoMetric(lambda z: (z, torch.ones_like(z)))  # powers of uniform ones
    >>> metric.tensor(torch.tensor([[2.0]]))
    tensor([[[0.2500]]])
    """

    parameters = ("concentration1", "concentration0")
    positive = ("concentration1", "concentration0")

    def _squares(self, *parameters: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        a, b = parameters
        sums = (a, b, a + b)
        first, second, both = (torch.polygamma(1, each) for each in sums)
        return sums, (first, second, -both)


class DivergenceMetric(Metric):
    r"""The metric that a divergence of the decoder's outputs has between neighbours.

    .. math::

        v^T G(z) v = \frac{1}{2} \frac{d^2}{d\epsilon^2} D(f(z), f(z + \epsilon v))
        \quad \text{at } \epsilon = 0,

    so that D(f(z), f(z + dz)) = dz^T G dz to second order. For modules that compare two images and
    hide their features, as LPIPS does (its value is a squared distance), or for any divergence:
    twice the Kullback-Leibler divergence gives the Fisher-Rao metric. The derivatives are exact,
    forward mode twice; no finite differences. Where the features can be had, `PullbackMetric` with
    ``features`` is cheaper.

    Parameters
    ----------
    decoder
        f: (n, d) -> (n, ...).
    divergence
        D: two outputs (n, ...) -> (n,) or (n, 1, ...), row by row; zero and stationary where they
        are equal, twice differentiable in the second there.

    References
    ----------
    Zhang, Isola, Efros, Shechtman, Wang, "The Unreasonable Effectiveness of Deep Features as a
    Perceptual Metric", 2018, https://arxiv.org/abs/1801.03924. Amari, "Information Geometry and Its
    Applications", 2016, chapter 1.

    Examples
    --------
    >>> squared = lambda x, y: (x - y).square().sum(1)
    >>> DivergenceMetric(lambda z: 3.0 * z, squared).tensor(torch.zeros(1, 2))
    tensor([[[9., 0.],
             [0., 9.]]])
    """

    def __init__(
        self,
        decoder: Callable[[Tensor], Tensor],
        divergence: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        self.decoder = Map(decoder, "decoder")
        self.divergence: Callable[..., Any] = check_function("divergence", divergence)
        self._scripted = is_scripted(divergence)

    @property
    def like(self) -> Tensor | None:
        """A parameter of the decoder, or of the divergence, if any."""
        return parameter_behind(self.decoder.function, self.divergence)

    def tensor_rows(self, dim: int) -> int:
        """Forward rows that one metric tensor counts as: one second derivative per entry."""
        return dim * (dim + 1) // 2

    def row_bytes(self) -> int:
        """Return the bytes that the decoder makes."""
        return self.decoder.row_bytes

    def row_width(self, z: Tensor) -> int:
        """Return the size of the two outputs that are compared."""
        return 2 * self.decoder.width(z)

    def check(self, name: str, z: Tensor) -> None:
        """Evaluate decoder and divergence on codes from outside; errors name ``name``."""
        self.decoder.check(name, z)
        check_function("divergence", self.divergence)
        with torch.no_grad():
            self._between(z, z)

    def _wrap(self, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        DivergenceMetric.__init__(self, wrapper(self.decoder.function), self.divergence)

    def _between(self, z: Tensor, other: Tensor) -> Tensor:
        with DIFFERENTIABLE_KERNELS:
            value = self.divergence(self.decoder.apply(z), self.decoder.apply(other))
        required = f"a callable returning one number for each of {z.shape[0]} rows"
        if not isinstance(value, Tensor) or value.numel() != z.shape[0]:
            raise ValueError(requirement("divergence", required, describe(value)))
        return value.reshape(-1)

    def _quadratic(self, z: Tensor, v: Tensor) -> Tensor:
        forward = self.decoder.forward_mode and not self._scripted

        def between(other: Tensor) -> Tensor:
            return self._between(z, other)

        return 0.5 * second_derivative(between, z, v, forward=forward)

    def _tensor(self, z: Tensor) -> Tensor:
        n, d = z.shape
        first, last = torch.triu_indices(d, d, device=z.device)
        axes = torch.eye(d, dtype=z.dtype, device=z.device)
        # polarisation: 2 G_ij = q(e_i + e_j) - G_ii - G_jj
        directions = torch.where((first == last)[:, None], axes[first], axes[first] + axes[last])
        m = len(first)
        squares = self._quadratic(z.repeat(m, 1), directions.repeat_interleave(n, dim=0))
        squares = squares.reshape(m, n).mT
        diagonal = squares[:, first == last]
        entries = torch.where(
            first == last, squares, 0.5 * (squares - diagonal[:, first] - diagonal[:, last])
        )
        tensors = entries.new_zeros(n, d, d)
        tensors[:, first, last] = tensors[:, last, first] = entries
        return tensors
