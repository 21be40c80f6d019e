"""The page: what is on it, and what each control is called."""

from __future__ import annotations

import uuid
from typing import Any

from geolatent.explorer.figures import plane_figure
from geolatent.explorer.plane import PLANE_KINDS
from geolatent.explorer.solving import STARTS, TOLERANCES
from geolatent.explorer.subject import Subject

try:
    from dash import dcc, html
except ModuleNotFoundError as error:
    message = "The explorer needs Dash. Install it from the checkout: pip install '.[explore]'"
    raise ModuleNotFoundError(message) from error

POINTERS = {
    "choose": "choose and drag codes",
    "lasso": "select by a lasso",
    "select": "select by a box",
    "pan": "move the view",
}


def code_text(code: list[float]) -> str:
    """Return a code as it is typed."""
    return " ".join(f"{value:.6g}" for value in code)


def page(subject: Subject) -> Any:
    """Return the page for a visitor; each visit has a name of its own."""
    start, end = (code.tolist() for code in subject.first_pair())
    plane, metric = subject.plane, subject.default_metric
    stores: dict[str, Any] = {
        "page": uuid.uuid4().hex,
        "codes": {"start": start, "end": end},
        "plane-data": plane.plain(),
        "moved": None,
        "result": None,
        "pairs": [],
        "group": None,
        "ticket": None,
        "tick": None,
    }
    return html.Div(
        [
            *(dcc.Store(id=name, data=data) for name, data in stores.items()),
            dcc.Download(id="download"),
            html.Header(
                [
                    html.H1("geolatent explorer"),
                    html.P(_about(subject)),
                ]
            ),
            html.Main(
                [
                    html.Div(
                        [
                            _plane_panel(subject, metric, (start, end)),
                            _controls(subject, metric),
                            _group_panel(),
                        ],
                        className="column",
                    ),
                    html.Div(
                        [_result_panel(), _walk_panel(), _pairs_panel(), _take_panel()],
                        className="column",
                    ),
                ]
            ),
        ],
        className="drawn" if subject.draws else None,
    )


def _about(subject: Subject) -> str:
    kind = type(subject.codec.module).__name__
    name = subject.model.checkpoint or subject.model.class_path or "the embedded digits model"
    codes = f"{len(subject.codes)} codes"
    where = f"of {subject.data.name}" if subject.source == "data" else "drawn from the prior"
    return f"{kind}, {name}; {subject.codec.dim} latent dimensions; {codes} {where}."


def _radios(name: str, legend: str, options: dict[Any, str], value: Any) -> Any:
    items = [{"label": label, "value": option} for option, label in options.items()]
    return html.Fieldset([html.Legend(legend), dcc.RadioItems(id=name, options=items, value=value)])


def _panel(name: str, title: str, children: list[Any]) -> Any:
    heading = f"{name}-heading"
    return html.Section(
        [html.H2(title, id=heading), *children],
        id=f"{name}-panel",
        **{"aria-labelledby": heading},
    )


def _plane_panel(subject: Subject, metric: str, codes: tuple[list[float], list[float]]) -> Any:
    figure = plane_figure(subject, subject.plane, metric, codes)
    children = [
        html.P(subject.plane.describe(), id="plane-text", className="note"),
        html.Div(
            dcc.Graph(
                id="plane",
                figure=figure,
                responsive=True,
                config={"displaylogo": False, "scrollZoom": False, "doubleClick": "reset"}
                | {"modeBarButtonsToRemove": ["lasso2d", "select2d", "toImage", "pan2d", "zoom2d"]},
            ),
            id="plane-frame",
            role="img",
            **{
                "aria-label": "The latent plane: codes of the data by label, the magnification "
                "factor behind them, the two chosen codes, the straight line and the geodesic. "
                "Codes can also be typed and moved by arrow keys in the form beside."
            },
        ),
        _radios("pointer", "The pointer is to", POINTERS, "choose"),
    ]
    return _panel("map", "Latent plane", children)


