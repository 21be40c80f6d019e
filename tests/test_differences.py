"""Derivatives that do not belong to a function's values are refused at its first use."""

import warnings

import pytest
import torch
from derivatives import LegacySine
from problems import Counted
from torch import nn
from torch.autograd.function import once_differentiable

import geolatent as gl
from geolatent.metrics.composite import ConformalMetric
from geolatent.metrics.information import DivergenceMetric
from geolatent.metrics.map import Map

pytestmark = pytest.mark.usefixtures("float64")

WEIGHT = torch.randn(2, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
CODES = torch.tensor([[0.3, -0.7], [0.1, 2.0]], dtype=torch.float64)


def smooth(z):
    return torch.tanh(z @ WEIGHT)


class OnceDifferentiable(LegacySine):
    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent):
        return cotangent * ctx.saved_tensors[0].cos()


class NumPyBackward(OnceDifferentiable):
    @staticmethod
    def backward(ctx, cotangent):
        product = cotangent.detach().numpy() * ctx.saved_tensors[0].detach().cos().numpy()
        return torch.from_numpy(product)


class WrongForward(torch.autograd.Function):
    """Its forward-mode rule forgets the tangent; its backward is right."""

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, _output):
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx, cotangent):
        return cotangent * ctx.saved_tensors[0].cos()

    @staticmethod
    def jvp(_ctx, tangent):
        return torch.zeros_like(tangent)


def partly_detached(z):
    return smooth(z) + torch.tanh(2.0 * z @ WEIGHT).detach()


def zeroed(z):
    with torch.no_grad():
        z.zero_()
    return smooth(z)


def zeroed_data(z):
    z.data[:, 0] = 0.0
    return smooth(z)


def straight_through(z):
    smoothed = smooth(z)
    return smoothed + (smoothed.round() - smoothed).detach()


def straight_through_fine(z):
    smoothed = smooth(z)
    return smoothed + ((smoothed * 255).round() / 255 - smoothed).detach()


