"""Fisher-Rao metrics of families of distributions, against the definition of the information.

I = E[grad log p grad log p^T], by autograd over all outcomes that count, by quadrature or by
samples; and twice the second derivative of torch's own Kullback-Leibler divergences.
"""

import math

import pytest
import torch
from derivatives import check_metric, jacobian
from torch import distributions as td
from torch import nn

import geolatent as gl
from geolatent import adapters
from geolatent.metrics.counts import dispersion_information

pytestmark = pytest.mark.usefixtures("float64")


def parameters(n):
    """Return a function z -> n tensors of shape (m, 4), between 1 / e and e."""
    generator = torch.Generator().manual_seed(5)
    weights = torch.randn(n, 4, 3, generator=generator, dtype=torch.float64)

    def positive(z):
        return tuple(torch.exp(torch.tanh(z @ weight.T)) for weight in weights)

    return positive


TWO, ONE = parameters(2), parameters(1)


def shares(z):
    """Return probabilities of three classes for each of four variables."""
    first, second = TWO(z)
    return torch.stack([first, second, torch.ones_like(first)], dim=-1)


# by name: decoders of distributions, and all outcomes that count where they can be counted
COUNTS = torch.arange(400.0, dtype=torch.float64)
FAMILIES = {
    "Bernoulli": (lambda z: td.Bernoulli(logits=ONE(z)[0]), torch.arange(2.0)),
    "Binomial": (lambda z: td.Binomial(5, logits=ONE(z)[0]), torch.arange(6.0)),
    "Poisson": (lambda z: td.Poisson(ONE(z)[0]), COUNTS[:100]),
    "NegativeBinomial": (
        lambda z: td.NegativeBinomial(torch.tensor([0.5, 1.0, 3.0, 9.0]), logits=-ONE(z)[0]),
        COUNTS,
    ),
    "NegativeBinomial, dispersion varies": (
        lambda z: td.NegativeBinomial(TWO(z)[0], logits=-TWO(z)[1]),
        COUNTS,
    ),
    "Exponential": (lambda z: td.Exponential(ONE(z)[0]), None),
    "Gamma": (lambda z: td.Gamma(*TWO(z)), None),
    "Beta": (lambda z: td.Beta(*TWO(z)), None),
    "LogNormal": (lambda z: td.LogNormal(*TWO(z)), None),
    "Categorical": (lambda z: td.Categorical(shares(z)), torch.arange(3)),
    "OneHotCategorical": (
        lambda z: td.OneHotCategorical(shares(z)),
        torch.eye(3, dtype=torch.float64),
    ),
    "Multinomial": (
        lambda z: td.Multinomial(2, shares(z)),
        torch.tensor([[2, 0, 0], [0, 2, 0], [0, 0, 2], [1, 1, 0], [1, 0, 1], [0, 1, 1]]).double(),
    ),
}
METRICS = {
    "Bernoulli": gl.BernoulliPullbackMetric,
    "Poisson": gl.PoissonPullbackMetric,
    "NegativeBinomial": gl.NegativeBinomialPullbackMetric,
    "NegativeBinomial, dispersion varies": gl.NegativeBinomialFisherRaoMetric,
    "Gamma": gl.GammaFisherRaoMetric,
    "Beta": gl.BetaFisherRaoMetric,
    "LogNormal": gl.GaussianFisherRaoMetric,
    "Categorical": gl.CategoricalPullbackMetric,
}
WITHOUT_EMBEDDING = [
    gl.GaussianFisherRaoMetric(TWO),
    gl.GammaFisherRaoMetric(TWO),
    gl.BetaFisherRaoMetric(TWO),
    gl.NegativeBinomialFisherRaoMetric(TWO),
    gl.ZeroInflatedNegativeBinomialMetric(TWO, torch.tensor([0.5, 1.0, 3.0, 9.0])),
]
WITHOUT_DIVERGENCE = {"NegativeBinomial", "NegativeBinomial, dispersion varies", "Multinomial"}


