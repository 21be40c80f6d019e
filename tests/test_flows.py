"""Normalising flows: inverses, determinants, densities, starts from data, straight geodesics."""

import math
import sys

import pytest
import torch
from torch import nn

pytest.importorskip("zuko", reason="needs the extra `flows`")

import geolatent as gl
from geolatent.lab.data import digits
from geolatent.models import IAFVAE, NICE, ConvVAE, Glow, load_model, save_model
from geolatent.models.vae import log_normal

SHAPE = (1, 4, 8)
BUILD = {
    "nice": lambda: NICE(SHAPE, couplings=3, hidden=(12,), levels=17),
    "nice, logistic": lambda: NICE(SHAPE, hidden=(12,), levels=17, prior="logistic"),
    "glow": lambda: Glow(SHAPE, depth=2, steps=2, hidden=6, levels=17),
    "glow, one level": lambda: Glow((3, 2, 4), depth=1, steps=3, hidden=6, levels=17),
}
KINDS = sorted(BUILD)


def images_of(flow, n=6, dtype=torch.float64, seed=1):
    """Return grey images whose pixels are spread differently."""
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 17, (n, *flow.image_shape), generator=generator)
    tops = torch.rand(flow.image_shape, generator=generator)
    return ((levels * tops).round() / 8.0 - 1.0).to(dtype)


