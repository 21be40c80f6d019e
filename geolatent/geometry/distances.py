"""Geodesic distances: between pairs, between all pairs, and along a graph of latent codes."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

from geolatent.arrays import Array
from geolatent.checks import check_alike, check_codes, check_pairs
from geolatent.graph import LatentGraph, check_graph
from geolatent.metrics.base import Metric, check_metric
from geolatent.shapes import CodeShape
from geolatent.solve import solve_geodesic
from geolatent.solvers.problem import Callback, Solver

# searches run at once; bounds the memory for their distances
_SOURCES_AT_ONCE = 64


def distance(
    metric: Metric,
    start: Array,
    end: Array,
    *,
    solver: Solver | None = None,
    initial: LatentGraph | None = None,
    length_tolerance: float = 1e-4,
    callback: Callback | None = None,
) -> Tensor:
    """Return the lengths of the geodesics between pairs of codes.

    They are upper bounds of the distance, as close as the solver gets; `solve_geodesic` also
    returns curves, statuses and costs.

    Parameters
    ----------
    metric
        The metric.
    start, end
        Codes, (d,) or (B, d) each, broadcast.
    solver, initial, length_tolerance
        As for `solve_geodesic`.

    Returns
    -------
    Tensor
        Shape (B,), in the units of the decoder's output.

    Examples
    --------
    >>> from geolatent import PullbackMetric
    >>> plane = PullbackMetric(lambda z: 2.0 * z)
    >>> distance(plane, torch.zeros(2), torch.tensor([[3.0, 4.0], [0.0, 1.0]])).round(decimals=3)
    tensor([10.,  2.])
    """
    solution = solve_geodesic(
        metric,
        start,
        end,
        solver,
        initial=initial,
        length_tolerance=length_tolerance,
        callback=callback,
    )
    return solution.length


def pairwise_distances(
    metric: Metric,
    points: Array,
    others: Array | None = None,
    *,
    solver: Solver | None = None,
    initial: LatentGraph | None = None,
    length_tolerance: float = 1e-4,
    callback: Callback | None = None,
) -> Tensor:
    """Return the geodesic distances between all pairs of codes, solved in one call.

    Within one set every pair is solved once, so that the matrix is symmetric with a zero diagonal.

    Parameters
    ----------
    metric
        The metric.
    points
        Codes, (n, d).
    others
        Codes, (m, d); by default ``points`` themselves.
    solver, initial, length_tolerance
        As for `solve_geodesic`. A `LatentGraph` as ``initial`` is shared by all pairs.
    callback
        Called with a `Progress` after every step of the solver.

    Returns
    -------
    Tensor
        Shape (n, n), or (n, m), in the units of the decoder's output.

    Examples
    --------
    >>> from geolatent import PullbackMetric
    >>> plane = PullbackMetric(lambda z: 2.0 * z)
    >>> pairwise_distances(plane, torch.tensor([[0.0], [1.0], [3.0]])).round(decimals=3)
    tensor([[0., 2., 6.],
            [2., 0., 4.],
            [6., 4., 0.]])
    """
    check_metric(metric)
    shape = CodeShape.of(points)
    metric, initial = shape.metric(metric), shape.flat("initial", initial)
    points, others = shape.flat("points", points), shape.flat("others", others)
    like = metric.like
    points = check_codes("points", points, metric.dim, like=like).detach()
    n = points.shape[0]
    if others is None:
        first, last = torch.triu_indices(n, n, offset=1, device=points.device)
        start, end = points[first], points[last]
    else:
        others = check_codes("others", others, points.shape[1], like=like).detach()
        check_alike("others", others, "points", points)
        m = others.shape[0]
        start = points.repeat_interleave(m, dim=0)
        end = others.repeat(n, 1)
    if not start.shape[0]:  # a single code
        return points.new_zeros((n, n))
    lengths = distance(
        metric,
        start,
        end,
        solver=solver,
        initial=initial,
        length_tolerance=length_tolerance,
        callback=callback,
    )
    if others is not None:
        return lengths.reshape(n, -1)
    matrix = lengths.new_zeros((n, n))
    matrix[first, last] = lengths
    matrix[last, first] = lengths
    return matrix


def graph_distances(graph: LatentGraph, start: Array, end: Array) -> Tensor:
    """Return the lengths of the graph's shortest paths between pairs of codes, not polished.

    A few forward rows for each pair and one search: cheap beside a geodesic. Two errors work
    against each other: the path zigzags from node to node, which makes it longer than the geodesic,
    and each of its edges counts as its chord in the output, which makes it shorter than that edge.
    With dense graphs distances come out within a few per cent: -1.5 +- 1.6 % of the polished ones
    on the embedded digits model, 6,000 nodes of 24 neighbours (scripts/check_latent_geometry.py).

    Parameters
    ----------
    graph
        The graph.
    start, end
        Codes, (d,) or (B, d) each, broadcast.

    Returns
    -------
    Tensor
        Shape (B,), in the units of the decoder's output; infinite where there is no path.

    Examples
    --------
    >>> from geolatent import PullbackMetric
    >>> plane = PullbackMetric(lambda z: 2.0 * z)
    >>> corners = torch.zeros(2), torch.ones(2)
    >>> graph = LatentGraph.lattice(plane, *corners, resolution=11)
    >>> graph_distances(graph, *corners).round(decimals=3)
    tensor([2.8280])
    """
    shape = CodeShape.of(check_graph(graph))
    start, end = shape.flat("start", start), shape.flat("end", end)
    first, last = check_pairs(start, end, graph.codes.shape[1], like=graph.codes)
    graph.metric.check("start", first[:1])  # that of a graph from a file was never called
    found = graph.paths(first, last)
    lengths = torch.tensor(
        [torch.inf if path is None else path.arc_length[-1] for path in found], dtype=first.dtype
    ).to(first.device)
    return torch.where((first == last).all(1), 0.0, lengths)


def graph_distance_matrix(
    graph: LatentGraph,
    points: Array,
    others: Array | None = None,
) -> Tensor:
    """Return the lengths of the graph's shortest paths between all pairs of codes.

    One search for each of ``points``, whatever the number of ``others``: put the fewer codes first.
    Codes that are no nodes are joined to their nearest nodes; otherwise as `graph_distances`.

    Parameters
    ----------
    graph
        The graph.
    points, others
        Codes, (n, d) and (m, d); by default ``others`` are all nodes of the graph.

    Returns
    -------
    Tensor
        Shape (n, m), in the units of the decoder's output; infinite where there is no path.

    Examples
    --------
    >>> from geolatent import PullbackMetric
    >>> plane = PullbackMetric(lambda z: 2.0 * z)
    >>> graph = LatentGraph.lattice(plane, torch.zeros(1), torch.ones(1), resolution=11)
    >>> graph_distance_matrix(graph, torch.tensor([[0.0], [1.0]])).shape
    torch.Size([2, 11])
    """
    shape = CodeShape.of(check_graph(graph))
    points, others = shape.flat("points", points), shape.flat("others", others)
    d = graph.codes.shape[1]
    points = check_codes("points", points, d, like=graph.codes).detach()
    graph.metric.check("points", points[:1])
    if others is not None:
        others = check_codes("others", others, d, like=graph.codes).detach()
    ends = points if others is None else torch.cat([points, others])
    joined = graph.joined(ends, len(points))
    wanted = slice(graph.n_nodes) if others is None else slice(graph.n_nodes + len(points), None)
    sources = np.arange(len(points)) + graph.n_nodes
    parts = [
        dijkstra(joined, directed=True, indices=sources[first : first + _SOURCES_AT_ONCE])[
            :, wanted
        ]
        for first in range(0, len(points), _SOURCES_AT_ONCE)
    ]
    return torch.from_numpy(np.concatenate(parts)).to(points)
