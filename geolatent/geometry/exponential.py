"""The exponential map: geodesics that leave a code with a given velocity."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from geolatent.arrays import Array, Result
from geolatent.checks import check_pairs, check_tensor, requirement
from geolatent.geometry.integrators import Integrator, check_integrator
from geolatent.geometry.ode import TrajectoryStatus
from geolatent.metrics.base import Metric, check_metric
from geolatent.metrics.rows import Rows
from geolatent.shapes import CodeShape
from geolatent.solution import Evaluations


@dataclass(frozen=True)
class Trajectory(Result):
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

    with_codes = ("points", "velocities")

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


def check_tangents(
    metric: Metric, z: object, v: object
) -> tuple[Metric, Tensor, Tensor, CodeShape]:
    """Return a metric of flat codes, codes and tangent vectors (B, d), and the codes' shape."""
    check_metric(metric)
    shape = CodeShape.of(z)
    metric, z, v = shape.metric(metric), shape.flat("z", z), shape.flat("v", v)
    codes, vectors = check_pairs(z, v, metric.dim, names=("z", "v"), like=metric.like)
    metric.check("z", codes[:1])
    return metric, codes, vectors, shape


def shoot(
    metric: Metric,
    z: Array,
    v: Array,
    t: Array | None = None,
    *,
    integrator: Integrator | None = None,
) -> Trajectory:
    """Follow the geodesics that leave codes with given velocities.

    All arithmetic but the metric's own is float64. A trajectory that fails has NaN from there on
    and its status says why; it does not touch the others.

    Parameters
    ----------
    metric
        The metric.
    z, v
        Codes and velocities, (d,) or (B, d) each, broadcast, or of any shape, (B, ...).
    t
        Times, (T,), ascending, not negative; by default 1 alone.
    integrator
        How to follow them: `RungeKutta()` by default; `DiscreteGeodesic()` copes better with
        decoders that have kinks.

    Returns
    -------
    Trajectory
        Points, velocities, energies, statuses and costs.

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
    metric, codes, vectors, shape = check_tangents(metric, z, v)
    if t is None:
        t = torch.ones(1, dtype=torch.float64)
    times = check_tensor("t", t, "(T,)").detach().to(codes.device, torch.float64)
    if bool((times < 0).any()) or bool((times.diff() < 0).any()):
        required = "ascending and not negative"
        raise ValueError(requirement("t", required, times.tolist()))
    integrator = check_integrator(integrator)
    rows = Rows.of(metric, codes).counting(len(codes))
    way = integrator.follow(rows, codes.double()[:, None], vectors.double()[:, None], times)
    trajectory = Trajectory(
        t=times,
        points=way.points[:, :, 0].to(codes.dtype),
        velocities=way.velocities[:, :, 0].to(codes.dtype),
        energy=way.energy[:, :, 0].to(codes.dtype),
        status=way.status,
        steps=way.steps,
        evaluations=rows.spent,
    )
    return shape.back(trajectory)


def exp_map(
    metric: Metric,
    z: Array,
    v: Array,
    *,
    integrator: Integrator | None = None,
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
    way = shoot(metric, z, v, integrator=integrator)
    failed = way.status != TrajectoryStatus.FINISHED
    if bool(failed.any()):
        first = TrajectoryStatus(int(way.status[failed][0]))
        warnings.warn(
            f"{int(failed.sum())} of {len(failed)} geodesics did not reach their end and are NaN; "
            f"the first: {first.name}, {first.explanation}",
            stacklevel=2,
        )
    return way.points[:, -1]
