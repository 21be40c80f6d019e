"""Ways to follow a geodesic: Runge-Kutta, and steps of a discrete geodesic."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from geolatent.checks import check_integer, check_number, describe, requirement
from geolatent.geometry.flow import HamiltonianFlow
from geolatent.geometry.ode import TrajectoryStatus, integrate
from geolatent.metrics.operators import check_formed, norms, solve_metric
from geolatent.metrics.rows import Rows

# what velocities found by products may be off, as a part of what a step may
_SHARE_OF_TOLERANCE = 0.1
# tolerance of the size of an error
_ROUGHLY = 0.1
# dimensions in which chains, which keep the tensors of all their points, fit into memory
_MOST_DIMENSIONS = 1024


@dataclass(frozen=True)
class Followed:
    """Geodesics of B groups of C neighbours: points, velocities (B, T, C, d); energy (B, T, C)."""

    points: Tensor
    velocities: Tensor
    energy: Tensor
    status: Tensor
    steps: Tensor


class Integrator(ABC):
    """A way to follow geodesics. Subclasses are frozen dataclasses of their settings."""

    @abstractmethod
    def follow(self, rows: Rows, z: Tensor, v: Tensor, times: Tensor) -> Followed:
        """Follow the geodesics of C neighbours at a time, (B, C, d) each, alike in their steps.

        Parameters
        ----------
        rows
            The metric at work; it counts for the B.
        z, v
            Codes and velocities, (B, C, d), float64.
        times
            When to tell where they are, (T,), ascending from 0 or later, float64.
        """


@dataclass(frozen=True)
class RungeKutta(Integrator):
    """Hamilton's equations by a Runge-Kutta method of order 5(4) with step control. The default.

    Every trajectory has steps of its own (`ode.integrate`). Errors are measured in the
    metric, so that units and stretched coordinates do not matter. The right integrator for smooth
    metrics; each kink of a decoder (ELU, ReLU) makes the force jump and costs some twenty steps.

    Parameters
    ----------
    tolerance
        Error allowed to one step, as a share of the length of the way; by default 1e-9 in float64,
        1e-5 in float32.
    max_steps
        Steps of each trajectory.
    """

    tolerance: float | None = None
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        if self.tolerance is not None:
            check_number("tolerance", self.tolerance, above=0.0)
        check_integer("max_steps", self.max_steps)

    def follow(self, rows: Rows, z: Tensor, v: Tensor, times: Tensor) -> Followed:
        """Integrate the states of C neighbours as one."""
        b, c, d = z.shape
        tolerance = self.tolerance or (1e-9 if rows.dtype == torch.float64 else 1e-5)
        flow = HamiltonianFlow(rows, _SHARE_OF_TOLERANCE * tolerance)
        momentum = flow.metric(z).times(v)
        state = torch.cat([z, momentum], dim=2).reshape(b, -1)
        speed = (momentum * v).sum(2).clamp_min(0.0).sqrt()[:, :1].clamp_min(1e-300)
        way = speed * float(times[-1])
        latest = v.clone()

        def halves(states: Tensor) -> tuple[Tensor, Tensor]:
            places, momenta = states.unflatten(-1, (c, 2 * d)).split(d, dim=-1)
            return places, momenta

        def slopes(states: Tensor, index: Tensor) -> Tensor:
            velocities, forces = flow(*halves(states), index, latest[index])
            latest[index] = velocities
            return torch.cat([velocities, forces], dim=2).flatten(1)

        def error_ratio(errors: Tensor, states: Tensor, index: Tensor) -> Tensor:
            metric = flow.metric(halves(states)[0], index)
            of_place, of_momentum = halves(errors)
            raised = metric.solve(of_momentum, _ROUGHLY)
            turn = (raised * of_momentum).sum(2).clamp_min(0.0).sqrt()
            ratio = torch.maximum(metric.norms(of_place) / way[index], turn / speed[index])
            return (ratio / tolerance).amax(1)

        result = integrate(
            slopes,
            state,
            times,
            error_ratio,
            # where the way bends once, the error of a step is about the fifth power of its share
            first_step=tolerance**0.2,
            max_steps=self.max_steps,
        )
        places, momenta = halves(result.states)
        velocities = flow.metric(places).solve(momenta, flow.tolerance)
        return Followed(
            places,
            velocities,
            0.5 * (velocities * momenta).sum(3),
            result.status,
            result.steps,
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
    ValueError
        Where the metric has no immersion.

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

    def follow(self, rows: Rows, z: Tensor, v: Tensor, times: Tensor) -> Followed:
        """Build the chains, and interpolate between their points by cubic Hermite polynomials."""
        if rows.metric.immersion is None:
            required = "one with an immersion (use the RungeKutta integrator)"
            raise ValueError(requirement("metric", required, describe(rows.metric)))
        b, c, d = z.shape
        check_formed("z", d, "use the RungeKutta integrator", _MOST_DIMENSIONS)
        last = float(times[-1])
        h = last / self.n_steps

        chains = torch.arange(b * c, device=z.device)
        group = chains // c

        def outputs(points: Tensor, some: Tensor) -> Tensor:
            return rows.outputs(points, group[some]).double()

        def columns(points: Tensor) -> Tensor:
            """Return the Jacobian by columns, (n, d, D)."""
            return rows.columns(points, group)[1].double()

        point = z.reshape(-1, d)
        value, jacobian = outputs(point, chains), columns(point)
        tensor = torch.einsum("niD,njD->nij", jacobian, jacobian)
        momentum = torch.einsum("nij,nj->ni", tensor, v.reshape(-1, d))
        points, momenta, tensors = [point], [momentum], [tensor]
        guess = point + h * v.reshape(-1, d)
        # what an iteration may leave over: far below the error of the chain, and what the rounding
        # of the outputs allows
        speed = (momentum * v.reshape(-1, d)).sum(1).clamp_min(1e-300).sqrt()
        small = (1e-13 if rows.dtype == torch.float64 else 1e-6) * h * speed
        rounding = 8.0 * torch.finfo(rows.dtype).eps
        lost = torch.zeros_like(speed, dtype=torch.bool)
        for _ in range(self.n_steps if last > 0.0 else 0):
            new, open_ = guess, chains
            new_value = torch.full_like(value, torch.nan)
            for _ in range(self.max_iterations):
                new_value[open_] = outputs(new[open_], open_)
                pull = torch.einsum("niD,nD->ni", jacobian[open_], (new_value - value)[open_])
                step = solve_metric(tensor[open_], h * momentum[open_] - pull)
                new = new.index_add(0, open_, step)
                allowed = small[open_] + rounding * new_value[open_].norm(dim=1)
                open_ = open_[norms(tensor[open_], step) > allowed]  # NaN ends an iteration too
                if not open_.numel():
                    break
            lost[open_] = True
            new_value = outputs(new, chains)
            jacobian = columns(new)
            momentum = torch.einsum("niD,nD->ni", jacobian, new_value - value) / h
            tensor = torch.einsum("niD,njD->nij", jacobian, jacobian)
            guess = 2.0 * new - point
            if len(points) > 1:  # the parabola through the last three points
                guess = guess + (new - 2.0 * point + points[-2])
            point, value = new, new_value
            points.append(point)
            momenta.append(momentum)
            tensors.append(tensor)
        nodes, gram = torch.stack(points, dim=1), torch.stack(tensors, dim=1)
        p = torch.stack(momenta, dim=1)
        speeds = solve_metric(gram, p)
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

        def grouped(values: Tensor) -> Tensor:
            return values.unflatten(0, (b, c)).transpose(1, 2)

        return Followed(
            grouped(at),
            grouped(velocity),
            grouped(energy),
            status,
            torch.full((b,), len(points) - 1, device=z.device),
        )


def check_integrator(integrator: object, tolerance: float | None = None) -> Integrator:
    """Return the integrator, or for None `RungeKutta` with a tolerance."""
    integrator = RungeKutta(tolerance) if integrator is None else integrator
    if not isinstance(integrator, Integrator):
        required = "a geolatent Integrator or None"
        raise TypeError(requirement("integrator", required, describe(integrator)))
    return integrator
