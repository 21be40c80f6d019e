"""Walks through the latent space: Brownian motion, rays, circles, spirals, loops, dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from geolatent.checks import check_integer, check_number, requirement
from geolatent.geometry.brownian import brownian_motion
from geolatent.geometry.integrators import DiscreteGeodesic
from geolatent.geometry.volume import magnification_factor
from geolatent.interpolations import (
    Interpolation,
    great_circle,
    lerp,
    radial_walk,
    slerp,
    spherical_spiral,
    through_points,
)
from geolatent.lab import plotting, plotting_statistics
from geolatent.lab.animation import (
    MOST,
    Animation,
    animated_arrays,
    check_animation,
    stored_animations,
)
from geolatent.lab.config import AnimationOptions
from geolatent.lab.costs import JVP, Cost, seconds_of
from geolatent.lab.experiment import Arrays, MetricExperiment, Summary
from geolatent.lab.latent_model import LatentModel
from geolatent.lab.memory import check_memory
from geolatent.lab.plotting_sequences import drawn_strips
from geolatent.lab.printing import make_table, number, working
from geolatent.lab.run import Run, RunFolder
from geolatent.lab.summary import statistics
from geolatent.metrics.base import Metric
from geolatent.metrics.rows import Rows
from geolatent.priors import norm_profile, prior_norm
from geolatent.solve import solve_geodesic

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
    "spiral": "share of the way",
    "loop": "share of the way around",
    "dimensions": "dimension",
}
_LEGS: dict[str, Interpolation] = {"straight": lerp, "slerp": slerp, "spiral": spherical_spiral}
# turns of a spiral beside the shorter way
_TURNS = 1
# latent units, or output units, that walks go where they are not told
_REACH, _SWING = 10.0, 2.0


def walk_codes(
    kind: str,
    metric: Metric,
    start: Tensor,
    *,
    length: float,
    n_steps: int,
    seed: int = 0,
    legs: str = "geodesic",
    n_stops: int = 5,
) -> tuple[Tensor, Tensor]:
    """Return walks from codes, and the parameter along them.

    Parameters
    ----------
    kind
        ``"brownian"``, ``"radial"``, ``"circle"``, ``"spiral"``, ``"loop"`` or ``"dimensions"``.
    metric
        The metric, for Brownian motion and geodesic loops.
    start
        Codes, (B, d). A ray goes through its code; a circle from its code towards the next one, and
        a spiral to it; in a loop there are ``n_stops`` codes of its own, (B n_stops, d).
    length
        Brownian motion: root of the mean squared distance, in output units, that flat space would
        have; rays: their end, in latent units; dimensions: how far each coordinate swings to both
        sides, in latent units. Circles and loops go around once.
    n_steps
        Steps.
    seed
        Seed of Brownian motion.
    legs
        Of a loop: ``"straight"``, ``"slerp"``, ``"spiral"`` or ``"geodesic"``.
    n_stops
        Codes of a loop.

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
    if kind == "spiral":
        return spherical_spiral(start, start.roll(-1, dims=0), share, turns=_TURNS), share
    if kind == "loop":
        return _loops(metric, start.unflatten(0, (-1, n_stops)), share, legs), share
    if kind == "dimensions":
        return _swings(start, start.shape[1] * share, length), start.shape[1] * share
    end = length**2 / start.shape[1]
    integrator = DiscreteGeodesic(4) if metric.immersion is not None else None
    walks = brownian_motion(metric, start, end, n_steps, integrator=integrator, seed=seed)
    return walks, end * share


def _loops(metric: Metric, stops: Tensor, share: Tensor, legs: str) -> Tensor:
    """Return paths through codes (B, K, d) and back to the first, (B, T, d)."""

    def geodesic(start: Tensor, end: Tensor, times: Tensor) -> Tensor:
        return solve_geodesic(metric, start, end).curve(times.to(start))

    leg = _LEGS.get(legs, geodesic)
    closed = torch.cat([stops, stops[:, :1]], dim=1)
    return torch.stack([through_points(codes, share, leg) for codes in closed])


