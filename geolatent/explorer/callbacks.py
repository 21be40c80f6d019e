"""What the page does: each callback takes the page's state and gives back what changed.

Nothing of a visitor is kept here: codes, results and kept pairs live in the page, and jobs under
the page's name in `Jobs`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from geolatent.explorer import figures
from geolatent.explorer.downloads import curve_csv, curve_safetensors, group_python, pair_python
from geolatent.explorer.jobs import BusyError, Job, Jobs, StoppedError, in_words
from geolatent.explorer.layout import code_text
from geolatent.explorer.pictures import data_url, strip
from geolatent.explorer.plane import Plane, make_plane
from geolatent.explorer.solving import (
    EARLY,
    GroupResult,
    PairResult,
    Settings,
    clusters_of,
    mean_of,
    parse_code,
    solve_pair,
    walk,
)
from geolatent.explorer.subject import Subject

try:
    from dash import (
        ALL,
        ClientsideFunction,
        Dash,
        Input,
        Output,
        Patch,
        State,
        ctx,
        dcc,
        html,
        no_update,
    )
    from dash.exceptions import PreventUpdate
except ModuleNotFoundError as error:
    message = "The explorer needs Dash. Install it from the checkout: pip install '.[explore]'"
    raise ModuleNotFoundError(message) from error

# seconds that a request waits for its result before the page begins to ask
_WAIT, _POLL_WAIT = 0.3, 0.3
# images in a strip
_STRIP = 11
# kinds of jobs, the first that there is is told of
_KINDS = {"pair": "solving", "group": "mean or clusters", "background": "background"}
# pairs that a page keeps
_MOST_KEPT = 50

# what callbacks may change; one that is left out stays
_OUTPUTS = {
    "codes": ("codes", "data"),
    "start": ("start-code", "value"),
    "end": ("end-code", "value"),
    "plane": ("plane-data", "data"),
    "plane_text": ("plane-text", "children"),
    "figure": ("plane", "figure"),
    "result": ("result", "data"),
    "status": ("status", "children"),
    "problem": ("problem", "children"),
    "numbers": ("numbers", "children"),
    "straight": ("straight-strip", "src"),
    "straight_alt": ("straight-strip", "alt"),
    "geodesic": ("geodesic-strip", "src"),
    "geodesic_alt": ("geodesic-strip", "alt"),
    "python": ("python", "children"),
    "pairs": ("pairs", "data"),
    "group": ("group", "data"),
    "group_text": ("group-text", "children"),
    "ticket": ("ticket", "data"),
    "stop": ("stop", "disabled"),
    "progress": ("progress", "value"),
    "progress_text": ("progress-text", "children"),
}
_STATE = {
    "page": State("page", "data"),
    "codes": State("codes", "data"),
    "plane": State("plane-data", "data"),
    "result": State("result", "data"),
    "pairs": State("pairs", "data"),
    "group": State("group", "data"),
    "metric": State("metric", "value"),
    "tolerance": State("tolerance", "value"),
    "initial": State("initial", "value"),
    "pointer": State("pointer", "value"),
    "selected": State("plane", "selectedData"),
}
Answer = dict[str, Any]


def answer(**changed: Any) -> Answer:
    """Return all outputs, of which some change."""
    return {name: changed.get(name, no_update) for name in _OUTPUTS}


class Page:
    """Answers to a page's questions, about one subject.

    Parameters
    ----------
    subject
        What is explored.
    jobs
        The jobs of all pages.
    """

    def __init__(self, subject: Subject, jobs: Jobs) -> None:
        self.subject = subject
        self.jobs = jobs

    # what is asked for

    def solve(self, state: Mapping[str, Any], codes: Mapping[str, Any]) -> Answer:
        """Begin to solve for two codes; drawn at once are they, and the result if it is quick."""
        settings = self.settings(state)
        plane = Plane.from_plain(state["plane"])
        job = self.jobs.submit(
            state["page"],
            "pair",
            lambda job: solve_pair(self.subject, codes["start"], codes["end"], settings, job),
        )
        measure = not self.subject.has_background(settings.metric, plane)
        if measure:
            self.measure(state["page"], settings.metric, plane)
        patch = Patch()
        ends = plane.points(torch.tensor([codes["start"], codes["end"]]))
        self._place(patch, "ends", figures.coordinates(ends))
        job.wait(_WAIT)
        found = self.poll({**state, "codes": codes}, patch, only=job)
        texts = {name: code_text(codes[name]) for name in ("start", "end")}
        return {**found, **texts, "codes": codes}

    def measure(self, page: str, metric: str, plane: Plane) -> None:
        """Begin to measure the background."""
        self.jobs.submit(page, "background", lambda _: self.subject.background(metric, plane))

    def settings(self, state: Mapping[str, Any]) -> Settings:
        """Return how the page wants to solve."""
        return Settings(state["metric"], float(state["tolerance"]), state["initial"])

    # what has become of it

    def poll(
        self, state: Mapping[str, Any], patch: Patch | None = None, only: Job | None = None
    ) -> Answer:
        """Return what has become of the page's jobs; ``only`` is one just submitted.

        A result is given away once, so that a page asks one question of a kind at a time: the
        browser drops answers to questions that it has asked again.
        """
        patch = Patch() if patch is None else patch
        jobs = self.jobs.of(state["page"])
        if only is not None and only not in jobs:
            return answer()  # another question has taken its place
        changed: Answer = {}
        running = []
        for job in jobs:
            ended = job.done.is_set()
            if not ended:
                running.append(job)
            if only not in (None, job):
                running += [job] if ended else []
                continue
            if ended:
                self.jobs.forget(state["page"], job)
            if ended and job.error is not None:
                changed |= self._failed(job)
            elif ended:
                changed |= self._shown(state, patch, job.kind, job.result)
            elif job.early is not None:
                early, job.early = job.early, None
                changed |= self._shown(state, patch, job.kind, early)
                job.news.clear()
                job.taken.set()
        if changed or only is not None:  # else the browser would draw all again for nothing
            changed["figure"] = patch
        changed |= self._progress(running)
        changed["ticket"]["polled"] = only is None
        return answer(**changed)

    def _progress(self, running: list[Job]) -> Answer:
        ticket = _ticket(running=bool(running))
        if not running:
            return {"ticket": ticket, "stop": True, "progress": "0", "progress_text": ""}
        job = min(running, key=lambda job: list(_KINDS).index(job.kind))
        what = _KINDS[job.kind]
        # of a mean, clusters and the background it is not known how much is done
        fraction = job.fraction if job.kind == "pair" else None
        share = "" if fraction is None else f", {100 * fraction:.0f} %"
        return {
            "ticket": ticket,
            "stop": False,
            "progress": None if fraction is None else f"{fraction:.2f}",
            "progress_text": f"{what}{share}, {job.seconds:.0f} s",
        }

    def _failed(self, job: Job) -> Answer:
        text = in_words(job.error) if job.error is not None else ""
        if isinstance(job.error, StoppedError):
            what = "clusters or mean" if job.kind == "group" else "solve"
            stopped = f"The {what} was stopped; what is drawn is what was found before."
            return {"group_text" if job.kind == "group" else "status": stopped}
        return {"group_text" if job.kind == "group" else "problem": text}

    def _shown(self, state: Mapping[str, Any], patch: Patch, kind: str, result: Any) -> Answer:
        """Return the parts of the page that show a result."""
        plane = Plane.from_plain(state["plane"])
        if kind == "background":
            bar, images = figures.background(self.subject, state["metric"], plane)
            patch["data"][0], patch["layout"]["images"] = bar, images
            patch["layout"]["title"]["text"] = figures.background_title(state["metric"])
            return {}
        if kind == "group":
            self._place_group(patch, plane, result)
            return {"group": result.plain(), "group_text": self._group_text(result)}
        return self.shown_pair(patch, plane, result)

    def shown_pair(self, patch: Patch, plane: Plane, result: PairResult) -> Answer:
        """Return the parts of the page that show a solved pair."""
        line, curve = figures.curve_points(self.subject, plane, result)
        self._place(patch, "straight", figures.coordinates(line))
        self._place(patch, "geodesic", figures.coordinates(curve))
        shares = [number / (_STRIP - 1) for number in range(_STRIP)]
        outputs = [found for _, found in walk(self.subject, result, shares)]
        drawn = self.subject.pictures(torch.cat(outputs))
        small = [strip(each) for each in drawn.split(_STRIP)]
        alts = [
            f"{_STRIP} decoded outputs at equal steps of length along the {name}, from the first "
            f"code to the second{_not_finite(each)}"
            for name, each in zip(("straight line", "geodesic"), outputs, strict=True)
        ]
        return {
            "result": result.plain(),
            "status": status_text(result),
            "problem": "",
            "numbers": number_rows(result),
            "straight": data_url(small[0]),
            "straight_alt": alts[0],
            "geodesic": data_url(small[1]),
            "geodesic_alt": alts[1],
            "python": pair_python(self.subject, result),
        }

    def change_plane(
        self, state: Mapping[str, Any], kind: str, dimensions: tuple[int, int]
    ) -> Answer:
        """Return the page with another plane."""
        codes = state["codes"]
        pair = torch.tensor([codes["start"], codes["end"]], dtype=torch.float64)
        plane = make_plane(kind, self.subject.codes, dimensions, pair)
        dragmode = False if state["pointer"] == "choose" else state["pointer"]
        ends = codes["start"], codes["end"]
        figure = figures.plane_figure(self.subject, plane, state["metric"], ends, dragmode)
        places = figures.traces(self.subject)

        def put(name: str, columns: tuple[list[Any], list[Any]]) -> None:
            figure["data"][places[name]] |= {"x": columns[0], "y": columns[1]}

        if state["result"] is not None:
            line, curve = figures.curve_points(
                self.subject, plane, PairResult.from_plain(state["result"])
            )
            put("straight", figures.coordinates(line))
            put("geodesic", figures.coordinates(curve))
        kept = [PairResult.from_plain(each) for each in state["pairs"]]
        columns = figures.kept_points(self.subject, plane, kept)
        put("kept", (columns[0], columns[1]))
        if state["group"] is not None:
            group = GroupResult.from_plain(state["group"])
            members, centers = figures.group_points(self.subject, plane, group)
            put("members", figures.coordinates(members))
            put("centers", figures.coordinates(centers))
            figure["data"][places["members"]]["marker"]["color"] = group.clusters
        progress: Answer = {}
        if not self.subject.has_background(state["metric"], plane):
            self.measure(state["page"], state["metric"], plane)
            progress = self._progress(self.jobs.of(state["page"]))
        text = plane.describe()
        return answer(figure=figure, plane=plane.plain(), plane_text=text, problem="", **progress)

    def selected(self, selected: Mapping[str, Any] | None) -> list[int]:
        """Return which of the subject's codes are selected."""
        points = (selected or {}).get("points", [])
        return sorted({int(point["customdata"]) for point in points if "customdata" in point})

    def group(self, state: Mapping[str, Any], kind: str, n_clusters: Any) -> Answer:
        """Begin to find the mean or the clusters of the selected codes."""
        members, settings = self.selected(state["selected"]), self.settings(state)

        def work(_: Job) -> GroupResult:
            if kind == "mean":
                return mean_of(self.subject, members, settings)
            return clusters_of(self.subject, members, n_clusters, settings)

        job = self.jobs.submit(state["page"], "group", work)
        job.wait(_WAIT)
        return {**answer(group_text=""), **_changes(self.poll(state, only=job))}

    def keep(self, state: Mapping[str, Any]) -> Answer:
        """Add the pair that is shown to the kept ones."""
        if state["result"] is None or state["result"]["early"]:
            raise ValueError("There is no solved pair to keep yet.")
        pairs = [*state["pairs"], state["result"]]
        if len(pairs) > _MOST_KEPT:
            raise ValueError(f"A page keeps {_MOST_KEPT} pairs; remove one first.")
        return self.keeping(state, pairs)

    def keeping(self, state: Mapping[str, Any], pairs: list[Any]) -> Answer:
        """Return the page with other kept pairs."""
        patch = Patch()
        results = [PairResult.from_plain(each) for each in pairs]
        columns = figures.kept_points(self.subject, Plane.from_plain(state["plane"]), results)
        self._place(patch, "kept", (columns[0], columns[1]))
        return answer(pairs=pairs, figure=patch, problem="")

    def show_kept(self, state: Mapping[str, Any], number: int) -> Answer:
        """Show a kept pair again."""
        self.jobs.stop(state["page"])
        result = PairResult.from_plain(state["pairs"][number])
        plane, patch = Plane.from_plain(state["plane"]), Patch()
        ends = plane.points(torch.tensor([result.start, result.end]))
        self._place(patch, "ends", figures.coordinates(ends))
        shown = self.shown_pair(patch, plane, result)
        codes = {"start": result.start, "end": result.end}
        texts = {name: code_text(code) for name, code in codes.items()}
        return answer(figure=patch, codes=codes, **texts, **shown)

    def walked(self, state: Mapping[str, Any], percent: Any) -> tuple[Any, ...]:
        """Return both outputs at a share of the curves, and a patch that marks the places."""
        share = min(max(float(percent or 0) / 100.0, 0.0), 1.0)
        result = PairResult.from_plain(state["result"])
        found = walk(self.subject, result, [share])
        plane, patch = Plane.from_plain(state["plane"]), Patch()
        codes = torch.cat([codes for codes, _ in found])
        self._place(patch, "walk", figures.coordinates(plane.points(codes)))
        # both by one scale
        drawn = self.subject.pictures(torch.cat([outputs for _, outputs in found]), axes=True)
        images = [data_url(image) for image in drawn]
        alts = [
            f"decoded output {100 * share:.0f} % along the {name}{_not_finite(outputs)}"
            for name, (_, outputs) in zip(("straight line", "geodesic"), found, strict=True)
        ]
        return images[0], alts[0], images[1], alts[1], f"{100 * share:.0f} %", patch

    def _place(self, patch: Patch, name: str, columns: tuple[list[Any], list[Any]]) -> None:
        place = figures.traces(self.subject)[name]
        patch["data"][place]["x"], patch["data"][place]["y"] = columns

    def _place_group(self, patch: Patch, plane: Plane, group: GroupResult) -> None:
        members, centers = figures.group_points(self.subject, plane, group)
        self._place(patch, "members", figures.coordinates(members))
        self._place(patch, "centers", figures.coordinates(centers))
        place = figures.traces(self.subject)["members"]
        patch["data"][place]["marker"]["color"] = group.clusters

    @staticmethod
    def _group_text(result: GroupResult) -> str:
        centers = "; ".join(f"({code_text(center)})" for center in result.centers)
        where = "It is at" if result.kind == "mean" else "Centres:"
        return f"{result.text} {where} {centers}. Took {result.seconds:.2g} s."


