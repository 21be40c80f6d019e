"""Run folders: what an experiment was asked, where it ran and what it found, to be read back.

A run folder holds

- ``config.yaml``: the command's options as resolved; ``--config`` takes it back;
- ``environment.json``: command, versions, device, seed, git commit where there is one, checksums
  of the files that options name;
- ``pairs.parquet``: one row a pair; ``curves.safetensors``: their curves in the order of the rows;
- ``arrays.safetensors``: what else the figures show, such as decoded images;
- ``summary.json``: the numbers of the run, written last: a folder without it is not finished;
- ``figures/``;
- ``points/``: of a sweep, the run folder of each combination of options.

While pairs are being solved, finished parts of them stand in ``parts/``: NNNNN.parquet and
NNNNN.safetensors, and last NNNNN.json with the checksums of both, which makes the part count. Every
file is written whole or not at all, and by one process at a time, which ``.lock`` names.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
import yaml  # type: ignore[import-untyped]
from numpy.typing import NDArray
from pyarrow import parquet
from safetensors.torch import load, save
from torch import Tensor
from torch.nn.functional import pad

from geolatent._version import __version__
from geolatent.checks import describe, requirement
from geolatent.curves import CubicBSpline, refine
from geolatent.files import LOCK, FolderLock, open_whole, remove_leftovers, write_file
from geolatent.models.checkpoint import read_tensors
from geolatent.solution import GeodesicSolution

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
PAIRS = "pairs.parquet"
CURVES = "curves.safetensors"
ARRAYS = "arrays.safetensors"
SUMMARY = "summary.json"
PARTS = "parts"
FIGURES = "figures"
POINTS = "points"
SWEEP = "sweep"

# options that say where and how fast results are made, and change them by rounding at most
NEUTRAL_OPTIONS = ("out", "overwrite", "executor", "ray", "solver.max_rows")

# rows of a table that are written at once
_ROW_GROUP = 65_536
_PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "pyarrow", "safetensors")


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
        """Make a table of a solution.

        Parameters
        ----------
        start, end
            Codes, (B, d).
        solution
            What `geolatent.solve_geodesic` returned for them.
        columns
            Further columns, which come first: B values each.
        """
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
        """Join parts in their order; the curves get the control points of the richest part."""
        richest = max((part.curve for part in parts), key=lambda curve: curve.n_control_points)
        dim = max(part.curve.dim for part in parts)
        most = richest.n_control_points
        points = [_with_control_points(part.curve, most, dim) for part in parts]
        table = pa.concat_tables([part.table for part in parts])
        return cls(table.combine_chunks(), CubicBSpline(torch.cat(points), richest.knots))

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

    def __len__(self) -> int:
        return self.table.num_rows


def _with_control_points(curve: CubicBSpline, n: int, dim: int) -> Tensor:
    """Return the same curves' control points on n of them, filled up with zeros to ``dim``."""
    _, matrix = refine(curve.knots, n)
    points = matrix.to(curve.control_points) @ curve.control_points
    return pad(points, (0, dim - curve.dim))


