"""What a command would do, and about how long it would take, without doing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from geolatent.files import LOCK
from geolatent.lab.contents import CONFIG, SUMMARY
from geolatent.lab.costs import Cost, seconds_a_row
from geolatent.lab.earlier import stored_parts
from geolatent.lab.experiment import Experiment
from geolatent.lab.options import plain
from geolatent.lab.printing import make_console, print_last
from geolatent.lab.sweep import sweep_points

# seconds that a solve takes for each decoder row beside the decoder, measured on small decoders
_OVERHEAD = 2e-5


def dry_run(experiment: Experiment, sweep: Mapping[str, Sequence[Any]]) -> None:
    """Print what an experiment, or a sweep of it, would do and what it would cost.

    Nothing is written. It raises what the experiment would before it begins.
    """
    config = {**experiment.options, "sweep": sweep} if sweep else experiment.options
    # whoever asks for a lock writes it
    if not (experiment.out / LOCK).exists():
        experiment.check_folder(config)
    experiment.check()
    costs = {name: experiment.cost(model) for name, model in experiment.codecs.items()}
    plan = _plan(experiment, sum(cost.n_geodesics for cost in costs.values()))
    rows, seconds = _total(experiment, costs)
    n_points = len(sweep_points(sweep))
    console = make_console()
    text = yaml.safe_dump(plain(experiment.options), sort_keys=False, allow_unicode=True)
    console.print(f"Options of geolatent {experiment.command}:\n\n{text}", soft_wrap=True)
    for name, found in plan.items():
        console.print(f"{name}: {found}", soft_wrap=True)
    names = ", ".join(sweep)
    each = f" for {n_points} combinations of {names}, with the options above" if sweep else ""
    amount = f"about {n_points * rows:,.0f} decoder rows, " if rows else ""
    length = timedelta(seconds=max(1, round(n_points * seconds)))
    print_last(
        console,
        f"Estimate{each}: {amount}about {length} on this device (from a few timed calls and the "
        "costs of other models; it may be three times less or more). Nothing was written.",
    )


def _plan(experiment: Experiment, n_geodesics: int) -> dict[str, str]:
    """Return what an experiment would use and make, by name."""
    found = {
        "Output": _output(experiment.out, overwrite=experiment.overwrite),
        "Device": str(experiment.place),
    }
    for name, model in experiment.codecs.items():
        found[f"Model {name}"] = f"{type(model.module).__name__}, {model.dim} latent dimensions"
    if experiment.dataset.loaded:
        images = len(experiment.dataset.chosen[0])
        found["Data"] = f"{images:,} images of {experiment.data.name}"
    if n_geodesics:
        found["Geodesics"] = f"{n_geodesics:,}"
    return found | experiment.plan()


def _output(folder: Path, *, overwrite: bool) -> str:
    """Return the state of an output folder that a command would take."""
    if (folder / LOCK).exists():
        return f"{folder}, which another process may be writing"
    unfinished = (folder / CONFIG).exists() and not (folder / SUMMARY).exists()
    if unfinished and not overwrite:
        n_parts = len(stored_parts(folder, ""))
        shards = f" with {n_parts} shards" if n_parts else ""
        return f"{folder}, an unfinished run{shards}, which it would go on with"
    if (folder / SUMMARY).exists():
        return f"{folder}, whose results would be replaced"
    return f"{folder}, {'there already' if folder.exists() else 'to be made'}"


def _total(experiment: Experiment, costs: Mapping[str, Cost]) -> tuple[float, float]:
    """Return the decoder rows and the seconds of the work in all models, about."""
    rows, seconds = 0.0, experiment.seconds()
    for name, cost in costs.items():
        solved = cost.n_geodesics * cost.rows_each
        rows += solved + cost.rows
        each = seconds_a_row(experiment.codecs[name])
        seconds += (solved + cost.rows) * each + _OVERHEAD * solved + cost.seconds
    return rows, seconds
