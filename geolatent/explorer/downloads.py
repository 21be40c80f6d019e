"""What a page offers to take away: the curve as files, and the Python that makes it again."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import fields, is_dataclass, replace

import torch
from safetensors.torch import save

from geolatent.explorer.solving import GroupResult, PairResult, Settings
from geolatent.explorer.subject import FEATURES, GAUSSIAN, Subject
from geolatent.lab.config import ModelOptions

# points of a curve in a table
_ROWS = 101


def curve_safetensors(subject: Subject, result: PairResult) -> bytes:
    """Return a result as a safetensors file.

    Its tensors are ``control_points`` (n, d) and ``knots``, what `CubicBSpline` takes (with a batch
    axis in front of the control points), ``start`` and ``end``, (d,), ``length`` and
    ``straight_length``; its metadata the metric, the tolerance, the start and the status.
    """
    like = subject.codec.like.cpu()
    numbers = {"length": result.length, "straight_length": result.straight_length}
    tensors = {
        "control_points": like.new_tensor(result.control_points),
        "knots": torch.tensor(result.knots, dtype=torch.float64),
        "start": like.new_tensor(result.start),
        "end": like.new_tensor(result.end),
        **{
            name: like.new_tensor(float("nan") if value is None else value)
            for name, value in numbers.items()
        },
    }
    settings = result.settings
    metadata = {
        "metric": settings.metric,
        "tolerance": repr(settings.tolerance),
        "initial": settings.start,
        "status": result.status,
        "early": json.dumps(result.early),
    }
    return save(tensors, metadata)


def curve_csv(subject: Subject, result: PairResult) -> str:
    """Return points of both curves as a table, at equal steps of length in the output.

    Columns: ``share`` of the length; ``straight_t`` and ``geodesic_t``, the parameters; and
    ``straight_z1`` and so on, the codes.
    """
    like, dim = subject.codec.like, len(result.start)
    shares = [number / (_ROWS - 1) for number in range(_ROWS)]
    times = result.times(shares)
    codes = [
        curve(like.new_tensor(each))[0].tolist()
        for curve, each in zip(result.curves(like), times, strict=True)
    ]
    names = [f"{curve}_z{k + 1}" for curve in ("straight", "geodesic") for k in range(dim)]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["share", "straight_t", "geodesic_t", *names])
    for share, t, s, line, curve in zip(shares, *times, *codes, strict=True):
        writer.writerow([share, t, s, *line, *curve])
    return file.getvalue()


def pair_python(subject: Subject, result: PairResult) -> str:
    """Return lines of Python that solve a pair as the page did, and print the solution."""
    settings = result.settings
    lines = [
        *_made(subject, settings),
        f"start = {_tensor(subject, result.start)}",
        f"end = {_tensor(subject, result.end)}",
        f"solver = gl.PreconditionedSolver(tolerance={settings.tolerance!r})",
        f"solution = gl.solve_geodesic(metric, start, end, solver{_initial(settings)})",
        "print(solution)",
    ]
    return "\n".join(lines) + "\n"


def group_python(subject: Subject, result: GroupResult) -> str:
    """Return lines of Python that find a mean or clusters as the page did, and print them."""
    settings = result.settings
    chosen = torch.tensor(result.members, device=subject.codes.device)
    codes = f"codes = {_tensor(subject, subject.codes[chosen].tolist())}"
    if result.kind == "mean":
        lines = [
            *_made(subject, settings),
            codes,
            f"solver = gl.PreconditionedSolver(tolerance={settings.tolerance!r})",
            f"found = gl.frechet_mean(metric, codes, solver=solver{_initial(settings)})",
            "print(found.mean)",
        ]
    else:
        k = len(result.centers)
        lines = [
            *_made(subject, replace(settings, start="straight")),
            codes,
            f"model = gl.GeodesicKMeans(metric, n_clusters={k}, random_state={subject.seed})",
            "print(model.fit(codes).cluster_centers_)",
        ]
    return "\n".join(lines) + "\n"


def _tensor(subject: Subject, values: object) -> str:
    return f"torch.tensor({values}, dtype=torch.{subject.dtype})"


def _initial(settings: Settings) -> str:
    return ", initial=graph" if settings.start == "graph" else ""


def _made(subject: Subject, settings: Settings) -> list[str]:
    """Return the lines that make the metric, and the graph where curves start from one."""
    if subject.model != ModelOptions() or settings.metric == FEATURES:
        return _made_from_options(subject, settings)
    dtype = "" if subject.dtype == "float32" else f"dtype=torch.{subject.dtype}"
    gaussian = "GaussianPullbackMetric(model.decode)"
    made = gaussian if settings.metric == GAUSSIAN else "PullbackMetric(model.decode_mean)"
    lines = ["import torch", "", "import geolatent as gl", ""]
    lines += [f"model = gl.models.digits_vae({dtype})", f"metric = gl.{made}"]
    if settings.start == "graph":
        arguments = subject.graph_arguments()
        resolution = arguments["resolution"]
        lines += [
            f"low = {_tensor(subject, arguments['low'])}",
            f"high = {_tensor(subject, arguments['high'])}",
            f"graph = gl.LatentGraph.lattice(metric, low, high, resolution={resolution})",
        ]
    return lines


def _made_from_options(subject: Subject, settings: Settings) -> list[str]:
    """Return the lines for any model: those of its options that are not the default."""
    default = Subject()
    given = {
        field.name: getattr(subject, field.name)
        for field in fields(subject)
        if field.init
        and not field.name.startswith("_")
        and getattr(subject, field.name) != getattr(default, field.name)
    }
    kinds = sorted({type(value).__name__ for value in given.values() if is_dataclass(value)})
    lines = ["import torch", "", "import geolatent as gl"]
    lines += ["from geolatent.explorer.subject import Subject"]
    lines += [f"from geolatent.lab.config import {', '.join(kinds)}"] if kinds else []
    lines += ["", f"subject = Subject({', '.join(f'{n}={v!r}' for n, v in given.items())})"]
    lines += [f'metric = subject.pulled_back("{settings.metric}")']
    lines += [f'graph = subject.graph("{settings.metric}")'] if settings.start == "graph" else []
    return lines
