"""Frechet means: the points of least mean squared geodesic distance."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from geolatent.arrays import Array, Result, as_tensor
from geolatent.checks import (
    check_alike,
    check_codes,
    check_integer,
    check_number,
    check_tensor,
    describe,
    requirement,
)
from geolatent.geometry.integrators import Integrator
from geolatent.geometry.logarithms import Logarithms
from geolatent.graph import LatentGraph
from geolatent.metrics.base import Metric, check_metric
from geolatent.metrics.operators import metric_operator
from geolatent.shapes import CodeShape
from geolatent.solution import Evaluations
from geolatent.solvers.problem import Solver

_SMALLEST_STEP = 2.0**-8


@dataclass(frozen=True)
class FrechetMean(Result):
    """Frechet means and how they were found; K is left out where one mean was asked for.

    Attributes
    ----------
    mean
        Shape (d,) or (K, d).
    variance
        Weighted mean of the squared distances to the points, the weights of sum 1: (K,).
    gradient
        |sum_i w_i log_mean(x_i)|_G over the root of the variance, (K,): zero at a minimum.
    converged
        Whether that is at most the tolerance, (K,).
    iterations
        Steps tried, (K,).
    evaluations
        Decoder rows spent, per mean.
    """

    with_codes = ("mean",)

    mean: Tensor
    variance: Tensor
    gradient: Tensor
    converged: Tensor
    iterations: Tensor
    evaluations: Evaluations


def frechet_mean(
    metric: Metric,
    points: Array,
    weights: Array | None = None,
    *,
    start: Array | None = None,
    solver: Solver | None = None,
    initial: LatentGraph | None = None,
    integrator: Integrator | None = None,
    tolerance: float = 1e-3,
    max_iterations: int = 50,
) -> FrechetMean:
    r"""Return the weighted Frechet mean, the code of least sum of squared geodesic distances.

    .. math::

        \operatorname{argmin}_m \sum_i w_i \, d(m, x_i)^2.

    Gradient descent with the logarithms, m <- m + s sum_i w_i log_m(x_i), where all geodesics of a
    step, of all means, are solved in one call and start from those of the step before. The step s
    is 1 (exact in flat space) or the largest power of 1/2 that lowers the sum. On a positively
    curved or rough metric there may be several local minima; this finds one.

    Parameters
    ----------
    metric
        The metric.
    points
        Codes x, (n, d), or of any shape, (n, ...).
    weights
        Weights w, (n,), not negative; or (K, n) for K means at once. Equal by default. Each set is
        divided by its sum.
    start
        Where to start, (d,) or (K, d); by default the weighted means of the coordinates.
    solver
        How geodesics are found; by default ``PreconditionedSolver(tolerance=1e-5)``.
    initial
        A graph for the first geodesics to start from.
    integrator
        Where given, logarithms are corrected by shooting (`shoot_to`): dearer, for means to many
        digits. By default they are taken from the splines.
    tolerance
        Length of the mean logarithm over the root of the variance at which a mean has converged.
    max_iterations
        Steps tried for each mean.

    Returns
    -------
    FrechetMean
        Means, variances, and how they were found. Points that no finite geodesic reaches from the
        start are left out, with a warning.

    Raises
    ------
    ValueError
        Where a mean reaches none of its points.

    References
    ----------
    Karcher, "Riemannian center of mass and mollifier smoothing", 1977. Pennec, "Intrinsic
    statistics on Riemannian manifolds", 2006.

    Examples
    --------
    >>> from geolatent import PullbackMetric
    >>> plane = PullbackMetric(lambda z: 2.0 * z)
    >>> found = frechet_mean(plane, torch.tensor([[0.0, 0.0], [4.0, 0.0], [2.0, 3.0]]))
    >>> found.mean.round(decimals=4), found.converged.item()
    (tensor([2., 1.]), True)
    """
    check_metric(metric)
    code_shape = CodeShape.of(points)
    metric, points = code_shape.metric(metric), code_shape.flat("points", points)
    start, initial = code_shape.flat("start", start), code_shape.flat("initial", initial)
    like = metric.like
    points = check_codes("points", points, metric.dim, like=like).detach()
    metric.check("points", points[:1])
    n, d = points.shape
    given = as_tensor(weights)
    single = given is None or (isinstance(given, Tensor) and given.ndim == 1)
    shares = _check_weights(weights, n, points)
    k = shares.shape[0]
    if start is None:
        means = shares @ points.double()
    else:
        shape = f"({d},) or (1, {d}) or ({k}, {d})"
        begin = torch.atleast_2d(check_tensor("start", start, shape, like=like))
        check_alike("start", begin, "points", points)
        means = begin.detach().double().expand(k, d).clone()
    tolerance = check_number("tolerance", tolerance, above=0.0)
    max_iterations = check_integer("max_iterations", max_iterations)

    group, member = (shares > 0).nonzero(as_tuple=True)
    weight = shares[group, member]
    logarithms = Logarithms(metric, points[member], solver, initial, integrator)
    evaluations = Evaluations.zeros(k, points.device)

    def pull(codes: Tensor, active: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean logarithms (K, d) and variances (K,) of the active means.

        The third tensor holds the numbers of the points that were not reached.
        """
        chosen = (active[group] & (weight > 0)).nonzero()[:, 0]
        velocity, length, spent = logarithms(codes[group[chosen]].to(points.dtype), chosen)
        share, where = weight[chosen], group[chosen]
        mean = codes.new_zeros((k, d)).index_add(0, where, share[:, None] * velocity)
        variance = codes.new_zeros(k).index_add(0, where, share * length.square())
        evaluations.add(where, spent)
        return mean, variance, chosen[~(length.isfinite() & velocity.isfinite().all(1))]

    active = torch.ones(k, dtype=torch.bool, device=points.device)
    direction, variance, unreached = pull(means, active)
    if unreached.numel():
        warnings.warn(
            f"{unreached.numel()} points are left out: no finite geodesic reaches them",
            stacklevel=2,
        )
        weight[unreached] = 0.0
        total = weight.new_zeros(k).index_add(0, group, weight)
        if not bool((total > 0).all()):
            required = "within reach of finite geodesics from where each mean starts"
            raise ValueError(requirement("points", required, "a mean that reaches none"))
        weight = weight / total[group]
        direction, variance, _ = pull(means, active)
    step = torch.ones_like(variance)
    iterations = torch.zeros(k, dtype=torch.int64, device=points.device)

    def relative(codes: Tensor, direction: Tensor, variance: Tensor) -> Tensor:
        size = metric_operator(logarithms.rows, codes).norms(direction)
        return torch.where(variance == 0, 0.0, size / variance.sqrt())

    gradient = relative(means, direction, variance)
    active = gradient > tolerance
    while bool(active.any()):
        trial = torch.where(active[:, None], means + step[:, None] * direction, means)
        new_direction, new_variance, _ = pull(trial, active)
        iterations[active] += 1
        # rounding and the quadrature's error must not stop a mean that is nearly there
        better = active & (new_variance <= variance * (1.0 + 1e-4 * gradient.clamp_max(1.0)))
        means = torch.where(better[:, None], trial, means)
        direction = torch.where(better[:, None], new_direction, direction)
        variance = torch.where(better, new_variance, variance)
        step = torch.where(better, (1.5 * step).clamp_max(1.0), step / 2.0)
        gradient = torch.where(better, relative(means, direction, variance), gradient)
        going = (gradient > tolerance) & (step >= _SMALLEST_STEP) & (iterations < max_iterations)
        active = active & going
    values = (means.to(points.dtype), variance, gradient, gradient <= tolerance, iterations)
    mean, variance, gradient, converged, iterations = (
        value[0] if single else value for value in values
    )
    found = FrechetMean(mean, variance, gradient, converged, iterations, evaluations)
    return code_shape.back(found)


def _check_weights(weights: object, n: int, points: Tensor) -> Tensor:
    """Return weights as float64 of shape (K, n), each row of sum 1."""
    if weights is None:
        return torch.full((1, n), 1.0 / n, dtype=torch.float64, device=points.device)
    values = torch.atleast_2d(check_tensor("weights", weights, f"({n},) or (K, {n})").detach())
    if values.device != points.device:
        required = f"on the device of `points`, {points.device}"
        raise ValueError(requirement("weights", required, describe(values)))
    if bool((values < 0).any()) or bool((values.sum(1) <= 0).any()):
        required = "not negative, with a positive sum"
        raise ValueError(requirement("weights", required, f"{float(values.min()):.3g} at least"))
    values = values.double()
    return values / values.sum(1, keepdim=True)
