"""How results print: statuses as words, tables as text for terminals and HTML for notebooks."""

from __future__ import annotations

import enum
import html
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 80


class StatusEnum(enum.IntEnum):
    """Integers, as tensors hold them, that print as their names.

    Examples
    --------
    >>> class Light(StatusEnum):
    ...     RED = 0
    >>> print(Light.RED, [Light.RED], f"{Light.RED:>5}", Light.RED == 0)
    RED [Light.RED]   RED True
    """

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"{type(self).__name__}.{self.name}"

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)


@dataclass(frozen=True)
class Table:
    """A small table of text.

    Attributes
    ----------
    title
        A line above the table.
    header
        A name for each column; a line break in it is kept in text and a space in HTML.
    rows
        The cells, a list for each row. The last column is words, on the left; the others are
        numbers, on the right.
    notes
        Lines below the table.
    hints
        Explanations of words of the last column, shown in HTML where the mouse rests on them.

    Examples
    --------
    >>> print(Table("Two primes", ["n", "name"], [["2", "two"], ["13", "thirteen"]]))
    Two primes
     n  name
     2  two
    13  thirteen
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    hints: dict[str, str] | None = None

    def __str__(self) -> str:
        names = [name.split("\n") for name in self.header]
        height = max(map(len, names))
        # names of fewer lines stand at the bottom
        heading = zip(*([""] * (height - len(lines)) + lines for lines in names), strict=True)
        lines = [*heading, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        gap = 2 if sum(widths) + 2 * (len(widths) - 1) <= WIDTH else 1
        space = WIDTH - sum(widths[:-1]) - gap * (len(widths) - 1)
        text = [shorten(self.title, WIDTH)]
        for *numbers, words in lines:
            cells = [cell.rjust(width) for cell, width in zip(numbers, widths, strict=False)]
            text.append((" " * gap).join([*cells, shorten(words, max(space, 3))]).rstrip())
        for note in self.notes:
            text.extend(textwrap.wrap(note, WIDTH))
        return "\n".join(text)

    def html(self) -> str:
        """Return the table as HTML; every text is escaped."""
        hints = self.hints or {}

        def cell(kind: str, text: str, last: bool) -> str:
            hint = f' title="{html.escape(hints[text])}"' if last and text in hints else ""
            align = "left" if last else "right"
            return f'<{kind} style="text-align: {align}"{hint}>{html.escape(text)}</{kind}>'

        def row(kind: str, cells: Sequence[str]) -> str:
            last = len(cells) - 1
            inner = "".join(cell(kind, text, i == last) for i, text in enumerate(cells))
            return f"<tr>{inner}</tr>"

        header = [name.replace("\n", " ") for name in self.header]
        parts = ["<table>", f"<caption>{html.escape(self.title)}</caption>"]
        parts += ["<thead>", row("th", header), "</thead>", "<tbody>"]
        parts += [row("td", cells) for cells in self.rows]
        parts += ["</tbody>", "</table>"]
        parts += [f"<p>{html.escape(note)}</p>" for note in self.notes]
        return "\n".join(parts)


def shorten(text: str, width: int) -> str:
    """Return a text cut to a width, with dots where something is missing.

    Examples
    --------
    >>> shorten("geodesic", 6)
    'geo...'
    """
    return text if len(text) <= width else text[: width - 3] + "..."
