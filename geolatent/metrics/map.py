"""Jacobian-vector products of a batched map by forward-mode autograd, with fall-backs."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from geolatent.callables import is_scripted
from geolatent.checks import (
    Buffers,
    check_function,
    check_placement,
    check_unquantised,
    describe,
    requirement,
    returned,
)
from geolatent.metrics.differences import wrong_gradient
from geolatent.metrics.forward_mode import LOCK, TakenError, is_transformed, jvp, taken
from geolatent.metrics.independence import check_rows, neighbour, random_like
from geolatent.metrics.kernels import DIFFERENTIABLE_KERNELS
from geolatent.metrics.ways import (
    ReversedTwice,
    Trial,
    differing,
    double_backward,
    first_line,
    is_out_of_memory,
)

_Products = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
# how often a product is taken before it is believed
_CALLS = 3
# what is asked of a map
_DIFFERENTIABLE = (
    "differentiable, by rules that belong to its values: without detach, torch.no_grad, NumPy or "
    "rounding inside, custom functions with a differentiable backward (or wrapped in "
    "`geolatent.by_differences`, where its values are smooth)"
)
# rows of Jacobians taken at once, where they are limited
_ROWS_AT_ONCE: ContextVar[int | None] = ContextVar("rows_at_once", default=None)


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

    Gradients of products are torch's where reverse mode, twice over, has the same; else they come
    from it, as for fused normalisations (`ReversedTwice`). All passes run on kernels that can be
    differentiated. A third way is for those who ask for it: `geolatent.by_differences`.

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

    # what the first calls tell
    _output_shape: torch.Size | None = None
    _forward_mode = True
    _batched_columns = True
    _tested = False
    _double_backward_tested = False
    _reversed_twice: bool | None = None
    _rounding = 0.0
    saved_bytes = 0

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

    def __getstate__(self) -> dict[str, Any]:
        """Return what was given: copies and other processes learn the rest at their first calls."""
        given = ("function", "name", "n_outputs", "parts")
        return {name: getattr(self, name) for name in given}

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
    def row_bytes(self) -> int:
        """Bytes that one row makes on the way to its output, as far as `check` has seen them."""
        return self.saved_bytes + sum(part.row_bytes for part in self.parts)

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
        joined = flat[0] if self.n_outputs == 1 else torch.cat(flat, dim=1)
        if not torch.is_grad_enabled() and not is_transformed():
            joined = joined.detach()  # a decoder may have turned gradients on by itself
        # sums of squares are made in the type of the codes, if the map's is coarser
        return joined.to(torch.promote_types(joined.dtype, z.dtype))

    def apply(self, z: Tensor) -> Any:
        """Return what the function itself returns for z, which it may overwrite."""
        with DIFFERENTIABLE_KERNELS:
            return self.function(z.clone())

    def check(self, z_name: str, z: Tensor) -> Tensor:
        """Evaluate F on codes from outside and return F(z).

        An error that comes from codes on another device or of another dtype than the parameters
        is told as such, any other as one that these codes met. The mode of the modules is checked
        again: it may have changed. The first call also finds out how F can be differentiated.
        """
        check_function(self.name, self.function)
        if not self._tested:
            check_unquantised(self.name, self.function)
        buffers = None if self._tested else Buffers.behind(self.function)
        try:
            with self.explaining(z_name, z), torch.inference_mode(False), torch.enable_grad():
                value = self(z.detach().clone().requires_grad_())
        finally:
            changed = [] if buffers is None else buffers.restore()
        if changed:
            required = "one whose buffers stay as they are (call eval() on modules)"
            found = f"one that changes {', '.join(changed)} when it is called"
            raise ValueError(requirement(self.name, required, found))
        if not value.requires_grad:
            # forward mode sees through torch.no_grad, reverse mode does not: no silent mixture
            raise ValueError(requirement(self.name, _DIFFERENTIABLE, "one without a gradient"))
        if not self._tested:
            self._rounding = _coarsest(value)
            self.saved_bytes = _bytes_of_rows(value, len(z)) // len(z)
        value = value.detach()
        check_rows(
            self.name,
            self,
            z[:1].detach(),
            value[:1],
            rounding=self.rounding(value),
            thorough=not self._tested,
        )
        if not self._tested:
            with LOCK:
                self._choose_way(z[:1].detach())
        return value

    @contextlib.contextmanager
    def explaining(self, z_name: str, z: Tensor) -> Iterator[None]:
        """Turn what F raises for codes from outside into an error that names them."""
        try:
            yield
        except (RuntimeError, IndexError, AssertionError) as error:
            if is_out_of_memory(error):
                raise
            check_placement(self.name, self.function, z_name, z)
            told = f"{type(error).__name__}: {first_line(error)}"
            found = f"{describe(z)}, of width {z[0].numel()}, for which it raises {told}"
            raise ValueError(requirement(z_name, f"what `{self.name}` takes", found)) from error

    def rounding(self, values: Tensor) -> float:
        """Return the relative rounding of F's values: of the coarsest type on the way to them."""
        parts = (part.rounding(values) for part in self.parts)
        return max(torch.finfo(values.dtype).eps, self._rounding, *parts, 0.0)

    def _choose_way(self, z: Tensor) -> None:
        """Take the first way of differentiating whose products are those of the values.

        At a code and one near it. Products are taken several times: what optimises itself while it
        is called may lose its tangents only then. TorchScript does, at a call that cannot be
        foretold.
        """
        if taken():
            return  # of forward mode nothing can be told now
        try:
            trial = Trial(self, torch.cat([z, neighbour(z)]), self.rounding(z))
        except (NotImplementedError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            found = f"one with {first_line(error)}"
            raise ValueError(requirement(self.name, _DIFFERENTIABLE, found)) from error

        def batched(points: Tensor, v: Tensor) -> Tensor:
            return torch.func.vmap(lambda w: jvp(self, points, w)[1])(torch.stack([v, -v]))[0]

        reason = "TorchScript drops tangents" if is_scripted(self.function) else None
        if self._forward_mode and reason is None:
            reason = trial.complaint(lambda z, v: jvp(self, z, v)[1], _CALLS)
            if reason is None and self._batched_columns:
                unbatched = trial.complaint(batched)
                if unbatched is not None and not taken():
                    self._leave_batches(unbatched)
        if reason is not None or not self._forward_mode:
            self._check_double_backward(trial)
            if taken():
                return
            if self._forward_mode:
                self._leave_forward_mode(str(reason))
        # a code where nothing is finite has told nothing
        self._tested = bool(trial.value.isfinite().all(1).any())

    def _check_double_backward(self, trial: Trial) -> None:
        failure = trial.complaint(lambda z, v: double_backward(self, z, v)[1], _CALLS)
        if failure is not None:
            raise ValueError(requirement(self.name, _DIFFERENTIABLE, f"one with {failure}"))
        self._double_backward_tested = True

    def _leave_forward_mode(self, reason: str) -> None:
        self._forward_mode = False
        _warn(f"`{self.name}` has no forward-mode derivative; using double backward", reason)

    def _leave_batches(self, reason: str) -> None:
        self._batched_columns = False
        _warn(f"`{self.name}` cannot be batched by vmap; repeating rows", reason)

    def jvp(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return F(z) and J_F(z) v, each (n, D), both differentiable in z and v."""
        if self._differentiates_by_reverse(z, v):
            found: tuple[Tensor, Tensor] = ReversedTwice.apply(z, v, self, self._jvp, self.name)
            return found
        return self._jvp(z, v)

    def _jvp(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if not self.forward_mode:
            return double_backward(self, z, v)
        # under the lock, so that what is decided for good here is not another thread's doing
        with LOCK:
            try:
                return jvp(self, z, v)
            except (NotImplementedError, RuntimeError) as error:
                if is_out_of_memory(error):
                    raise
                # only where the other way works was forward mode to blame
                try:
                    result = double_backward(self, z, v)
                    if not self._double_backward_tested:
                        points = z.detach()
                        self._check_double_backward(Trial(self, points, self.rounding(points)))
                except RuntimeError:
                    raise error from None
                if not _passing(error):
                    self._leave_forward_mode(first_line(error))
                return result

    def _differentiates_by_reverse(self, z: Tensor, v: Tensor | None = None) -> bool:
        """Return whether products are to be differentiated, and not by torch's rules for it."""
        asked = z.requires_grad or (v is not None and v.requires_grad)
        if not torch.is_grad_enabled() or not asked or is_transformed():
            return False
        if self._reversed_twice is None:
            with LOCK:
                self._choose_derivative_of_products(z[:1].detach())
        return bool(self._reversed_twice)

    def _choose_derivative_of_products(self, z: Tensor) -> None:
        """Take torch's gradients of J v where they are those that reverse mode has twice over."""
        points = torch.cat([z, neighbour(z)])
        generator = torch.Generator().manual_seed(1)
        v = random_like(points, generator)
        rounding = self.rounding(points)

        def reversed_twice(z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            found: tuple[Tensor, Tensor] = ReversedTwice.apply(z, v, self, self._jvp, self.name)
            return found

        def gradient(jvp: _Products) -> Tensor:
            with torch.inference_mode(False), torch.enable_grad():
                point = points.clone().requires_grad_()
                product = jvp(point, v)[1]
                w = random_like(product, torch.Generator().manual_seed(2))
                if not product.requires_grad:
                    return torch.zeros_like(points)
                (by_z,) = torch.autograd.grad((w * product).sum(), point, materialize_grads=True)
            return by_z

        def complaint(jvp: _Products) -> str | None:
            def products(codes: Tensor) -> Tensor:
                return jvp(codes, v.repeat(len(codes) // len(v), 1))[1]

            return _told(lambda: wrong_gradient(products, points, rounding))

        def disagree() -> str | None:
            return differing(gradient(self._jvp), gradient(reversed_twice), rounding)

        reason = _told(disagree)
        if reason is not None:
            failure = complaint(reversed_twice)
            # where reverse mode cannot, torch's own way may
            if failure is not None and complaint(self._jvp) is None:
                reason = None
            elif failure is not None:
                required = "twice differentiable, by rules that belong to its values"
                raise ValueError(requirement(self.name, required, f"one with {failure}"))
        self._reversed_twice = reason is not None
        if reason is not None:
            _warn(
                f"`{self.name}` has no right forward-mode second derivative; using reverse", reason
            )

    def columns(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return F(z), (n, D), and the Jacobian by columns, (d, n, D): entry k is dF / dz_k.

        Within `rows_at_once`, so many of the n d rows as it says at once, n at least.
        """
        n, d = z.shape
        rows = _ROWS_AT_ONCE.get()
        directions = torch.eye(d, dtype=z.dtype, device=z.device)
        parts = directions.split(d if rows is None else min(d, max(1, rows // n)))
        found = [self._columns(z, part) for part in parts]
        if len(found) == 1:
            return found[0]
        return found[0][0], torch.cat([columns for _, columns in found])

    def _columns(self, z: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Return F(z) and its derivatives in directions (m, d), (m, n, D)."""
        if not self.batched_columns or self._differentiates_by_reverse(z):
            return self._columns_by_rows(z, directions)
        with LOCK:
            try:
                return self._columns_by_vmap(z, directions)
            except (NotImplementedError, RuntimeError) as error:
                if is_out_of_memory(error):
                    raise
                result = self._columns_by_rows(z, directions)
                if self._forward_mode and not _passing(error):  # else that has been warned of
                    self._leave_batches(first_line(error))
                return result

    def _columns_by_vmap(self, z: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        def column(direction: Tensor) -> tuple[Tensor, Tensor]:
            return jvp(self, z, direction.expand_as(z))

        # the primal pass does not depend on the direction, so vmap runs it once
        values, columns = torch.func.vmap(column, out_dims=(0, 0))(directions)
        return values[0], columns

    def _columns_by_rows(self, z: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        (n, d), m = z.shape, len(directions)
        repeated = directions[:, None].expand(m, n, d).reshape(m * n, d)
        values, columns = self.jvp(z.repeat(m, 1), repeated)
        return values[:n], columns.reshape(m, n, -1)


@contextlib.contextmanager
def rows_at_once(rows: int | None) -> Iterator[None]:
    """Let columns of Jacobians be taken in parts of so many rows, in this thread; None for all."""
    token = _ROWS_AT_ONCE.set(rows)
    try:
        yield
    finally:
        _ROWS_AT_ONCE.reset(token)


def _told(trial: Callable[[], str | None]) -> str | None:
    """Return what a trial says, or the error that it ends with."""
    try:
        return trial()
    except (NotImplementedError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        return first_line(error)


def _coarsest(value: Tensor) -> float:
    """Return the largest rounding of the types of what a tensor's graph was computed from."""
    kinds = (made.dtype for made in _intermediates(value) if made.dtype.is_floating_point)
    return max((torch.finfo(kind).eps for kind in kinds), default=torch.finfo(value.dtype).eps)


def _bytes_of_rows(value: Tensor, n: int) -> int:
    """Return the bytes of all that a tensor's graph was computed from which has n rows."""
    rows = (made for made in _intermediates(value) if tuple(made.shape[:1]) == (n,))
    return sum(math.prod(made.shape) * made.dtype.itemsize for made in rows)


def _intermediates(value: Tensor) -> Iterator[Any]:
    """Yield shape and dtype of all tensors in a tensor's graph, its own among them."""
    nodes, seen = [value.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield from getattr(node, "_input_metadata", ())
        nodes.extend(before for before, _ in node.next_functions)


def _passing(error: Exception) -> bool:
    """Return whether forward mode may have failed because another thread uses it."""
    return isinstance(error, TakenError) or taken()


def _warn(what: str, reason: str) -> None:
    warnings.warn(f"{what} (slower, same result). Reason: {reason}", UserWarning, stacklevel=4)
