"""Run folders: what an experiment was asked, where it ran and what it found, to be read back.

A run folder holds

- ``config.yaml``: the command's options as resolved; ``--config`` takes it back;
- ``environment.json``: command, versions, device, seed, git commit where there is one;
- ``pairs.parquet``: one row a pair; ``curves.safetensors``: their curves in the order of the rows;
- ``arrays.safetensors``: what else the figures show, such as decoded images;
- ``summary.json``: the numbers of the run, written last: a folder without it is not finished;
- ``figures/``.

While pairs are being solved, finished parts of them stand in ``parts/``. Every file is written
whole or not at all.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import yaml  # type: ignore[import-untyped]
from numpy.typing import NDArray
from pyarrow import parquet
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import pad

from geolatent._version import __version__
from geolatent.checks import describe, requirement
from geolatent.curves import CubicBSpline, refine
from geolatent.files import write_file
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
        most = max(part.curve.n_control_points for part in parts)
        dim = max(part.curve.dim for part in parts)
        refined = [refine(part.curve.knots, most) for part in parts]
        points = [
            pad(
                matrix.to(part.curve.control_points) @ part.curve.control_points,
                (0, dim - part.curve.dim),
            )
            for part, (_, matrix) in zip(parts, refined, strict=True)
        ]
        table = pa.concat_tables([part.table for part in parts])
        return cls(table.combine_chunks(), CubicBSpline(torch.cat(points), refined[0][0]))

    def column(self, name: str) -> NDArray[Any]:
        """Return a column as an array; codes as (B, d), all of one dimension."""
        column = self.table[name]
        if pa.types.is_list(column.type):
            return np.array(column.to_pylist())
        return column.to_numpy()

    def with_columns(self, columns: Mapping[str, Any]) -> SolvedPairs:
        """Return the same pairs with more columns at the end."""
        table = self.table
        for name, value in columns.items():
            table = table.append_column(name, _column(value))
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
    """A run folder that is being written; make one with `create`.

    Attributes
    ----------
    path
        The folder.
    """

    def __init__(self, path: Path, command: str) -> None:
        self.path = path
        self.command = command

    @staticmethod
    def check(path: str | os.PathLike[str], *, overwrite: bool) -> None:
        """Raise where a folder holds results that are not to be overwritten.

        Raises
        ------
        FileExistsError
            If there are results in the folder and ``overwrite`` is false.
        """
        held = [name for name in (CONFIG, SUMMARY, PAIRS) if (Path(path) / name).exists()]
        if held and not overwrite:
            required = f"a folder without results ({held[0]} is in it), or --overwrite be given"
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
    ) -> RunFolder:
        """Start a run: make the folder and write ``config.yaml`` and ``environment.json``.

        Parameters
        ----------
        path
            The folder.
        command
            Name of the command.
        config
            Its options: plain values, paths, dataclasses, and lists and dictionaries of them.
        seed, device
            For ``environment.json``.
        overwrite
            Remove the results of an earlier run first. Files of other kinds stay.

        Raises
        ------
        FileExistsError
            If there are results in the folder and ``overwrite`` is false.
        """
        cls.check(path, overwrite=overwrite)
        folder = Path(path)
        # the summary first: what is left of an interrupted removal is no finished run
        for name in (SUMMARY, PAIRS, CURVES, ARRAYS, ENVIRONMENT, CONFIG):
            (folder / name).unlink(missing_ok=True)
        for name in (PARTS, FIGURES):
            if (folder / name).exists():
                shutil.rmtree(folder / name)
        run = cls(folder, command)
        text = yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)
        head = f"# geolatent {command} --config {CONFIG}\n"
        write_file(folder / CONFIG, (head + text).encode())
        run._write_json(ENVIRONMENT, environment(command, seed, torch.device(device)))
        return run

    def write_part(self, number: int, part: SolvedPairs) -> None:
        """Store solved pairs as the part with a number; the table last, which makes it count."""
        stem = self.path / PARTS / f"{number:05d}"
        write_file(stem.with_suffix(".safetensors"), _curve_bytes(part.curve))
        write_file(stem.with_suffix(".parquet"), _table_bytes(part.table))

    def parts(self) -> list[SolvedPairs]:
        """Read the parts that are there, in the order of their numbers."""
        return _read_parts(self.path)

    def finish(self, summary: Mapping[str, Any], arrays: Mapping[str, Tensor] | None = None) -> Run:
        """Join the parts, write what is left to write, ``summary.json`` last, and read it back."""
        parts = self.parts()
        if parts:
            pairs = SolvedPairs.join(parts)
            write_file(self.path / CURVES, _curve_bytes(pairs.curve))
            write_file(self.path / PAIRS, _table_bytes(pairs.table))
        if arrays:
            tensors = {name: value.detach().cpu().contiguous() for name, value in arrays.items()}
            write_file(self.path / ARRAYS, save(tensors))
        self._write_json(SUMMARY, {"command": self.command, **summary})
        if parts:
            shutil.rmtree(self.path / PARTS)
        return load_run(self.path)

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        text = json.dumps(plain(content), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        write_file(self.path / name, text.encode())


def load_run(path: str | os.PathLike[str]) -> Run:
    """Read a run folder, a finished one or one that was interrupted.

    Parameters
    ----------
    path
        The folder.

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
        if (folder / PAIRS).is_file():
            pairs: SolvedPairs | None = _read_pairs(folder / PAIRS, folder / CURVES)
        else:
            parts = _read_parts(folder)
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


def _read_parts(folder: Path) -> list[SolvedPairs]:
    tables = sorted((folder / PARTS).glob("[0-9]*.parquet"))
    return [_read_pairs(path, path.with_suffix(".safetensors")) for path in tables]


def _read_pairs(table: Path, curves: Path) -> SolvedPairs:
    tensors = read_tensors(curves)
    curve = CubicBSpline(tensors["control_points"], tensors["knots"])
    return SolvedPairs(parquet.read_table(table), curve)


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
