"""Walks through the latent space: Brownian motion, rays from the origin, great circles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor

from geolatent.checks import check_integer, check_number, requirement
from geolatent.geometry.brownian import brownian_motion
from geolatent.geometry.integrators import DiscreteGeodesic
from geolatent.geometry.volume import magnification_factor
from geolatent.interpolations import great_circle, radial_walk
from geolatent.lab import plotting, plotting_statistics
from geolatent.lab.costs import JVP, Cost, seconds_of
from geolatent.lab.experiment import Arrays, MetricExperiment, Summary
from geolatent.lab.latent_model import LatentModel
from geolatent.lab.memory import check_memory
from geolatent.lab.printing import make_table, number, working
from geolatent.lab.run import Run, RunFolder
from geolatent.lab.summary import statistics
from geolatent.metrics.base import Metric
from geolatent.metrics.rows import Rows
from geolatent.priors import norm_profile, prior_norm

# images of a strip, and pixels whose values are drawn
_IMAGES = 12
_OUTPUTS = 12
# steps of a walk that is timed
_TIMED = 2
_NAMES = {
    "norm": "norm of the code (latent units)",
    "magnification": plotting.MAGNIFICATION,
    "brightness": "mean of the decoded image",
}
_PARAMETERS = {
    "brownian": "time (squared output units)",
    "radial": "distance from the origin (latent units)",
    "circle": "turns",
}


def walk_codes(
    kind: str, metric: Metric, start: Tensor, *, length: float, n_steps: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return walks from codes, and the parameter along them.

    Parameters
    ----------
    kind
        ``"brownian"``, ``"radial"`` or ``"circle"``.
    metric
        The metric, for Brownian motion.
    start
        Codes, (B, d). A ray goes through its code, and a circle from its code towards the next one.
    length
        Brownian motion: root of the mean squared distance, in output units, that flat space would
        have; rays: their end, in latent units. Circles go around once.
    n_steps
        Steps.
    seed
        Seed of Brownian motion.

    Returns
    -------
    tuple[Tensor, Tensor]
        Shapes (B, n_steps + 1, d) and (n_steps + 1,).
    """
    share = torch.linspace(0.0, 1.0, n_steps + 1, dtype=start.dtype, device=start.device)
    if kind == "radial":
        return radial_walk(start, length * share), length * share
    if kind == "circle":
        return great_circle(start, start.roll(-1, dims=0), share), share
    end = length**2 / start.shape[1]
    integrator = DiscreteGeodesic(4) if metric.immersion is not None else None
    walks = brownian_motion(metric, start, end, n_steps, integrator=integrator, seed=seed)
    return walks, end * share


def endings(metric: Metric, walks: Tensor) -> dict[str, int]:
    """Count the walks (B, T, d) that ended before the last step, by reason.

    The reason is what the metric is at the last code of such a walk: ``"metric not finite"``,
    ``"metric singular"`` or, where it is regular there, that the geodesic of the next step could
    not be followed.
    """
    known = walks.isfinite().all(2)
    ended = ~known[:, -1] & known[:, 0]
    last = walks[ended, known[ended].sum(1) - 1]
    reasons = {"start not finite": int((~known[:, 0]).sum())}
    if len(last):
        tensors = Rows.of(metric, last).tensor(last).double()
        finite = tensors.isfinite().flatten(1).all(1)
        regular = torch.linalg.cholesky_ex(tensors[finite])[1] == 0
        reasons |= {
            "metric not finite": int((~finite).sum()),
            "metric singular": int((~regular).sum()),
            "the next step's geodesic could not be followed": int(regular.sum()),
        }
    return {reason: count for reason, count in reasons.items() if count}


def along_walks(model: LatentModel, metric: Metric, walks: Tensor, prior: str) -> dict[str, Tensor]:
    """Return what is drawn along walks (B, T, d); NaN where a walk has ended.

    ``lost`` is the number of places that walks reach and whose images are not finite.
    """
    b, t, d = walks.shape
    flat = walks.reshape(-1, d)
    known = flat.isfinite().all(1)

    def along(values: Tensor) -> Tensor:
        every = values.new_full((len(flat), *values.shape[1:]), torch.nan)
        every[known] = values
        return every.reshape(b, t, *values.shape[1:]).float()

    images = model.images(flat[known])
    pixels = images.flatten(1)
    finite = pixels.isfinite().all(1)
    spread = pixels[finite].var(0, correction=0) if finite.any() else pixels[0]
    most = spread.topk(min(_OUTPUTS, pixels.shape[1])).indices
    shown = torch.linspace(0, t - 1, min(_IMAGES, t), device=walks.device).round().long()
    return {
        "lost": (~finite).sum(),
        "norm": along(norm_profile(flat[known], prior).norms),
        "magnification": along(magnification_factor(metric, flat[known])),
        "brightness": along(pixels.mean(1)),
        "outputs": along(pixels[:, most]),
        "images": along(images)[:, shown],
    }


