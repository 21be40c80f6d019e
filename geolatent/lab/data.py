"""Images, or what passes for such, and labels to train and test on, all scaled to [-1, 1]."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geolatent.checks import check_choice, check_number, describe, requirement
from geolatent.lab.config import TORCHVISION_NAMES, DataOptions
from geolatent.lab.idx import VARIABLE, find_mnist, mnist_folder, read_idx
from geolatent.lab.sst import fields
from geolatent.lab.systems import is_system, windows
from geolatent.models.checkpoint import read_tensors
from geolatent.requirements import check_selection

__all__ = [
    "DataOptions",
    "digits",
    "load",
    "load_images",
    "scale_pixels",
    "select",
    "torchvision_images",
]

TEST_FRACTION = 0.25
SPLIT_SEED = 0


def load(options: DataOptions) -> tuple[Tensor, Tensor | None]:
    """Load the images that the options name, scaled to [-1, 1].

    Parameters
    ----------
    options
        Which images.

    Returns
    -------
    tuple[Tensor, Tensor | None]
        Images (n, channels, height, width), float32, and labels (n,), int64; None for a file
        without labels.

    Raises
    ------
    FileNotFoundError
        If the data are not there; the message says what to do.
    ValueError
        If the data cannot be read, or lack a chosen class or enough images of it.
    """
    if options.name in TORCHVISION_NAMES:
        return torchvision_images(
            options.name,
            options.root,
            options.split,
            options.classes,
            options.per_class,
            options.download,
            options.seed,
        )
    images: Tensor
    labels: Tensor | None
    if options.name == "digits":
        images, labels = digits(options.split)
    elif is_system(options.name):
        images, labels = windows(options)
    else:
        images, labels = _split(options)
    if labels is None:
        for option in ("classes", "per_class"):
            if getattr(options, option) is not None:
                required = f"None, for {options.path} holds no labels"
                raise ValueError(requirement(option, required, getattr(options, option)))
        return images, None
    rows = select(labels, options.classes, options.per_class, options.seed)
    return images[rows], labels[rows]


def _split(options: DataOptions) -> tuple[Tensor, Tensor | None]:
    """Load one split of a file, the user's own or of sea surface temperature."""
    images: Tensor
    labels: Tensor | None
    if options.name == "sst":
        images, labels = fields(options.path)
    else:
        # The options are known to be there; the checks are for the type checker.
        path, low, high = options.path or "", options.low or 0.0, options.high or 0.0
        images, labels = load_images(path, low=low, high=high)
    if options.split == "all":
        return images, labels
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(options.seed))
    n_test = round(options.test_fraction * len(images))
    if n_test in (0, len(images)):
        required = f"a share of {len(images)} images that leaves some on either side"
        raise ValueError(requirement("test_fraction", required, options.test_fraction))
    rows = order[:n_test] if options.split == "test" else order[n_test:]
    rows = rows.sort().values
    return images[rows], None if labels is None else labels[rows]


def scale_pixels(pixels: Tensor, largest: float) -> Tensor:
    """Scale pixels from [0, largest] to [-1, 1]: 2 pixel / largest - 1, in float32.

    This is the one place where the package fixes the range of its images.

    Parameters
    ----------
    pixels
        Grey values of any shape, 0 for the background.
    largest
        The value that becomes 1: 16 for scikit-learn's digits, 255 for bytes.

    Returns
    -------
    Tensor
        float32, of the shape of ``pixels``.

    Examples
    --------
    >>> scale_pixels(torch.tensor([0, 4, 16]), largest=16)
    tensor([-1.0000, -0.5000,  1.0000])
    """
    return pixels.to(torch.float32) * (2.0 / largest) - 1.0


def digits(split: str = "train") -> tuple[Tensor, Tensor]:
    """Load scikit-learn's 1,797 handwritten digits of 8 x 8 pixels.

    The data ship inside scikit-learn, so nothing is downloaded. The split is the same on every
    call: a quarter of the images, drawn from each class in proportion, is the test set. Within a
    split the images keep their order in the data set.

    Parameters
    ----------
    split
        Which part: 1,347, 450 or 1,797 images.

    Returns
    -------
    tuple[Tensor, Tensor]
        Grey values in [-1, 1], (n, 1, 8, 8), float32, -1 the background; and the digits that were
        written, 0 to 9, (n,), int64.

    References
    ----------
    E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository, 1998, doi:10.24432/C50P49.

    Examples
    --------
    >>> images, labels = digits("test")
    >>> images.shape, labels.shape
    (torch.Size([450, 1, 8, 8]), torch.Size([450]))
    """
    # scikit-learn takes over a second to import: only those who ask for the data pay for it.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    check_choice("split", split, ("train", "test", "all"))
    raw = load_digits()
    chosen = np.arange(len(raw.target))
    if split != "all":
        train, test = train_test_split(
            chosen, test_size=TEST_FRACTION, random_state=SPLIT_SEED, stratify=raw.target
        )
        chosen = np.sort(train if split == "train" else test)
    images = scale_pixels(torch.from_numpy(raw.images[chosen]), largest=16.0).unsqueeze(1)
    return images, torch.from_numpy(raw.target[chosen]).to(torch.int64)


