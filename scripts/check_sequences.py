r"""What the page on sequences shows of trained models: geodesics, extrapolation, climates.

    geolatent train --config configs/train_lorenz.yaml
    geolatent train --config configs/train_pendulum.yaml
    geolatent train --config configs/train_sst.yaml
    geolatent interpolate --model.checkpoint runs/lorenz/model.safetensors --data.name lorenz \
        --data.split test --initial.kind codes --n_pairs 8 --out runs/lorenz_paths
    geolatent forecast --config configs/forecast_lorenz.yaml
    geolatent forecast --config configs/forecast_pendulum.yaml
    python scripts/check_sequences.py --out docs

Printed are lengths between winters of El Nino and of La Nina, and the errors of windows that are
extrapolated: from the codes of a window and of one s steps later, the code s steps after that is
guessed on the geodesic through both, on the straight line, and as no change. Errors are those of
the last s rows, the new ones, in standard deviations of the climate.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jsonargparse import auto_cli
from matplotlib.figure import Figure
from torch import Tensor

import geolatent as gl
from geolatent.lab.config import DataOptions
from geolatent.lab.forecast import Forecast
from geolatent.lab.interpolate import Interpolate
from geolatent.lab.latent_model import LatentModel
from geolatent.lab.plotting import COLORS, save_figure
from geolatent.lab.plotting_sequences import maps
from geolatent.lab.printing import make_console, make_table
from geolatent.lab.run import load_run
from geolatent.lab.sst import SCALE, fields, winters
from geolatent.lab.systems import SYSTEMS, WINDOWS_EACH, System
from geolatent.lab.train import Train
from geolatent.models import load_model

# winters by the year of their January: from strong ones of El Nino to strong ones of La Nina
_WINTERS = ((1998, 1989), (1983, 1974))
_PLACES = 6
# windows that are drawn
_SHOWN = 3
_DPI = 110


def main(
    lorenz: Path = Path("runs/lorenz"),
    pendulum: Path = Path("runs/pendulum"),
    paths: Path = Path("runs/lorenz_paths"),
    sst: Path = Path("runs/sst"),
    forecasts: tuple[Path, ...] = (Path("runs/forecast_lorenz"), Path("runs/forecast_pendulum")),
    out: Path = Path("runs/sequences"),
    n_windows: int = 40,
    steps: tuple[int, ...] = (1, 2, 4),
) -> None:
    """Print and draw what is known of trained models.

    Parameters
    ----------
    lorenz
        The training of a recurrent VAE of the Lorenz system.
    pendulum
        That of one of the driven pendulum.
    paths
        A run of `geolatent interpolate` in the first.
    sst
        The training of a VAE of sea surface temperature.
    forecasts
        Runs of `geolatent forecast`, whose figures are drawn.
    out
        Folder for the figures.
    n_windows
        Windows that are extrapolated.
    steps
        By how many steps of time; the windows of the last of them are drawn.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name, folder in (("lorenz", lorenz), ("pendulum", pendulum)):
        figure = Train.figures(load_run(folder))["reconstructions"]
        print(save_figure(figure, out / f"sequences-{name}.png", dpi=_DPI))
    figure = Interpolate.figures(load_run(paths))["strips"]
    print(save_figure(figure, out / "sequences-geodesics.png", dpi=80))
    draw_winters(sst, out)
    for folder in forecasts:
        run = load_run(folder)
        figures = Forecast.figures(run)
        for name in ("attractor", "marginals", "errors"):
            path = out / f"sequences-{run.summary['system']}-{name}.png"
            print(save_figure(figures[name], path, dpi=_DPI))
    extrapolate_windows(lorenz, out, n_windows, steps)


def draw_winters(folder: Path, out: Path) -> None:
    """Draw straight lines and geodesics between winters, and print their lengths."""
    module = load_model(folder / "model.safetensors").requires_grad_(False)
    model = LatentModel(module)
    found, (images, _) = winters(), fields()
    rows = [[int(np.flatnonzero(found.years == year)[0]) for year in pair] for pair in _WINTERS]
    codes = model.encode(images)
    start, end = codes[[row[0] for row in rows]], codes[[row[1] for row in rows]]
    metric = model.metric()
    graph = gl.LatentGraph.lattice(metric, codes.amin(0) - 0.5, codes.amax(0) + 0.5, resolution=100)
    solution = gl.solve_geodesic(metric, start, end, initial=graph)
    print(solution)
    t = torch.linspace(0.0, 1.0, _PLACES)
    paths = {
        "straight": gl.CubicBSpline.straight(start, end)(t),
        "geodesic": solution.curve(t),
    }
    decoded = {
        name: model.images(path.flatten(0, 1)).unflatten(0, path.shape[:2]).numpy()
        for name, path in paths.items()
    }
    titles = [
        f"{first - 1}/{first % 100:02d} to {last - 1}/{last % 100:02d}" for first, last in _WINTERS
    ]
    land = np.isnan(found.anomalies).any(0)
    print(save_figure(maps(decoded, titles, land=land), out / "sequences-winters.png", dpi=_DPI))
    table = make_table(
        "Between winters: Niño 3.4 (K) of the data at the ends, and lengths (K)",
        ["winters", "from", "to", "straight", "geodesic"],
    )
    for place, (title, row) in enumerate(zip(titles, rows, strict=True)):
        lengths = (solution.straight_length[place], solution.length[place])
        table.add_row(
            title,
            *(f"{found.nino34[each]:+.2f}" for each in row),
            *(f"{SCALE * float(length):.2f}" for length in lengths),
        )
    make_console().print(table)


