"""The command line: ``geolatent COMMAND [options]``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from jsonargparse import ActionConfigFile, ArgumentParser

from geolatent._version import __version__

# command: module and function that runs it, and a line of help; modules load when they are needed
COMMANDS = {
    "demo": (
        "geolatent.experiments.demo:demo",
        "find and draw geodesics between handwritten digits",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status: 0, 1 for an error, 2 for a wrong command line.

    Errors that a user can mend are told in one line; any other error shows where it came from.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"geolatent {__version__}")
        return 0
    if words[0] not in COMMANDS:
        print(f"geolatent: no command `{words[0]}`.\n\n{_overview()}", file=sys.stderr)
        return 2
    location, _ = COMMANDS[words[0]]
    module, name = location.split(":")
    function = getattr(importlib.import_module(module), name)
    parser = ArgumentParser(prog=f"geolatent {words[0]}", description=_summary(function.__doc__))
    parser.add_argument("--config", action=ActionConfigFile, help="Path of a YAML file.")
    parser.add_function_arguments(function)
    options = parser.instantiate_classes(parser.parse_args(words[1:]))
    values = options.as_dict()
    values.pop("config", None)
    try:
        function(**values)
    except (ValueError, TypeError, OSError) as error:
        print(f"geolatent {words[0]}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"geolatent {words[0]}: interrupted", file=sys.stderr)
        return 130
    return 0


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return (
        "usage: geolatent COMMAND [options]\n\n"
        "Riemannian geodesics in the latent spaces of generative models.\n\n"
        "commands:\n" + "\n".join(lines) + "\n\n"
        "`geolatent COMMAND --help` explains a command; --version prints the version."
    )


def _summary(text: str | None) -> str:
    """Return a docstring up to its list of arguments."""
    return (text or "").split("\n    Args:")[0].strip()
