"""Riemannian geodesics in the latent spaces of PyTorch generative models."""

from geolatent import data, models
from geolatent._version import __version__
from geolatent.curves import CubicBSpline
from geolatent.energy import path_energy, path_length
from geolatent.first_order import FirstOrderSolver
from geolatent.georce import GEORCESolver
from geolatent.graph_files import load_graph, save_graph
from geolatent.initial import LatentGraph
from geolatent.metrics import GaussianPullbackMetric, Metric, PullbackMetric, TensorMetric
from geolatent.minimize import LBFGS
from geolatent.preconditioned import PreconditionedSolver
from geolatent.problem import Progress, Solver
from geolatent.solution import Evaluations, GeodesicSolution, Status
from geolatent.solver import solve_geodesic

__all__ = [
    "LBFGS",
    "CubicBSpline",
    "Evaluations",
    "FirstOrderSolver",
    "GEORCESolver",
    "GaussianPullbackMetric",
    "GeodesicSolution",
    "LatentGraph",
    "Metric",
    "PreconditionedSolver",
    "Progress",
    "PullbackMetric",
    "Solver",
    "Status",
    "TensorMetric",
    "__version__",
    "data",
    "load_graph",
    "models",
    "path_energy",
    "path_length",
    "save_graph",
    "solve_geodesic",
]
