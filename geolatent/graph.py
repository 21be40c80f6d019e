"""Starting curves: points turned into splines, and shortest paths on a graph of latent codes."""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components, dijkstra
from torch import Tensor

from geolatent.arrays import Array
from geolatent.checks import (
    check_box,
    check_codes,
    check_integer,
    check_number,
    describe,
    requirement,
)
from geolatent.curves import CubicBSpline, clamped_knots, greville_abscissae
from geolatent.metrics.base import Metric, check_metric
from geolatent.metrics.chords import Chords
from geolatent.metrics.rows import Rows
from geolatent.shapes import CodeShape
from geolatent.solution import Evaluations
from geolatent.transfers import sent

# searches run at once; bounds the memory for their distances and predecessors
_SOURCES_AT_ONCE = 32
# chords that an edge between parts of a graph is measured by, which may be long
_BRIDGE_CHORDS = 16
# bytes of decoder outputs held at once while edges are weighted
_OUTPUT_BYTES = 2**30


@dataclass(frozen=True)
class Path:
    """A polyline in the latent space.

    Attributes
    ----------
    points
        Shape (K, d), from start to end.
    arc_length
        Length in the metric from the start to every point, (K,), not decreasing.
    """

    points: NDArray[np.float64]
    arc_length: NDArray[np.float64]

    def control_points(self, n: int) -> NDArray[np.float64]:
        """Return n control points: the path at the Greville abscissae, by metric arc length.

        This is Schoenberg's variation-diminishing spline of the path: it does not overshoot. A path
        of zero or unknown length is run through by its index instead.
        """
        at = greville_abscissae(clamped_knots(n)).numpy()
        place = self.arc_length
        if not np.isfinite(place).all() or place[-1] <= 0.0:
            place = np.arange(len(self.points), dtype=np.float64)
        place = place / place[-1]
        columns = [np.interp(at, place, column) for column in self.points.T]
        result = np.stack(columns, axis=1)
        result[0], result[-1] = self.points[0], self.points[-1]
        return result


def curve_through_points(rows: Rows, points: Tensor, n_control_points: int) -> CubicBSpline:
    """Return splines that follow polylines (B, T, d), parametrised by metric arc length."""
    inner = torch.arange(points.shape[1], device=points.device)
    lengths = segment_lengths(rows, points, inner[:-1], inner[1:])
    arcs = np.concatenate([np.zeros((len(points), 1)), lengths.cumsum(1)], axis=1)
    paths = [
        Path(polyline, arc)
        for polyline, arc in zip(points.double().cpu().numpy(), arcs, strict=True)
    ]
    return curve_along_paths(paths, n_control_points, points)


def curve_along_paths(paths: list[Path], n_control_points: int, like: Tensor) -> CubicBSpline:
    """Return splines that follow paths, with the dtype and device of a tensor."""
    points = np.stack([path.control_points(n_control_points) for path in paths])
    knots = sent(clamped_knots(n_control_points), like)
    return CubicBSpline.trusted(torch.from_numpy(points).to(like), knots)


def segment_lengths(
    rows: Rows, points: Tensor, first: Tensor, last: Tensor, pairs: Tensor | None = None
) -> NDArray[np.float64]:
    """Return lengths of straight segments between points (A, T, d) of each pair, (A, S).

    Chords in the output where the metric has them, else the speed in the middle.

    Parameters
    ----------
    rows
        The metric at work.
    points
        Codes, (A, T, d).
    first, last
        Which of the T each segment runs from and to, (S,) each.
    pairs
        The numbers of the pairs that are counted for, (A,); by default all.
    """
    if rows.chords is None:
        start, end = points[:, first], points[:, last]
        # NaN where the metric is negative: there is no edge
        return rows.quadratic((start + end) / 2.0, end - start, pairs).double().sqrt().cpu().numpy()
    pairs = torch.arange(len(points), device=points.device) if pairs is None else pairs

    def chunk(points: Tensor, pairs: Tensor) -> tuple[Tensor]:
        values = rows.outputs(points, pairs)
        chords: Chords = rows.chords  # type: ignore[assignment]
        return (chords.squares(values[:, first], values[:, last]).double().sqrt(),)

    (lengths,) = rows.each(chunk, points.shape[1], points, pairs)
    return lengths.cpu().numpy()


