"""Runs that earlier versions wrote, which are read and never written.

Their curves are not in the tables: beside ``pairs.parquet`` stands ``curves.safetensors``, beside a
part's NNNNN.parquet stands NNNNN.safetensors, and NNNNN.json with the part's run, number and rows
and the SHA-256 checksums of both.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from pyarrow import parquet

from geolatent.curves import CubicBSpline
from geolatent.files import checksum, one_line, read_json
from geolatent.lab.parts import PARTS, part_numbers, read_part
from geolatent.lab.solved import DAMAGE, SolvedPairs
from geolatent.models.checkpoint import read_tensors

CURVES = "curves.safetensors"


def read_pairs(table: Path, curves: Path) -> SolvedPairs:
    """Read a table and its curves; where they are damaged it raises one of `DAMAGE`."""
    tensors = read_tensors(curves)
    curve = CubicBSpline(tensors["control_points"], tensors["knots"])
    pairs = SolvedPairs(parquet.read_table(table, memory_map=False), curve)
    if len(pairs) != curve.batch_size:
        raise ValueError(f"{table} has {len(pairs)} rows, {curves} {curve.batch_size} curves")
    return pairs


def stored_parts(folder: Path, run: str) -> dict[int, Callable[[], SolvedPairs]]:
    """Return the parts in a run folder, of all versions: their numbers, and what reads them."""
    stems = (path.stem for path in (folder / PARTS).glob("*.json"))
    old = (int(stem) for stem in stems if len(stem) >= 5 and stem.isdecimal())
    readers = dict.fromkeys(old, _read_part) | dict.fromkeys(part_numbers(folder), read_part)
    return {n: partial(read, folder, run, n) for n, read in sorted(readers.items())}


def _read_part(folder: Path, run: str, number: int) -> SolvedPairs:
    """Read such a part; see `geolatent.lab.parts.read_part`."""
    stem = folder / PARTS / f"{number:05d}"
    files = {ending: stem.with_suffix(ending) for ending in (".parquet", ".safetensors")}
    try:
        seal = read_json(stem.with_suffix(".json"))
        sums = {ending: checksum(path) for ending, path in files.items()}
        if (seal["run"], seal["number"], seal["sha256"]) != (run, number, sums):
            raise ValueError("it is of another run or number, or does not match its checksums")
        return read_pairs(*files.values())
    except DAMAGE as error:
        raise ValueError(f"part {number} is damaged: {stem}.*: {one_line(error)}") from error
