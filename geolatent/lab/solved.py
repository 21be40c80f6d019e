"""Solved pairs: one table of what was found and the curves, in memory and as one Parquet file.

In a file the curves are the last column, ``curve``, the control points of each pair as a tensor of
fixed shape (n, d); the knots, which all pairs share, are the entry ``knots`` of its metadata.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pyarrow import parquet
from torch import Tensor
from torch.nn.functional import pad

from geolatent.curves import CubicBSpline, inserting_matrix, union_of_knots
from geolatent.solution import GeodesicSolution

# name of the column of control points; `control_points` is their number
CURVE = "curve"
_KNOTS = "knots"
# what reading a file that is damaged raises
DAMAGE = (pa.ArrowException, OSError, EOFError, ValueError, TypeError, KeyError)
# bytes of a table that are written at once
_ROW_GROUP = 2**24


@dataclass(frozen=True)
class SolvedPairs:
    """Solved pairs: a table of one row a pair, and the curves in the order of the rows.

    Attributes
    ----------
    table
        Columns: those of the experiment; ``start``, ``end`` (codes); ``straight_length``,
        ``length``, ``energy`` (of the decoder's output, or the features'); ``relative_improvement``
        and ``predicted_improvement`` (fractions); ``status`` (a name of `geolatent.Status`);
        ``iterations``, ``control_points``; ``forward``, ``backward``, ``jvp`` (decoder rows) and
        ``equivalents`` (their cost in forward rows).
    curve
        The curves, on one knot vector. Where models of several latent dimensions are joined, those
        of fewer dimensions are filled up with zeros, which `where` takes away again.
    """

    table: pa.Table
    curve: CubicBSpline

    @classmethod
    def from_solution(
        cls,
        start: Tensor,
        end: Tensor,
        solution: GeodesicSolution,
        columns: Mapping[str, Any] | None = None,
    ) -> SolvedPairs:
        """Make a table of the solution of pairs of codes, (B, d); further columns come first."""
        evaluations = solution.evaluations
        measured = {
            "start": start,
            "end": end,
            "straight_length": solution.straight_length,
            "length": solution.length,
            "relative_improvement": solution.relative_improvement,
            "energy": solution.energy,
            "predicted_improvement": solution.predicted_improvement,
            "status": [status.name for status in solution.statuses],
            "iterations": solution.iterations,
            "control_points": solution.control_points,
            "forward": evaluations.forward,
            "backward": evaluations.backward,
            "jvp": evaluations.jvp,
            "equivalents": evaluations.equivalents,
        }
        every = {**(columns or {}), **measured}
        table = pa.table({name: _column(value) for name, value in every.items()})
        return cls(table, solution.curve.to("cpu"))

    @classmethod
    def join(cls, parts: Sequence[SolvedPairs]) -> SolvedPairs:
        """Join parts in their order; the curves get the knots of all."""
        fitted = list(_fitted(lambda: parts))
        table = pa.concat_tables([part.table for part in fitted]).combine_chunks()
        points = torch.cat([part.curve.control_points for part in fitted])
        return cls(table, CubicBSpline(points, fitted[0].curve.knots))

    def column(self, name: str) -> NDArray[Any]:
        """Return a column as an array; codes as (B, d), all of one dimension."""
        column = self.table[name]
        if pa.types.is_list(column.type):
            return np.array(column.to_pylist())
        return column.to_numpy()

    def with_columns(self, columns: Mapping[str, Any], *, first: bool = False) -> SolvedPairs:
        """Return the same pairs with more columns, at the end or before the others."""
        table = self.table
        for place, (name, value) in enumerate(columns.items()):
            table = table.add_column(place if first else table.num_columns, name, _column(value))
        return SolvedPairs(table, self.curve)

    def where(self, column: str, value: object) -> SolvedPairs:
        """Return the pairs whose column has a value."""
        rows = np.flatnonzero(self.column(column) == value)
        table = self.table.take(pa.array(rows))
        dim = max((len(code) for code in table["start"].to_pylist()), default=self.curve.dim)
        points = self.curve.control_points[torch.from_numpy(rows), :, :dim]
        return SolvedPairs(table, CubicBSpline(points, self.curve.knots))

    def to_arrow(self, metadata: Mapping[str, str] | None = None) -> pa.Table:
        """Return one table of all: the curves as the column ``curve``, the knots as metadata."""
        points = self.curve.control_points.detach().cpu().numpy()
        _, n, dim = points.shape
        values = pa.array(points.reshape(-1))
        rows = pa.FixedSizeListArray.from_arrays(values, n * dim)
        kind = pa.fixed_shape_tensor(values.type, (n, dim))
        table = self.table.append_column(CURVE, pa.ExtensionArray.from_storage(kind, rows))
        knots = json.dumps(self.curve.knots.tolist())
        return table.replace_schema_metadata({**(metadata or {}), _KNOTS: knots})

    @classmethod
    def read(cls, file: parquet.ParquetFile) -> SolvedPairs:
        """Read a table of `to_arrow` from Parquet; the curves are in memory once."""
        schema = file.schema_arrow
        kind = schema.field(CURVE).type
        like = torch.from_numpy(np.empty(0, kind.value_type.to_pandas_dtype()))
        points = torch.empty((file.metadata.num_rows, *kind.shape), dtype=like.dtype)
        tables, begin = [schema.remove(schema.get_field_index(CURVE)).empty_table()], 0
        for number in range(file.num_row_groups):
            table = file.read_row_group(number)
            for chunk in table[CURVE].chunks:
                points[begin : begin + len(chunk)].numpy()[:] = chunk.to_numpy_ndarray()
                begin += len(chunk)
            tables.append(table.drop_columns([CURVE]))
        table = pa.concat_tables(tables).combine_chunks().replace_schema_metadata(None)
        knots = torch.tensor(json.loads(schema.metadata[_KNOTS.encode()]), dtype=torch.float64)
        return cls(table, CubicBSpline(points, knots))

    def __len__(self) -> int:
        return self.table.num_rows


def _column(value: Any) -> pa.Array:
    """Return a column of numbers, names, or lists of numbers."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    if isinstance(value, np.ndarray) and value.ndim == 2:
        return pa.array(list(value), type=pa.list_(pa.from_numpy_dtype(value.dtype)))
    return pa.array(value)