def _column(value: Any) -> pa.Array:
    """Return a column of numbers, names, or lists of numbers."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    if isinstance(value, np.ndarray) and value.ndim == 2:
        return pa.array(list(value), type=pa.list_(pa.from_numpy_dtype(value.dtype)))
    return pa.array(value)


@dataclass(frozen=True)
class Run:
    """A run folder, read back.

    Attributes
    ----------
    path
        The folder.
    command
        Name of the command that wrote it.
    config, environment
        What ``config.yaml`` and ``environment.json`` hold.
    pairs
        The solved pairs; of a run that was not finished, those of its finished parts. None where
        there are none.
    arrays
        What ``arrays.safetensors`` holds, by name.
    summary
        What ``summary.json`` holds; None for a run that was not finished.
    """

    path: Path
    command: str
    config: dict[str, Any]
    environment: dict[str, Any]
    pairs: SolvedPairs | None
    arrays: dict[str, NDArray[Any]]
    summary: dict[str, Any] | None

    @property
    def finished(self) -> bool:
        """Whether the command ran to its end."""
        return self.summary is not None


class RunFolder:
    """A run folder that is being written, by this process alone; make one with `create`.

    As a context manager it lets others write the folder again at the end; so does `finish`.

    Attributes
    ----------
    path
        The folder.
    command
        Name of the command that writes it.
    """

    def __init__(self, path: Path, command: str, lock: FolderLock) -> None:
        self.path = path
        self.command = command
        self._lock = lock
        self._joined = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    @staticmethod
    def check(
        path: str | os.PathLike[str],
        *,
        overwrite: bool,
        command: str = "",
        resume: Mapping[str, Any] | None = None,
    ) -> None:
        """Raise where a run cannot be written to a folder.

        Parameters
        ----------
        path
            The folder.
        overwrite
            Whether the results that it holds may go.
        command, resume
            A command and its options, of which an unfinished run may be gone on with. Options that
            change results by rounding at most (`NEUTRAL_OPTIONS`) need not be the same.

        Raises
        ------
        FileExistsError
            If there are other results in the folder and ``overwrite`` is false; where options
            differ, it names them.
        BlockingIOError
            If another process is writing the folder.
        ValueError
            If the folder's ``config.yaml`` cannot be read.
        """
        if (Path(path) / LOCK).exists():
            FolderLock(Path(path)).release()
        _check_folders(Path(path))
        if not overwrite:
            _check_held(Path(path), command, resume)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        command: str,
        config: Mapping[str, Any],
        *,
        seed: int,
        device: torch.device | str,
        overwrite: bool = False,
        resume: bool = False,
    ) -> RunFolder:
        """Start a run: lock the folder, write ``environment.json`` and ``config.yaml``.

        Parameters
        ----------
        path
            The folder; it is made where it does not exist.
        command
            Name of the command.
        config
            Its options: plain values, paths, dataclasses, and lists and dictionaries of them.
        seed, device
            For ``environment.json``.
        overwrite
            Remove the results of an earlier run first. Files of other kinds stay.
        resume
            Go on with an unfinished run of the same command and options; its files stay.

        Raises
        ------
        FileExistsError
            If there are other results in the folder and ``overwrite`` is false, or folders
            ``parts`` or ``points`` that are not of a run.
        BlockingIOError
            If another process is writing the folder.
        ValueError
            If the folder's ``config.yaml`` cannot be read, or ``parts``, ``figures`` or ``points``
            in it are links to other places.
        """
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(folder)
        try:
            _check_folders(folder)
            if not overwrite:
                _check_held(folder, command, config if resume else None)
            for place in (folder, folder / PARTS):
                remove_leftovers(place)
            run = cls(folder, command, lock)
            if overwrite or not (folder / CONFIG).exists():
                described = environment(command, seed, torch.device(device))
                run._begin(config, {**described, "inputs": _inputs(config)})
        except BaseException:
            lock.release()
            raise
        return run

    def _begin(self, config: Mapping[str, Any], described: Mapping[str, Any]) -> None:
        # the summary first: what is left of an interrupted removal is an unfinished run
        for name in (SUMMARY, PAIRS, CURVES, ARRAYS):
            (self.path / name).unlink(missing_ok=True)
        for name in (PARTS, FIGURES, POINTS):
            if _is_run(self.path) and (self.path / name).exists():
                shutil.rmtree(self.path / name)
        for name in (ENVIRONMENT, CONFIG):
            (self.path / name).unlink(missing_ok=True)
        self._write_json(ENVIRONMENT, described)
        text = yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)
        head = f"# geolatent {self.command} --config {CONFIG}\n"
        write_file(self.path / CONFIG, (head + text).encode())

    def write_part(self, number: int, part: SolvedPairs) -> None:
        """Store solved pairs as the part with a number; the checksums last: they make it count."""
        stem = self.path / PARTS / f"{number:05d}"
        table, curves = _table_bytes(part.table), _curve_bytes(part.curve)
        write_file(stem.with_suffix(".parquet"), table)
        write_file(stem.with_suffix(".safetensors"), curves)
        write_file(stem.with_suffix(".json"), _checksums(table, curves))

    def check_parts(self) -> tuple[set[int], dict[int, str]]:
        """Read the parts that are there, one after the other.

        Returns
        -------
        tuple
            The numbers of the parts that are as they were written; and what is wrong with others.
        """
        whole, damaged = set(), {}
        for number in _part_numbers(self.path):
            try:
                _part_bytes(self.path, number)
                whole.add(number)
            except ValueError as error:
                damaged[number] = str(error)
        return whole, damaged

    def join(self, sources: Sequence[Callable[[], SolvedPairs]] | None = None) -> SolvedPairs:
        """Join the parts to ``pairs.parquet`` and ``curves.safetensors``, and read these back.

        The parts are read one at a time, twice. Parts with other columns than the rest get nulls
        there.

        Parameters
        ----------
        sources
            Functions that give the pairs to be joined; by default the parts.

        Raises
        ------
        ValueError
            If there are no pairs, or a part is damaged.
        """
        if sources is None:
            numbers = _part_numbers(self.path)
            sources = [lambda n=number: _read_part(self.path, n) for number in numbers]  # type: ignore[misc]
        _join_files(self.path, sources)
        self._joined = True
        return _read_pairs(self.path / PAIRS, self.path / CURVES)

    def finish(self, summary: Mapping[str, Any], arrays: Mapping[str, Tensor] | None = None) -> Run:
        """Write what is left to write, ``summary.json`` last, remove the parts, read it all back.

        The parts are joined where `join` has not done so.
        """
        if not self._joined and _part_numbers(self.path):
            self.join()
        if arrays:
            tensors = {name: value.detach().cpu().contiguous() for name, value in arrays.items()}
            write_file(self.path / ARRAYS, save(tensors))
        self._write_json(SUMMARY, {"command": self.command, **summary})
        if (self.path / PARTS).exists():
            shutil.rmtree(self.path / PARTS)
        self._lock.release()
        return load_run(self.path)

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        text = json.dumps(plain(content), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        write_file(self.path / name, text.encode())


def _is_run(folder: Path) -> bool:
    return (folder / CONFIG).exists() or (folder / ENVIRONMENT).exists()


def _check_folders(folder: Path) -> None:
    """Raise where parts of a run would go, or come from, where they do not belong."""
    for name in (PARTS, FIGURES, POINTS):
        if (folder / name).is_symlink():
            raise ValueError(requirement("out", f"a folder without a link `{name}`", folder))
    for name in (PARTS, POINTS):
        if (folder / name).exists() and not _is_run(folder):
            required = f"a folder without one called `{name}` that is not of a run"
            raise FileExistsError(requirement("out", required, folder))


def _check_held(folder: Path, command: str, resume: Mapping[str, Any] | None) -> None:
    """Raise where a folder holds results other than an unfinished run of a command's options."""
    held = [name for name in (SUMMARY, CONFIG, PAIRS) if (folder / name).exists()]
    if not held:
        return
    required = f"a folder without results ({held[0]} is in it), or --overwrite be given"
    if resume is None or held[0] != CONFIG:
        raise FileExistsError(requirement("out", required, folder))
    try:
        found = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
        before = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
        old = _flat({"command": before["command"], **found})
        inputs = dict(before["inputs"])
    except (OSError, yaml.YAMLError, ValueError, TypeError, KeyError) as error:
        required = "a readable run folder, or --overwrite be given"
        raise ValueError(f"{requirement('out', required, folder)} {error}") from error
    new = _flat({"command": command, **plain(resume)})
    differences = [
        f"{key}: {old.get(key, 'none')} there, {new.get(key, 'none')} here"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key) and not is_neutral(key)
    ] or [
        f"{key}: the file {new.get(key)} is another than it was"
        for key, checksum in _inputs(resume).items()
        if inputs.get(key) != checksum
    ]
    if differences:
        required = "the folder of an unfinished run of the same options, or --overwrite be given"
        message = requirement("out", required, folder)
        raise FileExistsError(f"{message} The options differ: {'; '.join(differences)}.")


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return options by their dotted names."""
    result: dict[str, Any] = {}
    for key, value in options.items():
        if isinstance(value, Mapping) and value:
            result |= _flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def _inputs(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the checksums of the files that options name, such as checkpoints."""
    named = {
        key: Path(value)
        for key, value in _flat(plain(config)).items()
        if isinstance(value, str) and not is_neutral(key)
    }
    result = {}
    for key, path in named.items():
        if path.is_file():
            with path.open("rb") as file:
                result[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return result


def is_neutral(key: str) -> bool:
    """Return whether an option, by its dotted name, changes results by rounding at most."""
    return any(key == name or key.startswith(f"{name}.") for name in NEUTRAL_OPTIONS)


def load_run(path: str | os.PathLike[str]) -> Run:
    """Read a run folder, a finished one or one that was interrupted.

    Parameters
    ----------
    path
        The folder.

    Damaged parts of an interrupted run are left out, with a warning that names them.

    Raises
    ------
    FileNotFoundError
        If it is no run folder.
    ValueError
        If one of its files cannot be read.
    """
    folder = Path(path)
    for name in (CONFIG, ENVIRONMENT):
        if not (folder / name).is_file():
            required = "a folder that a geolatent command wrote"
            message = requirement("run_dir", required, folder)
            raise FileNotFoundError(f"{message} There is no file {folder / name}.")
    try:
        config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
        described = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
        summary_path = folder / SUMMARY
        summary = json.loads(summary_path.read_text("utf-8")) if summary_path.is_file() else None
        if summary is not None and (folder / PAIRS).is_file():
            pairs: SolvedPairs | None = _read_pairs(folder / PAIRS, folder / CURVES)
        else:
            parts = list(_whole_parts(folder))
            pairs = SolvedPairs.join(parts) if parts else None
    except (yaml.YAMLError, ValueError, pa.ArrowException) as error:
        required = "a readable run folder"
        raise ValueError(f"{requirement('run_dir', required, folder)} {error}") from error
    arrays = read_tensors(folder / ARRAYS) if (folder / ARRAYS).is_file() else {}
    return Run(
        path=folder,
        command=described["command"],
        config=config,
        environment=described,
        pairs=pairs,
        arrays={name: value.numpy() for name, value in arrays.items()},
        summary=summary,
    )


def _checksums(table: bytes, curves: bytes) -> bytes:
    """Return the content of NNNNN.json, which follows from the other two files."""
    content = {".parquet": table, ".safetensors": curves}
    sums = {ending: hashlib.sha256(data).hexdigest() for ending, data in content.items()}
    return (json.dumps({"sha256": sums}, indent=2) + "\n").encode()


def _part_numbers(folder: Path) -> list[int]:
    """Return the numbers of the parts that count, in their order."""
    stems = [path.stem for path in (folder / PARTS).glob("*.json")]
    return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdigit())


