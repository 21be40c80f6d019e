"""Paths seen in the output: places at equal steps of output length, and images there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geolatent.checks import check_integer, requirement
from geolatent.curves import CubicBSpline
from geolatent.lab.latent_model import LatentModel

# places of a path at which its output length is measured first
DENSE = 257


def equal_output_times(outputs: Tensor, n: int) -> Tensor:
    r"""Return the parameters at which paths have gone equal parts of their output length.

    The t_k with

    .. math::

        s(t_k) = \frac{k}{n - 1} s(1), \qquad k = 0, ..., n - 1,

    s the length of the polygon of the outputs up to t. Frames there change equally much from one to
    the next, to the accuracy of the polygon.

    Parameters
    ----------
    outputs
        Outputs at equal steps of t from 0 to 1, (B, N, ...), N at least 2.
    n
        Places, the ends included, at least 2.

    Returns
    -------
    Tensor
        Shape (B, n), float64, not descending. Equal steps of t for a path of no length and for one
        whose outputs are not all finite, which has none.

    Examples
    --------
    A path whose output is t^2 is half way at t = sqrt(1/2).

    >>> t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    >>> equal_output_times(t.square()[None, :, None], 3).numpy().round(4)
    array([[0.    , 0.7071, 1.    ]])
    """
    check_integer("n", n, minimum=2)
    if outputs.ndim < 3 or outputs.shape[1] < 2:
        required = "outputs of paths, (B, N, ...), N at least 2"
        raise ValueError(requirement("outputs", required, tuple(outputs.shape)))
    chords = outputs.flatten(2).double().diff(dim=1).norm(dim=2)
    last = chords.shape[1]
    walked = torch.cat([torch.zeros_like(chords[:, :1]), chords.cumsum(1)], dim=1)
    total = walked[:, -1:]
    even = torch.linspace(0.0, 1.0, last + 1, dtype=torch.float64, device=chords.device)
    known = total.isfinite() & (total > 0)
    walked = torch.where(known, walked / total, even)
    wanted = torch.linspace(0.0, 1.0, n, dtype=torch.float64, device=chords.device)
    wanted = wanted.expand(len(walked), n).contiguous()
    right = torch.searchsorted(walked.contiguous(), wanted).clamp(1, last)
    low, high = walked.gather(1, right - 1), walked.gather(1, right)
    share = torch.where(high > low, (wanted - low) / (high - low), 0.0)
    return ((right - 1 + share) / last).clamp(0.0, 1.0)


def polyline_at(points: Tensor, times: Tensor) -> Tensor:
    """Return points of polylines (B, N, d), whose vertices are at equal steps of t, at (B, n).

    Examples
    --------
    >>> polyline_at(torch.tensor([[[0.0], [1.0], [5.0]]]), torch.tensor([[0.25, 0.75]]))
    tensor([[[0.5000],
             [3.0000]]])
    """
    last = points.shape[1] - 1
    place = times.to(points.device, torch.float64) * last
    left = place.floor().clamp(0, last - 1).long()
    share = (place - left)[..., None]
    index = left[..., None].expand(-1, -1, points.shape[2])
    low, high = points.gather(1, index).double(), points.gather(1, index + 1).double()
    return torch.lerp(low, high, share).to(points)


@dataclass(frozen=True)
class Frames:
    """Images at equal steps of output length along paths.

    Attributes
    ----------
    codes
        Where, (B, n, d).
    images
        What is decoded there, (B, n, channels, height, width).
    times
        Parameters of the places, (B, n).
    """

    codes: Tensor
    images: Tensor
    times: Tensor


def frames_along(
    model: LatentModel, path: CubicBSpline | Tensor, n: int, n_dense: int = DENSE
) -> Frames:
    """Return images at equal steps of output length, the ends included.

    Parameters
    ----------
    model
        The model, whose mean images are the output.
    path
        Curves, or the points of polylines, (B, N, d), at equal steps of t, N at least 2.
    n
        Images.
    n_dense
        Places, at least, at which the output length is measured; a polyline of fewer vertices gets
        those half way between them.
    """
    dense = dense_points(path, n_dense)
    found = []
    # one path after the other: images at all places are many
    for number, points in enumerate(dense):
        times = equal_output_times(model.images(points)[None], n)
        if isinstance(path, CubicBSpline):
            codes = path[number](times.to(points))[0]
        else:
            codes = polyline_at(points[None], times)[0]
        found.append((codes, model.images(codes), times[0]))
    codes, images, times = (torch.stack(part) for part in zip(*found, strict=True))
    return Frames(codes, images, times)


def dense_points(path: CubicBSpline | Tensor, n_dense: int = DENSE) -> Tensor:
    """Return points at equal steps of t, at least so many, (B, N, d).

    Vertices of polylines stay; they get points half way between them until there are enough.
    """
    if isinstance(path, CubicBSpline):
        t = torch.linspace(0.0, 1.0, n_dense, dtype=torch.float64)
        return path(t.to(path.control_points))
    while path.shape[1] < n_dense:
        middles = (path[:, :-1] + path[:, 1:]) / 2
        woven = torch.stack([path[:, :-1], middles], dim=2).flatten(1, 2)
        path = torch.cat([woven, path[:, -1:]], dim=1)
    return path