def build(kind, dtype=torch.float64, state="trained"):
    """Return a flow as it is built, or after a start from data and a few steps of Adam."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = BUILD[kind]()
    if state == "trained":
        generator = torch.Generator().manual_seed(2)
        images = images_of(flow, 64, torch.float32)
        flow.initialise(images, generator)
        adam = torch.optim.Adam(flow.parameters(), lr=1e-2)
        for _ in range(15):
            adam.zero_grad()
            flow.bits_per_dimension(images, generator).mean().backward()
            adam.step()
    return flow.to(dtype).eval().requires_grad_(False)


@pytest.mark.parametrize("state", ["untrained", "trained"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("kind", KINDS)
def test_flows_are_inverted(kind, dtype, tolerance, state):
    flow = build(kind, dtype, state)
    images = images_of(flow, dtype=dtype)
    codes = flow.encode(images)
    assert codes.shape == (6, flow.latent_dim)
    assert codes.dtype == dtype
    found = flow.decode(codes)
    assert found.shape == images.shape
    torch.testing.assert_close(found, images, rtol=0, atol=tolerance)
    codes = torch.randn(6, flow.latent_dim, generator=torch.Generator().manual_seed(3)).to(dtype)
    again = flow.encode(flow.decode(codes))
    # a grey level is stretched on the way back, and its rounding with it
    stretch = 1.0 if dtype == torch.float64 else 10.0
    torch.testing.assert_close(again, codes, rtol=0, atol=stretch * tolerance)


@pytest.mark.parametrize("state", ["untrained", "trained"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-8)])
@pytest.mark.parametrize("kind", KINDS)
def test_log_determinants_are_those_of_the_whole_jacobian(kind, dtype, tolerance, state):
    flow = build(kind, dtype, state)
    images = images_of(flow, 3, dtype)
    _, found = flow.encode_with_log_det(images)
    jacobian = torch.stack(
        [torch.func.jacrev(lambda x: flow.encode(x[None])[0])(each) for each in images]
    )
    expected = torch.linalg.slogdet(jacobian.reshape(3, flow.latent_dim, flow.latent_dim))
    torch.testing.assert_close(found, expected.logabsdet, rtol=tolerance, atol=tolerance)
    if state == "trained":
        assert (expected.logabsdet.abs() > 1.0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_glow_and_nice_differ_from_linear_maps(kind):
    """The other tests would pass for couplings that are the identity."""
    flow = build(kind)
    one, two = images_of(flow, seed=4), images_of(flow, seed=5)
    middle = flow.encode(0.5 * (one + two))
    assert (middle - 0.5 * (flow.encode(one) + flow.encode(two))).abs().max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_one_image_is_encoded_as_within_a_batch(kind):
    flow = build(kind)
    images = images_of(flow)
    codes, log_det = flow.encode_with_log_det(images)
    for row in range(len(images)):
        one, change = flow.encode_with_log_det(images[row : row + 1])
        torch.testing.assert_close(one, codes[row : row + 1], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(change, log_det[row : row + 1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(flow.decode(codes[2:3]), images[2:3], rtol=0, atol=1e-10)


@pytest.mark.parametrize("state", ["untrained", "trained"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_and_reach_every_parameter(kind, state):
    flow = build(kind, state=state).requires_grad_(True)
    images = images_of(flow, 8).requires_grad_(True)
    flow.bits_per_dimension(images, torch.Generator().manual_seed(0)).sum().backward()
    assert torch.isfinite(images.grad).all()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        # before training couplings end in zeros, which hide what lies behind them
        if state == "trained":
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_saved_flows_are_loaded(kind, tmp_path):
    flow = build(kind)
    loaded = load_model(save_model(flow, tmp_path / "flow"))
    assert type(loaded) is type(flow)
    assert loaded.arguments == flow.arguments
    assert bool(loaded.initialised)
    for name, value in flow.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    images = images_of(flow)
    torch.testing.assert_close(loaded.log_prob(images), flow.log_prob(images))


@pytest.mark.parametrize("kind", KINDS)
def test_a_flow_starts_from_data_once(kind, tmp_path):
    flow = build(kind, state="untrained")
    images = images_of(flow, 200)
    before = flow.bits_per_dimension(images, torch.Generator().manual_seed(0)).mean()
    assert not bool(flow.initialised)
    flow.initialise(images, torch.Generator().manual_seed(0))
    assert bool(flow.initialised)
    after = flow.bits_per_dimension(images, torch.Generator().manual_seed(0)).mean()
    assert after < before - 0.3
    # what starts is of variance 1 in each channel, or of NICE for each pixel
    noisy = flow.dequantise(images, torch.Generator().manual_seed(0))
    if isinstance(flow, NICE):
        codes = flow.encode(noisy)
        assert codes.mean(0).abs().max() < 1e-10
        spread = codes.std(0)
    else:
        step = flow.steps[0][0]
        outputs = nn.functional.pixel_unshuffle(noisy, 2) + step.shift
        outputs = outputs * step.log_scale.exp()
        spread = outputs.std((0, 2, 3))
        assert outputs.mean((0, 2, 3)).abs().max() < 1e-10
    torch.testing.assert_close(spread, torch.ones_like(spread), rtol=0, atol=1e-4)
    state = {name: value.clone() for name, value in flow.state_dict().items()}
    other = images_of(flow, 50, seed=9)
    flow.initialise(other)
    loaded = load_model(save_model(flow, tmp_path / "flow"))
    loaded.initialise(other)
    for name, value in state.items():
        assert torch.equal(flow.state_dict()[name], value), name
        assert torch.equal(loaded.state_dict()[name], value), name


def test_evaluation_and_training_mode_do_not_start_a_flow():
    flow = build("glow", state="untrained").train()
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    flow.encode(images_of(flow))
    for name, value in flow.state_dict().items():
        assert torch.equal(value, before[name]), name


# Densities


def grid(flow, half=6.0, n=300):
    """Return the points of a grid in the plane, and the area of each."""
    side = torch.linspace(-half, half, n, dtype=torch.float64)
    points = torch.cartesian_prod(side, side)
    return points.reshape(-1, *flow.image_shape), float(side[1] - side[0]) ** 2


def plane_flow(steps=100):
    """Return a NICE of two moons, and the points."""
    from sklearn.datasets import make_moons

    points, _ = make_moons(500, noise=0.1, random_state=0)
    images = torch.from_numpy(points).float().reshape(-1, 1, 1, 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = NICE((1, 1, 2), couplings=6, hidden=(32, 32), levels=None)
    flow.initialise(images)
    adam = torch.optim.Adam(flow.parameters(), lr=5e-3)
    for _ in range(steps):
        adam.zero_grad()
        flow.bits_per_dimension(images).mean().backward()
        adam.step()
    return flow.double().eval().requires_grad_(False), images.double()


@pytest.fixture(scope="module")
def moons():
    return plane_flow()


@pytest.mark.parametrize("kind", ["normal", "logistic", "trained"])
def test_the_density_of_nice_integrates_to_one(kind, moons):
    if kind == "trained":
        flow, _ = moons
    else:
        flow = NICE((1, 1, 2), hidden=(8,), levels=None, prior=kind).double().requires_grad_(False)
    points, area = grid(flow, half=9.0)
    total = flow.log_prob(points).exp().sum() * area
    assert total.item() == pytest.approx(1.0, abs=5e-4)


def test_the_density_of_glow_integrates_to_one():
    """In four dimensions: by importance sampling from a wider normal distribution."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = Glow((1, 2, 2), depth=1, steps=3, hidden=8, levels=None)
        for layer in flow.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.2)
    flow = flow.double().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(100_000, 4, generator=generator, dtype=torch.float64)
    scale = 2.0
    proposal = log_normal(noise) - 4 * math.log(scale)
    ratio = torch.exp(flow.log_prob((scale * noise).reshape(-1, 1, 2, 2)) - proposal)
    error = float(ratio.std()) / len(ratio) ** 0.5
    assert error < 0.02
    assert abs(float(ratio.mean()) - 1.0) < 5 * error


