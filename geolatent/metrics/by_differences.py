"""Derivatives of a function by central differences of its values, for those who ask for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from geolatent.checks import check_function, check_number, requirement, returned


class ByDifferences:
    """A function whose derivatives are central differences; `by_differences` makes it.

    Attributes
    ----------
    function
        F: (n, d) -> (n, ...), or a tuple of such.
    step
        Relative step, or None for the cube root of the precision of the codes.
    """

    def __init__(self, function: Callable[[Tensor], Any], step: float | None) -> None:
        self.function = function
        self.step = step
        self.__wrapped__ = function  # the modules behind it are those behind this

    def __call__(self, z: Tensor) -> Any:
        """Return F(z), with derivatives of every kind."""
        outputs = _Function.apply(z, self)
        return outputs if len(outputs) > 1 else outputs[0]

    def values(self, z: Tensor) -> tuple[Tensor, ...]:
        """Return F(z), a tuple of tensors without gradients."""
        with torch.no_grad():
            found = self.function(z.detach().clone())
        outputs = tuple(found) if isinstance(found, tuple | list) else (found,)
        for output in outputs:
            if not isinstance(output, Tensor) or not output.is_floating_point():
                required = (
                    "a floating-point tensor, or a tuple of such (torch.from_numpy makes one)"
                )
                raise TypeError(returned("function", required, output))
        return tuple(output.detach() for output in outputs)

    def steps(self, z: Tensor) -> Tensor:
        """Return the steps at codes (n, ...), (n, 1, ...)."""
        step = torch.finfo(z.dtype).eps ** (1.0 / 3.0) if self.step is None else self.step
        return step * _per_row(z.detach().flatten(1).abs().amax(1).clamp_min(1.0), z)

    def quotient(self, z: Tensor, v: Tensor, steps: Tensor) -> tuple[Tensor, ...]:
        """Return (F(z + h v) - F(z - h v)) / 2 h for steps h (n, 1, ...); itself differentiable."""
        above, below = _Function.apply(z + steps * v, self), _Function.apply(z - steps * v, self)
        twice = 2.0 * steps.flatten()
        return tuple((a - b) / _per_row(twice, a) for a, b in zip(above, below, strict=True))


def _per_row(values: Tensor, like: Tensor) -> Tensor:
    """Give values (n,) the axes of a tensor (n, ...)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


class _Function(torch.autograd.Function):
    """F for autograd: either mode's derivatives are differences of F, whose own are the same."""

    @staticmethod
    def forward(z: Tensor, by: ByDifferences) -> tuple[Tensor, ...]:
        return by.values(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ByDifferences], _output: object) -> None:
        z, ctx.by = inputs
        ctx.save_for_backward(z)
        ctx.save_for_forward(z)

    @staticmethod
    def jvp(ctx: Any, v: Tensor, _: None) -> tuple[Tensor, ...]:
        (z,) = ctx.saved_tensors
        size = v.detach().flatten(1).norm(dim=1)
        # so long in the space of codes, whatever the size of v
        steps = ctx.by.steps(z) / _per_row(torch.where(size > 0, size, 1.0), z)
        return ctx.by.quotient(z, v, steps)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        steps = ctx.by.steps(z)
        slopes = []
        for axis in torch.eye(z[0].numel(), dtype=z.dtype, device=z.device):
            quotients = ctx.by.quotient(z, axis.reshape(z[:1].shape).expand_as(z), steps)
            parts = zip(cotangents, quotients, strict=True)
            slopes.append(sum((u * q).flatten(1).sum(1) for u, q in parts))
        return torch.stack(slopes, dim=1).reshape(z.shape).to(z.dtype), None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, None], z: Tensor, by: ByDifferences
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        batched = z.movedim(in_dims[0], 0)  # type: ignore[arg-type]
        outputs = _Function.apply(batched.flatten(0, 1), by)
        shape = (info.batch_size, batched.shape[1])
        found = tuple(output.unflatten(0, shape) for output in outputs)
        return found, (0,) * len(found)


def by_differences(
    function: Callable[[Tensor], Any], *, step: float | None = None
) -> ByDifferences:
    r"""Return a function whose derivatives are central differences of its values.

        J v = (F(z + h v) - F(z - h v)) / (2 h),    h = step max(1, max_i |z_i|) / |v|

    For decoders that torch cannot differentiate, or not in the way that metrics need: written in
    NumPy or in another library, with custom functions whose backward is not differentiable. The
    result goes wherever a decoder or a feature map does. F must be smooth at the scale of the step:
    the differences of rounded or quantised values are not derivatives.

    The error of a derivative is about h^2 |F'''| / 6 + eps |F| / h: at the default step some 1e-10
    of F's size in float64, where codes should be, and 1e-4 in float32. Gradients of v^T G v, as
    some solvers and the exponential map need, are differences of differences: some 1e-5 of the size
    in float64.

    A Jacobian-vector product takes 2 rows more than the value, a gradient or a whole Jacobian 2 d,
    which `Evaluations` count as if torch had taken them.

    Parameters
    ----------
    function
        F: (n, d) -> (n, ...), or (n, ...) -> (n, ...), a tensor or a tuple of tensors, each row by
        itself. It gets a plain tensor, of which ``numpy()`` may be taken.
    step
        Relative step; by default the cube root of the precision of the codes, 6e-6 in float64.

    Returns
    -------
    ByDifferences
        Takes and returns what ``function`` does.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not what it should be, or, at the first use, where ``function`` returns
        something else than tensors.

    Examples
    --------
    >>> import numpy as np
    >>> from geolatent import PullbackMetric
    >>> def decoder(z):
    ...     return torch.from_numpy(np.sin(z.numpy()))
    >>> metric = PullbackMetric(by_differences(decoder))
    >>> print(f"{metric.tensor(torch.zeros(1, 1, dtype=torch.float64)).item():.4f}")
    1.0000
    """
    check_function("function", function)
    if step is not None:
        check_number("step", step, above=0.0)
    if isinstance(function, ByDifferences):
        required = "a function that is not differentiated by differences already"
        raise ValueError(requirement("function", required, "one that is"))
    return ByDifferences(function, step)
