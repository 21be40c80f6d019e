"""Riemannian geodesics in the latent spaces of PyTorch generative models.

A metric says how far codes are from one another: `PullbackMetric` of a decoder,
`GaussianPullbackMetric` of one that gives (mean, standard deviation), `TensorMetric` of any metric
tensor. `solve_geodesic` finds the shortest curves between pairs of codes, all pairs in one call,
and returns a `GeodesicSolution`, which prints as a table. Codes are tensors (n, d), batch first;
curves run over t from 0 to 1; lengths are in units of the decoder's output. Arguments are checked
at the door: one of the wrong kind, shape, dtype, device or range, or that is not finite, raises a
TypeError or ValueError that names it. Docstrings list what else is raised.

The rest of the package by rooms: `geolatent.metrics`, `geolatent.solvers`, `geolatent.geometry` and
`geolatent.learn` (scikit-learn estimators), each on top of those before; `geolatent.models`
(networks, and `geolatent.models.features` on a decoder's output); and on top of all
`geolatent.lab`, the work of the commands: `geolatent.lab.plotting` (figures) and
`geolatent.lab.training` (needs the extra ``train``). The names below load their modules, and torch,
when they are first used: torch takes seconds to import, and the command line answers without it
where it can.

Examples
--------
A decoder that rolls the plane up into a cylinder with a ridge around it; the shorter way leaves
the ridge:

>>> import torch
>>> import geolatent as gl
>>> def decoder(z):
...     angle, height = z.unbind(1)
...     ridge = 1.0 + torch.exp(-4.0 * height.square())
...     return torch.stack([ridge * angle.cos(), ridge * angle.sin(), height], dim=1)
>>> start, end = torch.tensor([[0.0, 0.1], [0.0, 1.0]]), torch.tensor([[2.0, 0.1], [2.0, 2.0]])
>>> solution = gl.solve_geodesic(gl.PullbackMetric(decoder), start, end)
>>> print(f"{solution.relative_improvement[0].item():.0%} shorter than the straight line")
11% shorter than the straight line
>>> solution.curve(torch.linspace(0, 1, 5)).shape  # codes on the way
torch.Size([2, 5, 2])
"""

import importlib
from typing import TYPE_CHECKING, Any

from geolatent._version import __version__

if TYPE_CHECKING:
    from geolatent import models
    from geolatent.curves import CubicBSpline
    from geolatent.geometry.acceleration import geodesic_residual
    from geolatent.geometry.brownian import brownian_motion
    from geolatent.geometry.curvature import gaussian_curvature, sectional_curvature
    from geolatent.geometry.distances import distance, graph_distances, pairwise_distances
    from geolatent.geometry.exponential import Trajectory, exp_map, shoot
    from geolatent.geometry.extrapolation import extrapolate
    from geolatent.geometry.integrators import DiscreteGeodesic, Integrator, RungeKutta
    from geolatent.geometry.means import FrechetMean, frechet_mean
    from geolatent.geometry.ode import TrajectoryStatus
    from geolatent.geometry.shooting import Shooting, log_map, shoot_to
    from geolatent.geometry.transport import parallel_transport
    from geolatent.geometry.volume import condition_number, magnification_factor, sample_volume
    from geolatent.graph import LatentGraph
    from geolatent.graph_files import load_graph, save_graph
    from geolatent.interpolations import (
        great_circle,
        lerp,
        radial_walk,
        slerp,
        spherical_spiral,
        through_points,
    )
    from geolatent.lab import data
    from geolatent.learn.kmeans import GeodesicKMeans
    from geolatent.learn.land import LandMixture
    from geolatent.learn.neighbors import GeodesicKNeighborsClassifier
    from geolatent.lengths import path_energy, path_length
    from geolatent.metrics.base import Metric
    from geolatent.metrics.composite import ConformalMetric, EnsembleMetric, LocalVarianceMetric
    from geolatent.metrics.information import (
        BernoulliPullbackMetric,
        CategoricalPullbackMetric,
        DivergenceMetric,
        GaussianFisherRaoMetric,
    )
    from geolatent.metrics.pullback import GaussianPullbackMetric, PullbackMetric
    from geolatent.metrics.tensor import TensorMetric
    from geolatent.priors import log_prior, norm_profile
    from geolatent.solution import Evaluations, GeodesicSolution, Status
    from geolatent.solve import solve_geodesic
    from geolatent.solvers.first_order import FirstOrderSolver
    from geolatent.solvers.georce import GEORCESolver
    from geolatent.solvers.lbfgs import LBFGS
    from geolatent.solvers.preconditioned import PreconditionedSolver
    from geolatent.solvers.problem import Progress, Solver

