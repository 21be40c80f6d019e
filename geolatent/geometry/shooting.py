"""The logarithm map, by shooting: the velocity whose geodesic reaches a code."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from geolatent.arrays import Array, Result
from geolatent.checks import check_integer, check_number, check_pairs
from geolatent.curves import CubicBSpline
from geolatent.geometry.flow import HamiltonianFlow
from geolatent.geometry.integrators import Integrator, check_integrator
from geolatent.graph import LatentGraph
from geolatent.metrics.base import Metric, check_metric
from geolatent.metrics.operators import check_formed, is_formed
from geolatent.metrics.rows import Rows
from geolatent.shapes import CodeShape
from geolatent.solution import Evaluations, GeodesicSolution
from geolatent.solve import solve_geodesic
from geolatent.solvers.preconditioned import PreconditionedSolver
from geolatent.solvers.problem import Callback, Solver

# a correction that does not help is halved so many times before the Jacobian is taken anew
_HALVINGS = 5
# a velocity is corrected up to so many times the spline's length
_LONGEST = 1.1


@dataclass(frozen=True)
class Shooting(Result):
    """Initial velocities of geodesics from B codes to B others.

    Attributes
    ----------
    velocity
        The logarithm log_start(end), (B, d).
    miss
        |exp_start(velocity) - end| in latent units, (B,); NaN where the geodesic that the spline
        starts could not be followed.
    converged
        Whether the miss is within the tolerance, (B,). Where not, the velocity is the one that
        missed least; the spline's own where none did better.
    length
        |velocity|_G, (B,).
    corrections
        Newton steps that were taken or tried, (B,).
    solution
        The splines that the corrections started from.
    evaluations
        Decoder rows spent, per pair, those of the splines included.
    """

    with_codes = ("velocity", "solution")

    velocity: Tensor
    miss: Tensor
    converged: Tensor
    length: Tensor
    corrections: Tensor
    solution: GeodesicSolution
    evaluations: Evaluations


def shoot_to(
    metric: Metric,
    start: Array,
    end: Array,
    *,
    solver: Solver | None = None,
    initial: LatentGraph | CubicBSpline | Array | None = None,
    integrator: Integrator | None = None,
    tolerance: float | None = None,
    max_corrections: int = 20,
    callback: Callback | None = None,
) -> Shooting:
    """Find the velocities with which geodesics leave some codes to arrive at others.

    A spline (`solve_geodesic`) gives the first velocity, which Newton's method then corrects until
    the geodesic that is shot with it meets the end point. The derivative of the end point by the
    velocity comes from neighbouring geodesics, integrated with the same steps, and is kept up to
    date by Broyden's rule; in more than 512 dimensions that begins with the derivative in flat
    space, and no neighbours are followed. A correction that does not help is halved, as is one that
    makes the geodesic longer than the spline by a tenth: it would belong to another geodesic.

    Long geodesics may be so sensitive to the velocity that no correction converges; ``miss`` tells.
    On a decoder with kinks (ELU and ReLU networks) use the integrator `DiscreteGeodesic`.

    Parameters
    ----------
    metric
        The metric.
    start, end
        Codes, (d,) or (B, d) each, broadcast, or of any shape, (B, ...).
    solver
        How the splines are found; by default ``PreconditionedSolver(tolerance=1e-5)``.
    initial
        Where the splines start, as for `solve_geodesic`.
    integrator
        How geodesics are followed, as for `shoot`.
    tolerance
        Miss at which a pair has converged, relative to the distance of the codes in the latent
        space; by default 1e-7 in float64, 1e-3 in float32.
    max_corrections
        Newton steps of each pair; 0 leaves the splines' velocities and only tells their miss.
    callback
        Told of the splines' progress.

    Returns
    -------
    Shooting
        Velocities, misses, lengths and costs.

    References
    ----------
    Broyden, "A class of methods for solving nonlinear simultaneous equations", 1965. Keller,
    "Numerical Methods for Two-Point Boundary-Value Problems", 1968, chapter 2 (shooting).

    Examples
    --------
    >>> from geolatent import PullbackMetric
    >>> plane = PullbackMetric(lambda z: 2.0 * z)
    >>> found = shoot_to(plane, torch.zeros(2), torch.tensor([3.0, 4.0]))
    >>> found.velocity, found.length
    (tensor([[3., 4.]]), tensor([10.]))
    """
    check_metric(metric)
    shape = CodeShape.of(start)
    metric, initial = shape.metric(metric), shape.flat("initial", initial)
    start, end = shape.flat("start", start), shape.flat("end", end)
    first, last = check_pairs(start, end, metric.dim, like=metric.like)
    dtype = first.dtype
    integrator = check_integrator(integrator)
    if tolerance is None:
        tolerance = 1e-7 if dtype == torch.float64 else 1e-3
    tolerance = check_number("tolerance", tolerance, above=0.0)
    max_corrections = check_integer("max_corrections", max_corrections, minimum=0)
    if max_corrections:
        check_formed("start", first.shape[1], "max_corrections=0 takes the splines' velocities")
    solver = PreconditionedSolver(tolerance=1e-5) if solver is None else solver
    solution = solve_geodesic(metric, first, last, solver, initial=initial, callback=callback)
    rows = Rows.of(metric, first).counting(len(first))
    newton = _NewtonShooting(rows, integrator, first.double(), last.double(), solution, tolerance)
    newton.run(max_corrections)
    shooting = Shooting(
        velocity=newton.velocity.to(dtype),
        miss=newton.miss.norm(dim=1).to(dtype),
        converged=newton.converged,
        length=newton.metric.norms(newton.velocity).to(dtype),
        corrections=newton.corrections,
        solution=solution,
        evaluations=solution.evaluations + rows.spent,
    )
    return shape.back(shooting)


class _NewtonShooting:
    """Newton's method on exp_start(v) = end, pair by pair; all tensors are float64."""

    def __init__(
        self,
        rows: Rows,
        integrator: Integrator,
        start: Tensor,
        end: Tensor,
        solution: GeodesicSolution,
        tolerance: float,
    ) -> None:
        self.rows, self.integrator = rows, integrator
        flow = HamiltonianFlow(rows)
        self.metric = flow.metric(start)
        # longer velocities belong to another geodesic than the spline's
        self.longest = _LONGEST * solution.length.double()
        self.start, self.end = start, end
        self.velocity = flow.start_velocities(solution.curve)
        self.goal = tolerance * (end - start).norm(dim=1)
        self.identity = torch.eye(start.shape[1], dtype=start.dtype, device=start.device)
        self.miss = torch.zeros_like(start)
        self.corrections = torch.zeros(len(start), dtype=torch.int64, device=start.device)
        apart = (start != end).any(1).nonzero()[:, 0]
        self.velocity[(start == end).all(1)] = 0.0
        self.miss[apart] = self._shoot(apart, self.velocity[apart])

    @property
    def converged(self) -> Tensor:
        """Whether the miss is within the goal, (B,)."""
        return self.miss.norm(dim=1) <= self.goal

    def _shoot(self, pairs: Tensor, velocity: Tensor) -> Tensor:
        """Return exp(v) - end of the given pairs."""
        return self._shoot_many(pairs, velocity[:, None])[:, 0]

    def _shoot_many(self, pairs: Tensor, velocities: Tensor) -> Tensor:
        """Return exp(v) - end, (A, C, d), for C velocities of each pair with common steps."""
        a, c, d = velocities.shape
        if not a:
            return velocities
        z = self.start[pairs, None].expand(a, c, d)
        times = torch.ones(1, dtype=z.dtype, device=z.device)
        rows = self.rows.counting(a)
        way = self.integrator.follow(rows, z, velocities, times)
        self.rows.spent.add(pairs, rows.spent)
        return way.points[:, -1] - self.end[pairs, None]

    def _differentiate(self, pairs: Tensor) -> None:
        """Take the Jacobians of the given pairs from neighbouring geodesics.

        In many dimensions Broyden's rule begins with those of flat space.
        """
        if not is_formed(self.rows.metric, self.start.shape[1]):
            self.jacobian[pairs] = self.identity
            return
        v = self.velocity[pairs]
        size = 1e-5 if self.rows.dtype == torch.float64 else 1e-2
        steps = size * v.norm(dim=1)
        neighbours = v[:, None] + steps[:, None, None] * self.identity
        misses = self._shoot_many(pairs, torch.cat([v[:, None], neighbours], dim=1))
        change = (misses[:, 1:] - misses[:, :1]) / steps[:, None, None]
        self.jacobian[pairs] = change.mT

    def run(self, max_corrections: int) -> None:
        """Correct the velocities of all pairs that have not converged."""
        if not max_corrections:
            return
        self.jacobian = self.identity.repeat(len(self.start), 1, 1)
        pairs = (~self.converged & self.miss.isfinite().all(1)).nonzero()[:, 0]
        fresh = torch.zeros_like(self.corrections, dtype=torch.bool)
        stale = torch.ones_like(fresh)
        share = torch.ones_like(self.velocity[:, 0])
        while pairs.numel():
            renewed = pairs[stale[pairs]]
            self._differentiate(renewed)
            stale[renewed], fresh[renewed], share[renewed] = False, True, 1.0
            jacobian, miss = self.jacobian[pairs], self.miss[pairs]
            full, info = torch.linalg.solve_ex(jacobian, -miss)
            change = share[pairs, None] * full
            trial = self.velocity[pairs] + change
            usable = (info == 0) & trial.isfinite().all(1)
            usable &= ~(self.metric[pairs].norms(trial) > self.longest[pairs])
            new = torch.full_like(miss, torch.nan)
            new[usable] = self._shoot(pairs[usable], trial[usable])
            self.corrections[pairs] += 1
            before, after = miss.norm(dim=1), new.norm(dim=1)
            better = after < before  # false where the shot failed
            # Broyden: the least change of J that explains the new miss
            unexplained = new - miss - torch.einsum("nij,nj->ni", jacobian, change)
            square = change.square().sum(1).clamp_min(1e-300)
            update = unexplained[:, :, None] * change[:, None] / square[:, None, None]
            self.jacobian[pairs] = torch.where(better[:, None, None], jacobian + update, jacobian)
            self.velocity[pairs] = torch.where(better[:, None], trial, self.velocity[pairs])
            self.miss[pairs] = torch.where(better[:, None], new, miss)
            share[pairs] = torch.where(
                better, (2.0 * share[pairs]).clamp_max(1.0), share[pairs] / 2
            )
            slow = ~better | (after > 0.5 * before)
            small = share[pairs] < 0.5**_HALVINGS
            # a fresh Jacobian whose small step does not help: the limit of the integration
            stuck = ~better & fresh[pairs] & (small | (info != 0))
            stale[pairs] = slow & ~fresh[pairs] | better & slow
            fresh[pairs] = fresh[pairs] & ~better
            going = ~self.converged[pairs] & ~stuck & (self.corrections[pairs] < max_corrections)
            pairs = pairs[going]


