"""Riemannian geodesics in the latent spaces of PyTorch generative models.

A metric says how far codes are from one another: `PullbackMetric` of a decoder,
`GaussianPullbackMetric` of one that gives (mean, standard deviation), `TensorMetric` of any metric
tensor. `solve_geodesic` finds the shortest curves between pairs of codes, all pairs in one call,
and returns a `GeodesicSolution`, which prints as a table. Codes are tensors (n, d), batch first;
curves run over t from 0 to 1; lengths are in units of the decoder's output.

Modules to import by name: `geolatent.features` (maps on a decoder's output), `geolatent.clustering`
and `geolatent.land` (scikit-learn estimators), `geolatent.plotting` (figures), `geolatent.training`
(needs the extra ``train``). The names below load their modules, and torch, when they are first
used: torch takes seconds to import, and the command line answers without it where it can.

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
    from geolatent import data, models
    from geolatent.curves import CubicBSpline
    from geolatent.diffusion import brownian_motion
    from geolatent.distances import distance, graph_distances, pairwise_distances
    from geolatent.exponential import exp_map, extrapolate, geodesic_residual, log_map, shoot
    from geolatent.first_order import FirstOrderSolver
    from geolatent.georce import GEORCESolver
    from geolatent.graph_files import load_graph, save_graph
    from geolatent.initial import LatentGraph
    from geolatent.interpolations import (
        great_circle,
        lerp,
        log_prior,
        norm_profile,
        radial_walk,
        slerp,
        spherical_spiral,
        through_points,
    )
    from geolatent.lengths import path_energy, path_length
    from geolatent.metric_families import (
        BernoulliPullbackMetric,
        CategoricalPullbackMetric,
        ConformalMetric,
        DivergenceMetric,
        EnsembleMetric,
        GaussianFisherRaoMetric,
        LocalVarianceMetric,
    )
    from geolatent.metrics import GaussianPullbackMetric, Metric, PullbackMetric, TensorMetric
    from geolatent.minimize import LBFGS
    from geolatent.preconditioned import PreconditionedSolver
    from geolatent.problem import Progress, Solver
    from geolatent.solution import Evaluations, GeodesicSolution, Status
    from geolatent.solver import solve_geodesic
    from geolatent.statistics import frechet_mean
    from geolatent.transport import parallel_transport
    from geolatent.volume import (
        condition_number,
        gaussian_curvature,
        magnification_factor,
        sample_volume,
        sectional_curvature,
    )

__all__ = [
    "LBFGS",
    "BernoulliPullbackMetric",
    "CategoricalPullbackMetric",
    "ConformalMetric",
    "CubicBSpline",
    "DivergenceMetric",
    "EnsembleMetric",
    "Evaluations",
    "FirstOrderSolver",
    "GEORCESolver",
    "GaussianFisherRaoMetric",
    "GaussianPullbackMetric",
    "GeodesicSolution",
    "LatentGraph",
    "LocalVarianceMetric",
    "Metric",
    "PreconditionedSolver",
    "Progress",
    "PullbackMetric",
    "Solver",
    "Status",
    "TensorMetric",
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
    "slerp",
    "solve_geodesic",
    "spherical_spiral",
    "through_points",
]

# where each name comes from
_MODULES = {
    "curves": ("CubicBSpline",),
    "diffusion": ("brownian_motion",),
    "distances": (
        "distance",
        "graph_distances",
        "pairwise_distances",
    ),
    "exponential": (
        "exp_map",
        "extrapolate",
        "geodesic_residual",
        "log_map",
        "shoot",
    ),
    "first_order": ("FirstOrderSolver",),
    "georce": ("GEORCESolver",),
    "graph_files": (
        "load_graph",
        "save_graph",
    ),
    "initial": ("LatentGraph",),
    "interpolations": (
        "great_circle",
        "lerp",
        "log_prior",
        "norm_profile",
        "radial_walk",
        "slerp",
        "spherical_spiral",
        "through_points",
    ),
    "lengths": (
        "path_energy",
        "path_length",
    ),
    "metric_families": (
        "BernoulliPullbackMetric",
        "CategoricalPullbackMetric",
        "ConformalMetric",
        "DivergenceMetric",
        "EnsembleMetric",
        "GaussianFisherRaoMetric",
        "LocalVarianceMetric",
    ),
    "metrics": (
        "GaussianPullbackMetric",
        "Metric",
        "PullbackMetric",
        "TensorMetric",
    ),
    "minimize": ("LBFGS",),
    "preconditioned": ("PreconditionedSolver",),
    "problem": (
        "Progress",
        "Solver",
    ),
    "solution": (
        "Evaluations",
        "GeodesicSolution",
        "Status",
    ),
    "solver": ("solve_geodesic",),
    "statistics": ("frechet_mean",),
    "transport": ("parallel_transport",),
    "volume": (
        "condition_number",
        "gaussian_curvature",
        "magnification_factor",
        "sample_volume",
        "sectional_curvature",
    ),
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name, or a module of the package, when it is first used."""
    place = _PLACES.get(name, name)
    if not name.startswith("_"):
        try:
            found = importlib.import_module(f"{__name__}.{place}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{place}":
                raise
        else:
            if name in _PLACES:
                globals()[name] = getattr(found, name)
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