def _ticket(*, running: bool) -> dict[str, Any]:
    """Return what makes the browser ask again while there is something to come."""
    # a number makes each one new
    return {"running": running, "polled": False, "number": time.monotonic()}


def _changes(found: Answer) -> Answer:
    return {name: value for name, value in found.items() if value is not no_update}


def _not_finite(outputs: torch.Tensor) -> str:
    lost = int((~outputs.flatten(1).isfinite().all(1)).sum())
    return f"; {lost} of them not finite, shown in grey" if lost else ""


def status_text(result: PairResult) -> str:
    """Return what was found, in words."""
    if result.early:
        return f"First answer, of {EARLY.max_control_points} control points; it is being refined."
    if result.improvement is None:
        return f"{result.status}: {result.explanation}"
    return (
        f"The geodesic is {100 * result.improvement:.3g} % shorter than the straight line. "
        f"{result.status}: {result.explanation}"
    )


def number_rows(result: PairResult) -> list[Any]:
    """Return the rows of the table of a result."""

    def shown(value: float | None, digits: int = 4, scale: float = 1.0) -> str:
        return "not known" if value is None else f"{scale * value:#.{digits}g}".rstrip(".")

    units = "feature" if result.settings.metric == "features" else "output"
    rows = {
        f"straight length ({units} units)": shown(result.straight_length),
        f"geodesic length ({units} units)": shown(result.length),
        "shorter by (%)": shown(result.improvement, 3, 100.0),
        "predicted improvement left (%)": shown(result.predicted_improvement, 2, 100.0),
        "status": result.status + (" (first answer)" if result.early else ""),
        "decoder rows": f"{result.rows:,.0f}",
        "seconds": f"{result.seconds:.2g}",
    }
    return [html.Tr([html.Th(name, scope="row"), html.Td(value)]) for name, value in rows.items()]


