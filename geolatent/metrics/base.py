"""What a Riemannian metric is: a tensor, a quadratic form and their cost, at batches of codes."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, Self

import torch
from torch import Tensor

from geolatent.arrays import Array
from geolatent.checks import check_codes, check_integer, check_vectors, describe, requirement
from geolatent.metrics.chords import Chords
from geolatent.metrics.map import Map, rows_at_once
from geolatent.shapes import CodeShape, Reshaped


class Metric(ABC):
    """A Riemannian metric z -> G(z) on R^d.

    Subclasses give ``_tensor`` and ``_quadratic`` for codes that are known to be good; the public
    methods check their input. A metric that is the pull-back of the Euclidean metric by one map F,
    G = J_F^T J_F, also gives that map as ``immersion``: path energies then need only values of F.

    Attributes
    ----------
    dim
        Latent dimension d where the metric fixes it, else None.
    immersion
        The map F with G = J_F^T J_F, or None.
    quadratic_cost
        What one row of ``quadratic`` evaluates: one JVP row, or one forward row.
    max_rows
        Largest number of rows sent through the decoder at once, as `limited` sets it; None chooses
        from the memory.
    """

    dim: int | None = None
    max_rows: int | None = None
    immersion: Map | None = None
    quadratic_cost: Literal["jvp", "forward"] = "jvp"
    # whether functions that are no maps were tested, as `check` does at its first call
    _tested = False
    # rows that are tried at once since memory was too short for more
    rows_in_memory: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return all but what first calls tell: copies and other processes learn it anew."""
        learned = ("_tested", "_by_shape", "rows_in_memory")
        return {name: value for name, value in vars(self).items() if name not in learned}

    @property
    def like(self) -> Tensor | None:
        """A tensor of the dtype and device that codes are brought to.

        A parameter of the metric's functions; None where they have none, and codes keep their own.
        """
        return None

    @abstractmethod
    def _tensor(self, z: Tensor) -> Tensor: ...

    @abstractmethod
    def _quadratic(self, z: Tensor, v: Tensor) -> Tensor: ...

    @property
    def chords(self) -> Chords | None:
        """How outputs give lengths: None where only the speed does. Known once `check` has run."""
        return None if self.immersion is None else Chords(self.immersion)

    def tensor_rows(self, dim: int) -> int:
        """Forward rows that one metric tensor counts as."""
        return dim

    def row_width(self, z: Tensor) -> int:
        """Return about how many numbers one row makes at once, from which budgets are chosen.

        To be given by metrics that make more than their immersion's output, or have none.
        """
        return z.shape[1] if self.immersion is None else self.immersion.width(z)

    def row_bytes(self) -> int:
        """Return the bytes that one row makes on the way to its output, as far as is known.

        To be given by metrics of several maps, or whose map is not their immersion.
        """
        return 0 if self.immersion is None else self.immersion.row_bytes

    def limited(self, max_rows: int | None) -> Self:
        """Return the same metric, of which at most so many rows are evaluated at once.

        Without a limit the number is chosen from the size of the decoder's output and the memory,
        and halved where CUDA has none left; a decoder with large activations inside may need fewer.

        Parameters
        ----------
        max_rows
            Rows sent through the decoder at once; None for no limit.

        Examples
        --------
        >>> from geolatent import PullbackMetric
        >>> PullbackMetric(lambda z: 3.0 * z).limited(256).max_rows
        256
        """
        limited = copy.copy(self)
        limited._tested = self._tested  # of the same functions
        limited.max_rows = None if max_rows is None else check_integer("max_rows", max_rows)
        return limited

    def shaped(self, shape: tuple[int, ...]) -> Metric:
        """Return the same metric of flat codes (n, d), whose functions get them as (n, *shape).

        Made once for each shape, so that the functions are tried out once.
        """
        known: dict[tuple[int, ...], Metric] = self.__dict__.setdefault("_by_shape", {})
        if shape not in known:
            if self.dim not in (None, math.prod(shape)):
                required = f"codes of {self.dim} numbers, as the metric has"
                raise ValueError(requirement("codes", required, f"some of shape {shape}"))
            made = copy.copy(self)
            made._wrap(lambda function: Reshaped(function, shape))
            known[shape] = made
        return known[shape].limited(self.max_rows)

    def _wrap(
        self,
        wrapper: Callable[[Callable[..., Any]], Callable[..., Any]],  # noqa: ARG002
    ) -> None:
        """Put a wrapper around all functions of codes, of a metric that was just copied."""
        required = (
            "one whose functions are known, for codes of shape (n, ...); codes can be flat, "
            "`codes.flatten(1)`, and be reshaped in the metric"
        )
        raise ValueError(requirement("metric", required, describe(self)))

    def __sklearn_clone__(self) -> Self:
        """Return the metric itself: a clone of an estimator shares the decoder's weights."""
        return self

    def check(self, name: str, z: Tensor) -> None:
        """Evaluate the metric's functions on codes from outside; errors name ``name``."""
        if self.immersion is not None:
            self.immersion.check(name, z)

    def check_definite(self, name: str, z: Tensor) -> None:  # noqa: B027
        """Raise where the metric is negative in a direction at codes from outside.

        For those who give the metric itself; what is a sum of squares cannot be. Errors name
        ``name``.
        """

    def tensor(self, z: Array) -> Tensor:
        """Return the metric tensors G(z).

        Parameters
        ----------
        z
            Codes, shape (n, d), or of any shape, (n, ...).

        Returns
        -------
        Tensor
            Shape (n, d, d), symmetric, in squared units of the decoder's output.
        """
        shape = CodeShape.of(z)
        metric = shape.metric(self)
        z = check_codes("z", shape.flat("z", z), metric.dim, like=metric.like)
        metric.check("z", z[:1].detach())
        with rows_at_once(self.max_rows):
            return metric._tensor(z)

    def quadratic(self, z: Array, v: Array) -> Tensor:
        """Return the quadratic forms v^T G(z) v, differentiable in ``z`` and ``v``.

        Parameters
        ----------
        z, v
            Codes and tangent vectors, shape (n, d) each, or of any shape, (n, ...).

        Returns
        -------
        Tensor
            Shape (n,), squared lengths of the tangent vectors.
        """
        shape = CodeShape.of(z)
        metric = shape.metric(self)
        like = metric.like
        z = check_codes("z", shape.flat("z", z), metric.dim, like=like)
        v = check_vectors("v", shape.flat("v", v), z, like=like)
        metric.check("z", z[:1].detach())
        return metric._quadratic(z, v)