WRONG = {
    "once differentiable": (lambda z: OnceDifferentiable.apply(z @ WEIGHT), r"<J\^T u, v>"),
    "NumPy backwards": (lambda z: NumPyBackward.apply(z @ WEIGHT), r"<J\^T u, v>"),
    "partly detached": (partly_detached, "difference quotients"),
    "zeroed": (zeroed, "difference quotients"),
    "zeroed data": (zeroed_data, "difference quotients"),
    "straight-through": (straight_through, "difference quotients"),
    "straight-through, fine": (straight_through_fine, "difference quotients"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_derivatives_are_refused_by_name(case):
    function, found = WRONG[case]
    wide = torch.eye(5, 2)
    for metric, name in (
        (gl.PullbackMetric(function), "decoder"),
        (gl.PullbackMetric(lambda z: 2.0 * z, function), "features"),
        (gl.GaussianPullbackMetric(lambda z: (function(z) @ wide, z.exp())), "decoder"),
        (gl.GaussianPullbackMetric(lambda z: (z, z.exp()), function), "features"),
    ):
        for _ in range(2):  # a refusal is not remembered as a test that was passed
            with pytest.raises(ValueError, match=f"Parameter `{name}` should be differ.*{found}"):
                gl.solve_geodesic(metric, CODES, CODES + 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wrong_derivatives_in_single_precision(dtype):
    weight = WEIGHT.to(dtype)
    metric = gl.PullbackMetric(lambda z: torch.tanh(z @ weight) + torch.sin(z @ weight).detach())
    with pytest.raises(ValueError, match="difference quotients"):
        metric.tensor(CODES.to(dtype))


def scripted_module(network):
    return torch.jit.script(network)


def scripted_within(network):
    return nn.Sequential(torch.jit.script(network), nn.Identity())


def frozen_module(network):
    return torch.jit.freeze(torch.jit.script(network.eval()))


def traced_function(network):
    function = torch.jit.trace(lambda z: network(z), torch.randn(2, 2))
    return lambda z: function(z)


@pytest.fixture(params=[scripted_module, scripted_within, frozen_module, traced_function])
def scripted(request):
    """Script a decoder, which torch warns of."""
    network = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)).requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return network, request.param(network)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_scripted_decoders_lose_no_tangents(scripted):
    network, script = scripted
    plain = gl.PullbackMetric(network)
    start, end = CODES, CODES + 1
    lengths = gl.solve_geodesic(plain, start, end).length
    metric = gl.PullbackMetric(script)
    with pytest.warns(UserWarning, match="`decoder` has no forward-mode derivative.*TorchScript"):
        metric.check("z", CODES)
    for _ in range(5):
        torch.testing.assert_close(metric.tensor(CODES), plain.tensor(CODES))
        torch.testing.assert_close(metric.quadratic(CODES, end), plain.quadratic(CODES, end))
    torch.testing.assert_close(
        gl.solve_geodesic(metric, start, end).length, lengths, rtol=1e-4, atol=0
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_scripted_features_lose_no_tangents(scripted):
    network, script = scripted
    double = lambda z: 2.0 * z  # noqa: E731
    plain, metric = gl.PullbackMetric(double, network), gl.PullbackMetric(double, script)
    with pytest.warns(UserWarning, match="`features` has no forward-mode derivative"):
        metric.check("z", CODES)
    for _ in range(5):
        torch.testing.assert_close(metric.tensor(CODES), plain.tensor(CODES))


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:.*TorchScript")
def test_divergences_of_scripted_decoders_and_scripted_divergences(scripted):
    network, script = scripted

    def distance(x, y):
        return (network(x) - network(y)).square().sum(1)

    def scripted_distance(x, y):
        return (script(x) - script(y)).square().sum(1)

    def squares(x, y):
        return (x - y).square().sum(1)

    expected = gl.PullbackMetric(network).tensor(CODES)
    for metric in (
        DivergenceMetric(script, squares),
        DivergenceMetric(lambda z: 1.0 * z, scripted_distance),
        DivergenceMetric(lambda z: 1.0 * z, distance),
    ):
        for _ in range(4):
            torch.testing.assert_close(metric.tensor(CODES), expected)


def test_a_wrong_forward_rule_is_gone_around():
    metric = gl.PullbackMetric(lambda z: WrongForward.apply(z @ WEIGHT))
    with pytest.warns(UserWarning, match="`decoder` has no forward-mode derivative; using double"):
        tensor = metric.tensor(CODES)
    expected = gl.PullbackMetric(lambda z: torch.sin(z @ WEIGHT)).tensor(CODES)
    torch.testing.assert_close(tensor, expected)


def multiplied(z):
    z.mul_(2.0)
    return smooth(z)


def overwritten_after(z):
    out = smooth(z)
    z.zero_()
    return out


@pytest.mark.parametrize("function", [multiplied, overwritten_after])
def test_codes_may_be_overwritten_and_the_callers_stay(function):
    factor = 2.0 if function is multiplied else 1.0
    expected = gl.PullbackMetric(lambda z: smooth(factor * z))
    kept, metric = CODES.clone(), gl.PullbackMetric(function)
    for call in (
        lambda m: m.tensor(CODES),
        lambda m: m.quadratic(CODES, CODES),
        lambda m: gl.solve_geodesic(m, CODES, kept + 1).length,
        lambda m: gl.PullbackMetric(lambda z: z * 1.0, m.decoder.function).tensor(CODES),
    ):
        torch.testing.assert_close(call(metric), call(expected))
        assert torch.equal(CODES, kept)


# groups of two would be normalised to signs, whose derivatives are rounding
NORMALISED = nn.Sequential(nn.Linear(2, 8), nn.GroupNorm(1, 8), nn.ReLU())
for number, parameter in enumerate(NORMALISED[0].parameters()):
    nn.init.normal_(parameter, generator=torch.Generator().manual_seed(number))

RIGHT = {
    "kink at the code": lambda z: torch.relu(z),
    "many kinks": nn.Sequential(nn.Linear(2, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU()),
    "modulus": lambda z: z.abs(),
    "largest": lambda z: nn.functional.max_pool1d(z @ WEIGHT, 2),
    "flat": lambda z: 0.0 * z,
    "large constant": lambda z: 1e6 + smooth(z),
    "steep": lambda z: torch.tanh(1e4 * z),
    "fast": lambda z: torch.sin(300.0 * z),
    "normalised": NORMALISED,
    "not finite": lambda z: z.sqrt().log(),
    "infinite slope": lambda z: z.clamp_min(0.0).sqrt(),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("case", RIGHT)
def test_right_derivatives_are_taken(case, dtype):
    function = RIGHT[case]
    function = function.to(dtype) if isinstance(function, nn.Module) else function
    if dtype.itemsize == 2 and case == "large constant":
        pytest.skip("beyond the type's range")
    global WEIGHT
    kept, WEIGHT = WEIGHT, WEIGHT.to(dtype)
    try:
        for code in (torch.zeros(1, 2), CODES[:1], -10 * CODES[1:]):
            metric = gl.PullbackMetric(function)
            metric.tensor(code.to(dtype))
            assert metric.decoder.forward_mode
            assert metric.decoder.batched_columns
    finally:
        WEIGHT = kept


def test_tests_are_made_once():
    counted = Counted(smooth)
    map_ = Map(counted, "decoder")
    map_.check("z", CODES[:1])
    first, counted.rows = counted.rows, 0
    map_.check("z", CODES[:1])
    assert counted.rows == 3 < first


def test_a_code_that_tells_nothing_leaves_the_test_open():
    map_ = Map(lambda z: z.log() + z.log().exp().detach(), "decoder")
    map_.check("z", -torch.ones(1, 2))
    with pytest.raises(ValueError, match="difference quotients"):
        map_.check("z", torch.ones(1, 2))


def field(z):
    return torch.eye(2) * (1.0 + z.square().sum(1) + z.square().sum(1).detach())[:, None, None]


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        (gl.TensorMetric(field, dim=2), "fn"),
        (gl.TensorMetric(lambda z: torch.diag_embed(z.detach().exp()), dim=2), "fn"),
        (ConformalMetric(gl.PullbackMetric(smooth), lambda z: field(z)[:, 0, 0]), "factor"),
        (
            ConformalMetric(gl.PullbackMetric(smooth), lambda z: z.detach().square().sum(1)),
            "factor",
        ),
    ],
)
def test_gradients_of_tensor_fields_and_factors(metric, name):
    with pytest.raises(ValueError, match=f"Parameter `{name}` should be differ.*fits its values"):
        gl.solve_geodesic(metric, CODES, CODES + 1)
    mixing = gl.TensorMetric(lambda z: torch.eye(2) * z.square().mean() + torch.diag_embed(z), 2)
    with pytest.raises(ValueError, match=r"`fn`.*each row by itself"):
        mixing.tensor(CODES)


def test_constant_tensor_fields_need_no_gradient():
    metric = gl.TensorMetric(lambda z: torch.eye(2).expand(len(z), 2, 2), dim=2)
    torch.testing.assert_close(metric.tensor(CODES)[0], torch.eye(2))
