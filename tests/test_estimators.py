"""The estimators as scikit-learn has them: its own checks, its tools, and codes of every kind."""

import copy
import inspect
import io
import itertools
import pickle

import joblib
import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.sparse import issparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from geolatent import (
    ConformalMetric,
    DivergenceMetric,
    EnsembleMetric,
    GaussianFisherRaoMetric,
    GaussianPullbackMetric,
    GeodesicKMeans,
    GeodesicKNeighborsClassifier,
    GeodesicKNeighborsTransformer,
    LandMixture,
    LatentGraph,
    PoissonPullbackMetric,
    PullbackMetric,
    TensorMetric,
)


def padded(z):
    """An isometry of any number of dimensions whose outputs have one width."""
    return nn.functional.pad(z, (0, 64 - z.shape[1]))


class Flat(PullbackMetric):
    def __repr__(self):
        """The checks' names have it, which are to be the same in every process."""
        return "FLAT"


FLAT = Flat(padded)


def kmeans(metric=FLAT, **options):
    return GeodesicKMeans(metric, **{"n_clusters": 2, "n_nodes": 60, "random_state": 0} | options)


def neighbours(metric=FLAT, **options):
    return GeodesicKNeighborsClassifier(
        metric, **{"n_neighbors": 1, "n_nodes": 60, "random_state": 0} | options
    )


def land(metric=FLAT, **options):
    few = {"n_samples": 10, "n_nodes": 20, "max_iter": 1, "random_state": 0}
    return LandMixture(metric, **few | options)


def near(metric=FLAT, **options):
    return GeodesicKNeighborsTransformer(metric, **{"n_neighbors": 1, "refine": False} | options)


ESTIMATORS = {"kmeans": kmeans, "neighbours": neighbours, "land": land, "near": near}
WITH_GRAPH = ["kmeans", "neighbours", "land"]


# every check applies; those of pandas and of other array libraries are left out where there is none
@parametrize_with_checks([make() for make in ESTIMATORS.values()] + [near(refine=True)])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def codes(n=30):
    generator = torch.Generator().manual_seed(0)
    shift = torch.tensor([[0.0, 0.0], [6.0, 0.0]])
    z = torch.randn(n, 2, generator=generator) + shift[torch.arange(n) % 2]
    return z.double(), np.arange(n) % 2


