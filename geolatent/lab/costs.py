"""What work costs: decoder rows of geodesics and graphs, and seconds of a decoder row."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from geolatent.lab.config import InitialOptions
from geolatent.lab.latent_model import LatentModel
from geolatent.lab.setup import Dataset, initial_kind
from geolatent.solvers.first_order import FirstOrderSolver
from geolatent.solvers.georce import GEORCESolver
from geolatent.solvers.problem import Solver

# cost of a Jacobian-vector product in forward rows
JVP = 2.5
# decoder rows of a geodesic, measured at a tolerance of 1e-4: 2,400 in two dimensions, 1,300 in
# sixteen; started from a graph half as many again
_ROWS = {2: 2400, 16: 1300}
_GRAPH = 1.5
_ROWS_OF_SOLVERS = {FirstOrderSolver: 24_000, GEORCESolver: 50_000}
# rows of a timed call, and calls
_TIMED, _CALLS = 256, 5


@dataclass(frozen=True)
class Cost:
    """What work in one model costs, about.

    Attributes
    ----------
    n_geodesics
        Geodesics that are solved for.
    rows_each
        Decoder rows of one of them, and of what is measured along it.
    rows
        Decoder rows of all else, such as graphs.
    seconds
        Time of what no decoder rows tell of.
    """

    n_geodesics: int = 0
    rows_each: float = 0.0
    rows: float = 0.0
    seconds: float = 0.0


def geodesic_rows(solver: Solver, dim: int, *, from_graph: bool) -> float:
    """Return the decoder rows of one geodesic, about."""
    if type(solver) in _ROWS_OF_SOLVERS:
        return _ROWS_OF_SOLVERS[type(solver)]
    return _ROWS[min(_ROWS, key=lambda known: abs(known - dim))] * (_GRAPH if from_graph else 1.0)


def graph_rows(options: InitialOptions, model: LatentModel, dataset: Dataset) -> int:
    """Return the decoder rows of the graph that curves start from."""
    kind = initial_kind(options, model.dim)
    if kind == "lattice":
        return options.resolution**model.dim
    return (options.n_nodes or len(dataset.training[0])) if kind == "codes" else 0


def seconds_of(call: Callable[[], object]) -> float:
    """Return the least seconds that a call takes, once it has been made."""
    call()
    taken = []
    for _ in range(_CALLS):
        began = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return min(taken)


def seconds_a_row(model: LatentModel) -> float:
    """Return the seconds of one decoder row among many, on the model's device."""
    codes = torch.zeros(_TIMED, model.dim).to(model.like)
    return seconds_of(lambda: model.images(codes)) / _TIMED
