"""First-order optimisers on the path energy, one knot at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from geolatent.checks import check_integer, check_number, describe, requirement
from geolatent.curves import refine
from geolatent.solution import Status
from geolatent.solvers.certificate import (
    Certificate,
    Proof,
    certificate,
    metric_model,
    next_level,
)
from geolatent.solvers.energy import DiscreteEnergy
from geolatent.solvers.problem import Outcome, Problem, Solver, Stage
from geolatent.transfers import places, sent

# metric tensors on each curve that a result is judged by
_METRIC_POINTS = 8


@dataclass(frozen=True)
class FirstOrderSolver(Solver):
    """A `torch.optim` optimiser on the path energy, one knot at a time.

    For every number of control points the optimiser runs in ``drops + 1`` stages, each starting
    from the best curve so far with a learning rate lower by ``drop_factor``; then one knot is
    inserted. The best curve of each pair is kept. All pairs take the same steps; their
    optimisation variables are separate, so optimisers that work elementwise (SGD, Adam, RMSprop and
    the like) treat each pair as if it were alone.

    Parameters
    ----------
    optimizer
        Class of the optimiser, called with the variables and ``lr``.
    learning_rate
        In latent units for optimisers that normalise the gradient, such as Adam.
    decay
        Factor on the learning rate after every step.
    drops, drop_factor
        Number of learning-rate drops at each number of control points, and their factor.
    steps
        Steps in each stage.
    first_control_points, max_control_points
        Control points at the beginning and at the end.
    nodes
        Decoder rows per curve and step, at least.
    tolerance
        Predicted relative improvement at which a pair counts as converged.
    """

    optimizer: type[torch.optim.Optimizer] = torch.optim.Adam
    learning_rate: float = 0.05
    decay: float = 0.98
    drops: int = 1
    drop_factor: float = 0.3
    steps: int = 50
    first_control_points: int = 4
    max_control_points: int = 10
    nodes: int = 32
    tolerance: float = 5e-4

    def __post_init__(self) -> None:
        if not isinstance(self.optimizer, type) or not issubclass(
            self.optimizer, torch.optim.Optimizer
        ):
            required = "a subclass of torch.optim.Optimizer"
            raise TypeError(requirement("optimizer", required, describe(self.optimizer)))
        if issubclass(self.optimizer, torch.optim.LBFGS):
            required = "an optimiser that steps without a closure (use PreconditionedSolver)"
            raise ValueError(requirement("optimizer", required, self.optimizer.__name__))
        check_number("learning_rate", self.learning_rate, above=0.0)
        check_number("decay", self.decay, above=0.0, at_most=1.0)
        check_integer("drops", self.drops, minimum=0)
        check_number("drop_factor", self.drop_factor, above=0.0, at_most=1.0)
        check_integer("steps", self.steps)
        check_integer("first_control_points", self.first_control_points, minimum=4)
        check_integer("max_control_points", self.max_control_points, self.first_control_points)
        check_integer("nodes", self.nodes, minimum=2)
        check_number("tolerance", self.tolerance, above=0.0)

    @classmethod
    def michelis_becker(cls) -> FirstOrderSolver:
        """Return the recipe of Michelis and Becker (2021).

        Adam with learning rate 1, halved at every step, restarted five times at 0.3 times the rate;
        from 4 to 10 control points, 16 nodes. Their code moves the nodes at random in each step;
        here they stay.
        """
        return cls(learning_rate=1.0, decay=0.5, drops=5, drop_factor=0.3, steps=10, nodes=16)

    def stages(self, problem: Problem, outcome: Outcome) -> Iterator[Stage]:
        """Run all stages for all pairs, then judge the curves."""
        pairs = outcome.pairs
        first = max(problem.control_points.shape[1], self.first_control_points)
        last = max(first, self.max_control_points)
        n_stages = (last - first + 1) * (self.drops + 1)
        for number in range(n_stages):
            n, drop = first + number // (self.drops + 1), number % (self.drops + 1)
            outcome.refine(n)
            if drop == 0:
                spans = outcome.knots.unique().numel() - 1
                per_span = max(2, -(-self.nodes // spans))
                best = torch.full_like(outcome.predicted_improvement, torch.inf)
                energy = problem.energy(
                    outcome,
                    outcome.knots,
                    per_span,
                    outcome.control_points,
                    pairs,
                    gauss_newton=False,
                )
            rate = self.learning_rate * self.drop_factor**drop
            yield _Descent(self, outcome, energy, best, rate, number, n_stages)
        outcome.n_control_points[:] = last
        found, converged = self._judge(problem, outcome)
        yield (proof := Proof(outcome, found, places(converged)[0], self.tolerance))
        outcome.end(proof.refuted_pairs, Status.MAX_ITERATIONS)

    def _judge(self, problem: Problem, outcome: Outcome) -> tuple[Certificate, Tensor]:
        """Certify the curves in a richer space; return also which of them have converged."""
        pairs = outcome.pairs
        knots, matrix = refine(outcome.knots, next_level(outcome.control_points.shape[1]))
        points = sent(matrix, outcome.control_points) @ outcome.control_points
        model = None
        if not problem.has_gauss_newton:
            model = metric_model(problem, outcome, knots, points, pairs, _METRIC_POINTS)
        per_span = 3 if problem.has_gauss_newton else 2
        energy = problem.energy(outcome, knots, per_span, points, pairs)
        found = certificate(energy, knots, model=model)
        predicted = found.caution * found.predicted
        outcome.predicted_improvement[:] = outcome.predicted_at_start[:] = predicted
        converged = found.finite & found.convex & (predicted <= self.tolerance)
        outcome.status[converged] = int(Status.CONVERGED)
        outcome.status[~found.finite] = int(Status.NON_FINITE)
        return found, converged


class _Descent(Stage):
    """Steps of an optimiser from the best curves so far, of which the better ones are kept."""

    def __init__(
        self,
        solver: FirstOrderSolver,
        outcome: Outcome,
        energy: DiscreteEnergy,
        best: Tensor,
        learning_rate: float,
        number: int,
        n_stages: int,
    ) -> None:
        self.outcome = outcome
        self.energy = energy
        self.best = best
        self.n_control_points = outcome.control_points.shape[1]
        self.open = energy.pairs
        self.left = solver.steps
        self._taken, self._total = number * solver.steps, n_stages * solver.steps
        points = outcome.control_points[:, 1:-1].flatten(1)
        self.x = points.clone().requires_grad_()
        self.optimizer = solver.optimizer([self.x], lr=learning_rate)  # type: ignore[call-arg]
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, solver.decay)
        self._evaluate()

    def _evaluate(self) -> None:
        """Take the gradient of the next step, and keep the curves that are better."""
        x, outcome = self.x.detach(), self.outcome
        value, gradient, _ = self.energy(x, self.open)
        self.x.grad = gradient.nan_to_num(0.0, 0.0, 0.0)
        better = value < self.best
        self.best = torch.where(better, value, self.best)
        curves = self.energy.curves(x, self.open)
        outcome.control_points = torch.where(better[:, None, None], curves, outcome.control_points)

    def step(self) -> None:
        """Let the optimiser step."""
        self.optimizer.step()
        self.schedule.step()
        self._evaluate()
        self.outcome.iterations += 1
        self.left -= 1
        self._taken += 1
        if not self.left:
            self.open = self.open[:0]

    def settled(self, n_pairs: int, n_begun: int) -> float:  # noqa: ARG002
        """Return the share of all steps that were taken, in pairs."""
        return n_pairs * self._taken / self._total
