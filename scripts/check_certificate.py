"""How well the certificate tells what is left to be gained: python scripts/check_certificate.py.

Every curve that ends CONVERGED is solved further in two ways: by the default solver with a
tolerance a hundred times tighter, and by monotone descent in small steps that cannot leap into
another valley. What the better of the two gains in length is held against the predicted
improvement. Great circles and pairs of codes that almost coincide, where nothing is left, come
last.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import geolatent as gl
from geolatent.curves import basis_matrix
from geolatent.lab.demo import digit_pairs
from geolatent.metrics.rows import Rows
from geolatent.solvers.certificate import sobolev_preconditioner
from geolatent.solvers.energy import DiscreteEnergy
from geolatent.solvers.lbfgs import DensePreconditioner

# relative tolerance of the lengths that are compared, and what two of them may differ by
LENGTH_TOLERANCE = 5e-6
NOISE = 1e-5
# small steps: share of a preconditioned step, their number, steps between two preconditioners
SHARE, STEPS, RENEWED = 0.25, 100, 25


@dataclass(frozen=True)
class Case:
    """Pairs of codes under one metric."""

    name: str
    metric: gl.Metric
    start: Tensor
    end: Tensor


def random_decoder(d: int, activation: type[nn.Module], seed: int) -> nn.Module:
    """Return a random decoder with a middle layer of 128."""
    torch.manual_seed(seed)
    first, second, last = nn.Linear(d, 128), nn.Linear(128, 128), nn.Linear(128, 256)
    nn.init.normal_(first.weight, std=d**-0.5)
    nn.init.normal_(second.weight, std=1.5 * 128**-0.5)
    layers = (first, activation(), second, activation(), last)
    return nn.Sequential(*layers).double().requires_grad_(False).eval()


class ConvDecoder(nn.Module):
    """A random convolutional decoder: a dense layer and three transposed convolutions."""

    def __init__(self, d: int, activation: type[nn.Module], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.dense = nn.Linear(d, 32 * 4 * 4)
        nn.init.normal_(self.dense.weight, std=1.5 * d**-0.5)
        layers: list[nn.Module] = []
        for channels in ((32, 16), (16, 8), (8, 1)):
            layers += [activation(), nn.ConvTranspose2d(*channels, 4, stride=2, padding=1)]
            nn.init.normal_(layers[-1].weight, std=0.8 * channels[0] ** -0.5)
        self.body = nn.Sequential(*layers, nn.Tanh())
        self.double().requires_grad_(False).eval()

    def forward(self, z: Tensor) -> Tensor:
        """Return images, (n, d) -> (n, 1, 32, 32)."""
        return self.body(self.dense(z).reshape(-1, 32, 4, 4))


class PretrainedDecoder(nn.Module):
    """A decoder of the repository disentangling-vae, from its state dictionary."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        state = torch.load(path, weights_only=True, map_location="cpu")
        prefix = "decoder."
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        for name in ("lin1", "lin2", "lin3"):
            out, into = state[f"{name}.weight"].shape
            self.add_module(name, nn.Linear(into, out))
        self.up = [n for n in ("convT_64", "convT1", "convT2", "convT3") if f"{n}.weight" in state]
        for name in self.up:
            into, out = state[f"{name}.weight"].shape[:2]
            self.add_module(name, nn.ConvTranspose2d(into, out, 4, stride=2, padding=1))
        self.load_state_dict(state)
        self.double().requires_grad_(False).eval()

    def forward(self, z: Tensor) -> Tensor:
        """Return images, (n, 10) -> (n, channels, size, size)."""
        for name in ("lin1", "lin2", "lin3"):
            z = torch.relu(self.get_submodule(name)(z))
        images = z.reshape(-1, 32, 4, 4)
        for name in self.up[:-1]:
            images = torch.relu(self.get_submodule(name)(images))
        return torch.sigmoid(self.get_submodule(self.up[-1])(images))