def _part_bytes(folder: Path, number: int) -> tuple[bytes, bytes]:
    """Read table and curves of a part; a ValueError where they are not what was written."""
    stem = folder / PARTS / f"{number:05d}"
    try:
        table = stem.with_suffix(".parquet").read_bytes()
        curves = stem.with_suffix(".safetensors").read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"part {number} is damaged: there is no {error.filename}") from error
    if stem.with_suffix(".json").read_bytes() != _checksums(table, curves):
        raise ValueError(f"part {number} is damaged: {stem}.* do not match their checksums")
    return table, curves


def _read_part(folder: Path, number: int) -> SolvedPairs:
    table, curves = _part_bytes(folder, number)
    tensors = load(curves)
    curve = CubicBSpline(tensors["control_points"], tensors["knots"])
    return SolvedPairs(parquet.read_table(pa.BufferReader(table)), curve)


def _whole_parts(folder: Path) -> Iterator[SolvedPairs]:
    for number in _part_numbers(folder):
        try:
            yield _read_part(folder, number)
        except ValueError as error:
            warnings.warn(f"{error}; its pairs are left out", stacklevel=3)


def _read_pairs(table: Path, curves: Path) -> SolvedPairs:
    tensors = read_tensors(curves)
    curve = CubicBSpline(tensors["control_points"], tensors["knots"])
    return SolvedPairs(parquet.read_table(table), curve)


