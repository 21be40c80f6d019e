"""Run folders: what an experiment was asked, where it ran and what it found, to be read back.

A run folder holds

- ``config.yaml``: the command's options as resolved; ``--config`` takes it back;
- ``environment.json``: command, versions, device, seed, git commit where there is one, checksums
  of the files that options name and of the two that follow;
- ``pairs.parquet``: one row a pair, with its curve; see `geolatent.lab.solved`;
- ``arrays.safetensors``: what else the figures show, such as decoded images;
- ``summary.json``: the numbers of the run, written last: a folder without it is not finished;
- ``figures/``, and ``geolatent-files.json`` with the names of those that geolatent drew;
- ``images/``: of the command sample, NNNNNN.png;
- ``points/``: of a sweep, the run folder of each combination of options.

While pairs are being solved, finished parts of them stand in ``parts/``; see
`geolatent.lab.parts`. Every file is written whole or not at all, and by one process at a time,
which ``.geolatent-lock`` names. `geolatent.lab.contents` says what is ever removed.
"""

from __future__ import annotations

import json
import math
import os
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import yaml  # type: ignore[import-untyped]
from numpy.typing import NDArray
from pyarrow import parquet
from safetensors.torch import save
from torch import Tensor

from geolatent.checks import requirement
from geolatent.files import LOCK, FolderLock, checksum, one_line, open_whole, read_json, write_file
from geolatent.lab.contents import (
    ARRAYS,
    CONFIG,
    ENVIRONMENT,
    HEAD,
    PAIRS,
    SUMMARY,
    check_held,
    check_owner,
    read_options,
    remove_parts,
    remove_results,
    remove_unfinished,
)
from geolatent.lab.earlier import CURVES, read_pairs, stored_parts
from geolatent.lab.environment import environment
from geolatent.lab.options import input_checksums, plain
from geolatent.lab.parts import write_part
from geolatent.lab.solved import CURVE, DAMAGE, SolvedPairs, write_joined
from geolatent.models.checkpoint import read_tensors


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
        What ``arrays.safetensors`` holds, by name; in double precision, for the figures.
    summary
        What ``summary.json`` holds; empty for a run that was not finished.
    finished
        Whether the command ran to its end.
    """

    path: Path
    command: str
    config: dict[str, Any]
    environment: dict[str, Any]
    pairs: SolvedPairs | None
    arrays: dict[str, NDArray[Any]]
    summary: dict[str, Any]
    finished: bool = True


class RunFolder:
    """A run folder that is being written, by this process alone; make one with `create`.

    As a context manager it lets others write the folder again at the end; so does `finish`.
    """

    def __init__(self, path: Path, command: str, lock: FolderLock) -> None:
        self.path = path
        self.command = command
        self._lock = lock
        # what `environment.json` holds
        self._environment: dict[str, Any] = {}
        self._n_parts = math.inf
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
        """Raise what `create` would; ``resume`` are the options of a run that may be gone on with.

        Options that change results by rounding at most (`NEUTRAL_OPTIONS`) need not be the same.
        """
        if (Path(path) / LOCK).exists():
            FolderLock(Path(path)).release()
        check_owner(Path(path), command)
        if not overwrite:
            check_held(Path(path), command, resume)

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
            If there are other results in the folder and ``overwrite`` is false; where options
            differ, it names them. Whatever ``overwrite`` is, if files that would go are not of a
            run, or are of a training.
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
            check_owner(folder, command)
            if not overwrite:
                check_held(folder, command, config if resume else None)
            remove_unfinished(folder)
            run = cls(folder, command, lock)
            if overwrite or not (folder / CONFIG).exists():
                remove_results(folder)
                described = environment(command, seed, torch.device(device))
                run._describe(**described, inputs=input_checksums(config), run=uuid.uuid4().hex)
                run._write_config(config)
            run._environment = read_json(folder / ENVIRONMENT)
            if not isinstance(run._environment.get("run"), str):  # of an earlier version
                run._describe(run=uuid.uuid4().hex)
        except BaseException:
            lock.release()
            raise
        return run

    def update(self, config: Mapping[str, Any]) -> None:
        """Store the options of a sweep that goes on with other points than it began with."""
        self._describe(inputs=input_checksums(config))
        self._write_config(config)

    def _describe(self, **changed: object) -> None:
        self._environment |= changed
        self._write_json(ENVIRONMENT, self._environment)

    def _write_config(self, config: Mapping[str, Any]) -> None:
        text = yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)
        head = f"{HEAD}{self.command} --config {CONFIG}\n"
        write_file(self.path / CONFIG, (head + text).encode())

    def write_part(self, number: int, part: SolvedPairs) -> None:
        """Store solved pairs as the part with a number."""
        write_part(self.path, self._environment["run"], number, part)

    def check_parts(self, rows: Sequence[int] | None = None) -> tuple[set[int], dict[int, str]]:
        """Read the parts that are there, one after the other; those beyond ``rows`` never count.

        Returned are the numbers of the parts that are as this run wrote them, under this number,
        with so many rows each; and what is wrong with others.
        """
        if rows is not None:
            self._n_parts = len(rows)
        whole, damaged = set(), {}
        for number, read in stored_parts(self.path, self._environment["run"]).items():
            if number >= self._n_parts:
                damaged[number] = f"part {number} is none of the {self._n_parts} parts of this run"
                continue
            try:
                found = len(read())
            except ValueError as error:
                damaged[number] = str(error)
                continue
            if rows is None or found == rows[number]:
                whole.add(number)
            else:
                damaged[number] = f"part {number} has {found} rows and should have {rows[number]}"
        return whole, damaged

    def join(self, sources: Sequence[Callable[[], SolvedPairs]] | None = None) -> SolvedPairs:
        """Join the parts to ``pairs.parquet``, and read it back.

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
            sources = self._sources()
        if not sources:
            raise ValueError(requirement("out", "a folder with solved pairs", self.path))
        with open_whole(self.path / PAIRS) as file:
            write_joined(file, sources)
        self._joined = True
        return _read_pairs(self.path)

    def _sources(self) -> list[Callable[[], SolvedPairs]]:
        parts = stored_parts(self.path, self._environment["run"])
        return [read for number, read in parts.items() if number < self._n_parts]

    def finish(self, summary: Mapping[str, Any], arrays: Mapping[str, Tensor] | None = None) -> Run:
        """Write what is left to write, ``summary.json`` last, remove the parts, read it all back.

        The parts are joined where `join` has not done so.
        """
        if not self._joined and self._sources():
            self.join()
        if arrays:
            tensors = {name: value.detach().cpu().contiguous() for name, value in arrays.items()}
            write_file(self.path / ARRAYS, save(tensors))
        written = [name for name in (PAIRS, ARRAYS) if (self.path / name).exists()]
        self._describe(outputs={name: checksum(self.path / name) for name in written})
        self._write_json(SUMMARY, {"command": self.command, **summary})
        remove_parts(self.path)
        self._lock.release()
        return load_run(self.path)

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        text = json.dumps(plain(content), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        write_file(self.path / name, text.encode())


def load_run(path: str | os.PathLike[str]) -> Run:
    """Read a run folder, a finished one or one that was interrupted.

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
        config, described = read_options(folder)
        finished = (folder / SUMMARY).is_file()
        summary = read_json(folder / SUMMARY) if finished else {}
        if not finished:
            parts = list(_whole(stored_parts(folder, described.get("run", ""))))
            pairs = SolvedPairs.join(parts) if parts else None
        else:
            for name, expected in described["outputs"].items():
                if checksum(folder / name) != expected:
                    raise ValueError(f"{folder / name} is damaged: its checksum is another.")
            pairs = _read_pairs(folder) if (folder / PAIRS).is_file() else None
        arrays = stored_arrays(folder / ARRAYS) if (folder / ARRAYS).is_file() else {}
    except (OSError, ValueError) as error:
        required = "a readable run folder; --overwrite makes a damaged one anew"
        raise ValueError(f"{requirement('run_dir', required, folder)} {error}") from error
    return Run(
        path=folder,
        command=described["command"],
        config=config,
        environment=described,
        pairs=pairs,
        arrays=arrays,
        summary=summary,
        finished=finished,
    )


def stored_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read arrays by name, those that are no integers in double precision."""
    tensors = read_tensors(path).items()
    return {
        name: (value.double() if value.is_floating_point() else value).numpy()
        for name, value in tensors
    }


def _read_pairs(folder: Path) -> SolvedPairs:
    """Read the table of a run; a ValueError that names the file where it is damaged."""
    path = folder / PAIRS
    try:
        # not memory-mapped: a file that is cut while it is read would end the process
        with parquet.ParquetFile(path, memory_map=False) as file:
            if CURVE in file.schema_arrow.names:
                return SolvedPairs.read(file)
        return read_pairs(path, folder / CURVES)
    except DAMAGE as error:
        raise ValueError(f"{path} is damaged: {one_line(error)}") from error


def _whole(parts: Mapping[int, Callable[[], SolvedPairs]]) -> Iterator[SolvedPairs]:
    for read in parts.values():
        try:
            yield read()
        except ValueError as error:
            warnings.warn(f"{error}; its pairs are left out", stacklevel=3)
