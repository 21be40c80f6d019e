"""What the estimators with scikit-learn's interface share: codes, their graph, its distances."""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from torch import Tensor

from geolatent.arrays import as_tensor
from geolatent.checks import check_codes, requirement
from geolatent.graph import LatentGraph, check_graph
from geolatent.metrics.base import Metric
from geolatent.metrics.rows import Rows
from geolatent.solvers.problem import Progress

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# dtypes that codes keep; others, integers among them, become the first
_FLOATS = [np.float64, np.float32]
# between lines about work that takes long
_QUIET_SECONDS = 10.0
# nodes at which two metrics are compared
_COMPARED = 16


def fitted_codes(
    estimator: BaseEstimator,
    X: ArrayLike | Tensor,
    metric: Metric,
    graph: LatentGraph | None,
) -> Tensor:
    """Return what ``fit`` gets as codes (n, d), and keep number and names of their features."""
    like = metric.like if graph is None else graph.codes
    values = validate_data(estimator, _as_array(X), dtype=_FLOATS, ensure_min_samples=2)
    dim = metric.dim if graph is None else graph.codes.shape[1]
    return _placed(X, values, dim, like)


def further_codes(estimator: BaseEstimator, X: ArrayLike | Tensor, like: Tensor) -> Tensor:
    """Return what a fitted estimator's methods get as codes (n, d), alike to those of ``fit``."""
    check_is_fitted(estimator)
    values = validate_data(estimator, _as_array(X), dtype=_FLOATS, reset=False)
    return _placed(X, values, None, like)


def as_classes(estimator: BaseEstimator, y: ArrayLike | Tensor | None) -> NDArray[Any]:
    """Return the classes that ``fit`` gets, (n,)."""
    labels = column_or_1d(validate_data(estimator, y=_as_array(y)), warn=True)
    check_classification_targets(labels)
    return labels


def _as_array(values: object) -> Any:
    """Return a tensor as an array, of single precision at least, and all else as it is."""
    if not isinstance(values, Tensor):
        return values
    half = values.is_floating_point() and values.element_size() < 4
    return (values.float() if half else values).numpy(force=True)


def _placed(X: ArrayLike | Tensor, values: Floats, dim: int | None, like: Tensor | None) -> Tensor:
    """Return validated codes of (n, dim) as a tensor alike to another, or where they were."""
    codes = check_codes("X", as_tensor(values), dim, like=like)
    return codes.to(X.device) if like is None and isinstance(X, Tensor) else codes


class SignsOfLife:
    """Lines on standard error about work that takes long: none before ten seconds have passed.

    Parameters
    ----------
    name
        What is at work.
    wanted
        Whether to write at all.
    """

    def __init__(self, name: str, wanted: bool) -> None:
        self.name = name
        self.wanted = wanted
        self.stage = ""
        self._began = self._last = time.monotonic()

    def tell(self, what: str) -> None:
        """Write a line, if the last one, or the beginning, was ten seconds ago."""
        now = time.monotonic()
        if self.wanted and now - self._last >= _QUIET_SECONDS:
            line = f"{self.name}, {self.stage}: {what}, after {now - self._began:.0f} s"
            print(line, file=sys.stderr, flush=True)
            self._last = now

    def solving(self, progress: Progress) -> None:
        """Tell how far the geodesics of a call are; a callback for solves."""
        self.tell(f"{progress.fraction:.0%} of {progress.n_pairs} geodesics")


def check_graph_of(graph: object, metric: Metric | None = None) -> LatentGraph | None:
    """Return the graph, or None for none; of that metric where one is given.

    Copies of a metric are the same: their tensors at some nodes of the graph are compared.
    """
    if graph is None:
        return None
    graph = check_graph(graph)
    if metric is not None and metric is not graph.metric and not _agree(graph, metric):
        found = f"one of another {type(graph.metric).__name__}, whose tensors differ"
        required = f"a graph of the metric, a {type(metric).__name__}"
        raise ValueError(requirement("graph", required, found))
    return graph


def _agree(graph: LatentGraph, metric: Metric) -> bool:
    """Whether a metric has the tensors of the graph's own at some of its nodes."""
    if metric.dim not in (None, graph.codes.shape[1]):
        return False
    nodes = graph.codes[:: -(-graph.n_nodes // _COMPARED)]
    metric.check("graph", nodes[:1])
    tensors, own = (Rows.of(each, nodes).tensor(nodes).double() for each in (metric, graph.metric))
    error = torch.finfo(nodes.dtype).eps ** 0.5
    scale = own.abs().amax((1, 2), keepdim=True)
    # not finite in the same places, or equal up to rounding
    same = (tensors - own).abs() <= error * scale
    return bool((same | ~(tensors.isfinite() | own.isfinite())).all())


def default_graph(
    metric: Metric, codes: Tensor, n_nodes: int | None, random: np.random.RandomState
) -> LatentGraph:
    """Return a graph on the codes: by default of four times as many nodes, 2,000 at least.

    The further nodes lie around the codes with a fifth of the codes' standard deviation.
    """
    wanted = max(4 * codes.shape[0], 2000) if n_nodes is None else n_nodes
    return LatentGraph.from_codes(
        metric,
        codes,
        n_nodes=wanted,
        jitter=0.2 * float(codes.double().std(0).mean()),
        seed=int(random.randint(2**31 - 1)),
    )


def finite_distances(matrix: Floats) -> Floats:
    """Replace infinite distances by ten times the largest finite one, with a warning."""
    infinite = ~np.isfinite(matrix)
    if infinite.any():
        warnings.warn(
            f"{infinite.sum()} distances are infinite: the graph is not connected. They count as "
            "ten times the largest finite one",
            stacklevel=3,
        )
        finite = matrix[~infinite]
        matrix = np.where(infinite, 10.0 * (finite.max() if finite.size else 1.0), matrix)
    return matrix