def _join_files(folder: Path, sources: Sequence[Callable[[], SolvedPairs]]) -> None:
    """Write ``pairs.parquet`` and ``curves.safetensors`` from parts, one of them in memory."""
    n_rows, most, dim = 0, 0, 0
    dtype, knots = torch.float32, None
    schemas: list[pa.Schema] = []
    for source in sources:
        part = source()
        n_rows += len(part)
        dim = max(dim, part.curve.dim)
        dtype = torch.promote_types(dtype, part.curve.control_points.dtype)
        if part.curve.n_control_points > most:
            most, knots = part.curve.n_control_points, part.curve.knots.cpu()
        if part.table.schema not in schemas:
            schemas.append(part.table.schema)
    if knots is None:
        raise ValueError(requirement("out", "a folder with solved pairs", folder))
    schema = pa.unify_schemas(schemas, promote_options="permissive")
    points = torch.empty((n_rows, most, dim), dtype=dtype, device="meta")
    with open_whole(folder / CURVES) as curves, open_whole(folder / PAIRS) as tables:
        curves.write(_safetensors_head({"knots": knots, "control_points": points}))
        curves.write(knots.numpy().tobytes())
        with parquet.ParquetWriter(tables, schema) as writer:
            waiting: list[pa.Table] = []
            for source in sources:
                part = source()
                refined = _with_control_points(part.curve, most, dim).to(dtype)
                curves.write(refined.contiguous().numpy().tobytes())
                waiting.append(part.table)
                if sum(map(len, waiting)) >= _ROW_GROUP:
                    _write_tables(writer, waiting, schema)
                    waiting = []
            if waiting:
                _write_tables(writer, waiting, schema)


