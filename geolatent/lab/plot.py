"""Figures from stored results."""

from __future__ import annotations

from pathlib import Path

from geolatent.checks import requirement
from geolatent.files import read_json
from geolatent.lab import plotting
from geolatent.lab.animation import save_animations
from geolatent.lab.cluster import Cluster
from geolatent.lab.compare import Compare
from geolatent.lab.compare_paths import ComparePaths
from geolatent.lab.config import Formats, check_formats
from geolatent.lab.contents import CONFIG, POINTS, SUMMARY
from geolatent.lab.distances import Distances
from geolatent.lab.experiment import Experiment, command_name
from geolatent.lab.forecast import Forecast
from geolatent.lab.improvement import Improvement
from geolatent.lab.interpolate import Interpolate
from geolatent.lab.landscape import Landscape
from geolatent.lab.options import SWEEP
from geolatent.lab.printing import make_console, part_of_a_command, print_files
from geolatent.lab.run import Run, load_run
from geolatent.lab.sample import Sample
from geolatent.lab.train import Train
from geolatent.lab.traverse import Traverse
from geolatent.lab.walk import Walk

_KINDS: tuple[type[Experiment], ...] = (
    *(Cluster, Compare, ComparePaths, Distances, Forecast, Improvement, Interpolate),
    *(Landscape, Sample, Train, Traverse, Walk),
)
# by their commands
EXPERIMENTS = {command_name(kind): kind for kind in _KINDS}


def plot(run_dir: Path, format: Formats = "png") -> None:
    """Draw the figures and animations of a run again, from its stored results alone.

    Parameters
    ----------
    run_dir
        The folder that a command wrote, as its `out`.
    format
        Format of the figures, "png", "pdf" or "svg", or a list of them.
    """
    check_formats(format)
    if not run_dir.is_dir():
        raise FileNotFoundError(requirement("run_dir", "an existing folder", run_dir))
    console = make_console()
    if (run_dir / SUMMARY).is_file() and not (run_dir / CONFIG).is_file():
        # a training of before they had a config
        run = Run(run_dir, "train", {}, {}, None, {}, read_json(run_dir / SUMMARY))
    else:
        run = load_run(run_dir)
    if not run.finished:
        n_pairs = len(run.pairs) if run.pairs is not None else 0
        required = "a finished run; run the same command again to finish it"
        found = f"{run_dir}, which was interrupted after {n_pairs} solved rows"
        raise ValueError(requirement("run_dir", required, found))
    if SWEEP in run.summary:
        every = sorted(path.name for path in (run_dir / POINTS).iterdir())
        with part_of_a_command():
            for name in run.summary.get("points", every):
                plot(run_dir / POINTS / name, format)
        print_files(console, run_dir, [])
        return
    try:
        kind = EXPERIMENTS[run.command]
        drawn, played = kind.figures(run), kind.animations(run)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        required = "a run with all of its results; --overwrite makes a damaged one anew"
        raise ValueError(f"{requirement('run_dir', required, run_dir)} {error!r}") from error
    files = plotting.save_figures(drawn, run_dir, format)
    files += save_animations(played, run_dir, run.config.get("animation", {}))
    print_files(console, run_dir, files)