def results(model, z):
    """Return what the methods of a fitted estimator make of codes."""
    names = ("transform", "predict", "predict_proba", "score_samples")
    found = {name: getattr(model, name)(z) for name in names if hasattr(model, name)}
    return {name: each.toarray() if issparse(each) else each for name, each in found.items()}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_codes_of_every_kind(name):
    """One rule: codes of any kind go in, arrays come out."""
    z, labels = codes(12)
    model = ESTIMATORS[name]().fit(z, labels)
    expected = results(model, z)
    table = pa.table({"a": z[:, 0].numpy(), "b": z[:, 1].numpy()})
    kinds = [z.numpy(), z.float(), z.float().numpy(), z.numpy().tolist(), z.requires_grad_(), table]
    for kind in kinds:
        fitted = ESTIMATORS[name]().fit(kind, labels)
        assert fitted.n_features_in_ == 2
        # a fit with names asks for names
        for each in [fitted] if kind is table else [fitted, model]:
            for method, found in results(each, kind).items():
                assert isinstance(found, np.ndarray), method
                np.testing.assert_allclose(found, expected[method], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_codes_are_brought_to_the_decoder(name):
    """In `fit` and in all other methods alike."""
    z, labels = codes(12)
    decoder = nn.Linear(2, 3)
    with torch.no_grad():
        decoder.weight.copy_(torch.eye(3, 2))
    for other in (z, z.numpy(), z.float(), torch.from_numpy(z.numpy().astype(np.float16))):
        model = ESTIMATORS[name](PullbackMetric(decoder)).fit(other, labels)
        kept = model.graph_.codes if name in WITH_GRAPH else model._codes
        assert kept.dtype == torch.float32
        for found in results(model, z).values():
            assert np.isfinite(found).all()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_integers_become_floats(name):
    z, labels = codes()
    whole = (10 * z).round().long()
    model = ESTIMATORS[name]().fit(whole, labels)
    expected = results(model, whole.double())
    for method, found in results(model, whole.numpy()).items():
        np.testing.assert_allclose(found, expected[method], rtol=1e-6)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_names_of_features(name):
    z, labels = codes()
    table = pa.table({"a": z[:, 0].numpy(), "b": z[:, 1].numpy()})
    model = ESTIMATORS[name]().fit(table, labels)
    assert model.feature_names_in_.tolist() == ["a", "b"]
    with pytest.raises(ValueError, match="feature names"):
        results(model, table.rename_columns(["a", "c"]))
    assert not hasattr(ESTIMATORS[name]().fit(z, labels), "feature_names_in_")


def test_names_of_what_k_means_makes():
    z, _ = codes()
    model = kmeans(n_clusters=3).fit(z)
    names = ["geodesickmeans0", "geodesickmeans1", "geodesickmeans2"]
    assert model.get_feature_names_out().tolist() == names
    assert isinstance(model.set_output(transform="default").transform(z), np.ndarray)


def test_k_means_gives_tables():
    pandas = pytest.importorskip("pandas")
    z, _ = codes()
    table = kmeans().set_output(transform="pandas").fit_transform(z)
    assert isinstance(table, pandas.DataFrame)
    assert table.columns.tolist() == ["geodesickmeans0", "geodesickmeans1"]


def test_distances_have_the_precision_of_the_codes():
    z, _ = codes()
    assert kmeans().fit(z).transform(z).dtype == np.float64
    assert kmeans().fit(z.float()).transform(z).dtype == np.float32


@pytest.mark.parametrize("name", ESTIMATORS)
def test_methods_before_fit(name):
    z, labels = codes()
    model = ESTIMATORS[name]()
    methods = ("transform", "predict", "predict_proba", "score_samples", "kneighbors")
    for method in methods:
        if hasattr(model, method):
            with pytest.raises(NotFittedError):
                getattr(model, method)(z)
    if hasattr(model, "score"):
        with pytest.raises(NotFittedError):
            model.score(z, labels)


@pytest.mark.parametrize("name", WITH_GRAPH)
def test_a_clone_shares_metric_and_graph(name):
    decoder = nn.Linear(2, 3)
    metric = PullbackMetric(decoder)
    graph = LatentGraph.from_codes(metric, codes()[0])
    model = clone(ESTIMATORS[name](metric, graph=graph))
    assert model.metric is metric
    assert model.graph is graph
    # for anything else copies are copies
    assert copy.deepcopy(metric).decoder.function is not decoder


def identity(z):
    return z


def two(z):
    return z, z.exp()


def tensors(z):
    return torch.eye(2).to(z).expand(len(z), 2, 2) * z.square().sum(1)[:, None, None].exp()


def squared(x, y):
    return (x - y).square().sum(1)


def factor(z):
    return z[:, 0].exp()


METRICS = {
    "deterministic": lambda: PullbackMetric(nn.Linear(2, 3).double()),
    "features": lambda: PullbackMetric(nn.Linear(2, 3).double(), torch.exp),
    "Gaussian": lambda: GaussianPullbackMetric(two),
    "Gaussian, features": lambda: GaussianPullbackMetric(two, torch.exp),
    "Fisher-Rao": lambda: GaussianFisherRaoMetric(two),
    "counts": lambda: PoissonPullbackMetric(torch.exp),
    "tensors": lambda: TensorMetric(tensors, dim=2),
    "conformal": lambda: ConformalMetric(PullbackMetric(identity), factor),
    "ensemble": lambda: EnsembleMetric([PullbackMetric(identity), PullbackMetric(torch.exp)]),
    "divergence": lambda: DivergenceMetric(identity, squared),
    "limited": lambda: TensorMetric(tensors, dim=2).limited(8),
}


@pytest.mark.parametrize("name", METRICS)
def test_what_a_metric_learns_is_no_change_of_it(name):
    """scikit-learn compares parameters before and after a fit, by what is pickled."""
    metric = METRICS[name]()
    before = joblib.hash(metric)
    z, _ = codes(6)
    expected = metric.tensor(z)
    assert joblib.hash(metric) == before
    for again in (pickle.loads(pickle.dumps(metric)), copy.deepcopy(metric), metric.limited(3)):
        torch.testing.assert_close(again.tensor(z), expected)


@pytest.mark.parametrize(
    ("name", "metric"),
    [("land", "deterministic"), *itertools.product(["kmeans", "neighbours", "near"], METRICS)],
)
def test_pickled_after_fit(name, metric):
    z, labels = codes()
    model = ESTIMATORS[name](METRICS[metric]()).fit(z, labels)
    file = io.BytesIO()
    pickle.dump(model, file)
    file.seek(0)
    again = pickle.load(file)
    for method, found in results(again, z).items():
        np.testing.assert_allclose(found, results(model, z)[method], rtol=1e-9, atol=1e-9)


def test_scores_are_those_of_scikit_learns_kin():
    z, labels = codes()
    model = kmeans().fit(z)
    assert model.score(z) == pytest.approx(-model.inertia_)
    voters = neighbours().fit(z, labels)
    assert voters.score(z, labels) == np.mean(voters.predict(z) == labels)
    mixture = land().fit(z)
    assert mixture.score(z) == pytest.approx(mixture.score_samples(z).mean())


def test_grid_search():
    z, labels = codes()
    other = PullbackMetric(nn.Identity())
    search = GridSearchCV(neighbours(), {"n_neighbors": [1, 3], "metric": [FLAT, other]}, cv=3)
    assert search.fit(z.numpy(), labels).best_score_ == 1.0
    assert search.best_params_["metric"] in (FLAT, other)
    clusters = GridSearchCV(kmeans(), {"n_clusters": [1, 2]}, cv=2).fit(z.numpy())
    assert clusters.best_params_ == {"n_clusters": 2}
    shapes = GridSearchCV(land(), {"n_components": [1, 2]}, cv=2).fit(z.numpy())
    assert np.isfinite(shapes.cv_results_["mean_test_score"]).all()


def test_pipelines():
    z, labels = codes()
    for model in (make_pipeline(StandardScaler(), neighbours()), make_pipeline(kmeans(), land())):
        assert model.fit(z.numpy(), labels).predict(z.numpy()).shape == labels.shape
    chain = make_pipeline(StandardScaler(), neighbours())
    assert cross_val_score(chain, z.numpy(), labels, cv=3).mean() == 1.0


@pytest.mark.parametrize("name", ESTIMATORS)
def test_order_of_the_codes_changes_no_answer(name):
    z, labels = codes()
    model = ESTIMATORS[name]().fit(z, labels)
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(1))
    for method, found in results(model, z[order]).items():
        expected = results(model, z)[method][order.numpy()]
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_classes_of_every_kind():
    z, labels = codes()
    words = np.array(["left", "right"])[labels]
    expected = neighbours().fit(z, words).predict(z)
    assert expected.tolist() == words.tolist()
    for kind in (torch.from_numpy(labels), labels.tolist(), labels.astype(np.int8)):
        assert (neighbours().fit(z, kind).predict(z) == labels).all()


def test_every_parameter_is_kept_as_it_came():
    for make in ESTIMATORS.values():
        model = make()
        assert set(model.get_params()) == set(inspect.signature(type(model)).parameters)
