"""Clusters and classes by geodesic distance."""

import math

import numpy as np
import pytest
import torch
from problems import SPHERE, ball, sphere, sphere_distance, sphere_mean
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.exceptions import NotFittedError
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier, KNeighborsTransformer
from sklearn.pipeline import make_pipeline
from torch import nn

from geolatent import GaussianPullbackMetric, LatentGraph, PullbackMetric, models
from geolatent.geometry.distances import graph_distance_matrix
from geolatent.lab import data as digits_data
from geolatent.learn.kmeans import GeodesicKMeans, lloyd
from geolatent.learn.neighbors import (
    GeodesicKNeighborsClassifier,
    GeodesicKNeighborsTransformer,
)

pytestmark = pytest.mark.usefixtures("float64")


# Clustering


def rings(n, generator):
    """Two rings: clusters that k-means cannot tell apart in the plane."""
    angle = 2 * math.pi * torch.rand(2 * n, generator=generator, dtype=torch.float64)
    radius = torch.cat([torch.full((n,), 1.0), torch.full((n,), 3.0)]).double()
    radius = radius + 0.05 * torch.randn(2 * n, generator=generator, dtype=torch.float64)
    codes = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    return codes, np.repeat([0, 1], n)


def fence(z):
    """A wall at radius 2 makes the way from ring to ring long; along a ring it is short."""
    radius = z.norm(dim=1)
    return torch.stack([0.05 * z[:, 0], 0.05 * z[:, 1], 20 * torch.sigmoid(20 * (radius - 2))], 1)


@pytest.fixture(scope="module")
def ring_graph():
    generator = torch.Generator().manual_seed(1)
    codes, labels = rings(60, generator)
    graph = LatentGraph.lattice(
        PullbackMetric(fence),
        torch.tensor([-4.0, -4.0], dtype=torch.float64),
        torch.tensor([4.0, 4.0], dtype=torch.float64),
        resolution=48,
    )
    return codes, labels, graph


def test_k_means_follows_the_metric(ring_graph):
    codes, labels, graph = ring_graph
    model = GeodesicKMeans(graph.metric, 2, graph=graph, random_state=0).fit(codes)
    assert adjusted_rand_score(labels, model.labels_) == 1.0
    plain = KMeans(2, n_init=10, random_state=0).fit_predict(codes.numpy())
    assert adjusted_rand_score(labels, plain) < 0.2
    assert model.cluster_centers_.shape == (2, 2)
    distances = model.transform(codes)
    assert distances.shape == (120, 2)
    assert (model.predict(codes) == model.labels_).all()
    assert model.inertia_ == pytest.approx((distances.min(1) ** 2).sum())
    assert model.n_features_in_ == 2
    # arrays of numpy are as good
    assert (model.predict(codes.numpy()) == model.labels_).all()
    same = GeodesicKMeans(graph.metric, 2, graph=graph, random_state=0).fit(codes.numpy())
    assert (same.labels_ == model.labels_).all()


def test_k_means_on_few_landmarks(ring_graph):
    codes, labels, graph = ring_graph
    model = GeodesicKMeans(graph.metric, 2, graph=graph, n_landmarks=40, random_state=0)
    assert adjusted_rand_score(labels, model.fit_predict(codes)) == 1.0


def test_refined_centres_have_less_inertia():
    codes = torch.cat([0.1 * torch.randn(8, 2) + 0.4, 0.1 * torch.randn(8, 2) - 0.4])
    graph = LatentGraph.lattice(SPHERE, torch.full((2,), -1.0), torch.full((2,), 1.0), resolution=9)
    coarse = GeodesicKMeans(SPHERE, 2, graph=graph, random_state=0).fit(codes)
    refined = clone(coarse).set_params(refine=True).fit(codes)
    assert (coarse.labels_ == refined.labels_).all()
    for cluster in range(2):
        members = codes[torch.from_numpy(refined.labels_ == cluster)]
        expected = sphere_mean(sphere(members), torch.ones(8) / 8)
        center = sphere(torch.from_numpy(refined.cluster_centers_[cluster])[None])[0]
        assert (center - expected).norm() < 3e-3


def test_clusters_that_are_far_apart_have_finite_distances():
    centers = torch.tensor([[0.0, 0.0], [40.0, 0.0], [90.0, 0.0]])
    codes = torch.cat([torch.randn(30, 2) + center for center in centers])
    model = GeodesicKMeans(PullbackMetric(nn.Identity()), 3, n_nodes=90, random_state=0).fit(codes)
    assert adjusted_rand_score(np.repeat([0, 1, 2], 30), model.labels_) == 1.0
    expected = np.linalg.norm(codes.numpy()[:, None] - model.cluster_centers_, axis=2)
    np.testing.assert_allclose(model.transform(codes), expected, rtol=0.3, atol=0.1)


