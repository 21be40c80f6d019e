"""Planes in a latent space: what the page draws of more than two dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from geolatent.checks import check_choice, check_integer, requirement

PlaneKind = Literal["dimensions", "principal", "pair"]
PLANE_KINDS: dict[str, str] = {
    "dimensions": "two latent dimensions",
    "principal": "principal components of the codes",
    "pair": "the plane of the two codes",
}
# share of the codes' extent that is left free around them
_MARGIN = 0.08


@dataclass(frozen=True, eq=False)
class Plane:
    """The plane of points origin + p_1 e_1 + p_2 e_2, with orthonormal e_1, e_2.

    Attributes
    ----------
    kind
        How it was chosen.
    origin
        Shape (d,), float64.
    axes
        The rows e_1, e_2, (2, d), float64.
    low, high
        Corners of what is drawn, (2,) each, in latent units.
    names
        What its axes are called.

    Examples
    --------
    >>> plane = plane_of_dimensions(torch.tensor([[0.0, 1.0, 2.0], [4.0, 5.0, 7.0]]), 0, 2)
    >>> plane.points(torch.tensor([[3.0, 9.0, 4.0]])), plane.codes(torch.tensor([[3.0, 4.0]]))
    (tensor([[3., 4.]], dtype=torch.float64), tensor([[3., 3., 4.]], dtype=torch.float64))
    """

    kind: PlaneKind
    origin: Tensor
    axes: Tensor
    low: Tensor
    high: Tensor
    names: tuple[str, str]

    def points(self, codes: Tensor) -> Tensor:
        """Project codes (n, d) on the plane, (n, 2)."""
        return (codes.cpu().double() - self.origin) @ self.axes.T

    def codes(self, points: Tensor) -> Tensor:
        """Return the codes of points in the plane, (n, 2) -> (n, d)."""
        return self.origin + points.double() @ self.axes

    @property
    def is_whole(self) -> bool:
        """Whether the plane is all of the latent space."""
        return self.origin.numel() == 2

    def describe(self) -> str:
        """Say in a sentence what the plane is."""
        if self.is_whole:
            return "The plane is the whole latent space; its shade is √det G, a logarithmic scale."
        what = {
            "dimensions": f"The plane of {' and '.join(self.names)}; the other dimensions of the "
            "background and of new codes are those of the mean code.",
            "principal": "The plane through the mean code along the two directions in which the "
            "codes vary most.",
            "pair": "The plane through the two codes, with the direction across them in which the "
            "codes vary most.",
        }[self.kind]
        return (
            f"{what} Codes and curves outside of it are shown by their projections. Its shade is "
            "√det EᵀGE, with E the plane's axes, on a logarithmic scale."
        )

    def plain(self) -> dict[str, Any]:
        """Return it in the types of JSON."""
        tensors = {name: getattr(self, name).tolist() for name in ("origin", "axes", "low", "high")}
        return {"kind": self.kind, "names": list(self.names), **tensors}

    @classmethod
    def from_plain(cls, given: Mapping[str, Any]) -> Plane:
        """Return the plane that `plain` gave."""
        names = ("origin", "axes", "low", "high")
        tensors = {name: torch.tensor(given[name], dtype=torch.float64) for name in names}
        return cls(kind=given["kind"], names=(given["names"][0], given["names"][1]), **tensors)


def plane_of_dimensions(codes: Tensor, first: int = 0, second: int = 1) -> Plane:
    """Return the plane of two latent dimensions through the mean of codes (n, d)."""
    d = codes.shape[1]
    for name, value in (("first", first), ("second", second)):
        check_integer(name, value, minimum=0)
        if value >= d:
            required = f"a latent dimension, 1 to {d}"
            raise ValueError(requirement(f"{name} dimension", required, value + 1))
    if first == second:
        required = "another dimension than the first"
        raise ValueError(requirement("second dimension", required, second + 1))
    chosen = [first, second]
    axes = torch.eye(d, dtype=torch.float64)[chosen]
    # of the dimensions shown, the coordinates are those of the codes themselves
    origin = codes.cpu().double().mean(0)
    origin[chosen] = 0.0
    return _drawn("dimensions", origin, axes, codes, (f"z{first + 1}", f"z{second + 1}"))


def plane_of_principal_components(codes: Tensor) -> Plane:
    """Return the plane through the mean of codes (n, d) in which they vary most."""
    centre = codes.cpu().double().mean(0)
    _, _, directions = torch.linalg.svd(codes.cpu().double() - centre, full_matrices=False)
    names = ("first principal component", "second principal component")
    return _drawn("principal", centre, _signed(directions[:2]), codes, names)


def plane_of_pair(codes: Tensor, start: Tensor, end: Tensor) -> Plane:
    """Return the plane through two codes (d,), and along the codes' largest variation across it."""
    begin = start.cpu().double()
    along = end.cpu().double() - begin
    length = along.norm()
    if not bool(length > 0):
        raise ValueError(requirement("codes", "two different ones for their plane", "equal ones"))
    along = along / length
    rest = codes.cpu().double() - codes.cpu().double().mean(0)
    rest = rest - torch.outer(rest @ along, along)
    across = torch.linalg.svd(rest, full_matrices=False)[2][:1]
    across = across - (across @ along)[:, None] * along
    axes = torch.cat([along[None], _signed(across / across.norm())])
    return _drawn("pair", begin, axes, codes, ("along the two codes", "across them"))


def make_plane(kind: str, codes: Tensor, dimensions: tuple[int, int], pair: Tensor) -> Plane:
    """Return a plane by its kind; dimensions count from 0, and the pair is (2, d)."""
    check_choice("plane", kind, tuple(PLANE_KINDS))
    if kind == "dimensions":
        return plane_of_dimensions(codes, *dimensions)
    if kind == "principal":
        return plane_of_principal_components(codes)
    return plane_of_pair(codes, pair[0], pair[1])


def _signed(directions: Tensor) -> Tensor:
    """Return directions whose largest component is positive, for a sign is chance."""
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    return directions * largest.sign()


def _drawn(
    kind: PlaneKind, origin: Tensor, axes: Tensor, codes: Tensor, names: tuple[str, str]
) -> Plane:
    """Return a plane of which the part around the codes is drawn."""
    points = (codes.cpu().double() - origin) @ axes.T
    low, high = points.amin(0), points.amax(0)
    margin = _MARGIN * (high - low).clamp_min(1e-3)
    return Plane(kind, origin, axes, low - margin, high + margin, names)
