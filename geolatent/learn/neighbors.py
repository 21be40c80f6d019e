"""Nearest neighbours by geodesic distance, with scikit-learn's estimator interface."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array, csr_matrix
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from geolatent.checks import (
    check_boolean,
    check_choice,
    check_integer,
    check_number,
    describe,
    requirement,
)
from geolatent.geometry.distances import distance, graph_distance_matrix
from geolatent.graph import LatentGraph, edge_lengths
from geolatent.learn.estimators import (
    Floats,
    Integers,
    as_classes,
    check_graph_of,
    default_graph,
    finite_distances,
    fitted_codes,
    further_codes,
)
from geolatent.metrics.base import Metric, check_metric
from geolatent.metrics.rows import Rows


class GeodesicKNeighborsClassifier(ClassifierMixin, BaseEstimator):
    """K-nearest-neighbour classification by geodesic distance.

    Distances are those of shortest paths on a `LatentGraph`; one search for each code to be
    classified.

    Parameters
    ----------
    metric
        The metric.
    n_neighbors
        Neighbours that vote.
    weights
        ``"uniform"``, or ``"distance"``: votes count by inverse distance.
    graph
        The graph, one of the metric; by default one on the codes that ``fit`` gets.
    n_nodes
        Nodes of the default graph; by default four times the codes, 2,000 at least. Those beyond
        the codes lie around them, with a fifth of the codes' standard deviation.
    random_state
        Seed of the default graph.

    Attributes
    ----------
    classes_
        The classes, sorted.
    n_features_in_, feature_names_in_
        Latent dimension d; the names of the coordinates, where ``fit`` got a table with names.
    graph_
        The graph.

    Examples
    --------
    >>> import torch
    >>> from geolatent import PullbackMetric
    >>> codes = torch.cat([torch.randn(50, 2), torch.randn(50, 2) + 10.0])
    >>> plane = PullbackMetric(lambda z: z)
    >>> corners = torch.full((2,), -5.0), torch.full((2,), 15.0)
    >>> graph = LatentGraph.lattice(plane, *corners, resolution=41)
    >>> model = GeodesicKNeighborsClassifier(plane, graph=graph)
    >>> model = model.fit(codes, ["left"] * 50 + ["right"] * 50)
    >>> model.predict([[0.0, 0.0], [10.0, 10.0]]).tolist()
    ['left', 'right']
    """

    def __init__(
        self,
        metric: Metric,
        n_neighbors: int = 5,
        *,
        weights: str = "uniform",
        graph: LatentGraph | None = None,
        n_nodes: int | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.metric = metric
        self.n_neighbors = n_neighbors
        self.weights = weights
        self.graph = graph
        self.n_nodes = n_nodes
        self.random_state = random_state

    def fit(self, X: ArrayLike | Tensor, y: ArrayLike | Tensor) -> Self:
        """Keep codes (n, d) and their classes (n,), and build the graph."""
        n_neighbors = check_integer("n_neighbors", self.n_neighbors)
        check_choice("weights", self.weights, ("uniform", "distance"))
        metric = check_metric(self.metric)
        graph = check_graph_of(self.graph, metric)
        labels = as_classes(self, y)  # before the codes, whose features' names it would forget
        codes = fitted_codes(self, X, metric, graph)
        if labels.shape != (codes.shape[0],):
            required = f"of shape ({codes.shape[0]},), one class for each code"
            raise ValueError(requirement("y", required, describe(labels)))
        if codes.shape[0] < n_neighbors:
            raise ValueError(requirement("X", f"at least {n_neighbors} codes", describe(codes)))
        random = check_random_state(self.random_state)
        self.graph_ = graph or default_graph(metric, codes, self.n_nodes, random)
        self._codes = codes
        # votes need distances from queries alone; of those among the codes, scikit-learn asks for
        # some: each code's to itself
        each = np.arange(len(labels))
        own = csr_array((np.zeros(len(labels)), (each, each)))
        self._voters = KNeighborsClassifier(n_neighbors, weights=self.weights, metric="precomputed")
        self._voters.fit(own, labels)
        self.classes_ = self._voters.classes_
        return self

    def _distances(self, X: ArrayLike | Tensor) -> Floats:
        """Return the geodesic distances of codes (n, d) to those of ``fit``, (n, m)."""
        check_is_fitted(self)
        codes = further_codes(self, X, self.graph_.codes)
        matrix = graph_distance_matrix(self.graph_, codes, self._codes)
        return finite_distances(matrix.cpu().double().numpy())

    def kneighbors(
        self, X: ArrayLike | Tensor, n_neighbors: int | None = None
    ) -> tuple[Floats, Integers]:
        """Return distances and numbers of the nearest codes of ``fit``, nearest first, (n, k)."""
        check_is_fitted(self)
        k = check_integer("n_neighbors", n_neighbors or self.n_neighbors)
        if k > self._codes.shape[0]:
            required = f"at most {self._codes.shape[0]}, the codes of `fit`"
            raise ValueError(requirement("n_neighbors", required, k))
        return self._voters.kneighbors(self._distances(X), k)

    def predict_proba(self, X: ArrayLike | Tensor) -> Floats:
        """Return the shares of the votes for each class, (n, classes)."""
        distances = self._distances(X)  # which tells of an estimator without a fit
        return self._voters.predict_proba(distances)

    def predict(self, X: ArrayLike | Tensor) -> NDArray[Any]:
        """Return the class with most votes, (n,), the first of equals."""
        distances = self._distances(X)  # which tells of an estimator without a fit
        return self._voters.predict(distances)


class GeodesicKNeighborsTransformer(TransformerMixin, BaseEstimator):
    """Geodesic distances to the nearest neighbours of each code, as a sparse matrix.

    The interface of scikit-learn's ``KNeighborsTransformer``: what takes a precomputed graph of
    neighbours takes this one, scikit-learn's manifold and density estimators as well as scanpy's
    ``pp.neighbors(adata, k, use_rep=..., transformer=...)``. Of the codes nearest in the latent
    space, those with the shortest chords in the decoder's output are taken, and the geodesics to
    them solved, all in one call and each pair once.

    Parameters
    ----------
    metric
        The metric.
    n_neighbors
        Neighbours of each code k, beside the nearest of all, which is the code itself where it is
        one of ``fit``.
    n_candidates
        Codes nearest in the latent space among which they are sought; by default 3 (k + 1).
    refine
        Whether to solve geodesics; else distances are those chords.
    length_tolerance
        As for `solve_geodesic`.

    Attributes
    ----------
    n_features_in_, feature_names_in_
        Latent dimension d; the names of the coordinates, where ``fit`` got a table with names.

    Examples
    --------
    >>> import torch
    >>> from geolatent import PullbackMetric
    >>> model = GeodesicKNeighborsTransformer(PullbackMetric(lambda z: 2.0 * z), 1)
    >>> model.fit_transform(torch.tensor([[0.0], [1.0], [3.0]])).toarray().round(3).tolist()
    [[0.0, 2.0, 0.0], [2.0, 0.0, 0.0], [0.0, 4.0, 0.0]]
    """

    def __init__(
        self,
        metric: Metric,
        n_neighbors: int = 15,
        *,
        n_candidates: int | None = None,
        refine: bool = True,
        length_tolerance: float = 1e-3,
    ) -> None:
        self.metric = metric
        self.n_neighbors = n_neighbors
        self.n_candidates = n_candidates
        self.refine = refine
        self.length_tolerance = length_tolerance

    def fit(self, X: ArrayLike | Tensor, y: object = None) -> Self:  # noqa: ARG002
        """Keep codes (n, d), more than ``n_neighbors``."""
        metric = check_metric(self.metric)
        k = check_integer("n_neighbors", self.n_neighbors) + 1
        wanted = 3 * k
        if self.n_candidates is not None:
            wanted = check_integer("n_candidates", self.n_candidates, minimum=k)
        check_boolean("refine", self.refine)
        check_number("length_tolerance", self.length_tolerance, above=0.0)
        codes = fitted_codes(self, X, metric, None)
        if codes.shape[0] < k:
            raise ValueError(requirement("X", f"at least {k} codes", describe(codes)))
        metric.check("X", codes[:1])
        self._codes = codes
        self._search = NearestNeighbors(n_neighbors=min(wanted, len(codes)))
        self._search.fit(codes.double().cpu().numpy())
        return self

    def transform(self, X: ArrayLike | Tensor) -> csr_matrix:
        """Return the distances of codes (m, d) to the k + 1 nearest of ``fit``, (m, n), sparse.

        Every row has its nearest first; distances of 0 are stored.
        """
        check_is_fitted(self)
        codes = further_codes(self, X, self._codes)
        self.metric.check("X", codes[:1])
        near = self._search.kneighbors(codes.double().cpu().numpy(), return_distance=False)
        m, n, k = len(codes), len(self._codes), self.n_neighbors + 1
        own = torch.equal(codes, self._codes)
        points = self._codes if own else torch.cat([self._codes, codes])
        numbers = np.arange(m) if own else n + np.arange(m)
        # every pair once: of codes of `fit`, in either direction
        ends = np.stack([np.repeat(numbers, near.shape[1]), near.ravel()], axis=1)
        chords = self._lengths(points, ends, refine=False).reshape(near.shape)
        nearest = np.argsort(chords, axis=1, kind="stable")[:, :k]
        near = np.take_along_axis(near, nearest, axis=1)
        lengths = np.take_along_axis(chords, nearest, axis=1)
        if self.refine:
            ends = np.stack([np.repeat(numbers, k), near.ravel()], axis=1)
            lengths = self._lengths(points, ends, refine=True).reshape(m, k)
            order = np.argsort(lengths, axis=1, kind="stable")
            near, lengths = (np.take_along_axis(each, order, axis=1) for each in (near, lengths))
        indptr = np.arange(0, m * k + 1, k)
        return csr_matrix((lengths.ravel(), near.ravel(), indptr), shape=(m, n))

    def _lengths(self, points: Tensor, ends: Integers, *, refine: bool) -> Floats:
        """Return the lengths between points by their numbers (P, 2), every pair evaluated once."""
        pairs, back = np.unique(np.sort(ends, axis=1), axis=0, return_inverse=True)
        if not refine:
            return edge_lengths(Rows.of(self.metric, points), points, *pairs.T)[back.ravel()]
        first, last = (points[torch.from_numpy(each).to(points.device)] for each in pairs.T)
        lengths = distance(self.metric, first, last, length_tolerance=self.length_tolerance)
        return lengths.double().cpu().numpy()[back.ravel()]
