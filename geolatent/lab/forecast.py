"""Forecasts of a dynamical system by a recurrent network, and the climate of its free run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor

from geolatent.checks import check_integer, requirement
from geolatent.geometry.lyapunov import lyapunov_exponents
from geolatent.lab.config import SYSTEM_NAMES, DataOptions
from geolatent.lab.experiment import Arrays, Summary
from geolatent.lab.latent_model import LatentModel
from geolatent.lab.memory import check_memory
from geolatent.lab.plotting_forecast import attractors, error_growth, marginals
from geolatent.lab.printing import make_table, number, working
from geolatent.lab.run import Run
from geolatent.lab.systems import SYSTEMS, WINDOWS_EACH, System
from geolatent.lab.train import TrainingExperiment
from geolatent.lab.training_figures import loss_curves
from geolatent.models import Forecaster

# trajectories whose exponents are found, and steps before, in which the first direction is found
_EXPONENTS, _TRANSIENT = 64, 200
# substeps of the equations in a step of time, when their exponents are found
_SUBSTEPS = 3
# how far off a forecast is no longer of use, in standard deviations of the climate
_USEFUL = 0.4
# points of an attractor, and bins of a histogram, that are drawn
_POINTS = 20_000
# batches that a dry run times
_TIMED = 3


@dataclass(frozen=True, kw_only=True)
class Forecast(TrainingExperiment):
    """Train a recurrent network to predict a system, and compare its climate with the truth.

    The network reads some steps of test trajectories and goes on by itself. Compared are its
    errors against lead time; the distributions of each coordinate in a long free run, by their
    Wasserstein distance; and its largest Lyapunov exponent with that of the equations. The folder
    receives model.safetensors. Start from a config, such as: geolatent forecast --config
    configs/forecast_lorenz.yaml

    Attributes
    ----------
    model
        The model: class_path (geolatent.models.Forecaster) and init_args.
    data
        The system: name is "lorenz" or "pendulum".
    test_data
        Windows of the trajectories to compare with; null takes the test split of `data`.
    n_ahead
        Steps of the forecasts.
    n_steps
        Steps of the free run of each test trajectory.
    n_lyapunov
        Steps over which Lyapunov exponents are averaged, for each of 64 trajectories.
    """

    kinds = (Forecaster,)
    kinds_name = "a Forecaster"

    out: Path = Path("runs/forecast")
    model: Callable[[], Forecaster]
    data: DataOptions = DataOptions(name="lorenz", n_trajectories=400, n_steps=16)
    n_ahead: int = 150
    n_steps: int = 2000
    n_lyapunov: int = 500

    @property
    def codecs(self) -> Mapping[str, LatentModel]:
        """None, for a forecaster has no codes."""
        return {}

    def check(self) -> None:
        """Raise where there is no system, or the test trajectories are too short."""
        for name, data in (("data", self.data), ("test_data", self.test_data)):
            if data is not None and data.name not in SYSTEM_NAMES:
                required = f"one of {', '.join(SYSTEM_NAMES)}"
                raise ValueError(requirement(f"{name}.name", required, data.name))
        check_integer("n_ahead", self.n_ahead, minimum=2)
        check_integer("n_steps", self.n_steps, minimum=10)
        check_integer("n_lyapunov", self.n_lyapunov, minimum=10)
        super().check()
        n, _, n_rows, k = self.test_dataset.chosen[0].shape
        most = (WINDOWS_EACH - 1) * n_rows
        if self.n_ahead > most:
            required = f"at most {most}, the steps of a trajectory after its first window"
            raise ValueError(requirement("n_ahead", required, self.n_ahead))
        if n % WINDOWS_EACH:
            required = "whole trajectories, without `classes` and `per_class`"
            raise ValueError(requirement("test_data", required, f"{n} windows"))
        check_memory("n_steps", self.n_steps, 4 * (n // WINDOWS_EACH) * self.n_steps * k)

    @property
    def system(self) -> System:
        """The system."""
        return SYSTEMS[self.data.name]

    @torch.no_grad()
    def evaluate(self, network: Forecaster, console: Console) -> tuple[Summary, Arrays]:
        """Let the network go on by itself, and compare it with the equations.

        The summary holds the exponents with standard errors, over trajectories, per unit of time;
        the Wasserstein distance of each coordinate, in its unit, beside that of two halves of the
        true trajectories; and the mean time for which forecasts are of use, until the error passes
        0.4 standard deviations of the climate.
        """
        network.requires_grad_(False)
        true = self.test_dataset.chosen[0][:, 0].unflatten(0, (-1, WINDOWS_EACH)).flatten(1, 2)
        n_rows = network.image_shape[1]
        with working(console, "free run") as tell:
            errors = forecast_errors(network, true, n_rows, self.n_ahead)
            tell(0.2)
            free = network.forecast(true[:, :n_rows], self.n_steps)
            tell(0.5)
            exponents = self._exponents(network, tell)
        climate = [_physical(self.system, each) for each in (self._climate(), free)]
        summary = {
            "system": self.data.name,
            "lyapunov": exponents,
            "wasserstein": _distances(self.system, *climate),
            "useful_time": _useful_time(errors, self.system.time_step),
        }
        arrays = {
            "errors": errors.square().mean(0).sqrt(),
            "true": _some(climate[0]),
            "model": _some(climate[1]),
        }
        return summary, {name: value.float() for name, value in arrays.items()}

    def _climate(self) -> Tensor:
        """Return what is seen of all trajectories, of both splits, (n, T, k)."""
        every = torch.cat([self.dataset.chosen[0], self.test_dataset.chosen[0]])
        return every[:, 0]

    def _exponents(
        self, network: Forecaster, tell: Callable[[float], None]
    ) -> dict[str, dict[str, float]]:
        """Return the largest exponents of the equations and of the network, with their errors."""
        system, found = self.system, {}
        states = system.begin(_EXPONENTS, self.seed + 1)
        for _ in range(math.ceil(system.transient / system.time_step)):
            states = system.step(states)
        windows = self.test_dataset.chosen[0][:, 0]
        rows = windows[:: max(1, len(windows) // _EXPONENTS)][:_EXPONENTS]
        maps: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
            "equations": (lambda state: system.step(state, _SUBSTEPS), states),
            "model": (network.step, network.read(rows)),
        }
        for place, (name, (step, state)) in enumerate(maps.items()):
            values = lyapunov_exponents(
                step,
                state,
                self.n_lyapunov,
                n_exponents=1,
                n_transient=_TRANSIENT,
                time_step=system.time_step,
            ).exponents[:, 0]
            found[name] = {
                "mean": float(values.mean()),
                "error": float(values.std()) / len(values) ** 0.5,
            }
            tell(0.75 + 0.25 * place)
        return found

    def tell(self, console: Console, summary: Summary) -> None:
        """Print exponents, distances and for how long forecasts are of use."""
        unit = self.system.rate_unit
        found = summary["lyapunov"]
        truth, model = found["equations"], found["model"]
        console.print(
            f"{summary['n_train']} windows, {len(summary['train_loss'])} epochs, "
            f"{summary['seconds']:.0f} s. Largest Lyapunov exponent ({unit}): equations "
            f"{truth['mean']:.3f} ± {truth['error']:.3f}, model {model['mean']:.3f} ± "
            f"{model['error']:.3f} ({100 * (model['mean'] / truth['mean'] - 1):+.1f} %).",
            soft_wrap=True,
        )
        table = make_table(
            "Distributions in the free run: Wasserstein distance from the truth",
            ["coordinate", "distance", "halves of\nthe truth", "standard\ndeviation"],
        )
        for name, entry in summary["wasserstein"].items():
            keys = ("distance", "between_halves", "std")
            table.add_row(name, *(number(entry[key], ".3g") for key in keys))
        console.print(table)
        useful = summary["useful_time"]
        console.print(
            f"Forecasts are of use for {useful['mean']:.2f} ± {useful['error']:.2f} "
            f"({self.system.time_name}), {useful['mean'] * truth['mean']:.2f} Lyapunov times.",
            soft_wrap=True,
        )
        console.print(f"Model: {self.out / 'model.safetensors'}", soft_wrap=True)

    def seconds(self) -> float:
        """Return what the training takes, by a few timed steps, and the free run."""
        network, images = self.untrained(), self.dataset.chosen[0][: self.training.batch_size]
        network.loss(images).mean().backward()
        began = time.perf_counter()
        for _ in range(_TIMED):
            network.loss(images).mean().backward()
        batch = (time.perf_counter() - began) / _TIMED
        n_batches = math.ceil(len(self.dataset.chosen[0]) / self.training.batch_size)
        # a step of exponents is about three products and as many of the free run
        ahead = batch / network.image_shape[1] * (self.n_steps + 6 * self.n_lyapunov)
        return batch * n_batches * self.training.epochs + ahead

    @staticmethod
    def in_a_report(summary: Summary) -> str:
        """Return what a table of many runs tells of one."""
        found = summary["lyapunov"]
        values = (number(found[name]["mean"], ".3f") for name in ("model", "equations"))
        return f"{summary['system']}: Lyapunov exponent {' of '.join(values)}"

    @staticmethod
    def figures(run: Run) -> dict[str, Figure]:
        """Draw the figures of a run from what it stored."""
        system, summary, arrays = SYSTEMS[run.summary["system"]], run.summary, run.arrays
        exponent = summary["lyapunov"]["equations"]["mean"]
        distances = {
            name: entry["distance"] / entry["std"] for name, entry in summary["wasserstein"].items()
        }
        return {
            "losses": loss_curves(summary),
            "attractor": attractors(system, arrays["true"], arrays["model"]),
            "marginals": marginals(system, arrays["true"], arrays["model"], distances),
            "errors": error_growth(system, arrays["errors"], exponent, _USEFUL),
        }


def forecast_errors(network: Forecaster, true: Tensor, n_rows: int, n_ahead: int) -> Tensor:
    """Return errors of forecasts, (m, n_ahead), in standard deviations of the climate.

    Parameters
    ----------
    network
        The forecaster; it reads ``n_rows`` steps.
    true
        Trajectories as they are seen, (n, T, k); forecasts begin every ``n_rows`` steps.
    n_rows, n_ahead
        Steps that are read, and that are forecast.

    Returns
    -------
    Tensor
        Root of the mean squared error of the columns, each in its standard deviation.
    """
    spans = true.unfold(1, n_rows + n_ahead, n_rows).mT.flatten(0, 1)
    ahead = network.forecast(spans[:, :n_rows], n_ahead)
    scaled = (ahead - spans[:, n_rows:]) / true.flatten(0, 1).std(0)
    return scaled.square().mean(2).sqrt()


def _useful_time(errors: Tensor, time_step: float) -> dict[str, float]:
    """Return mean and standard error of the first time at which errors (m, T) are too large."""
    late = torch.cat([errors > _USEFUL, errors.new_ones(len(errors), 1) > 0], 1)
    times = time_step * (1.0 + late.int().argmax(1).double())
    return {"mean": float(times.mean()), "error": float(times.std()) / len(times) ** 0.5}


def _physical(system: System, seen: Tensor) -> Tensor:
    """Return the coordinates of what is seen, (n, T, k) -> (n, T, p), angles within a turn."""
    drawn = system.drawn(seen.double())
    for place, name in enumerate(system.coordinates):
        if "rad)" in name:
            angle = drawn[..., place]
            drawn[..., place] = torch.atan2(angle.sin(), angle.cos())
    return drawn


def _distances(system: System, true: Tensor, free: Tensor) -> dict[str, dict[str, float]]:
    """Return the Wasserstein distance of each coordinate (n, T, p), in its unit."""
    from scipy.stats import wasserstein_distance

    found = {}
    half = len(true) // 2
    for place, name in enumerate(system.coordinates):
        first, last = true[:half, :, place], true[half:, :, place]
        truth, model = (each[..., place].flatten().numpy() for each in (true, free))
        halves = wasserstein_distance(first.flatten().numpy(), last.flatten().numpy())
        finite = bool(np.isfinite(model).all())
        found[name] = {
            "distance": float(wasserstein_distance(truth, model)) if finite else math.nan,
            "between_halves": float(halves),
            "std": float(truth.std()),
        }
    return found


def _some(values: Tensor) -> Tensor:
    """Return points of trajectories (n, T, p) that are drawn, at equal distances, (m, p)."""
    flat: Any = values.flatten(0, 1)
    return flat[:: max(1, len(flat) // _POINTS)]