@dataclass(frozen=True, kw_only=True)
class Walk(MetricExperiment):
    """Walk through the latent space from the codes of images, and decode on the way.

    Brownian motion under the metric, rays from the origin, or great circles around it. Along the
    walks are drawn: the norm of the code beside the norms of codes from the prior, the
    magnification factor, the mean of the decoded image, the pixels that change most, and images.

    Attributes
    ----------
    kind
        "brownian", "radial" or "circle".
    data
        The images whose codes walks start from, or go through.
    n_walks
        Number of walks.
    n_steps
        Steps of each.
    length
        Of Brownian motion, the root mean squared distance in output units that it would
        have in flat space; of rays, the end in latent units.
    prior
        Prior of the codes, "normal" or "uniform" on the cube [-1, 1]^d.
    seed
        Seed of the choice of images and of Brownian motion.
    """

    out: Path = Path("runs/walk")
    kind: Literal["brownian", "radial", "circle"] = "brownian"
    n_walks: int = 6
    n_steps: int = 200
    length: float = 10.0
    prior: Literal["normal", "uniform"] = "normal"

    def check(self) -> None:
        """Raise where there are too few images, or too many steps for the memory."""
        check_integer("n_walks", self.n_walks, minimum=2 if self.kind == "circle" else 1)
        check_integer("n_steps", self.n_steps)
        # codes in two dimensions at least, and what is measured at them
        check_memory("n_steps", self.n_steps, 4 * self.n_walks * self.n_steps * (2 + 3 + _OUTPUTS))
        check_number("length", self.length, above=0.0)
        check_integer("seed", self.seed, minimum=0)
        super().check()
        n = len(self.dataset.chosen[0])
        if n < self.n_walks:
            raise ValueError(requirement("n_walks", f"at most {n}, the images", self.n_walks))

    def walks(self) -> tuple[Tensor, Tensor]:
        """Return the walks, (n_walks, n_steps + 1, d), and the parameter along them."""
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.randperm(len(self.encoded), generator=generator)[: self.n_walks]
        return walk_codes(
            self.kind,
            self.pulled_back,
            self.encoded[chosen.to(self.encoded.device)],
            length=self.length,
            n_steps=self.n_steps,
            seed=self.seed,
        )

    def work(self, folder: RunFolder, console: Console) -> tuple[Summary, Arrays]:  # noqa: ARG002
        """Walk, and measure along the walks."""
        with working(console, f"{self.n_walks} walks"):
            walks, parameter = self.walks()
            arrays = along_walks(self.codec, self.pulled_back, walks, self.prior)
        mean, deviation = prior_norm(self.codec.dim, self.prior)
        summary = {
            "kind": self.kind,
            "n_walks": self.n_walks,
            "ended": endings(self.pulled_back, walks),
            "images_not_finite": int(arrays.pop("lost")),
            "prior_norm": {"mean": mean, "std": deviation},
            "quantities": {name: statistics(arrays[name].flatten().cpu()) for name in _NAMES},
        }
        arrays |= {
            "parameter": parameter.float(),
            "walks": walks.float(),
            "codes": self.encoded.float(),
            "labels": self.dataset.classes,
        }
        return summary, arrays

    def tell(self, console: Console, summary: Summary) -> None:
        """Print a table of what was measured, and which walks and images there are not."""
        n, prior = summary["n_walks"], summary["prior_norm"]
        table = make_table(
            f"Along {n} walks (prior's norms: {prior['mean']:.2f} ± {prior['std']:.2f})",
            ["quantity", "mean", "min", "max"],
        )
        for name, entry in summary["quantities"].items():
            table.add_row(
                _NAMES[name].replace(" (", "\n("),
                *(number(entry[key], ".4g") for key in ("mean", "min", "max")),
            )
        console.print(table)
        for reason, count in summary["ended"].items():
            console.print(f"{count} of {n} walks ended early: {reason}.", soft_wrap=True)
        if summary["images_not_finite"]:
            console.print(
                f"The decoded image is not finite at {summary['images_not_finite']} of the "
                f"{(self.n_steps + 1) * n} places of the walks.",
                soft_wrap=True,
            )

    def cost(self, model: LatentModel) -> Cost:
        """Return what is measured along the walks, and the time of a short Brownian motion."""
        rows = self.n_walks * (self.n_steps + 1) * (model.dim * JVP + 1)
        if self.kind != "brownian":
            return Cost(rows=rows)
        metric = self.metric_of(model, None)
        start = torch.zeros(self.n_walks, model.dim).to(model.like)
        length = self.length * (_TIMED / self.n_steps) ** 0.5

        def walk() -> object:
            return walk_codes("brownian", metric, start, length=length, n_steps=_TIMED)

        return Cost(rows=rows, seconds=seconds_of(walk) / _TIMED * self.n_steps)

    @staticmethod
    def in_a_report(summary: Summary) -> str:
        """Return what a table of many runs tells of one."""
        norm = summary["quantities"]["norm"]
        ends = "-".join(number(norm[key], ".2f") for key in ("min", "max"))
        return f"{summary['n_walks']} {summary['kind']} walks, norms {ends}"

    @staticmethod
    def figures(run: Run) -> dict[str, Figure]:
        """Draw the figures of a run from what it stored."""
        arrays, summary = run.arrays, run.summary
        prior = summary["prior_norm"]
        names = [f"walk {place}" for place in range(1, len(arrays["walks"]) + 1)]
        place, place_name = arrays["parameter"], _PARAMETERS[summary["kind"]]
        strips = {name: row[None] for name, row in zip(names, arrays["images"], strict=True)}
        # as `along_walks` chooses them
        shown = np.round(np.linspace(0, len(place) - 1, arrays["images"].shape[1])).astype(int)
        drawn = {
            "curves": plotting_statistics.walk_curves(
                place,
                place_name,
                {text: arrays[name] for name, text in _NAMES.items()},
                (prior["mean"], prior["std"]),
                names,
            ),
            "outputs": plotting_statistics.output_curves(
                place, place_name, arrays["outputs"], "pixel values"
            ),
            "images": plotting.image_strips(
                strips, ["decoded along the walks"], place[shown], place_name
            ),
        }
        if arrays["walks"].shape[2] == 2:
            drawn["plane"] = plotting_statistics.walks_in_the_plane(
                arrays["codes"], arrays["labels"], arrays["walks"]
            )
        return drawn
