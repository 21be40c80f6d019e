"""A metric kept to the sphere that the codes of a prior lie near."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from geolatent.checks import check_number, requirement
from geolatent.metrics.base import Metric, check_metric
from geolatent.metrics.map import Map


class SphereMetric(Metric):
    r"""A metric of directions, measured on a sphere around the origin, and of norms beside it.

    .. math::

        G_S(z) = J_\varphi(z)^\top G(\varphi(z)) J_\varphi(z) + c^2 u u^\top, \qquad
        \varphi(z) = r u, \quad u = z / |z|,

    the product of G on the sphere of radius r and of the half-line of norms |z|. A geodesic takes
    G's shortest way on the sphere, while the norm of its codes changes linearly: what `slerp` does
    where G is the identity. Codes of a prior in many dimensions lie near a sphere; geodesics of G
    itself leave it for codes that the decoder was never trained on.

    At the origin the metric is not defined. The straight line between opposite codes passes it, and
    what is found from there is not to be trusted: give another ``initial`` curve.

    The decoder sees codes of norm r alone; lengths along geodesics with the codes' own norms are
    had from the metric G and the curve (`path_length`).

    Parameters
    ----------
    metric
        The metric G.
    radius
        r; by default sqrt(d), the norm of typical codes of N(0, I).
    norm_weight
        c, in units of the output per unit of the norm; positive. Between codes of one norm it
        changes no geodesic.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind, or a code is the origin, which has no direction.

    References
    ----------
    White, "Sampling Generative Networks", 2016, https://arxiv.org/abs/1609.04468, for slerp.

    Examples
    --------
    >>> from geolatent import PullbackMetric, solve_geodesic
    >>> metric = SphereMetric(PullbackMetric(lambda z: z), radius=1.0)
    >>> start, end = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    >>> round(float(solve_geodesic(metric, start, end).length), 3)  # a quarter of a circle
    1.571
    """

    def __init__(
        self, metric: Metric, radius: float | None = None, norm_weight: float = 1.0
    ) -> None:
        self.metric = check_metric(metric)
        self.radius = None if radius is None else check_number("radius", radius, above=0.0)
        self.norm_weight = check_number("norm_weight", norm_weight, above=0.0)
        self.dim = metric.dim
        self.quadratic_cost = metric.quadratic_cost
        if metric.immersion is not None:
            self._inner = metric.immersion
            self.immersion = Map(self._joined, metric.immersion.name, parts=(metric.immersion,))

    @property
    def like(self) -> Tensor | None:
        """The metric's."""
        return self.metric.like

    def _wrap(self, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        metric = copy.copy(self.metric)
        metric._wrap(wrapper)
        SphereMetric.__init__(self, metric, self.radius, self.norm_weight)

    def _directions(self, z: Tensor) -> tuple[Tensor, Tensor, float]:
        """Return norms (n, 1), unit vectors (n, d) and the radius."""
        norm = z.norm(dim=1, keepdim=True)
        return norm, z / norm, math.sqrt(z.shape[1]) if self.radius is None else self.radius

    def _joined(self, z: Tensor) -> Tensor:
        norm, direction, radius = self._directions(z)
        return torch.cat([self._inner(radius * direction), self.norm_weight * norm], dim=1)

    def tensor_rows(self, dim: int) -> int:
        """Forward rows that one metric tensor counts as: the metric's."""
        return self.metric.tensor_rows(dim)

    def row_width(self, z: Tensor) -> int:
        """Return the metric's."""
        return self.metric.row_width(z)

    def row_bytes(self) -> int:
        """Return the metric's."""
        return self.metric.row_bytes()

    def check(self, name: str, z: Tensor) -> None:
        """Evaluate the metric on the sphere, at the directions of codes from outside."""
        self.metric.check(name, self._checked(name, z))

    def check_definite(self, name: str, z: Tensor) -> None:
        """Raise where the metric is negative in a direction at codes from outside."""
        self.metric.check_definite(name, self._checked(name, z))

    def _checked(self, name: str, z: Tensor) -> Tensor:
        if bool((z == 0).all(dim=1).any()):
            required = "codes other than the origin, which has no direction"
            raise ValueError(requirement(name, required, "the origin"))
        _, direction, radius = self._directions(z)
        return radius * direction

    def _tensor(self, z: Tensor) -> Tensor:
        norm, direction, radius = self._directions(z)
        outer = direction[:, :, None] * direction[:, None, :]
        identity = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        turning = (radius / norm)[:, :, None] * (identity - outer)
        tensor = self.metric._tensor(radius * direction)
        return turning @ tensor @ turning + self.norm_weight**2 * outer

    def _quadratic(self, z: Tensor, v: Tensor) -> Tensor:
        norm, direction, radius = self._directions(z)
        along = (direction * v).sum(1, keepdim=True)
        turned = radius / norm * (v - along * direction)
        quadratic = self.metric._quadratic(radius * direction, turned)
        return quadratic + (self.norm_weight * along[:, 0]).square()
