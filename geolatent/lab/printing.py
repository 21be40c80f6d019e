"""What commands print: tables of their results, and where the files are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from geolatent.lab.console import (
    QUIET,
    make_console,
    part_of_a_command,
    print_last,
    print_warning,
    work_progress,
    working,
)
from geolatent.lab.summary import SURE
from geolatent.solution import Status

__all__ = [
    "QUIET",
    "make_console",
    "make_table",
    "number",
    "part_of_a_command",
    "print_files",
    "print_last",
    "print_statuses",
    "print_warning",
    "statistics_table",
    "work_progress",
    "working",
]


def make_table(title: str, columns: Sequence[str], n_text: int = 1) -> Table:
    """Return an empty table whose first columns hold text and whose others hold numbers."""
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number < n_text else "right", no_wrap=True)
    return table


def number(value: float | None, form: str, scale: float = 1.0) -> str:
    """Return a number as text, and a dash for one that is not known: NaN, or None for it.

    Examples
    --------
    >>> number(0.123, ".1f", 100.0), number(None, ".1f")
    ('12.3', '-')
    """
    return "-" if value is None or math.isnan(value) else format(scale * value, form)


def print_statuses(console: Console, groups: Mapping[str, Mapping[str, Any]]) -> None:
    """Say how many pairs ended without a certificate, and what their statuses mean."""
    counts: Counter[str] = Counter()
    for group in groups.values():
        counts.update(group["statuses"])
    for name, count in counts.items():
        if name not in SURE:
            console.print(f"{count} {name}: {Status[name].explanation}", highlight=False)


def statistics_table(title: str, groups: Mapping[str, Mapping[str, Any]], name: str) -> Table:
    """Tabulate the improvement of groups of pairs, as `geolatent.lab.summary` gives it."""
    columns = (
        f"\n{name}",
        "\npairs",
        "straight\nlength",
        "shorter by\nmean %",
        "std\n%",
        "min\n%",
        "max\n%",
        "converged\n%",
        "decoder\nrows",
    )
    table = make_table(title, columns)
    for label, group in groups.items():
        improvement = group["relative_improvement"]
        table.add_row(
            label,
            str(group["n_pairs"]),
            number(group["straight_length"]["mean"], ".3f"),
            *(number(improvement[key], ".2f", 100) for key in ("mean", "std", "min", "max")),
            number(group["converged"], ".0f", 100),
            number(group["equivalents"]["mean"], ".0f"),
        )
    return table


def print_files(console: Console, folder: Path, figures: Iterable[Path]) -> None:
    """Say where the results are, and at the end their folder."""
    for file in figures:
        console.print(f"Figure: {file}", soft_wrap=True)
    print_last(console, f"Results: {folder}")
