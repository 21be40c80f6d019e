import json
from urllib.error import URLError

import numpy as np
import pytest
import torch
from derivatives import jacobian
from rounding import assert_same_to_rounding
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from torch import nn

from geolatent.lab.data import digits, torchvision_images
from geolatent.metrics.pullback import GaussianPullbackMetric, PullbackMetric
from geolatent.models import ConvVAE, build_model, load_model, save_model
from geolatent.models.features import LogisticRegression, VGGFeatures, fit_logistic_regression


@pytest.fixture(scope="module")
def train():
    images, labels = digits("train")
    return images.double()[:400], labels[:400]


@pytest.fixture(scope="module")
def held_out():
    images, labels = digits("test")
    return images.double(), labels


# Logistic regression


def test_equals_scikit_learn(train, held_out):
    from sklearn import linear_model

    images, labels = train
    features = fit_logistic_regression(images, labels, inverse_penalty=0.1, tolerance=1e-10)
    found = features(held_out[0])
    assert found.dtype == torch.float64
    pixels, unseen = images.flatten(1).numpy(), held_out[0].flatten(1).numpy()
    reference = linear_model.LogisticRegression(C=0.1, tol=1e-10, max_iter=10000)
    # The same optimisation, copied to rounding error.
    center = pixels.mean(0)
    reference.fit(pixels - center, labels.numpy())
    expected = reference.predict_log_proba(unseen - center)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-10)
    # On the images as they are, without our centring, by Newton's method.
    reference.set_params(solver="newton-cholesky").fit(pixels, labels.numpy())
    expected = reference.predict_log_proba(unseen)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5)
    predicted = torch.from_numpy(reference.predict(unseen))
    assert torch.equal(features.predict(held_out[0]), predicted)


@pytest.mark.parametrize("classes", [(3, 5), (1, 4, 7)])
def test_two_classes_and_labels_that_do_not_count_from_zero(train, classes):
    from sklearn import linear_model

    chosen = torch.isin(train[1], torch.tensor(classes))
    images, labels = train[0][chosen], train[1][chosen]
    features = fit_logistic_regression(images, labels, tolerance=1e-10)
    assert features.classes == classes
    pixels = images.flatten(1).numpy()
    reference = linear_model.LogisticRegression(C=0.01, tol=1e-10, max_iter=10000)
    expected = reference.fit(pixels, labels.numpy()).predict_log_proba(pixels)
    np.testing.assert_allclose(features(images).numpy(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(features(images).exp().sum(1), torch.ones(len(images)).double())
    assert set(features.predict(images).tolist()) == set(classes)


def test_dtype_follows_the_images(train, held_out):
    images, labels = train
    state = torch.random.get_rng_state()
    single = fit_logistic_regression(images.float(), labels)
    assert torch.equal(state, torch.random.get_rng_state())
    assert single.linear.weight.dtype == torch.float32
    assert not single.training
    assert not any(parameter.requires_grad for parameter in single.parameters())
    double = fit_logistic_regression(images, labels)
    torch.testing.assert_close(
        single(held_out[0].float()).double(), double(held_out[0]), rtol=1e-4, atol=1e-4
    )


def test_files_that_name_the_class_by_where_it_was(tmp_path, train):
    features = fit_logistic_regression(*train)
    weights = save_model(features, tmp_path / "classes")
    with safe_open(weights, framework="pt") as file:
        description = json.loads(file.metadata()["geolatent_model"])
    assert description["class_path"] == "geolatent.models.features.LogisticRegression"
    description["class_path"] = "geolatent.features.LogisticRegression"
    weights.write_bytes(save(load_file(weights), {"geolatent_model": json.dumps(description)}))
    assert isinstance(load_model(weights), LogisticRegression)
    built = build_model(description["class_path"], description["init_args"], weights)
    assert isinstance(built, LogisticRegression)


def test_saved_and_loaded(tmp_path, train):
    features = fit_logistic_regression(*train)
    loaded = load_model(save_model(features, tmp_path / "classes"))
    assert isinstance(loaded, LogisticRegression)
    assert loaded.classes == features.classes
    for name, value in features.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert_same_to_rounding(loaded(train[0]), features(train[0]))


def test_held_out_digits_of_mnist(mnist_root):
    images, labels = torchvision_images("MNIST", mnist_root, "test")
    features = fit_logistic_regression(images[:8000], labels[:8000])
    assert features.accuracy(images[8000:], labels[8000:]) >= 0.90


def test_metric_of_class_probabilities(train):
    # J_h of log softmax(W x + b) by hand: (I - 1 p^T) W.
    features = fit_logistic_regression(*train)
    decoder = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8))).double()
    z = torch.randn(3, 2, dtype=torch.float64)
    found = PullbackMetric(decoder, features=features).tensor(z)
    for code, tensor in zip(z, found, strict=True):
        p = features(decoder(code[None])).exp()[0]
        by_pixel = (torch.eye(10).double() - p.expand(10, 10)) @ features.linear.weight
        rows = by_pixel @ jacobian(decoder, code)
        torch.testing.assert_close(tensor, rows.mT @ rows)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"images": torch.zeros(4, 64)}, ValueError, "`images` should be a tensor of shape"),
        ({"labels": torch.zeros(4)}, TypeError, "`labels` should be a tensor of integers"),
        ({"labels": torch.zeros(3).long()}, ValueError, r"`labels` should be a tensor of shape"),
        ({"labels": torch.ones(4).long()}, ValueError, "`labels` should be labels of two classes"),
        ({"inverse_penalty": 0.0}, ValueError, "`inverse_penalty` should be"),
        ({"tolerance": -1.0}, ValueError, "`tolerance` should be"),
        ({"max_iterations": 0}, ValueError, "`max_iterations` should be"),
    ],
)
def test_fitting_refuses_bad_values(changes, error, message):
    arguments = {"images": torch.rand(4, 1, 8, 8), "labels": torch.tensor([0, 1, 0, 1])}
    with pytest.raises(error, match=message):
        fit_logistic_regression(**{**arguments, **changes})


