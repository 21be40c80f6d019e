"""Sweeps: a command run on every combination of listed options, and one table of all."""

from __future__ import annotations

import errno
import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count, product
from pathlib import Path
from typing import Any

from geolatent.checks import requirement
from geolatent.files import UnfinishedError
from geolatent.lab.contents import POINTS, SUMMARY, check_inputs, find_points
from geolatent.lab.options import is_neutral, options_key
from geolatent.lab.pairs_experiment import PairsExperiment
from geolatent.lab.places import check_places
from geolatent.lab.printing import (
    make_console,
    part_of_a_command,
    print_files,
    print_warning,
    statistics_table,
)
from geolatent.lab.run import load_run
from geolatent.lab.solved import SolvedPairs

# no room on the disk: the other points would fail too
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sweep_points(sweep: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return all combinations of listed options; the last option changes fastest.

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


def point_words(point: Mapping[str, Any]) -> list[str]:
    """Return the options of a point as they would be given as words, less their dashes."""
    return [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in point.items()
    ]


def _place_points(
    points: Sequence[PairsExperiment], out: Path, tell: Callable[[str], None]
) -> list[Path]:
    """Return the run folder of each point: the one that has its options, or a new one.

    A FileExistsError tells of one that was run with other files than its options name now.
    """
    found, damaged = find_points(out)
    for text in damaged:
        tell(f"{text} Its point is run anew.")
    taken = {path.name for path in (out / POINTS).iterdir()} if (out / POINTS).is_dir() else set()
    free = (name for name in map("{:04d}".format, count()) if name not in taken)
    places = []
    for point in points:
        key = options_key(point.command, point.options)
        if key not in found:
            found[key] = out / POINTS / next(free)
        elif found[key].name in taken:
            check_inputs(found[key], point.options)
        places.append(found[key])
    return places


def _run_point(point: PairsExperiment) -> str | None:
    """Run a point; where it fails, return what to say of it."""
    try:
        with part_of_a_command():
            point.run()
    except (ValueError, TypeError, OSError, ModuleNotFoundError, UnfinishedError) as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            raise
        return " ".join([str(error), *getattr(error, "__notes__", ())])
    except Exception:  # whatever it is, the other points are to be run
        return traceback.format_exc()
    return None


def run_sweep(
    experiment: PairsExperiment,
    sweep: Mapping[str, Sequence[Any]],
    experiments: Sequence[PairsExperiment],
) -> None:
    """Run the experiment of each of the `sweep_points`, and join the results.

    Each point has a run folder of its own in ``points/``; the folder above, which ``experiment``
    names, holds one table of all pairs, which begins with the columns of the swept options. Points
    that are finished are not run again: they are known by their options, so that a sweep whose
    points were mended goes on. A point that fails does not stop the others.

    Raises
    ------
    UnfinishedError
        If points failed; their errors have been printed, and the other points are done.
    FileExistsError
        If the folder holds other results, or points of files that have changed since.
    OSError
        If the disk is full.
    """
    out, points = experiment.out, sweep_points(sweep)
    config = {**experiment.options, "sweep": sweep}
    console = make_console()
    experiment.check_folder(config)
    if not experiment.overwrite:  # to refuse it before anything is written
        _place_points(experiments, out, partial(print_warning, console))
    with experiment.take_folder(config) as folder:
        folder.update(config)
        places = _place_points(experiments, out, lambda _: None)
        titles = [f"point {n + 1} of {len(points)}: {_text(p)}" for n, p in enumerate(points)]
        # all that lack a file are told before the work on the others begins
        lacking = set()
        for number, (place, each) in enumerate(zip(places, experiments, strict=True)):
            try:
                if not (place / SUMMARY).exists():
                    check_places({**each.options, "out": place})
            except OSError as error:
                lacking.add(number)
                print_warning(console, f"{titles[number]}: {error}")
        runs: dict[int, dict[str, Any]] = {}
        for number, (title, each) in enumerate(zip(titles, experiments, strict=True)):
            if number in lacking:
                continue
            place = places[number]
            finished = (place / SUMMARY).exists()
            console.print(f"{title}: done before" if finished else title, soft_wrap=True)
            failed = None if finished else _run_point(replace(each, out=place, overwrite=False))
            try:
                if failed is None:
                    runs[number] = load_run(place).summary
            except ValueError as error:
                failed = f"{error} Remove {place} to run it again."
            if failed is not None:
                print_warning(console, f"{title}: {failed}")
        unfinished = [_text(point) for n, point in enumerate(points) if n not in runs]
        if unfinished:
            raise UnfinishedError(
                f"{len(unfinished)} of {len(points)} points are not finished "
                f"({'; '.join(unfinished)}); mend what is told above and run the same command "
                "again to go on."
            )
        folder.join([partial(_point_pairs, *pair) for pair in zip(places, points, strict=True)])
        groups = {
            _label(experiment.command, point, label): group
            for point, summary in zip(points, runs.values(), strict=True)
            for label, group in summary["groups"].items()
        }
        summary = {
            "sweep": sweep,
            "points": [place.name for place in places],
            "groups": groups,
            "seconds": round(sum(summary["seconds"] for summary in runs.values()), 1),
        }
        folder.finish(summary)
    # wide enough for the labels, in a file or a log too
    console.width = max(console.width, 150)
    console.print(statistics_table("All points of the sweep", groups, ", ".join(sweep)))
    print_files(console, out, [])


def _point_pairs(place: Path, point: Mapping[str, Any]) -> SolvedPairs:
    """Return the pairs of a point, the swept options as their first columns."""
    pairs = load_run(place).pairs
    if pairs is None:
        raise ValueError(requirement("out", "a sweep of a command that solves pairs", place))
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
    return ", ".join(point_words(point))