def torchvision_images(
    name: str,
    root: str | os.PathLike[str],
    split: str = "train",
    classes: Sequence[int] | None = None,
    per_class: int | None = None,
    download: bool = False,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Load one of torchvision's data sets of 28 x 28 grey images.

    EMNIST's files hold every image transposed; here they are upright. The images keep their order
    in the data set, and the labels are torchvision's: in "EMNIST-letters" they count from 1 to 26.

    Parameters
    ----------
    name
        "MNIST", "FashionMNIST", or "EMNIST-" with balanced, byclass, bymerge, digits, letters or
        mnist.
    root
        The folder that holds, or is to hold, the folder ``MNIST``, ``FashionMNIST`` or ``EMNIST``.
        MNIST's own files, such as ``train-images-idx3-ubyte.gz``, may also lie in it as they are;
        the variable ``GEOLATENT_MNIST`` names the folder where ``root`` is "data", the default, and
        has no MNIST.
    split
        Which part.
    classes
        The labels to keep; all by default.
    per_class
        How many images of each class to draw at random; all by default.
    download
        Download what is missing.
    seed
        Seed of that draw.

    Returns
    -------
    tuple[Tensor, Tensor]
        Grey values in [-1, 1], (n, 1, 28, 28), float32, -1 the background; and labels, (n,), int64.

    Raises
    ------
    FileNotFoundError
        If the files are not there and ``download`` is false.
    ConnectionError
        If the download fails.
    ValueError
        If a file is damaged, or the data lack a chosen class or enough images of it.

    References
    ----------
    Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits", 1998.
    H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST", 2017, arXiv:1708.07747.
    G. Cohen, S. Afshar, J. Tapson, A. van Schaik, "EMNIST: an extension of MNIST to handwritten
    letters", 2017, arXiv:1702.05373.
    """
    check_choice("name", name, TORCHVISION_NAMES)
    check_choice("split", split, ("train", "test"))
    check_selection(classes, per_class, seed)
    files = find_mnist(mnist_folder(root), split) if name == "MNIST" else None
    if files is not None:
        pixels, labels = _mnist(*files)
    else:
        pixels, labels = _torchvision(name, root, split, download)
    rows = select(labels, classes, per_class, seed)
    return scale_pixels(pixels[rows], largest=255.0).unsqueeze(1).contiguous(), labels[rows]


def _mnist(images: Path, labels: Path) -> tuple[Tensor, Tensor]:
    """Read MNIST's own files of images (n, 28, 28) and labels."""
    pixels, numbers = read_idx(images), read_idx(labels)
    if pixels.shape != (*numbers.shape, 28, 28) or not numbers.size:
        required = "a folder with undamaged files of MNIST, images and labels of one split"
        found = f"{images} of shape {pixels.shape} and {labels} of shape {numbers.shape}"
        raise ValueError(requirement("root", required, found))
    return torch.from_numpy(pixels.copy()), torch.from_numpy(numbers.astype(np.int64))


def _torchvision(
    name: str, root: str | os.PathLike[str], split: str, download: bool
) -> tuple[Tensor, Tensor]:
    """Let torchvision read images, (n, 28, 28), and labels."""
    # torchvision takes seconds to import: only those who ask for the data pay for it.
    from torchvision import datasets

    kind, _, subset = name.partition("-")
    arguments: dict[str, Any] = {"split": subset} if subset else {}
    raw = Path(root) / kind / "raw"
    required = f"a folder with undamaged files of {name}; remove {raw} and download them again"
    damaged = requirement("root", required, root)
    try:
        found = getattr(datasets, kind)(
            root=str(root), train=split == "train", download=download, **arguments
        )
        pixels, labels = found.data, found.targets
    except (
        *(AssertionError, EOFError, KeyError, OSError, RuntimeError, TypeError, ValueError),
        pickle.UnpicklingError,
    ) as error:
        # torchvision has one RuntimeError for a missing data set, for a failed download and for a
        # file that is too short.
        reason = " ".join(str(error).split()) or type(error).__name__
        if "Dataset not found" in reason:
            required = (
                f"a folder with {name}: torchvision's files in {raw}; "
                "to download them, set `download` to true"
            )
            if name == "MNIST":
                required += f"; or MNIST's own *-ubyte.gz, there or in the folder of {VARIABLE}"
            raise FileNotFoundError(requirement("root", required, root)) from error
        if download and (isinstance(error, OSError) or "Error downloading" in reason):
            message = f"{name} could not be downloaded to {raw}: {reason}"
            raise ConnectionError(message) from error
        raise ValueError(f"{damaged} {reason}") from error
    if pixels.shape != (len(labels), 28, 28) or not len(labels):
        message = f"images of shape {tuple(pixels.shape)} and {len(labels)} labels"
        raise ValueError(f"{damaged} It holds {message}.")
    return pixels.mT if kind == "EMNIST" else pixels, labels.to(torch.int64)


def load_images(
    path: str | os.PathLike[str], *, low: float, high: float
) -> tuple[Tensor, Tensor | None]:
    """Load images, and labels where there are any, from a file of your own.

    Parameters
    ----------
    path
        ``X.npy`` holds the images alone; ``X.npz``, ``X.safetensors`` and a dictionary in ``X.pt``
        or ``X.pth`` hold them as ``images``, and the labels, if any, as ``labels``. Nothing is
        unpickled. Images have shape (n, height, width) or (n, channels, height, width).
    low, high
        The values that mean black and white; they become -1 and 1.

    Returns
    -------
    tuple[Tensor, Tensor | None]
        Images (n, channels, height, width), float32, and labels (n,), int64, or None.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file cannot be read, an array has a wrong shape, or a value lies outside [low, high].

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/grey.npy", np.full((3, 4, 4), 255, dtype=np.uint8))
    ...     images, labels = load_images(f"{folder}/grey.npy", low=0, high=255)
    >>> images.shape, images.unique(), labels
    (torch.Size([3, 1, 4, 4]), tensor([1.]), None)
    """
    check_number("low", low)
    check_number("high", high, above=low)
    path = Path(path)
    arrays = read_arrays("path", path, lone="images")
    if "images" not in arrays:
        required = "a file that holds `images`"
        found = f"{path}, which holds {', '.join(sorted(arrays)) or 'nothing'}"
        raise ValueError(requirement("path", required, found))
    images = arrays["images"]
    if images.ndim not in (3, 4) or 0 in images.shape or images.is_complex():
        required = f"of shape (n, height, width) or (n, channels, height, width) in {path}"
        raise ValueError(requirement("images", required, describe(images)))
    images = images.to(torch.float64)
    # NaN is not between the two either.
    if not bool(((images >= low) & (images <= high)).all()):
        required = f"between `low`, {low}, and `high`, {high}, in {path}"
        found = f"values from {float(images.min())} to {float(images.max())}"
        raise ValueError(requirement("images", required, found))
    images = scale_pixels(images - low, largest=high - low)
    labels = arrays.get("labels")
    if labels is not None:
        if labels.shape != images.shape[:1] or labels.is_floating_point() or labels.is_complex():
            required = f"integers of shape ({len(images)},) in {path}"
            raise ValueError(requirement("labels", required, describe(labels)))
        labels = labels.to(torch.int64)
    return images if images.ndim == 4 else images.unsqueeze(1), labels


def select(
    labels: Tensor,
    classes: Sequence[int] | None = None,
    per_class: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Return the rows of chosen classes, some of each drawn at random, in their order.

    Parameters
    ----------
    labels
        Integers, (n,).
    classes
        The labels to keep; all by default.
    per_class
        How many rows of each class to draw; all by default.
    seed
        Seed of the draw.

    Returns
    -------
    Tensor
        Row numbers, increasing, (m,), int64.

    Examples
    --------
    >>> select(torch.tensor([3, 1, 3, 2]), classes=(2, 3))
    tensor([0, 2, 3])
    """
    check_selection(classes, per_class, seed)
    present = labels.unique().tolist()
    wanted = present if classes is None else list(classes)
    missing = sorted(set(wanted) - set(present))
    if missing:
        required = f"among the labels {present}"
        raise ValueError(requirement("classes", required, missing))
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for label in sorted(wanted):
        members = (labels == label).nonzero().flatten()
        if per_class is not None:
            if len(members) < per_class:
                required = f"at most {len(members)}, the number of images of class {label}"
                raise ValueError(requirement("per_class", required, per_class))
            members = members[torch.randperm(len(members), generator=generator)[:per_class]]
        rows.append(members)
    return torch.cat(rows).sort().values


def read_arrays(name: str, path: Path, lone: str) -> dict[str, Tensor]:
    """Read the file that an option names: arrays as tensors, by name; ``lone`` names one alone."""
    if not path.is_file():
        raise FileNotFoundError(requirement(name, "an existing file", path))
    if path.suffix not in (".npy", ".npz"):
        return read_tensors(path, lone)
    try:
        with path.open("rb") as file:
            # Object arrays are refused: they would have to be unpickled, which can run code.
            found = np.load(file, allow_pickle=False)
            arrays = {lone: found} if isinstance(found, np.ndarray) else dict(found)
        return {key: torch.from_numpy(array) for key, array in arrays.items()}
    except (ValueError, TypeError, EOFError, OSError, KeyError, zipfile.BadZipFile) as error:
        message = requirement(name, "a readable file of numbers", path)
        raise ValueError(f"{message} {error}") from error
