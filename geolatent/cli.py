"""The command line: ``geolatent COMMAND [options]``."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import yaml  # type: ignore[import-untyped]

from geolatent._version import __version__
from geolatent.files import UnfinishedError, parse_yaml
from geolatent.lab.config import CHOICES
from geolatent.lab.outline import choices, outline
from geolatent.lab.places import check_places
from geolatent.lab.terminal import accept_all_letters, interrupts_between_imports, leave_pipe
from geolatent.lab.words import closest, complete_words, option_types, what_is_wrong

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

# command: where its class or function is, and a line of help; modules load when they are needed
COMMANDS = {
    "demo": (
        "geolatent.lab.demo:demo",
        "find and draw geodesics between handwritten digits",
    ),
    "train": (
        "geolatent.lab.train:Train",
        "train a variational autoencoder, a GAN or a normalising flow",
    ),
    "forecast": (
        "geolatent.lab.forecast:Forecast",
        "train a recurrent network to predict a system, and compare its climate with the truth",
    ),
    "interpolate": (
        "geolatent.lab.interpolate:Interpolate",
        "straight lines against geodesics, with and without a feature map",
    ),
    "improvement": (
        "geolatent.lab.improvement:Improvement",
        "how much shorter than straight lines geodesics are, over many pairs",
    ),
    "compare": (
        "geolatent.lab.compare:Compare",
        "several models on the same pairs of images",
    ),
    "compare_paths": (
        "geolatent.lab.compare_paths:ComparePaths",
        "straight lines, slerp and geodesics of several metrics by what is decoded on the way",
    ),
    "explore": (
        "geolatent.explorer.explore:Explore",
        "choose codes on a page in the browser and see their geodesics",
    ),
    "landscape": (
        "geolatent.lab.landscape:Landscape",
        "the metric of a 2-d latent space, drawn",
    ),
    "distances": (
        "geolatent.lab.distances:Distances",
        "geodesic distances between all pairs of some images",
    ),
    "cluster": (
        "geolatent.lab.cluster:Cluster",
        "k-means by geodesic distance, against Euclidean k-means",
    ),
    "walk": (
        "geolatent.lab.walk:Walk",
        "Brownian motion, rays, circles, spirals and loops, decoded on the way",
    ),
    "traverse": (
        "geolatent.lab.traverse:Traverse",
        "what is decoded around a code: dimensions, directions of the metric, attributes",
    ),
    "sample": (
        "geolatent.lab.sample:Sample",
        "decoded samples or images of the data as PNG files",
    ),
    "plot": (
        "geolatent.lab.plot:plot",
        "the figures of a run again, from its stored results",
    ),
    "report": (
        "geolatent.lab.report:report",
        "one table of all runs in a folder",
    ),
}


# arguments that are given without a name
_FOLDERS = ("run_dir", "runs_dir")
_SWEEP, _QUIET, _DRY_RUN = "sweep", "quiet", "dry_run"
# commands that are too short to be asked first what they would do
_SHORT = ("demo", "explore", "sample", "plot", "report")
# the name under which jsonargparse knows the reader of configs
_BOUNDED = "bounded yaml"
# status of a process whose reader has gone: 128 + SIGPIPE
_NO_READER = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status: 0, 1 for an error, 2 for a wrong command line.

    Errors that a user can mend are told in one line; any other error shows where it came from.
    130 is an interrupted command, 141 one whose output nobody reads any more.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    accept_all_letters()
    with interrupts_between_imports():
        try:
            status = _answer(words)
            sys.stdout.flush()
            return status
        except SystemExit as stop:  # the parser's own, after --help
            return stop.code if isinstance(stop.code, int) else 2
        except BrokenPipeError:
            leave_pipe()
            return _NO_READER
        except KeyboardInterrupt as stop:
            command = " ".join(words[:1])
            print(f"geolatent {command}: interrupted. {_told(stop)}".rstrip(), file=sys.stderr)
            return 130


def _answer(words: list[str]) -> int:
    """Answer words: overview, version, completions, or a command that runs."""
    if words[:1] == ["--complete"]:
        print("\n".join(_completions(words[2] if len(words) > 2 else "")))
        return 0
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"geolatent {__version__}")
        return 0
    command = words[0]
    if command not in COMMANDS:
        kind = "option" if command.startswith("-") else "command"
        return _refuse(
            "geolatent",
            f"no {kind} `{command}`.",
            closest(command, [*COMMANDS, "--help", "--version"]),
        )
    try:
        _run(command, words[1:])
    except _WrongWordsError as error:
        return _refuse(f"geolatent {command}", str(error), error.meant)
    except BrokenPipeError:
        raise
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, UnfinishedError):
            print(f"geolatent {command}: {_told(error)}", file=sys.stderr)
        elif _out_of_memory(error):
            text = "the memory does not hold what the options ask for."
            print(f"geolatent {command}: {text} {_told(error)}".rstrip(), file=sys.stderr)
        else:
            raise
        return 1
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        print(f"geolatent {command}: {_told(error)}", file=sys.stderr)
        return 1
    return 0


def _out_of_memory(error: Exception) -> bool:
    """Return whether numpy or torch found no memory; torch tells it of the CPU in words alone."""
    texts = ("can't allocate memory", "out of memory")
    return isinstance(error, MemoryError) or any(text in str(error) for text in texts)


class _WrongWordsError(Exception):
    """The words are no command line; ``meant`` is what the wrong one may have meant."""

    def __init__(self, message: str, meant: str | None) -> None:
        super().__init__(message)
        self.meant = meant


def _refuse(program: str, message: str, meant: str | None) -> int:
    """Tell in two lines what is wrong with the words."""
    suggestion = f" Did you mean `{meant}`?" if meant else ""
    listed = "commands" if program == "geolatent" else "options"
    print(
        f"{program}: {message}{suggestion}\n`{program} --help` lists the {listed}.",
        file=sys.stderr,
    )
    return 2


def _run(command: str, words: Sequence[str]) -> None:
    """Parse a command's words and run it.

    They are parsed twice: first against an outline of the command, which answers ``--help`` and
    wrong words before torch is imported, then against the command itself.
    """
    location, _ = COMMANDS[command]
    light = outline(location)
    kinds = _kinds(command, light)
    completed = complete_words(words, kinds)
    # what the options resolve to is known to the command itself alone
    first = [word for word in completed if not word.startswith("--print_config")]
    given = _values(_parser(command, light), first, light, kinds)
    # the points of a sweep name places of their own
    check_places({"out": given["out"]} if given.get(_SWEEP) else given)
    for place in (location, *(place for places in CHOICES.values() for place in places)):
        importlib.import_module(place.partition(":")[0])
    module, _, name = location.partition(":")
    target = getattr(sys.modules[module], name)
    values = _values(_parser(command, target), completed, target, kinds)
    sweep = values.pop(_SWEEP, None)
    quiet = values.pop(_QUIET)
    dry = values.pop(_DRY_RUN, False)
    from geolatent.lab.printing import QUIET

    before = QUIET.set(quiet)
    try:
        work = target(**values)
        if dry:
            from geolatent.lab.dry_run import dry_run

            dry_run(work, sweep or {})
        elif sweep:
            from geolatent.lab.sweep import run_sweep

            run_sweep(work, sweep, _experiments(command, target, completed, kinds, sweep))
        elif inspect.isclass(target):
            work.run()
    finally:
        QUIET.reset(before)


def _experiments(
    command: str,
    target: Callable[..., Any],
    words: Sequence[str],
    kinds: dict[str, Any],
    sweep: dict[str, list[Any]],
) -> list[Any]:
    """Return the experiments of a sweep's points, which are read as if given as words."""
    from geolatent.lab.sweep import point_words, sweep_points

    experiments = []
    for point in sweep_points(sweep):
        more = [f"--{word}" for word in point_words(point)]
        values = _values(_parser(command, target), [*words, *more], target, kinds)
        for name in (_SWEEP, _QUIET, _DRY_RUN):
            del values[name]
        experiments.append(target(**values))
    return experiments


