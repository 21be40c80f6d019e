"""Curves continued beyond their ends as geodesics."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from geolatent.arrays import Array
from geolatent.checks import check_tensor
from geolatent.curves import CubicBSpline
from geolatent.geometry.exponential import shoot
from geolatent.geometry.integrators import Integrator
from geolatent.geometry.ode import TrajectoryStatus
from geolatent.lengths import check_curve
from geolatent.metrics.base import Metric


def extrapolate(
    metric: Metric,
    curve: CubicBSpline,
    t: Array,
    *,
    integrator: Integrator | None = None,
) -> Tensor:
    """Go on beyond the end points of geodesics: the spline within [0, 1], geodesics outside.

    Parameters
    ----------
    metric
        The metric.
    curve
        B geodesics, as from `solve_geodesic`. They are followed beyond their ends with the
        velocities they have there.
    t
        Parameters, (T,): below 0 before the start, above 1 beyond the end.
    integrator
        As for `shoot`.

    Returns
    -------
    Tensor
        Shape (B, T, d); NaN, with a warning, where a geodesic could not be followed.

    Examples
    --------
    >>> line = CubicBSpline.straight(torch.zeros(1), torch.ones(1))
    >>> from geolatent import PullbackMetric
    >>> plane = PullbackMetric(lambda z: 2.0 * z)
    >>> extrapolate(plane, line, torch.tensor([-1.0, 0.5, 3.0])).flatten().round(decimals=4)
    tensor([-1.0000,  0.5000,  3.0000])
    """
    metric, curve, shape = check_curve(metric, curve)
    t = check_tensor("t", t, "(T,)").detach()
    points = curve.control_points
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64, device=points.device)
    slopes = curve.derivative(ends)
    result = points.new_empty((curve.batch_size, t.numel(), curve.dim))
    inside = (t >= 0) & (t <= 1)
    if bool(inside.any()):
        result[:, inside] = curve(t[inside])
    failed = 0
    for outside, past, start, slope in (
        (t < 0, -t, points[:, 0], -slopes[:, 0]),
        (t > 1, t - 1, points[:, -1], slopes[:, 1]),
    ):
        if not bool(outside.any()):
            continue
        times, order = past[outside].sort()
        way = shoot(metric, start, slope, times, integrator=integrator)
        failed += int((way.status != TrajectoryStatus.FINISHED).sum())
        result[:, outside.nonzero()[:, 0][order]] = way.points
    if failed:
        warnings.warn(
            f"{failed} geodesics could not be followed to the last parameter and are NaN there",
            stacklevel=2,
        )
    return shape.back(result)
