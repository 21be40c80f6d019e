"""First-order optimisers on the path energy, one knot at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from geolatent.checks import check_integer, check_number, describe, requirement
from geolatent.curves import refine
from geolatent.solvers.preconditioned import Level, PreconditionedSolver, next_level
from geolatent.solvers.problem import Outcome, Problem, Solver


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

    Raises
    ------
    TypeError, ValueError
        Where a setting is out of its range.
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

    def shorten(self, problem: Problem) -> Outcome:
        """Run all stages for all pairs."""
        outcome = Outcome.start(problem)
        b = problem.control_points.shape[0]
        pairs = torch.arange(b, device=problem.control_points.device)
        first = max(problem.control_points.shape[1], self.first_control_points)
        stages = self.drops + 1
        last = max(first, self.max_control_points)
        total = (last - first + 1) * stages * self.steps
        taken = 0
        for n in range(first, last + 1):
            outcome.refine(n)
            spans = outcome.knots.unique().numel() - 1
            per_span = max(2, -(-self.nodes // spans))
            energy = problem.energy(outcome.knots, per_span, gauss_newton=False)
            best, gradient, _ = energy(outcome.control_points, pairs)
            energy.count(problem.evaluations, pairs)
            for stage in range(stages):
                start = outcome.control_points.clone()
                inner = start[:, 1:-1].clone().requires_grad_()
                optimizer = self.optimizer(
                    [inner],
                    lr=self.learning_rate * self.drop_factor**stage,  # type: ignore[call-arg]
                )
                schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, self.decay)
                _, gradient, _ = energy(start, pairs) if stage else (best, gradient, None)
                if stage:
                    energy.count(problem.evaluations, pairs)
                for _ in range(self.steps):
                    inner.grad = gradient[:, 1:-1].nan_to_num(0.0, 0.0, 0.0)
                    optimizer.step()
                    schedule.step()
                    curve = torch.cat([start[:, :1], inner.detach(), start[:, -1:]], dim=1)
                    value, gradient, _ = energy(curve, pairs)
                    energy.count(problem.evaluations, pairs)
                    better = value < best.nan_to_num(torch.inf)
                    best = torch.where(better, value, best)
                    outcome.control_points = torch.where(
                        better[:, None, None], curve, outcome.control_points
                    )
                    outcome.iterations += 1
                    taken += 1
                    problem.report(b * taken // total, n, taken)
        outcome.n_control_points[:] = last
        judge = PreconditionedSolver(tolerance=self.tolerance)
        knots, matrix = refine(outcome.knots, next_level(last))
        points = matrix @ outcome.control_points
        tensors = None
        if not problem.has_gauss_newton:
            tensors = problem.metric_tensors(knots, points, pairs, 8)
        level = Level(judge, problem, knots, points, pairs, tensors)
        level.run(outcome, level.certify(outcome, final=True), last=True, final=True)
        return outcome
