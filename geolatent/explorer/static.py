"""The static demo: one HTML file, with the geodesics of the embedded model solved beforehand."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from geolatent import models
from geolatent.checks import check_integer
from geolatent.curves import CubicBSpline
from geolatent.graph import LatentGraph
from geolatent.lab import data
from geolatent.lab.landscape import measure_grid
from geolatent.metrics.pullback import GaussianPullbackMetric
from geolatent.metrics.rows import Rows
from geolatent.solution import GeodesicSolution
from geolatent.solve import solve_geodesic
from geolatent.solvers.preconditioned import PreconditionedSolver

_TEMPLATE = Path(__file__).with_name("static_page.html")
_PLACE = "__DATA__"
# points at which a curve is stored, at equal steps of length, and points that tell the length
_STORED, _FINE = 49, 513
_LATTICE, _MARGIN = 128, 0.5
# latent units between codes that can be chosen, a little more than their circles
_APART = 0.32
# points of the background along each axis
_BACKGROUND = 128
_LEVELS = 65_535


def static_page(
    per_label: int = 4,
    *,
    tolerance: float = 1e-4,
    resolution: int = _LATTICE,
    tell: Callable[[float], None] = lambda share: None,  # noqa: ARG005
) -> str:
    """Return the page: HTML that needs no server and no network.

    Some test digits of each label can be chosen; the geodesics of all their pairs start from a
    lattice graph and are stored, at equal steps of length in the output, in 16 bits a coordinate.
    Images are decoded in the browser, by the weights of the embedded decoder in float32.

    Parameters
    ----------
    per_label
        Digits of each label that can be chosen, fewer where they would lie on one another.
    tolerance
        The solver's.
    resolution
        Points of the lattice along each axis.
    tell
        Called with the share of the solve that is done.
    """
    check_integer("per_label", per_label)
    model = models.digits_vae(dtype=torch.float64)
    metric = GaussianPullbackMetric(model.decode)
    images, labels = data.digits("test")
    with torch.no_grad():
        codes = model.encode(images.double())[0]
    low, high = codes.amin(0) - _MARGIN, codes.amax(0) + _MARGIN
    chosen = _apart(codes, labels, per_label)
    first, last = torch.triu_indices(len(chosen), len(chosen), offset=1)
    graph = LatentGraph.lattice(metric, low, high, resolution=resolution)
    solution = solve_geodesic(
        metric,
        codes[chosen[first]],
        codes[chosen[last]],
        PreconditionedSolver(tolerance=tolerance),
        initial=graph,
        callback=lambda state: tell(state.fraction),
    )
    background = measure_grid(metric, low, high, _BACKGROUND)["magnification"].log10()
    content = {
        "low": low.tolist(),
        "high": high.tolist(),
        "codes": _packed(_scaled(codes, low, high)),
        "labels": labels.tolist(),
        "chosen": chosen.tolist(),
        "background": {
            "size": _BACKGROUND,
            "low": float(background.min()),
            "high": float(background.max()),
            "values": _packed(_unit(background).mul(255).round(), np.uint8),
        },
        "pairs": _pairs(metric, solution, low, high),
        "decoder": _decoder(model.decoder),
        "side": images.shape[-1],
    }
    text = json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return _TEMPLATE.read_text(encoding="utf-8").replace(_PLACE, text)


def _apart(codes: Tensor, labels: Tensor, per_label: int) -> Tensor:
    """Return which codes can be chosen: the first of each label that do not cover one another."""
    chosen: list[int] = []
    for label in labels.unique():
        found: list[int] = []
        for number in (labels == label).nonzero().flatten().tolist():
            near = (codes[chosen + found] - codes[number]).norm(dim=1) < _APART
            if not bool(near.any()):
                found.append(number)
            if len(found) == per_label:
                break
        chosen += found
    return torch.tensor(chosen)


def _pairs(
    metric: GaussianPullbackMetric, solution: GeodesicSolution, low: Tensor, high: Tensor
) -> dict[str, Any]:
    ends = solution.curve.control_points
    line = CubicBSpline.straight(ends[:, 0], ends[:, -1])
    at_line = _equal_steps(metric, line)
    at_curve = _equal_steps(metric, solution.curve)
    points = torch.stack([solution.curve[number](t)[0] for number, t in enumerate(at_curve)])
    return {
        "stored": _STORED,
        "curves": _packed(_scaled(points, low, high)),
        "line_times": _packed(at_line.mul(_LEVELS).round()),
        "length": solution.length.tolist(),
        "straight": solution.straight_length.tolist(),
        "improvement": solution.relative_improvement.tolist(),
        "predicted": solution.predicted_improvement.tolist(),
        "status": [status.name for status in solution.statuses],
        "explanations": {
            status.name: status.explanation for status in sorted(set(solution.statuses))
        },
    }


def _equal_steps(metric: GaussianPullbackMetric, curve: CubicBSpline) -> Tensor:
    """Return parameters t at equal steps of curves' lengths in the output, (B, T)."""
    t = torch.linspace(0.0, 1.0, _FINE, dtype=torch.float64)
    codes, velocities = curve(t).flatten(0, 1), curve.derivative(t).flatten(0, 1)
    squares = Rows.of(metric, codes).quadratic(codes, velocities)
    speed = squares.sqrt().reshape(curve.batch_size, _FINE)
    passed = torch.nn.functional.pad((speed[:, 1:] + speed[:, :-1]).cumsum(1), (1, 0))
    shares = np.linspace(0.0, 1.0, _STORED)
    found = [np.interp(shares, one / one[-1], t) for one in passed.numpy()]
    return torch.from_numpy(np.stack(found))


def _decoder(layers: nn.Module) -> list[dict[str, Any]]:
    """Return the linear layers of the decoder, between which is ELU and after which tanh."""
    linear = [layer for layer in layers.modules() if isinstance(layer, nn.Linear)]
    return [
        {
            "inputs": layer.in_features,
            "outputs": layer.out_features,
            "weight": _packed(layer.weight, np.float32),
            "bias": _packed(layer.bias, np.float32),
        }
        for layer in linear
    ]


def _unit(values: Tensor) -> Tensor:
    return (values - values.min()) / (values.max() - values.min())


def _scaled(points: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return points as integers of 16 bits between the corners of the plane."""
    return ((points - low) / (high - low) * _LEVELS).round().clamp(0, _LEVELS)


def _packed(values: Tensor, kind: type[np.generic] = np.uint16) -> str:
    """Return values as the base64 text of little-endian numbers."""
    array = values.detach().cpu().numpy().astype(np.dtype(kind).newbyteorder("<"))
    return base64.b64encode(array.tobytes()).decode()
