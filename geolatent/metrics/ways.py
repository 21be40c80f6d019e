"""Ways to take Jacobian-vector products besides forward mode, and the trial that each must pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from geolatent.checks import requirement
from geolatent.metrics.differences import Quotients
from geolatent.metrics.forward_mode import TakenError, jvp
from geolatent.metrics.independence import random_like
from geolatent.metrics.kernels import DIFFERENTIABLE_KERNELS

# nodes of a line on which values that are constant by pieces take more than so many levels
_STEP_NODES, _PLATEAUS = 65, 4


def double_backward(
    function: Callable[[Tensor], Tensor], z: Tensor, v: Tensor
) -> tuple[Tensor, Tensor]:
    """Return F(z) and J v as the derivative of u -> J^T u in the direction v."""
    differentiable = torch.is_grad_enabled() and (z.requires_grad or v.requires_grad)
    with DIFFERENTIABLE_KERNELS, torch.inference_mode(False), torch.enable_grad():
        point = z if z.requires_grad else z.detach().clone().requires_grad_()
        v = v.clone() if v.is_inference() else v
        value = function(point)
        if not value.requires_grad:
            return value, torch.zeros_like(value)
        cotangent = torch.zeros_like(value, requires_grad=True)
        (pulled,) = torch.autograd.grad(
            value, point, cotangent, create_graph=True, materialize_grads=True
        )
        if not pulled.requires_grad:
            return value, torch.zeros_like(value)
        (product,) = torch.autograd.grad(
            pulled, cotangent, v, create_graph=differentiable, materialize_grads=True
        )
    if not differentiable:
        return value.detach(), product.detach()
    return value, product


class ReversedTwice(torch.autograd.Function):
    """F(z) and J v, whose own derivatives are reverse mode's of <J^T w, v>, w a cotangent of J v.

    For functions where torch's rules for derivatives of J v are missing or wrong, as those of fused
    normalisations are: differentiated twice in reverse mode, F is on the beaten track. Parameters
    get no gradients in this way, and what is differentiated once more is refused.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        z: Tensor,
        v: Tensor,
        function: Callable[[Tensor], Tensor],
        product: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        name: str,
    ) -> tuple[Tensor, Tensor]:
        ctx.function, ctx.name = function, name
        ctx.save_for_backward(z, v)
        value, along = product(z.detach(), v.detach())
        return value.detach(), along.detach()

    @staticmethod
    def backward(  # noqa: D102
        ctx: Any, of_value: Tensor, of_product: Tensor
    ) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            required = (
                "differentiable three times by right rules, in place of fused layers of torch such "
                "as LayerNorm or InstanceNorm the same in plain operations"
            )
            found = "one whose second derivatives only reverse mode gives"
            raise ValueError(requirement(ctx.name, required, found))
        z, v = ctx.saved_tensors
        with DIFFERENTIABLE_KERNELS, torch.enable_grad():
            point = z.detach().clone().requires_grad_()
            value = ctx.function(point)
            options = {"retain_graph": True, "materialize_grads": True}
            (by_value,) = torch.autograd.grad(value, point, of_value, **options)
            (pulled,) = torch.autograd.grad(value, point, of_product, create_graph=True, **options)
            along = (pulled * v.detach()).sum()
            if along.requires_grad:
                (curved,) = torch.autograd.grad(along, point, materialize_grads=True)
                by_value = by_value + curved
        return by_value.detach(), pulled.detach(), None, None, None


def second_derivative(
    function: Callable[[Tensor], Tensor], z: Tensor, v: Tensor, *, forward: bool = True
) -> Tensor:
    """Return d^2/de^2 f(z + e v) at e = 0 of a function (n, d) -> (n,), row by row.

    Forward mode twice; or reverse mode twice, also while another thread uses forward mode.
    """

    def slope(point: Tensor) -> Tensor:
        return jvp(function, point, v)[1]

    if forward:
        with contextlib.suppress(TakenError):
            return jvp(slope, z, v)[1]
    differentiable = torch.is_grad_enabled() and (z.requires_grad or v.requires_grad)
    with DIFFERENTIABLE_KERNELS, torch.inference_mode(False), torch.enable_grad():
        point = z.clone() if z.requires_grad else z.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(point).sum(), point, create_graph=True)
        (curved,) = torch.autograd.grad(
            (gradient * v).sum(), point, create_graph=differentiable, materialize_grads=True
        )
    return (curved * v).sum(1) if differentiable else (curved * v).sum(1).detach()


