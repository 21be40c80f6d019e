"""A metric from a function that gives its tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from geolatent.checks import (
    check_function,
    check_integer,
    parameter_behind,
    requirement,
    returned,
)
from geolatent.metrics.base import Metric, indefinite
from geolatent.metrics.differences import check_gradient
from geolatent.metrics.independence import check_rows, neighbour
from geolatent.metrics.kernels import DIFFERENTIABLE_KERNELS

# codes of one call at which a tensor field is looked at
_CHECKED_CODES = 256


class TensorMetric(Metric):
    """A metric given by its tensor field.

    Parameters
    ----------
    fn
        (n, d) -> (n, d, d), symmetric positive definite matrices, differentiable. Where a solve
        meets one with a negative eigenvalue, its status is ``INDEFINITE_METRIC``.
    dim
        Latent dimension d.

    Raises
    ------
    TypeError, ValueError
        At the first use, where ``fn`` returns something else than symmetric (n, d, d), has a
        gradient that does not fit its values, or a negative eigenvalue at a code of the call.

    Examples
    --------
    >>> half_plane = TensorMetric(
    ...     lambda z: torch.eye(2).expand(len(z), 2, 2) / z[:, 1, None, None] ** 2, dim=2
    ... )
    >>> half_plane.quadratic(torch.tensor([[0.0, 2.0]]), torch.tensor([[2.0, 0.0]]))
    tensor([1.])
    """

    quadratic_cost = "forward"

    def __init__(self, fn: Callable[[Tensor], Tensor], dim: int) -> None:
        self.dim = check_integer("dim", dim)
        self.fn: Callable[[Tensor], Any] = check_function("fn", fn)

    @property
    def like(self) -> Tensor | None:
        """A parameter of ``fn``, if any."""
        return parameter_behind(self.fn)

    def tensor_rows(self, dim: int) -> int:  # noqa: ARG002
        """Forward rows that one metric tensor counts as: it is one evaluation of ``fn``."""
        return 1

    def row_width(self, z: Tensor) -> int:
        """Return the size of a tensor."""
        return z.shape[1] ** 2

    def _wrap(self, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        TensorMetric.__init__(self, wrapper(self.fn), self.dim)  # type: ignore[arg-type]

    def check(self, name: str, z: Tensor) -> None:
        """Evaluate ``fn`` on codes from outside: symmetric, with a gradient that is its own."""
        code = z[:1].detach()
        with torch.no_grad():
            tensor = self._tensor(torch.cat([code, neighbour(code)]))
            alone = self._tensor(code)
        skew = float((tensor - tensor.mT).abs().max())
        if skew > 1e-3 * float(tensor.abs().max()):
            required = "a callable returning symmetric matrices"
            raise ValueError(requirement("fn", required, f"one with |G - G^T| up to {skew:.3g}"))
        check_rows("fn", self._tensor, code, alone, thorough=not self._tested)
        if not self._tested:
            check_gradient("fn", self._tensor, code)
            self._tested = True
        self.check_definite(name, z)

    def check_definite(self, name: str, z: Tensor) -> None:
        """Raise where ``fn`` has a negative eigenvalue at one of the first codes."""
        with torch.no_grad():
            tensors = self._tensor(z[:_CHECKED_CODES].detach())
        wrong = tensors[indefinite(tensors)]
        if len(wrong):
            values = torch.linalg.eigvalsh(wrong[0].double())
            required = "a callable returning positive definite matrices"
            found = f"one with the eigenvalues {float(values[0]):.3g} to {float(values[-1]):.3g}"
            raise ValueError(requirement("fn", required, f"{found} at a code of `{name}`"))

    def _tensor(self, z: Tensor) -> Tensor:
        with DIFFERENTIABLE_KERNELS:
            tensor = self.fn(z.clone())
        shape = (z.shape[0], self.dim, self.dim)
        required = f"a floating-point tensor of shape {shape}"
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise TypeError(returned("fn", required, tensor))
        if tensor.shape != shape:
            raise ValueError(returned("fn", required, tensor))
        return tensor

    def _quadratic(self, z: Tensor, v: Tensor) -> Tensor:
        tensor = self._tensor(z)
        square = torch.einsum("ni,nij,nj->n", v, tensor, v)
        # what is negative by the rounding of the sum is zero, and keeps its gradient
        with torch.no_grad():
            terms = torch.einsum("ni,nij,nj->n", v.abs(), tensor.abs(), v.abs())
            rounding = 2.0 * tensor.shape[-1] * torch.finfo(tensor.dtype).eps * terms
            excess = torch.where(square >= -rounding, square.clamp_max(0.0), 0.0)
        return square - excess
