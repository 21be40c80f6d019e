"""Nearest neighbours by geodesic distance, with scikit-learn's estimator interface."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from geolatent.checks import check_choice, check_integer, describe, requirement
from geolatent.geometry.distances import graph_distance_matrix
from geolatent.graph import LatentGraph
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
