"""Jacobian-vector products of a batched map by forward-mode autograd, with fall-backs."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from geolatent.callables import is_scripted
from geolatent.checks import Buffers, check_function, check_placement, requirement, returned
from geolatent.metrics.differences import Quotients
from geolatent.metrics.forward_mode import LOCK, TakenError, jvp, taken
from geolatent.metrics.independence import check_rows, neighbour, random_like

# how often a product is taken before it is believed
_CALLS = 3


class Map:
    """A batched map z -> F(z) from (n, d) to (n, D), with its Jacobian-vector products.

    Outputs of any shape (n, ...) are flattened; several outputs (a tuple of ``n_outputs`` tensors
    of one shape, as from a Gaussian decoder) are joined along D. The rows of F must not depend on
    one another.

    Products are taken in forward mode (`torch.func.jvp`), whose cost does not depend on D. An
    operation without forward-mode rules falls back to differentiating a vector-Jacobian product
    with respect to its cotangent ("double backward"), and one that `torch.func.vmap` cannot batch
    to repeated rows; each with one warning for the life of the map. While another thread uses
    torch's forward mode by itself, double backward takes its place for the call.

    Parameters
    ----------
    function
        The map: an `nn.Module` or any callable.
    name
        What to call it in messages.
    n_outputs
        Number of tensors it returns.
    parts
        Maps that it is made of: what they cannot do, it cannot.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        name: str,
        n_outputs: int = 1,
        parts: Sequence[Map] = (),
    ) -> None:
        self.function = check_function(name, function)
        self.name = name
        self.n_outputs = n_outputs
        self.parts = tuple(parts)
        self._output_shape: torch.Size | None = None
        self._forward_mode = True
        self._batched_columns = True
        self._tested = False

    @property
    def forward_mode(self) -> bool:
        """Whether products are taken in forward mode, as far as is known."""
        return self._forward_mode and all(part.forward_mode for part in self.parts)

    @property
    def batched_columns(self) -> bool:
        """Whether columns are taken by forward mode under vmap."""
        batched = self._batched_columns and self._forward_mode
        return batched and all(part.batched_columns for part in self.parts)

    @property
    def output_shape(self) -> torch.Size:
        """Shape of one output for one row, known after the first call."""
        if self._output_shape is None:
            raise RuntimeError(f"the shape of `{self.name}`'s output is known after the first call")
        return self._output_shape

    @property
    def is_known(self) -> bool:
        """Whether F was called, so that the shape of its output is known."""
        return self._output_shape is not None

    def width(self, z: Tensor) -> int:
        """Return D, the size of F(z) for one row; F is called where it was not before."""
        if not self.is_known:
            with torch.no_grad():
                self(z[:1])
        return self.n_outputs * self.output_shape.numel()

    def __call__(self, z: Tensor) -> Tensor:
        """Return F(z), shape (n, D)."""
        output = self.apply(z)
        wanted = "a floating-point tensor of shape (n, ...)"
        if self.n_outputs > 1:
            wanted = f"a tuple of {self.n_outputs} floating-point tensors of one shape (n, ...)"
            if not isinstance(output, tuple | list) or len(output) != self.n_outputs:
                raise TypeError(returned(self.name, wanted, output))
        parts = output if self.n_outputs > 1 else (output,)
        for part in parts:
            if not isinstance(part, Tensor) or not part.is_floating_point():
                raise TypeError(returned(self.name, wanted, part))
            if part.ndim == 0 or part.shape[0] != z.shape[0]:
                required = f"{wanted} for codes of shape {tuple(z.shape)}"
                raise ValueError(returned(self.name, required, part))
            if part.shape != parts[0].shape:
                raise ValueError(returned(self.name, wanted, output))
        self._output_shape = parts[0].shape[1:]
        flat = [part.flatten(1) if part.ndim > 1 else part[:, None] for part in parts]
        return flat[0] if self.n_outputs == 1 else torch.cat(flat, dim=1)

    def apply(self, z: Tensor) -> Any:
        """Return what the function itself returns for z, which it may overwrite."""
        return self.function(z.clone())

    def check(self, z_name: str, z: Tensor) -> Tensor:
        """Evaluate F on codes from outside and return F(z).

        An error that comes from codes on another device or of another dtype than the parameters
        is told as such. The mode of the modules is checked again: it may have changed. The first
        call also finds out how F can be differentiated.
        """
        check_function(self.name, self.function)
        buffers = None if self._tested else Buffers.behind(self.function)
        try:
            with torch.inference_mode(False), torch.enable_grad():
                value = self(z.detach().clone().requires_grad_())
        except RuntimeError:
            check_placement(self.name, self.function, z_name, z)
            raise
        finally:
            changed = [] if buffers is None else buffers.restore()
        if changed:
            required = "one whose buffers stay as they are (call eval() on modules)"
            found = f"one that changes {', '.join(changed)} when it is called"
            raise ValueError(requirement(self.name, required, found))
        if not value.requires_grad:
            # forward mode sees through torch.no_grad, reverse mode does not: no silent mixture
            required = "differentiable in its input, without torch.no_grad, detach or NumPy inside"
            raise ValueError(requirement(self.name, required, "one without a gradient"))
        value = value.detach()
        check_rows(self.name, self, z[:1].detach(), value[:1], thorough=not self._tested)
        if not self._tested:
            with LOCK:
                self._choose_way(z[:1].detach())
        return value

    def _choose_way(self, z: Tensor) -> None:
        """Take the first way of differentiating whose products are those of the values.

        At a code and one near it, J v must be adjoint to reverse mode's J^T u and agree with a
        difference quotient. J v is taken several times: what optimises itself while it is called
        may lose its tangents only then. TorchScript does, at a call that cannot be foretold.
        """
        generator = torch.Generator().manual_seed(0)
        points = torch.cat([z, neighbour(z)])
        v = random_like(points, generator)
        with torch.inference_mode(False), torch.enable_grad():
            point = points.clone().requires_grad_()
            value = self(point)
            u = random_like(value, generator)
            (pulled,) = torch.autograd.grad(value, point, u, materialize_grads=True)
        quotients = Quotients(self, points, v, value)

        def complaint(product: Callable[[], Tensor], calls: int) -> str | None:
            try:
                with torch.no_grad():
                    for _ in range(calls):
                        products = product()
            except torch.OutOfMemoryError:
                raise
            except (NotImplementedError, RuntimeError) as error:
                return _first_line(error)
            contradiction = _not_adjoint(value, products, u, pulled, v)
            return contradiction or quotients.contradict(products)

        def batched() -> Tensor:
            return torch.func.vmap(lambda w: jvp(self, points, w)[1])(torch.stack([v, -v]))[0]

        if taken():
            return  # of forward mode nothing can be told now
        reason = "TorchScript drops tangents" if is_scripted(self.function) else None
        if self._forward_mode and reason is None:
            reason = complaint(lambda: jvp(self, points, v)[1], _CALLS)
            if reason is None and self._batched_columns:
                unbatched = complaint(batched, 1)
                if unbatched is not None and not taken():
                    self._leave_batches(unbatched)
        if reason is not None or not self._forward_mode:
            failure = complaint(lambda: _double_backward(self, points, v)[1], _CALLS)
            if failure is not None:
                required = (
                    "differentiable, by rules that belong to its values: without detach, torch."
                    "no_grad, NumPy or rounding inside, custom functions with a differentiable "
                    "backward"
                )
                raise ValueError(requirement(self.name, required, f"one with {failure}"))
            if taken():
                return
            if self._forward_mode:
                self._leave_forward_mode(str(reason))
        # a code where nothing is finite has told nothing
        self._tested = bool(value.isfinite().all(1).any())

    def _leave_forward_mode(self, reason: str) -> None:
        self._forward_mode = False
        _warn(f"`{self.name}` has no forward-mode derivative; using double backward", reason)

    def _leave_batches(self, reason: str) -> None:
        self._batched_columns = False
        _warn(f"`{self.name}` cannot be batched by vmap; repeating rows", reason)

    def jvp(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return F(z) and J_F(z) v, each (n, D), both differentiable in z and v."""
        if not self.forward_mode:
            return _double_backward(self, z, v)
        # under the lock, so that what is decided for good here is not another thread's doing
        with LOCK:
            try:
                return jvp(self, z, v)
            except torch.OutOfMemoryError:
                raise
            except (NotImplementedError, RuntimeError) as error:
                # only where the other way works was forward mode to blame
                try:
                    result = _double_backward(self, z, v)
                except RuntimeError:
                    raise error from None
                if not _passing(error):
                    self._leave_forward_mode(_first_line(error))
                return result

    def columns(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return F(z), (n, D), and the Jacobian by columns, (d, n, D): entry k is dF / dz_k."""
        if not self.batched_columns:
            return self._columns_by_rows(z)
        with LOCK:
            try:
                return self._columns_by_vmap(z)
            except torch.OutOfMemoryError:
                raise
            except (NotImplementedError, RuntimeError) as error:
                result = self._columns_by_rows(z)
                if self._forward_mode and not _passing(error):  # else that has been warned of
                    self._leave_batches(_first_line(error))
                return result

    def _columns_by_vmap(self, z: Tensor) -> tuple[Tensor, Tensor]:
        def column(direction: Tensor) -> tuple[Tensor, Tensor]:
            return jvp(self, z, direction.expand_as(z))

        # the primal pass does not depend on the direction, so vmap runs it once
        directions = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        values, columns = torch.func.vmap(column, out_dims=(0, 0))(directions)
        return values[0], columns

    def _columns_by_rows(self, z: Tensor) -> tuple[Tensor, Tensor]:
        n, d = z.shape
        directions = torch.eye(d, dtype=z.dtype, device=z.device)
        directions = directions[:, None].expand(d, n, d).reshape(d * n, d)
        values, columns = self.jvp(z.repeat(d, 1), directions)
        return values[:n], columns.reshape(d, n, -1)


def _double_backward(map_: Map, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return F(z) and J v as the derivative of u -> J^T u in the direction v."""
    differentiable = torch.is_grad_enabled() and (z.requires_grad or v.requires_grad)
    with torch.inference_mode(False), torch.enable_grad():
        point = z if z.requires_grad else z.detach().clone().requires_grad_()
        v = v.clone() if v.is_inference() else v
        value = map_(point)
        if not value.requires_grad:
            return value, torch.zeros_like(value)
        cotangent = torch.zeros_like(value, requires_grad=True)
        (pulled,) = torch.autograd.grad(value, point, cotangent, create_graph=True)
        if not pulled.requires_grad:
            return value, torch.zeros_like(value)
        (product,) = torch.autograd.grad(
            pulled, cotangent, v, create_graph=differentiable, materialize_grads=True
        )
    if not differentiable:
        return value.detach(), product.detach()
    return value, product


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
    with torch.inference_mode(False), torch.enable_grad():
        point = z.clone() if z.requires_grad else z.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(point).sum(), point, create_graph=True)
        (curved,) = torch.autograd.grad(
            (gradient * v).sum(), point, create_graph=differentiable, materialize_grads=True
        )
    return (curved * v).sum(1) if differentiable else (curved * v).sum(1).detach()


def _not_adjoint(
    value: Tensor, products: Tensor, u: Tensor, pulled: Tensor, v: Tensor
) -> str | None:
    """Say where <u, J v> is not <J^T u, v>, row by row, or None."""
    product = (u * products).double().sum(1)
    adjoint = (pulled * v).double().flatten(1).sum(1)
    # the entries of u and v are of size 1
    size = products.double().norm(dim=1) + pulled.double().flatten(1).norm(dim=1)
    eps = torch.finfo(v.dtype).eps
    # large derivatives that cancel, as before a normalisation, leave the rounding of the values
    limit = max(1e-3, 4.0 * eps**0.5) * size + 8.0 * eps * value.detach().double().norm(dim=1)
    wrong = ((product - adjoint).abs() > limit) & size.isfinite()
    if not wrong.any():
        return None
    row = int(wrong.nonzero()[0])
    return f"<u, J v> = {float(product[row]):.3g} but <J^T u, v> = {float(adjoint[row]):.3g}"


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _passing(error: Exception) -> bool:
    """Return whether forward mode may have failed because another thread uses it."""
    return isinstance(error, TakenError) or taken()


def _warn(what: str, reason: str) -> None:
    warnings.warn(f"{what} (slower, same result). Reason: {reason}", UserWarning, stacklevel=4)
