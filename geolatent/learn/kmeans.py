"""k-means by geodesic distance, with scikit-learn's estimator interface."""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    ClusterMixin,
    TransformerMixin,
)
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from geolatent.checks import check_integer, describe, requirement
from geolatent.geometry.distances import graph_distance_matrix
from geolatent.geometry.means import frechet_mean
from geolatent.graph import LatentGraph
from geolatent.learn.estimators import (
    Floats,
    Integers,
    check_graph_of,
    default_graph,
    finite_distances,
    fitted_codes,
    further_codes,
)
from geolatent.metrics.base import Metric, check_metric


def lloyd(
    squares: Floats, n_clusters: int, random: np.random.RandomState, max_iterations: int = 100
) -> tuple[Integers, Integers, float, int]:
    """Cluster n points with centres among N candidates, from squared distances (n, N).

    Lloyd's algorithm: every point goes to its nearest centre, and every centre to the candidate of
    least summed squared distance to its points. Centres begin with k-means++.

    Returns
    -------
    tuple
        Candidates that are centres (K,), labels (n,), the sum of squared distances, iterations.

    References
    ----------
    Arthur, Vassilvitskii, "k-means++: the advantages of careful seeding", 2007.
    """
    n = squares.shape[0]
    # k-means++ needs distances to candidates alone: the candidate nearest to a point stands for it
    nearest = squares.argmin(1)
    centers = [int(nearest[random.randint(n)])]
    for _ in range(1, n_clusters):
        least = squares[:, centers].min(1)
        total = least.sum()
        chance = least / total if total > 0 else np.full(n, 1.0 / n)
        centers.append(int(nearest[random.choice(n, p=chance)]))
    chosen = np.array(centers, dtype=np.int64)
    labels = squares[:, chosen].argmin(1)
    iterations = 0
    for _ in range(max_iterations):
        iterations += 1
        for cluster in range(n_clusters):
            members = labels == cluster
            if members.any():
                chosen[cluster] = squares[members].sum(0).argmin()
            else:  # an empty cluster takes the point that is worst off
                chosen[cluster] = nearest[squares[:, chosen].min(1).argmax()]
        new = squares[:, chosen].argmin(1)
        if (new == labels).all():
            break
        labels = new
    inertia = float(squares[np.arange(n), chosen[labels]].sum())
    return chosen, labels.astype(np.int64), inertia, iterations


