"""Forward mode by the rules of `metrics.forward_rules`: torch's values and tangents, for less."""

from collections import Counter
from operator import add, mul, sub, truediv
from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import geolatent as gl
from geolatent.metrics.forward_rules import RULES, ForwardRules

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture(scope="module", autouse=True)
def _loaded():
    """Let torch load its own rules, of which it warns, as the package does."""
    gl.PullbackMetric(torch.sin).quadratic(torch.ones(1, 1), torch.ones(1, 1))


def quick(function):
    """Return the function, followed by the rules."""

    def inside(*args):
        with ForwardRules():
            return function(*args)

    return inside


def jvp(function, z, v):
    return torch.func.jvp(function, (z,), (v,))


def numbers(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Calls(TorchDispatchMode):
    """Counts the operations of torch's core."""

    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def layer(make):
    """Return a layer with weights that differ, in evaluation mode."""
    torch.manual_seed(0)
    made = make().double().eval().requires_grad_(False)
    for tensor in (*made.parameters(), *made.buffers()):
        if tensor.is_floating_point():
            tensor.copy_(1.0 + 0.3 * torch.randn_like(tensor)).abs_()
    return made


IMAGES, ROWS, SIGNALS, CUBES = (3, 8, 6, 6), (3, 8), (3, 8, 6), (2, 8, 4, 4, 4)
LAYERS = {
    "linear": (lambda: nn.Linear(8, 5), ROWS),
    "linear, no bias": (lambda: nn.Linear(8, 5, bias=False), ROWS),
    "linear of images": (lambda: nn.Linear(6, 5), IMAGES),
    "conv1d": (lambda: nn.Conv1d(8, 4, 3, stride=2), SIGNALS),
    "conv2d": (lambda: nn.Conv2d(8, 4, 3, padding=1, groups=2), IMAGES),
    "conv2d, no bias": (lambda: nn.Conv2d(8, 4, 3, dilation=2, bias=False), IMAGES),
    "conv2d, reflected": (lambda: nn.Conv2d(8, 4, 3, padding=1, padding_mode="reflect"), IMAGES),
    "conv3d": (lambda: nn.Conv3d(8, 2, 2), CUBES),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(8, 4, 3, stride=2), SIGNALS),
    "conv_transpose2d": (
        lambda: nn.ConvTranspose2d(8, 4, 3, stride=2, output_padding=1, dilation=2),
        IMAGES,
    ),
    "conv_transpose3d": (lambda: nn.ConvTranspose3d(8, 2, 2), CUBES),
    "batch_norm": (lambda: nn.BatchNorm2d(8), IMAGES),
    "batch_norm, not affine": (lambda: nn.BatchNorm2d(8, affine=False), IMAGES),
    "batch_norm of rows": (lambda: nn.BatchNorm1d(8), ROWS),
    "group_norm": (lambda: nn.GroupNorm(4, 8), IMAGES),
    "group_norm, not affine": (lambda: nn.GroupNorm(2, 8, affine=False), SIGNALS),
    "layer_norm": (lambda: nn.LayerNorm(6), IMAGES),
    "layer_norm of images": (lambda: nn.LayerNorm((8, 6, 6)), IMAGES),
    "layer_norm, no bias": (lambda: nn.LayerNorm(6, bias=False), IMAGES),
    "layer_norm, not affine": (lambda: nn.LayerNorm(6, elementwise_affine=False), IMAGES),
    "rms_norm": (lambda: nn.RMSNorm(6), IMAGES),
    "rms_norm, not affine": (lambda: nn.RMSNorm((6, 6), 0.1, elementwise_affine=False), IMAGES),
    "batch statistics": (lambda: nn.BatchNorm2d(8, track_running_stats=False), IMAGES),
    "instance_norm": (lambda: nn.InstanceNorm2d(8, affine=True), IMAGES),
}
C = numbers(8, seed=5) + 3.0
FUNCTIONS = {
    "x + c": lambda x: x + C,
    "c + x": lambda x: C + x,
    "x - c": lambda x: x - C,
    "c - x": lambda x: C - x,
    "1 - x": lambda x: 1 - x,
    "2 x": lambda x: 2 * x,
    "x c": lambda x: x * C,
    "c x": lambda x: C * x,
    "x / c": lambda x: x / C,
    "c / x": lambda x: C / (x + 9.0),
    "3 / x": lambda x: 3.0 / (x + 9.0),
    "x x": lambda x: x * x + x / (9.0 + x) - x,
    "x + a column": lambda x: x[:, None] - C[:, None],
    "a column + x": lambda x: torch.add(C[:, None], x[:, None]),
    "x + alpha c": lambda x: torch.add(x, C, alpha=0.5),
    "c - alpha x": lambda x: torch.sub(C, x, alpha=0.5),
    "rounded quotients": lambda x: x * torch.div(x, C, rounding_mode="floor"),
    "x @ c": lambda x: x @ C[:, None],
    "c @ x": lambda x: C[None] @ x.T,
    "mm": lambda x: torch.mm(x, C.diag()),
    "bmm": lambda x: torch.bmm(x[:, None], torch.stack([C.diag()] * 3)),
    "whole numbers": lambda x: x * torch.arange(8) + torch.arange(8),
    "of another width": lambda x: (x.float() + C.float()).double() + C.float(),
    "into itself": lambda x: (x + C).mul_(2.0).add_(x) + x,
    "parts of itself": lambda x: torch.cat([(y := x * 2.0)[:, :3].sin_(), y], 1),
    "weights that move": lambda x: functional.linear(x, x[:2] * C, bias=x[0, :2]),
    "a bias that moves": lambda x: functional.linear(x, C.diag(), x[0]),
    "norms that move": lambda x: functional.layer_norm(x, (8,), x[0], C),
    "by name": lambda x: functional.linear(input=x, weight=C.diag(), bias=C),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operations_have_torchs_values_and_tangents(name):
    function, x, v = FUNCTIONS[name], numbers(3, 8), numbers(3, 8, seed=1)
    for found, expected in zip(jvp(quick(function), x, v), jvp(function, x, v), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    # x is left as it was
    torch.testing.assert_close(x, numbers(3, 8))


@pytest.mark.parametrize("name", LAYERS)
def test_layers_have_torchs_values_and_tangents(name):
    make, shape = LAYERS[name]
    module, x, v = layer(make), numbers(*shape), numbers(2, *shape, seed=1)
    for row in v:
        for found, expected in zip(jvp(quick(module), x, row), jvp(module, x, row), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    batched = torch.func.vmap(lambda row: jvp(quick(module), x, row)[1])(v)
    each = torch.stack([jvp(module, x, row)[1] for row in v])
    torch.testing.assert_close(batched, each, rtol=1e-12, atol=1e-13)


def written_out(module, x):
    """Return what a normalisation does, in operations that torch differentiates well."""
    groups = x
    if isinstance(module, nn.GroupNorm):
        groups = x.reshape(len(x), module.num_groups, -1)
    dims = (-1,)
    if not isinstance(module, nn.RMSNorm):
        groups = groups - groups.mean(dims, keepdim=True)
    eps = torch.finfo(x.dtype).eps if module.eps is None else module.eps
    normal = (groups / (groups.square().mean(dims, keepdim=True) + eps).sqrt()).reshape(x.shape)
    shape = (-1, 1, 1) if isinstance(module, nn.GroupNorm) else (-1,)
    normal = normal * module.weight.reshape(shape)
    bias = getattr(module, "bias", None)
    return normal if bias is None else normal + bias.reshape(shape)


@pytest.mark.parametrize("name", ["group_norm", "layer_norm", "layer_norm, no bias", "rms_norm"])
def test_tangents_of_normalisations_have_gradients(name):
    """Torch's own tangents of some of them have wrong ones."""
    make, shape = LAYERS[name]
    module, v = layer(make), numbers(*shape, seed=1)
    gradients = []
    for function in (quick(lambda x: module(x.tanh())), lambda x: written_out(module, x.tanh())):
        x = numbers(*shape).requires_grad_()
        (gradient,) = torch.autograd.grad(jvp(function, x, v)[1].square().sum(), x)
        gradients.append(gradient)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_left_for_means(dtype):
    module, x, v = nn.LayerNorm(512), 300.0 * numbers(2, 512), numbers(2, 512, seed=1)
    found = jvp(quick(module.to(dtype)), x.to(dtype), v.to(dtype))
    expected = jvp(module.double(), x.to(dtype).double(), v.to(dtype).double())
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        error = (one.double() - other).abs().max() / other.abs().max()
        assert error < 4 * torch.finfo(dtype).eps


def test_a_convolution_is_not_computed_with_weights_of_zero():
    module, x, v = layer(lambda: nn.Conv2d(8, 4, 3)), numbers(*IMAGES), numbers(*IMAGES, seed=1)
    counts = []
    for function in (module, quick(module)):
        with Calls() as calls:
            jvp(function, x, v)
        counts.append(calls.names["convolution"] + calls.names["conv2d"])
    assert counts == [3, 2]


@pytest.mark.parametrize("operation", [add, sub, mul, truediv])
def test_transforms_inside_a_function_are_left_alone(operation):
    """Of the function's own transforms tangents are others, and there may be none."""

    def own(x):
        inner = jvp(lambda y: operation(y.sin(), C), x, x.cos())[1]
        rows = torch.func.vmap(lambda row: operation(row, C).sum())(x)
        gradient = torch.func.grad(lambda y: operation(y, C).square().sum())(x)
        return inner + rows[:, None] + gradient

    x, v = numbers(3, 8), numbers(3, 8, seed=1)
    for found, expected in zip(jvp(quick(own), x, v), jvp(own, x, v), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_tensors_of_other_types_follow_their_own_rules():
    class Own(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen.append(func)
            return super().__torch_function__(func, types, args, kwargs or {})

    seen = []
    other = C.as_subclass(Own)
    found = jvp(quick(lambda x: torch.Tensor(x * other)), numbers(3, 8), numbers(3, 8, seed=1))
    torch.testing.assert_close(found[1].as_subclass(torch.Tensor), numbers(3, 8, seed=1) * C)
    assert torch.Tensor.mul in seen or torch.Tensor.__mul__ in seen


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_what_torch_compiles_is_the_function_alone():
    """The rules are not compiled with it, once for each kind of arguments."""
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.LayerNorm(16), nn.Linear(16, 20))
    decoder.double().eval().requires_grad_(False)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    metric = gl.PullbackMetric(torch.compile(decoder, backend="eager"))
    z, v = numbers(4, 3), numbers(4, 3, seed=1)
    found = metric.quadratic(z, v)
    torch.testing.assert_close(found, gl.PullbackMetric(decoder).quadratic(z, v))
    compiled = torch._dynamo.utils.counters["frames"]["total"]
    with mock.patch("geolatent.metrics.forward_rules.RULES", {}):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        gl.PullbackMetric(torch.compile(decoder, backend="eager")).quadratic(z, v)
    assert compiled == torch._dynamo.utils.counters["frames"]["total"]


def test_metrics_follow_the_rules(monkeypatch):
    """Tensors, products and their gradients are the same with and without them."""
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.GroupNorm(4, 16), nn.Linear(16, 20))
    decoder.double().eval().requires_grad_(False)
    z, v = numbers(4, 3), numbers(4, 3, seed=1)
    found = []
    for rules in (RULES, {}):
        monkeypatch.setattr("geolatent.metrics.forward_rules.RULES", rules)
        metric, point = gl.PullbackMetric(decoder), z.clone().requires_grad_()
        quadratic = metric.quadratic(point, v)
        (gradient,) = torch.autograd.grad(quadratic.sum(), point)
        found.append((metric.tensor(z), quadratic.detach(), gradient))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
