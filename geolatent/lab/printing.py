"""What commands print: progress, tables of their results, and where the files are."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from geolatent.lab.summary import SURE
from geolatent.solution import Status

# whether commands print warnings and their last line alone
QUIET: ContextVar[bool] = ContextVar("quiet", default=False)
# whether a command runs as a part of another, whose last line alone is the last
_PART: ContextVar[bool] = ContextVar("part", default=False)


def make_console() -> Console:
    """Return what commands print to.

    Brackets and numbers, as in the names of files, are printed as they are. Where `QUIET` is set,
    only `print_last` and `print_warning` are heard.
    """
    return Console(markup=False, highlight=False, quiet=QUIET.get())


@contextmanager
def part_of_a_command() -> Iterator[None]:
    """Make a command that is run within another no louder than the other."""
    before = _PART.set(True)
    try:
        yield
    finally:
        _PART.reset(before)


def print_last(console: Console, text: str) -> None:
    """Print what a command ends with, which is never left out."""
    if console.quiet and _PART.get():
        return
    quiet, console.quiet = console.quiet, False
    console.print(text, soft_wrap=True)
    console.quiet = quiet


def print_warning(console: Console, text: str) -> None:
    """Print what went wrong without ending the command; where it is quiet, to the errors."""
    if console.quiet:
        print(text, file=sys.stderr)
    else:
        console.print(text, soft_wrap=True)


@contextmanager
def working(console: Console, what: str) -> Iterator[Callable[[float], None]]:
    """Show a bar while some work lasts; what is yielded may be told the share that is done."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=32),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=1.0)
        yield lambda share: progress.update(task, completed=share)
        progress.update(task, completed=1.0)


@contextmanager
def work_progress(
    console: Console, what: str, total: int, found: int = 0, interval: float = 10.0
) -> Iterator[Callable[[float], None]]:
    """Show how much of some work is done, its rate and the time that is left.

    On a terminal it is a bar; elsewhere, such as in a log file, plain lines, ``interval`` seconds
    apart at least. ``found`` is how much of the ``total`` was done before. What is yielded is to be
    called with the amount that is done.
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
        columns = (
            BarColumn(bar_width=32),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
        )
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
            console.print(f"{clock}  {text(done)}", soft_wrap=True)
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
    counts: Counter[str] = Counter()
    for group in groups.values():
        counts.update(group["statuses"])
    for name, count in counts.items():
        if name not in SURE:
            console.print(f"{count} {name}: {Status[name].explanation}")


def print_accuracy(console: Console, accuracy: float | None) -> None:
    """Say how well a logistic regression tells the classes, where there is one."""
    if accuracy is not None:
        console.print(
            f"The logistic regression classifies {100 * accuracy:.1f} % of the training images "
            "that were held out from its fit."
        )


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