def test_logistic_regression_refuses_bad_values():
    for classes in ((1,), (2, 2)):
        with pytest.raises(ValueError, match="`classes` should be two or more different labels"):
            LogisticRegression(classes, (1, 8, 8))
    with pytest.raises(ValueError, match=r"`images` should be a tensor of shape \(n, 1, 8, 8\)"):
        LogisticRegression((0, 1), (1, 8, 8))(torch.zeros(2, 64))


# VGG-19


@pytest.fixture(scope="module")
def first_layers():
    return VGGFeatures("features.2", weights=None).double()


class Pooled(nn.Module):
    """Averages of patches of some channels, so that an exact diagonal is affordable."""

    def __init__(self, features, n_channels):
        super().__init__()
        self.features = features
        self.n_channels = n_channels

    def forward(self, images):
        activations = self.features(images)[:, : self.n_channels]
        return nn.functional.avg_pool2d(activations, images.shape[-1] // 2).flatten(1)


def test_vgg_equals_its_layers_one_by_one(first_layers):
    images = 2 * torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0)).double() - 1
    mean = torch.tensor([0.485, 0.456, 0.406]).double().reshape(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).double().reshape(3, 1, 1)
    state = first_layers.network.state_dict()

    def convolution(x, name):
        weight, bias = state[f"features.{name}.weight"], state[f"features.{name}.bias"]
        return nn.functional.conv2d(x, weight, bias, padding=1)

    hidden = convolution((0.5 * images + 0.5 - mean) / std, 0).relu()
    # Atol for the constants' rounding: the buffers were float32 before they were converted.
    torch.testing.assert_close(first_layers(images), convolution(hidden, 2), rtol=1e-5, atol=1e-5)


def test_grey_images_are_three_equal_channels(first_layers):
    images = torch.rand(2, 1, 28, 28, dtype=torch.float64)
    torch.testing.assert_close(first_layers(images), first_layers(images.repeat(1, 3, 1, 1)))


def test_a_relu_does_not_overwrite_the_layer_before_it():
    images = torch.rand(2, 1, 16, 16)
    before, after = (VGGFeatures(f"features.{i}", weights=None)(images) for i in (0, 1))
    assert (before < 0).any()
    torch.testing.assert_close(after, before.relu())


def test_vgg_is_frozen_and_seeded():
    features = VGGFeatures("features.0", weights=None, seed=3)
    assert not features.training
    assert not any(parameter.requires_grad for parameter in features.parameters())
    images = torch.rand(1, 1, 8, 8)
    same, other = (VGGFeatures("features.0", None, seed=seed) for seed in (3, 4))
    for name, value in features.state_dict().items():
        assert torch.equal(same.state_dict()[name], value)
    assert_same_to_rounding(same(images), features(images))
    assert not torch.allclose(other(images), features(images))


