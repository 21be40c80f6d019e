"""What passes between the processor and the device that tensors lie on.

A GPU is told what to do ahead of time. The processor waits for it whenever it must know a value:
which pairs are done, how many entries of a mask are true. So loops ask once a step, for all at
once, and what does not depend on values, such as bases of splines, is made on the processor and
sent. Where tensors lie in the processor's memory, nothing is moved.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sent(values: Tensor, like: Tensor) -> Tensor:
    """Return values on the device of another tensor, without waiting for it."""
    return values.to(like.device, non_blocking=True)


def places(*masks: Tensor) -> tuple[Tensor, ...]:
    """Return where masks of one shape (A,) are true, as indices; one wait for all.

    Examples
    --------
    >>> even = torch.tensor([True, False, True, False])
    >>> places(even, ~even)
    (tensor([0, 2]), tensor([1, 3]))
    """
    known = torch.stack(masks).cpu()
    return tuple(sent(mask.nonzero().squeeze(1), masks[0]) for mask in known)
