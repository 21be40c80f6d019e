"""The command line: ``geolatent COMMAND [options]``."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from geolatent._version import __version__
from geolatent.files import UnfinishedError

# command: module and function that runs it, and a line of help; modules load when they are needed
COMMANDS = {
    "demo": (
        "geolatent.experiments.demo:demo",
        "find and draw geodesics between handwritten digits",
    ),
    "train": (
        "geolatent.experiments.train:train",
        "train a variational autoencoder or a BiGAN",
    ),
    "interpolate": (
        "geolatent.experiments.interpolate:interpolate",
        "straight lines against geodesics, with and without a feature map",
    ),
    "improvement": (
        "geolatent.experiments.improvement:improvement",
        "how much shorter than straight lines geodesics are, over many pairs",
    ),
    "compare": (
        "geolatent.experiments.compare:compare",
        "several models on the same pairs of images",
    ),
    "landscape": (
        "geolatent.experiments.landscape:landscape",
        "the metric of a 2-d latent space, drawn",
    ),
    "distances": (
        "geolatent.experiments.distances:distances",
        "geodesic distances between all pairs of some images",
    ),
    "cluster": (
        "geolatent.experiments.cluster:cluster",
        "k-means by geodesic distance, against Euclidean k-means",
    ),
    "walk": (
        "geolatent.experiments.walk:walk",
        "Brownian motion, rays and great circles, decoded on the way",
    ),
    "sample": (
        "geolatent.experiments.sample:sample",
        "decoded samples or images of the data as PNG files",
    ),
    "plot": (
        "geolatent.experiments.plot:plot",
        "the figures of a run again, from its stored results",
    ),
    "report": (
        "geolatent.experiments.plot:report",
        "one table of all runs in a folder",
    ),
}


_SWEEP = "sweep"
# arguments that are given without a name
_FOLDERS = ("run_dir", "runs_dir")


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
    command = words[0]
    if command not in COMMANDS:
        print(f"geolatent: no command `{command}`.\n\n{_overview()}", file=sys.stderr)
        return 2
    location, _ = COMMANDS[command]
    module, name = location.split(":")
    try:
        function = getattr(importlib.import_module(module), name)
        parser = _parser(command, function)
        options = _complete_flags(words[1:], function)
        values = _values(parser, options, function)
        sweep = values.pop(_SWEEP, None)
        if sweep:
            _run_sweep(command, function, parser, options, values, sweep)
        else:
            function(**values)
    except SystemExit as stop:  # the parser's own: after --help, or a message about the words
        return stop.code if isinstance(stop.code, int) else 2
    except (ValueError, TypeError, OSError, ModuleNotFoundError, UnfinishedError) as error:
        print(f"geolatent {command}: {_told(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"geolatent {command}: interrupted. {_told(stop)}".rstrip(), file=sys.stderr)
        return 130
    return 0


def _told(error: BaseException) -> str:
    """Return an error's message and the notes that were added to it, in one line."""
    text, notes = str(error), getattr(error, "__notes__", ())
    if text and notes and not text.endswith("."):
        text += "."
    return " ".join([text, *notes]).strip()


def _parser(command: str, function: Callable[..., Any]) -> ArgumentParser:
    """Return the parser of a command: the function's arguments are its options.

    The folder that a command reads needs no name.
    """
    alone = next(iter(inspect.signature(function).parameters)) in _FOLDERS
    parser = ArgumentParser(
        prog=f"geolatent {command}", description=_summary(function.__doc__), allow_abbrev=False
    )
    parser.add_argument("--config", action=ActionConfigFile, help="Path of a YAML file.")
    parser.add_function_arguments(function, as_positional=alone)
    if "executor" in inspect.signature(function).parameters:
        text = "Dotted names of options and lists of their values: every combination is run."
        parser.add_argument(f"--{_SWEEP}", type=dict[str, list[Any]], default={}, help=text)
    return parser


def _values(
    parser: ArgumentParser, words: Sequence[str], function: Callable[..., Any]
) -> dict[str, Any]:
    """Return the arguments of a command's function, and its sweep."""
    parsed = parser.parse_args(list(words))
    _check_groups(parser, parsed, function)
    values = parser.instantiate(parsed).as_dict()
    values.pop("config", None)
    return values


def _run_sweep(
    command: str,
    function: Callable[..., Any],
    parser: ArgumentParser,
    words: Sequence[str],
    values: dict[str, Any],
    sweep: dict[str, list[Any]],
) -> None:
    """Run a command on every combination of the listed options, read as if given as words."""
    from geolatent.experiments.sweep import run_sweep, sweep_points

    arguments = []
    for point in sweep_points(sweep):
        texts = [
            f"--{key}={value if isinstance(value, str) else json.dumps(value)}"
            for key, value in point.items()
        ]
        arguments.append(_values(parser, [*words, *texts], function))
        del arguments[-1][_SWEEP]
    run_sweep(command, function, values, sweep, arguments)


def _check_groups(parser: ArgumentParser, parsed: Namespace, function: Callable[..., Any]) -> None:
    """Refuse a value that is not a set of options where there should be one, such as a list."""
    for name, parameter in inspect.signature(function).parameters.items():
        value = parsed[name]
        if dataclasses.is_dataclass(parameter.default) and not isinstance(value, Namespace):
            parser.error(f'Parser key "{name}":\n  Expected options and their values. Got: {value}')


def _complete_flags(words: Sequence[str], function: Callable[..., Any]) -> list[str]:
    """Let ``--overwrite`` stand for ``--overwrite true``, and so for all that are true or false."""
    parameters = inspect.signature(function).parameters.values()
    flags = {f"--{p.name}" for p in parameters if isinstance(p.default, bool)}
    completed: list[str] = []
    for place, word in enumerate(words):
        following = words[place + 1] if place + 1 < len(words) else ""
        completed.append(word)
        if word in flags and following.lower() not in ("true", "false"):
            completed.append("true")
    return completed


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
