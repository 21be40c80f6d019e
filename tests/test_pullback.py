"""The metrics' four formulas against full reverse-mode Jacobians and explicit matrix products."""

import functools
import warnings

import pytest
import torch
from derivatives import LegacySine, UnbatchedSine, check_metric, jacobian
from rounding import assert_same_to_rounding
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as hooked_spectral_norm

from geolatent import GaussianPullbackMetric, PullbackMetric, TensorMetric

pytestmark = pytest.mark.usefixtures("float64")

DIM = 3


class Generator(nn.Module):
    """A small image decoder with what real ones have: (n, 3) -> (n, channels, 6, 6)."""

    def __init__(self, spectral_norm, channels=2, gaussian=False):
        super().__init__()
        self.linear = spectral_norm(nn.Linear(DIM, 12))
        self.body = nn.Sequential(
            nn.BatchNorm1d(12),
            nn.ReLU(inplace=True),
            nn.Unflatten(1, (3, 2, 2)),
            spectral_norm(nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1)),
            nn.BatchNorm2d(4),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.ELU(inplace=True),
        )
        self.mean = nn.ConvTranspose2d(4, channels, 3)
        self.std = nn.ConvTranspose2d(4, channels, 3) if gaussian else None
        # running statistics away from 0 and 1, which would hide a wrong use of them
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
                nn.init.uniform_(module.weight, 0.5, 2.0)
                nn.init.normal_(module.bias)

    def forward(self, z):
        hidden = self.body(self.linear(z))
        mean = self.mean(hidden).tanh_()
        return mean if self.std is None else (mean, nn.functional.softplus(self.std(hidden)))


class TwoHeads(nn.Module):
    """A perceptron with a mean and a standard deviation: (n, 3) -> two times (n, 7)."""

    def __init__(self, n_outputs=7):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(DIM, 8), nn.Tanh())
        self.mean, self.log_std = nn.Linear(8, n_outputs), nn.Linear(8, n_outputs)

    def forward(self, z):
        hidden = self.body(z)
        return self.mean(hidden), self.log_std(hidden).exp()


def perceptron():
    return nn.Sequential(nn.Linear(DIM, 8), nn.Tanh(), nn.Linear(8, 7))


def generator_hooked(gaussian=False):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's older spectral norm
        return Generator(hooked_spectral_norm, gaussian=gaussian).eval()


def generator_parametrized(gaussian=False):
    return Generator(parametrizations.spectral_norm, gaussian=gaussian).eval()


def vector_features(n_inputs=7):
    return nn.Sequential(nn.Linear(n_inputs, 6), nn.Softplus(), nn.Linear(6, 4))


def image_features():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ELU(inplace=True), nn.Flatten(), nn.Linear(48, 5)
    ).eval()


def one_score():
    return nn.Sequential(nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 1), nn.Flatten(0))


DETERMINISTIC = {
    "perceptron": (perceptron, vector_features),
    "score": (perceptron, one_score),
    "generator, hooked spectral norm": (generator_hooked, image_features),
    "generator, parametrized": (generator_parametrized, image_features),
}
GAUSSIAN = {
    "perceptron": (TwoHeads, vector_features),
    "score": (TwoHeads, one_score),
    "generator, hooked spectral norm": (functools.partial(generator_hooked, True), image_features),
    "generator, parametrized": (functools.partial(generator_parametrized, True), image_features),
}


def naive_tensor(z, decoder, features=None, gaussian=False):
    """Evaluate the design's four formulas with full matrices, row by row."""
    tensors = []
    for row in z:
        if not gaussian:
            full = jacobian(decoder, row)
            if features is not None:
                full = jacobian(features, decoder(row[None])[0].detach()) @ full
            tensors.append(full.T @ full)
            continue
        of_mean = jacobian(lambda z: decoder(z)[0], row)
        of_std = jacobian(lambda z: decoder(z)[1], row)
        if features is None:
            tensors.append(of_mean.T @ of_mean + of_std.T @ of_std)
            continue
        of_features = jacobian(features, decoder(row[None])[0][0].detach())
        inner = of_features.T @ of_features
        diagonal = torch.diag(torch.diag(inner))
        tensors.append(of_mean.T @ inner @ of_mean + of_std.T @ diagonal @ of_std)
    return torch.stack(tensors)


@pytest.mark.parametrize("with_features", [False, True])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_pullback_equals_naive_reference(name, with_features):
    make_decoder, make_features = DETERMINISTIC[name]
    decoder, features = make_decoder(), make_features() if with_features else None
    z = torch.randn(4, DIM)
    check_metric(PullbackMetric(decoder, features), naive_tensor(z, decoder, features), z)


