"""What the estimators with scikit-learn's interface share: codes, their graph, its distances."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from geolatent.checks import check_codes, requirement
from geolatent.graph import LatentGraph, check_graph
from geolatent.metrics.base import Metric
from geolatent.metrics.rows import Rows

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# nodes at which two metrics are compared
_COMPARED = 16


def as_codes(name: str, values: ArrayLike | Tensor, like: Tensor | None = None) -> Tensor:
    """Return an array or tensor as codes (n, d), of another tensor's dtype and device if given."""
    codes = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    if like is not None and codes.is_floating_point():
        codes = codes.to(like)
    return check_codes(name, codes, None if like is None else like.shape[1]).detach()


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