def log_map(
    metric: Metric,
    start: Array,
    end: Array,
    *,
    solver: Solver | None = None,
    initial: LatentGraph | CubicBSpline | Array | None = None,
    integrator: Integrator | None = None,
    tolerance: float | None = None,
    max_corrections: int = 20,
) -> Tensor:
    """Return the logarithm map log_start(end): the velocity whose geodesic arrives at time 1.

    `exp_map` with the same integrator leads back to ``end``. Parameters and errors are those of
    `shoot_to`, which also returns misses, lengths and costs. Between far points there may be
    several geodesics; this is the one that `solve_geodesic` finds, not proved to be the shortest.

    Returns
    -------
    Tensor
        Shape (B, d). Where the geodesic does not meet the end point to the tolerance, the velocity
        that missed it least, with a warning.

    Examples
    --------
    >>> from geolatent import PullbackMetric
    >>> plane = PullbackMetric(lambda z: 2.0 * z)
    >>> log_map(plane, torch.zeros(2), torch.tensor([3.0, 4.0]))
    tensor([[3., 4.]])
    """
    found = shoot_to(
        metric,
        start,
        end,
        solver=solver,
        initial=initial,
        integrator=integrator,
        tolerance=tolerance,
        max_corrections=max_corrections,
    )
    open_pairs = ~found.converged
    if bool(open_pairs.any()):
        misses = found.miss[open_pairs].nan_to_num(torch.inf)
        warnings.warn(
            f"{int(open_pairs.sum())} of {len(open_pairs)} geodesics miss their end point by more "
            f"than the tolerance, by up to {float(misses.max()):.2g} in latent units",
            stacklevel=2,
        )
    return found.velocity
