"""Decoded outputs as PNG images in a page."""

from __future__ import annotations

import base64

import torch
from torch import Tensor

from geolatent.lab.sample import png_bytes

# what stands for values that are not finite, and between the images of a strip
_UNKNOWN, _GAP = 0.0, 1.0


def pictures(outputs: Tensor) -> Tensor:
    """Return outputs (n, ...) as images (n, 1 or 3, height, width) with values in [-1, 1].

    Images, (n, 1 or 3, height, width) or (n, height, width), are taken as they are, from -1, black,
    to 1, white; of other numbers of channels the mean is shown. Outputs of other shapes become a
    row of grey values between the smallest and the largest of all.
    """
    images = outputs.detach().cpu().double()
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4:
        flat = images.flatten(1)
        known = flat[flat.isfinite()]
        low, high = (known.amin(), known.amax()) if known.numel() else (flat.new_zeros(()),) * 2
        scaled = 2.0 * (flat - low) / (high - low).clamp_min(1e-12) - 1.0
        images = scaled[:, None, None, :]
    if images.shape[1] not in (1, 3):
        images = images.mean(1, keepdim=True)
    return torch.where(images.isfinite(), images, _UNKNOWN)


def strip(images: Tensor, gap: int = 1) -> Tensor:
    """Return `pictures` (n, 1 or 3, h, w) as one, beside each other with white between.

    Examples
    --------
    >>> strip(torch.zeros(3, 1, 8, 8)).shape
    torch.Size([1, 8, 26])
    """
    gapped = torch.nn.functional.pad(images, (0, gap), value=_GAP)
    whole = torch.cat(list(gapped), dim=2)
    return whole[:, :, : whole.shape[2] - gap]


def data_url(image: Tensor) -> str:
    """Return an image (1 or 3, height, width) as the address of an `img`."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode()
