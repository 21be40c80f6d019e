"""Whether a function treats every row of a batch by itself, in the same way each time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from geolatent.checks import requirement

# of the difference between two rows' outputs: what other rows may change at most
_LEAK = 1e-3
# units in the last place by which a row may round differently in a batch of another size
_ROUNDING = 32
# and in one of the same size, where at most the order of sums may differ
_SAME_ROUNDING = 8


def random_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Return normally distributed numbers, the same on every device and in every type."""
    return torch.randn(tensor.shape, generator=generator, dtype=torch.float64, device="cpu").to(
        tensor.device, tensor.dtype, non_blocking=True
    )


def neighbour(z: Tensor, seed: int = 0, distance: float = 0.01) -> Tensor:
    """Return a row near z (1, ...), seeded, at a distance in units of z's size or of 1."""
    noise = random_like(z, torch.Generator().manual_seed(seed))
    step = max(distance, 8.0 * torch.finfo(z.dtype).eps) * z.abs().max().clamp_min(1.0)
    return z + step * noise


def check_rows(
    name: str,
    function: Callable[[Tensor], Tensor],
    z: Tensor,
    value: Tensor,
    *,
    rounding: float = 0.0,
    thorough: bool = False,
) -> None:
    """Raise where the output for one row changes from call to call or with the rows beside it.

    Parameters
    ----------
    name
        The function's name in messages.
    function
        (n, ...) -> (n, ...).
    z, value
        One row, and its output when it was alone.
    rounding
        Relative rounding of the output where it is coarser than that of its type.
    thorough
        Whether to change the row beside it as well, in a batch of the same size: rounding is then
        the same, and the limit tighter.
    """
    with torch.no_grad():
        near = function(torch.cat([neighbour(z, 1), z]))
        far = function(torch.cat([neighbour(z, 2, 0.1), z])) if thorough else near
    eps = max(rounding, torch.finfo(value.dtype).eps)
    one = near[1]
    found = [_size(one - near[0]), _size(value)]
    for other in (value[0], far[1]):
        # finite in the one batch and not in the other is a difference too
        torn = (one.isfinite() != other.isfinite()).any()
        found += [torn.double(), _size(one - other)]
    spread, size, *found = torch.stack(found).tolist()
    limits = _ROUNDING * max(eps, _precision(value)), _SAME_ROUNDING * eps
    for torn, gap, limit in zip(found[::2], found[1::2], limits, strict=True):
        if torn or gap > _LEAK * spread + limit * size:
            required = "deterministic, each row by itself (call eval() on modules)"
            change = "between finite and not finite" if torn else f"by {gap:.3g}"
            told = f"one whose output for one code changes {change} with the rest of the batch"
            raise ValueError(requirement(name, required, f"{told} or from call to call"))


def _size(values: Tensor) -> Tensor:
    return values.double().nan_to_num(0.0, 0.0, 0.0).abs().max()


def _precision(value: Tensor) -> float:
    """Return the relative rounding of matrix products of a tensor's type on its device."""
    eps = torch.finfo(value.dtype).eps
    reduced = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    if value.is_cuda and value.dtype == torch.float32 and reduced:
        return max(eps, 2.0**-11)
    return eps
