"""Run folders: what an experiment was asked, where it ran and what it found, to be read back.

A run folder holds

- ``config.yaml``: the command's options as resolved; ``--config`` takes it back;
- ``environment.json``: command, versions, device, seed, git commit where there is one, checksums
  of the files that options name;
- ``pairs.parquet``: one row a pair; ``curves.safetensors``: their curves in the order of the rows;
- ``arrays.safetensors``: what else the figures show, such as decoded images;
- ``summary.json``: the numbers of the run, written last: a folder without it is not finished;
- ``figures/``, and ``geolatent-files.json`` with the names of those that geolatent drew;
- ``images/``: of the command sample, NNNNNN.png;
- ``points/``: of a sweep, the run folder of each combination of options.

While pairs are being solved, finished parts of them stand in ``parts/``: NNNNN.parquet and
NNNNN.safetensors, and last NNNNN.json with the checksums of both, the run, and the part's number
and rows, which makes the part count. Every file is written whole or not at all, and by one process
at a time, which ``.geolatent-lock`` names. Only files of these names are ever removed, and only
from the folder of a run, which ``environment.json`` or the first line of ``config.yaml`` tells; no
link is followed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import re
import subprocess
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
import yaml  # type: ignore[import-untyped]
from numpy.typing import NDArray
from pyarrow import parquet
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.nn.functional import pad

from geolatent._version import __version__
from geolatent.checks import describe, requirement
from geolatent.curves import CubicBSpline, refine
from geolatent.files import (
    LOCK,
    RECORD,
    FolderLock,
    open_whole,
    read_json,
    read_yaml,
    recorded_files,
    remove_leftovers,
    remove_old_lock,
    write_file,
)
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
IMAGES = "images"
SWEEP = "sweep"

# options that say where and how fast results are made, and change them by rounding at most
NEUTRAL_OPTIONS = (
    *("out", "out_dir", "overwrite", "resume", "executor", "ray", "max_rows"),
    *("training.accelerator", "training.progress", "format"),
)

# by their places in the folder, the files that a run names by number
_NUMBERED = {
    PARTS: re.compile(r"\d{5,}\.(parquet|safetensors|json)"),
    IMAGES: re.compile(r"\d{6,}\.png"),
    f"{IMAGES}.unfinished": re.compile(r"\d{6,}\.png"),
}
_POINT = re.compile(r"\d{4,}")
# the figures of runs that did not record them
_FIGURES = (
    *("alignment", "clusters", "compared", "correlations", "crossings", "curves", "data_distance"),
    *("distances", "histogram", "images", "improvements", "landscape", "latent", "losses", "norms"),
    *("outputs", "plane", "reconstructions", "samples", "scores", "steps", "strips"),
)
# what the first line of config.yaml begins with
_HEAD = "# geolatent "
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
        self._run = ""
        self._n_parts: int | None = None
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
            differ, it names them. Whatever ``overwrite`` is, if files that would go are not of a
            run, or are of a training.
        BlockingIOError
            If another process is writing the folder.
        ValueError
            If the folder's ``config.yaml`` cannot be read.
        """
        if (Path(path) / LOCK).exists():
            FolderLock(Path(path)).release()
        remove_old_lock(Path(path))
        _check_folders(Path(path), command)
        if not overwrite:
            _check_held(Path(path), command, resume)

    @staticmethod
    def check_images(path: str | os.PathLike[str]) -> None:
        """Raise where a folder has images that are not of a run; see `check`.

        Raises
        ------
        FileExistsError
            If ``images`` in it is not of the command sample, or holds anything but its images.
        """
        own = _NUMBERED[IMAGES].fullmatch
        for name in (IMAGES, f"{IMAGES}.unfinished"):
            folder = Path(path) / name
            of_run = run_command(Path(path)) == "sample"
            if folder.is_dir() and not (of_run and all(own(p.name) for p in folder.iterdir())):
                required = f"a folder whose `{name}` holds images of the command sample alone"
                raise FileExistsError(requirement("out", required, path))

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
            Remove the results of an earlier run first, and nothing else.
        resume
            Go on with an unfinished run of the same command and options; its files stay.

        Raises
        ------
        FileExistsError
            If there are other results in the folder and ``overwrite`` is false, or files of such
            names that are not of a run, or those of a training.
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
            _check_folders(folder, command)
            if not overwrite:
                _check_held(folder, command, config if resume else None)
            _remove_leftovers(folder)
            run = cls(folder, command, lock)
            if overwrite or not (folder / CONFIG).exists():
                described = environment(command, seed, torch.device(device))
                run._begin(config, {**described, "inputs": _inputs(config)})
            run._identify()
        except BaseException:
            lock.release()
            raise
        return run

    def _begin(self, config: Mapping[str, Any], described: Mapping[str, Any]) -> None:
        _remove_results(self.path)
        self._write_json(ENVIRONMENT, {**described, "run": uuid.uuid4().hex})
        self._write_config(config)

    def update(self, config: Mapping[str, Any]) -> None:
        """Store the options of a sweep that goes on with other points than it began with."""
        described = read_json(self.path / ENVIRONMENT)
        self._write_json(ENVIRONMENT, {**described, "inputs": _inputs(config)})
        self._write_config(config)

    def _write_config(self, config: Mapping[str, Any]) -> None:
        text = yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)
        head = f"{_HEAD}{self.command} --config {CONFIG}\n"
        write_file(self.path / CONFIG, (head + text).encode())

    def _identify(self) -> None:
        """Take up the run's name, by which its parts are known; one that has none yet gets one."""
        described = read_json(self.path / ENVIRONMENT)
        if not isinstance(described.get("run"), str):
            described["run"] = uuid.uuid4().hex
            self._write_json(ENVIRONMENT, described)
        self._run = described["run"]

    def write_part(self, number: int, part: SolvedPairs) -> None:
        """Store solved pairs as the part with a number; the checksums last: they make it count."""
        stem = self.path / PARTS / f"{number:05d}"
        table, curves = _table_bytes(part.table), _curve_bytes(part.curve)
        write_file(stem.with_suffix(".parquet"), table)
        write_file(stem.with_suffix(".safetensors"), curves)
        write_file(stem.with_suffix(".json"), _seal(self._run, number, len(part), table, curves))

    def check_parts(self, rows: Sequence[int] | None = None) -> tuple[set[int], dict[int, str]]:
        """Read the parts that are there, one after the other.

        Parameters
        ----------
        rows
            The number of rows of each part of the run; parts beyond them are never joined.

        Returns
        -------
        tuple
            The numbers of the parts that are as they were written, by this run, under this number;
            and what is wrong with others.
        """
        if rows is not None:
            self._n_parts = len(rows)
        whole, damaged = set(), {}
        for number in _part_numbers(self.path):
            if rows is not None and number >= len(rows):
                damaged[number] = f"part {number} is none of the {len(rows)} parts of this run"
                continue
            try:
                found = _read_part(self.path, number, self._run)
            except ValueError as error:
                damaged[number] = str(error)
                continue
            if rows is None or len(found) == rows[number]:
                whole.add(number)
            else:
                text = f"part {number} has {len(found)} rows and should have {rows[number]}"
                damaged[number] = text
        return whole, damaged

    def join(self, sources: Sequence[Callable[[], SolvedPairs]] | None = None) -> SolvedPairs:
        """Join the parts to ``pairs.parquet`` and ``curves.safetensors``, and read these back.

        The parts are read one at a time, twice. Parts with other columns than the rest get nulls
        there.

        Parameters
        ----------
        sources
            Functions that give the pairs to be joined; by default the parts of the run.

        Raises
        ------
        ValueError
            If there are no pairs, or a part is damaged or of another run.
        """
        if sources is None:
            sources = [
                partial(_read_part, self.path, number, self._run) for number in self._parts()
            ]
        _join_files(self.path, sources)
        self._joined = True
        return _read_pairs(self.path / PAIRS, self.path / CURVES)

    def _parts(self) -> list[int]:
        numbers = _part_numbers(self.path)
        return [n for n in numbers if self._n_parts is None or n < self._n_parts]

    def finish(self, summary: Mapping[str, Any], arrays: Mapping[str, Tensor] | None = None) -> Run:
        """Write what is left to write, ``summary.json`` last, remove the parts, read it all back.

        The parts are joined where `join` has not done so.
        """
        if not self._joined and self._parts():
            self.join()
        if arrays:
            tensors = {name: value.detach().cpu().contiguous() for name, value in arrays.items()}
            write_file(self.path / ARRAYS, save(tensors))
        self._write_json(SUMMARY, {"command": self.command, **summary})
        _remove_numbered(self.path / PARTS)
        self._lock.release()
        return load_run(self.path)

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        text = json.dumps(plain(content), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        write_file(self.path / name, text.encode())


def run_command(folder: Path) -> str | None:
    """Return the name of the command whose run a folder is, or None where it is of none."""
    try:
        described = read_json(folder / ENVIRONMENT)
        if isinstance(described.get("command"), str) and "geolatent" in described:
            return str(described["command"])
    except (OSError, ValueError):
        pass  # it is damaged, or not there
    try:
        with (folder / CONFIG).open("rb") as file:
            head = file.readline(200).decode(errors="replace")
    except OSError:
        return None
    return head.removeprefix(_HEAD).split()[0] if head.startswith(f"{_HEAD}") else None


def _run_name(folder: Path) -> str | None:
    """Return the name that ``environment.json`` gives a run; None where there is none."""
    try:
        name = read_json(folder / ENVIRONMENT).get("run")
    except (OSError, ValueError):
        return None
    return name if isinstance(name, str) else None


def _check_folders(folder: Path, command: str) -> None:
    """Raise where files of a run would go, or come from, where they do not belong."""
    folders = (*_NUMBERED, FIGURES, POINTS)
    for name in folders:
        if (folder / name).is_symlink():
            raise ValueError(requirement("out", f"a folder without a link `{name}`", folder))
    owner = run_command(folder)
    if owner == "train" != command:
        required = "another folder than that of a training"
        raise FileExistsError(requirement("out", required, folder))
    if owner is not None:
        return
    for name in (SUMMARY, CONFIG, ENVIRONMENT, PAIRS, CURVES, ARRAYS, RECORD, PARTS, POINTS):
        if (folder / name).exists():
            required = f"a folder without one called `{name}` that is not of a run"
            raise FileExistsError(requirement("out", required, folder))


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed writers of a run left; the folder's lock is held."""
    every = (SUMMARY, CONFIG, ENVIRONMENT, PAIRS, CURVES, ARRAYS, RECORD)
    remove_leftovers(folder, every.__contains__)
    remove_leftovers(folder / FIGURES, _figure_names(folder).__contains__)
    for name, pattern in _NUMBERED.items():
        remove_leftovers(folder / name, lambda left, own=pattern: bool(own.fullmatch(left)))  # type: ignore[misc]


def _remove_results(folder: Path) -> None:
    """Remove the results of a run, if there is one; what else lies in its folders stays there."""
    if run_command(folder) is None:
        return
    # the summary first: what is left of an interrupted removal is an unfinished run
    for name in (SUMMARY, PAIRS, CURVES, ARRAYS):
        (folder / name).unlink(missing_ok=True)
    for name in _NUMBERED:
        _remove_numbered(folder / name)
    for name in _figure_names(folder):
        (folder / FIGURES / name).unlink(missing_ok=True)
    _remove_empty(folder / FIGURES)
    for point in _points(folder):
        _remove_leftovers(point)
        _remove_results(point)
        remove_old_lock(point)
        # last what tells that it is one
        for name in (LOCK, ENVIRONMENT):
            (point / name).unlink(missing_ok=True)
        _remove_empty(point)
    _remove_empty(folder / POINTS)
    for name in (RECORD, CONFIG):
        (folder / name).unlink(missing_ok=True)


def _points(folder: Path) -> list[Path]:
    """Return the run folders of the points of a sweep, in the order of their numbers."""
    places = folder / POINTS
    if not places.is_dir() or places.is_symlink():
        return []
    return sorted(
        place
        for place in places.iterdir()
        if _POINT.fullmatch(place.name)
        and not place.is_symlink()
        and not any((place / name).is_symlink() for name in (*_NUMBERED, FIGURES, POINTS))
        and run_command(place) is not None
    )


def _figure_names(folder: Path) -> set[str]:
    """Return the names of the figures in ``figures/`` that geolatent drew."""
    recorded = recorded_files(folder)
    if recorded is None and not (folder / RECORD).exists() and _run_name(folder):
        return set()  # a run that would have recorded them
    if recorded is None:
        return {f"{name}.png" for name in _FIGURES}
    names = (name.partition(f"{FIGURES}/") for name in recorded)
    return {name for before, _, name in names if not before and Path(name).name == name}


def _remove_numbered(folder: Path) -> None:
    """Remove the files that a run named by number, and the folder where nothing else is in it."""
    if folder.is_dir():
        for path in folder.iterdir():
            if _NUMBERED[folder.name].fullmatch(path.name):
                path.unlink()
        _remove_empty(folder)


def _remove_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _check_held(folder: Path, command: str, resume: Mapping[str, Any] | None) -> None:
    """Raise where a folder holds results other than an unfinished run of a command's options."""
    held = [name for name in (SUMMARY, CONFIG, PAIRS) if (folder / name).exists()]
    if not held:
        return
    # a training is not overwritten
    else_ = "or another folder" if command == "train" else "or --overwrite be given"
    required = f"a folder without results ({held[0]} is in it), {else_}"
    if resume is None or held[0] != CONFIG:
        raise FileExistsError(requirement("out", required, folder))
    try:
        found, before = _read_options(folder)
    except (OSError, ValueError) as error:
        required = f"a readable run folder, {else_}"
        raise ValueError(f"{requirement('out', required, folder)} {error}") from error
    old = _flat({"command": before["command"], **found})
    new = _flat({"command": command, **plain(resume)})
    # the points of a sweep are compared one by one
    swept = SWEEP in found and SWEEP in resume
    differences = [
        f"{key}: {old.get(key, 'none')} there, {new.get(key, 'none')} here"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
        and not is_neutral(key)
        and not (swept and key.startswith(f"{SWEEP}."))
    ] or _changed_inputs(resume, before["inputs"], swept)
    if differences:
        required = f"the folder of an unfinished run of the same options, {else_}"
        message = requirement("out", required, folder)
        raise FileExistsError(f"{message} The options differ: {'; '.join(differences)}.")


def _read_options(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read ``config.yaml`` and ``environment.json``; a ValueError where they are damaged."""
    config, described = read_yaml(folder / CONFIG), read_json(folder / ENVIRONMENT)
    if not isinstance(config, dict):
        raise ValueError(f"{folder / CONFIG} holds no options.")
    kinds = {"command": str, "inputs": dict}
    for key, kind in kinds.items():
        if not isinstance(described.get(key), kind):
            raise ValueError(f"{folder / ENVIRONMENT} names no {key}.")
    return config, described


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return options by their dotted names."""
    result: dict[str, Any] = {}
    for key, value in options.items():
        if isinstance(value, Mapping) and value:
            result |= _flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def _named_files(value: Any, key: str = "") -> dict[str, Path]:
    """Return the files that options name, by the options' dotted names; and what is beside them.

    A checkpoint X.safetensors has its model's class and arguments in X.json.
    """
    if is_neutral(key):
        return {}
    if isinstance(value, Mapping):
        inner = {f"{key}.{name}" if key else str(name): item for name, item in value.items()}
    elif isinstance(value, list):
        inner = {f"{key}[{place}]": item for place, item in enumerate(value)}
    else:
        if not isinstance(value, str) or not os.path.isfile(value):
            return {}
        path = Path(value)
        beside = path.with_suffix(".json")
        if path.suffix != ".safetensors" or not beside.is_file():
            return {key: path}
        return {key: path, f"{key} (.json)": beside}
    found: dict[str, Path] = {}
    for name, item in inner.items():
        found |= _named_files(item, name)
    return found


def _inputs(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the checksums of the files that options name, such as checkpoints."""
    result = {}
    for key, path in _named_files(plain(config)).items():
        with path.open("rb") as file:
            result[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return result


def _changed_inputs(
    config: Mapping[str, Any], before: Mapping[str, str], swept: bool = False
) -> list[str]:
    """Name the files that are not those whose checksums a run has; of a sweep, those of all."""
    now, paths = _inputs(config), _named_files(plain(config))
    return [
        f"{key}: the file {paths.get(key, 'that it names')} is another than it was"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key) and not (swept and key.startswith(f"{SWEEP}."))
    ]


def options_key(command: str, config: Mapping[str, Any]) -> str:
    """Return a text that is the same for runs whose options give the same results."""
    options = _flat({"command": command, **plain(config)})
    options = {key: value for key, value in options.items() if not is_neutral(key)}
    return json.dumps(options, sort_keys=True)


def find_points(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Find the run folders of a sweep's points.

    Returns
    -------
    tuple
        The folders by the `options_key` of what they were asked; and what is wrong with others.
    """
    found, damaged = {}, []
    for place in _points(folder):
        try:
            config, described = _read_options(place)
            found[options_key(described["command"], config)] = place
        except (OSError, ValueError) as error:
            damaged.append(_line(error))
    return found, damaged


def check_inputs(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise where files that options name are not those that a run was made of.

    Raises
    ------
    FileExistsError
        If they are others; the message names them.
    """
    _, described = _read_options(folder)
    changed = _changed_inputs(config, described["inputs"])
    if changed:
        required = "a folder of runs of the same files, or --overwrite be given"
        raise FileExistsError(f"{requirement('out', required, folder)} {'; '.join(changed)}.")


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
        config, described = _read_options(folder)
        summary = read_json(folder / SUMMARY) if (folder / SUMMARY).is_file() else None
        if summary is not None and (folder / PAIRS).is_file():
            pairs: SolvedPairs | None = _read_pairs(folder / PAIRS, folder / CURVES)
        else:
            parts = list(_whole_parts(folder, described.get("run", "")))
            pairs = SolvedPairs.join(parts) if parts else None
        arrays = read_tensors(folder / ARRAYS) if (folder / ARRAYS).is_file() else {}
    except (OSError, ValueError) as error:
        required = "a readable run folder; --overwrite makes a damaged one anew"
        raise ValueError(f"{requirement('run_dir', required, folder)} {error}") from error
    return Run(
        path=folder,
        command=described["command"],
        config=config,
        environment=described,
        pairs=pairs,
        arrays={name: value.numpy() for name, value in arrays.items()},
        summary=summary,
    )


def _seal(run: str, number: int, rows: int, table: bytes, curves: bytes) -> bytes:
    """Return the content of NNNNN.json, which binds a part to its run, number and files."""
    content = {".parquet": table, ".safetensors": curves}
    sums = {ending: hashlib.sha256(data).hexdigest() for ending, data in content.items()}
    sealed = {"run": run, "number": number, "rows": rows, "sha256": sums}
    return (json.dumps(sealed, indent=2) + "\n").encode()


def _part_numbers(folder: Path) -> list[int]:
    """Return the numbers of the parts that count, in their order."""
    paths = (folder / PARTS).glob("*.json")
    return sorted(int(path.stem) for path in paths if _NUMBERED[PARTS].fullmatch(path.name))


def _read_part(folder: Path, number: int, run: str) -> SolvedPairs:
    """Read a part; a ValueError where it is not what this run wrote under this number."""
    stem = folder / PARTS / f"{number:05d}"
    try:
        table = stem.with_suffix(".parquet").read_bytes()
        curves = stem.with_suffix(".safetensors").read_bytes()
        sealed = stem.with_suffix(".json").read_bytes()
        described = read_json(stem.with_suffix(".json"))
    except FileNotFoundError as error:
        raise ValueError(f"part {number} is damaged: there is no {error.filename}") from error
    except ValueError as error:
        raise ValueError(f"part {number} is damaged: {error}") from error
    rows = described.get("rows")
    if sealed != _seal(run, number, rows if isinstance(rows, int) else 0, table, curves):
        if described.get("run") != run and described.get("number", number) == number:
            raise ValueError(f"part {number} is damaged or of another run: {stem}.json")
        if described.get("number") != number:
            found = described.get("number")
            raise ValueError(f"part {number} is damaged or part {found} by another name: {stem}.*")
        raise ValueError(f"part {number} is damaged: {stem}.* do not match their checksums")
    try:
        tensors = load(curves)
        curve = CubicBSpline(tensors["control_points"], tensors["knots"])
        pairs = SolvedPairs(parquet.read_table(pa.BufferReader(table)), curve)
    except (ValueError, TypeError, KeyError, OSError, SafetensorError) as error:
        raise ValueError(f"part {number} is damaged: {stem}.*: {_line(error)}") from error
    if len(pairs) != rows or curve.control_points.shape[0] != rows:
        raise ValueError(f"part {number} is damaged: {stem}.* do not hold {rows} pairs")
    return pairs


def _whole_parts(folder: Path, run: str) -> Iterator[SolvedPairs]:
    for number in _part_numbers(folder):
        try:
            yield _read_part(folder, number, run)
        except ValueError as error:
            warnings.warn(f"{error}; its pairs are left out", stacklevel=3)


def _read_pairs(table: Path, curves: Path) -> SolvedPairs:
    """Read a table and its curves; a ValueError that names the file where one is damaged."""
    try:
        tensors = read_tensors(curves)
        curve = CubicBSpline(tensors["control_points"], tensors["knots"])
    except (ValueError, TypeError, KeyError, FileNotFoundError) as error:
        raise ValueError(f"{curves} is damaged: {_line(error)}") from error
    try:
        # not memory-mapped: a file that is cut while it is read would end the process
        rows = parquet.read_table(table, memory_map=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{table} is damaged: {_line(error)}") from error
    if len(rows) != curve.control_points.shape[0]:
        raise ValueError(f"{table} has {len(rows)} rows, {curves} another number of curves.")
    return SolvedPairs(rows, curve)


def _line(error: Exception) -> str:
    """Return an error's message in one line."""
    return " ".join(str(error).split())


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
        "packages": _versions(),
        "platform": f"{platform.system()} {platform.release()}",
        "device": device.type,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "seed": seed,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _versions() -> dict[str, str]:
    versions = {package: metadata.version(package) for package in _PACKAGES}
    try:
        return {**versions, "lightning": metadata.version("lightning")}
    except metadata.PackageNotFoundError:  # it comes with an extra
        return versions


def _git_commit() -> str | None:
    """Return the commit of the package's checkout, marked where files differ from it, or None."""
    here = Path(__file__)

    def git(*words: str) -> str | None:
        try:
            result = subprocess.run(
                # reading takes no lock: a process that dies here leaves none in the checkout
                ["git", "--no-optional-locks", "-C", str(here.parent), *words],
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
