"""Files written whole or not at all, read within bounds, in folders that one process writes."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import yaml  # type: ignore[import-untyped]

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".geolatent-lock"
# what earlier versions called it; files of others have that name too
_OLD_LOCK = ".lock"
RECORD = "geolatent-files.json"
# far above any file of options, far below what takes long to read
_YAML_BYTES, _YAML_DEPTH, _YAML_NODES = 1_000_000, 50, 20_000
_TEMPORARY = ".tmp"
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)


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
    name = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{target.name}.", suffix=_TEMPORARY, dir=target.parent
        )
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        # the system's message names the temporary file, or none where the disk is full
        if error.filename not in (None, name, str(target)):
            raise
        raise OSError(error.errno, error.strerror or str(error), str(target)) from error


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
        If the file cannot be opened.
    ValueError
        If it is not such a file; the message, one line, names it.
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
        If it is no such YAML; the message is one line.

    Examples
    --------
    >>> parse_yaml("steps: [1, 2.5]", "options")
    {'steps': [1, 2.5]}
    """
    try:
        if len(text.encode(errors="replace")) > _YAML_BYTES:
            raise yaml.YAMLError(f"it is longer than {_YAML_BYTES:,} bytes")
        loader = _BoundedLoader(text)
        try:
            root = loader.get_single_node()
            return None if root is None else loader.construct_document(root)
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{name} is no readable YAML: {reason.rstrip('.')}.") from error


class _BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which gives up before a document grows too deep or too large."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._count = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node, and count the values in it, those of aliases again."""
        if self._depth >= _YAML_DEPTH:
            raise yaml.YAMLError(f"it is nested more than {_YAML_DEPTH} deep")
        self._depth += 1
        self._count += 1
        repeated = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if repeated:
            # the size of a node that is still being composed is not known
            if id(node) not in self._sizes:
                raise yaml.YAMLError("an alias stands for a value that it is a part of")
            return node
        self._sizes[id(node)] = 1 + sum(self._sizes[id(child)] for child in _children(node))
        if max(self._count, self._sizes[id(node)]) > _YAML_NODES:
            raise yaml.YAMLError(f"it stands for more than {_YAML_NODES:,} values")
        return node


def _children(node: Any) -> Iterator[Any]:
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON file that holds names and values.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it holds anything else; the message, one line, names it.
    """
    file = Path(path)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no readable JSON: {str(error).rstrip('.')}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} is no readable JSON: it holds no names and values.")
    return content


def record_files(folder: Path, names: Iterable[str]) -> None:
    """Add names to the list of what a run wrote to its folder; before the files are written.

    Parameters
    ----------
    folder
        The folder; the list is its ``geolatent-files.json``. One that is not of a run, which has an
        ``environment.json``, gets no list.
    names
        Names of files, relative to the folder.
    """
    if not (folder / "environment.json").is_file():
        return
    before = recorded_files(folder) or set()
    after = before | set(names)
    if after != before:
        text = json.dumps({"files": sorted(after)}, indent=2) + "\n"
        write_file(folder / RECORD, text.encode())


def recorded_files(folder: Path) -> set[str] | None:
    """Return the names that `record_files` was given; None without a readable list.

    A list that is damaged is told in a warning.
    """
    if not (folder / RECORD).is_file():
        return None
    try:
        names = read_json(folder / RECORD).get("files")
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return set(names)
        reason = f"{folder / RECORD} holds no list of files."
    except (OSError, ValueError) as error:
        reason = str(error)
    warnings.warn(f"{reason} What was written is known by its usual names alone.", stacklevel=3)
    return None


def remove_leftovers(folder: Path, is_own: Callable[[str], bool]) -> None:
    """Remove the temporary files that killed writers left in a folder.

    Only for who holds the folder's lock: the files of a writer at work look the same.

    Parameters
    ----------
    folder
        The folder.
    is_own
        Whether a file's name is one that is written here; temporary files of others stay.
    """
    for left in folder.glob(f".*{_TEMPORARY}"):
        target = left.name.removeprefix(".").removesuffix(_TEMPORARY).rpartition(".")[0]
        if is_own(target):
            left.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class FolderLock:
    """A lock on a folder, for one process at a time; the system frees it when its owner ends.

    It is a lock of the system (``flock``) on the file ``.geolatent-lock``, which tells process and
    machine. Locks of earlier versions, ``.lock``, are heeded.

    Raises
    ------
    BlockingIOError
        If another process, or another lock of this one, holds it; the message names the owner.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        remove_old_lock(folder)
        handle = self._acquire()
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps({"pid": os.getpid(), "host": platform.node()}).encode())
        # also where nobody releases it
        self._close = weakref.finalize(self, os.close, handle)

    def _acquire(self) -> int:
        while True:
            # no link is followed: what it points to may lie elsewhere
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | _NO_FOLLOW, 0o666)
            if fcntl is None:
                warnings.warn(
                    "this system has no file locks; start no second command on the same folder",
                    stacklevel=4,
                )
                return handle
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.read(handle, 1000).decode(errors="replace")
                os.close(handle)
                raise _held(self.path.parent, owner) from None
            # its owner may have removed the file while this process opened it
            if self.path.exists() and os.path.samestat(os.fstat(handle), self.path.stat()):
                return handle
            os.close(handle)

    def release(self) -> None:
        """Free the lock and remove its file; a second time does nothing."""
        if self._close.alive:
            self.path.unlink(missing_ok=True)
            self._close()


def remove_old_lock(folder: Path) -> None:
    """Remove the lock ``.lock`` of an earlier version; a file of that name of others stays.

    Raises
    ------
    BlockingIOError
        If a process of that version holds it.
    """
    path = folder / _OLD_LOCK
    if path.is_symlink() or not path.is_file() or fcntl is None:
        return
    with path.open("rb") as file:
        owner = file.read(1000).decode(errors="replace")
        if _told(owner) is None:
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _held(folder, owner) from None
        path.unlink()


def _held(folder: Path, owner: str) -> BlockingIOError:
    # it may have the lock and not have written yet
    told = _told(owner) or "one that has only just begun"
    return BlockingIOError(
        f"{folder} is being written by another process: {told}. "
        "Wait until it ends, or choose another folder."
    )


def _told(owner: str) -> str | None:
    """Return what a lock tells of its owner; None where it is no lock."""
    try:
        found = json.loads(owner)
        return f"process {found['pid']} on {found['host']}"
    except (ValueError, TypeError, KeyError):
        return None