def test_lloyd_equals_k_means_where_candidates_are_dense():
    random = np.random.RandomState(0)
    points = np.concatenate([random.randn(30) - 4, random.randn(30) + 4])
    candidates = np.linspace(-8, 8, 3201)
    chosen, labels, inertia, _ = lloyd((points[:, None] - candidates) ** 2, 2, random)
    plain = KMeans(2, n_init=5, random_state=0).fit(points[:, None])
    assert inertia == pytest.approx(plain.inertia_, rel=1e-4)
    assert adjusted_rand_score(labels, plain.labels_) == 1.0
    np.testing.assert_allclose(
        np.sort(candidates[chosen]), np.sort(plain.cluster_centers_[:, 0]), atol=3e-3
    )


def test_k_means_beats_euclidean_k_means_on_the_embedded_digits():
    """Adjusted Rand index of ten clusters of test digits, means over five seeds."""
    vae = models.digits_vae(dtype=torch.float64)
    metric = GaussianPullbackMetric(vae.decode)
    train, _ = digits_data.digits("train")
    images, labels = digits_data.digits("test")
    with torch.no_grad():
        train_codes = vae.encode(train.double())[0]
        codes = vae.encode(images.double())[0]
    graph = LatentGraph.from_codes(metric, train_codes, n_nodes=4000, n_neighbors=20)
    squares = graph_distance_matrix(graph, codes).numpy() ** 2
    plain, geodesic = [], []
    for seed in range(5):
        random = np.random.RandomState(seed)
        runs = [lloyd(squares, 10, random) for _ in range(5)]
        best = min(runs, key=lambda run: run[2])
        geodesic.append(adjusted_rand_score(labels, best[1]))
        by_euclid = KMeans(10, n_init=10, random_state=seed).fit_predict(codes.numpy())
        plain.append(adjusted_rand_score(labels, by_euclid))
    assert np.mean(geodesic) > np.mean(plain) + 0.03
    assert np.min(geodesic) > np.max(plain)


# Classification


def test_neighbours_under_the_metric(ring_graph):
    codes, labels, graph = ring_graph
    # few labelled codes: the nearest in the plane is often on the other ring
    few = np.concatenate([np.arange(0, 60, 20), np.arange(60, 120, 20)])
    model = GeodesicKNeighborsClassifier(graph.metric, 1, graph=graph)
    model.fit(codes[few], labels[few])
    plain = KNeighborsClassifier(1).fit(codes[few].numpy(), labels[few])
    assert model.score(codes, labels) == 1.0
    assert plain.score(codes.numpy(), labels) < 0.95
    distances, order = model.kneighbors(codes[:4], n_neighbors=3)
    assert distances.shape == order.shape == (4, 3)
    assert (np.diff(distances, axis=1) >= 0).all()


@pytest.mark.parametrize("weights", ["uniform", "distance"])
def test_neighbours_in_flat_space_equal_scikit_learn(weights):
    plane = PullbackMetric(nn.Identity())
    codes = torch.randn(80, 2)
    labels = np.array(["b", "a", "c"])[(codes[:, 0] > 0).int() + (codes[:, 1] > 0).int()]
    graph = LatentGraph.from_codes(plane, codes, n_neighbors=79)
    model = GeodesicKNeighborsClassifier(plane, 7, graph=graph, weights=weights)
    model.fit(codes, labels)
    plain = KNeighborsClassifier(7, weights=weights).fit(codes.numpy(), labels)
    queries = torch.randn(30, 2)
    np.testing.assert_allclose(
        model.predict_proba(queries), plain.predict_proba(queries.numpy()), atol=1e-9
    )
    assert (model.predict(queries) == plain.predict(queries.numpy())).all()
    assert model.classes_.tolist() == ["a", "b", "c"]


def test_estimators_in_scikit_learns_tools(ring_graph):
    codes, labels, graph = ring_graph
    model = GeodesicKNeighborsClassifier(graph.metric, 3, graph=graph)
    scores = cross_val_score(model, codes.numpy(), labels, cv=3)
    assert scores.shape == (3,)
    assert scores.min() > 0.9
    again = clone(model).set_params(n_neighbors=1)
    assert again.get_params()["n_neighbors"] == 1
    for method in ("kneighbors", "predict", "predict_proba"):
        with pytest.raises(NotFittedError):
            getattr(again, method)(codes[:2])


# Graphs of neighbours