def extrapolate_windows(folder: Path, out: Path, n_windows: int, steps: tuple[int, ...]) -> None:
    """Extrapolate windows of test trajectories, print the errors and draw some."""
    run = load_run(folder)
    options = DataOptions(**{**run.config["data"], "split": "test", "classes": None})
    module = load_model(folder / "model.safetensors").requires_grad_(False)
    model, system = LatentModel(module), SYSTEMS[options.name]
    images, _ = gl.data.load(options)
    n_rows = images.shape[2]
    paths = images[:, 0].unflatten(0, (-1, WINDOWS_EACH)).flatten(1, 2)
    std = paths.flatten(0, 1).std(0)
    metric = gl.PullbackMetric(module.decode_mean)
    table = make_table(
        f"Errors of the new rows of {n_windows} windows (std of the climate), ± standard error",
        ["steps", "geodesic", "straight line", "no change", "own code"],
    )
    solver = gl.PreconditionedSolver(tolerance=1e-2)
    for ahead in steps:
        span = n_rows + 2 * ahead
        spans = paths.unfold(1, span, 1).mT.flatten(0, 1)
        chosen = torch.randperm(len(spans), generator=torch.Generator().manual_seed(0))
        spans = spans[chosen[:n_windows]]
        first, now, later = (spans[:, k : k + n_rows] for k in (0, ahead, 2 * ahead))
        codes = [model.encode(each[:, None]) for each in (first, now, later)]
        solution = gl.solve_geodesic(metric, codes[0], codes[1], solver)
        on = gl.extrapolate(metric, solution.curve, torch.tensor([2.0]))[:, 0]
        guesses = {
            "geodesic": on,
            "straight line": 2 * codes[1] - codes[0],
            "no change": codes[1],
            "own code": codes[2],
        }
        cells = [_error(model, code, later, ahead, std) for code in guesses.values()]
        table.add_row(str(ahead), *cells)
        if ahead == steps[-1]:
            lines = {"truth": later[:_SHOWN]}
            for name in ("geodesic", "straight line", "no change"):
                lines[name] = model.images(guesses[name][:_SHOWN])[:, 0]
            figure = draw_windows(system, lines, ahead)
            print(save_figure(figure, out / "sequences-extrapolation.png", dpi=_DPI))
    make_console().print(table)


def draw_windows(system: System, lines: dict[str, Tensor], ahead: int) -> Figure:
    """Draw windows (n, T, k) by name over time, beside another; the last rows are new."""
    n_rows = len(system.coordinates)
    figure = Figure(figsize=(3.6 * _SHOWN, 1.7 * n_rows + 0.6), layout="constrained")
    panels = figure.subplots(n_rows, _SHOWN, squeeze=False, sharex=True, sharey="row")
    for (name, windows), color in zip(lines.items(), ("black", *COLORS), strict=False):
        drawn = system.drawn(windows)
        time = system.time_step * np.arange(windows.shape[1])
        style = "-" if name == "truth" else "--"
        for row, column in np.ndindex(panels.shape):
            panels[row, column].plot(time, drawn[column, :, row], style, color=color, label=name)
    for row, column in np.ndindex(panels.shape):
        panels[row, column].axvspan(time[-ahead] - 0.5 * system.time_step, time[-1], color="0.9")
        panels[row, column].grid(alpha=0.3)
        panels[row, 0].set_ylabel(system.coordinates[row])
        panels[-1, column].set_xlabel(system.time_name)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(lines))
    return figure


def _error(model: LatentModel, codes: Tensor, truth: Tensor, ahead: int, std: Tensor) -> str:
    """Return root of the mean squared error of the last rows, with its standard error."""
    off = (model.images(codes)[:, 0] - truth)[:, -ahead:] / std
    each = off.square().mean((1, 2))
    lost = int(each.isnan().sum())
    each = each[each.isfinite()]
    root = float(each.mean()) ** 0.5
    error = float(each.std()) / len(each) ** 0.5 / (2 * root)
    return f"{root:.3f} ± {error:.3f}" + (f" ({lost} lost)" if lost else "")


if __name__ == "__main__":
    auto_cli(main)