def scores(decoder, row, outcomes):
    """Return log p of outcomes x for each output, (X, D), and its gradients by z, (X, D, d)."""

    def log_prob(row):
        found = decoder(row[None])
        values = outcomes.reshape(-1, 1, *[1] * len(found.batch_shape[1:]), *found.event_shape)
        return found.log_prob(values).reshape(len(outcomes), -1)

    return log_prob(row).detach(), torch.autograd.functional.jacobian(log_prob, row)


@pytest.mark.parametrize(
    "name", [name for name, (_, outcomes) in FAMILIES.items() if outcomes is not None]
)
def test_information_is_the_expected_square_of_the_score(name):
    decoder, outcomes = FAMILIES[name]
    z = torch.randn(3, 3)
    expected = []
    for row in z:
        log_prob, score = scores(decoder, row, outcomes.double())
        chances = log_prob.exp()
        torch.testing.assert_close(chances.sum(0), torch.ones(4), rtol=0, atol=1e-12)
        expected.append(torch.einsum("xj,xjk,xjl->kl", chances, score, score))
    metric = adapters.metric(decoder, z)
    assert type(metric) is METRICS.get(name, type(metric))
    check_metric(metric, torch.stack(expected), z)


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - WITHOUT_DIVERGENCE))
def test_metric_is_twice_the_second_derivative_of_the_divergence(name):
    decoder, _ = FAMILIES[name]
    z, v = torch.randn(2, 3, 3)

    def divergence(end):
        return td.kl_divergence(decoder(z), decoder(end)).flatten(1).sum(1)

    # d^2/de^2 KL(p(z), p(z + e v)) = v^T G v, by the slope of the gradient
    def slope(end):
        return torch.func.jvp(divergence, (end,), (v,))[1]

    expected = torch.func.jvp(slope, (z,), (v,))[1]
    found = adapters.metric(decoder, z).quadratic(z, v)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["Exponential", "Gamma", "Beta", "LogNormal"])
def test_information_of_densities_by_samples(name):
    decoder, _ = FAMILIES[name]
    row = torch.randn(3)
    samples = decoder(row[None]).sample((40_000,))
    point = row.clone().requires_grad_()
    total = torch.zeros(3, 3)
    for j in range(4):  # the outputs are independent
        codes = point.expand(len(samples), 3)
        codes.retain_grad()
        decoder(codes).log_prob(samples[:, 0])[:, j].sum().backward()
        total += codes.grad.T @ codes.grad / len(samples)
    found = adapters.metric(decoder, row[None]).tensor(row[None])[0]
    # standard error of a mean of 40,000 squares: below one per cent of the largest entry
    torch.testing.assert_close(found.detach(), total, rtol=0, atol=0.05 * float(total.diag().max()))


def test_metric_of_zero_inflated_counts():
    dispersion = torch.tensor([0.5, 1.0, 3.0, 9.0])

    def decoder(z):
        mean, odds = TWO(z)
        return 2.0 * mean, odds - 1.5

    def log_prob(row):
        mean, logit = decoder(row[None])
        counts = COUNTS[:, None]
        plain = td.NegativeBinomial(dispersion, logits=(mean / dispersion).log()).log_prob(counts)
        pi = torch.sigmoid(logit)
        at_zero = torch.log(pi + (1 - pi) * plain[:1].exp())
        return torch.cat([at_zero, (1 - pi).log() + plain[1:]])

    z = torch.randn(3, 3)
    expected = []
    for row in z:
        score = torch.autograd.functional.jacobian(log_prob, row)
        expected.append(torch.einsum("xj,xjk,xjl->kl", log_prob(row).exp(), score, score))
    metric = gl.ZeroInflatedNegativeBinomialMetric(decoder, dispersion)
    check_metric(metric, torch.stack(expected), z)


def test_dispersion_information_by_its_series():
    """E[psi'(r) - psi'(r + X)] = sum_k P(X > k) / (r + k)^2, of terms that are all positive."""
    mean = torch.tensor([0.01, 0.1, 1.0, 5.0, 20.0])[:, None].expand(5, 3)
    r = torch.tensor([0.2, 2.0, 20.0]).expand(5, 3)
    k = torch.arange(6000.0)[:, None, None]
    chances = td.NegativeBinomial(r, logits=(mean / r).log()).log_prob(k).exp()
    beyond = chances.flip(0).cumsum(0).flip(0) - chances
    expected = (beyond / (r + k) ** 2).sum(0) - mean / (r * (mean + r))
    # the difference loses what the information lacks of its two terms
    rounding = 1e-13 * mean / (r * (mean + r)) / expected
    assert ((dispersion_information(mean, r) / expected - 1).abs() < 1e-9 + rounding).all()


