"""How many rows go through a decoder at once, and metric tensors within that."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from geolatent.checks import check_integer
from geolatent.metrics.base import Metric

T = TypeVar("T")


@dataclass
class RowBudget:
    """How many rows go through the decoder at once.

    Parameters
    ----------
    max_rows
        Rows per call; None chooses from what the metric makes of a row, `Metric.row_width`.

    Attributes
    ----------
    width
        Numbers that the metric makes of one row, as the decoder's output, once `fit` was called.
    """

    max_rows: int | None = None
    width: int = field(default=0, init=False)
    _rows: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.max_rows is not None:
            self._rows = check_integer("max_rows", self.max_rows)

    def fit(self, metric: Metric, z: Tensor) -> None:
        """Learn what the metric makes of a row, and choose the rows where the user has not."""
        if self.width:
            return
        self.width = max(z.shape[1], metric.row_width(z))
        self._rows = self._rows or metric.max_rows or 0
        if self._rows:
            return
        # a decoder's activations are taken as sixty times its output, for values and derivatives
        row_bytes = 60 * self.width * z.element_size()
        self._rows = max(16, min(2**17, self.memory(z) // row_bytes))

    @staticmethod
    def memory(z: Tensor) -> int:
        """Return the bytes that one thing may take: a quarter of what CUDA has free, or 2 GiB."""
        return torch.cuda.mem_get_info(z.device)[0] // 4 if z.is_cuda else 2**31

    def run(self, function: Callable[[slice], T], n_items: int, rows_each: int) -> list[T]:
        """Call ``function`` on consecutive slices of the items, at most the budget's rows each.

        An out-of-memory error of CUDA halves the rows and goes on, with a warning.
        """
        results = []
        first = 0
        while first < n_items:
            items = max(1, self._rows // max(1, rows_each)) if self._rows else n_items
            try:
                results.append(function(slice(first, min(first + items, n_items))))
            except torch.OutOfMemoryError:
                if items == 1:
                    raise
                self._rows = max(1, min(items, n_items) * rows_each // 2)
                warnings.warn(
                    f"out of memory; going on with at most {self._rows} decoder rows at once",
                    stacklevel=2,
                )
                continue
            first += items
        return results


def metric_tensors(metric: Metric, z: Tensor, budget: RowBudget) -> Tensor:
    """Return G at codes (B, M, d), shape (B, M, d, d), without gradients."""
    b, m, d = z.shape

    def chunk(items: slice) -> Tensor:
        part = z[items]
        with torch.no_grad():
            return metric._tensor(part.reshape(-1, d)).reshape(part.shape[0], m, d, d)

    return torch.cat(budget.run(chunk, b, m * metric.tensor_rows(d)))