class Trial:
    """What products J v must agree with at points: reverse mode's J^T u, and difference quotients.

    Parameters
    ----------
    function
        F: (n, ...) -> (n, D), each row by itself.
    points
        Shape (n, ...).
    rounding
        Relative rounding of F.
    """

    def __init__(
        self, function: Callable[[Tensor], Tensor], points: Tensor, rounding: float
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self._function = function
        self.points = points
        self.tangents = random_like(points, generator)
        with DIFFERENTIABLE_KERNELS, torch.inference_mode(False), torch.enable_grad():
            point = points.clone().requires_grad_()
            value = function(point)
            self._cotangents = random_like(value, generator)
            if value.requires_grad:
                (self._pulled,) = torch.autograd.grad(
                    value, point, self._cotangents, materialize_grads=True
                )
            else:
                self._pulled = torch.zeros_like(points)
        self.value = value.detach()
        self._rounding = rounding
        self._quotients = Quotients(function, points, self.tangents, value, rounding)

    def complaint(self, product: Callable[[Tensor, Tensor], Tensor], calls: int = 1) -> str | None:
        """Say what is wrong with products J v at the points, taken so many times, or None."""
        try:
            with torch.no_grad():
                for _ in range(calls):
                    products = product(self.points, self.tangents)
        except (NotImplementedError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            return first_line(error)
        return (
            self._not_adjoint(products)
            or self._quotients.contradict(products)
            or self._stepped(products)
        )

    def _not_adjoint(self, products: Tensor) -> str | None:
        """Say where <u, J v> is not <J^T u, v>, row by row, or None."""
        product = (self._cotangents * products).double().sum(1)
        adjoint = (self._pulled * self.tangents).double().flatten(1).sum(1)
        # the entries of u and v are of size 1
        size = products.double().norm(dim=1) + self._pulled.double().flatten(1).norm(dim=1)
        eps = self._rounding
        # large derivatives that cancel, as before a normalisation, leave the rounding of the values
        limit = max(1e-3, 4.0 * eps**0.5) * size + 8.0 * eps * self.value.double().norm(dim=1)
        wrong = ((product - adjoint).abs() > limit) & size.isfinite()
        if not wrong.any():
            return None
        row = int(wrong.nonzero()[0])
        return f"<u, J v> = {float(product[row]):.3g} but <J^T u, v> = {float(adjoint[row]):.3g}"

    def _stepped(self, products: Tensor) -> str | None:
        """Say whether F is made of steps: derivatives vanish all along a line, values do not stay.

        Saturated outputs may have vanishing derivatives too, but on few plateaus.
        """
        if bool(products.any()) or bool(self._pulled.any()):
            return None
        t = torch.linspace(0.0, 100.0, _STEP_NODES, dtype=torch.float64)
        move = (self.points[1:2] - self.points[:1]).double()
        line = self.points[:1].double() + t.to(move).reshape(-1, *[1] * (move.ndim - 1)) * move
        telling = 0
        with DIFFERENTIABLE_KERNELS, torch.inference_mode(False), torch.enable_grad():
            point = line.to(self.points).requires_grad_()
            value = self._function(point)
            if value.requires_grad:
                (pulled,) = torch.autograd.grad(value.sum(), point, materialize_grads=True)
                if bool(pulled[0].any()):  # the first of the points, where they vanished
                    return "derivatives that vanish or not with the rest of the batch"
                telling = int(pulled.flatten(1).any(1).sum())
        plateaus = value.detach().unique(dim=0).shape[0]
        # differences see a step here and there; what saturates has few levels beside its slopes
        if plateaus <= _PLATEAUS + 4 * telling:
            return None
        return f"derivatives of 0, though its values take {plateaus} levels on a line, as rounded"


def differing(one: Tensor, other: Tensor, rounding: float) -> str | None:
    """Say where two ways to the same derivatives (n, ...) differ beyond rounding, or None."""
    gap = (one - other).double().flatten(1).norm(dim=1)
    size = one.double().flatten(1).norm(dim=1) + other.double().flatten(1).norm(dim=1)
    # derivatives of derivatives lose digits: what is small by the side of the rest is rounding
    largest = size.nan_to_num(0.0, 0.0, 0.0).max()
    limit = (
        min(0.1, max(1e-3, 4.0 * rounding**0.5)) * size + 0.5 * min(0.1, rounding**0.5) * largest
    )
    wrong = (gap > limit) & size.isfinite()
    if not wrong.any():
        return None
    row = int(wrong.nonzero()[0])
    return f"gradients of J v that differ by {float(gap[row] / size[row]):.1%} between two ways"


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its kind."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory was short; on the CPU torch has no error of its own for it."""
    kinds = torch.OutOfMemoryError | MemoryError
    return isinstance(error, kinds) or "DefaultCPUAllocator" in str(error)
