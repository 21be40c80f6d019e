"""Commands that are functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from geolatent.lab.experiment import as_option


@dataclass(frozen=True)
class Unported:
    """A command that is a function, and its options."""

    command: str
    function: Callable[..., None]
    values: dict[str, Any]

    @property
    def options(self) -> dict[str, Any]:
        """The options by name, as configs name them."""
        bound = inspect.signature(self.function).bind(**self.values)
        bound.apply_defaults()
        return {name: as_option(value) for name, value in bound.arguments.items()}

    def at(self, out: Path) -> Unported:
        """Return the same with another folder."""
        return replace(self, values={**self.values, "out": out, "overwrite": False})

    def run(self) -> None:
        """Call the function."""
        self.function(**self.values)
