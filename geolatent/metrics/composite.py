"""Metrics made of others or of data: ensembles, conformal factors, local variance."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from geolatent.checks import (
    check_alike,
    check_codes,
    check_function,
    check_number,
    describe,
    parameter_behind,
    requirement,
    returned,
)
from geolatent.metrics.base import Metric, check_metric
from geolatent.metrics.differences import check_gradient
from geolatent.metrics.independence import check_rows
from geolatent.metrics.kernels import DIFFERENTIABLE_KERNELS
from geolatent.metrics.map import Map
from geolatent.shapes import CodeShape

# numbers that differences of codes and data points may have at once
_DIFFERENCES = 2**24


class EnsembleMetric(Metric):
    r"""Mean of the metrics of several decoders.

    .. math::

        G(z) = \sum_m w_m G_m(z), \qquad E(\gamma) = \sum_m w_m E_m(\gamma),

    so that the path energy is the expected one over the ensemble: decoders that were trained anew
    agree where there is data and differ elsewhere, so distances depend less on one training run.
    Where every member has an immersion, so has the ensemble: the members' outputs side by side,
    each times sqrt(w_m).

    Parameters
    ----------
    members
        The metrics, one at least, of one latent space.
    weights
        One positive number for each, of sum 1 after division by their sum; equal by default.

    References
    ----------
    Syrota, Moreno-Munoz, Hauberg, "Decoder ensembling for learned latent geometries", 2024,
    https://arxiv.org/abs/2408.07507.

    Examples
    --------
    >>> from geolatent import PullbackMetric
    >>> members = [PullbackMetric(lambda z: z), PullbackMetric(lambda z: 3.0 * z)]
    >>> EnsembleMetric(members).tensor(torch.zeros(1, 1))
    tensor([[[5.]]])
    """

    def __init__(self, members: Sequence[Metric], weights: Sequence[float] | None = None) -> None:
        if not isinstance(members, Sequence) or not members:
            required = "a sequence of one or more geolatent Metrics"
            raise TypeError(requirement("members", required, describe(members)))
        for number, member in enumerate(members):
            check_metric(member, f"members[{number}]")
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

    @property
    def like(self) -> Tensor | None:
        """The first member's that has one."""
        found = (member.like for member in self.members)
        return next((like for like in found if like is not None), None)

    def _wrap(self, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        members = [copy.copy(member) for member in self.members]
        for member in members:
            member._wrap(wrapper)
        EnsembleMetric.__init__(self, members, self.weights)

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

    def row_bytes(self) -> int:
        """Return the bytes that all members make."""
        return sum(member.row_bytes() for member in self.members)

    def check(self, name: str, z: Tensor) -> None:
        """Evaluate all members on codes from outside; errors name ``name``."""
        for member in self.members:
            member.check(name, z)

    def check_definite(self, name: str, z: Tensor) -> None:
        """Raise where a member is negative in a direction at codes from outside."""
        for member in self.members:
            member.check_definite(name, z)

    def _mean(self, of: Callable[[Metric], Tensor]) -> Tensor:
        weighted = (w * of(member) for w, member in zip(self.weights, self.members, strict=True))
        return functools.reduce(torch.add, weighted)

    def _tensor(self, z: Tensor) -> Tensor:
        return self._mean(lambda member: member._tensor(z))

    def _quadratic(self, z: Tensor, v: Tensor) -> Tensor:
        return self._mean(lambda member: member._quadratic(z, v))


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

    References
    ----------
    Sajama, Orlitsky, "Estimating and computing density based distance metrics", ICML 2005. Bethune,
    Vigouroux, Du, VanRullen, Serre, Boutin, "Follow the Energy, Find the Path", 2025,
    https://arxiv.org/abs/2505.18230. For curves of high likelihood, "A Likely Geometry of
    Generative Models", 2025, https://arxiv.org/abs/2510.26266.

    Examples
    --------
    >>> from geolatent import PullbackMetric
    >>> plane = PullbackMetric(lambda z: z)
    >>> half_plane = ConformalMetric(plane, lambda z: z[:, 1] ** -2)
    >>> half_plane.quadratic(torch.tensor([[0.0, 2.0]]), torch.tensor([[2.0, 0.0]]))
    tensor([1.])
    """

    def __init__(self, metric: Metric, factor: Callable[[Tensor], Tensor]) -> None:
        self.metric = check_metric(metric)
        self.factor: Callable[[Tensor], Any] = check_function("factor", factor)
        self.dim = metric.dim
        self.quadratic_cost = metric.quadratic_cost

    @property
    def like(self) -> Tensor | None:
        """The metric's, or a parameter of the factor, if any."""
        like = self.metric.like
        return parameter_behind(self.factor) if like is None else like

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

    def _wrap(self, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        metric = copy.copy(self.metric)
        metric._wrap(wrapper)
        ConformalMetric.__init__(self, metric, wrapper(self.factor))

    def tensor_rows(self, dim: int) -> int:
        """Forward rows that one metric tensor counts as; the factor's are not counted."""
        return self.metric.tensor_rows(dim)

    def row_width(self, z: Tensor) -> int:
        """Return the metric's; what the factor makes is not known."""
        return self.metric.row_width(z)

    def row_bytes(self) -> int:
        """Return the metric's; what the factor makes is not known."""
        return self.metric.row_bytes()

    def check(self, name: str, z: Tensor) -> None:
        """Evaluate metric and factor on codes from outside: the factor must be positive."""
        self.metric.check(name, z)
        check_function("factor", self.factor)
        factor = self._check_positive(z)
        code = z[:1].detach()
        check_rows("factor", self._factor, code, factor[:1], thorough=not self._tested)
        if not self._tested:
            check_gradient("factor", self._factor, code)
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
        with DIFFERENTIABLE_KERNELS:
            factor = self.factor(z.clone())
        if not isinstance(factor, Tensor) or factor.shape != z.shape[:1]:
            raise ValueError(returned("factor", f"a tensor of shape ({z.shape[0]},)", factor))
        return factor

    def _tensor(self, z: Tensor) -> Tensor:
        return self._factor(z)[:, None, None] * self.metric._tensor(z)

    def _quadratic(self, z: Tensor, v: Tensor) -> Tensor:
        return self._factor(z) * self.metric._quadratic(z, v)


class LocalVarianceMetric(Metric):
    r"""A diagonal metric from data in the latent space itself: the inverse of its local variance.

    .. math::

        G_{ii}(z) = \frac{1}{\sum_n w_n(z) (x_{ni} - z_i)^2 + \text{floor}}, \qquad
        w_n(z) = \exp\left(-\frac{|x_n - z|^2}{2 s^2}\right),

    small where there are many data points near, at most 1 / floor away from all: shortest paths
    follow the data. It needs no decoder, and is the metric of the locally adaptive normal
    distribution's paper.

    Parameters
    ----------
    data
        The points x, (n, d), or of any shape, (n, ...).
    bandwidth
        s, in units of the data.
    floor
        Bounds the metric from above; positive.

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
        data = CodeShape.of(data).flat("data", data)
        self.data = check_codes("data", data).detach()
        self.dim = self.data.shape[1]
        self.bandwidth = check_number("bandwidth", bandwidth, above=0.0)
        self.floor = check_number("floor", floor, above=0.0)

    @property
    def like(self) -> Tensor:
        """The data."""
        return self.data

    def _wrap(self, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Leave the metric as it is: it has no function of codes, only data."""

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
