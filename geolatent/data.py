"""Images and labels to train and test on, all scaled to [-1, 1]."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from geolatent.checks import check_choice

TEST_FRACTION = 0.25
SPLIT_SEED = 0


def scale_pixels(pixels: Tensor, largest: float) -> Tensor:
    """Scale pixels from [0, largest] to [-1, 1]: 2 pixel / largest - 1, in float32.

    This is the one place where the package fixes the range of its images.

    Parameters
    ----------
    pixels : Tensor, any shape
        Grey values, 0 for the background.
    largest : float
        The value that becomes 1: 16 for scikit-learn's digits, 255 for bytes.

    Returns
    -------
    Tensor, float32, of the shape of ``pixels``

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
    split : {"train", "test", "all"}
        Which part: 1,347, 450 or 1,797 images.

    Returns
    -------
    images : Tensor (n, 1, 8, 8), float32
        Grey values in [-1, 1]; -1 is the background.
    labels : Tensor (n,), int64
        The digit that was written, 0 to 9.

    Raises
    ------
    ValueError
        If ``split`` is none of the three names.

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
