"""Pairs of latent codes: where they come from, and solving them shard by shard."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geolatent.checks import check_choice, check_integer, check_number, check_pairs, requirement
from geolatent.curves import CubicBSpline
from geolatent.graph import LatentGraph
from geolatent.lab.data import read_arrays
from geolatent.lab.latent_model import LatentModel
from geolatent.lab.measures import Measure, eigen
from geolatent.lab.memory import check_memory
from geolatent.lab.solved import SolvedPairs
from geolatent.metrics.base import Metric
from geolatent.priors import LOGISTIC_SCALE, PRIORS, onto_sphere
from geolatent.solve import solve_geodesic
from geolatent.solvers.preconditioned import PreconditionedSolver
from geolatent.solvers.problem import Progress, Solver


@dataclass(frozen=True)
class Pairs:
    """Pairs of codes, with what is known of each.

    Attributes
    ----------
    start, end
        Codes, (B, d) each.
    columns
        Further columns, B values each.
    """

    start: Tensor
    end: Tensor
    columns: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.start.shape[0]

    def __getitem__(self, rows: slice) -> Pairs:
        """Return the pairs of some rows."""
        columns = {name: value[rows] for name, value in self.columns.items()}
        return Pairs(self.start[rows], self.end[rows], columns)

    def named(self, column: str, name: str) -> Pairs:
        """Return the pairs with a first column that says the same of all of them."""
        return Pairs(self.start, self.end, {column: [name] * len(self), **self.columns})


def prior_pairs(
    n_pairs: int, dim: int, *, seed: int = 0, like: Tensor | None = None, prior: str = "normal"
) -> Pairs:
    """Draw both ends of pairs from the prior, in the dtype and on the device of ``like``.

    The first pairs of a longer draw are those of a shorter one.
    """
    check_room(n_pairs, dim)
    ends = draw_prior(2 * n_pairs, dim, seed=seed, like=like, prior=prior).unflatten(0, (-1, 2))
    return Pairs(ends[:, 0], ends[:, 1])


def check_room(n_pairs: int, dim: int, n_steps: int = 0) -> None:
    """Raise where pairs, or starts of so many steps each, do not fit in memory.

    Counted are three arrays, with steps of metric tensors or all ends, and a row of results.
    """
    check_integer("n_pairs", n_pairs)
    width = dim * max(dim, n_steps) if n_steps else dim
    check_memory("n_pairs", n_pairs, 8 * n_pairs * (3 * width + 20))


def draw_prior(
    n: int, dim: int, *, seed: int = 0, like: Tensor | None = None, prior: str = "normal"
) -> Tensor:
    """Draw codes from a prior of `geolatent.norm_profile`, (n, dim); by default float32 on the CPU.

    Those on the sphere are those of N(0, I), moved along their rays. The first codes of a longer
    draw are those of a shorter one.
    """
    check_choice("prior", prior, PRIORS)
    # numpy draws row by row: a longer draw begins as a shorter one, which torch's does not
    generator = np.random.default_rng(check_integer("seed", seed, minimum=0))
    if prior == "logistic":
        drawn = generator.logistic(scale=LOGISTIC_SCALE, size=(n, dim))
    elif prior == "uniform":
        drawn = generator.uniform(-1.0, 1.0, (n, dim))
    else:
        drawn = generator.standard_normal((n, dim))
    codes = torch.from_numpy(drawn)
    codes = onto_sphere(codes) if prior == "sphere" else codes
    return codes.to(like) if like is not None else codes.float()


def draw_images(n_pairs: int, n_images: int, seed: int = 0) -> Tensor:
    """Draw pairs of images, none of them twice, as row numbers (B, 2)."""
    check_integer("n_pairs", n_pairs)
    if 2 * n_pairs > n_images:
        required = f"at most {n_images // 2}, the pairs that {n_images} images give"
        raise ValueError(requirement("n_pairs", required, n_pairs))
    generator = torch.Generator().manual_seed(check_integer("seed", seed, minimum=0))
    return torch.randperm(n_images, generator=generator)[: 2 * n_pairs].reshape(n_pairs, 2)


def draw_different(n_pairs: int, labels: Tensor, seed: int = 0) -> Tensor:
    """Draw pairs of images of different classes, none of them twice, as row numbers (B, 2).

    Pairs of `draw_images`; those of one class exchange their ends with others, drawn at random,
    until no pair is of one class.

    Raises
    ------
    ValueError
        Where there are too few images, or more than half of those drawn are of one class.

    Examples
    --------
    >>> labels = torch.tensor([0, 0, 0, 1, 1, 2])
    >>> rows = draw_different(3, labels)
    >>> bool((labels[rows[:, 0]] != labels[rows[:, 1]]).all()), rows.unique().numel()
    (True, 6)
    """
    rows = draw_images(n_pairs, len(labels), seed)
    most = int(labels[rows.flatten()].unique(return_counts=True)[1].max())
    if most > n_pairs:
        required = "images of which at most half of those drawn are of one class"
        raise ValueError(requirement("data", required, f"{2 * n_pairs} with {most} of one class"))
    generator = torch.Generator().manual_seed(seed)
    classes = labels[rows]
    while bool((alike := classes[:, 0] == classes[:, 1]).any()):
        pair = int(alike.nonzero()[0])
        other = classes[pair, 0]
        # there is one: this class has no more than half of all ends
        fit = (classes != other).all(1).nonzero().flatten()
        chosen = int(fit[torch.randint(len(fit), (1,), generator=generator)])
        rows[[pair, chosen], 1] = rows[[chosen, pair], 1]
        classes = labels[rows]
    return rows


def encoded_pairs(model: LatentModel, images: Tensor, labels: Tensor | None, rows: Tensor) -> Pairs:
    """Encode pairs of images, whose row numbers are (B, 2), with a model's own encoder.

    They have the columns ``start_image`` and ``end_image`` (row numbers), and ``start_label`` and
    ``end_label`` where classes (n,) are given.
    """
    first, last = rows[:, 0], rows[:, 1]
    columns: dict[str, Any] = {"start_image": first, "end_image": last}
    if labels is not None:
        columns |= {"start_label": labels[first], "end_label": labels[last]}
    return Pairs(model.encode(images[first]), model.encode(images[last]), columns)


def read_pairs(path: str | os.PathLike[str], dim: int, like: Tensor | None = None) -> Pairs:
    """Read pairs of codes from a file, in the dtype and to the device of ``like``.

    The file is .npz, .safetensors, .pt or .pth and holds ``start`` and ``end``, (B, d) each, or
    .npy of shape (B, 2, d). Nothing is unpickled.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError, TypeError
        If it cannot be read, or does not hold finite codes of that shape.
    """
    tensors = read_arrays("codes", Path(path), lone="codes")
    both = tensors.get("codes")
    if both is not None and both.ndim == 3 and both.shape[1] == 2:
        tensors = {"start": both[:, 0], "end": both[:, 1]}
    if not {"start", "end"} <= tensors.keys():
        required = "a file that holds `start` and `end`, (B, d) each, or codes of shape (B, 2, d)"
        found_names = ", ".join(f"{name} {tuple(value.shape)}" for name, value in tensors.items())
        raise ValueError(requirement("codes", required, f"{path} with {found_names}"))
    start, end = check_pairs(tensors["start"], tensors["end"], dim)
    wanted = like if like is not None else torch.empty(0)
    return Pairs(start.to(wanted), end.to(wanted))


def worst_case_pairs(
    metric: Metric,
    n_pairs: int,
    dim: int,
    steps: Sequence[float],
    *,
    seed: int = 0,
    like: Tensor | None = None,
    prior: str = "normal",
) -> list[Pairs]:
    """Step from random codes in the direction that the decoder stretches most.

    z_0 ~ p(z),    z_1 = z_0 + step v,    v the unit eigenvector of G(z_0) with the largest
    eigenvalue, its sign such that it points towards the origin: v . z_0 <= 0.

    Parameters
    ----------
    metric
        The metric G.
    n_pairs
        Number of starts; they are the same for all steps.
    dim
        Latent dimension d.
    steps
        Step sizes, in latent units.
    seed
        Seed of the starts.
    like
        A tensor of the dtype and device that the codes are to have.
    prior
        p(z), as of `geolatent.norm_profile`; N(0, I) in the source.

    Returns
    -------
    list of Pairs
        One entry for each step, with the column ``step``.

    References
    ----------
    Michelis, Becker, "On Linear Interpolation in the Latent Space of Deep Generative Models",
    2021, https://arxiv.org/abs/2105.03663, algorithm 1.

    Examples
    --------
    >>> from geolatent import TensorMetric
    >>> stretched = TensorMetric(lambda z: torch.diag(torch.tensor([9.0, 1.0])).expand(
    ...     len(z), 2, 2), dim=2)
    >>> (pairs,) = worst_case_pairs(stretched, 3, 2, steps=[0.5])
    >>> (pairs.end - pairs.start).abs()
    tensor([[0.5000, 0.0000],
            [0.5000, 0.0000],
            [0.5000, 0.0000]])
    """
    check_room(n_pairs, dim, len(steps))
    if not steps:
        raise ValueError(requirement("steps", "one step size or more", list(steps)))
    for step in steps:
        check_number("steps", step, above=0.0)
    start = draw_prior(n_pairs, dim, seed=seed, like=like, prior=prior)
    direction = eigen(metric, start, "start")[1][:, :, -1]
    if not bool(direction.isfinite().all()):
        raise ValueError(requirement("metric", "finite at codes of the prior", "NaN or infinity"))
    outwards = (direction * start.double()).sum(1, keepdim=True) > 0
    direction = torch.where(outwards, -direction, direction)
    return [
        Pairs(start, (start.double() + step * direction).to(start), {"step": [step] * n_pairs})
        for step in steps
    ]


@dataclass(frozen=True)
class Case:
    """Pairs to be solved under one metric, from straight lines or the paths on a graph.

    The measures are functions of the straight lines and the geodesics that give further columns.
    """

    metric: Metric
    pairs: Pairs
    initial: LatentGraph | None = None
    measures: Sequence[Measure] = ()


@dataclass(frozen=True)
class Shards:
    """The work of an experiment, cut into shards that can be solved alone, anywhere, in any order.

    Shard k holds pairs k n, k n + 1, ..., of every case, n the ``batch_size``; the cases have
    equally many pairs. What it gives follows from the cases, the options and its number alone, but
    for rounding, which depends on the processor and the number of threads. ``complete`` adds
    columns that need all cases of a shard. Iterating solves all shards in turn.

    Examples
    --------
    >>> from geolatent import TensorMetric
    >>> flat = TensorMetric(lambda z: torch.eye(2).expand(len(z), 2, 2), dim=2)
    >>> shards = Shards([Case(flat, prior_pairs(5, 2))], batch_size=2)
    >>> len(shards), shards.n_rows(2), shards.solve(2).column("pair").tolist()
    (3, 1, [4])
    """

    cases: Sequence[Case]
    solver: Solver = field(default_factory=PreconditionedSolver)
    length_tolerance: float = 1e-4
    batch_size: int = 64
    complete: Callable[[SolvedPairs], SolvedPairs] | None = None

    def __post_init__(self) -> None:
        check_number("length_tolerance", self.length_tolerance, above=0.0)
        check_integer("batch_size", self.batch_size)
        sizes = [len(case.pairs) for case in self.cases]
        if len(set(sizes)) != 1:
            raise ValueError(requirement("cases", "one or more of equally many pairs", sizes))

    def __len__(self) -> int:
        return math.ceil(len(self.cases[0].pairs) / self.batch_size)

    def __iter__(self) -> Iterator[SolvedPairs]:
        return (self.solve(number) for number in range(len(self)))

    def _rows(self, number: int) -> slice:
        size = self.batch_size
        return slice(number * size, min((number + 1) * size, len(self.cases[0].pairs)))

    def n_rows(self, number: int) -> int:
        """Return the number of rows that a shard gives."""
        rows = self._rows(number)
        return len(self.cases) * (rows.stop - rows.start)

    def solve(self, number: int, callback: Callable[[float], None] | None = None) -> SolvedPairs:
        """Solve the shard of a number, from 0; ``callback`` is told the share that is done.

        The rows are those of the first case, then those of the second, and so on; the column
        ``pair`` numbers the pairs of all shards.
        """
        rows = self._rows(number)
        solved = []
        for place, case in enumerate(self.cases):

            def tell(state: Progress, place: int = place) -> None:
                if callback is not None:
                    callback((place + state.fraction) / len(self.cases))

            pairs = case.pairs[rows]
            solution = solve_geodesic(
                case.metric,
                pairs.start,
                pairs.end,
                self.solver,
                initial=case.initial,
                length_tolerance=self.length_tolerance,
                callback=tell,
            )
            columns: dict[str, Any] = {"pair": torch.arange(rows.start, rows.stop), **pairs.columns}
            part = SolvedPairs.from_solution(pairs.start, pairs.end, solution, columns)
            line = CubicBSpline.straight(pairs.start, pairs.end)
            for measure in case.measures:
                part = part.with_columns(measure(line, solution.curve))
            solved.append(part)
        joined = SolvedPairs.join(solved)
        return self.complete(joined) if self.complete is not None else joined