def test_neighbours_on_the_sphere_are_the_nearest_at_their_distances():
    codes = ball(2)(40)
    i, j = torch.cartesian_prod(torch.arange(40), torch.arange(40)).T
    exact = sphere_distance(codes[i], codes[j]).reshape(40, 40).numpy()
    near = GeodesicKNeighborsTransformer(SPHERE, 5, n_candidates=40, length_tolerance=1e-5)
    found = near.fit_transform(codes)
    assert found.shape == (40, 40)
    assert (found.getnnz(axis=1) == 6).all()
    rows = found.indices.reshape(40, 6)
    assert (rows[:, 0] == np.arange(40)).all()
    np.testing.assert_allclose(found.data.reshape(40, 6), np.sort(exact, axis=1)[:, :6], rtol=1e-3)
    np.testing.assert_allclose(found.data, exact[np.arange(40).repeat(6), found.indices], rtol=1e-3)
    # chords are shorter
    chords = GeodesicKNeighborsTransformer(SPHERE, 5, n_candidates=40, refine=False)
    straight = torch.cdist(sphere(codes), sphere(codes)).numpy()
    expected = np.sort(straight, axis=1)[:, 1:6]
    shorter = chords.fit_transform(codes).data.reshape(40, 6)
    # torch.cdist takes differences of squares
    np.testing.assert_allclose(shorter[:, 1:], expected, rtol=1e-6)
    assert (shorter <= found.data.reshape(40, 6) * (1 + 1e-9)).all()


@pytest.mark.parametrize("refine", [True, False])
def test_neighbours_in_a_plane_are_those_of_scikit_learn(refine):
    codes, queries = torch.randn(30, 3), torch.randn(4, 3)
    plane = PullbackMetric(lambda z: 2.0 * z)
    near = GeodesicKNeighborsTransformer(plane, 4, refine=refine).fit(codes)
    plain = KNeighborsTransformer(n_neighbors=4).fit(2.0 * codes.numpy())
    for points in (codes, queries):
        expected = plain.transform(2.0 * points.numpy())
        found = near.transform(points)
        assert (found.indices == expected.indices).all()
        # a code's distance to itself is a rounding error to scikit-learn
        np.testing.assert_allclose(found.data, expected.data, rtol=1e-6, atol=1e-7)


def test_neighbours_stay_on_their_side_of_a_fence(ring_graph):
    codes, labels, graph = ring_graph
    near = GeodesicKNeighborsTransformer(graph.metric, 4, n_candidates=60, refine=False)
    found = near.fit_transform(codes)
    assert (labels[found.indices].reshape(120, 5) == labels[:, None]).all()


def test_neighbours_for_scikit_learns_precomputed_metric(ring_graph):
    codes, labels, graph = ring_graph
    model = make_pipeline(
        GeodesicKNeighborsTransformer(graph.metric, 5, refine=False),
        KNeighborsClassifier(5, metric="precomputed"),
    )
    model.fit(codes.numpy(), labels)
    assert (model.predict(codes.numpy()) == labels).all()
    again = clone(model[0])
    assert again.get_params()["n_neighbors"] == 5
    with pytest.raises(NotFittedError):
        again.transform(codes)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda z: GeodesicKMeans("flat", 2).fit(z), TypeError, "`metric`"),
        (lambda z: GeodesicKMeans(SPHERE, 0).fit(z), ValueError, "`n_clusters`"),
        (lambda z: GeodesicKMeans(SPHERE, 9).fit(z), ValueError, "at least 9 codes"),
        (lambda z: GeodesicKMeans(SPHERE, 2, graph=z).fit(z), TypeError, "`graph`"),
        (lambda z: GeodesicKNeighborsClassifier(SPHERE).fit(z, [1, 2]), ValueError, "`y`"),
        (lambda z: GeodesicKNeighborsTransformer("flat").fit(z), TypeError, "`metric`"),
        (lambda z: GeodesicKNeighborsTransformer(SPHERE, 8).fit(z), ValueError, "at least 9 codes"),
        (
            lambda z: GeodesicKNeighborsTransformer(SPHERE, 4, n_candidates=4).fit(z),
            ValueError,
            "`n_candidates`",
        ),
        (
            lambda z: GeodesicKNeighborsTransformer(SPHERE, 4, refine="yes").fit(z),
            TypeError,
            "`refine`",
        ),
        (
            lambda z: GeodesicKNeighborsClassifier(SPHERE, weights="votes").fit(z, [0] * 8),
            ValueError,
            "`weights`",
        ),
    ],
)
def test_bad_estimators(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.rand(8, 2))


@pytest.mark.parametrize("estimator", [GeodesicKMeans, GeodesicKNeighborsClassifier])
def test_a_graph_of_another_metric_is_refused(estimator, ring_graph):
    codes, labels, graph = ring_graph
    for other in (PullbackMetric(nn.Identity()), PullbackMetric(lambda z: fence(z) * 1.001)):
        with pytest.raises(ValueError, match="`graph` should be a graph of the metric"):
            estimator(other, 2, graph=graph).fit(codes, labels)
    # another object of the same metric
    estimator(PullbackMetric(fence), 2, graph=graph).fit(codes, labels)
    clone(estimator(graph.metric, 2, graph=graph)).fit(codes, labels)
