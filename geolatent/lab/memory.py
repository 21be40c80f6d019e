"""How much memory there is, and numbers that ask for more."""

from __future__ import annotations

import os
from pathlib import Path

from geolatent.requirements import requirement

# where Linux tells the limit of a container
_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def machine_memory() -> int | None:
    """Return the bytes of memory of this machine or container; None where it cannot be known."""
    names = getattr(os, "sysconf_names", {})
    found = []
    if {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= set(names):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for limit in _LIMITS:
        if limit.is_file() and (text := limit.read_text().strip()).isdigit():
            found.append(int(text))
    return min(found, default=None)


def check_memory(name: str, value: object, n_bytes: int) -> None:
    """Raise where an option's value takes so many bytes of memory that this machine lacks them.

    Examples
    --------
    >>> check_memory("n_pairs", 10, 80)
    """
    there = machine_memory()
    if there is not None and n_bytes > there:
        required = (
            f"smaller: it takes {n_bytes / 1e9:,.0f} GB of memory, of which there are "
            f"{there / 1e9:,.0f}"
        )
        raise ValueError(requirement(name, required, value))
