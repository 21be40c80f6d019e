"""A metric at work: its functions at any number of codes, in chunks, in one type, counted."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from geolatent.metrics.base import Metric
from geolatent.metrics.chords import Chords
from geolatent.metrics.kernels import DIFFERENTIABLE_KERNELS
from geolatent.metrics.map import Map, rows_at_once
from geolatent.metrics.ways import is_out_of_memory
from geolatent.solution import Evaluations

# memory of one row, as a multiple of what it makes on the way to its output: products, which are
# differentiated themselves, keep several of each
_TIMES_MADE = 4


@dataclass
class RowBudget:
    """How many rows go through the decoder at once.

    Attributes
    ----------
    width
        Numbers that the metric makes of one row, as the decoder's output.
    rows
        Rows of one call; fewer once the device's memory was too short for them.
    """

    width: int
    rows: int

    @classmethod
    def of(cls, metric: Metric, z: Tensor) -> RowBudget:
        """Choose for a metric at codes (n, d): the user's limit, or what the memory holds."""
        width = max(z.shape[1], metric.row_width(z))
        if metric.max_rows is not None:
            return cls(width, metric.max_rows)
        # a decoder's activations are taken as sixty times its output, for values and derivatives,
        # and as several times what one row was seen to make on the way
        row_bytes = max(60 * width * z.element_size(), _TIMES_MADE * metric.row_bytes())
        most = 2**17 if metric.rows_in_memory is None else metric.rows_in_memory
        return cls(width, max(1, min(most, cls.memory(z) // row_bytes)))

    @staticmethod
    def memory(z: Tensor) -> int:
        """Return the bytes that one thing may take: a quarter of what CUDA has free, or 2 GiB.

        What torch has taken from the device and does not use is free too.
        """
        if not z.is_cuda:
            return 2**31
        unused = torch.cuda.memory_reserved(z.device) - torch.cuda.memory_allocated(z.device)
        return (torch.cuda.mem_get_info(z.device)[0] + unused) // 4


@dataclass(frozen=True)
class Rows:
    """A metric's functions as solvers and geometry call them; nothing else evaluates a metric.

    Every method takes codes (A, ..., d) of any floating-point type, evaluates them in ``dtype``, at
    most so many at once as the budget allows, and adds what that costs to the counts of the A pairs
    that the first axis stands for. Results have no gradients.

    Attributes
    ----------
    metric
        The metric.
    dtype
        Floating-point type that its functions work in.
    budget
        How many rows go through the decoder at once.
    spent
        Counts of each pair, which every call adds to; of no pair where nobody asks for them.
    """

    metric: Metric
    dtype: torch.dtype
    budget: RowBudget
    spent: Evaluations

    @classmethod
    def of(cls, metric: Metric, codes: Tensor, spent: Evaluations | None = None) -> Rows:
        """Return a metric at work in the type of codes (n, d), which are known to be good."""
        spent = Evaluations.zeros(0, codes.device) if spent is None else spent
        return cls(metric, codes.dtype, RowBudget.of(metric, codes[:1]), spent)

    def counting(self, n_pairs: int) -> Rows:
        """Return the same with counts of zero for so many pairs."""
        return replace(self, spent=Evaluations.zeros(n_pairs, self.spent.forward.device))

    @property
    def chords(self) -> Chords | None:
        """How outputs give lengths: None where only the speed does."""
        return self.metric.chords

    def count(
        self, pairs: Tensor | None, *, forward: int = 0, backward: int = 0, jvp: int = 0
    ) -> None:
        """Add rows to the counts of each of the pairs (A,), or of all."""
        if pairs is None:
            pairs = torch.arange(self.spent.forward.numel(), device=self.spent.forward.device)
        for name, rows in (("forward", forward), ("backward", backward), ("jvp", jvp)):
            if rows:
                getattr(self.spent, name).index_add_(0, pairs, torch.full_like(pairs, rows))

    def each(
        self,
        function: Callable[..., tuple[Tensor, ...]],
        rows_each: int,
        *arguments: Tensor,
        divisible: bool = False,
    ) -> tuple[Tensor, ...]:
        """Call a function on consecutive parts of tensors (A, ...) and join what it returns.

        Where memory is short, the rows are halved and it goes on, with a warning. The metric
        remembers it.

        Parameters
        ----------
        function
            Takes the same part (A', ...) of every tensor and returns tensors (A', ...).
        rows_each
            Decoder rows of one of the A.
        divisible
            Whether these are columns of Jacobians, of which fewer may be taken at once.
        """
        n = arguments[0].shape[0]
        parts: list[tuple[Tensor, ...]] = []
        first = 0
        while first < n or not parts:
            size = max(1, self.budget.rows // max(1, rows_each))
            try:
                # around backward passes too: checkpointed activations are computed again in them
                with DIFFERENTIABLE_KERNELS, rows_at_once(self.budget.rows):
                    parts.append(function(*(values[first : first + size] for values in arguments)))
            except (RuntimeError, MemoryError) as error:
                least = self.budget.rows == 1 if divisible else size == 1
                if least or not is_out_of_memory(error):
                    raise
                tried = min(self.budget.rows, min(size, n) * rows_each)
                self.budget.rows = self.metric.rows_in_memory = max(1, tried // 2)
                warnings.warn(
                    f"out of memory; going on with at most {self.budget.rows} decoder rows at once",
                    stacklevel=3,
                )
                continue
            first += size
        if len(parts) == 1:
            return parts[0]
        return tuple(torch.cat(values) for values in zip(*parts, strict=True))

    def tensor(self, z: Tensor, pairs: Tensor | None = None) -> Tensor:
        """Return G(z), (A, ..., d, d)."""
        cost = self.metric.tensor_rows(z.shape[-1])
        self.count(pairs, forward=cost * _codes_each(z))
        (found,) = self._flat(lambda part: (self.metric._tensor(part),), cost, z, divisible=True)
        return found

    def quadratic(self, z: Tensor, v: Tensor, pairs: Tensor | None = None) -> Tensor:
        """Return v^T G(z) v, (A, ...)."""
        self._count_quadratic(pairs, _codes_each(z), differentiated=False)
        (found,) = self._flat(lambda *part: (self.metric._quadratic(*part),), 1, z, v)
        return found

    def outputs(self, z: Tensor, pairs: Tensor | None = None) -> Tensor:
        """Return F(z) of the metric's chords, (A, ..., D)."""
        chords: Chords = self.chords  # type: ignore[assignment]
        self.count(pairs, forward=_codes_each(z))
        (found,) = self._flat(lambda part: (chords.values(part),), 1, z)
        return found

    def columns(self, z: Tensor, pairs: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return F(z) of the metric's immersion, (A, ..., D), and dF / dz, (A, ..., d, D)."""
        immersion: Map = self.metric.immersion  # type: ignore[assignment]
        dim = z.shape[-1]
        self.count(pairs, forward=dim * _codes_each(z))

        def chunk(part: Tensor) -> tuple[Tensor, Tensor]:
            values, columns = immersion.columns(part)
            return values, columns.transpose(0, 1)

        values, columns = self._flat(chunk, dim, z, divisible=True)
        return values, columns

    def pulled(
        self,
        z: Tensor,
        pull: Callable[..., tuple[Tensor, Tensor]],
        *arguments: Tensor,
        pairs: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return a function of each pair's outputs F(z), (A,), and its gradient by z, (A, Q, d).

        Parameters
        ----------
        z
            Codes, (A, Q, d).
        pull
            Takes outputs (A', Q, D) of the metric's chords and parts (A', ...) of ``arguments``,
            and returns the function, (A',), and its derivatives by the outputs, (A', Q, D).

        Notes
        -----
        Where the memory does not hold what all rows of a pair keep for the gradient, they are
        evaluated in parts, and once more each for its gradient: Q more forward rows.
        """
        chords: Chords = self.chords  # type: ignore[assignment]
        n = _codes_each(z)
        in_parts = self.metric.max_rows is None and n > self.budget.rows
        self.count(pairs, forward=2 * n if in_parts else n, backward=n)

        if in_parts:
            codes = z.detach().to(self.dtype)
            (outputs,) = self._flat(lambda part: (chords.values(part),), 1, codes)
            value, cotangent = pull(outputs, *arguments)
            flat, cotangent = codes.flatten(0, 1), cotangent.flatten(0, 1).to(outputs)
            (slope,) = self.each(
                lambda *part: (_pulled_back(chords.values, *part),), 1, flat, cotangent
            )
            return value, slope.reshape(z.shape)

        def chunk(z: Tensor, *arguments: Tensor) -> tuple[Tensor, Tensor]:
            flat = z.detach().flatten(0, 1).requires_grad_()
            with torch.enable_grad():
                outputs = chords.values(flat)
            value, cotangent = pull(outputs.detach().unflatten(0, z.shape[:2]), *arguments)
            if not outputs.requires_grad:  # a constant decoder
                return value, torch.zeros_like(z)
            (slope,) = torch.autograd.grad(outputs, flat, cotangent.flatten(0, 1))
            return value, slope.reshape(z.shape)

        value, slope = self.each(chunk, n, z.to(self.dtype), *arguments)
        return value, slope

    def slopes(
        self, z: Tensor, v: Tensor, pairs: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return v^T G(z) v, (A, ...), and its gradients by z and by v, (A, ..., d) each."""
        self._count_quadratic(pairs, _codes_each(z), differentiated=True)

        def chunk(z: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            z, v = z.detach().requires_grad_(), v.detach().requires_grad_()
            with torch.enable_grad():
                squares = self.metric._quadratic(z, v)
            ones = torch.ones_like(squares)
            by_z, by_v = torch.autograd.grad(squares, (z, v), ones, materialize_grads=True)
            return squares.detach(), by_z, by_v

        squares, by_z, by_v = self._flat(chunk, 1, z, v)
        return squares, by_z, by_v

    def product(self, z: Tensor, v: Tensor, pairs: Tensor | None = None) -> Tensor:
        """Return G(z) v, (A, ..., d): J^T (J v) where there is an immersion."""
        immersion = self.metric.immersion
        if immersion is None:
            return 0.5 * self.slopes(z, v, pairs)[2]
        n = _codes_each(z)
        self.count(pairs, forward=n, backward=n, jvp=n)

        def chunk(z: Tensor, v: Tensor) -> tuple[Tensor]:
            return (_pulled_back(immersion, z, immersion.jvp(z, v)[1]),)

        (found,) = self._flat(chunk, 1, z, v)
        return found

    def tensor_and_slope(
        self,
        z: Tensor,
        covectors: Tensor,
        vector: Callable[[Tensor, Tensor], Tensor],
        pairs: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return v = ``vector(G(z), covectors)`` and the gradient of v^T G(z) v by z, v held.

        Both are (A, ..., d), in the type of the covectors (A, ..., d). Where a tensor costs no more
        than its use, it is evaluated once for both.
        """
        once = self.metric.quadratic_cost == "forward"
        dim = z.shape[-1]
        cost = self.metric.tensor_rows(dim)
        if not once:
            self.count(pairs, forward=cost * _codes_each(z))
        self._count_quadratic(pairs, _codes_each(z), differentiated=True)

        def chunk(z: Tensor, covectors: Tensor) -> tuple[Tensor, Tensor]:
            point = z.detach().requires_grad_()
            with torch.set_grad_enabled(once):
                tensor = self.metric._tensor(point)
            wanted = vector(tensor.detach(), covectors)
            v = wanted.to(self.dtype)
            with torch.enable_grad():
                if once:
                    square = torch.einsum("ni,nij,nj->n", v, tensor, v)
                else:
                    square = self.metric._quadratic(point, v)
            if not square.requires_grad:  # a constant metric
                return wanted, torch.zeros_like(wanted)
            ones = torch.ones_like(square)
            (slope,) = torch.autograd.grad(square, point, ones, materialize_grads=True)
            return wanted, slope.to(wanted)

        shape = z.shape
        codes, flat = z.reshape(-1, dim).to(self.dtype), covectors.reshape(-1, dim)
        found, slope = self.each(chunk, cost + 2, codes, flat)
        return found.reshape(shape), slope.reshape(shape)

    def differentiable_tensor(self, z: Tensor) -> Tensor:
        """Return G(z) for codes (n, d) of one part, with gradients and uncounted; see `each`."""
        return self.metric._tensor(z)

    def differentiable_quadratic(self, z: Tensor, v: Tensor) -> Tensor:
        """Return v^T G(z) v for codes (n, d) of one part, with gradients and uncounted."""
        return self.metric._quadratic(z, v)

    def _count_quadratic(self, pairs: Tensor | None, codes: int, *, differentiated: bool) -> None:
        if self.metric.quadratic_cost == "jvp":
            self.count(pairs, jvp=3 * codes if differentiated else codes)
        else:
            self.count(pairs, forward=codes, backward=codes if differentiated else 0)

    def _flat(
        self,
        function: Callable[..., tuple[Tensor, ...]],
        rows_each: int,
        *codes: Tensor,
        divisible: bool = False,
    ) -> tuple[Tensor, ...]:
        """Call a function of codes (n, d) on codes (A, ..., d), and give its results that shape."""
        shape = codes[0].shape[:-1]
        flat = (values.detach().reshape(-1, values.shape[-1]).to(self.dtype) for values in codes)
        with torch.no_grad():
            found = self.each(function, rows_each, *flat, divisible=divisible)
        return tuple(values.reshape(*shape, *values.shape[1:]) for values in found)


def _pulled_back(function: Map, z: Tensor, cotangents: Tensor) -> Tensor:
    """Return J^T u for u (n, D) at codes (n, d)."""
    point = z.detach().requires_grad_()
    with torch.enable_grad():
        outputs = function(point)
    if not outputs.requires_grad:  # a constant decoder
        return torch.zeros_like(z)
    (pulled,) = torch.autograd.grad(outputs, point, cotangents, materialize_grads=True)
    return pulled


def _codes_each(z: Tensor) -> int:
    """Return how many codes each of the A pairs has in (A, ..., d)."""
    return math.prod(z.shape[1:-1])
