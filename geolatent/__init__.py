"""Riemannian geodesics in the latent spaces of PyTorch generative models.

A metric says how far codes are from one another: `PullbackMetric` of a decoder,
`GaussianPullbackMetric` of one that gives (mean, standard deviation), `TensorMetric` of any metric
tensor. `solve_geodesic` finds the shortest curves between pairs of codes, all pairs in one call,
and returns a `GeodesicSolution`, which prints as a table. Codes are (n, d), batch first, or of any
shape that the decoder takes, (n, channels, height, width), in which results come back; curves run
over t from 0 to 1; lengths are in units of the decoder's output.

Codes are tensors or NumPy arrays of floating-point numbers. Either are brought to the dtype and
device of the decoder's parameters (of the graph's codes, where a graph is asked), and keep their
own where it has none; results are tensors of that dtype and device, and have a method ``numpy``.
Arguments are checked at the door: one of the wrong kind, shape, dtype, device or range, or that is
not finite, raises a TypeError or ValueError that names it. Docstrings list what else is raised.

The rest of the package by rooms: `geolatent.metrics`, `geolatent.solvers`, `geolatent.geometry` and
`geolatent.learn` (scikit-learn estimators), each on top of those before; `geolatent.models`
(networks, and `geolatent.models.features` on a decoder's output); and on top of all
`geolatent.lab`, the work of the commands: `geolatent.lab.plotting` (figures) and
`geolatent.lab.training` (needs the extra ``train``). The names below load their modules, and torch,
when they are first used: torch takes seconds to import, and the command line answers without it
where it can.

Examples
--------
A decoder that rolls the plane up into a cylinder with a ridge around it; the shorter way leaves
the ridge:

>>> import torch
>>> import geolatent as gl
>>> def decoder(z):
...     angle, height = z.unbind(1)
...     ridge = 1.0 + torch.exp(-4.0 * height.square())
...     return torch.stack([ridge * angle.cos(), ridge * angle.sin(), height], dim=1)
>>> start, end = torch.tensor([[0.0, 0.1], [0.0, 1.0]]), torch.tensor([[2.0, 0.1], [2.0, 2.0]])
>>> solution = gl.solve_geodesic(gl.PullbackMetric(decoder), start, end)
>>> print(f"{solution.relative_improvement[0].item():.0%} shorter than the straight line")
11% shorter than the straight line
>>> solution.curve(torch.linspace(0, 1, 5)).shape  # codes on the way
torch.Size([2, 5, 2])
"""

import ast
import importlib
import importlib.util
from pathlib import Path
from typing import Any

from geolatent._version import __version__ as __version__


def _places() -> dict[str, str]:
    """Return the module of each public name; the stub beside this file is what lists them."""
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    statements = (found for found in stub.body if isinstance(found, ast.ImportFrom))
    return {alias.name: str(found.module) for found in statements for alias in found.names}


_PLACES = _places()
__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    """Import a public name, or a module of the package, when it is first used."""
    place = _PLACES.get(name, __name__)
    if place != __name__:
        # what `from place import name` finds, which may be a module too
        found = getattr(__import__(place, fromlist=[name]), name)
    elif not name.startswith("_") and importlib.util.find_spec(f"{place}.{name}"):
        found = importlib.import_module(f"{place}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
