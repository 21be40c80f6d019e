"""Sweeps: a command run on every combination of listed options, and one table of all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console

from geolatent.checks import requirement
from geolatent.experiments.console import print_files, statistics_table
from geolatent.experiments.setup import make_device
from geolatent.files import UnfinishedError
from geolatent.results import POINTS, SUMMARY, RunFolder, SolvedPairs, is_neutral, load_run


def sweep_points(sweep: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return all combinations of listed options; the last option changes fastest.

    Raises
    ------
    ValueError
        If an option changes results by rounding at most, has no values or a value twice, or a value
        is no number, text or list.

    Examples
    --------
    >>> sweep_points({"seed": [0, 1], "solver.tolerance": [1e-3]})
    [{'seed': 0, 'solver.tolerance': 0.001}, {'seed': 1, 'solver.tolerance': 0.001}]
    """
    for key, values in sweep.items():
        if is_neutral(key) or key in ("config", "sweep"):
            raise ValueError(requirement("sweep", "of options that can change results", key))
        texts = [json.dumps(value) for value in values]
        if not texts or len(set(texts)) < len(texts):
            required = f"lists of one value or more, none of them twice, for `{key}`"
            raise ValueError(requirement("sweep", required, values))
        if any(isinstance(value, Mapping) for value in values):
            required = f"of single options, such as {key}.NAME, instead of `{key}`"
            raise ValueError(requirement("sweep", required, values))
    return [dict(zip(sweep, values, strict=True)) for values in product(*sweep.values())]


def point_folder(out: Path, number: int) -> Path:
    """Return the run folder of a point of a sweep."""
    return out / POINTS / f"{number:04d}"


def run_sweep(
    command: str,
    function: Callable[..., None],
    values: Mapping[str, Any],
    sweep: Mapping[str, Sequence[Any]],
    arguments: Sequence[Mapping[str, Any]],
) -> None:
    """Run a command for each point of a sweep, and join the results.

    Each point has a run folder of its own in ``points/``; the folder above holds one table of all
    pairs, which begins with the columns of the swept options. Points that are finished are not
    run again.

    Parameters
    ----------
    command, function
        The command.
    values
        Its options, the swept ones as they are without the sweep.
    sweep
        The swept options: their dotted names, and values.
    arguments
        The options of each of the `sweep_points`.

    Raises
    ------
    UnfinishedError
        If shards of a point failed; the other points are done.
    """
    out, overwrite = Path(values["out"]), bool(values["overwrite"])
    points = sweep_points(sweep)
    config = {**values, "sweep": sweep}
    RunFolder.check(out, overwrite=overwrite, command=command, resume=config)
    console = Console()
    with RunFolder.create(
        out,
        command,
        config,
        seed=values["seed"],
        device=make_device(values["device"]),
        overwrite=overwrite,
        resume=True,
    ) as folder:
        unfinished = 0
        for number, (point, options) in enumerate(zip(points, arguments, strict=True)):
            place = point_folder(out, number)
            title = f"point {number + 1} of {len(points)}: {_text(point)}"
            if (place / SUMMARY).exists():
                console.print(f"{title}: done before", highlight=False, markup=False)
                continue
            console.print(title, highlight=False, markup=False)
            try:
                function(**{**options, "out": place, "overwrite": False})
            except UnfinishedError as error:
                unfinished += 1
                console.print(f"{title}: {error}", highlight=False, markup=False)
        if unfinished:
            raise UnfinishedError(
                f"{unfinished} of {len(points)} points are not finished; run the same command "
                "again to go on."
            )
        summaries = [load_run(point_folder(out, n)).summary or {} for n in range(len(points))]
        folder.join([partial(_point_pairs, out, n, point) for n, point in enumerate(points)])
        groups = {
            _label(command, point, label): group
            for point, summary in zip(points, summaries, strict=True)
            for label, group in summary["groups"].items()
        }
        seconds = sum(summary["seconds"] for summary in summaries)
        folder.finish({"sweep": sweep, "groups": groups, "seconds": round(seconds, 1)})
    # wide enough for the labels, in a file or a log too
    wide = Console(width=max(console.width, 150))
    wide.print(statistics_table("All points of the sweep", groups, ", ".join(sweep)))
    print_files(console, out, [])


def _point_pairs(out: Path, number: int, point: Mapping[str, Any]) -> SolvedPairs:
    """Return the pairs of a point, the swept options as their first columns."""
    pairs = load_run(point_folder(out, number)).pairs
    if pairs is None:
        raise ValueError(requirement("out", "a sweep of a command that solves pairs", out))
    columns = {
        name: [json.dumps(value) if isinstance(value, list) else value] * len(pairs)
        for name, value in point.items()
    }
    return pairs.with_columns(columns, first=True)


def _label(command: str, point: Mapping[str, Any], label: str) -> str:
    if label == "all":
        return _text(point)
    return f"{_text(point)}, {'step ' if command == 'improvement' else ''}{label}"


def _text(point: Mapping[str, Any]) -> str:
    values = {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in point.items()
    }
    return ", ".join(f"{key}={value}" for key, value in values.items())