def test_the_density_of_nice_falls_with_the_norm_of_the_code(moons):
    flow, images = moons
    expected = log_normal(flow.encode(images)) + flow.log_scale.sum()
    torch.testing.assert_close(flow.log_prob(images), expected)
    # the moons are found: points of the data are likelier than those of a normal fit to them
    mean, covariance = images.flatten(1).mean(0), images.flatten(1).T.cov()
    normal = torch.distributions.MultivariateNormal(mean, covariance)
    fit = normal.log_prob(images.flatten(1)).mean()
    assert flow.log_prob(images).mean() > fit + 0.3


def test_bits_count_what_a_uniform_choice_would_cost():
    """A density that is even over a grey level gives log2 of one over its probability."""
    flow = NICE((1, 1, 2), couplings=1, hidden=(4,), levels=5).double().requires_grad_(False)
    with torch.no_grad():
        for parameter in flow.couplings.parameters():
            parameter.zero_()
        flow.log_scale.fill_(math.log(1e-3))
    images = torch.zeros(1, 1, 1, 2, dtype=torch.float64)
    # N(0, 1000^2) at 0, times the distance of 1/2 between grey levels
    expected = -math.log2(0.5 / (1e3 * math.sqrt(2 * math.pi)))
    assert flow.bits_per_dimension(images).item() == pytest.approx(expected, rel=1e-6)


def test_noise_stays_between_grey_levels():
    flow = build("nice")
    images = images_of(flow, 100)
    noise = flow.dequantise(images, torch.Generator().manual_seed(0)) - images
    assert noise.abs().max() <= 1.0 / 16
    assert noise.std().item() == pytest.approx(2 / 16 / 12**0.5, rel=0.05)
    assert torch.equal(NICE((1, 1, 2), levels=None).dequantise(images), images)


def test_the_logistic_prior_has_variance_one_and_its_samples_too():
    flow = NICE((1, 1, 2), couplings=1, hidden=(4,), levels=None, prior="logistic")
    flow = flow.double().requires_grad_(False)
    points, area = grid(flow, half=25.0, n=400)
    density = flow.log_prob(points).exp() * area
    assert (density * points[:, 0, 0, 0] ** 2).sum().item() == pytest.approx(1.0, abs=1e-6)
    drawn = flow.sample(50_000, torch.Generator().manual_seed(0))
    assert torch.isfinite(drawn).all()
    assert drawn.std().item() == pytest.approx(1.0, abs=0.02)
    # the tails are those of exp(-pi |z| / sqrt(3)), and safe
    far = torch.tensor([[[[0.0, 1e6]]], [[[0.0, 1e6 + 1.0]]]], dtype=torch.float64)
    one, two = flow.log_prob(far)
    assert float(one - two) == pytest.approx(math.pi / math.sqrt(3.0), rel=1e-6)


def test_samples_are_decoded_noise():
    flow = build("glow")
    one, two = (flow.sample(5, torch.Generator().manual_seed(0)) for _ in range(2))
    assert one.shape == (5, *SHAPE)
    torch.testing.assert_close(one, two)
    still = flow.sample(5, temperature=0.0)
    torch.testing.assert_close(still, still[:1].expand_as(still))


