"""What commands print: progress bars and tables."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from geolatent.experiments.summary import SURE
from geolatent.solution import Status


def progress_bar(console: Console) -> Progress:
    """Return a progress bar with a description, a share and the time."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=32),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=console,
    )


@contextmanager
def work_progress(
    console: Console, what: str, total: int, found: int = 0, interval: float = 10.0
) -> Iterator[Callable[[float], None]]:
    """Show how much of some work is done, its rate and the time that is left.

    On a terminal it is a bar; elsewhere, such as in a log file, plain lines.

    Parameters
    ----------
    console
        Where to show it.
    what
        What is worked on, such as "pairs".
    total, found
        How much there is to do, and how much of it was done before.
    interval
        Least number of seconds between two lines.

    Yields
    ------
    callable
        To be called with the amount that is done.
    """
    began = time.monotonic()
    told, last = began, float(found)

    def text(done: float) -> str:
        rate = (done - found) / max(time.monotonic() - began, 1e-9)
        share = f"{int(done)} of {total} {what}"
        if rate <= 0:
            return share
        left = timedelta(seconds=round((total - done) / rate))
        return f"{share}, {rate:.3g} a second, {left} left"

    if console.is_terminal:
        columns = (BarColumn(bar_width=32), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(text(found), total=total, completed=found)
            yield lambda done: bar.update(task, completed=done, description=text(done))
        return

    def line(done: float) -> None:
        nonlocal told, last
        now = time.monotonic()
        if now - told >= interval or done >= total > last:
            told, last = now, done
            clock = time.strftime("%Y-%m-%d %H:%M:%S")
            console.print(f"{clock}  {text(done)}", soft_wrap=True, highlight=False)
            console.file.flush()

    yield line


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
    counts: dict[str, int] = {}
    for group in groups.values():
        for name, count in group["statuses"].items():
            if name not in SURE:
                counts[name] = counts.get(name, 0) + count
    for name, count in counts.items():
        console.print(f"{count} {name}: {Status[name].explanation}", highlight=False)


def statistics_table(title: str, groups: Mapping[str, Mapping[str, Any]], name: str) -> Table:
    """Tabulate the improvement of groups of pairs, as `geolatent.experiments.summary` gives it."""
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
    """Say where the results are."""
    console.print(f"Results: {folder}", soft_wrap=True, highlight=False)
    for file in figures:
        console.print(f"  {file}", soft_wrap=True, highlight=False)