class GeodesicKMeans(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator
):
    """K-means under a Riemannian metric: least sum of squared geodesic distances to K centres.

    Distances are those of shortest paths on a `LatentGraph`, whose nodes are the candidates for
    centres; where ``refine`` is true, the centres then move to the Frechet means of their clusters,
    by geodesics.

    Parameters
    ----------
    metric
        The metric.
    n_clusters
        Number of centres K.
    graph
        The graph, one of the metric; by default one on the codes that ``fit`` gets.
    n_nodes
        Nodes of the default graph; by default four times the codes, 2,000 at least. Those beyond
        the codes lie around them, with a fifth of the codes' standard deviation.
    n_init
        Runs from different centres, of which the best is kept.
    max_iter
        Iterations of each run.
    n_landmarks
        Where ``fit`` gets more codes, so many of them, drawn at random, decide where the centres
        are; bounds time and memory, one search on the graph for each.
    refine
        Whether to end with Frechet means.
    random_state
        Seed or `numpy.random.RandomState`.

    Attributes
    ----------
    cluster_centers_
        Centres, (K, d).
    labels_
        Cluster of each code of ``fit``, (n,).
    inertia_
        Sum of squared distances to the nearest centre, in squared units of the decoder's output.
    n_iter_
        Iterations of the best run.
    n_features_in_, feature_names_in_
        Latent dimension d; the names of the coordinates, where ``fit`` got a table with names.
    graph_
        The graph.

    References
    ----------
    Arvanitidis, Hansen, Hauberg, "Latent Space Oddity", ICLR 2018,
    https://arxiv.org/abs/1710.11379, section 5.1.

    Examples
    --------
    >>> from geolatent import PullbackMetric
    >>> codes = torch.cat([torch.randn(50, 2), torch.randn(50, 2) + 10.0])
    >>> plane = PullbackMetric(lambda z: z)
    >>> corners = torch.full((2,), -5.0), torch.full((2,), 15.0)
    >>> graph = LatentGraph.lattice(plane, *corners, resolution=41)
    >>> model = GeodesicKMeans(plane, n_clusters=2, graph=graph, random_state=0)
    >>> labels = model.fit_predict(codes)
    >>> bool((labels[:50] == labels[0]).all() and (labels[50:] == labels[50]).all())
    True
    """

    def __init__(
        self,
        metric: Metric,
        n_clusters: int = 8,
        *,
        graph: LatentGraph | None = None,
        n_nodes: int | None = None,
        n_init: int = 10,
        max_iter: int = 100,
        n_landmarks: int = 2000,
        refine: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.metric = metric
        self.n_clusters = n_clusters
        self.graph = graph
        self.n_nodes = n_nodes
        self.n_init = n_init
        self.max_iter = max_iter
        self.n_landmarks = n_landmarks
        self.refine = refine
        self.random_state = random_state

    def fit(self, X: ArrayLike | Tensor, y: object = None) -> Self:  # noqa: ARG002
        """Find the centres.

        Parameters
        ----------
        X
            Codes, (n, d), an array or a tensor, at least two.
        y
            Not used.
        """
        n_clusters = check_integer("n_clusters", self.n_clusters)
        check_integer("n_init", self.n_init)
        check_integer("max_iter", self.max_iter)
        check_integer("n_landmarks", self.n_landmarks)
        random = check_random_state(self.random_state)
        metric = check_metric(self.metric)
        graph = check_graph_of(self.graph, metric)
        codes = fitted_codes(self, X, metric, graph)
        n = codes.shape[0]
        if n < n_clusters:
            raise ValueError(requirement("X", f"at least {n_clusters} codes", describe(codes)))
        self.graph_ = graph or default_graph(metric, codes, self.n_nodes, random)
        chosen = np.arange(n)
        if n > self.n_landmarks:
            chosen = np.sort(random.choice(n, self.n_landmarks, replace=False))
        landmarks = codes[torch.from_numpy(chosen).to(codes.device)]
        distances = graph_distance_matrix(self.graph_, landmarks).cpu().double().numpy()
        squares = finite_distances(distances) ** 2
        best: tuple[Integers, Integers, float, int] | None = None
        for _ in range(self.n_init):
            run = lloyd(squares, n_clusters, random, self.max_iter)
            if best is None or run[2] < best[2]:
                best = run
        centers, labels, _, self.n_iter_ = best  # type: ignore[misc]
        places = self.graph_.codes[torch.from_numpy(centers).to(codes.device)]
        if self.refine:
            places = self._refined(places, landmarks, labels)
        self._centers = places
        self.cluster_centers_ = places.cpu().numpy()
        self._n_features_out = len(places)
        to_centers = finite_distances(self._distances(codes).astype(np.float64))
        self.labels_ = to_centers.argmin(1)
        self.inertia_ = float((to_centers.min(1) ** 2).sum())
        return self

    def _refined(self, centers: Tensor, codes: Tensor, labels: Integers) -> Tensor:
        """Return the Frechet means of the clusters, all in one call; empty ones stay."""
        members = torch.from_numpy(labels).to(codes.device)
        weights = torch.nn.functional.one_hot(members, centers.shape[0]).mT.to(codes.dtype)
        full = weights.sum(1) > 0
        found = frechet_mean(
            self.graph_.metric,
            codes,
            weights[full],
            start=centers[full],
            initial=self.graph_,
            max_iterations=10,
        )
        centers = centers.clone()
        centers[full] = found.mean
        return centers

    def _distances(self, codes: Tensor) -> NDArray[np.floating]:
        return graph_distance_matrix(self.graph_, self._centers, codes).cpu().numpy().T

    def _distances_of(self, X: ArrayLike | Tensor) -> NDArray[np.floating]:
        check_is_fitted(self)
        return self._distances(further_codes(self, X, self.graph_.codes))

    def transform(self, X: ArrayLike | Tensor) -> NDArray[np.floating]:
        """Return the geodesic distances of codes (n, d) to the centres, (n, K)."""
        return self._distances_of(X)

    def predict(self, X: ArrayLike | Tensor) -> Integers:
        """Return the nearest centre of each code, (n,)."""
        return self._distances_of(X).argmin(1)

    def score(self, X: ArrayLike | Tensor, y: object = None) -> float:  # noqa: ARG002
        """Return minus the sum of squared distances of codes (n, d) to their nearest centres."""
        return -float(np.square(self._distances_of(X).min(1), dtype=np.float64).sum())

    def __sklearn_tags__(self) -> Tags:
        """Tell scikit-learn that distances have the precision of the codes."""
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
