"""Lyapunov exponents of maps: how fast neighbouring states part."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from geolatent.arrays import Array, Result
from geolatent.checks import (
    check_function,
    check_integer,
    check_number,
    check_tensor,
    parameter_behind,
    requirement,
)
from geolatent.metrics.map import Map


@dataclass(frozen=True)
class LyapunovExponents(Result):
    """The exponents of B trajectories, the largest first, float64.

    Attributes
    ----------
    exponents
        Shape (B, k), one over the unit of time; NaN where a trajectory left the finite numbers.
    standard_error
        Of these means over time, (B, k): from the spread of the means of equally long blocks.
    state
        Where the trajectories ended, (B, d).
    """

    exponents: Tensor
    standard_error: Tensor
    state: Tensor


@torch.no_grad()
def lyapunov_exponents(
    step: Callable[[Tensor], Tensor],
    state: Array,
    n_steps: int,
    *,
    n_exponents: int | None = None,
    n_transient: int = 0,
    time_step: float = 1.0,
    n_blocks: int = 10,
    seed: int = 0,
) -> LyapunovExponents:
    r"""Return the Lyapunov exponents of a map x -> F(x) along trajectories.

    With J_t the Jacobian of F at x_t, Q_0 random and orthonormal, and the diagonals of R positive,

    .. math::

        J_t Q_t = Q_{t+1} R_{t+1},    \lambda_i = 1 / (N dt) \sum_t \log (R_t)_{ii}

    J_t Q_t are Jacobian-vector products in forward mode; no Jacobian is built. The sum of all d
    exponents is the mean of log |det J| for a unit of time, the rate at which volume grows.

    Parameters
    ----------
    step
        The map F, (n, d) -> (n, d): a step of an integrator, a trained network, any module or
        function whose rows do not depend on one another.
    state
        Where trajectories begin, (d,) or (B, d). The arithmetic of F is in its dtype, the rest in
        float64.
    n_steps
        Steps N over which is averaged; ``n_blocks`` at least.
    n_exponents
        How many, k, the largest ones; d by default. A step costs k products and one QR
        decomposition of a (d, k) matrix for each trajectory.
    n_transient
        Steps before those, in which trajectories reach the attractor and Q turns to its directions.
    time_step
        Time dt of a step.
    n_blocks
        Blocks of steps for the standard error; they should be longer than correlations last.
    seed
        Seed of Q_0.

    Returns
    -------
    LyapunovExponents
        For each trajectory. One that leaves the finite numbers is NaN, with a warning.

    Raises
    ------
    ValueError, TypeError
        Where an argument is not as above, or F returns another shape than it is given.

    References
    ----------
    Benettin, Galgani, Giorgilli, Strelcyn, "Lyapunov characteristic exponents for smooth dynamical
    systems and for Hamiltonian systems", Meccanica 15, 1980, doi:10.1007/BF02128236. Geist,
    Parlitz, Lauterborn, "Comparison of different methods for computing Lyapunov exponents", 1990,
    doi:10.1143/PTP.83.875.

    Examples
    --------
    The cat map stretches by the golden ratio squared, and keeps areas:

    >>> matrix = torch.tensor([[2.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    >>> start = torch.rand(2, dtype=torch.float64)
    >>> found = lyapunov_exponents(lambda x: (x @ matrix.T) % 1.0, start, 100, n_transient=20)
    >>> found.exponents
    tensor([[ 0.9624, -0.9624]], dtype=torch.float64)
    """
    check_function("step", step)
    start = check_tensor("state", state, "(d,) or (B, d)", like=parameter_behind(step))
    x = torch.atleast_2d(start).detach()
    b, d = x.shape
    n_blocks = check_integer("n_blocks", n_blocks, minimum=2)
    n_steps = check_integer("n_steps", n_steps, minimum=n_blocks)
    k = d if n_exponents is None else check_integer("n_exponents", n_exponents)
    if k > d:
        raise ValueError(requirement("n_exponents", f"at most {d}, the size of a state", k))
    n_transient = check_integer("n_transient", n_transient, minimum=0)
    time_step = check_number("time_step", time_step, above=0.0)
    generator = torch.Generator().manual_seed(check_integer("seed", seed, minimum=0))
    mapped = Map(step, "step")
    if mapped.check("state", x[:1]).shape != (1, d):
        raise ValueError(requirement("step", f"a map of (n, {d}) to (n, {d})", mapped.output_shape))

    q, _ = torch.linalg.qr(torch.randn(b, d, k, generator=generator, dtype=torch.float64))
    q = q.to(x.device)
    sums = torch.zeros(n_blocks, b, k, dtype=torch.float64, device=x.device)
    for count in range(-n_transient, n_steps):
        # rows of one trajectory, one for each tangent, lie beside each other
        tangents = q.mT.reshape(b * k, d).to(x.dtype)
        after, moved = mapped.jvp(x.repeat_interleave(k, 0), tangents)
        x = after[::k]
        # what is not finite would be an error of some decompositions
        alive = moved.isfinite().all(1).reshape(b, k).all(1)
        moved = moved.double().reshape(b, k, d).mT.nan_to_num(0.0, 0.0, 0.0)
        q, r = torch.linalg.qr(moved)
        growth = r.diagonal(dim1=1, dim2=2).abs().log()
        if count >= 0:
            sums[count * n_blocks // n_steps] += torch.where(alive[:, None], growth, torch.nan)
        else:
            x = torch.where(alive[:, None], x, torch.nan)
    edges = -(torch.arange(n_blocks + 1, device=x.device) * -n_steps).div(
        n_blocks, rounding_mode="floor"
    )
    rates = sums / (edges.diff()[:, None, None] * time_step)
    exponents = sums.sum(0) / (n_steps * time_step)
    lost = int(exponents.isnan().any(1).sum())
    if lost:
        warnings.warn(
            f"{lost} of {b} trajectories left the finite numbers; their exponents are NaN",
            stacklevel=2,
        )
    error = rates.std(0) / n_blocks**0.5
    return LyapunovExponents(exponents, error, x)