@pytest.mark.parametrize("diagonal", ["none", "auto", "exact"])
@pytest.mark.parametrize("name", GAUSSIAN)
def test_gaussian_pullback_equals_naive_reference(name, diagonal):
    make_decoder, make_features = GAUSSIAN[name]
    decoder, features = make_decoder(), None if diagonal == "none" else make_features()
    z = torch.randn(4, DIM)
    kind = "auto" if diagonal == "none" else diagonal
    metric = GaussianPullbackMetric(decoder, features, diagonal=kind)
    check_metric(metric, naive_tensor(z, decoder, features, gaussian=True), z)


@pytest.mark.parametrize("name", GAUSSIAN)
def test_hutchinson_equals_the_explicit_sum_over_its_signs(name):
    make_decoder, make_features = GAUSSIAN[name]
    decoder, features = make_decoder(), make_features()
    metric = GaussianPullbackMetric(decoder, features, diagonal="hutchinson", n_probes=5, seed=3)
    z = torch.randn(3, DIM)
    mean = decoder(z)[0].detach()
    # a mean whose features are the identity's tells the signs
    signs = torch.stack(list(metric._combinations(torch.eye(metric.features(mean).shape[1]))))
    torch.testing.assert_close(signs.abs(), torch.full_like(signs, 5**-0.5), rtol=1e-14, atol=0)
    expected = []
    for row, point in zip(z, mean, strict=True):
        of_mean = jacobian(lambda z: decoder(z)[0], row)
        of_std = jacobian(lambda z: decoder(z)[1], row)
        of_features = jacobian(features, point)
        pushed = of_features @ of_mean
        weights = (signs @ of_features).square().sum(0)
        expected.append(pushed.T @ pushed + of_std.T @ torch.diag(weights) @ of_std)
    check_metric(metric, torch.stack(expected), z)


def test_hutchinson_is_unbiased():
    decoder, features = TwoHeads(), vector_features()
    z = torch.randn(2, DIM)
    exact = naive_tensor(z, decoder, features, gaussian=True)
    draws = torch.stack(
        [
            GaussianPullbackMetric(
                decoder, features, diagonal="hutchinson", n_probes=1, seed=seed
            ).tensor(z)
            for seed in range(300)
        ]
    )
    error = draws.std(0) / len(draws) ** 0.5
    assert (error > 0).all()
    assert ((draws.mean(0) - exact).abs() < 4 * error).all()


def test_hutchinson_is_a_deterministic_function_of_its_seed():
    decoder, features = TwoHeads(), vector_features()
    z, v = torch.randn(4, DIM), torch.randn(4, DIM)

    def metric(seed):
        return GaussianPullbackMetric(decoder, features, diagonal="hutchinson", seed=seed)

    first = metric(1)
    values = first.quadratic(z, v)
    torch.rand(3)
    assert_same_to_rounding(first.quadratic(z, v), values)
    assert_same_to_rounding(metric(1).quadratic(z, v), values)
    assert not torch.allclose(metric(2).quadratic(z, v), values)
    # the same signs for every row, whatever the batch
    torch.testing.assert_close(first.quadratic(z[2:], v[2:]), values[2:], rtol=1e-12, atol=0)


def test_auto_is_exact_for_few_outputs_and_estimates_for_many():
    decoder = TwoHeads()
    z = torch.randn(2, DIM)
    for n_outputs, kind in ((64, "exact"), (65, "hutchinson")):
        features = nn.Linear(7, n_outputs)
        auto = GaussianPullbackMetric(decoder, features).tensor(z)
        chosen = GaussianPullbackMetric(decoder, features, diagonal=kind).tensor(z)
        assert_same_to_rounding(auto, chosen)


def test_tensor_metric():
    root = torch.randn(DIM, DIM)

    def field(z):
        return root.T @ root * (1 + z.square().sum(1))[:, None, None]

    z = torch.randn(5, DIM)
    metric = TensorMetric(field, dim=DIM)
    check_metric(metric, field(z), z)
    v = torch.randn(5, DIM)
    assert torch.autograd.gradcheck(metric.quadratic, (z.requires_grad_(), v.requires_grad_()))