def _controls(subject: Subject, metric: str) -> Any:
    start, end = (code.tolist() for code in subject.first_pair())
    codes = [
        _code_input(which, label, code)
        for which, label, code in (
            ("start", "First code", start),
            ("end", "Second code", end),
        )
    ]
    dim = subject.codec.dim
    more = "hidden" if dim == 2 else ""
    tolerances = {value: f"{value:f}".rstrip("0") for value in TOLERANCES}
    return _panel(
        "controls",
        "Codes and controls",
        [
            *codes,
            html.P(
                "Codes are numbers with spaces between them. Arrow keys move a code by a hundredth "
                "of the plane, with Shift by a twentieth.",
                className="note",
            ),
            html.Div(
                [
                    _radios("plane-kind", "Plane", dict(PLANE_KINDS), "dimensions"),
                    *(
                        html.Div(
                            [
                                html.Label(f"{word} dimension", htmlFor=f"dimension-{number}"),
                                dcc.Input(
                                    id=f"dimension-{number}",
                                    type="number",
                                    value=number,
                                    min=1,
                                    max=dim,
                                    step=1,
                                    debounce=True,
                                ),
                            ],
                            className="field",
                        )
                        for number, word in ((1, "First"), (2, "Second"))
                    ),
                ],
                className=more,
            ),
            _radios("metric", "Metric", subject.metrics, metric),
            _radios("tolerance", "Solver tolerance", tolerances, 1e-4),
            _radios("initial", "Curves start from a", STARTS, "straight"),
        ],
    )


def _code_input(which: str, label: str, code: list[float]) -> Any:
    return html.Div(
        [
            html.Label(label, htmlFor=f"{which}-code"),
            dcc.Input(
                id=f"{which}-code",
                type="text",
                value=code_text(code),
                debounce=True,
                autoComplete="off",
                spellCheck="false",
            ),
            html.Button(
                "Move by arrow keys",
                id=f"{which}-keys",
                type="button",
                className="keys",
                **{"aria-label": f"{label}: press arrow keys to move it in the plane"},
            ),
        ],
        className="field",
    )


def _result_panel() -> Any:
    return _panel(
        "result",
        "Straight line and geodesic",
        [
            html.Div(id="status", role="status", **{"aria-live": "polite"}),
            html.Div(id="problem", role="alert"),
            html.Div(
                [
                    html.Label("Progress", htmlFor="progress"),
                    html.Progress(id="progress", value="0", max="1"),
                    html.Span(id="progress-text"),
                    html.Button("Stop", id="stop", type="button", disabled=True),
                ],
                className="progress",
            ),
            html.Table([html.Tbody(id="numbers")], className="numbers"),
            *_strip("straight", "Straight line"),
            *_strip("geodesic", "Geodesic"),
        ],
    )


def _strip(name: str, label: str) -> list[Any]:
    return [
        html.H3(label, className=name),
        html.Img(id=f"{name}-strip", alt=f"{label}: not there yet", className="strip"),
    ]


def _walk_panel() -> Any:
    return _panel(
        "walk",
        "Walk along both curves",
        [
            html.Label("Share of each curve's length in the output, %", htmlFor="walk"),
            dcc.Input(id="walk", type="range", min=0, max=100, step=1, value=50),
            html.Span("50 %", id="walk-text", **{"aria-live": "polite"}),
            html.Div(
                [
                    html.Figure(
                        [
                            html.Img(id=f"{name}-large", alt=f"{label}: not there yet"),
                            html.Figcaption(label, className=name),
                        ]
                    )
                    for name, label in (("straight", "Straight line"), ("geodesic", "Geodesic"))
                ],
                className="pair",
            ),
        ],
    )


def _pairs_panel() -> Any:
    return _panel(
        "pairs",
        "Kept pairs",
        [
            html.Button("Keep this pair", id="keep", type="button"),
            html.Ul(id="pairs-list", **{"aria-label": "Kept pairs"}),
        ],
    )


def _group_panel() -> Any:
    return _panel(
        "group",
        "Mean and clusters of a selection",
        [
            html.P("No codes are selected.", id="selection-text", **{"aria-live": "polite"}),
            html.Button("Select all codes", id="select-all", type="button"),
            html.Button("Fréchet mean", id="mean", type="button"),
            html.Div(
                [
                    html.Label("Number of clusters", htmlFor="n-clusters"),
                    dcc.Input(id="n-clusters", type="number", value=3, min=2, max=50, step=1),
                    html.Button("Clusters by k-means", id="clusters", type="button"),
                ],
                className="field",
            ),
            html.P(id="group-text", role="status", **{"aria-live": "polite"}),
            html.Button("Python of the mean or clusters", id="take-group", type="button"),
        ],
    )


def _take_panel() -> Any:
    buttons = {
        "take-png": "Figure (PNG)",
        "take-svg": "Figure (SVG)",
        "take-safetensors": "Curve (safetensors)",
        "take-csv": "Curve (CSV)",
        "take-python": "Python",
    }
    return _panel(
        "take",
        "Downloads",
        [
            html.Div(
                [html.Button(text, id=name, type="button") for name, text in buttons.items()],
                className="buttons",
            ),
            html.Details(
                [
                    html.Summary("Python that makes the same"),
                    html.Pre(id="python", tabIndex="0", **{"aria-label": "Python"}),
                ]
            ),
        ],
    )
