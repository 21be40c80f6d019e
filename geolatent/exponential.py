"""Geodesics as initial-value problems: exponential and logarithm maps, shooting, extrapolation."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from geolatent.checks import (
    check_alike,
    check_codes,
    check_integer,
    check_number,
    check_pairs,
    check_tensor,
    describe,
    requirement,
)
from geolatent.curves import DEGREE, CubicBSpline
from geolatent.graph import LatentGraph
from geolatent.metrics.base import Metric, check_metric
from geolatent.metrics.budget import RowBudget
from geolatent.ode import TrajectoryStatus, integrate
from geolatent.quadrature import composite_rule
from geolatent.solution import Evaluations, GeodesicSolution
from geolatent.solve import solve_geodesic
from geolatent.solvers.preconditioned import PreconditionedSolver
from geolatent.solvers.problem import Callback, Solver

# a correction that does not help is halved so many times before the Jacobian is taken anew
_HALVINGS = 5
# a velocity is corrected up to so many times the spline's length
_LONGEST = 1.1


@dataclass(frozen=True)
class Trajectory:
    """Geodesics that leave B codes with given velocities.

    Attributes
    ----------
    t
        Times, (T,).
    points, velocities
        z(t) and z'(t), (B, T, d); NaN from where a trajectory failed.
    energy
        v^T G v / 2 at the times, (B, T), which the exact geodesic keeps.
    status
        `TrajectoryStatus` of every trajectory as an int64 tensor of shape (B,).
    steps
        Steps of the integrator, (B,).
    evaluations
        Decoder rows spent, per trajectory.
    """

    t: Tensor
    points: Tensor
    velocities: Tensor
    energy: Tensor
    status: Tensor
    steps: Tensor
    evaluations: Evaluations

    @property
    def statuses(self) -> list[TrajectoryStatus]:
        """The statuses as enumeration members, which explain themselves."""
        return [TrajectoryStatus(value) for value in self.status.tolist()]


class HamiltonianFlow:
    """Hamilton's equations of the geodesics of a metric, for states (z, p) in float64.

    With the momentum p = G(z) v,

        z' = v = G(z)^-1 p,    p' = 1/2 grad_z (v^T G(z) v), v held fixed,

    which needs one metric tensor and one gradient of the quadratic form, and no Christoffel symbol.

    Parameters
    ----------
    metric
        The metric.
    dtype
        Floating-point type that the metric's functions work in.
    dim
        Latent dimension d.
    budget
        The rows that may go through the decoder at once.
    """

    def __init__(self, metric: Metric, dtype: torch.dtype, dim: int, budget: RowBudget) -> None:
        self.metric = metric
        self.dtype = dtype
        self.dim = dim
        self.budget = budget

    def tensors(self, z: Tensor) -> Tensor:
        """Return G at codes (n, d), float64, without gradients."""

        def chunk(items: slice) -> Tensor:
            with torch.no_grad():
                return self.metric._tensor(z[items].to(self.dtype)).double()

        return torch.cat(self.budget.run(chunk, z.shape[0], self.metric.tensor_rows(self.dim)))

    def __call__(self, states: Tensor) -> Tensor:
        """Return the time derivatives of states (n, 2 d)."""
        rows = self.metric.tensor_rows(self.dim) + 2
        return torch.cat(
            self.budget.run(lambda items: self._slopes(states[items]), states.shape[0], rows)
        )

    def _slopes(self, states: Tensor) -> Tensor:
        z, momentum = states[:, : self.dim], states[:, self.dim :]
        point = z.to(self.dtype).detach().requires_grad_()
        whole = self.metric.quadratic_cost == "forward"  # a tensor costs no more than its use
        with torch.set_grad_enabled(whole):
            tensor = self.metric._tensor(point)
        velocity = solve_metric(tensor.detach().double(), momentum)
        v = velocity.to(self.dtype)
        with torch.enable_grad():
            if whole:
                square = torch.einsum("ni,nij,nj->n", v, tensor, v)
            else:
                square = self.metric._quadratic(point, v)
        if not square.requires_grad:  # a constant metric
            return torch.cat([velocity, torch.zeros_like(momentum)], dim=1)
        (force,) = torch.autograd.grad(square.sum(), point, materialize_grads=True)
        return torch.cat([velocity, 0.5 * force.double()], dim=1)

    def start_velocities(self, curve: CubicBSpline, evaluations: Evaluations) -> Tensor:
        """Return the velocities of the geodesics that splines approximate, at t = 0, (B, d).

        From the momentum in weak form, with p and f the two halves of the gradient of v^T G v / 2,

            p(0) = integral_0^1 (p(t) - (1 - t) f(t)) dt,

        the derivative of the energy by the start (envelope theorem). Its error is of the order of
        the spline's excess energy, that of the spline's own derivative of its square root.
        """
        t, weights = composite_rule(curve.knots, 4)
        z, v = (part.to(self.dtype) for part in (curve(t), curve.derivative(t)))

        def chunk(items: slice) -> Tensor:
            point = z[items].flatten(0, 1).detach().requires_grad_()
            velocity = v[items].flatten(0, 1).detach().requires_grad_()
            with torch.enable_grad():
                half = 0.5 * self.metric._quadratic(point, velocity)
            if not half.requires_grad:
                return torch.zeros_like(z[items][:, 0]).double()
            force, momentum = torch.autograd.grad(
                half.sum(), (point, velocity), materialize_grads=True
            )
            whole = momentum.double().reshape(-1, len(t), self.dim)
            whole = whole - (1.0 - t)[:, None] * force.double().reshape(whole.shape)
            return torch.einsum("q,bqd->bd", weights, whole)

        momentum = torch.cat(self.budget.run(chunk, z.shape[0], 3 * len(t)))
        start = curve.control_points[:, 0].double()
        if self.metric.quadratic_cost == "forward":
            evaluations.forward.add_(len(t))
            evaluations.backward.add_(len(t))
        else:
            evaluations.jvp.add_(3 * len(t))
        evaluations.forward.add_(self.metric.tensor_rows(self.dim))
        return solve_metric(self.tensors(start), momentum)


def solve_metric(tensors: Tensor, covectors: Tensor) -> Tensor:
    """Return G^-1 p for (n, d, d) and (n, d); NaN where G is not positive definite."""
    factor, info = torch.linalg.cholesky_ex(tensors)
    vectors = torch.cholesky_solve(covectors[:, :, None], factor)[:, :, 0]
    return torch.where((info == 0)[:, None], vectors, torch.nan)


@dataclass(frozen=True)
class Followed:
    """Geodesics of B groups of C neighbours: points, velocities (B, T, C, d); energy (B, T, C)."""

    points: Tensor
    velocities: Tensor
    energy: Tensor
    status: Tensor
    steps: Tensor
    evaluations: Evaluations


class Integrator(ABC):
    """A way to follow geodesics. Subclasses are frozen dataclasses of their settings."""

    @abstractmethod
    def follow(self, flow: HamiltonianFlow, z: Tensor, v: Tensor, times: Tensor) -> Followed:
        """Follow the geodesics of C neighbours at a time, (B, C, d) each, alike in their steps.

        ``times`` (T,) ascend from 0 or later; all tensors are float64.
        """


@dataclass(frozen=True)
class RungeKutta(Integrator):
    """Hamilton's equations by a Runge-Kutta method of order 5(4) with step control. The default.

    Every trajectory has steps of its own (`geolatent.ode.integrate`). Errors are measured in the
    metric, so that units and stretched coordinates do not matter. The right integrator for smooth
    metrics; each kink of a decoder (ELU, ReLU) makes the force jump and costs some twenty steps.

    Parameters
    ----------
    tolerance
        Error allowed to one step, as a share of the length of the way; by default 1e-9 in float64,
        1e-5 in float32.
    max_steps
        Steps of each trajectory.

    Raises
    ------
    TypeError, ValueError
        Where a setting is out of its range.
    """

    tolerance: float | None = None
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        if self.tolerance is not None:
            check_number("tolerance", self.tolerance, above=0.0)
        check_integer("max_steps", self.max_steps)

    def follow(self, flow: HamiltonianFlow, z: Tensor, v: Tensor, times: Tensor) -> Followed:
        """Integrate the states of C neighbours as one."""
        b, c, d = z.shape
        metric = flow.metric
        tolerance = self.tolerance or (1e-9 if flow.dtype == torch.float64 else 1e-5)
        tensors = flow.tensors(z.reshape(-1, d)).reshape(b, c, d, d)
        momentum = torch.einsum("bcij,bcj->bci", tensors, v)
        state = torch.cat([z, momentum], dim=2).reshape(b, -1)
        speed = (momentum * v).sum(2).clamp_min(0.0).sqrt()[:, :1].clamp_min(1e-300)
        way = speed * float(times[-1])

        def slopes(states: Tensor, index: Tensor) -> Tensor:  # noqa: ARG001
            return flow(states.reshape(-1, 2 * d)).reshape(states.shape)

        def error_ratio(errors: Tensor, states: Tensor, index: Tensor) -> Tensor:
            tensors = flow.tensors(states.reshape(-1, 2 * d)[:, :d])
            of_place, of_momentum = errors.reshape(-1, 2 * d).split(d, dim=1)
            place = torch.einsum("ni,nij,nj->n", of_place, tensors, of_place)
            turn = (solve_metric(tensors, of_momentum) * of_momentum).sum(1)
            place, turn = (
                part.clamp_min(0.0).sqrt().reshape(-1, c) / unit[index]
                for part, unit in ((place, way), (turn, speed))
            )
            return (torch.maximum(place, turn) / tolerance).amax(1)

        result = integrate(slopes, state, times, error_ratio, max_steps=self.max_steps)
        states = result.states.reshape(-1, 2 * d)
        velocities = torch.full_like(states[:, :d], torch.nan)
        known = states.isfinite().all(1)
        if bool(known.any()):
            tensors = flow.tensors(states[known, :d])
            velocities[known] = solve_metric(tensors, states[known, d:])
        energy = 0.5 * (velocities * states[:, d:]).sum(1)
        evaluations = Evaluations.zeros(b, z.device)
        calls, rows = c * result.right_hand_sides, metric.tensor_rows(d)
        evaluations.forward.add_(rows * c * (1 + times.numel() + result.steps))
        if metric.quadratic_cost == "forward":
            evaluations.forward.add_(calls)
            evaluations.backward.add_(calls)
        else:
            evaluations.forward.add_(rows * calls)
            evaluations.jvp.add_(3 * calls)
        shape = (b, times.numel(), c, d)
        return Followed(
            states[:, :d].reshape(shape),
            velocities.reshape(shape),
            energy.reshape(shape[:3]),
            result.status,
            result.steps,
            evaluations,
        )


@dataclass(frozen=True)
class DiscreteGeodesic(Integrator):
    """Chains of points whose outputs balance, for metrics with an immersion F.

    A chain z_0, z_1, ... is stationary for the sum of squared chords |F(z_{k+1}) - F(z_k)|^2 when

        J_F(z_k)^T (F(z_{k+1}) - 2 F(z_k) + F(z_{k-1})) = 0,

    which is solved for z_{k+1}, step by step. The error is of second order in the step, and stays
    so on decoders with kinks, since no second derivative of F enters. The steps are fixed, so the
    exponential map is as smooth a function of the velocity as the decoder allows: `log_map` and
    `exp_map` with one and the same chain are inverse to each other far below the chain's own error.

    Parameters
    ----------
    n_steps
        Steps up to the last time.
    max_iterations
        Fixed-point iterations of each step.

    Raises
    ------
    TypeError, ValueError
        Where a setting is out of its range, or the metric has no immersion.

    References
    ----------
    Rumpf, Wirth, "Variational time discretization of geodesic calculus", IMA J. Numer. Anal. 35,
    2015, https://arxiv.org/abs/1210.2097. Marsden, West, "Discrete mechanics and variational
    integrators", Acta Numerica 10, 2001.
    """

    n_steps: int = 256
    max_iterations: int = 50

    def __post_init__(self) -> None:
        check_integer("n_steps", self.n_steps)
        check_integer("max_iterations", self.max_iterations)

    def follow(self, flow: HamiltonianFlow, z: Tensor, v: Tensor, times: Tensor) -> Followed:
        """Build the chains, and interpolate between their points by cubic Hermite polynomials."""
        immersion = flow.metric.immersion
        if immersion is None:
            required = "one with an immersion (use the RungeKutta integrator)"
            raise ValueError(requirement("metric", required, describe(flow.metric)))
        b, c, d = z.shape
        last = float(times[-1])
        h = last / self.n_steps

        def outputs(points: Tensor) -> Tensor:
            def chunk(items: slice) -> Tensor:
                with torch.no_grad():
                    return immersion(points[items].to(flow.dtype)).double()

            return torch.cat(flow.budget.run(chunk, points.shape[0], 1))

        def columns(points: Tensor) -> Tensor:
            def chunk(items: slice) -> Tensor:
                with torch.no_grad():
                    return immersion.columns(points[items].to(flow.dtype))[1].double()

            return torch.cat(flow.budget.run(chunk, points.shape[0], d), dim=1)

        point = z.reshape(-1, d)
        value, jacobian = outputs(point), columns(point)
        tensor = torch.einsum("inD,jnD->nij", jacobian, jacobian)
        momentum = torch.einsum("nij,nj->ni", tensor, v.reshape(-1, d))
        points, momenta, tensors = [point], [momentum], [tensor]
        guess = point + h * v.reshape(-1, d)
        rows = torch.full((point.shape[0],), 1 + d, device=z.device)
        # what an iteration may leave over: far below the error of the chain, and what the rounding
        # of the outputs allows
        speed = (momentum * v.reshape(-1, d)).sum(1).clamp_min(1e-300).sqrt()
        small = (1e-13 if flow.dtype == torch.float64 else 1e-6) * h * speed
        rounding = 8.0 * torch.finfo(flow.dtype).eps
        lost = torch.zeros_like(speed, dtype=torch.bool)
        for _ in range(self.n_steps if last > 0.0 else 0):
            new, open_ = guess, torch.arange(point.shape[0], device=z.device)
            new_value = torch.full_like(value, torch.nan)
            for _ in range(self.max_iterations):
                new_value[open_] = outputs(new[open_])
                rows[open_] += 1
                pull = torch.einsum("inD,nD->ni", jacobian[:, open_], (new_value - value)[open_])
                step = solve_metric(tensor[open_], h * momentum[open_] - pull)
                new = new.index_add(0, open_, step)
                size = torch.einsum("ni,nij,nj->n", step, tensor[open_], step).sqrt()
                allowed = small[open_] + rounding * new_value[open_].norm(dim=1)
                open_ = open_[size > allowed]  # NaN ends an iteration too
                if not open_.numel():
                    break
            lost[open_] = True
            new_value = outputs(new)
            jacobian = columns(new)
            rows += 1 + d
            momentum = torch.einsum("inD,nD->ni", jacobian, new_value - value) / h
            tensor = torch.einsum("inD,jnD->nij", jacobian, jacobian)
            guess = 2.0 * new - point
            if len(points) > 1:  # the parabola through the last three points
                guess = guess + (new - 2.0 * point + points[-2])
            point, value = new, new_value
            points.append(point)
            momenta.append(momentum)
            tensors.append(tensor)
        nodes, gram = torch.stack(points, dim=1), torch.stack(tensors, dim=1)
        p = torch.stack(momenta, dim=1)
        speeds = solve_metric(gram.flatten(0, 1), p.flatten(0, 1)).reshape(p.shape)
        place = times / h if last > 0.0 else times
        left = place.floor().long().clamp(0, max(0, nodes.shape[1] - 2))
        right = (left + 1).clamp_max(nodes.shape[1] - 1)
        x = (place - left)[:, None]
        bent = x * x * (3.0 - 2.0 * x)
        at = nodes[:, left] * (1.0 - bent) + nodes[:, right] * bent
        at = at + h * x * (1.0 - x) * (speeds[:, left] * (1.0 - x) - speeds[:, right] * x)
        velocity = torch.lerp(speeds[:, left], speeds[:, right], x)
        along = 0.5 * (p * speeds).sum(2)
        energy = torch.lerp(along[:, left], along[:, right], x[:, 0])
        failed = (lost | ~point.isfinite().all(1)).reshape(b, c)
        at[failed.flatten()] = torch.nan
        status = torch.where(
            point.isfinite().all(1).reshape(b, c).all(1),
            int(TrajectoryStatus.STEP_UNDERFLOW),
            int(TrajectoryStatus.NON_FINITE),
        )
        status = torch.where(failed.any(1), status, int(TrajectoryStatus.FINISHED))
        evaluations = Evaluations.zeros(b, z.device)
        evaluations.forward.add_(rows.reshape(b, c).sum(1))

        def grouped(values: Tensor) -> Tensor:
            return values.unflatten(0, (b, c)).transpose(1, 2)

        return Followed(
            grouped(at),
            grouped(velocity),
            grouped(energy),
            status,
            torch.full((b,), len(points) - 1, device=z.device),
            evaluations,
        )


def check_integrator(integrator: object) -> Integrator:
    """Return the integrator, or the default one for None."""
    integrator = RungeKutta() if integrator is None else integrator
    if not isinstance(integrator, Integrator):
        required = "a geolatent Integrator or None"
        raise TypeError(requirement("integrator", required, describe(integrator)))
    return integrator


def _check_tangents(metric: Metric, z: object, v: object) -> tuple[Tensor, Tensor]:
    """Return codes and tangent vectors as two tensors of one shape (B, d), broadcast together."""
    wanted = "d" if metric.dim is None else str(metric.dim)
    shape = f"of shape ({wanted},) or (B, {wanted})"
    codes = torch.atleast_2d(check_tensor("z", z, shape, (1, 2)))
    check_codes("z", codes, metric.dim)
    vectors = torch.atleast_2d(check_tensor("v", v, shape, (1, 2)))
    check_alike("v", vectors, "z", codes)
    sizes = {codes.shape[0], vectors.shape[0]} - {1}
    if vectors.shape[1] != codes.shape[1] or len(sizes) > 1:
        required = f"a tensor that broadcasts with `z`, of shape {tuple(codes.shape)}"
        raise ValueError(requirement("v", required, describe(vectors)))
    codes, vectors = torch.broadcast_tensors(codes.detach(), vectors.detach())
    metric.check("z", codes[:1])
    return codes, vectors


def shoot(
    metric: Metric,
    z: Tensor,
    v: Tensor,
    t: Tensor | None = None,
    *,
    integrator: Integrator | None = None,
    max_rows: int | None = None,
) -> Trajectory:
    """Follow the geodesics that leave codes with given velocities.

    All arithmetic but the metric's own is float64. A trajectory that fails has NaN from there on
    and its status says why; it does not touch the others.

    Parameters
    ----------
    metric
        The metric.
    z, v
        Codes and velocities, (d,) or (B, d) each, broadcast.
    t
        Times, (T,), ascending, not negative; by default 1 alone.
    integrator
        How to follow them: `RungeKutta()` by default; `DiscreteGeodesic()` copes better with
        decoders that have kinks.
    max_rows
        Largest number of rows sent through the decoder at once; chosen automatically by default.

    Returns
    -------
    Trajectory
        Points, velocities, energies, statuses and costs.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of the wrong kind, shape, dtype or device or not finite.

    References
    ----------
    Arvanitidis, Hansen, Hauberg, "Latent Space Oddity", ICLR 2018,
    https://arxiv.org/abs/1710.11379, equation 6 (the geodesic equation).

    Examples
    --------
    On the half-plane, geodesics that start upwards go up for ever, y(t) = exp(t).

    >>> from geolatent import TensorMetric
    >>> half_plane = TensorMetric(
    ...     lambda z: torch.eye(2).expand(len(z), 2, 2) / z[:, 1, None, None] ** 2, dim=2
    ... )
    >>> way = shoot(half_plane, torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]))
    >>> print(f"{way.points[0, -1, 1].item():.3f}, {way.statuses[0].name}")
    2.718, FINISHED
    """
    check_metric(metric)
    codes, vectors = _check_tangents(metric, z, v)
    if t is None:
        t = torch.ones(1, dtype=torch.float64)
    times = check_tensor("t", t, "of shape (T,)", (1,)).detach().to(codes.device, torch.float64)
    if bool((times < 0).any()) or bool((times.diff() < 0).any()):
        required = "ascending and not negative"
        raise ValueError(requirement("t", required, times.tolist()))
    integrator = check_integrator(integrator)
    budget = RowBudget(max_rows)
    budget.fit(metric, codes[:1])
    flow = HamiltonianFlow(metric, codes.dtype, codes.shape[1], budget)
    way = integrator.follow(flow, codes.double()[:, None], vectors.double()[:, None], times)
    return Trajectory(
        t=times,
        points=way.points[:, :, 0].to(codes.dtype),
        velocities=way.velocities[:, :, 0].to(codes.dtype),
        energy=way.energy[:, :, 0].to(codes.dtype),
        status=way.status,
        steps=way.steps,
        evaluations=way.evaluations,
    )


def exp_map(
    metric: Metric,
    z: Tensor,
    v: Tensor,
    *,
    integrator: Integrator | None = None,
    max_rows: int | None = None,
) -> Tensor:
    """Return the exponential map exp_z(v): where the geodesic with velocity v is at time 1.

    Its length is |v|_G = sqrt(v^T G(z) v). Parameters and errors are those of `shoot`, which also
    returns the way, statuses and costs.

    Returns
    -------
    Tensor
        Shape (B, d); NaN, with a warning, where a geodesic could not be followed to its end.

    Examples
    --------
    >>> from geolatent import PullbackMetric
    >>> plane = PullbackMetric(lambda z: 3.0 * z)
    >>> exp_map(plane, torch.zeros(2), torch.tensor([1.0, 2.0]))
    tensor([[1., 2.]])
    """
    way = shoot(metric, z, v, integrator=integrator, max_rows=max_rows)
    failed = way.status != TrajectoryStatus.FINISHED
    if bool(failed.any()):
        first = TrajectoryStatus(int(way.status[failed][0]))
        warnings.warn(
            f"{int(failed.sum())} of {len(failed)} geodesics did not reach their end and are NaN; "
            f"the first: {first.name}, {first.explanation}",
            stacklevel=2,
        )
    return way.points[:, -1]


@dataclass(frozen=True)
class Shooting:
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

    velocity: Tensor
    miss: Tensor
    converged: Tensor
    length: Tensor
    corrections: Tensor
    solution: GeodesicSolution
    evaluations: Evaluations


def shoot_to(
    metric: Metric,
    start: Tensor,
    end: Tensor,
    *,
    solver: Solver | None = None,
    initial: LatentGraph | CubicBSpline | Tensor | None = None,
    integrator: Integrator | None = None,
    tolerance: float | None = None,
    max_corrections: int = 20,
    max_rows: int | None = None,
    callback: Callback | None = None,
) -> Shooting:
    """Find the velocities with which geodesics leave some codes to arrive at others.

    A spline (`solve_geodesic`) gives the first velocity, which Newton's method then corrects until
    the geodesic that is shot with it meets the end point. The derivative of the end point by the
    velocity comes from neighbouring geodesics, integrated with the same steps, and is kept up to
    date by Broyden's rule; a correction that does not help is halved, as is one that makes the
    geodesic longer than the spline by a tenth: it would belong to another geodesic.

    Long geodesics may be so sensitive to the velocity that no correction converges; ``miss`` tells.
    On a decoder with kinks (ELU and ReLU networks) use the integrator `DiscreteGeodesic`.

    Parameters
    ----------
    metric
        The metric.
    start, end
        Codes, (d,) or (B, d) each, broadcast.
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
    max_rows
        As for `shoot`.
    callback
        Told of the splines' progress.

    Returns
    -------
    Shooting
        Velocities, misses, lengths and costs.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of the wrong kind, shape, dtype or device or not finite.

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
    first, last = check_pairs(start, end, metric.dim)
    dtype = first.dtype
    integrator = check_integrator(integrator)
    if tolerance is None:
        tolerance = 1e-7 if dtype == torch.float64 else 1e-3
    tolerance = check_number("tolerance", tolerance, above=0.0)
    max_corrections = check_integer("max_corrections", max_corrections, minimum=0)
    solver = PreconditionedSolver(tolerance=1e-5) if solver is None else solver
    solution = solve_geodesic(
        metric, first, last, solver, initial=initial, max_rows=max_rows, callback=callback
    )
    budget = RowBudget(max_rows)
    budget.fit(metric, first[:1])
    flow = HamiltonianFlow(metric, dtype, first.shape[1], budget)
    evaluations = Evaluations.zeros(first.shape[0], first.device) + solution.evaluations
    velocity = flow.start_velocities(solution.curve, evaluations)
    newton = _NewtonShooting(
        flow,
        integrator,
        first.double(),
        last.double(),
        velocity,
        solution.length.double(),
        tolerance,
        evaluations,
    )
    newton.run(max_corrections)
    length = torch.einsum("ni,nij,nj->n", newton.velocity, newton.tensors, newton.velocity).sqrt()
    return Shooting(
        velocity=newton.velocity.to(dtype),
        miss=newton.miss.norm(dim=1).to(dtype),
        converged=newton.converged,
        length=length.to(dtype),
        corrections=newton.corrections,
        solution=solution,
        evaluations=evaluations,
    )