def _swings(start: Tensor, place: Tensor, reach: float) -> Tensor:
    r"""Return walks in which one coordinate after the other swings to both sides and back.

    z(s) = z + r sin(2 pi (s - k)) e_k    for s from k to k + 1, at places s, (T,).
    """
    last = start.shape[1] - 1
    moving = place.floor().clamp(0, last).long()
    offset = reach * (2.0 * torch.pi * (place - moving)).sin()
    axes = torch.eye(start.shape[1], dtype=start.dtype, device=start.device)[moving]
    return start[:, None] + offset[:, None] * axes


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

    Brownian motion under the metric, rays from the origin, great circles around it, spirals on the
    sphere, loops through several codes, or each latent dimension in turn. Along the walks are
    drawn: the norm of the code beside the norms of codes from the prior, the
    magnification factor, the mean of the decoded image, the pixels that change most, and images.

    Attributes
    ----------
    kind
        "brownian", "radial", "circle", "spiral" (from the code of an image to another's, once
        around more than needed), "loop" or "dimensions".
    data
        The images whose codes walks start from, or go through.
    n_walks
        Number of walks.
    n_steps
        Steps of each.
    length
        Of Brownian motion, the root mean squared distance in output units that it would
        have in flat space, and of rays the end in latent units: 10 where it is null; of dimensions,
        how far coordinates swing to both sides in latent units: 2.
    legs
        Of a loop: "straight", "slerp", "spiral" or "geodesic".
    n_stops
        Codes of a loop.
    prior
        Prior whose norms are drawn: "normal", "logistic", "uniform" on the cube [-1, 1]^d or
        "sphere"; by default the model's own, or N(0, I).
    seed
        Seed of the choice of images and of Brownian motion.
    animate
        Animate what is decoded along the walks, side by side, at constant speed in the output.
    animation
        How.
    """

    out: Path = Path("runs/walk")
    kind: Literal["brownian", "radial", "circle", "spiral", "loop", "dimensions"] = "brownian"
    n_walks: int = 6
    n_steps: int = 200
    length: float | None = None
    legs: Literal["straight", "slerp", "spiral", "geodesic"] = "geodesic"
    n_stops: int = 5
    prior: Literal["normal", "logistic", "uniform", "sphere"] | None = None
    animate: bool = False
    animation: AnimationOptions = AnimationOptions()

    @property
    def reach(self) -> float:
        """How far walks go."""
        if self.length is not None:
            return self.length
        return _SWING if self.kind == "dimensions" else _REACH

    @property
    def n_codes(self) -> int:
        """Codes that walks start from, or go through."""
        return self.n_walks * (self.n_stops if self.kind == "loop" else 1)

    def check(self) -> None:
        """Raise where there are too few images, or too many steps for the memory."""
        between = self.kind in ("circle", "spiral")
        check_integer("n_walks", self.n_walks, minimum=2 if between else 1)
        check_integer("n_stops", self.n_stops, minimum=2)
        check_integer("n_steps", self.n_steps)
        # codes in two dimensions at least, and what is measured at them
        check_memory("n_steps", self.n_steps, 4 * self.n_walks * self.n_steps * (2 + 3 + _OUTPUTS))
        check_number("length", self.reach, above=0.0)
        if self.animate:
            check_animation(self.animation)
        check_integer("seed", self.seed, minimum=0)
        super().check()
        n = len(self.dataset.chosen[0])
        if n < self.n_codes:
            most = n * self.n_walks // self.n_codes
            raise ValueError(
                requirement("n_walks", f"at most {most}, for there are {n} images", self.n_walks)
            )

    def walks(self) -> tuple[Tensor, Tensor]:
        """Return the walks, (n_walks, n_steps + 1, d), and the parameter along them."""
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.randperm(len(self.encoded), generator=generator)[: self.n_codes]
        return walk_codes(
            self.kind,
            self.pulled_back,
            self.encoded[chosen.to(self.encoded.device)],
            length=self.reach,
            n_steps=self.n_steps,
            seed=self.seed,
            legs=self.legs,
            n_stops=self.n_stops,
        )

    def work(self, folder: RunFolder, console: Console) -> tuple[Summary, Arrays]:  # noqa: ARG002
        """Walk, and measure along the walks."""
        with working(console, f"{self.n_walks} walks"):
            walks, parameter = self.walks()
            prior = self.codec.prior if self.prior is None else self.prior
            arrays = along_walks(self.codec, self.pulled_back, walks, prior)
        mean, deviation = prior_norm(self.codec.dim, prior)
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
        if self.animate:
            # one animation of all walks
            shown = [_until_the_end(walk)[None] for walk in walks[:MOST]]
            arrays |= animated_arrays(
                self.codec, shown, self.animation, self.encoded, self.dataset.classes
            )
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
        length = self.reach * (_TIMED / self.n_steps) ** 0.5

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
        names = _walk_names(arrays)
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
            "images": drawn_strips(
                run.config, strips, ["decoded along the walks"], place[shown], place_name
            ),
        }
        if arrays["walks"].shape[2] == 2:
            drawn["plane"] = plotting_statistics.walks_in_the_plane(
                arrays["codes"], arrays["labels"], arrays["walks"]
            )
        return drawn

    @staticmethod
    def animations(run: Run) -> dict[str, Animation]:
        """Return one animation of all walks."""
        titles = {"animation": f"walks: {run.summary['kind']}"}
        shown = _walk_names(run.arrays)[:MOST]
        return stored_animations(run.arrays, shown, titles, run.config["data"]["name"])


def _walk_names(arrays: Mapping[str, NDArray[Any]]) -> list[str]:
    return [f"walk {place}" for place in range(1, len(arrays["walks"]) + 1)]


def _until_the_end(walk: Tensor) -> Tensor:
    """Return the codes of a walk, (T, d), up to where it ended; two at least."""
    known = int(walk.isfinite().all(1).sum())
    return walk[: max(known, 1)] if known > 1 else walk[:1].expand(2, -1)