# Geometry


def off_straight(flow, solution, start, end):
    """Return length over chord - 1, and the largest distance of images from the chord over it."""
    one, two = flow.decode(start).flatten(1), flow.decode(end).flatten(1)
    length = (two - one).norm(dim=1)
    direction = (two - one) / length[:, None]
    curve = solution.curve(torch.linspace(0, 1, 33, dtype=start.dtype))
    offsets = flow.decode(curve.flatten(0, 1)).reshape(len(start), 33, -1) - one[:, None]
    along = (offsets * direction[:, None]).sum(-1, keepdim=True)
    distance = (offsets - along * direction[:, None]).norm(dim=-1).amax(1)
    return solution.length / length - 1.0, distance / length


def assert_straight(flow, start, end):
    metric = gl.PullbackMetric(flow.decode)
    solution = gl.solve_geodesic(metric, start, end)
    excess, distance = off_straight(flow, solution, start, end)
    # no curve is shorter than the chord; 0.05 % longer at most, and 2 % beside it
    assert (excess > -1e-6).all()
    assert (excess < 5e-4).all()
    assert (distance < 2e-2).all()
    assert (solution.status == gl.Status.CONVERGED).all()
    return solution


def test_geodesics_of_a_flow_of_the_plane_have_straight_images(moons):
    flow, images = moons
    codes = flow.encode(images[:20:2])
    solution = assert_straight(flow, codes[:5], codes[5:])
    # which the straight lines between the codes have not
    assert (solution.straight_length > 1.02 * solution.length).any()


def test_geodesics_of_glow_have_straight_images():
    flow = build("glow")
    codes = flow.encode(images_of(flow))
    solution = assert_straight(flow, codes[:3], codes[3:])
    assert (solution.straight_length > 1.01 * solution.length).all()


@pytest.fixture(scope="module")
def digits_nice():
    """Return a NICE of digits after a few epochs, in float64."""
    training = pytest.importorskip("geolatent.lab.training", reason="needs the extra `train`")
    from geolatent.lab.config import TrainingOptions

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = NICE((1, 8, 8), hidden=(64, 64), levels=17)
    settings = TrainingOptions(
        epochs=6, batch_size=64, learning_rate=3e-3, accelerator="cpu", progress=False
    )
    record = training.fit_model(flow, digits("train")[0], settings)
    return flow.double().eval().requires_grad_(False), record


def test_nice_learns_digits(digits_nice):
    flow, record = digits_nice
    assert record.validation_loss[-1] < record.validation_loss[0] - 0.1
    images = digits("test")[0].double()
    bits = flow.bits_per_dimension(images, torch.Generator().manual_seed(0)).mean()
    # a normal distribution for each pixel, with the training images' mean and variance
    train = flow.dequantise(digits("train")[0].double(), torch.Generator().manual_seed(1))
    normal = torch.distributions.Normal(train.mean(0), train.std(0))
    noisy = flow.dequantise(images, torch.Generator().manual_seed(0))
    alone = -normal.log_prob(noisy).mean() / math.log(2) - math.log2(2 / 16)
    assert bits < alone - 0.15
    torch.testing.assert_close(flow(images), images, rtol=0, atol=1e-10)


def test_geodesics_of_nice_between_digits_have_straight_images(digits_nice):
    flow, _ = digits_nice
    codes = flow.encode(digits("test")[0][:8].double())
    assert codes.shape == (8, 64)
    solution = assert_straight(flow, codes[:4], codes[4:])
    # the code of the middle image is the middle of the geodesic, but for its speed
    middle = flow.encode(0.5 * (flow.decode(codes[:4]) + flow.decode(codes[4:])))
    gap = (solution.curve(torch.tensor([0.5], dtype=torch.float64))[:, 0] - middle).norm(dim=1)
    assert (gap < 0.05 * (codes[:4] - codes[4:]).norm(dim=1)).all()


