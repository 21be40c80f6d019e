"""MNIST's own files (IDX), packed by gzip or not: where they lie, and their numbers."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geolatent.requirements import requirement

# names the folder of MNIST where `root` is the default
VARIABLE = "GEOLATENT_MNIST"
DEFAULT_ROOT = "data"
_PREFIXES = {"train": "train", "test": "t10k"}
_KINDS = ("images-idx3-ubyte", "labels-idx1-ubyte")
# more than any of MNIST's files unpacks to
_MOST_BYTES = 2**28


def mnist_folder(root: str | os.PathLike[str]) -> Path:
    """Return the folder that MNIST is looked for in: ``root``, or that of ``GEOLATENT_MNIST``.

    The variable stands in for the default ``root`` alone, and only where that has no MNIST.
    """
    folder, variable = Path(root), os.environ.get(VARIABLE)
    there = any(find_mnist(folder, split) for split in _PREFIXES)
    if str(root) == DEFAULT_ROOT and variable and not there:
        return Path(variable)
    return folder


def find_mnist(folder: Path, split: str) -> tuple[Path, Path] | None:
    """Return the files of images and labels of a split, or None where one is missing.

    They lie flat in the folder, or in its ``MNIST/raw`` as torchvision puts them; each may end on
    ``.gz``.
    """
    for place in (folder / "MNIST" / "raw", folder):
        names = [f"{_PREFIXES[split]}-{kind}" for kind in _KINDS]
        found = [
            next((path for path in (place / name, place / f"{name}.gz") if path.is_file()), None)
            for name in names
        ]
        images, labels = found
        if images is not None and labels is not None:
            return images, labels
    return None


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read the bytes of an IDX file, packed by gzip where its name ends on ``.gz``.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it is damaged, or not of bytes.

    References
    ----------
    Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits", 1998: two
    zero bytes, the type (8 for bytes), the number of dimensions, their sizes as big-endian
    integers of 32 bits, the values.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(_MOST_BYTES)
        zero, kind, n_axes = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{n_axes}I", content, 4)
    except (gzip.BadGzipFile, EOFError, zlib.error, struct.error) as error:
        required = "an undamaged file of MNIST"
        raise ValueError(f"{requirement('root', required, path)} {error}.") from error
    start = 4 + 4 * n_axes
    expected = int(np.prod(shape, dtype=object))
    if zero or kind != 8 or len(content) - start != expected:
        required = f"an undamaged file of MNIST, with {expected} bytes after its head"
        found = f"{path}, with {len(content) - start}"
        raise ValueError(requirement("root", required, found))
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