class LatentGraph:
    """A graph on latent codes, its edges weighted by their length in the metric.

    Shortest paths on it start `solve_geodesic` in the right valley. It is built once for a metric
    and shared by all pairs. Edge weights are chord lengths in the decoder's output,
    |F(z_i) - F(z_j)|, from one forward row per node; for a metric without an immersion the speed
    at the edge's midpoint.

    Build it with `from_codes` or `lattice`.

    Attributes
    ----------
    codes
        The nodes, (n, d), always flat.
    code_shape
        Shape of one code where it was made of codes of such a shape, else None.
    adjacency
        Sparse (n, n) matrix of edge lengths, both directions.
    forward_rows
        Decoder rows spent on building.
    """

    def __init__(
        self,
        metric: Metric,
        codes: Tensor,
        adjacency: csr_array,
        n_neighbors: int,
        forward_rows: int,
        code_shape: tuple[int, ...] | None = None,
    ) -> None:
        from sklearn.neighbors import NearestNeighbors  # slow to import, and not always needed

        self.metric = metric
        self.codes = codes
        self.code_shape = code_shape
        self.adjacency = adjacency
        self.forward_rows = forward_rows
        self._points = codes.detach().double().cpu().numpy()
        self._neighbors: Any = NearestNeighbors(n_neighbors=min(n_neighbors, len(codes)))
        self._neighbors.fit(self._points)

    @property
    def n_nodes(self) -> int:
        """Number of nodes."""
        return self.codes.shape[0]

    @classmethod
    def from_codes(
        cls,
        metric: Metric,
        codes: Array,
        *,
        n_neighbors: int = 32,
        n_nodes: int | None = None,
        jitter: float = 0.2,
        seed: int = 0,
    ) -> LatentGraph:
        """Join every code to its nearest neighbours in the latent space.

        Where that leaves the graph in parts, as codes in separate clusters do, the parts are joined
        by the shortest edges in the latent space that make it one (the minimum spanning tree of
        the parts). Such an edge may be long, and is measured along its way, not by one chord. Only
        where the metric is not finite may the graph still fall apart.

        Parameters
        ----------
        metric
            The metric.
        codes
            Codes where the model has data, (n, d), or of any shape, (n, ...), n at least 2, such as
            the training set's.
        n_neighbors
            Neighbours of each node.
        n_nodes
            Number of nodes. Beyond n, codes are drawn again and moved by Gaussian noise; by
            default the codes alone.
        jitter
            Standard deviation of that noise, in latent units.
        seed
            Seed of the noise.

        """
        from sklearn.neighbors import NearestNeighbors

        check_metric(metric)
        shape = CodeShape.of(codes)
        metric, codes = shape.metric(metric), shape.flat("codes", codes)
        codes = check_codes("codes", codes, metric.dim, like=metric.like).detach()
        if codes.shape[0] < 2:
            raise ValueError(requirement("codes", "at least two codes", describe(codes)))
        metric.check("codes", codes[:1])
        n_neighbors = check_integer("n_neighbors", n_neighbors)
        jitter = check_number("jitter", jitter, at_least=0.0)
        if n_nodes is not None and check_integer("n_nodes", n_nodes) > codes.shape[0]:
            generator = torch.Generator().manual_seed(check_integer("seed", seed, minimum=0))
            more = n_nodes - codes.shape[0]
            chosen = torch.randint(codes.shape[0], (more,), generator=generator, device="cpu")
            noise = torch.randn(
                more, codes.shape[1], generator=generator, dtype=torch.float64, device="cpu"
            )
            codes = torch.cat([codes, codes[chosen.to(codes.device)] + jitter * noise.to(codes)])
        points = codes.double().cpu().numpy()
        k = min(n_neighbors, len(points) - 1)
        neighbors = NearestNeighbors(n_neighbors=k).fit(points).kneighbors(return_distance=False)
        sources, targets = np.repeat(np.arange(len(points)), k), neighbors.ravel()
        bridges = _bridges(points, sources, targets)
        graph = cls._weighted(metric, codes, sources, targets, n_neighbors, bridges)
        graph.code_shape = shape.sizes
        return graph

    @classmethod
    def lattice(
        cls,
        metric: Metric,
        low: Array,
        high: Array,
        *,
        resolution: int = 256,
    ) -> LatentGraph:
        """Join the points of a regular lattice over a box, in up to three dimensions.

        Every point is joined to those at steps of up to two cells along each axis (16 neighbours in
        the plane), so that lengths do not depend much on the direction.

        Parameters
        ----------
        metric
            The metric.
        low, high
            Corners of the box, (d,) each.
        resolution
            Points along each axis.

        """
        check_metric(metric)
        low, high = check_box(low, high, like=metric.like)
        d = low.numel()
        if d > 3 or (metric.dim is not None and d != metric.dim):
            required = "of shape (d,) with d the latent dimension, at most 3 (use from_codes above)"
            raise ValueError(requirement("low", required, describe(low)))
        resolution = check_integer("resolution", resolution, minimum=2)
        metric.check("low", low[None])
        axes = [
            torch.linspace(float(a), float(b), resolution, dtype=torch.float64)
            for a, b in zip(low, high, strict=True)
        ]
        codes = torch.cartesian_prod(*axes).reshape(-1, d).to(low)
        index = np.arange(resolution**d).reshape((resolution,) * d)
        sources, targets = [], []
        for offset in itertools.product(range(-2, 3), repeat=d):
            # one of each pair of opposite steps, and none that is a multiple of a shorter one
            if offset <= (0,) * d or math.gcd(*offset) != 1:
                continue
            here = tuple(slice(max(0, -s), resolution - max(0, s)) for s in offset)
            there = tuple(slice(max(0, s), resolution - max(0, -s)) for s in offset)
            sources.append(index[here].ravel())
            targets.append(index[there].ravel())
        return cls._weighted(metric, codes, np.concatenate(sources), np.concatenate(targets), 4**d)

    @classmethod
    def _weighted(
        cls,
        metric: Metric,
        codes: Tensor,
        sources: NDArray[np.int64],
        targets: NDArray[np.int64],
        n_neighbors: int,
        bridges: NDArray[np.int64] | None = None,
    ) -> LatentGraph:
        """Weight the given edges and bridges (m, 2), each once, and make the graph."""
        n = codes.shape[0]
        low, high = np.minimum(sources, targets), np.maximum(sources, targets)
        pairs = np.unique(low.astype(np.int64) * n + high)  # sorted by the lower end
        low, high = pairs // n, pairs % n
        rows = Rows.of(metric, codes, Evaluations.zeros(1, codes.device))
        weights = edge_lengths(rows, codes, low, high)
        if bridges is not None and len(bridges):
            tips = codes[torch.from_numpy(bridges).to(codes.device)]
            shares = torch.linspace(0.0, 1.0, _BRIDGE_CHORDS + 1).to(codes)[:, None]
            points = torch.lerp(tips[:, :1], tips[:, 1:], shares)
            inner = torch.arange(_BRIDGE_CHORDS + 1, device=codes.device)
            one = torch.zeros(len(points), dtype=torch.int64, device=codes.device)
            lengths = segment_lengths(rows, points, inner[:-1], inner[1:], one)
            low, high = np.concatenate([low, bridges[:, 0]]), np.concatenate([high, bridges[:, 1]])
            weights = np.concatenate([weights, lengths.sum(1)])
        spent = int(rows.spent.forward + rows.spent.jvp)
        finite = np.isfinite(weights)
        low, high, weights = low[finite], high[finite], weights[finite]
        # zero would mean "no edge" to the sparse graph
        weights = np.maximum(weights, np.finfo(np.float64).tiny)
        adjacency = coo_array(
            (np.tile(weights, 2), (np.concatenate([low, high]), np.concatenate([high, low]))),
            shape=(n, n),
        ).tocsr()
        return cls(metric, codes, adjacency, n_neighbors, spent)

    def __sklearn_clone__(self) -> LatentGraph:
        """Return the graph itself, which never changes: clones of an estimator share it."""
        return self

    def state(self) -> dict[str, Tensor]:
        """Return all there is to keep of the graph as tensors; the metric is not among it."""
        n_neighbors = int(self._neighbors.n_neighbors)
        return {
            "codes": self.codes,
            "indptr": torch.from_numpy(self.adjacency.indptr.astype(np.int64)),
            "indices": torch.from_numpy(self.adjacency.indices.astype(np.int64)),
            "lengths": torch.from_numpy(self.adjacency.data.copy()),
            "numbers": torch.tensor([n_neighbors, self.forward_rows]),
        }

    @classmethod
    def from_state(cls, metric: Metric, state: dict[str, Tensor]) -> LatentGraph:
        """Return the graph whose `state` was kept; the metric is the one it was built for.

        Raises
        ------
        ValueError
            Where the tensors are not those of a graph.
        """
        check_metric(metric)
        names = {"codes", "indptr", "indices", "lengths", "numbers"}
        if set(state) != names:
            found = ", ".join(sorted(state))
            raise ValueError(requirement("state", f"of {', '.join(sorted(names))}", found))
        codes = check_codes("codes", state["codes"], metric.dim, like=metric.like)
        parts = tuple(state[name].cpu().numpy() for name in ("lengths", "indices", "indptr"))
        try:
            adjacency = csr_array(parts, shape=(len(codes), len(codes)))
            adjacency.check_format()
        except ValueError as error:
            raise ValueError(requirement("state", "a sparse matrix of lengths", error)) from None
        n_neighbors, rows = state["numbers"].tolist()
        return cls(metric, codes, adjacency, n_neighbors, rows)

    def paths(
        self, start: Tensor, end: Tensor, spent: Evaluations | None = None
    ) -> list[Path | None]:
        """Return the shortest path of every pair, (B, d) each, or None where there is none.

        Each pair's end points are joined to their nearest nodes for that pair alone, so that a
        pair's path does not depend on the others'. The cost is added to the counts ``spent``.
        """
        ends = torch.cat([start, end])
        pairs = torch.arange(len(start), device=start.device).repeat(2)
        graph = self.joined(ends, len(start), pairs, spent)
        return self._search(graph, ends.double().cpu().numpy())

    def joined(
        self,
        codes: Tensor,
        n_starts: int,
        pairs: Tensor | None = None,
        spent: Evaluations | None = None,
    ) -> csr_array:
        """Return the matrix of edges with codes (m, d) after the nodes, joined to their nearest.

        The first ``n_starts`` have edges out of them, the others into them: none can be passed
        through. Costs are counted as those of `links`.
        """
        near, links = self.links(codes, pairs, spent)
        size = self.n_nodes + len(codes)
        terminals = np.repeat(np.arange(self.n_nodes, size), near.shape[1])
        usable = np.isfinite(links).ravel()
        into = terminals >= self.n_nodes + n_starts
        rows = np.where(into, near.ravel(), terminals)[usable]
        columns = np.where(into, terminals, near.ravel())[usable]
        base = self.adjacency.tocoo()
        return coo_array(
            (
                np.concatenate([base.data, links.ravel()[usable]]),
                (np.concatenate([base.row, rows]), np.concatenate([base.col, columns])),
            ),
            shape=(size, size),
        ).tocsr()

    def links(
        self, codes: Tensor, pairs: Tensor | None = None, spent: Evaluations | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the nearest nodes of codes (n, d) and the lengths of edges to them, (n, k) each.

        An edge along which the metric is not finite is infinitely long. The cost is added to the
        counts ``spent`` of the pairs that the codes belong to, by default each its own.
        """
        spent = Evaluations.zeros(len(codes), codes.device) if spent is None else spent
        rows = Rows.of(self.metric, codes, spent)
        nodes = self._neighbors.kneighbors(codes.double().cpu().numpy(), return_distance=False)
        tips = self.codes[torch.from_numpy(nodes).to(self.codes.device)]
        points = torch.cat([codes[:, None], tips], dim=1)
        last = torch.arange(1, points.shape[1], device=codes.device)
        lengths = segment_lengths(rows, points, torch.zeros_like(last), last, pairs)
        # zero would mean "no edge" to the sparse graph
        lengths = np.maximum(lengths, np.finfo(np.float64).tiny)
        return nodes, np.where(np.isfinite(lengths), lengths, np.inf)

    def _search(self, graph: csr_array, ends: NDArray[np.float64]) -> list[Path | None]:
        n, b = self.n_nodes, len(ends) // 2
        points = np.concatenate([self._points, ends])
        paths: list[Path | None] = []
        for first in range(0, b, _SOURCES_AT_ONCE):
            some = range(first, min(first + _SOURCES_AT_ONCE, b))
            distances, predecessors = dijkstra(
                graph, directed=True, indices=[n + i for i in some], return_predecessors=True
            )
            for distance, predecessor, pair in zip(distances, predecessors, some, strict=True):
                if not np.isfinite(distance[n + b + pair]):
                    paths.append(None)
                    continue
                chain = [n + b + pair]
                while chain[-1] != n + pair:
                    chain.append(int(predecessor[chain[-1]]))
                chain.reverse()
                paths.append(Path(points[chain], distance[chain]))
        return paths


def _bridges(
    points: NDArray[np.float64], sources: NDArray[np.int64], targets: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the edges (m, 2) by which a graph on points (n, d) becomes one.

    Every part but the largest takes the shortest edge that leads out of it, until there is one
    (Boruvka's algorithm): together the minimum spanning tree of the parts.
    """
    from sklearn.neighbors import NearestNeighbors

    n = len(points)
    found = np.empty((0, 2), dtype=np.int64)
    while True:
        first = np.concatenate([sources, found[:, 0]])
        last = np.concatenate([targets, found[:, 1]])
        edges = coo_array((np.ones(len(first)), (first, last)), shape=(n, n))
        n_parts, part = connected_components(edges, directed=False)
        if n_parts == 1:
            return found
        largest = np.bincount(part).argmax()
        ways = []
        for number in np.delete(np.arange(n_parts), largest):
            inside, outside = (part == number).nonzero()[0], (part != number).nonzero()[0]
            tree = NearestNeighbors(n_neighbors=1).fit(points[outside])
            distances, nearest = tree.kneighbors(points[inside])
            best = distances[:, 0].argmin()
            ways.append(sorted((inside[best], outside[nearest[best, 0]])))
        # two parts may have chosen the same
        found = np.unique(np.concatenate([found, np.array(ways, dtype=np.int64)]), axis=0)


def check_graph(value: object) -> LatentGraph:
    """Return ``value``, a graph."""
    if not isinstance(value, LatentGraph):
        raise TypeError(requirement("graph", "a geolatent LatentGraph", describe(value)))
    return value


def edge_lengths(
    rows: Rows, codes: Tensor, low: NDArray[np.int64], high: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the lengths of edges between codes (n, d), by their numbers, sorted by ``low``.

    Chords in the output where the metric has them, else the speed in the middle.
    """
    if rows.chords is None:
        ends = (torch.from_numpy(each).to(codes.device) for each in (low, high))
        return segment_lengths(rows, codes[None], *ends)[0]
    return _chord_lengths(rows, codes, low, high)


def _chord_lengths(
    rows: Rows, codes: Tensor, low: NDArray[np.int64], high: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return |F(z_low) - F(z_high)| of edges sorted by ``low``.

    Every node is decoded once where all outputs fit into memory; else edges are taken in blocks,
    and a node once in each block that it belongs to.
    """
    chords: Chords = rows.chords  # type: ignore[assignment]
    n = codes.shape[0]
    capacity = max(1024, _OUTPUT_BYTES // (rows.budget.width * codes.element_size()))
    n_blocks = 1 if n <= capacity else math.ceil(len(low) / max(1, capacity // 2))
    weights = []
    for block in np.array_split(np.arange(len(low)), n_blocks):
        nodes, places = np.unique(np.concatenate([low[block], high[block]]), return_inverse=True)
        outputs = rows.outputs(codes[None, torch.from_numpy(nodes).to(codes.device)])[0]
        where = torch.from_numpy(places).to(codes.device)
        first, last = where[: len(block)], where[len(block) :]
        for i in range(0, len(block), capacity):
            ends = outputs[first[i : i + capacity]], outputs[last[i : i + capacity]]
            weights.append(chords.squares(*ends).double().sqrt().cpu().numpy())
    return np.concatenate(weights)


def graph_curve(
    graph: LatentGraph,
    start: Tensor,
    end: Tensor,
    n_control_points: int,
    spent: Evaluations | None = None,
) -> CubicBSpline:
    """Return splines along the graph's shortest paths; see `LatentGraph.paths`.

    A pair that the graph does not connect starts from the straight line, with a warning.
    """
    found = graph.paths(start, end, spent)
    missing = sum(path is None for path in found)
    if missing:
        warnings.warn(
            f"the graph has no path for {missing} of {len(found)} pairs; they start straight",
            stacklevel=3,
        )
    paths = []
    for path, a, b in zip(found, start.double().cpu(), end.double().cpu(), strict=True):
        if path is None:
            path = Path(torch.stack([a, b]).numpy(), np.array([0.0, 1.0]))
        paths.append(path)
    return curve_along_paths(paths, n_control_points, start)