def _write_tables(writer: parquet.ParquetWriter, tables: list[pa.Table], schema: pa.Schema) -> None:
    empty = schema.empty_table()
    whole = pa.concat_tables([empty, *tables], promote_options="permissive")
    writer.write_table(whole.combine_chunks(), row_group_size=max(1, whole.num_rows))


_SAFETENSORS_TYPES = {torch.float32: "F32", torch.float64: "F64"}


def _safetensors_head(tensors: Mapping[str, Tensor]) -> bytes:
    """Return what stands in a safetensors file before the values of tensors, which follow."""
    entries, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": _SAFETENSORS_TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _table_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def _curve_bytes(curve: CubicBSpline) -> bytes:
    return save(
        {
            "control_points": curve.control_points.detach().cpu().contiguous(),
            "knots": curve.knots.cpu().contiguous(),
        }
    )


def plain(value: Any) -> Any:
    """Return a value in the types of YAML and JSON; NaN and infinities become null.

    Raises
    ------
    TypeError
        If there is no such value.

    Examples
    --------
    >>> plain({"steps": (1, 2.5), "out": Path("runs"), "left": float("nan")})
    {'steps': [1, 2.5], 'out': 'runs', 'left': None}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Tensor | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    raise TypeError(requirement("value", "a value that YAML can hold", describe(value)))


def environment(command: str, seed: int, device: torch.device) -> dict[str, Any]:
    """Describe where a run takes place: versions, device, seed, git commit, platform.

    The names of machine, user and folders are left out.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "command": command,
        "geolatent": __version__,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "packages": {package: metadata.version(package) for package in _PACKAGES},
        "platform": f"{platform.system()} {platform.release()}",
        "device": device.type,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "seed": seed,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git_commit() -> str | None:
    """Return the commit of the package's checkout, marked where files differ from it, or None."""
    here = Path(__file__)

    def git(*words: str) -> str | None:
        try:
            result = subprocess.run(
                ["git", "-C", str(here.parent), *words],
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return result.stdout.strip() if result.returncode == 0 else None

    # an installed copy inside someone else's repository has no commit of its own
    if git("ls-files", "--error-unmatch", here.name) is None:
        return None
    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return f"{commit} with changes" if commit and changed else commit
