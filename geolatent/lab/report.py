"""One table of all runs in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from geolatent.checks import requirement
from geolatent.files import read_json
from geolatent.lab.contents import CONFIG, POINTS, SUMMARY, run_command
from geolatent.lab.options import SWEEP
from geolatent.lab.plot import EXPERIMENTS
from geolatent.lab.printing import make_console, make_table, number, print_warning

# columns of a terminal that the whole table takes
_WIDE = 120


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
    wide = console.width >= _WIDE
    table = _report_table(f"Runs in {runs_dir}", wide=wide)
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
            table.add_row(*(row if wide else _narrow_row(row)))
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
        # trainings of before they had a config do not say that they are
        text = EXPERIMENTS[summary.get("command", "train")].in_a_report(summary)
        kind = summary["class_path"].rpartition(".")[2]
        return [[str(name), kind, text, str(summary["n_train"]), "", "", "", "", seconds]]
    if "groups" not in summary:
        text = EXPERIMENTS[summary["command"]].in_a_report(summary)
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