def add_callbacks(app: Dash, page: Page) -> None:
    """Join the page's controls to its answers."""
    outputs = {name: Output(*place, allow_duplicate=True) for name, place in _OUTPUTS.items()}

    def told(work: Callable[[], Answer], where: str = "problem") -> Answer:
        """Return an answer; what a visitor got wrong is told in a sentence."""
        try:
            return work()
        except (ValueError, TypeError, BusyError) as error:
            return answer(**{where: str(error)})

    # the page's name, for the word that it is left
    app.clientside_callback(
        ClientsideFunction("geolatent", "remember"),
        Output("page", "data", allow_duplicate=True),
        Input("page", "data"),
        prevent_initial_call="initial_duplicate",
    )

    app.clientside_callback(
        ClientsideFunction("geolatent", "tick"),
        Output("tick", "data", allow_duplicate=True),
        Input("ticket", "data"),
        prevent_initial_call=True,
    )

    @app.callback(
        output=outputs,
        inputs={
            "moved": Input("moved", "data"),
            "start": Input("start-code", "value"),
            "end": Input("end-code", "value"),
            "controls": [
                Input("metric", "value"),
                Input("tolerance", "value"),
                Input("initial", "value"),
            ],
        },
        state={"state": _STATE},
        prevent_initial_call="initial_duplicate",
    )
    def ask(moved: Any, start: Any, end: Any, controls: Any, state: Any) -> Answer:  # noqa: ARG001
        def work() -> Answer:
            codes = dict(state["codes"])
            dim = page.subject.codec.dim
            if ctx.triggered_id == "moved" and moved:
                plane = Plane.from_plain(state["plane"])
                code = plane.codes(torch.tensor([moved["point"]], dtype=torch.float64))
                codes[moved["which"]] = code[0].tolist()
            elif ctx.triggered_id in ("start-code", "end-code"):
                which, text = ("start", start) if ctx.triggered_id == "start-code" else ("end", end)
                if text == code_text(codes[which]):  # the page itself wrote it
                    return answer()
                name = "first code" if which == "start" else "second code"
                codes[which] = parse_code(name, text, dim)
            return page.solve(state, codes)

        found = told(work)
        if found["ticket"] is no_update:
            # the browser drops what an earlier question brings now; the page asks for it again
            found["ticket"] = _ticket(running=True)
        return found

    @app.callback(
        output=outputs,
        inputs={"_": Input("tick", "data")},
        state={"state": _STATE},
        prevent_initial_call=True,
    )
    def poll(_: Any, state: Any) -> Answer:
        for job in page.jobs.of(state["page"])[:1]:
            job.wait(_POLL_WAIT)
        return page.poll(state)

    @app.callback(
        output=outputs,
        inputs={"_": Input("stop", "n_clicks")},
        state={"state": _STATE},
        prevent_initial_call=True,
    )
    def stop(_: Any, state: Any) -> Answer:
        page.jobs.stop(state["page"])
        return answer(progress_text="stopping")  # the next tick tells that it has

    @app.callback(
        output=outputs,
        inputs={
            "kind": Input("plane-kind", "value"),
            "first": Input("dimension-1", "value"),
            "second": Input("dimension-2", "value"),
        },
        state={"state": _STATE},
        prevent_initial_call=True,
    )
    def plane(kind: Any, first: Any, second: Any, state: Any) -> Answer:
        dimensions = (int(first or 0) - 1, int(second or 0) - 1)
        return told(lambda: page.change_plane(state, kind, dimensions))

    @app.callback(
        Output("plane", "figure", allow_duplicate=True),
        Input("pointer", "value"),
        prevent_initial_call=True,
    )
    def point(pointer: str) -> Patch:
        patch = Patch()
        patch["layout"]["dragmode"] = False if pointer == "choose" else pointer
        return patch

    @app.callback(
        Output("plane", "selectedData"),
        Input("select-all", "n_clicks"),
        prevent_initial_call=True,
    )
    def select_all(_: Any) -> dict[str, Any]:
        return {"points": [{"customdata": number} for number in range(len(page.subject.codes))]}

    @app.callback(Output("selection-text", "children"), Input("plane", "selectedData"))
    def count(selected: Any) -> str:
        n = len(page.selected(selected))
        how = "Select some by a lasso or a box in the plane." if not n else ""
        return f"{n or 'No'} code{'s are' if n != 1 else ' is'} selected. {how}".strip()

    @app.callback(
        output=outputs,
        inputs={
            "mean": Input("mean", "n_clicks"),
            "clusters": Input("clusters", "n_clicks"),
        },
        state={"n_clusters": State("n-clusters", "value"), "state": _STATE},
        prevent_initial_call=True,
    )
    def group(mean: Any, clusters: Any, n_clusters: Any, state: Any) -> Answer:  # noqa: ARG001
        return told(lambda: page.group(state, ctx.triggered_id, n_clusters), "group_text")

    @app.callback(
        output=outputs,
        inputs={"_": Input("keep", "n_clicks")},
        state={"state": _STATE},
        prevent_initial_call=True,
    )
    def keep(_: Any, state: Any) -> Answer:
        return told(lambda: page.keep(state))

    @app.callback(Output("pairs-list", "children"), Input("pairs", "data"))
    def list_pairs(pairs: list[Any]) -> list[Any]:
        return [_kept_row(number, PairResult.from_plain(each)) for number, each in enumerate(pairs)]

    @app.callback(
        output=outputs,
        inputs={
            "show": Input({"type": "show", "index": ALL}, "n_clicks"),
            "remove": Input({"type": "remove", "index": ALL}, "n_clicks"),
        },
        state={"state": _STATE},
        prevent_initial_call=True,
    )
    def kept(show: Any, remove: Any, state: Any) -> Answer:
        if not any([*show, *remove]):  # buttons that have just come
            raise PreventUpdate
        number = ctx.triggered_id["index"]
        if ctx.triggered_id["type"] == "show":
            return page.show_kept(state, number)
        pairs = [each for place, each in enumerate(state["pairs"]) if place != number]
        return page.keeping(state, pairs)

    @app.callback(
        Output("straight-large", "src"),
        Output("straight-large", "alt"),
        Output("geodesic-large", "src"),
        Output("geodesic-large", "alt"),
        Output("walk-text", "children"),
        Output("plane", "figure", allow_duplicate=True),
        Input("walk", "value"),
        Input("result", "data"),
        State("plane-data", "data"),
        prevent_initial_call=True,
    )
    def walk_along(percent: Any, result: Any, plane: Any) -> tuple[Any, ...]:
        if result is None:
            raise PreventUpdate
        return page.walked({"result": result, "plane": plane}, percent)

    @app.callback(
        Output("download", "data"),
        Output("problem", "children", allow_duplicate=True),
        Input("take-safetensors", "n_clicks"),
        Input("take-csv", "n_clicks"),
        Input("take-python", "n_clicks"),
        Input("take-group", "n_clicks"),
        State("result", "data"),
        State("group", "data"),
        prevent_initial_call=True,
    )
    def take(*values: Any) -> tuple[Any, Any]:
        result, group = values[-2:]
        if ctx.triggered_id == "take-group":
            if group is None:
                return no_update, "There is no mean and there are no clusters yet."
            text = group_python(page.subject, GroupResult.from_plain(group))
            return {"content": text, "filename": "geolatent_group.py"}, ""
        if result is None:
            return no_update, "There is no solved pair yet."
        solved = PairResult.from_plain(result)
        if ctx.triggered_id == "take-safetensors":
            content = curve_safetensors(page.subject, solved)
            return dcc.send_bytes(content, "geolatent_curve.safetensors"), ""
        if ctx.triggered_id == "take-csv":
            return {
                "content": curve_csv(page.subject, solved),
                "filename": "geolatent_curve.csv",
            }, ""
        text = pair_python(page.subject, solved)
        return {"content": text, "filename": "geolatent_pair.py"}, ""


def _kept_row(number: int, result: PairResult) -> Any:
    name = f"pair {number + 1}"
    length = "not known" if result.length is None else f"{result.length:.4g}"
    gain = "" if result.improvement is None else f", {100 * result.improvement:.3g} % shorter"
    metric = f"{result.settings.metric}, tolerance {result.settings.tolerance:g}"
    return html.Li(
        [
            html.Span(f"{name}: length {length}{gain} ({metric})"),
            *(
                html.Button(
                    text,
                    id={"type": kind, "index": number},
                    type="button",
                    **{"aria-label": f"{text} {name}"},
                )
                for kind, text in (("show", "Show"), ("remove", "Remove"))
            ),
        ]
    )
