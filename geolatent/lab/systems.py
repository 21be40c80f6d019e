"""Dynamical systems: their equations, trajectories and windows of them as images.

A window of a trajectory is an image of one channel, its rows the steps of time and its columns the
coordinates, scaled to [-1, 1] by fixed numbers: a model of images takes it as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geolatent.checks import check_integer, requirement
from geolatent.lab.config import SYSTEM_NAMES, DataOptions

_Function = Callable[[Tensor], Tensor]

N_TRAJECTORIES = 200
# windows of a trajectory, one after the other
WINDOWS_EACH = 20
# relative and absolute tolerance of the integrator
_TOLERANCES = 1e-9, 1e-10


@dataclass(frozen=True)
class System:
    """A system x' = f(x), what is seen of it, and how that is drawn.

    Attributes
    ----------
    derivative
        f, states (..., m) -> (..., m).
    beginning
        Mean and standard deviation of the normally distributed states that trajectories begin in,
        before the transient, (m,) each.
    transient
        Time in which they reach the attractor.
    time_step
        Time between two rows of a window.
    n_steps
        Rows of a window, by default.
    observe
        What is seen of states, (..., m) -> (..., k), within [-1, 1].
    drawn
        What is drawn of that, (..., T, k) -> (..., T, p), in the coordinates' units.
    coordinates
        Names of what is drawn, with units.
    columns
        Names of the columns of a window.
    circles
        Pairs of columns that are cosine and sine of an angle.
    classify
        Classes of trajectories of states, (n, T, m) -> (n,).
    classes
        What the classes are.
    time_name
        Name of time, with its unit.
    rate_unit
        Unit of one over time, to be written after a number.
    """

    derivative: _Function
    beginning: tuple[tuple[float, ...], tuple[float, ...]]
    transient: float
    time_step: float
    n_steps: int
    observe: _Function
    drawn: _Function
    coordinates: tuple[str, ...]
    columns: tuple[str, ...]
    circles: tuple[tuple[int, int], ...]
    classify: _Function
    classes: tuple[str, ...]
    time_name: str
    rate_unit: str

    def step(self, state: Tensor, substeps: int = 1) -> Tensor:
        """Go on by `time_step` with steps of the classical Runge-Kutta method, (n, m) -> (n, m)."""
        length = self.time_step / substeps
        for _ in range(substeps):
            # `alpha`, for in forward mode products with plain numbers are slow
            first = self.derivative(state)
            second = self.derivative(state.add(first, alpha=length / 2))
            third = self.derivative(state.add(second, alpha=length / 2))
            last = self.derivative(state.add(third, alpha=length))
            state = state.add(first, alpha=length / 6).add(second, alpha=length / 3)
            state = state.add(third, alpha=length / 3).add(last, alpha=length / 6)
        return state

    def begin(self, n: int, seed: int = 0) -> Tensor:
        """Draw n states to begin in, before the transient, (n, m), float64."""
        generator = torch.Generator().manual_seed(check_integer("seed", seed, minimum=0))
        mean, std = (torch.tensor(each, dtype=torch.float64) for each in self.beginning)
        noise = torch.randn(n, len(mean), generator=generator, dtype=torch.float64)
        return mean + std * noise

    def trajectories(self, start: Tensor, n_steps: int) -> Tensor:
        """Integrate from states, (n, m), at so many equal steps of time, (n, n_steps, m), float64.

        The first is the state after the transient. SciPy's Runge-Kutta method of order 8 (DOP853)
        integrates all trajectories as one system.
        """
        from scipy.integrate import solve_ivp

        shape = start.shape

        def rate(_: float, flat: NDArray[np.float64]) -> NDArray[np.float64]:
            return self.derivative(torch.from_numpy(flat).reshape(shape)).flatten().numpy()

        times = self.transient + self.time_step * np.arange(n_steps)
        relative, absolute = _TOLERANCES
        found = solve_ivp(
            rate,
            (0.0, float(times[-1])),
            start.double().flatten().numpy(),
            method="DOP853",
            t_eval=times,
            rtol=relative,
            atol=absolute,
        )
        if not found.success:
            raise RuntimeError(f"A system of {shape[1]} coordinates: {found.message}")
        return torch.from_numpy(found.y.T.copy()).reshape(n_steps, *shape).transpose(0, 1)


def _lorenz() -> System:
    """Return the equations of E. N. Lorenz (1963) with sigma 10, rho 28 and beta 8/3."""
    # x' = A x + x_1 B x: of plain matrices, which are quick in forward mode too
    linear = torch.tensor(
        [[-10.0, 10.0, 0.0], [28.0, -1.0, 0.0], [0.0, 0.0, -8.0 / 3.0]], dtype=torch.float64
    ).T
    product = torch.tensor(
        [[0.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]], dtype=torch.float64
    ).T
    # the attractor is well within these
    centre = torch.tensor([0.0, 0.0, 25.0], dtype=torch.float64)
    half = torch.tensor([22.0, 30.0, 26.0], dtype=torch.float64)

    def derivative(state: Tensor) -> Tensor:
        return state @ linear.to(state) + state[..., :1] * (state @ product.to(state))

    def classify(states: Tensor) -> Tensor:
        lobes = states[..., 0] > 0
        return (lobes[:, 1:] != lobes[:, :-1]).sum(1)

    return System(
        derivative=derivative,
        beginning=((0.0, 0.0, 25.0), (8.0, 8.0, 8.0)),
        transient=40.0,
        time_step=0.04,
        n_steps=32,
        observe=lambda state: (state - centre.to(state)) / half.to(state),
        drawn=lambda seen: seen * half.to(seen) + centre.to(seen),
        coordinates=("x", "y", "z"),
        columns=("x", "y", "z"),
        circles=(),
        classify=classify,
        classes=tuple(f"{n} changes of lobe" for n in range(6)),
        time_name="time (dimensionless)",
        rate_unit="per unit of time",
    )


# of the pendulum: length 1 m, so that w^2 = g / l, and w over the damping, 2; a driving torque 1.5
# times the largest of gravity, at two thirds of the frequency of small swings
_SQUARED_FREQUENCY = 9.81
_FREQUENCY = math.sqrt(_SQUARED_FREQUENCY)
_LARGEST_VELOCITY = 10.0


def _pendulum() -> System:
    """Return a pendulum with damping and a driving torque, which swings and turns chaotically.

        theta'' = -w^2 sin(theta) - (w / 2) theta' + 1.5 w^2 cos(phi),    phi' = 2 w / 3

    with w^2 = 9.81 / s^2, a length of 1 m; the state is (theta, theta', phi).

    G. L. Baker, J. P. Gollub, "Chaotic Dynamics: an Introduction", 1996, chapter 3, have it in
    units of 1 / w, with q = 2 and g = 1.5.
    """
    w2, w = _SQUARED_FREQUENCY, _FREQUENCY
    double = torch.float64
    linear = torch.tensor([[0.0, 1.0, 0.0], [0.0, -w / 2, 0.0], [0.0, 0.0, 0.0]], dtype=double).T
    # of sin(theta), sin(theta') and sin(phi + pi / 2)
    forces = torch.tensor([[0.0, 0.0, 0.0], [-w2, 0.0, 1.5 * w2], [0.0, 0.0, 0.0]], dtype=double).T
    shift = torch.tensor([0.0, 0.0, math.pi / 2], dtype=double)
    drift = torch.tensor([0.0, 0.0, 2 * w / 3], dtype=double)

    def derivative(state: Tensor) -> Tensor:
        force = (state + shift.to(state)).sin() @ forces.to(state)
        return state @ linear.to(state) + force + drift.to(state)

    def observe(state: Tensor) -> Tensor:
        angle, velocity, phase = state.unbind(-1)
        seen = [angle.cos(), angle.sin(), velocity / _LARGEST_VELOCITY, phase.cos(), phase.sin()]
        return torch.stack(seen, -1)

    def drawn(seen: Tensor) -> Tensor:
        angle = torch.from_numpy(
            np.unwrap(torch.atan2(seen[..., 1], seen[..., 0]).cpu().numpy(), axis=-1)
        ).to(seen)
        return torch.stack([angle, _LARGEST_VELOCITY * seen[..., 2]], -1)

    def classify(states: Tensor) -> Tensor:
        turned = states[:, -1, 0] - states[:, 0, 0]
        return (turned > math.pi).long() + 2 * (turned < -math.pi).long()

    return System(
        derivative=derivative,
        beginning=((0.0, 0.0, 0.0), (1.5, 2.0, 10.0)),
        transient=40.0,
        time_step=0.1,
        n_steps=32,
        observe=observe,
        drawn=drawn,
        coordinates=("angle θ (rad)", "velocity θ' (rad/s)"),
        columns=("cos θ", "sin θ", "θ' / (10 rad/s)", "cos φ", "sin φ"),
        circles=((0, 1), (3, 4)),
        classify=classify,
        classes=("to and fro", "turns forwards", "turns backwards"),
        time_name="time (s)",
        rate_unit="/ s",
    )


SYSTEMS: Mapping[str, System] = {"lorenz": _lorenz(), "pendulum": _pendulum()}


def observed_trajectories(options: DataOptions) -> tuple[Tensor, Tensor]:
    """Return the trajectories of a split, as they are seen and as states.

    Parameters
    ----------
    options
        ``name`` is that of a system. The last share of the trajectories, ``test_fraction``, is the
        test split: no trajectory is in both.

    Returns
    -------
    tuple[Tensor, Tensor]
        What is seen, (n, T, k), float32, and states, (n, T, m), float64; T are 20 windows.

    Raises
    ------
    ValueError
        If a split would be empty.
    """
    system = SYSTEMS[options.name]
    n = options.n_trajectories or N_TRAJECTORIES
    n_test = round(options.test_fraction * n)
    if n_test in (0, n):
        required = f"a share of {n} trajectories that leaves some on either side"
        raise ValueError(requirement("test_fraction", required, options.test_fraction))
    rows = {"train": slice(n - n_test), "test": slice(n - n_test, n), "all": slice(n)}
    start = system.begin(n, options.seed)[rows[options.split]]
    states = system.trajectories(start, WINDOWS_EACH * (options.n_steps or system.n_steps))
    return system.observe(states).float(), states


def windows(options: DataOptions) -> tuple[Tensor, Tensor]:
    """Return windows of a system's trajectories and their classes; those of one follow in time.

    Parameters
    ----------
    options
        As of `observed_trajectories`.

    Returns
    -------
    tuple[Tensor, Tensor]
        Images (n, 1, T, k) in [-1, 1], float32, and classes (n,), int64.

    Examples
    --------
    >>> images, labels = windows(DataOptions("lorenz", split="test", n_trajectories=20))
    >>> images.shape, labels.shape
    (torch.Size([40, 1, 32, 3]), torch.Size([40]))
    """
    seen, states = observed_trajectories(options)
    n_steps = seen.shape[1] // WINDOWS_EACH
    parts = seen.unflatten(1, (WINDOWS_EACH, n_steps)).flatten(0, 1)
    labels = SYSTEMS[options.name].classify(
        states.unflatten(1, (WINDOWS_EACH, n_steps)).flatten(0, 1)
    )
    return parts[:, None].contiguous(), labels


def is_system(name: str) -> bool:
    """Return whether data of a name are windows of a system."""
    return name in SYSTEM_NAMES
