"""Figures and tables from stored results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from geolatent.checks import requirement
from geolatent.files import read_json
from geolatent.lab import plotting
from geolatent.lab.cluster import Cluster
from geolatent.lab.compare import Compare
from geolatent.lab.config import Formats, check_formats
from geolatent.lab.contents import CONFIG, POINTS, SUMMARY, run_command
from geolatent.lab.distances import Distances
from geolatent.lab.experiment import Experiment
from geolatent.lab.improvement import Improvement
from geolatent.lab.interpolate import Interpolate
from geolatent.lab.landscape import Landscape
from geolatent.lab.options import SWEEP
from geolatent.lab.printing import (
    make_console,
    make_table,
    number,
    part_of_a_command,
    print_files,
    print_warning,
)
from geolatent.lab.run import Run, load_run
from geolatent.lab.sample import Sample
from geolatent.lab.train import Train
from geolatent.lab.walk import Walk

# columns of a terminal that the whole table takes
_WIDE = 120

_DRAWN: tuple[type[Experiment], ...] = (
    *(Cluster, Compare, Distances, Improvement, Interpolate),
    *(Landscape, Sample, Train, Walk),
)
FIGURES = {kind.__name__.lower(): kind.figures for kind in _DRAWN}


def plot(run_dir: Path, format: Formats = "png") -> None:
    """Draw the figures of a run again, from its stored results alone.

    Parameters
    ----------
    run_dir
        The folder that a command wrote, as its `out`.
    format
        Format of the figures, "png", "pdf" or "svg", or a list of them.
    """
    check_formats(format)
    if not run_dir.is_dir():
        raise FileNotFoundError(requirement("run_dir", "an existing folder", run_dir))
    console = make_console()
    if (run_dir / SUMMARY).is_file() and not (run_dir / CONFIG).is_file():
        # a training of before they had a config
        run = Run(run_dir, "train", {}, {}, None, {}, read_json(run_dir / SUMMARY))
    else:
        run = load_run(run_dir)
    if not run.finished:
        n_pairs = len(run.pairs) if run.pairs is not None else 0
        required = "a finished run; run the same command again to finish it"
        found = f"{run_dir}, which was interrupted after {n_pairs} solved rows"
        raise ValueError(requirement("run_dir", required, found))
    if SWEEP in run.summary:
        every = sorted(path.name for path in (run_dir / POINTS).iterdir())
        with part_of_a_command():
            for name in run.summary.get("points", every):
                plot(run_dir / POINTS / name, format)
        print_files(console, run_dir, [])
        return
    try:
        drawn = FIGURES[run.command](run)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        required = "a run with all of its results; --overwrite makes a damaged one anew"
        raise ValueError(f"{requirement('run_dir', required, run_dir)} {error!r}") from error
    print_files(console, run_dir, plotting.save_figures(drawn, run_dir, format))


def report(runs_dir: Path) -> None:
    """Print one table of all finished runs in a folder and its sub-folders.

    Runs that are not finished, or damaged, are named below it.

    Parameters
    ----------
    runs_dir
        A folder of run folders.
    """
    if not runs_dir.is_dir():
        raise FileNotFoundError(requirement("runs_dir", "an existing folder", runs_dir))
    found = sorted({path.parent for name in (SUMMARY, CONFIG) for path in runs_dir.rglob(name)})
    # the points of a finished sweep are rows of the sweep
    found = [folder for folder in found if _is_run(folder) and not _is_point(folder)]
    if not found:
        required = f"a folder of runs, with {SUMMARY} in them"
        raise FileNotFoundError(requirement("runs_dir", required, runs_dir))
    notes = []
    console = make_console()
    table = _report_table(f"Runs in {runs_dir}", wide=console.width >= _WIDE)
    for folder in found:
        name = folder.relative_to(runs_dir)
        if not (folder / SUMMARY).is_file():
            notes.append(f"{name}: not finished")
            continue
        try:
            rows = _rows(folder, name)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = str(error) if isinstance(error, OSError | ValueError) else repr(error)
            notes.append(f"{name}: {SUMMARY} is damaged: {reason}")
            continue
        for row in rows:
            table.add_row(*(row if console.width >= _WIDE else _narrow_row(row)))
    # the table is the last thing that is said, however quiet the command is
    console.quiet = False
    console.print(table)
    for note in notes:
        print_warning(console, note)


def _is_run(folder: Path) -> bool:
    """Return whether a folder is of a run, or of a training of before they had a config."""
    return (folder / SUMMARY).is_file() or run_command(folder) is not None


def _report_table(title: str, *, wide: bool) -> Table:
    """Return an empty table whose names and texts are wrapped where it is narrow, never numbers."""
    numbers = ["\nn", "straight\nlength", "shorter\n%", "conver-\nged %", "time\ns"]
    if wide:
        numbers[2:3] = ["shorter by\nmean ± std %", "min\n%"]
    texts = ["\nrun", "\npairs", "\nfurther results (straight line → geodesic)"]
    table = make_table(title, [*(texts if wide else texts[:1]), *numbers], 3 if wide else 1)
    for column in table.columns[: len(table.columns) - len(numbers)]:
        column.no_wrap, column.overflow = False, "fold"
    return table


def _narrow_row(row: Sequence[str]) -> list[str]:
    """Put all texts into the first column, and leave out deviation and smallest improvement."""
    texts = " | ".join(text for text in row[:3] if text)
    return [texts, row[3], row[4], row[5].partition(" ± ")[0], row[7], row[8]]


def _is_point(folder: Path) -> bool:
    return folder.parent.name == POINTS and (folder.parent.parent / SUMMARY).is_file()


def _rows(folder: Path, name: Path) -> list[list[str]]:
    """Return the rows of one run: one for each group of its pairs, or one."""
    summary = read_json(folder / SUMMARY)
    seconds = f"{summary['seconds']:.0f}"
    if "class_path" in summary:
        error, variance = summary["test_error"], summary["test_variance"]
        text = f"test error {number(error, '.4f')}, of the mean image {number(variance, '.4f')}"
        kind = summary["class_path"].rpartition(".")[2]
        return [[str(name), kind, text, str(summary["n_train"]), "", "", "", "", seconds]]
    if "groups" not in summary:
        text = _TEXTS[summary["command"]](summary)
        return [[str(name), "", text, "", "", "", "", "", seconds]]
    rows: list[list[str]] = []
    for label, group in summary["groups"].items():
        gain = group["relative_improvement"]
        rows.append(
            [
                str(name) if not rows else "",
                _label(summary, label),
                _further(summary, group),
                str(group["n_pairs"]),
                number(group["straight_length"]["mean"], ".2f"),
                " ± ".join(number(gain[key], ".2f", 100) for key in ("mean", "std")),
                number(gain["min"], ".2f", 100),
                number(group["converged"], ".0f", 100),
                seconds if not rows else "",
            ]
        )
    return rows


def _label(summary: dict[str, object], label: str) -> str:
    if summary["command"] != "improvement" or SWEEP in summary:
        return label
    return f"step {label}" if summary["pairs"] == "worst" else str(summary["pairs"])


def _further(summary: dict[str, object], group: dict[str, dict[str, float]]) -> str:
    """Say what else a group of pairs gave: means, straight line → geodesic."""
    parts = []
    for key, text in (
        ("crossings", "classes crossed"),
        ("data_distance", "data distance"),
        ("alignment", "alignment"),
    ):
        if key in group:
            both = (number(group[f"{name}{key}"]["mean"], ".2f") for name in ("straight_", ""))
            parts.append(f"{text} {' → '.join(both)}")
    if "comparable" in summary:
        comparable = summary["comparable"]
        parts.append(f"{comparable['n_pairs']} comparable")  # type: ignore[index]
    return ", ".join(parts[:2])


def _landscape_text(summary: dict[str, Any]) -> str:
    at_data = summary["maps"]["condition"]["at_the_data"]["median"]
    return f"median condition number at the data {number(at_data, '.3g')}"


def _cluster_text(summary: dict[str, Any]) -> str:
    scores = (
        f"{name} {sum(entry['adjusted_rand']) / len(entry['adjusted_rand']):.3f}"
        for name, entry in summary["methods"].items()
    )
    return "adjusted Rand index: " + ", ".join(scores)


def _distances_text(summary: dict[str, Any]) -> str:
    ratios = {name: summary["distances"][name]["ratio"] for name in ("geodesic", "latent")}
    if all(ratio is None for ratio in ratios.values()):  # images without classes
        return f"{summary['n_images']} images"
    text = ", ".join(f"{name} {number(ratio, '.2f')}" for name, ratio in ratios.items())
    return f"{summary['n_images']} images; between over within classes: {text}"


def _walk_text(summary: dict[str, Any]) -> str:
    norm = summary["quantities"]["norm"]
    ends = "-".join(number(norm[key], ".2f") for key in ("min", "max"))
    return f"{summary['n_walks']} {summary['kind']} walks, norms {ends}"


_TEXTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "cluster": _cluster_text,
    "distances": _distances_text,
    "landscape": _landscape_text,
    "sample": lambda summary: f"{summary['n_images']} images",
    "walk": _walk_text,
}