def test_vgg_holds_only_what_its_layer_needs():
    # 64 x 3 x 3 x 3 + 64 weights of the first convolution, of 144 million.
    features = VGGFeatures("features.1", weights=None)
    assert sum(parameter.numel() for parameter in features.parameters()) == 1792


@pytest.mark.parametrize("ending", ["pt", "pth", "safetensors"])
def test_vgg_weights_from_a_file(tmp_path, ending):
    features = VGGFeatures("features.2", weights=None, seed=5)
    # Of a deeper network, as the published file is.
    state = VGGFeatures("features.5", weights=None, seed=1).network.state_dict()
    state.update(features.network.state_dict())
    path = tmp_path / f"vgg.{ending}"
    if ending == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    images = torch.rand(1, 1, 8, 8)
    assert_same_to_rounding(VGGFeatures("features.2", weights=path)(images), features(images))
    with pytest.raises(
        ValueError, match=r"`weights` should be a state dict of .*features\.7\.bias"
    ):
        VGGFeatures("features.8", weights=path)


def test_vgg_weights_that_are_not_there(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="`path` should be an existing file"):
        VGGFeatures("features.0", weights=tmp_path / "none.pt")

    def fail(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ConnectionError) as caught:
        VGGFeatures("features.0", weights="published")
    for part in ("no route to host", str(tmp_path), "https://", "`weights`"):
        assert part in str(caught.value)


@pytest.mark.parametrize(("size", "deepest"), [(28, "features.27"), (32, "features.36")])
def test_vgg_needs_large_enough_images(size, deepest):
    images = torch.rand(1, 1, size, size)
    assert VGGFeatures(deepest, weights=None)(images).shape == (1, 512, 1, 1)
    if size < 32:
        with pytest.raises(ValueError, match=r"at least 32 pixels high and wide .* see `resize`"):
            VGGFeatures("features.36", weights=None)(images)
        resized = VGGFeatures("features.36", weights=None, resize=32)(images)
        assert resized.shape == (1, 512, 1, 1)


@pytest.mark.parametrize("layer", ["features.37", "relu3_1", "", None])
def test_vgg_refuses_unknown_layers(layer):
    with pytest.raises(ValueError, match=r"`layer` should be one of features\.0, features\.1"):
        VGGFeatures(layer, weights=None)


def test_vgg_refuses_other_channels(first_layers):
    for shape in ((1, 2, 8, 8), (1, 8, 8)):
        with pytest.raises(ValueError, match=r"`images` should be a tensor of shape \(n, 1, h"):
            first_layers(torch.zeros(shape).double())


def test_exact_diagonal_and_hutchinson_agree():
    size = 28
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ConvVAE(latent_dim=2, channels=(4, 4), hidden=8, image_shape=(1, size, size))
        model = model.double()
        with torch.no_grad():
            model.encoder[-1].weight.mul_(30)
        model.fit_precision(torch.randn(30, 1, size, size).double(), n_centers=4)
        model.requires_grad_(False).eval()
        features = Pooled(VGGFeatures("features.1", weights=None).double(), 4)
        z = torch.randn(2, 2, dtype=torch.float64)
    exact = GaussianPullbackMetric(model.decode, features, diagonal="exact").tensor(z)
    assert features(model.decode(z)[0]).shape == (2, 16)
    samples = torch.stack(
        [
            GaussianPullbackMetric(
                model.decode, features, diagonal="hutchinson", n_probes=1, seed=seed
            ).tensor(z)
            for seed in range(50)
        ]
    )
    error = samples.std(0) / len(samples) ** 0.5
    mean = samples.mean(0)
    # The uncertainty's part is there to be estimated, and the estimates scatter.
    without = GaussianPullbackMetric(
        lambda codes: (model.decode(codes)[0], torch.ones_like(model.decode(codes)[1])),
        features,
        diagonal="exact",
    ).tensor(z)
    assert ((exact - without).diagonal(dim1=1, dim2=2) > 10 * error.diagonal(dim1=1, dim2=2)).all()
    assert (error > 0).all()
    assert ((mean - exact).abs() < 4 * error).all()