def _told(error: BaseException) -> str:
    """Return an error's message and the notes that were added to it, in one line."""
    text, notes = str(error), getattr(error, "__notes__", ())
    if text and notes and not text.endswith("."):
        text += "."
    return " ".join(" ".join([text, *notes]).split())


def _objects(light: Callable[..., Any]) -> dict[str, list[Callable[..., Any]]]:
    """Return the options that are objects, and the outlines of the classes that they may be of."""
    parameters = inspect.signature(light).parameters.items()
    found = {name: choices(parameter.default) for name, parameter in parameters}
    return {name: classes for name, classes in found.items() if classes}


def _kinds(command: str, light: Callable[..., Any]) -> dict[str, Any]:
    """Return the types of a command's options, those of all commands among them."""
    kinds = option_types(light)
    for option, classes in _objects(light).items():
        for each in classes:
            kinds |= {f"{option}.{name}": kind for name, kind in option_types(each).items()}
    kinds |= {"config": str, "print_config": None, "help": None, _QUIET: bool}
    if command not in _SHORT:
        kinds[_DRY_RUN] = bool
    if "executor" in kinds:
        kinds[_SWEEP] = dict[str, list[Any]]
    return kinds


def _load_bounded(text: str) -> Any:
    """Read YAML as jsonargparse does, but only within the bounds of `parse_yaml`."""
    from jsonargparse import get_loader

    try:
        parse_yaml(text, "this")
    except ValueError as error:
        raise yaml.YAMLError(str(error)) from error
    return get_loader("yaml")(text)


