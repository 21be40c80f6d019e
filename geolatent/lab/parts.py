"""Parts of an unfinished run: ``parts/NNNNN.parquet.gz``, one file of solved pairs each.

A part is a Parquet file in gzip, written whole or not at all, whose metadata bind it to the run and
the part's number. Gzip's checksum (CRC-32) covers every byte of it; those that Parquet has of its
pages leave out the names, types and places of the columns.
"""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from geolatent.files import one_line, write_file
from geolatent.lab.solved import DAMAGE, SolvedPairs

PARTS = "parts"
_NAME = re.compile(r"(\d{5,})\.parquet\.gz")


def part_numbers(folder: Path) -> list[int]:
    """Return the numbers of the parts in a run folder, in their order."""
    names = (_NAME.fullmatch(path.name) for path in (folder / PARTS).glob("*.parquet.gz"))
    return sorted(int(name[1]) for name in names if name)


def write_part(folder: Path, run: str, number: int, part: SolvedPairs) -> None:
    """Store solved pairs as the part of a run that has a number."""
    sink = pa.BufferOutputStream()
    table = part.to_arrow({"run": run, "number": str(number)})
    parquet.write_table(table, sink, use_dictionary=False)
    # stored as it is: Parquet has compressed it, and what is sought here is the checksum
    content = gzip.compress(sink.getvalue(), compresslevel=0, mtime=0)
    write_file(_path(folder, number), content)


def read_part(folder: Path, run: str, number: int) -> SolvedPairs:
    """Read a part.

    Raises
    ------
    ValueError
        If it is damaged, or is not what this run wrote under this number.
    """
    path = _path(folder, number)
    try:
        content = pa.BufferReader(gzip.decompress(path.read_bytes()))
        with parquet.ParquetFile(content) as file:
            found = file.schema_arrow.metadata
            of_run, of_number = found[b"run"].decode(), int(found[b"number"])
            pairs = SolvedPairs.read(file)
    except (*DAMAGE, zlib.error) as error:
        raise ValueError(f"part {number} is damaged: {path}: {one_line(error)}") from error
    if of_run != run:
        raise ValueError(f"part {number} is of another run: {path}")
    if of_number != number:
        raise ValueError(f"part {number} is part {of_number} by another name: {path}")
    return pairs


def _path(folder: Path, number: int) -> Path:
    return folder / PARTS / f"{number:05d}.parquet.gz"