def test_geodesics_of_a_density_metric_stay_where_the_density_is_high(moons):
    flow, images = moons
    codes = flow.encode(images)
    log_density = lambda z: flow.log_prob(flow.decode(z))  # noqa: E731
    plain = gl.PullbackMetric(flow.decode)
    reference = float(log_density(codes).median())
    metric = gl.ConformalMetric.from_log_density(
        plain, log_density, strength=1.0, reference=reference, floor=1e-3
    )
    # the two ends of the upper moon
    points = images.flatten(1)
    left = points[:, 0].argmin()
    right = ((points - torch.tensor([1.0, 0.0])) ** 2).sum(1).argmin()
    start, end = codes[left : left + 1], codes[right : right + 1]
    graph = gl.LatentGraph.from_codes(metric, codes)
    dense = gl.solve_geodesic(metric, start, end, initial=graph)
    straight = gl.solve_geodesic(plain, start, end)
    t = torch.linspace(0.1, 0.9, 33, dtype=torch.float64)
    least = [log_density(solution.curve(t)[0]).min() for solution in (dense, straight)]
    assert least[0] > least[1] + 2.0
    # and it is shorter in the metric that it is a geodesic of
    assert gl.path_length(metric, dense.curve) < gl.path_length(metric, straight.curve)


# The variational autoencoder with a flow as its posterior


SIZES = {"channels": (3, 4), "hidden": 8, "image_shape": (1, 8, 8)}


def iaf(latent_dim=2, spread=0.4):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = IAFVAE(latent_dim, **SIZES, steps=3, context=4, flow_hidden=(8,))
        # as after some training: the steps are no longer the identity
        for parameter in model.flow.parameters():
            nn.init.normal_(parameter, std=spread)
    return model.double().eval().requires_grad_(False)


def some_images(n=4):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double() * 2 - 1


@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_the_posteriors_density_is_that_of_its_codes(latent_dim):
    """By the change of variables with whole Jacobians of noise -> code."""
    model, images = iaf(latent_dim), some_images()
    codes, log_posterior = model.draw_codes(images, 3, torch.Generator().manual_seed(5))
    assert codes.shape == (3, 4, latent_dim)
    noise = torch.randn(
        3, 4, latent_dim, generator=torch.Generator().manual_seed(5), dtype=torch.float64
    )
    mean, log_std, context = model._base(images)

    def bend(noise, row):
        return model._bend(mean[row] + log_std[row].exp() * noise, context[row])[0]

    for draw in range(3):
        for row in range(4):
            torch.testing.assert_close(bend(noise[draw, row], row), codes[draw, row])
            jacobian = torch.func.jacrev(lambda e, row=row: bend(e, row))(noise[draw, row])
            expected = log_normal(noise[draw, row]) - torch.linalg.slogdet(jacobian).logabsdet
            torch.testing.assert_close(log_posterior[draw, row], expected, rtol=1e-8, atol=1e-8)


def test_the_posterior_integrates_to_one():
    """By quadrature of its density in the plane, each step inverted by zuko."""
    model, images = iaf(), some_images(1)
    mean, log_std, context = model._base(images)
    side = torch.linspace(-12, 12, 500, dtype=torch.float64)
    z = torch.cartesian_prod(side, side)
    log_det = torch.zeros(len(z), dtype=torch.float64)
    for step in reversed(model.flow):
        z, change = step(context[0]).inv.call_and_ladj(z)
        log_det = log_det + change
    noise = (z - mean) * torch.exp(-log_std)
    log_density = log_normal(noise) - log_std.sum() + log_det
    total = log_density.exp().sum() * float(side[1] - side[0]) ** 2
    assert total == pytest.approx(1.0, abs=1e-3)


def test_steps_begin_as_the_identity():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = IAFVAE(2, **SIZES).double().eval()
    images = some_images()
    mean, log_std, _ = model._base(images)
    torch.testing.assert_close(model.encode(images), (mean, log_std.exp()))
    # and the bound is the plain one, with the divergence estimated
    _, divergence = model.elbo_terms(images, torch.Generator().manual_seed(0))
    codes, log_posterior = model.draw_codes(images, 1, torch.Generator().manual_seed(0))
    plain = torch.distributions.Normal(mean, log_std.exp())
    expected = plain.log_prob(codes[0]) - torch.distributions.Normal(0.0, 1.0).log_prob(codes[0])
    torch.testing.assert_close(divergence, expected.sum(1))
    torch.testing.assert_close(log_posterior[0], plain.log_prob(codes[0]).sum(1))


