"""Equal but for rounding, and what makes equal input round otherwise.

Products of matrices round by the processor, the number of threads and the places of their operands
in memory: equal input need not give equal bits, even twice in one process. Tests ask equal bits of
stored data alone.
"""

import random

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

# what a solver decides: rounding tips one now and then
DECISIONS = (
    "status",
    "iterations",
    "control_points",
    "forward",
    "backward",
    "jvp",
    "equivalents",
)

FRACTIONS = ("relative_improvement", "difference")

# what BLAS, LAPACK and the convolutions do
PRODUCTS = (
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "mv",
    "addmv",
    "dot",
    "convolution",
    "convolution_backward",
    "_cdist_forward",
    "linalg_cholesky_ex",
    "cholesky_solve",
    "linalg_solve_triangular",
    "_linalg_solve_ex",
    "linalg_inv_ex",
    "linalg_lu_factor_ex",
    "linalg_qr",
    "_linalg_eigh",
    "_linalg_svd",
)


def assert_same_to_rounding(found, expected, ulps=16):
    """Check that two evaluations of one formula differ by no more than rounding.

    |found - expected| <= ulps eps max |expected|, with the maximum over the tensor, for sums that
    cancel are as wrong as their largest terms; of one type and shape, and without NaN. Integers and
    booleans are to be equal.
    """
    if not expected.is_floating_point():
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
        return
    assert not expected.isnan().any()
    largest = float(expected.detach().abs().max()) if expected.numel() else 0.0
    tolerance = ulps * torch.finfo(expected.dtype).eps * largest
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def assert_same_pairs(found, expected):
    """Check that two solves of the same pairs give the same tables and curves but for rounding.

    Names and whole numbers are to be equal; codes, lengths and energies to 1e-4 of the column's
    largest, improvements to 1e-4, for the solves are in float32 and enlarge what they are given;
    the certificate and the curves, which a flat minimum leaves freer, to 1e-2. One pair in ten may
    have been decided otherwise, or lie in a valley so flat that rounding moves it along: its
    numbers are to be the same to 1e-2.
    """
    assert found.table.schema == expected.table.schema
    assert len(found) == len(expected)
    names = expected.table.column_names
    tipped = np.zeros(len(expected), dtype=bool)
    for name in set(DECISIONS) & set(names):
        tipped |= found.column(name) != expected.column(name)
    for name in set(names) - set(DECISIONS):
        one, other = found.column(name), expected.column(name)
        if other.dtype.kind == "f":
            # improvements, and their differences, may all be next to nothing
            largest = 1.0 if name in FRACTIONS else np.nanmax(np.abs(other), initial=0.0)
            loose = 1e-2 * largest
            np.testing.assert_allclose(one, other, rtol=0, atol=loose, err_msg=name)
            if name != "predicted_improvement":
                far = np.abs(one - other) > 1e-4 * largest
                tipped |= far.reshape(len(expected), -1).any(1)
        else:
            np.testing.assert_array_equal(one, other, err_msg=name)
    assert tipped.sum() <= len(expected) / 10, expected.table.take(np.flatnonzero(tipped))
    assert torch.equal(found.curve.knots, expected.curve.knots)
    points = expected.curve.control_points
    gap = (found.curve.control_points - points).abs().amax((1, 2))
    assert (gap[torch.from_numpy(~tipped)] <= 1e-2 * points.abs().max()).all()


class Misaligned(TorchDispatchMode):
    """Move the operands of `PRODUCTS` to odd places in memory.

    Torch's own buffers begin at multiples of 64 bytes, where BLAS takes one way through its
    kernels; views, and buffers of others such as a file's, need not. Values and strides are kept.
    The mode sees what is left of an operation below autograd and `torch.func`, so it works within
    both. It sees neither other processes nor other libraries.

    Parameters
    ----------
    seed
        Seed of the places, drawn for each operand of each call: 0 to 7 elements further on.

    Attributes
    ----------
    moved
        Number of operands that have been moved.
    """

    def __init__(self, seed=0):
        super().__init__()
        self.moved = 0
        self._generator = random.Random(seed)
        self._names = {f"aten::{name}" for name in PRODUCTS}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # not where the result is written into an operand
        if func._schema.name in self._names and not func._schema.is_mutable:
            args, kwargs = tree_map_only(Tensor, self._move, (args, kwargs))
        return func(*args, **kwargs)

    def _move(self, tensor):
        if tensor.device.type != "cpu" or not tensor.is_floating_point() or not tensor.numel():
            return tensor
        offset = self._generator.randrange(8)
        # as it lies in memory, with what lies between its elements: strides may be 0
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        span = 1 + sum((size - 1) * stride for size, stride in steps)
        buffer = torch.empty(offset + span, dtype=tensor.dtype)
        buffer[offset:] = tensor.as_strided((span,), (1,))
        self.moved += 1
        return buffer.as_strided(tensor.shape, tensor.stride(), offset)
