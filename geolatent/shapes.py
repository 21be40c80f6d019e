"""Codes of any shape, (n, c, h, w): flat within the package, and given back as they came.

Functions that take codes (n, d) take codes of more axes too; the first axis is always the batch.
They are flattened at the door, the metric's functions get them in their own shape (`Reshaped`), and
results have that shape where they would have d. What a function is given decides; nothing is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from geolatent.arrays import Result, as_tensor
from geolatent.requirements import describe, requirement

if TYPE_CHECKING:
    from geolatent.metrics.base import Metric

T = TypeVar("T")


@dataclass(frozen=True)
class Reshaped:
    """A function of codes (n, *shape) as one of flat codes (n, d)."""

    function: Callable[..., Any]
    shape: tuple[int, ...]

    def __call__(self, z: Tensor, **fixed: Any) -> Any:
        """Return what the function does."""
        if math.prod(self.shape) != z.shape[1]:
            required = f"of {z.shape[1]} numbers, as the codes have"
            raise ValueError(requirement("shape", required, self.shape))
        return self.function(z.reshape(z.shape[0], *self.shape), **fixed)


@dataclass(frozen=True)
class CodeShape:
    """The shape of one code in a call; None where codes are flat, and all stays as it is.

    Examples
    --------
    >>> import torch
    >>> images = torch.zeros(5, 3, 8, 8)
    >>> shape = CodeShape.of(images)
    >>> shape.flat("z", images).shape, shape.back(torch.zeros(5, 7, 192)).shape
    (torch.Size([5, 192]), torch.Size([5, 7, 3, 8, 8]))
    """

    sizes: tuple[int, ...] | None

    @classmethod
    def of(cls, value: object) -> CodeShape:
        """Return the shape of codes (n, ...), or of those of a curve or graph."""
        if hasattr(value, "code_shape"):
            return cls(value.code_shape)
        sizes = tuple(getattr(value, "shape", ()))
        return cls(sizes[1:] if len(sizes) > 2 else None)

    def metric(self, metric: Metric) -> Metric:
        """Return the metric of flat codes, whose functions get codes of this shape."""
        return metric if self.sizes is None else metric.shaped(self.sizes)

    def flat(self, name: str, value: object) -> Any:
        """Return codes (..., *shape) as (..., d), and curves without the shape."""
        if hasattr(value, "code_shape"):
            if value.code_shape != self.sizes:
                raise ValueError(requirement(name, f"of {self}", f"one of {value.code_shape}"))
            return value.flat() if hasattr(value, "flat") else value
        tensor = as_tensor(value)
        if self.sizes is None or not isinstance(tensor, Tensor):
            return value
        n = len(self.sizes)
        if tuple(tensor.shape[-n:]) != self.sizes:
            raise ValueError(requirement(name, f"of {self}", describe(tensor)))
        return tensor.flatten(-n)

    def back(self, result: T) -> T:
        """Return what was computed from flat codes in this shape: tensors (..., d), or results."""
        if self.sizes is None:
            return result
        if isinstance(result, Tensor):
            return result.unflatten(-1, self.sizes)
        return result.shaped(self) if isinstance(result, Result) else result

    def __str__(self) -> str:
        if self.sizes is None:
            return "flat codes, (n, d), as the first are"
        return f"codes of shape (n, {', '.join(map(str, self.sizes))}), as the first are"
