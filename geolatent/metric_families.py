"""Metrics for other decoders and tasks: Fisher-Rao, ensembles, densities, divergences, data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from geolatent.callables import is_scripted
from geolatent.checks import (
    check_alike,
    check_choice,
    check_codes,
    check_function,
    check_number,
    describe,
    requirement,
)
from geolatent.differences import check_gradient
from geolatent.jacobians import Map, second_derivative
from geolatent.metrics import Metric, PullbackMetric
from geolatent.rows import check_rows

_OUTPUTS = ("probabilities", "logits")
# numbers that differences of codes and data points may have at once
_DIFFERENCES = 2**24


class BernoulliPullbackMetric(PullbackMetric):
    r"""Fisher-Rao metric of a decoder whose outputs are independent Bernoulli variables.

        G(z) = sum_j J_j^T J_j / (p_j (1 - p_j)),    J_j = dp_j / dz,

    the pull-back of the Euclidean metric by F(z) = 2 arcsin sqrt(p(z)), under which the Fisher-Rao
    distance of two Bernoulli variables is |F - F'|.

    Parameters
    ----------
    decoder
        (n, d) -> (n, ...): probabilities, or their logits.
    output
        ``"probabilities"``, strictly between 0 and 1; or ``"logits"``, which lose nothing where
        probabilities round to 0 or 1.

    Raises
    ------
    TypeError, ValueError
        As for `PullbackMetric`, and where probabilities are not strictly between 0 and 1.

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

    def __init__(
        self, decoder: Callable[[Tensor], Tensor], *, output: str = "probabilities"
    ) -> None:
        self.output = check_choice("output", output, _OUTPUTS)
        super().__init__(decoder, self._embed)

    def _embed(self, values: Tensor) -> Tensor:
        if self.output == "logits":
            # 2 arctan exp(x / 2), by the Gudermannian function, which cannot overflow
            return 0.5 * math.pi + 2.0 * torch.atan(torch.tanh(values / 4.0))
        return 2.0 * torch.asin(torch.sqrt(values))

    def check(self, name: str, z: Tensor) -> None:
        """Evaluate the decoder on codes from outside: its probabilities must be inside (0, 1)."""
        if self.output == "probabilities":
            _check_probabilities(self.decoder, z, below_one=True)
        super().check(name, z)