def write_joined(file: BinaryIO, sources: Sequence[Callable[[], SolvedPairs]]) -> None:
    """Join pairs to a Parquet file; each of the functions that give them is called twice.

    What is in memory at once is the pairs of a function, and those of one row group of the file.
    """
    fitted = _fitted(lambda: (source() for source in sources))
    waiting: list[pa.Table] = []
    writer = None
    with ExitStack() as stack:
        for place, part in enumerate(fitted, start=1):
            waiting.append(part.to_arrow())
            if place == len(sources) or sum(table.nbytes for table in waiting) >= _ROW_GROUP:
                group, waiting = pa.concat_tables(waiting), []
                # curves are all different: no dictionary of them
                writer = writer or stack.enter_context(
                    parquet.ParquetWriter(file, group.schema, use_dictionary=False)
                )
                writer.write_table(group, row_group_size=max(1, len(group)))


def _fitted(parts: Callable[[], Iterable[SolvedPairs]]) -> Iterator[SolvedPairs]:
    """Yield pairs with the same columns, nulls where they lack them, and the knots of all."""
    forms = [
        (part.table.schema, part.curve.knots.cpu(), part.curve.dim, part.curve.control_points.dtype)
        for part in parts()
    ]
    schemas, every_knots, dims, dtypes = zip(*forms, strict=True)
    schema = pa.unify_schemas(schemas, promote_options="permissive")
    knots, dim = union_of_knots(*every_knots), max(dims)
    dtype = reduce(torch.promote_types, dtypes)
    for part in parts():
        tables = [schema.empty_table(), part.table]
        table = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
        matrix = inserting_matrix(part.curve.knots.cpu(), knots)
        points = part.curve.control_points.detach().cpu()
        points = pad(matrix.to(points) @ points, (0, dim - part.curve.dim)).to(dtype)
        yield SolvedPairs(table, CubicBSpline(points, knots))
