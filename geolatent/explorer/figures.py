"""The plane as a Plotly figure: plain dictionaries, no Dash."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from geolatent.explorer.pictures import data_url
from geolatent.explorer.plane import Plane
from geolatent.explorer.solving import GroupResult, PairResult
from geolatent.explorer.subject import FEATURES, Subject

# colours that differ in lightness too, and symbols, so that labels are told apart without colour
_COLORS = (
    *("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9"),
    *("#7a4fa3", "#8c564b", "#b0a500", "#17335c", "#c44e7d"),
)
_SYMBOLS = (
    *("circle", "square", "diamond", "cross", "x", "triangle-up"),
    *("triangle-down", "pentagon", "star", "hexagon"),
)
STRAIGHT_COLOR, GEODESIC_COLOR = "#000000", "#d55e00"
# greys of the background, -1 black and 1 white, so that colours are left for labels and curves
_LIGHTEST, _DARKEST = 1.0, -0.3
# labels that get an entry each
_MOST_LABELS = 30
# points at which a curve is drawn
_DRAWN = 97
# traces behind and above those of the codes, in order
_ABOVE = ("kept", "members", "centers", "straight", "geodesic", "walk", "ends")


def traces(subject: Subject) -> dict[str, int]:
    """Return the places of the traces by name: the background is 0, codes follow, one a label."""
    first = 1 + len(_groups(subject))
    return {"background": 0, **{name: first + place for place, name in enumerate(_ABOVE)}}


def _groups(subject: Subject) -> list[tuple[str, Tensor]]:
    """Return what the codes of each label are called, and which they are."""
    labels = subject.labels
    everything = torch.arange(len(subject.codes))
    if labels is None:
        return [("codes", everything)]
    values = labels.unique().tolist()
    if len(values) > _MOST_LABELS:
        return [("codes", everything)]
    return [(f"label {value}", (labels.cpu() == value).nonzero().flatten()) for value in values]


def plane_figure(
    subject: Subject,
    plane: Plane,
    metric: str,
    codes: tuple[Sequence[float], Sequence[float]],
    dragmode: str | bool = False,
) -> dict[str, Any]:
    """Return the figure of a plane with the codes of the data and the two chosen codes.

    The background is drawn where it was measured before; the other traces are empty.
    """
    bar: dict[str, Any] = _nothing()
    images: list[Any] = []
    if subject.has_background(metric, plane):
        bar, images = background(subject, metric, plane)
    points = plane.points(subject.codes)
    data: list[dict[str, Any]] = [bar]
    for number, (name, chosen) in enumerate(_groups(subject)):
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": _rounded(points[chosen, 0]),
                "y": _rounded(points[chosen, 1]),
                "customdata": chosen.tolist(),
                "marker": {
                    "size": 6,
                    "opacity": 0.8,
                    "color": _COLORS[number % len(_COLORS)],
                    "symbol": _SYMBOLS[number % len(_SYMBOLS)],
                },
                "hovertemplate": f"{name}, code %{{customdata}}<extra></extra>",
            }
        )
    data += [
        _line("kept", "#4d4d4d", 2, "solid", "kept"),
        {
            **_markers("members", []),
            "marker": {
                "size": 12,
                "symbol": "circle-open",
                "line": {"width": 2},
                "color": [],
                "colorscale": "Viridis",
            },
        },
        {
            **_markers("centers", []),
            "marker": {"size": 18, "symbol": "star", "color": "#ffffff"}
            | {"line": {"width": 2, "color": "#000000"}},
        },
        _line("straight", STRAIGHT_COLOR, 2.5, "dash", "straight line"),
        _line("geodesic", GEODESIC_COLOR, 4, "solid", "geodesic"),
        {
            **_markers("walk", []),
            "marker": {
                "size": 11,
                "symbol": "diamond",
                "color": [STRAIGHT_COLOR, GEODESIC_COLOR],
                "line": {"width": 2, "color": "#ffffff"},
            },
        },
        {
            **_markers("ends", plane.points(torch.tensor(codes)).tolist()),
            "mode": "markers+text",
            "text": ["1", "2"],
            "textfont": {"size": 13, "color": "#ffffff", "weight": 700},
            "marker": {
                "size": 22,
                "color": "#000000",
                "line": {"width": 2, "color": "#ffffff"},
            },
        },
    ]
    low, high = plane.low.tolist(), plane.high.tolist()
    return {
        "data": data,
        "layout": {
            "margin": {"l": 48, "r": 12, "t": 66, "b": 128, "autoexpand": False},
            "xaxis": {
                "title": {"text": f"{plane.names[0]} (latent units)", "standoff": 4},
                "range": [low[0], high[0]],
                "constrain": "domain",
                "showgrid": False,
                "zeroline": False,
            },
            "yaxis": {
                "title": {"text": f"{plane.names[1]} (latent units)", "standoff": 4},
                "range": [low[1], high[1]],
                "scaleanchor": "x",
                "constraintoward": "top",
                "constrain": "domain",
                "showgrid": False,
                "zeroline": False,
            },
            "legend": {"orientation": "h", "y": 0, "yref": "container", "yanchor": "bottom"}
            | {"x": 0.5, "xref": "container", "xanchor": "center", "entrywidth": 78},
            "dragmode": dragmode,
            "images": images,
            "title": {
                "text": background_title(metric),
                "font": {"size": 12},
                "x": 0.5,
                "yref": "container",
                "y": 1.0,
                "yanchor": "top",
                "pad": {"t": 2},
            },
            "hovermode": "closest",
            "plot_bgcolor": "#ffffff",
            "uirevision": plane.kind + "/".join(plane.names),
            "font": {"size": 13, "color": "#1a1a1a"},
        },
    }


def background(subject: Subject, metric: str, plane: Plane) -> tuple[dict[str, Any], list[Any]]:
    """Return the heat map of the magnification factor: its colour bar and its image.

    The bar belongs to a trace of no points, and `background_title` stands over it; the image lies
    behind the axes, so that nothing of it is drawn again when a code moves.
    """
    _, _, logarithm = subject.background(metric, plane)
    known = logarithm[logarithm.isfinite()]
    if not known.numel():
        return _nothing(), []
    low, high = float(known.min()), float(known.max())
    ticks = _ticks(low, high)
    bar = {
        **_nothing(),
        "marker": {
            "color": [low],
            "cmin": low,
            "cmax": high,
            "colorscale": [[0.0, _shade(0.0)], [1.0, _shade(1.0)]],
            "showscale": True,
            "colorbar": {
                "orientation": "h",
                "yref": "container",
                "y": 1.0,
                "yanchor": "top",
                "ypad": 20,
                "thickness": 12,
                "len": 1.0,
                "tickvals": list(ticks),
                "ticktext": list(ticks.values()),
            },
        },
    }
    share = (logarithm - low) / max(high - low, 1e-12)
    grey = torch.where(share.isfinite(), _LIGHTEST + share * (_DARKEST - _LIGHTEST), _LIGHTEST)
    corner, size = plane.low.tolist(), (plane.high - plane.low).tolist()
    image = {
        # rows of an image run downwards
        "source": data_url(grey.flip(0)[None]),
        "xref": "x",
        "yref": "y",
        "x": corner[0],
        "y": corner[1] + size[1],
        "sizex": size[0],
        "sizey": size[1],
        "sizing": "stretch",
        "layer": "below",
    }
    return bar, [image]


def _ticks(low: float, high: float) -> dict[float, str]:
    """Return places on a scale of base-10 logarithms, and what is written there.

    Examples
    --------
    >>> _ticks(0.5, 2.1)
    {1: '10<sup>1</sup>', 2: '10<sup>2</sup>'}
    >>> _ticks(0.0, 0.5)
    {0.0: '1', 0.25: '1.8', 0.5: '3.2'}
    """
    powers = list(range(math.ceil(low), math.floor(high) + 1))
    if len(powers) > 1:
        return {power: f"10<sup>{power}</sup>" for power in powers[:: 1 + len(powers) // 8]}
    return {place: f"{10.0**place:.2g}" for place in (low, (low + high) / 2.0, high)}


def background_title(metric: str) -> str:
    """Return what the colour bar shows, with its units."""
    units = "feature" if metric == FEATURES else "output"
    return f"magnification factor ({units} units² per latent unit²)"


def _shade(share: float) -> str:
    """Return the colour of the background at a share of the way from lightest to darkest."""
    level = round(255 * (_LIGHTEST + share * (_DARKEST - _LIGHTEST) + 1.0) / 2.0)
    return f"rgb({level}, {level}, {level})"


def curve_points(subject: Subject, plane: Plane, result: PairResult) -> tuple[Tensor, Tensor]:
    """Return points of the straight line and the geodesic in a plane, (n, 2) each."""
    like = subject.codec.like
    t = torch.linspace(0.0, 1.0, _DRAWN).to(like)
    line, curve = (plane.points(curve(t)[0]) for curve in result.curves(like))
    return line, curve


def kept_points(subject: Subject, plane: Plane, results: Sequence[PairResult]) -> list[list[Any]]:
    """Return the coordinates of several geodesics in a plane, with gaps between them."""
    columns: list[list[Any]] = [[], []]
    for result in results:
        points = curve_points(subject, plane, result)[1]
        for column, values in zip(columns, points.T, strict=True):
            column += [*_rounded(values), None]
    return columns


def group_points(subject: Subject, plane: Plane, group: GroupResult) -> tuple[Tensor, Tensor]:
    """Return the members and the centres of a group in a plane."""
    members = subject.codes[torch.tensor(group.members, device=subject.codes.device)]
    return plane.points(members), plane.points(torch.tensor(group.centers))


def coordinates(points: Tensor) -> tuple[list[float], list[float]]:
    """Return points (n, 2) as two lists."""
    return _rounded(points[:, 0]), _rounded(points[:, 1])


def _rounded(values: Tensor) -> list[Any]:
    """Return values as lists; the page needs no more than five digits behind the point."""
    return values.double().mul(1e5).round().div(1e5).tolist()


def _nothing() -> dict[str, Any]:
    return _markers("background", []) | {"x": [None], "y": [None], "marker": {"color": [0.0]}}


def _line(meta: str, color: str, width: float, dash: str, name: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "meta": meta,
        "name": name,
        "x": [],
        "y": [],
        "hoverinfo": "skip",
        "line": {"color": color, "width": width, "dash": dash},
    }


def _markers(meta: str, points: list[list[float]]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "meta": meta,
        "x": [x for x, _ in points],
        "y": [y for _, y in points],
        "hoverinfo": "skip",
        "showlegend": False,
    }