def test_mean_and_standard_deviation_are_near_those_of_drawn_codes():
    model, images = iaf(), some_images()
    mean, std = model.encode(images)
    codes, _ = model.draw_codes(images, 20_000, torch.Generator().manual_seed(0))
    # the transform is exact to second order alone
    torch.testing.assert_close(mean, codes.mean(0), rtol=0, atol=0.1 * float(std.max()))
    torch.testing.assert_close(std, codes.std(0), rtol=0.2, atol=0)


@pytest.mark.parametrize("flow", [False, True])
def test_the_weights_bound_the_evidence(flow):
    """For a decoder that ignores its code, weights are p(x) p(z) / q(z|x), and p(x) is known."""
    model = iaf(spread=0.2) if flow else ConvVAE(2, **SIZES).double().requires_grad_(False)
    first = model.decoder[0]
    first.weight.zero_()
    images = some_images()
    evidence = model.log_likelihood(images, torch.zeros(4, 2, dtype=torch.float64))
    weights = model.log_weights(images, 4_000, torch.Generator().manual_seed(0))
    assert weights.shape == (4_000, 4)
    ratio = (weights - evidence).exp()
    error = ratio.std(0) / len(ratio) ** 0.5
    assert (error < 0.1).all()
    assert ((ratio.mean(0) - 1.0).abs() < 5 * error).all()
    terms = [model.elbo_terms(images, torch.Generator().manual_seed(s)) for s in range(300)]
    bound = torch.stack([one - two for one, two in terms]).mean(0)
    torch.testing.assert_close(weights.mean(0), bound, rtol=0, atol=0.3)
    assert (weights.mean(0) < evidence).all()


def test_a_flow_posterior_is_saved_and_fitted(tmp_path):
    model, images = iaf(), some_images(30)
    model.fit_precision(images, n_centers=3, iterations=3)
    loaded = load_model(save_model(model, tmp_path / "iaf"))
    assert loaded.arguments == model.arguments
    assert loaded.arguments["n_centers"] == 3
    torch.testing.assert_close(loaded(images), model(images))


# What is refused


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NICE((1, 1, 1)), "`image_shape` should be of two pixels or more"),
        (lambda: NICE(couplings=0), "`couplings` should be an integer of at least 1"),
        (lambda: NICE(hidden=()), "`hidden` should be a sequence of positive integers"),
        (lambda: NICE(prior="uniform"), "`prior` should be one of normal, logistic"),
        (lambda: NICE(levels=1), "`levels` should be an integer of at least 2"),
        (lambda: NICE(activation="sine"), "`activation` should be one of elu"),
        (lambda: Glow((1, 6, 8)), "`image_shape` should be .* divisible by 4"),
        (lambda: Glow((8, 8)), "`image_shape` should be"),
        (lambda: Glow(steps=0), "`steps` should be"),
        (lambda: IAFVAE(context=0), "`context` should be"),
        (lambda: IAFVAE(image_shape=(1, 7, 8)), "`image_shape` should be"),
    ],
)
def test_sizes_that_cannot_be(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_wrong_shapes_are_refused_by_name():
    flow = build("glow")
    with pytest.raises(ValueError, match=r"`images` should be a tensor of shape \(n, 1, 4, 8\)"):
        flow.encode(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"`z` should be a tensor of shape \(n, 32\)"):
        flow.decode(torch.zeros(2, 31))
    with pytest.raises(ValueError, match="`images` should be two images or more"):
        flow.initialise(torch.zeros(1, *SHAPE))
    with pytest.raises(ValueError, match="`temperature` should be a finite number at least 0"):
        flow.sample(2, temperature=-1.0)


@pytest.mark.parametrize("model", [NICE, IAFVAE])
def test_a_missing_extra_is_named(model, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "zuko"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=r"made of zuko.*pip install '\.\[flows\]'"):
        model()
    # Glow needs none
    assert Glow((1, 4, 4), steps=1, hidden=2).latent_dim == 16
