"""What commands print: progress bars and tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table


def progress_bar(console: Console) -> Progress:
    """Return a progress bar with a description, a share and the time."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=32),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=console,
    )


def make_table(title: str, columns: Sequence[str], n_text: int = 1) -> Table:
    """Return an empty table whose first columns hold text and whose others hold numbers."""
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number < n_text else "right", no_wrap=True)
    return table


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
            f"{group['straight_length']['mean']:.3f}",
            *(f"{100 * improvement[key]:.2f}" for key in ("mean", "std", "min", "max")),
            f"{100 * group['converged']:.0f}",
            f"{group['equivalents']['mean']:.0f}",
        )
    return table


def print_files(console: Console, folder: Path, figures: Iterable[Path]) -> None:
    """Say where the results are."""
    console.print(f"Results: {folder}", soft_wrap=True, highlight=False)
    for file in figures:
        console.print(f"  {file}", soft_wrap=True, highlight=False)