def indefinite(tensors: Tensor) -> Tensor:
    """Return which symmetric matrices (..., d, d) have an eigenvalue negative beyond rounding.

    Beyond the square root of the type's precision, as a part of the largest entry.
    """
    scale = tensors.abs().amax((-2, -1))
    eye = torch.eye(tensors.shape[-1], dtype=torch.float64, device=tensors.device)
    floor = (torch.finfo(tensors.dtype).eps ** 0.5 * scale).double()[..., None, None] * eye
    failed = torch.linalg.cholesky_ex(tensors.double() + floor)[1] > 0
    return failed & scale.isfinite() & (scale > 0)


def negative(squares: Tensor) -> Tensor:
    """Return which rows of values v^T G v, (..., Q), have one that is negative beyond rounding.

    Beyond the square root of the type's precision, as a part of the row's largest value.
    """
    scale = squares.abs().nan_to_num(0.0, 0.0, 0.0).amax(-1, keepdim=True)
    return (squares < -(torch.finfo(squares.dtype).eps ** 0.5) * scale).any(-1)


def check_metric(value: object, name: str = "metric") -> Metric:
    """Return ``value``, a metric."""
    if not isinstance(value, Metric):
        raise TypeError(requirement(name, "a geolatent Metric", describe(value)))
    return value