def test_normal_outputs_have_the_expected_metric_of_mean_and_deviation():
    z = torch.randn(3, 3)
    plain = gl.GaussianPullbackMetric(lambda z: TWO(z)).tensor(z).detach()
    check_metric(adapters.metric(lambda z: td.Normal(*TWO(z)), z), plain, z)
    event = adapters.metric(lambda z: td.Independent(td.Normal(*TWO(z)), 1), z)
    assert isinstance(event, gl.GaussianPullbackMetric)
    check_metric(event, plain, z)
    # a deviation of one number for all: the pull-back of the mean
    mean = gl.PullbackMetric(lambda z: TWO(z)[0]).tensor(z).detach()
    check_metric(adapters.metric(lambda z: td.Normal(TWO(z)[0], 0.3), z), mean, z)


@pytest.mark.parametrize("metric", WITHOUT_EMBEDDING)
def test_chords_are_right_to_fourth_order(metric):
    """Between two codes near each other, beside v^T G v in the middle."""
    z, v = torch.randn(2, 5, 3)
    metric.check("z", z[:1])
    errors = []
    for step in (0.1, 0.05):
        ends = (metric.chords.values(z + sign * 0.5 * step * v) for sign in (-1, 1))
        errors.append(metric.chords.squares(*ends) - step**2 * metric.quadratic(z, v))
    assert metric.immersion is None
    ratio = errors[0].abs().sum() / errors[1].abs().sum()
    assert float(ratio) == pytest.approx(16.0, rel=0.05)


@pytest.mark.parametrize("name", FAMILIES)
def test_geodesics_are_no_longer_than_straight_lines_and_of_their_length(name):
    """The solver's length is the integral of the speed, whichever way it was had."""
    decoder, _ = FAMILIES[name]
    start, end = torch.randn(2, 2, 3)
    metric = adapters.metric(decoder, start)
    solution = gl.solve_geodesic(metric, start, end)
    assert (solution.length <= solution.straight_length).all()
    t = torch.linspace(0, 1, 401)
    points, velocity = solution.curve(t), solution.curve.derivative(t)
    speed = metric.quadratic(points.flatten(0, 1), velocity.flatten(0, 1)).sqrt().reshape(2, -1)
    torch.testing.assert_close(
        torch.trapezoid(speed, t).detach(), solution.length, rtol=2e-3, atol=0
    )


def test_distances_in_closed_form():
    """Of negative binomials with one dispersion, and of gamma variables with one shape."""
    r = torch.tensor([3.0])
    metric = gl.NegativeBinomialPullbackMetric(torch.exp, r)
    a, b = torch.tensor([[0.0]]), torch.tensor([[2.0]])
    expected = 2 * math.sqrt(3) * (math.asinh(math.exp(1) / 3**0.5) - math.asinh(1 / 3**0.5))
    assert gl.distance(metric, a, b).item() == pytest.approx(expected, rel=1e-6)
    shape = gl.GammaFisherRaoMetric(lambda z: (torch.full_like(z, 4.0), z.exp()))
    assert gl.distance(shape, a, b).item() == pytest.approx(4.0, rel=1e-6)