class _NewtonShooting:
    """Newton's method on exp_start(v) = end, pair by pair; all tensors are float64."""

    def __init__(
        self,
        flow: HamiltonianFlow,
        integrator: Integrator,
        start: Tensor,
        end: Tensor,
        velocity: Tensor,
        length: Tensor,
        tolerance: float,
        evaluations: Evaluations,
    ) -> None:
        self.flow, self.integrator = flow, integrator
        self.tensors = flow.tensors(start)
        evaluations.forward.add_(flow.metric.tensor_rows(flow.dim))
        # longer velocities belong to another geodesic than the spline's
        self.longest = _LONGEST * length
        self.start, self.end = start, end
        self.velocity = velocity
        self.evaluations = evaluations
        self.goal = tolerance * (end - start).norm(dim=1)
        b, d = start.shape
        self.jacobian = torch.eye(d, dtype=start.dtype, device=start.device).repeat(b, 1, 1)
        self.miss = torch.zeros_like(start)
        self.corrections = torch.zeros(b, dtype=torch.int64, device=start.device)
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
        way = self.integrator.follow(self.flow, z, velocities, times)
        for name in ("forward", "backward", "jvp"):
            getattr(self.evaluations, name)[pairs] += getattr(way.evaluations, name)
        return way.points[:, -1] - self.end[pairs, None]

    def _differentiate(self, pairs: Tensor) -> None:
        """Take the Jacobians of the given pairs from neighbouring geodesics."""
        v = self.velocity[pairs]
        size = 1e-5 if self.flow.dtype == torch.float64 else 1e-2
        steps = size * v.norm(dim=1)
        d = v.shape[1]
        directions = torch.eye(d, dtype=v.dtype, device=v.device)
        neighbours = v[:, None] + steps[:, None, None] * directions
        misses = self._shoot_many(pairs, torch.cat([v[:, None], neighbours], dim=1))
        change = (misses[:, 1:] - misses[:, :1]) / steps[:, None, None]
        self.jacobian[pairs] = change.mT

    def run(self, max_corrections: int) -> None:
        """Correct the velocities of all pairs that have not converged."""
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
            size = torch.einsum("ni,nij,nj->n", trial, self.tensors[pairs], trial).sqrt()
            usable &= ~(size > self.longest[pairs])
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
    start: Tensor,
    end: Tensor,
    *,
    solver: Solver | None = None,
    initial: LatentGraph | CubicBSpline | Tensor | None = None,
    integrator: Integrator | None = None,
    tolerance: float | None = None,
    max_corrections: int = 20,
    max_rows: int | None = None,
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
        max_rows=max_rows,
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