class CategoricalPullbackMetric(PullbackMetric):
    r"""Fisher-Rao metric of a decoder whose outputs are independent categorical variables.

        G(z) = sum_k J_k^T J_k / p_k,    J_k = dp_k / dz,

    the pull-back of the Euclidean metric by F(z) = 2 sqrt(p(z)), which maps the simplex to a sphere
    of radius 2: the Fisher-Rao distance of p and q is 2 arccos sum_k sqrt(p_k q_k).

    Parameters
    ----------
    decoder
        (n, d) -> (n, ..., K): probabilities over the last axis, or their logits.
    output
        ``"probabilities"``, positive and of sum 1; or ``"logits"``.

    Raises
    ------
    TypeError, ValueError
        As for `PullbackMetric`, and where probabilities are not positive or do not sum to 1.

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

    def __init__(
        self, decoder: Callable[[Tensor], Tensor], *, output: str = "probabilities"
    ) -> None:
        self.output = check_choice("output", output, _OUTPUTS)
        super().__init__(decoder, self._embed)

    def _embed(self, values: Tensor) -> Tensor:
        if self.output == "logits":
            return 2.0 * torch.exp(0.5 * torch.log_softmax(values, dim=-1))
        return 2.0 * torch.sqrt(values)

    def check(self, name: str, z: Tensor) -> None:
        """Evaluate the decoder on codes from outside: its probabilities must sum to 1."""
        if self.output == "probabilities":
            values = _check_probabilities(self.decoder, z, below_one=False)
            excess = float((values.sum(-1) - 1.0).abs().max())
            if excess > 1e-3:
                required = "a callable returning probabilities of sum 1 over the last axis"
                raise ValueError(
                    requirement("decoder", required, f"sums that are off by {excess:.3g}")
                )
        super().check(name, z)


def _check_probabilities(decoder: Map, z: Tensor, *, below_one: bool) -> Tensor:
    with torch.no_grad():
        values = decoder.apply(z)
    required = 'a callable returning probabilities strictly inside (0, 1) (or output="logits")'
    if not isinstance(values, Tensor):
        raise TypeError(requirement("decoder", required, f"one returning {describe(values)}"))
    # 0 and 1 have no finite Fisher information; NaN is met later, pair by pair
    if bool((values <= 0.0).any()) or (below_one and bool((values >= 1.0).any())):
        found = f"values from {float(values.min()):.3g} to {float(values.max()):.3g}"
        raise ValueError(requirement("decoder", required, found))
    return values


class GaussianFisherRaoMetric(Metric):
    r"""Fisher-Rao metric of a Gaussian decoder N(mu(z), diag sigma(z)^2).

        G(z) = J_mu^T diag(1 / sigma^2) J_mu + 2 J_sigma^T diag(1 / sigma^2) J_sigma,

    the Fisher information of the output's distribution. Lengths count standard deviations: unlike
    under `GaussianPullbackMetric`, the way through uncertain regions is short, for distributions
    there are hard to tell apart. There is no isometric embedding in general, so no ``immersion``.

    Parameters
    ----------
    decoder
        (n, d) -> (mean, standard deviation), each (n, ...), of one shape; the standard deviation
        positive.

    Raises
    ------
    TypeError, ValueError
        As for `PullbackMetric`, and where the standard deviation is not positive.

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

    def __init__(self, decoder: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        self.decoder = Map(decoder, "decoder", n_outputs=2)

    def check(self, name: str, z: Tensor) -> None:
        """Evaluate the decoder on codes from outside: the standard deviation must be positive."""
        joint = self.decoder.check(name, z)
        deviation = joint.chunk(2, dim=1)[1]
        if bool((deviation <= 0).any()):
            required = "a callable returning positive standard deviations"
            raise ValueError(
                requirement("decoder", required, f"one of {float(deviation.min()):.3g}")
            )

    def row_width(self, z: Tensor) -> int:
        """Return the size of mean and standard deviation."""
        return self.decoder.width(z)

    def _scaled(self, joint: Tensor, tangents: Tensor) -> Tensor:
        """Divide tangents (m, n, 2 D) of mean and standard deviation by the latter."""
        deviation = joint.chunk(2, dim=1)[1]
        of_mean, of_deviation = tangents.chunk(2, dim=2)
        return torch.cat([of_mean / deviation, math.sqrt(2.0) * of_deviation / deviation], dim=2)

    def _tensor(self, z: Tensor) -> Tensor:
        scaled = self._scaled(*self.decoder.columns(z))
        return torch.einsum("inD,jnD->nij", scaled, scaled)

    def _quadratic(self, z: Tensor, v: Tensor) -> Tensor:
        joint, tangent = self.decoder.jvp(z, v)
        return self._scaled(joint, tangent[None])[0].square().sum(1)


class EnsembleMetric(Metric):
    r"""Mean of the metrics of several decoders, G(z) = sum_m w_m G_m(z).

    The metric whose path energy is the expected one over the ensemble, E(gamma) = sum_m w_m
    E_m(gamma): decoders that were trained anew agree where there is data and differ elsewhere, so
    distances depend less on one training run. Where every member has an immersion, so has the
    ensemble: the members' outputs side by side, each times sqrt(w_m).

    Parameters
    ----------
    members
        The metrics, one at least, of one latent space.
    weights
        One positive number for each, of sum 1 after division by their sum; equal by default.

    Raises
    ------
    TypeError, ValueError
        Where a member is no metric, the members' dimensions differ, or the weights do not fit.

    References
    ----------
    Syrota, Moreno-Munoz, Hauberg, "Decoder ensembling for learned latent geometries", 2024,
    https://arxiv.org/abs/2408.07507.

    Examples
    --------
    >>> members = [PullbackMetric(lambda z: z), PullbackMetric(lambda z: 3.0 * z)]
    >>> EnsembleMetric(members).tensor(torch.zeros(1, 1))
    tensor([[[5.]]])
    """

    def __init__(self, members: Sequence[Metric], weights: Sequence[float] | None = None) -> None:
        if not isinstance(members, Sequence) or not members:
            required = "a sequence of one or more geolatent Metrics"
            raise TypeError(requirement("members", required, describe(members)))
        for number, member in enumerate(members):
            if not isinstance(member, Metric):
                name = f"members[{number}]"
                raise TypeError(requirement(name, "a geolatent Metric", describe(member)))
        dims = {member.dim for member in members} - {None}
        if len(dims) > 1:
            raise ValueError(
                requirement("members", "of one latent dimension", sorted(map(str, dims)))
            )
        self.dim = dims.pop() if dims else None
        self.members = tuple(members)
        values = [1.0] * len(members) if weights is None else list(weights)
        if len(values) != len(members):
            required = f"{len(members)} numbers, one for each member"
            raise ValueError(requirement("weights", required, values))
        for value in values:
            check_number("weights", value, above=0.0)
        self.weights = tuple(value / sum(values) for value in values)
        self._immersions = [m.immersion for m in members if m.immersion is not None]
        if len(self._immersions) == len(members):
            self.immersion = Map(self._joined, "members", parts=self._immersions)
        if all(member.quadratic_cost == "forward" for member in members):
            self.quadratic_cost = "forward"

    def _joined(self, z: Tensor) -> Tensor:
        parts = [
            math.sqrt(weight) * immersion(z)
            for weight, immersion in zip(self.weights, self._immersions, strict=True)
        ]
        return torch.cat(parts, dim=1)

    def tensor_rows(self, dim: int) -> int:
        """Forward rows that one metric tensor counts as: those of all members."""
        return sum(member.tensor_rows(dim) for member in self.members)

    def row_width(self, z: Tensor) -> int:
        """Return the size of all members' outputs."""
        return sum(member.row_width(z) for member in self.members)

    def check(self, name: str, z: Tensor) -> None:
        """Evaluate all members on codes from outside; errors name ``name``."""
        for member in self.members:
            member.check(name, z)

    def check_definite(self, name: str, z: Tensor) -> None:
        """Raise where a member is negative in a direction at codes from outside."""
        for member in self.members:
            member.check_definite(name, z)

    def _tensor(self, z: Tensor) -> Tensor:
        total = self.weights[0] * self.members[0]._tensor(z)
        for weight, member in zip(self.weights[1:], self.members[1:], strict=True):
            total = total + weight * member._tensor(z)
        return total

    def _quadratic(self, z: Tensor, v: Tensor) -> Tensor:
        total = self.weights[0] * self.members[0]._quadratic(z, v)
        for weight, member in zip(self.weights[1:], self.members[1:], strict=True):
            total = total + weight * member._quadratic(z, v)
        return total


class ConformalMetric(Metric):
    r"""A metric times a positive function, g(z) G(z).

    Angles stay; lengths shrink where g is small. With g small where the data is dense, geodesics
    are drawn to the data: `from_log_density`.

    Parameters
    ----------
    metric
        The metric G.
    factor
        g: (n, d) -> (n,), positive and differentiable.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of the wrong kind, or (at the first use) the factor returns something
        else than (n,) positive numbers.

    References
    ----------
    Sajama, Orlitsky, "Estimating and computing density based distance metrics", ICML 2005. Bethune,
    Vigouroux, Du, VanRullen, Serre, Boutin, "Follow the Energy, Find the Path", 2025,
    https://arxiv.org/abs/2505.18230. For curves of high likelihood, "A Likely Geometry of
    Generative Models", 2025, https://arxiv.org/abs/2510.26266.

    Examples
    --------
    >>> plane = PullbackMetric(lambda z: z)
    >>> half_plane = ConformalMetric(plane, lambda z: z[:, 1] ** -2)
    >>> half_plane.quadratic(torch.tensor([[0.0, 2.0]]), torch.tensor([[2.0, 0.0]]))
    tensor([1.])
    """

    def __init__(self, metric: Metric, factor: Callable[[Tensor], Tensor]) -> None:
        if not isinstance(metric, Metric):
            raise TypeError(requirement("metric", "a geolatent Metric", describe(metric)))
        self.metric = metric
        self.factor: Callable[[Tensor], Any] = check_function("factor", factor)
        self.dim = metric.dim
        self.quadratic_cost = metric.quadratic_cost
        self._tested = False

    @classmethod
    def from_log_density(
        cls,
        metric: Metric,
        log_density: Callable[[Tensor], Tensor],
        *,
        strength: float = 1.0,
        reference: float = 0.0,
        floor: float = 1e-3,
    ) -> ConformalMetric:
        """Make paths through dense regions short.

        g = ((p / p_ref + floor) / (1 + floor))^-strength.

        Parameters
        ----------
        metric
            The metric.
        log_density
            (n, d) -> (n,), log p(z) in nats, as of a prior, a flow or a kernel estimate.
        strength
            Exponent; 0 leaves the metric as it is.
        reference
            log p_ref, where g is 1: the log density of a typical code.
        floor
            Bounds g from above where there is no data at all.
        """
        check_function("log_density", log_density)
        strength = check_number("strength", strength, at_least=0.0)
        reference = check_number("reference", reference)
        floor = check_number("floor", floor, above=0.0)

        def factor(z: Tensor) -> Tensor:
            relative = log_density(z) - reference
            least = torch.full_like(relative, math.log(floor))
            return torch.exp(-strength * (torch.logaddexp(relative, least) - math.log1p(floor)))

        return cls(metric, factor)

    def tensor_rows(self, dim: int) -> int:
        """Forward rows that one metric tensor counts as; the factor's are not counted."""
        return self.metric.tensor_rows(dim)

    def row_width(self, z: Tensor) -> int:
        """Return the metric's; what the factor makes is not known."""
        return self.metric.row_width(z)

    def check(self, name: str, z: Tensor) -> None:
        """Evaluate metric and factor on codes from outside: the factor must be positive."""
        self.metric.check(name, z)
        check_function("factor", self.factor)
        factor = self._check_positive(z)

        def single(codes: Tensor) -> Tensor:
            return self._factor(codes)[:, None]

        code = z[:1].detach()
        check_rows("factor", single, code, factor[:1, None], thorough=not self._tested)
        if not self._tested:
            check_gradient("factor", single, code)
            self._tested = True

    def check_definite(self, name: str, z: Tensor) -> None:
        """Raise where the factor is not positive, or the metric is negative in a direction."""
        self.metric.check_definite(name, z)
        self._check_positive(z)

    def _check_positive(self, z: Tensor) -> Tensor:
        with torch.no_grad():
            factor = self._factor(z.detach())
        if not bool((factor > 0).all()):
            required = "a callable returning positive numbers"
            raise ValueError(requirement("factor", required, f"one of {float(factor.min()):.3g}"))
        return factor

    def _factor(self, z: Tensor) -> Tensor:
        factor = self.factor(z.clone())
        if not isinstance(factor, Tensor) or factor.shape != z.shape[:1]:
            required = f"a callable returning a tensor of shape ({z.shape[0]},)"
            raise ValueError(requirement("factor", required, f"one returning {describe(factor)}"))
        return factor

    def _tensor(self, z: Tensor) -> Tensor:
        return self._factor(z)[:, None, None] * self.metric._tensor(z)

    def _quadratic(self, z: Tensor, v: Tensor) -> Tensor:
        return self._factor(z) * self.metric._quadratic(z, v)


class DivergenceMetric(Metric):
    r"""The metric that a divergence of the decoder's outputs has between neighbours.

        v^T G(z) v = 1/2 d^2/de^2 D(f(z), f(z + e v)) at e = 0,

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

    Raises
    ------
    TypeError, ValueError
        As for `PullbackMetric`.

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

    def tensor_rows(self, dim: int) -> int:
        """Forward rows that one metric tensor counts as: one second derivative per entry."""
        return dim * (dim + 1) // 2

    def row_width(self, z: Tensor) -> int:
        """Return the size of the two outputs that are compared."""
        return 2 * self.decoder.width(z)

    def check(self, name: str, z: Tensor) -> None:
        """Evaluate decoder and divergence on codes from outside; errors name ``name``."""
        self.decoder.check(name, z)
        check_function("divergence", self.divergence)
        with torch.no_grad():
            self._between(z, z)

    def _between(self, z: Tensor, other: Tensor) -> Tensor:
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
        rows, columns = torch.cat([first, last]), torch.cat([last, first])
        where = torch.zeros(d, d, dtype=torch.int64, device=z.device)
        where[rows, columns] = torch.arange(m, device=z.device).repeat(2)
        return entries[:, where.flatten()].reshape(n, d, d)


class LocalVarianceMetric(Metric):
    r"""A diagonal metric from data in the latent space itself: the inverse of its local variance.

        G_ii(z) = 1 / (sum_n w_n(z) (x_ni - z_i)^2 + floor),
        w_n(z) = exp(-|x_n - z|^2 / (2 s^2)),

    small where there are many data points near, at most 1 / floor away from all: shortest paths
    follow the data. It needs no decoder, and is the metric of the locally adaptive normal
    distribution's paper.

    Parameters
    ----------
    data
        The points x, (n, d).
    bandwidth
        s, in units of the data.
    floor
        Bounds the metric from above; positive.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of the wrong kind, shape or range.

    References
    ----------
    Arvanitidis, Hansen, Hauberg, "A Locally Adaptive Normal Distribution", NIPS 2016,
    https://arxiv.org/abs/1606.02518, equation 9.

    Examples
    --------
    >>> metric = LocalVarianceMetric(torch.zeros(1, 2), bandwidth=1.0, floor=0.1)
    >>> metric.tensor(torch.tensor([[0.0, 0.0]]))
    tensor([[[10.,  0.],
             [ 0., 10.]]])
    """

    quadratic_cost = "forward"

    def __init__(self, data: Tensor, bandwidth: float, floor: float = 1e-2) -> None:
        self.data = check_codes("data", data).detach()
        self.dim = self.data.shape[1]
        self.bandwidth = check_number("bandwidth", bandwidth, above=0.0)
        self.floor = check_number("floor", floor, above=0.0)

    def tensor_rows(self, dim: int) -> int:  # noqa: ARG002
        """Forward rows that one metric tensor counts as: it is one evaluation."""
        return 1

    def row_width(self, z: Tensor) -> int:  # noqa: ARG002
        """Return the size of the data, all of which is compared with a row."""
        return self.data.numel()

    def check(self, name: str, z: Tensor) -> None:
        """Check that codes are of the data's dtype and device."""
        check_alike(name, z, "data", self.data)

    def _diagonal(self, z: Tensor) -> Tensor:
        rows = max(1, _DIFFERENCES // self.data.numel())
        return torch.cat([self._inverse_variances(part) for part in z.split(rows)])

    def _inverse_variances(self, z: Tensor) -> Tensor:
        squares = (self.data - z[:, None]).square()
        weights = torch.exp(-0.5 * squares.sum(2) / self.bandwidth**2)
        return 1.0 / (torch.einsum("nm,nmd->nd", weights, squares) + self.floor)

    def _tensor(self, z: Tensor) -> Tensor:
        return torch.diag_embed(self._diagonal(z))

    def _quadratic(self, z: Tensor, v: Tensor) -> Tensor:
        return (self._diagonal(z) * v.square()).sum(1)