def test_small_means_and_large_dispersions_stay_finite_in_float32():
    mean = torch.tensor([[1e-30, 1e-8, 1e-3, 1.0, 1e5]])
    z = torch.zeros(1, 1, dtype=torch.float32)
    for r in (1e-2, 1.0, 1e5):
        dispersion = torch.full((5,), r, dtype=torch.float32)

        def means(z):
            return (mean.to(z).log() + z).exp()

        for metric in (
            gl.NegativeBinomialPullbackMetric(means, dispersion),
            gl.NegativeBinomialFisherRaoMetric(
                lambda z, r=r: (means(z), r * (z + means(z)).cos().exp())
            ),
            gl.ZeroInflatedNegativeBinomialMetric(
                lambda z: (means(z), z - 2 * means(z).tanh()), dispersion
            ),
        ):
            point = z.clone().requires_grad_()
            value = metric.quadratic(point, torch.ones_like(z))
            (slope,) = torch.autograd.grad(value.sum(), point)
            assert value.isfinite().all(), (type(metric), r)
            assert slope.isfinite().all(), (type(metric), r)
            assert (value >= 0).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda z: gl.PoissonPullbackMetric(nn.Identity()).tensor(-z),
            ValueError,
            "positive rates",
        ),
        (
            lambda z: gl.NegativeBinomialPullbackMetric(nn.Identity(), torch.ones(2)).tensor(-z),
            ValueError,
            "positive means",
        ),
        (
            lambda _: gl.NegativeBinomialPullbackMetric(torch.exp, torch.tensor([1.0, 0.0])),
            ValueError,
            "`dispersion` should be positive",
        ),
        (
            lambda z: gl.GammaFisherRaoMetric(lambda z: (z.exp(), -z.exp())).tensor(z),
            ValueError,
            "positive rate",
        ),
        (
            lambda z: gl.BetaFisherRaoMetric(lambda z: (-z.exp(), z.exp())).tensor(z),
            ValueError,
            "positive concentration1",
        ),
        (lambda z: adapters.metric(lambda z: td.Laplace(z, 1.0), z), TypeError, "a Laplace"),
        (lambda z: adapters.metric(lambda z: (z, z), z), TypeError, "`decoder`"),
        (
            lambda z: adapters.metric(
                lambda z: td.TransformedDistribution(td.Normal(z, 1.0), td.ExpTransform()), z
            ),
            TypeError,
            "a TransformedDistribution",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.tensor([[0.5, 1.5], [-0.5, math.pi]]))


def test_jacobians_agree_with_those_of_the_slow_way():
    """What the metrics of two parameters are made of."""
    z = torch.randn(3, 3)
    expected = []
    for row in z:
        of_a, of_b = (jacobian(lambda z, k=k: TWO(z)[k], row) for k in (0, 1))
        a, b = (value[0] for value in TWO(row[None]))
        parts = [[torch.polygamma(1, a), -1 / b], [-1 / b, a / b**2]]
        columns = (of_a, of_b)
        expected.append(
            sum(columns[i].T @ torch.diag(parts[i][j]) @ columns[j] for i in (0, 1) for j in (0, 1))
        )
    check_metric(gl.GammaFisherRaoMetric(lambda z: TWO(z)), torch.stack(expected), z)


@pytest.mark.parametrize(
    "metric",
    [
        lambda decoder, r: gl.NegativeBinomialPullbackMetric(decoder, r),
        lambda decoder, r: gl.ZeroInflatedNegativeBinomialMetric(
            lambda z: (decoder(z), z.sum(1, keepdim=True).expand(-1, 4)), r
        ),
    ],
)
def test_dispersions_are_brought_to_the_dtype_of_the_codes(metric):
    """As arrays and files have them, in double precision."""
    decoder = nn.Sequential(nn.Linear(3, 4), nn.Softplus()).float()
    r = torch.tensor([0.5, 1.0, 3.0, 9.0])
    z = torch.randn(3, 3)
    found = metric(decoder, r.numpy()).tensor(z.numpy())
    assert found.dtype == torch.float32
    expected = metric(decoder.double(), r).tensor(z)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "metric",
    [
        gl.PoissonPullbackMetric,
        lambda decoder: gl.NegativeBinomialPullbackMetric(decoder, torch.ones(4)),
        lambda decoder: gl.GammaFisherRaoMetric(lambda z: (decoder(z), decoder(z))),
    ],
)
def test_codes_that_a_decoder_does_not_take_are_named(metric):
    decoder = nn.Sequential(nn.Linear(3, 4), nn.Softplus())
    with pytest.raises(ValueError, match="Parameter `z` should be what `decoder` takes"):
        metric(decoder).tensor(torch.zeros(1, 2))
