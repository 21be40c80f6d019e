"""Files written whole or not at all, read within bounds, in folders that one process writes."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import yaml  # type: ignore[import-untyped]
from filelock import FileLock, Timeout

LOCK = ".geolatent-lock"
# far above any file of options, far below what takes long to read
_YAML_BYTES, _YAML_DEPTH, _YAML_NODES = 1_000_000, 50, 20_000


class UnfinishedError(RuntimeError):
    """A part of the work failed; what was done is stored, and the rest can be done again."""


@contextmanager
def open_whole(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file to be written under a temporary name, flushed to the disk and then renamed.

    Whoever reads ``path`` sees the old content or the new one, never a part. Missing folders are
    made; the temporary file is removed where writing fails.

    Raises
    ------
    OSError
        Where the folder cannot be made or written to, or the disk is full; it names ``path``.
    """
    target = Path(path)
    unfinished = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with unfinished.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, target)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
    except OSError as error:
        # the system's message names the temporary file, or none where the disk is full
        if error.filename not in (None, str(unfinished), str(target)):
            raise
        raise OSError(error.errno, error.strerror or str(error), str(target)) from error


def one_line(error: Exception) -> str:
    """Return an error's message in one line."""
    return " ".join(str(error).split())


def write_file(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write bytes whole or not at all; see `open_whole`."""
    with open_whole(path) as file:
        file.write(content)
    return Path(path)


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Read a YAML file of plain values, within bounds; see `parse_yaml`.

    Raises
    ------
    OSError
        Where the file cannot be opened.
    ValueError
        Where it is not such a file; the message, one line, names it.
    """
    file = Path(path)
    with file.open("rb") as opened:
        content = opened.read(_YAML_BYTES + 1)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # a limit that cuts a letter in two is told as what it is
        if len(content) <= _YAML_BYTES:
            raise ValueError(f"{file} is no readable YAML: {error}.") from error
        text = content.decode(errors="replace")
    return parse_yaml(text, str(file))


def parse_yaml(text: str, name: str) -> Any:
    """Read YAML of plain values, within bounds that no file of options comes near.

    Bounded are its size (1 MB), how deep lists and mappings lie in one another (50), and the number
    of its values (20,000), those that aliases repeat counted each time: a few lines of YAML can
    stand for more values than a memory holds. No object but numbers, texts, dates, lists and
    mappings is built.

    Parameters
    ----------
    text
        The YAML.
    name
        What to call it in messages, such as a path.

    Raises
    ------
    ValueError
        Where it is no such YAML; the message is one line.

    Examples
    --------
    >>> parse_yaml("steps: [1, 2.5]", "options")
    {'steps': [1, 2.5]}
    """
    try:
        if len(text.encode(errors="replace")) > _YAML_BYTES:
            raise yaml.YAMLError(f"it is longer than {_YAML_BYTES:,} bytes")
        _check_bounds(text)
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{name} is no readable YAML: {one_line(error).rstrip('.')}.") from error


def _check_bounds(text: str) -> None:
    """Raise a YAMLError where YAML is too deep or stands for too many values."""
    sizes: dict[str | None, int | None] = {}
    # the values in each of the lists and mappings that are open, and their anchors
    counts: list[int] = [0]
    anchors: list[str | None] = []
    for event in yaml.parse(text, yaml.SafeLoader):
        size: int | None
        if isinstance(event, yaml.CollectionStartEvent):
            anchors.append(event.anchor)
            counts.append(0)
            sizes[event.anchor] = None
            if len(anchors) > _YAML_DEPTH:
                raise yaml.YAMLError(f"it is nested more than {_YAML_DEPTH} deep")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            size = sizes[anchors.pop()] = 1 + counts.pop()
        elif isinstance(event, yaml.AliasEvent):
            # of one that is not there, the loader tells
            size = sizes.get(event.anchor, 0)
            if size is None:
                raise yaml.YAMLError("an alias stands for a value that it is a part of")
        elif isinstance(event, yaml.ScalarEvent):
            size = sizes[event.anchor] = 1
        else:
            continue
        counts[-1] += size
        if counts[-1] > _YAML_NODES:
            raise yaml.YAMLError(f"it stands for more than {_YAML_NODES:,} values")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON file that holds names and values.

    Raises
    ------
    OSError
        Where the file cannot be opened.
    ValueError
        Where it holds anything else; the message, one line, names it.
    """
    file = Path(path)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no readable JSON: {str(error).rstrip('.')}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} is no readable JSON: it holds no names and values.")
    return content


def remove_leftovers(folder: Path, is_own: Callable[[str], object]) -> None:
    """Remove the temporary files that killed writers left in a folder.

    Only for who holds the folder's lock: the files of a writer at work look the same.

    Parameters
    ----------
    folder
        The folder.
    is_own
        Whether a file's name is one that is written here; temporary files of others stay.
    """
    for left in folder.glob(".*.*.tmp"):
        if is_own(left.name[1:].rsplit(".", 2)[0]):
            left.unlink(missing_ok=True)


def checksum(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 checksum of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FolderLock:
    """A lock on a folder, for one process at a time; the system frees it when its owner ends.

    It is a lock of the system on the file ``.geolatent-lock``, which tells process and machine.

    Raises
    ------
    BlockingIOError
        Where another process, or another lock of this one, holds it; the message names the owner.
    OSError
        Where the file cannot be opened, is a link, or lies where there are no locks.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._lock = FileLock(self._path, blocking=False, thread_local=False, on_acquired=_sign)
        try:
            self._lock.acquire()
        except Timeout:
            raise BlockingIOError(
                f"{folder} is being written by another process: {self._owner()}. "
                "Wait until it ends, or choose another folder."
            ) from None

    def _owner(self) -> str:
        owner = ""
        # it may have just begun or ended, and some systems let nobody read a locked file
        with suppress(OSError):
            owner = self._path.read_text(errors="replace")
        return owner or "one that told no name"

    def release(self) -> None:
        """Free the lock and remove its file; a second time does nothing."""
        if self._lock.is_locked:
            # before it is free: who opened the file meanwhile finds it gone, and makes another;
            # where an open file cannot be removed, filelock does it
            with suppress(PermissionError):
                self._path.unlink(missing_ok=True)
            self._lock.release()


def _sign(handle: int) -> None:
    os.ftruncate(handle, 0)
    os.write(handle, f"process {os.getpid()} on {platform.node()}".encode())
