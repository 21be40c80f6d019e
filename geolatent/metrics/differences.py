"""Whether derivatives belong to a function's values: products against difference quotients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from geolatent.checks import requirement
from geolatent.metrics.independence import neighbour, random_like

# by which part of its size a product may differ from a quotient: too narrow for a derivative that
# is missing
_TOLERANCE = 0.1
# and the slopes on both sides from one another: a kink changes a quotient by half as much
_CURVATURE = 0.03
# steps are tried from the largest, in units of the cube root of the precision, until one agrees
_FIRST_STEP = 4.0
_STEP_RATIO = 8.0
_STEPS = 6
# units in the last place of values
_ROUNDING = 8.0
# where values are of half precision and points are not, there is room for few steps
_COARSE, _COARSE_STEP_RATIO, _COARSE_ROUNDING = 1e-4, 2.0, 2.0
# vector-Jacobian products that stand for a whole Jacobian
_PROBES = 4


class Quotients:
    """Central difference quotients of F at points along tangents, at steps made as they are needed.

    Parameters
    ----------
    function
        F: (n, ...) -> (n, D), each row by itself.
    points, tangents
        Shape (n, ...) each.
    values
        F at the points, (n, D).
    rounding
        Relative rounding of the values where it is coarser than that of the points.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        points: Tensor,
        tangents: Tensor,
        values: Tensor,
        rounding: float = 0.0,
    ) -> None:
        self._function = function
        self._points = points
        self._tangents = tangents
        self._values = values.detach().double()
        own = torch.finfo(points.dtype).eps
        self._eps = max(rounding, own)
        coarse = rounding > max(_COARSE, own)
        self._ratio = _COARSE_STEP_RATIO if coarse else _STEP_RATIO
        self._units = _COARSE_ROUNDING if coarse else _ROUNDING
        self._known: list[tuple[Tensor, Tensor, Tensor]] = []

    def contradict(self, products: Tensor) -> str | None:
        """Say by how much products (n, D) differ from the quotients, or None where they do not.

        A row is contradicted where no step's quotient agrees, though two successive ones agree with
        each other, are above the rounding and see no kink. A kink, a jump, which gives other
        quotients at every step, and what is not finite contradict nothing.
        """
        products = products.detach().double()
        agreed = ~products.isfinite().all(1)
        told = torch.zeros_like(agreed)
        size = torch.zeros_like(products[:, 0])
        before, smooth_before = torch.full_like(products, torch.nan), told
        for number in range(_STEPS):
            quotient, smooth, rounding = self._at(number)
            larger = torch.maximum(quotient.norm(dim=1), products.norm(dim=1))
            above_rounding = rounding <= _TOLERANCE * larger
            gap = (quotient - products).norm(dim=1)
            agreed |= above_rounding & (gap <= _TOLERANCE * larger + rounding)
            smooth = smooth & above_rounding
            steady = (quotient - before).norm(dim=1) <= _TOLERANCE * larger
            telling = smooth & smooth_before & steady
            size = torch.where(telling & ~told, quotient.norm(dim=1), size)
            told = told | telling
            before, smooth_before = quotient, smooth
            # the rounding of a smaller step is larger
            if (agreed | ~above_rounding).all():
                break
        wrong = told & ~agreed
        if not wrong.any():
            return None
        row = int(wrong.nonzero()[0])
        return (
            f"|J v| = {float(products[row].norm()):.3g} where difference quotients of the values "
            f"have {float(size[row]):.3g}"
        )

    def _at(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return quotients (n, D), which rows they tell of, and their rounding, (n,) each."""
        if number == len(self._known):
            size = self._points.flatten(1).abs().amax(1).clamp_min(1.0)
            step = _FIRST_STEP * self._eps ** (1.0 / 3.0) * size * self._ratio**-number
            step = step.reshape(-1, *[1] * (self._points.ndim - 1))
            move = (step * self._tangents).to(self._points)
            with torch.no_grad():
                both = self._function(torch.cat([self._points + move, self._points - move]))
            above, below = both.double().chunk(2)
            step = step.double().flatten()
            rounding = self._units * self._eps * self._values.norm(dim=1)
            change = (above - below).norm(dim=1)
            bend = (above + below - 2.0 * self._values).norm(dim=1)
            smooth = bend <= _CURVATURE * change + rounding
            smooth &= (self._points + move != self._points).flatten(1).all(1)
            quotient = (above - below) / (2.0 * step[:, None])
            self._known.append((quotient, smooth & change.isfinite(), rounding / step))
        return self._known[number]


def wrong_gradient(
    function: Callable[[Tensor], Tensor], points: Tensor, rounding: float = 0.0
) -> str | None:
    """Say how reverse mode's gradients of F: (n, d) -> (n, ...) differ from quotients, or None.

    A function that varies must have a gradient.
    """
    generator = torch.Generator().manual_seed(0)
    tangents = random_like(points, generator)
    with torch.inference_mode(False), torch.enable_grad():
        point = points.clone().requires_grad_()
        value = function(point.clone()).reshape(len(points), -1)
        probes = random_like(value[:1].expand(_PROBES, -1), generator).T
        seen = value @ probes
        products = torch.zeros_like(seen)
        for k in range(_PROBES if value.requires_grad else 0):
            (pulled,) = torch.autograd.grad(
                seen[:, k].sum(), point, retain_graph=True, materialize_grads=True
            )
            products[:, k] = (pulled * tangents).flatten(1).sum(1).detach()

    def probed(codes: Tensor) -> Tensor:
        return function(codes).reshape(len(codes), -1) @ probes

    return Quotients(probed, points, tangents, seen, rounding).contradict(products)


def check_gradient(name: str, function: Callable[[Tensor], Tensor], z: Tensor) -> None:
    """Raise where the gradients of a function (n, d) -> (n, ...) do not belong to its values.

    By reverse mode, at one code and one near it.
    """
    points = torch.cat([z[:1].detach(), neighbour(z[:1].detach())])
    contradiction = wrong_gradient(function, points)
    if contradiction is not None:
        required = "differentiable in its input, without torch.no_grad, detach or NumPy inside"
        found = f"one without a gradient that fits its values: {contradiction}"
        raise ValueError(requirement(name, required, found))