def _parser(command: str, target: Callable[..., Any]) -> ArgumentParser:
    """Return the parser of a command: the arguments of its function or class are its options.

    The folder that a command reads needs no name.
    """
    from jsonargparse import ActionConfigFile, ArgumentParser, set_dumper, set_loader

    set_loader(_BOUNDED, _load_bounded, (yaml.YAMLError,))
    set_dumper(_BOUNDED, partial(yaml.safe_dump, sort_keys=False, allow_unicode=True))

    parameters = inspect.signature(target).parameters
    alone = next(iter(parameters)) in _FOLDERS
    parser = ArgumentParser(
        prog=f"geolatent {command}",
        description=_summary(target.__doc__),
        allow_abbrev=False,
        exit_on_error=False,
        parser_mode=_BOUNDED,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="Path of a YAML file.")
    if inspect.isclass(target):
        parser.add_class_arguments(target, sub_configs=True)
    else:
        parser.add_function_arguments(target, as_positional=alone, sub_configs=True)
    if "executor" in parameters:
        text = "Dotted names of options and lists of their values: every combination is run."
        parser.add_argument(f"--{_SWEEP}", type=dict[str, list[Any]], default={}, help=text)
    text = "Print warnings and the last line alone."
    parser.add_argument(f"--{_QUIET}", type=bool, default=False, help=text)
    if command not in _SHORT:
        text = "Say what would be done and about how long it takes; nothing is written."
        parser.add_argument(f"--{_DRY_RUN}", type=bool, default=False, help=text)
    return parser


def _values(
    parser: ArgumentParser,
    words: Sequence[str],
    target: Callable[..., Any],
    kinds: dict[str, Any],
) -> dict[str, Any]:
    """Return the options of a command, and its sweep."""
    try:
        _choose_classes(parser, words, target)
        parsed = parser.parse_args(list(words))
        _check_groups(parsed, target)
    except UnicodeDecodeError as error:
        raise _WrongWordsError(f"a config is no text in UTF-8: {error}.", None) from error
    except ArgumentError as error:
        message, unknown = what_is_wrong(str(error), kinds)
        if unknown and any(word.startswith(f"--{unknown}") for word in words):
            message = message.replace(f"`{unknown}`", f"`--{unknown}`")
        meant = closest(unknown, kinds) if unknown else None
        if meant and f"`--{unknown}`" in message:
            meant = f"--{meant}"
        raise _WrongWordsError(message, meant) from error
    values = parser.instantiate(parsed).as_dict()
    values.pop("config", None)
    return values


def _choose_classes(
    parser: ArgumentParser, words: Sequence[str], target: Callable[..., Any]
) -> None:
    """Let the defaults of objects' settings be those of the classes that the words name.

    The parser would take settings of the same name from the class that is the default.
    """
    objects = [
        name
        for name, parameter in inspect.signature(target).parameters.items()
        if type(parameter.default).__name__ in CHOICES
    ]
    if objects:
        parsed = parser.parse_args([w for w in words if not w.startswith("--print_config")])
        for name in objects:
            parser.set_defaults({name: {"class_path": parsed[name].class_path}})


def _check_groups(parsed: Namespace, target: Callable[..., Any]) -> None:
    """Refuse a value that is not a set of options where there should be one, such as a list."""
    for name, parameter in inspect.signature(target).parameters.items():
        value = parsed[name]
        # a mapping once it is parsed
        if dataclasses.is_dataclass(parameter.default) and not hasattr(value, "__dict__"):
            raise ArgumentError(None, f"`{name}` should be options and their values: {value}.")


def _completions(word: str) -> list[str]:
    """Return what a word of the shell's line may become; the line is in ``COMP_LINE``."""
    line = os.environ.get("COMP_LINE", "")
    before = line[: int(os.environ.get("COMP_POINT", len(line)))].split()
    if len(before) < 2 or (len(before) == 2 and word):
        return [name for name in COMMANDS if name.startswith(word)]
    if before[1] not in COMMANDS or not word.startswith("-"):
        return []  # the shell completes paths
    kinds = _kinds(before[1], outline(COMMANDS[before[1]][0]))
    return [f"--{name}" for name in kinds if f"--{name}".startswith(word)]


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
    return re.split(r"\n    (?:Parameters|Attributes)\n", text or "")[0].strip()