def cases(n: int, models: Path | None) -> Iterator[Case]:
    """Give the decoders, each with pairs."""
    pairs = digit_pairs(min(2 * n, 225))
    yield Case("digits, mean and deviation, d = 2", pairs.metric, pairs.start, pairs.end)
    mean = gl.PullbackMetric(lambda z: pairs.model.decode(z)[0])
    yield Case("digits, mean alone, d = 2", mean, pairs.start[:n], pairs.end[:n])
    generator = torch.Generator().manual_seed(0)

    def between(d: int, count: int = n) -> tuple[Tensor, Tensor]:
        start, end = torch.randn(2, count, d, generator=generator, dtype=torch.float64)
        return start, end

    for name, decoder, d in (
        ("random, tanh, d = 4", random_decoder(4, nn.Tanh, 0), 4),
        ("random, ELU, d = 8", random_decoder(8, nn.ELU, 1), 8),
        ("random, tanh, d = 16", random_decoder(16, nn.Tanh, 2), 16),
        ("convolutional, SiLU, d = 12", ConvDecoder(12, nn.SiLU, 3), 12),
        ("random, SiLU, d = 32", random_decoder(32, nn.SiLU, 4), 32),
        ("random, ReLU, d = 10", random_decoder(10, nn.ReLU, 5), 10),
    ):
        count = n // 2 if "ReLU" in name else n
        yield Case(name, gl.PullbackMetric(decoder), *between(d, count))
    for path in sorted(models.glob("*.pt")) if models else ():
        yield Case(path.stem, gl.PullbackMetric(PretrainedDecoder(path)), *between(10, n // 4))


def great_circles(n: int) -> Case:
    """Give pairs on lines through the origin, whose images are great circles of the sphere."""

    def sphere(z: Tensor) -> Tensor:
        square = z.square().sum(1, keepdim=True)
        return torch.cat([2 * z, square - 1], dim=1) / (square + 1)

    generator = torch.Generator().manual_seed(1)
    way = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    way = way / way.norm(dim=1, keepdim=True)
    places = 1.8 * torch.rand(2, n, 1, generator=generator, dtype=torch.float64) - 0.9
    return Case("great circles", gl.PullbackMetric(sphere), places[0] * way, places[1] * way)


def coincident(n: int, dtype: torch.dtype) -> Case:
    """Give pairs of digits' codes 1e-6 apart."""
    pairs = digit_pairs(n)
    metric = gl.GaussianPullbackMetric(gl.models.digits_vae(dtype=dtype).decode)
    generator = torch.Generator().manual_seed(2)
    way = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    end = pairs.start + 1e-6 * way / way.norm(dim=1, keepdim=True)
    return Case(f"1e-6 apart, {dtype}", metric, pairs.start.to(dtype), end.to(dtype))


def small_steps(metric: gl.Metric, curve: gl.CubicBSpline) -> gl.CubicBSpline:
    """Lower the energies of curves monotonically, by small preconditioned steps."""
    knots, points = curve.knots, curve.control_points.double()
    a, n, _ = points.shape
    pairs = torch.arange(a)
    rows = Rows.of(metric, points[:, 0]).counting(a)
    ends = None if rows.chords is None else rows.outputs(points[:, [0, -1]])
    energy = DiscreteEnergy(rows, knots, 4, points, pairs, ends)
    middles = basis_matrix(knots, (torch.arange(8, dtype=knots.dtype) + 0.5) / 8)
    x = energy.start
    value, gradient, hessian = energy(x, pairs)
    share = torch.full_like(value, SHARE)
    preconditioner = None
    for step in range(STEPS):
        if hessian is not None:
            preconditioner = DensePreconditioner.of(hessian)
        elif preconditioner is None or step % RENEWED == 0:
            tensors = rows.tensor(middles @ energy.curves(x, pairs))
            preconditioner = sobolev_preconditioner(knots, n, tensors)
        downhill = preconditioner.solve(gradient[:, :, None])[:, :, 0]
        trial = x - share[:, None] * downhill
        trial_value, trial_gradient, trial_hessian = energy(trial, pairs)
        better = trial_value <= value
        x = torch.where(better[:, None], trial, x)
        value = torch.where(better, trial_value, value)
        gradient = torch.where(better[:, None], trial_gradient, gradient)
        if hessian is not None:
            hessian = torch.where(better[:, None, None], trial_hessian, hessian)
        share = torch.where(better, share, 0.5 * share)
    return gl.CubicBSpline(energy.curves(x, pairs), knots)


def gains(case: Case, solution: gl.GeodesicSolution, chosen: Tensor) -> Tensor:
    """Return by how much, relatively, the chosen curves can be shortened further, (A,)."""
    curve = solution.curve[chosen]
    further = gl.PreconditionedSolver(
        tolerance=1e-6, max_iterations=100, max_control_points=67, max_nodes=64
    )
    again = gl.solve_geodesic(
        case.metric, case.start[chosen], case.end[chosen], further, initial=curve
    )
    curves = [curve, again.curve, small_steps(case.metric, curve)]
    lengths = torch.stack(
        [gl.path_length(case.metric, c, tolerance=LENGTH_TOLERANCE) for c in curves]
    )
    return 1.0 - lengths.amin(0) / lengths[0]


def check_certificate(
    n_pairs: int = 100,
    models: Path | None = None,
) -> None:
    """Measure the certificate on many pairs and print a table.

    Parameters
    ----------
    n_pairs
        Pairs for each decoder.
    models
        Folder of state dictionaries of disentangling-vae, for decoders that others trained.
    """
    warnings.simplefilter("ignore", UserWarning)  # lengths that do not reach the tight tolerance
    console = Console(width=150)
    head = ("decoder", "pairs", "converged", "rows", "predicted, median", "gained, median")
    head += ("gained more", "more than twice", "more than ten times")
    table = Table(*head, title="Predicted improvement of CONVERGED pairs, and what they gained")
    totals = [0, 0, 0, 0, 0]
    for case in cases(n_pairs, models):
        solution = gl.solve_geodesic(case.metric, case.start, case.end)
        chosen = (solution.status == gl.Status.CONVERGED).nonzero().squeeze(1)
        parts = chosen.split(25) if len(chosen) else ()
        gained = torch.cat(
            [torch.zeros(0, dtype=torch.float64)]
            + [gains(case, solution, part) for part in track(parts, case.name)]
        )
        predicted = solution.predicted_improvement[chosen].double()
        over = [int((gained > k * predicted + NOISE).sum()) for k in (1, 2, 10)]
        row = [len(solution.status), len(chosen), *over]
        totals = [a + b for a, b in zip(totals, row, strict=True)]
        rows = float(solution.evaluations.equivalents.mean())
        middle = [f"{float(v.median()):.1e}" if len(v) else "" for v in (predicted, gained)]
        table.add_row(case.name, *map(str, row[:2]), f"{rows:.0f}", *middle, *map(str, over))
    shares = [f"{value} ({value / max(1, totals[1]):.1%})" for value in totals[2:]]
    table.add_row("all", *map(str, totals[:2]), "", "", "", *shares)
    console.print(table)
    closed = great_circles(n_pairs)
    for case in (closed, *(coincident(n_pairs, dtype) for dtype in (torch.float32, torch.float64))):
        solution = gl.solve_geodesic(case.metric, case.start, case.end)
        most = float(solution.predicted_improvement.max())
        console.print(f"{case.name}: predicts at most {most:.1e}")
        console.print(solution.summary())


if __name__ == "__main__":
    auto_cli(check_certificate, as_positional=False)