def all_metrics():
    """Return metrics that are smooth everywhere, the fall-backs among them."""

    def legacy(z):
        return LegacySine.apply(z @ torch.arange(12.0).reshape(DIM, 4).sin())

    return {
        "pullback": PullbackMetric(perceptron()),
        "pullback, features": PullbackMetric(perceptron(), vector_features()),
        "pullback, fall-back": PullbackMetric(legacy),
        "features, fall-back": PullbackMetric(perceptron(), LegacySine.apply),
        "gaussian": GaussianPullbackMetric(TwoHeads()),
        "gaussian, exact": GaussianPullbackMetric(TwoHeads(), vector_features()),
        "gaussian, exact, fall-back": GaussianPullbackMetric(TwoHeads(), LegacySine.apply),
        "gaussian, hutchinson": GaussianPullbackMetric(
            TwoHeads(), vector_features(), diagonal="hutchinson", n_probes=3
        ),
    }


@pytest.mark.filterwarnings("ignore:.*double backward")
@pytest.mark.parametrize("name", list(all_metrics()))
def test_quadratic_is_differentiable_in_code_and_tangent(name):
    # with features, the gradient in z has to follow the feature map's Jacobian along the curve
    metric = all_metrics()[name]
    z = torch.randn(2, DIM, requires_grad=True)
    v = torch.randn(2, DIM, requires_grad=True)
    assert torch.autograd.gradcheck(metric.quadratic, (z, v))


@pytest.mark.filterwarnings("ignore:.*double backward")
@pytest.mark.parametrize("name", list(all_metrics()))
def test_metrics_are_positive_and_scale(name):
    metric = all_metrics()[name]
    z, v = torch.randn(6, DIM), torch.randn(6, DIM)
    assert torch.linalg.eigvalsh(metric.tensor(z)).min() > -1e-12
    once, thrice = metric.quadratic(z, v), metric.quadratic(z, -3 * v)
    assert (once >= 0).all()
    torch.testing.assert_close(thrice, 9 * once)


@pytest.mark.parametrize(
    ("sine", "message"),
    [(LegacySine, "has no forward-mode derivative"), (UnbatchedSine, "cannot be batched by vmap")],
)
def test_fallbacks_give_the_same_metric_and_warn_once(sine, message):
    weight = torch.randn(DIM, 5)

    def decoder(z):
        return sine.apply(z @ weight)

    z = torch.randn(4, DIM)
    metric = PullbackMetric(decoder)
    expected = naive_tensor(z, decoder)
    with pytest.warns(UserWarning, match=message):
        check_metric(metric, expected, z)
    check_metric(metric, expected, z)  # a second warning would be an error


