"""Forward-mode products against full reverse-mode Jacobians, and the two fall-backs."""

import functools
import warnings

import pytest
import torch
from derivatives import LegacySine, ReverseSine, UnbatchedSine, jacobian
from torch import nn

from geolatent.metrics.map import Map
from geolatent.metrics.ways import double_backward

pytestmark = pytest.mark.usefixtures("float64")

WEIGHT = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def smooth(z):
    return torch.tanh(z @ WEIGHT)


def scalar(z):
    return z.square().sum(1)


def image(z):
    return smooth(z).reshape(-1, 1, 5, 1).expand(-1, 2, -1, 3)


def two_outputs(z):
    return smooth(z), torch.exp(z @ WEIGHT)


def two_images(z):
    return image(z), image(2 * z).exp()


def branching(z):
    return smooth(z) if (z < 9).all() else smooth(2 * z)


def filling(z):
    out = torch.zeros(len(z), 4)
    out[:, :3] = z.square()
    out[:, 3] = z.prod(1)
    return out


def clipping(z):
    out = z @ WEIGHT
    out[out < 0] = 0
    return out


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def decode(self, z):
        return self.linear(z).sigmoid()

    def forward(self, z, scale=1.0):
        return scale * self.decode(z)


def check_products(map_, function, z):
    """Compare value, products and columns with the naive Jacobian; return the warnings."""
    v = torch.randn_like(z)
    expected = torch.stack([jacobian(function, row) for row in z])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        values, columns = map_.columns(z)
        value, product = map_.jvp(z, v)
        map_.columns(z)
        map_.jvp(z, v)
    plain = function(z)
    parts = plain if isinstance(plain, tuple) else (plain,)
    flat = torch.cat([part.reshape(len(z), -1) for part in parts], dim=1)
    for got, wanted in (
        (values, flat),
        (value, flat),
        (columns.permute(1, 2, 0), expected),
        (product, torch.einsum("nDi,ni->nD", expected, v)),
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    return caught


@pytest.mark.parametrize(
    "function", [smooth, scalar, image, branching, filling, clipping, two_outputs, two_images]
)
def test_products_equal_the_full_jacobian(function):
    n_outputs = 2 if function in (two_outputs, two_images) else 1
    map_ = Map(function, "decoder", n_outputs)
    assert not check_products(map_, function, torch.randn(4, 3))


@pytest.mark.parametrize("n", [1, 3])
def test_one_row_and_as_many_rows_as_dimensions(n):
    # shapes at which a mix-up of rows and directions would not show in an error
    assert not check_products(Map(smooth, "decoder"), smooth, torch.randn(n, 3))


def test_codes_that_share_their_memory():
    map_ = Map(smooth, "decoder")
    z, v = torch.randn(1, 3).expand(4, 3), torch.randn(4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        product = map_.jvp(z, v)[1]
    torch.testing.assert_close(product, map_.jvp(z.clone(), v)[1])


def test_any_callable():
    decoder = Decoder()
    z = torch.randn(4, 3)
    for function in (
        decoder,
        decoder.decode,
        functools.partial(decoder, scale=2.0),
        lambda z: decoder(z),
    ):
        assert not check_products(Map(function, "decoder"), function, z)


def test_output_shape():
    map_ = Map(two_images, "decoder", 2)
    assert map_(torch.randn(4, 3)).shape == (4, 60)
    assert map_.output_shape == (2, 5, 3)


@pytest.mark.parametrize(
    ("rule", "reason"), [(LegacySine, "setup_context"), (ReverseSine, "jvp function")]
)
def test_without_forward_mode_rules(rule, reason):
    def function(z):
        return rule.apply(z @ WEIGHT)

    caught = check_products(Map(function, "decoder"), function, torch.randn(4, 3))
    (warning,) = caught
    assert warning.category is UserWarning
    message = str(warning.message)
    assert message.startswith("`decoder` has no forward-mode derivative; using double backward")
    assert reason in message


def test_that_vmap_cannot_batch():
    def function(z):
        return UnbatchedSine.apply(z @ WEIGHT)

    caught = check_products(Map(function, "decoder"), function, torch.randn(4, 3))
    (warning,) = caught
    assert warning.category is UserWarning
    message = str(warning.message)
    assert message.startswith("`decoder` cannot be batched by vmap; repeating rows")
    assert "vmap" in message.split("Reason:")[1]


@pytest.mark.filterwarnings("ignore:.*double backward")
@pytest.mark.parametrize("rule", [None, LegacySine, ReverseSine])
def test_products_are_differentiable_in_code_and_tangent(rule):
    def function(z):
        return torch.tanh(z @ WEIGHT) if rule is None else rule.apply(z @ WEIGHT)

    map_ = Map(function, "decoder")
    z, v = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    assert torch.autograd.gradcheck(map_.jvp, (z, v))
    # with respect to one of the two alone
    assert torch.autograd.gradcheck(lambda v: map_.jvp(z.detach(), v)[1], (v,))
    assert torch.autograd.gradcheck(lambda z: map_.jvp(z, v.detach()), (z,))


def test_double_backward_without_gradients_leaves_no_graph():
    z = torch.randn(2, 3)
    value, product = double_backward(Map(smooth, "decoder"), z, z)
    assert not value.requires_grad
    assert not product.requires_grad
    assert not z.requires_grad


@pytest.mark.parametrize("function", [lambda z: torch.ones(len(z), 4), lambda z: 2.0 * z])
def test_double_backward_of_constant_and_linear_maps(function):
    # their vector-Jacobian products do not depend on the point, or do not exist
    z, v = torch.randn(2, 3), torch.randn(2, 3)
    value, product = double_backward(Map(function, "decoder"), z, v)
    expected = torch.func.jvp(function, (z,), (v,))[1]
    torch.testing.assert_close(value, function(z))
    torch.testing.assert_close(product, expected)


def test_an_error_of_the_decoder_itself_is_raised_as_it_is():
    def broken(z):
        raise RuntimeError("a layer went wrong")

    map_ = Map(broken, "decoder")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match="a layer went wrong"):
            map_.jvp(torch.randn(2, 3), torch.randn(2, 3))
        with pytest.raises(RuntimeError, match="a layer went wrong"):
            map_.columns(torch.randn(2, 3))


def test_out_of_memory_is_not_taken_for_a_missing_rule():
    def full(z):
        raise torch.OutOfMemoryError("CUDA out of memory")

    map_ = Map(full, "decoder")
    for call in (
        lambda: map_.jvp(torch.ones(2, 3), torch.ones(2, 3)),
        lambda: map_.columns(torch.ones(2, 3)),
    ):
        with pytest.raises(torch.OutOfMemoryError):
            call()


def test_parameters_keep_their_gradients():
    decoder = Decoder()
    map_ = Map(decoder, "decoder")
    z = torch.randn(2, 3, requires_grad=True)
    _, product = map_.jvp(z, torch.ones(2, 3))
    torch.autograd.grad(product.sum(), z)
    map_.columns(z)
    assert all(p.grad is None and p.requires_grad for p in decoder.parameters())