def extrapolate(
    metric: Metric,
    curve: CubicBSpline,
    t: Tensor,
    *,
    integrator: Integrator | None = None,
    max_rows: int | None = None,
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
    integrator, max_rows
        As for `shoot`.

    Returns
    -------
    Tensor
        Shape (B, T, d); NaN, with a warning, where a geodesic could not be followed.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of the wrong kind, shape, dtype or device or not finite.

    Examples
    --------
    >>> line = CubicBSpline.straight(torch.zeros(1), torch.ones(1))
    >>> from geolatent import PullbackMetric
    >>> plane = PullbackMetric(lambda z: 2.0 * z)
    >>> extrapolate(plane, line, torch.tensor([-1.0, 0.5, 3.0])).flatten().round(decimals=4)
    tensor([-1.0000,  0.5000,  3.0000])
    """
    check_metric(metric)
    if not isinstance(curve, CubicBSpline):
        raise TypeError(requirement("curve", "a CubicBSpline", describe(curve)))
    t = check_tensor("t", t, "of shape (T,)", (1,)).detach()
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
        way = shoot(
            metric,
            start,
            slope,
            times,
            integrator=integrator,
            max_rows=max_rows,
        )
        failed += int((way.status != TrajectoryStatus.FINISHED).sum())
        result[:, outside.nonzero()[:, 0][order]] = way.points
    if failed:
        warnings.warn(
            f"{failed} geodesics could not be followed to the last parameter and are NaN there",
            stacklevel=2,
        )
    return result


def geodesic_acceleration(metric: Metric, z: Tensor, v: Tensor) -> Tensor:
    """Return the acceleration z'' = -Gamma(v, v) of the geodesic through z with velocity v.

        G z'' = 1/2 grad_z (v^T G v) - (D_v G) v,

    D_v the derivative along v. The Christoffel symbols Gamma themselves are not formed; the last
    term is a double backward of the quadratic form.

    Parameters
    ----------
    metric
        The metric.
    z, v
        Codes and velocities, (d,) or (B, d) each, broadcast.

    Returns
    -------
    Tensor
        Shape (B, d); NaN where G is singular.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of the wrong kind, shape, dtype or device or not finite.

    Examples
    --------
    >>> from geolatent import TensorMetric
    >>> half_plane = TensorMetric(
    ...     lambda z: torch.eye(2).expand(len(z), 2, 2) / z[:, 1, None, None] ** 2, dim=2
    ... )
    >>> geodesic_acceleration(half_plane, torch.tensor([0.0, 2.0]), torch.tensor([0.0, 2.0]))
    tensor([[0., 2.]])
    """
    check_metric(metric)
    codes, vectors = _check_tangents(metric, z, v)
    return acceleration(metric, codes, vectors).to(codes.dtype)


def acceleration(metric: Metric, z: Tensor, v: Tensor) -> Tensor:
    """Return `geodesic_acceleration` for codes that are known to be good, (n, d) each, float64."""
    point = z.detach().requires_grad_()
    velocity = v.detach().requires_grad_()
    with torch.enable_grad():
        square = metric._quadratic(point, velocity)
        if not square.requires_grad:
            return torch.zeros_like(z, dtype=torch.float64)
        # 2 G v as a function of z, and the vector-Jacobian product of that
        by_z, by_v = torch.autograd.grad(
            square.sum(), (point, velocity), create_graph=True, materialize_grads=True
        )
        along = torch.zeros_like(by_z)
        if by_v.requires_grad:
            cotangent = torch.zeros_like(by_v, requires_grad=True)
            (pulled,) = torch.autograd.grad(
                by_v, point, cotangent, create_graph=True, materialize_grads=True
            )
            if pulled.requires_grad:
                (along,) = torch.autograd.grad(
                    pulled, cotangent, velocity.detach(), materialize_grads=True
                )
    with torch.no_grad():
        tensors = metric._tensor(z.detach()).double()
    return solve_metric(tensors, 0.5 * (by_z.detach() - along).double())


def geodesic_residual(metric: Metric, curve: CubicBSpline, t: Tensor | None = None) -> Tensor:
    """Return by how much splines fail the geodesic equation: a second certificate.

        r(t) = |gamma'' + Gamma(gamma', gamma')|_G / L,    L the length of the curve,

    the covariant acceleration. On a curve run through at constant speed, r is the geodesic
    curvature times the length: the angle in radians by which a curve of that curvature turns away
    from a geodesic on its way. It is zero along a geodesic. The splines of `solve_geodesic` have
    the right place and length long before the right second derivative: residuals of some tenths go
    with excess lengths of 1e-4.

    Parameters
    ----------
    metric
        The metric.
    curve
        B curves.
    t
        Parameters, (T,) in [0, 1]; by default 33 points, none of them a knot.

    Returns
    -------
    Tensor
        Shape (B, T), without units.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of the wrong kind, or the curve's dimension is not the metric's.

    Examples
    --------
    >>> line = CubicBSpline.straight(torch.zeros(1), torch.ones(1))
    >>> from geolatent import PullbackMetric
    >>> plane = PullbackMetric(lambda z: 2.0 * z)
    >>> bool((geodesic_residual(plane, line).abs() < 1e-5).all())
    True
    """
    check_metric(metric)
    if not isinstance(curve, CubicBSpline):
        raise TypeError(requirement("curve", "a CubicBSpline", describe(curve)))
    check_codes("curve", curve.control_points[:, 0], metric.dim)
    metric.check("curve", curve.control_points[:1, 0])
    if t is None:
        t = (torch.arange(33, dtype=torch.float64) + 0.5) / 33.0
    t = check_tensor("t", t, "of shape (T,)", (1,)).detach().to(curve.knots)
    z, v = curve(t), curve.derivative(t)
    b, n, d = z.shape
    budget = RowBudget()
    budget.fit(metric, z[:1, 0])
    flat_z, flat_v = z.reshape(-1, d), v.reshape(-1, d)
    geodesic = torch.cat(
        budget.run(
            lambda items: acceleration(metric, flat_z[items], flat_v[items]), b * n, 2 * d + 6
        )
    )
    excess = second_derivative(curve, t).reshape(-1, d) - geodesic
    tensors = HamiltonianFlow(metric, z.dtype, d, budget).tensors(flat_z)
    size = torch.einsum("ni,nij,nj->n", excess, tensors, excess).clamp_min(0.0).sqrt()
    speeds = torch.einsum("ni,nij,nj->n", flat_v.double(), tensors, flat_v.double())
    length = speeds.clamp_min(0.0).sqrt().reshape(b, n).mean(1, keepdim=True)
    residual = size.reshape(b, n) / torch.where(length > 0, length, 1.0)
    return residual.to(z.dtype)


def second_derivative(curve: CubicBSpline, t: Tensor) -> Tensor:
    """Return gamma''(t), (B, T, d), float64, for t (T,) in [0, 1]."""
    knots, points = curve.knots, curve.control_points.double()
    # the control points of the derivative, twice
    for degree in (DEGREE, DEGREE - 1):
        span = knots[degree + 1 : -1] - knots[1 : -degree - 1]
        points = degree * points.diff(dim=1) / torch.where(span > 0, span, 1.0)[:, None]
        knots = knots[1:-1]
    # gamma'' is linear between its knots, and each basis function is a hat
    at = (torch.searchsorted(knots, t.contiguous(), right=True) - 1).clamp(1, knots.numel() - 3)
    share = (t - knots[at]) / (knots[at + 1] - knots[at])
    return torch.lerp(points[:, at - 1], points[:, at], share[:, None])