__all__ = [
    "LBFGS",
    "BernoulliPullbackMetric",
    "CategoricalPullbackMetric",
    "ConformalMetric",
    "CubicBSpline",
    "DiscreteGeodesic",
    "DivergenceMetric",
    "EnsembleMetric",
    "Evaluations",
    "FirstOrderSolver",
    "FrechetMean",
    "GEORCESolver",
    "GaussianFisherRaoMetric",
    "GaussianPullbackMetric",
    "GeodesicKMeans",
    "GeodesicKNeighborsClassifier",
    "GeodesicSolution",
    "Integrator",
    "LandMixture",
    "LatentGraph",
    "LocalVarianceMetric",
    "Metric",
    "PreconditionedSolver",
    "Progress",
    "PullbackMetric",
    "RungeKutta",
    "Shooting",
    "Solver",
    "Status",
    "TensorMetric",
    "Trajectory",
    "TrajectoryStatus",
    "__version__",
    "brownian_motion",
    "condition_number",
    "data",
    "distance",
    "exp_map",
    "extrapolate",
    "frechet_mean",
    "gaussian_curvature",
    "geodesic_residual",
    "graph_distances",
    "great_circle",
    "lerp",
    "load_graph",
    "log_map",
    "log_prior",
    "magnification_factor",
    "models",
    "norm_profile",
    "pairwise_distances",
    "parallel_transport",
    "path_energy",
    "path_length",
    "radial_walk",
    "sample_volume",
    "save_graph",
    "sectional_curvature",
    "shoot",
    "shoot_to",
    "slerp",
    "solve_geodesic",
    "spherical_spiral",
    "through_points",
]

# where each name comes from
_MODULES = {
    "curves": ("CubicBSpline",),
    "solvers.first_order": ("FirstOrderSolver",),
    "solvers.georce": ("GEORCESolver",),
    "graph_files": (
        "load_graph",
        "save_graph",
    ),
    "graph": ("LatentGraph",),
    "geometry.acceleration": ("geodesic_residual",),
    "geometry.brownian": ("brownian_motion",),
    "geometry.curvature": (
        "gaussian_curvature",
        "sectional_curvature",
    ),
    "geometry.distances": (
        "distance",
        "graph_distances",
        "pairwise_distances",
    ),
    "geometry.exponential": (
        "Trajectory",
        "exp_map",
        "shoot",
    ),
    "geometry.extrapolation": ("extrapolate",),
    "geometry.integrators": (
        "DiscreteGeodesic",
        "Integrator",
        "RungeKutta",
    ),
    "geometry.means": (
        "FrechetMean",
        "frechet_mean",
    ),
    "geometry.ode": ("TrajectoryStatus",),
    "geometry.shooting": (
        "Shooting",
        "log_map",
        "shoot_to",
    ),
    "geometry.transport": ("parallel_transport",),
    "geometry.volume": (
        "condition_number",
        "magnification_factor",
        "sample_volume",
    ),
    "interpolations": (
        "great_circle",
        "lerp",
        "radial_walk",
        "slerp",
        "spherical_spiral",
        "through_points",
    ),
    "learn.kmeans": ("GeodesicKMeans",),
    "learn.land": ("LandMixture",),
    "learn.neighbors": ("GeodesicKNeighborsClassifier",),
    "lengths": (
        "path_energy",
        "path_length",
    ),
    "metrics.base": ("Metric",),
    "metrics.composite": (
        "ConformalMetric",
        "EnsembleMetric",
        "LocalVarianceMetric",
    ),
    "metrics.information": (
        "BernoulliPullbackMetric",
        "CategoricalPullbackMetric",
        "DivergenceMetric",
        "GaussianFisherRaoMetric",
    ),
    "metrics.pullback": (
        "GaussianPullbackMetric",
        "PullbackMetric",
    ),
    "metrics.tensor": ("TensorMetric",),
    "priors": (
        "log_prior",
        "norm_profile",
    ),
    "solvers.lbfgs": ("LBFGS",),
    "solvers.preconditioned": ("PreconditionedSolver",),
    "solvers.problem": (
        "Progress",
        "Solver",
    ),
    "solution": (
        "Evaluations",
        "GeodesicSolution",
        "Status",
    ),
    "solve": ("solve_geodesic",),
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}
# modules of a room that are public by name
_INSIDE = {"data": "lab.data"}


def __getattr__(name: str) -> Any:
    """Import a public name, or a module of the package, when it is first used."""
    place = _PLACES.get(name) or _INSIDE.get(name, name)
    if not name.startswith("_"):
        try:
            found = importlib.import_module(f"{__name__}.{place}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{place}":
                raise
        else:
            globals()[name] = getattr(found, name) if name in _PLACES else found
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
