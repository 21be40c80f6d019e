"""What the site says that is made from data: benchmark tables, the commands' help.

``write`` puts it as Markdown into `docs/_generated`, which pages include.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]

# lengths are known to about this: without and with kinks
_SMOOTH_FLOOR, _KINKED_FLOOR = 1e-5, 1e-4


def write(folder: Path) -> None:
    """Write all pieces into ``folder / "_generated"``; those that are as they were are left."""
    results = json.loads((folder / "benchmark.json").read_text(encoding="utf-8"))
    pieces = {
        "benchmark-smooth": comparison(results, kinks=False),
        "benchmark-kinks": comparison(results, kinks=True),
        "benchmark-savings": savings(results),
        "benchmark-environment": environment(results),
        "commands": command_help(),
        "statuses": statuses(),
        "notebooks": notebooks(folder / "notebooks"),
    }
    out = folder / "_generated"
    out.mkdir(exist_ok=True)
    for name, text in pieces.items():
        path = out / f"{name}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def comparison(results: dict[str, Any], *, kinks: bool) -> str:
    """Return a table for each problem without, or with, kinks: every method that gave lengths."""
    parts = []
    for problem in results["problems"]:
        if problem["kinks"] != kinks:
            continue
        parts += [
            f"### {_name(problem)}",
            "",
            f"{_sentence(problem['title'])}; {problem['pairs']} pairs. The best known length is "
            f"the {problem['best_is']}.",
            "",
            "| method | setting | median excess | largest | rows a pair | seconds a pair |",
            "|---|---|--:|--:|--:|--:|",
        ]
        floor = _KINKED_FLOOR if kinks else _SMOOTH_FLOOR
        for row in _measured(problem):
            once = f" + {row['setup_rows']:,} once" if row["setup_rows"] else ""
            extrapolated = ", extrapolated" if row["time_extrapolated"] else ""
            setting = f"{row['setting']} (default)" if _is_default(row) else row["setting"]
            parts.append(
                f"| {row['label']} | {setting} | {percent(row['excess_median'], floor)} "
                f"| {percent(row['excess_max'], floor)} | {row['equivalents']:,.0f}{once} "
                f"| {figures(row['seconds_per_pair'])}{extrapolated} |"
            )
        parts += [""]
        missing = [f"{row['label']} ({_why_not(row)})" for row in problem["methods"] if _lacks(row)]
        if missing:
            parts += [f"Without a length: {', '.join(missing)}.", ""]
    return "\n".join(parts)


def savings(results: dict[str, Any]) -> str:
    """Return a table of how many times fewer rows and seconds geolatent takes than others.

    The cheapest setting whose median excess is not larger than the other method's stands for
    geolatent.
    """
    others = {
        "stochman's default": ("stochman", "150 iterations"),
        "stochman, 50 iterations": ("stochman", "50 iterations"),
        "Adam, recipe of the paper": ("adam", "recipe"),
        "GEORCE, tolerance 0.0003": ("georce", "T = 100, tolerance 0.0003"),
    }
    lines = [
        "| problem | beside | geolatent's setting | times fewer rows | times fewer seconds "
        "| at its default: rows | seconds |",
        "|---|---|---|--:|--:|--:|--:|",
    ]
    for problem in results["problems"]:
        rows = {(row["method"], row["setting"]): row for row in _measured(problem)}
        own = [row for row in rows.values() if row["method"] == "geolatent"]
        default = next(row for row in own if row["default"])
        for name, key in others.items():
            if (other := rows.get(key)) is None:
                continue
            within = [row for row in own if row["excess_median"] <= other["excess_median"]]
            best = min(within, key=lambda row: row["equivalents"], default=None)
            chosen = ["none as short", "-", "-"]
            if best is not None:
                chosen = [best["setting"], *_times(other, best)]
            cells = [_name(problem), name, *chosen, *_times(other, default)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def environment(results: dict[str, Any]) -> str:
    """Return a sentence about where and when the results were made."""
    found = results["environment"]
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return (
        f"Measured on {found['date'][:10]}: {found['processor']}, {found['threads']} thread of "
        f"{found['cores']} cores, Python {found['python']}, {versions}.\n"
    )


def command_help() -> str:
    """Return the help of every command, each in a section."""
    from geolatent.cli import COMMANDS, main

    os.environ["COLUMNS"] = "88"
    parts = []
    for name in COMMANDS:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            main([name, "--help"])
        parts += [f"## `{name}`", "", "```text", printed.getvalue().strip(), "```", ""]
    return "\n".join(parts)


def statuses() -> str:
    """Return a table of what the statuses mean, as the package explains them."""
    from geolatent import Status

    lines = ["| status | what it means |", "|---|---|"]
    lines += [f"| `{status.name}` | {status.explanation} |" for status in Status]
    return "\n".join([*lines, ""])


def notebooks(folder: Path) -> str:
    """Return a table of contents of the notebooks that are there."""
    names = sorted(path.stem for path in folder.glob("*.ipynb"))
    if not names:
        return "There are none in this checkout.\n"
    return "\n".join(["```{toctree}", ":maxdepth: 1", "", *names, "```", ""])


def percent(value: float, floor: float) -> str:
    """Return a share in per cent to two figures; shares below what is measured as such."""
    return f"{figures(100 * value)} %" if value >= floor else f"< {100 * floor:g} %"


def figures(value: float) -> str:
    """Return a number to two significant figures, without an exponent."""
    rounded = float(f"{value:.2g}")
    return f"{value:,.0f}" if rounded >= 10 else f"{rounded:#.2g}"


def _name(problem: dict[str, Any]) -> str:
    """Return the title of a problem without what every one of its kind has."""
    return _sentence(re.split(r", (?:kinks|pairs|D =)", problem["title"])[0])


def _sentence(text: str) -> str:
    """Return a text with a large first letter, unless it begins with a name in code."""
    return text if "_" in text.split(",")[0] else text[0].upper() + text[1:]


def _measured(problem: dict[str, Any]) -> Iterator[Row]:
    return (row for row in problem["methods"] if not _lacks(row))


def _lacks(row: Row) -> bool:
    return row.get("excess_median") is None


def _is_default(row: Row) -> bool:
    return row["default"] and row["method"] in ("geolatent", "stochman")


def _why_not(row: Row) -> str:
    return row["note"] or "none of its pairs"


def _times(other: Row, own: Row) -> list[str]:
    costs = ("equivalents", "seconds_per_pair")
    return [figures(other[cost] / own[cost]) for cost in costs]
