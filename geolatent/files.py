"""Files that are written whole or not at all, and a folder that one process at a time writes."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
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


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed writers left in a folder.

    Only for who holds the folder's lock: the files of a writer at work look the same.
    """
    for left in folder.glob(f".*{_TEMPORARY}"):
        left.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class FolderLock:
    """A lock on a folder, for one process at a time; the system frees it when its owner ends.

    It is a lock of the system (``flock``) on the file ``.lock``, which tells process and machine.

    Raises
    ------
    BlockingIOError
        If another process, or another lock of this one, holds it; the message names the owner.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
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
                raise BlockingIOError(
                    f"{self.path.parent} is being written by another process: {_told(owner)}. "
                    "Wait until it ends, or choose another folder."
                ) from None
            # its owner may have removed the file while this process opened it
            if self.path.exists() and os.path.samestat(os.fstat(handle), self.path.stat()):
                return handle
            os.close(handle)

    def release(self) -> None:
        """Free the lock and remove its file; a second time does nothing."""
        if self._close.alive:
            self.path.unlink(missing_ok=True)
            self._close()


def _told(owner: str) -> str:
    try:
        found = json.loads(owner)
        return f"process {found['pid']} on {found['host']}"
    except (ValueError, TypeError, KeyError):  # it has the lock and has not written yet
        return "one that has only just begun"
