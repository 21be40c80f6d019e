"""The helpers of the tests that ask for equality but for rounding."""

import pytest
import torch
from rounding import Misaligned, assert_same_to_rounding
from torch import nn

pytestmark = pytest.mark.usefixtures("float64")


def network():
    return nn.Sequential(nn.Linear(2, 33), nn.Tanh(), nn.Linear(33, 65), nn.Tanh()).double()


WAYS = {
    "forward": lambda f, z: f(z),
    "backward": lambda f, z: torch.autograd.grad(f(z.requires_grad_()).square().sum(), z)[0],
    "jvp": lambda f, z: torch.func.jvp(f, (z.detach(),), (torch.ones_like(z),))[1],
    "vmap": lambda f, z: torch.func.vmap(torch.func.jacfwd(f))(z.detach()),
}


def places(function):
    """Return where the operands of matrix products lie, in bytes beyond a multiple of 64."""
    found = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func._schema.name in ("aten::mm", "aten::addmm", "aten::bmm"):
                found.extend(arg.data_ptr() % 64 for arg in args if isinstance(arg, torch.Tensor))
            return func(*args, **(kwargs or {}))

    with Watch():
        function()
    return found


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # torch's forward-mode rules are loaded so
@pytest.mark.parametrize("way", WAYS)
def test_misaligned_operands_are_moved_and_nothing_else_changes(way):
    net, z = network(), torch.randn(65, 2)
    expected = WAYS[way](net, z)

    def evaluate():
        with Misaligned(seed=1) as mode:
            found = [WAYS[way](net, z) for _ in range(4)]
        assert mode.moved >= 8
        for each in found:
            assert_same_to_rounding(each, expected)

    moved = places(evaluate)
    assert {place % 16 for place in moved} == {0, 8}
    assert len({place % 64 for place in moved}) > 4


def test_misaligned_keeps_strides_and_values():
    matrix = torch.randn(5, 7)
    rows = torch.randn(3).expand(4, 3)  # one row in memory
    with Misaligned(seed=2) as mode:
        for tensor in (matrix, matrix.mT, matrix[1:, ::2], rows, torch.randn(())):
            moved = [mode._move(tensor) for _ in range(8)]
            assert all(torch.equal(each, tensor) for each in moved)
            assert {each.stride() for each in moved} == {tensor.stride()}
            assert len({each.data_ptr() % 64 for each in moved}) > 1
        assert mode._move(torch.arange(3)).data_ptr() % 64 == 0


def test_rounding_is_no_error_and_anything_more_is():
    x = torch.randn(20)
    assert_same_to_rounding(x * (1 + 1e-15), x)
    assert_same_to_rounding(torch.zeros(0), torch.zeros(0))
    assert_same_to_rounding(torch.arange(3), torch.arange(3))
    for wrong in (x * (1 + 1e-14), x.float(), x[:, None], x.where(x > 0, torch.nan)):
        with pytest.raises(AssertionError):
            assert_same_to_rounding(wrong, x)
    with pytest.raises(AssertionError):
        assert_same_to_rounding(torch.arange(3) + 1, torch.arange(3))