@pytest.mark.parametrize("make", [perceptron, generator_parametrized])
def test_rotating_the_output_changes_nothing(make):
    decoder = make()
    n_outputs = decoder(torch.zeros(1, DIM)).numel()
    rotation, _ = torch.linalg.qr(torch.randn(n_outputs, n_outputs))

    def rotated(z):
        return decoder(z).flatten(1) @ rotation + 5.0

    z, v = torch.randn(4, DIM), torch.randn(4, DIM)
    plain, turned = PullbackMetric(decoder), PullbackMetric(rotated)
    torch.testing.assert_close(turned.tensor(z), plain.tensor(z), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(turned.quadratic(z, v), plain.quadratic(z, v), rtol=1e-10, atol=0)


def test_identity_features_change_nothing():
    decoder, gaussian = perceptron(), TwoHeads()
    z = torch.randn(4, DIM)
    for plain, chained in (
        (PullbackMetric(decoder), PullbackMetric(decoder, lambda x: x)),
        (GaussianPullbackMetric(gaussian), GaussianPullbackMetric(gaussian, lambda x: x)),
        # one probe of a diagonal matrix is exact: signs square to one
        (
            GaussianPullbackMetric(gaussian),
            GaussianPullbackMetric(gaussian, lambda x: x, diagonal="hutchinson", n_probes=1),
        ),
    ):
        torch.testing.assert_close(chained.tensor(z), plain.tensor(z), rtol=1e-10, atol=1e-10)


def test_chords_under_features_are_known_once_the_metric_was_checked():
    metric = GaussianPullbackMetric(TwoHeads(), vector_features())
    with pytest.raises(RuntimeError, match="after the first call"):
        _ = metric.chords
    z = torch.randn(2, DIM)
    metric.check("z", z)
    mean = metric.decoder.function(z)[0]
    assert metric.chords.n_weighted == mean[0].numel()


def test_chords_with_estimated_weights_are_those_of_the_metric():
    metric = GaussianPullbackMetric(TwoHeads(), vector_features(), diagonal="hutchinson")
    z, v = torch.randn(2, 5, DIM)
    metric.check("z", z)
    values = [metric.chords.values(z + sign * 5e-4 * v) for sign in (-1, 1)]
    squares = metric.chords.squares(*values) / 1e-6
    torch.testing.assert_close(squares, metric.quadratic(z, v), rtol=1e-5, atol=0)


def test_immersion_gives_the_metric_where_there_is_one():
    assert PullbackMetric(perceptron()).immersion is not None
    assert PullbackMetric(perceptron(), vector_features()).immersion is not None
    assert GaussianPullbackMetric(TwoHeads()).immersion is not None
    # the diagonal term is no pull-back by one map
    assert GaussianPullbackMetric(TwoHeads(), vector_features()).immersion is None
    for metric in (
        PullbackMetric(perceptron(), vector_features()),
        GaussianPullbackMetric(TwoHeads()),
    ):
        z = torch.randn(2, DIM)
        expected = naive_tensor(z, metric.immersion)
        torch.testing.assert_close(metric.tensor(z), expected, rtol=1e-10, atol=1e-10)


def test_functions_methods_and_partials():
    heads = TwoHeads()
    z = torch.randn(3, DIM)
    expected = GaussianPullbackMetric(heads).tensor(z)

    def scaled(scale, z):
        mean, std = heads(z)
        return scale * mean, scale * std

    for decoder in (heads.forward, functools.partial(scaled, 1.0), lambda z: heads(z)):
        assert_same_to_rounding(GaussianPullbackMetric(decoder).tensor(z), expected)


@pytest.mark.filterwarnings("ignore:.*double backward")
@pytest.mark.parametrize("name", list(all_metrics()))
def test_float32_stays_float32(name):
    torch.set_default_dtype(torch.float32)  # the fixture restores it
    metric = all_metrics()[name]
    z, v = torch.randn(3, DIM), torch.randn(3, DIM)
    assert metric.tensor(z).dtype == torch.float32
    quadratic = metric.quadratic(z, v)
    assert quadratic.dtype == torch.float32
    expected = torch.einsum("ni,nij,nj->n", v, metric.tensor(z), v)
    torch.testing.assert_close(quadratic, expected, rtol=1e-4, atol=1e-5)


def test_gradients_are_recorded_only_where_asked():
    metric = GaussianPullbackMetric(TwoHeads(), vector_features())
    z, v = torch.randn(3, DIM), torch.randn(3, DIM, requires_grad=True)
    assert metric.quadratic(z, v).requires_grad
    with torch.no_grad():
        assert not metric.quadratic(z, v).requires_grad
        assert not metric.tensor(z).requires_grad


@pytest.mark.filterwarnings("ignore:.*double backward")
def test_in_inference_mode():
    metrics = [
        PullbackMetric(generator_parametrized()),
        *all_metrics().values(),
    ]
    z, v = torch.randn(3, DIM), torch.randn(3, DIM)
    expected = [(metric.tensor(z), metric.quadratic(z, v)) for metric in metrics]
    with torch.inference_mode():
        for metric, (tensor, quadratic) in zip(metrics, expected, strict=True):
            torch.testing.assert_close(metric.tensor(z), tensor)
            torch.testing.assert_close(metric.quadratic(z, v), quadratic)
            # codes that were made in inference mode
            torch.testing.assert_close(metric.quadratic(1 * z, 1 * v), quadratic)


@pytest.mark.cuda
@pytest.mark.parametrize("name", GAUSSIAN)
def test_metrics_on_cuda(name):
    make_decoder, make_features = GAUSSIAN[name]
    decoder, features = make_decoder().cuda(), make_features().cuda()
    z = torch.randn(4, DIM, device="cuda")
    expected = naive_tensor(z, decoder, features, gaussian=True)
    check_metric(GaussianPullbackMetric(decoder, features), expected, z)
    plain = GaussianPullbackMetric(decoder)
    check_metric(plain, naive_tensor(z, decoder, gaussian=True), z)
    estimate = GaussianPullbackMetric(decoder, features, diagonal="hutchinson")
    assert estimate.tensor(z).is_cuda


def test_log_variances_are_no_standard_deviations():
    """Many decoders return the logarithm of the variance: lengths in it would be silently wrong."""
    head = torch.nn.Linear(2, 3)

    def decoder(z):
        return head(z), 2.0 * torch.log(0.1 + 0.01 * z.square().sum(1, keepdim=True)).expand(-1, 3)

    def mended(z):
        mean, log_variance = decoder(z)
        return mean, torch.exp(log_variance / 2)

    with pytest.raises(ValueError, match=r"standard deviation, nowhere negative .*with -4\.61"):
        GaussianPullbackMetric(decoder).tensor(torch.zeros(1, 2))
    assert GaussianPullbackMetric(mended).tensor(torch.zeros(1, 2)).isfinite().all()
