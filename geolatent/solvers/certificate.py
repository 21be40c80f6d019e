"""What is left to be gained of a curve: the Newton decrement in a richer spline space."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geolatent.curves import basis_matrix
from geolatent.quadrature import composite_rule
from geolatent.solvers.energy import RIDGE, DiscreteEnergy
from geolatent.solvers.lbfgs import (
    LBFGS,
    DensePreconditioner,
    KroneckerPreconditioner,
    LBFGSState,
    LowRankPreconditioner,
    Memory,
    Preconditioner,
    cholesky,
)
from geolatent.solvers.problem import Outcome, Problem, Stage
from geolatent.transfers import places, sent

# up to this size, (n - 2) d, the preconditioner is a dense matrix for each pair
DENSE_SIZE = 700
# beyond so many dimensions products with the metric take the place of its tensors
TENSOR_DIM = 64
# and so many of them make a sketch
SKETCH_RANK = 8
# what is left is about so many times what a sketch and the minimiser's memory know of
_SKETCHED_CAUTION = 3.0
# steps after which the minimiser's memory is trusted to know the directions that are nearly flat,
# where no Hessians tell of them
LEAST_STEPS = 2
# of the tolerance: so little left is taken for nothing
_NOTHING = 1e-3


def sobolev_preconditioner(knots: Tensor, n_control_points: int, tensors: Tensor) -> Preconditioner:
    """Factor H_(i,j) = integral of B_i' B_j' G(gamma) over the free control points.

    G is interpolated linearly between M points, the middles of M equal intervals of [0, 1], and
    gets a tenth of its mean eigenvalue on the diagonal: in directions that it hardly sees, the
    metric changes long before a step that trusts it would end. Where H would be large, G is
    replaced by its mean over the curve, so that H is the Kronecker product of the B-splines'
    stiffness matrix and a d x d matrix.

    Parameters
    ----------
    knots, n_control_points
        Of the curves.
    tensors
        G at the M points of every curve, (A, M, d, d).
    """
    n = n_control_points
    a, m, d, _ = tensors.shape
    tensors = tensors.double()
    scale = RIDGE * tensors.diagonal(dim1=2, dim2=3).mean((1, 2))
    eye = torch.eye(d, dtype=tensors.dtype, device=tensors.device)
    tensors = tensors + scale[:, None, None, None] * eye
    if not is_dense(n, d):
        return KroneckerPreconditioner.of(sent(stiffness_matrix(knots), tensors), tensors.mean(1))
    kinks = torch.arange(1, 2 * m, dtype=knots.dtype, device=knots.device) / (2 * m)
    t, weights = composite_rule(torch.cat([knots, kinks]), 3)
    slopes = basis_matrix(knots, t, derivative=1)[:, 1:-1]
    middles = torch.arange(m, dtype=t.dtype, device=t.device)
    hats = (1.0 - (t[:, None] * m - 0.5 - middles).abs()).clamp_min(0.0)
    hats = hats / hats.sum(1, keepdim=True)  # constant before the first and after the last point
    stiffness = torch.einsum("qm,qi,qj->mij", hats * weights[:, None], slopes, slopes)
    matrix = torch.einsum("mij,amkl->aikjl", sent(stiffness, tensors), tensors)
    return DensePreconditioner.of(matrix.reshape(a, (n - 2) * d, (n - 2) * d))


@dataclass(frozen=True)
class MetricTensors:
    """G at M points of every curve, the middles of M equal intervals of [0, 1].

    Attributes
    ----------
    tensors
        Shape (A, M, d, d).
    """

    tensors: Tensor

    def select(self, chosen: Tensor) -> MetricTensors:
        """Return those of the curves at some places."""
        return MetricTensors(self.tensors[chosen])

    def preconditioner(self, knots: Tensor, n_control_points: int) -> Preconditioner:
        """Return the factors of H; see `sobolev_preconditioner`."""
        return sobolev_preconditioner(knots, n_control_points, self.tensors)


@dataclass(frozen=True)
class MetricSketch:
    """G in the middle of every curve as c I + U diag(w) U^T, from a few products.

    Attributes
    ----------
    ridge
        c, (A,).
    basis, weights
        U, (A, d, r), and w, (A, r); columns of a positive weight are orthonormal.
    """

    ridge: Tensor
    basis: Tensor
    weights: Tensor

    @classmethod
    def of(cls, vectors: Tensor, products: Tensor) -> MetricSketch:
        """Sketch G from its products Y = G V with orthonormal V, (A, d, r) each, by Nystrom.

        G ~ Y (V^T Y)^-1 Y^T. The ridge is the smallest eigenvalue of that, at least a tenth of the
        mean eigenvalue of V^T Y, which is that of G on average.

        References
        ----------
        Frangella, Tropp, Udell, "Randomized Nystrom preconditioning", 2023.
        """
        vectors, products = vectors.double(), products.double().nan_to_num(0.0, 0.0, 0.0)
        core = vectors.mT @ products
        values, rotation = torch.linalg.eigh(0.5 * (core + core.mT))
        mean = values.mean(1).clamp_min(torch.finfo(values.dtype).tiny)
        # a core that is not definite is none of a metric's; what rounding left of one counts as 0
        floor = 1e-8 * values[:, -1:].clamp_min(mean[:, None])
        root = products @ (rotation / values.clamp_min(floor).sqrt()[:, None])
        # those of root root^T, by a small matrix: singular values of large ones come one by one
        eigenvalues, rotation = torch.linalg.eigh(root.mT @ root)
        ridge = torch.maximum(eigenvalues[:, 0], RIDGE * mean)
        # a column whose weight is zero may have any length
        basis = root @ (rotation / eigenvalues.clamp_min(ridge[:, None]).sqrt()[:, None])
        return cls(ridge, basis, (eigenvalues - ridge[:, None]).clamp_min(0.0))

    def select(self, chosen: Tensor) -> MetricSketch:
        """Return those of the curves at some places."""
        return MetricSketch(self.ridge[chosen], self.basis[chosen], self.weights[chosen])

    def preconditioner(self, knots: Tensor, n_control_points: int) -> Preconditioner:  # noqa: ARG002
        """Return H, the Kronecker product of the B-splines' stiffness matrix and the sketch."""
        stiffness = sent(cholesky(stiffness_matrix(knots)[None])[0], self.ridge)
        return LowRankPreconditioner(self.ridge, self.basis, self.weights, stiffness)


def metric_model(
    problem: Problem, outcome: Outcome, knots: Tensor, points: Tensor, pairs: Tensor, m: int
) -> MetricTensors | MetricSketch:
    """Return what is known of G along curves (A, n, d): tensors at m points, or a sketch of one.

    Beyond `TENSOR_DIM` dimensions tensors cost more than they are worth.
    """
    d = points.shape[2]
    if d <= TENSOR_DIM:
        return MetricTensors(metric_tensors(problem, outcome, knots, points, pairs, m))
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(d, SKETCH_RANK, generator=generator, dtype=torch.float64, device="cpu")
    vectors = sent(torch.linalg.qr(random)[0], points).expand(len(pairs), -1, -1)
    middle = sent(basis_matrix(knots, torch.full_like(knots[:1], 0.5)), points)
    codes = (middle @ points).expand(-1, SKETCH_RANK, -1)
    products = problem.rows.product(codes, vectors.mT, pairs)
    return MetricSketch.of(vectors, products.mT)


def stiffness_matrix(knots: Tensor) -> Tensor:
    """Return the integrals of B_i' B_j' over [0, 1] for the free control points, (n - 2, n - 2)."""
    t, weights = composite_rule(knots, 3)
    slopes = basis_matrix(knots, t, derivative=1)[:, 1:-1]
    return torch.einsum("q,qi,qj->ij", weights, slopes, slopes)


def is_dense(n_control_points: int, dim: int) -> bool:
    """Whether preconditioners of curves of so many control points are dense matrices."""
    return (n_control_points - 2) * dim <= DENSE_SIZE


class NewtonObjective:
    """A discrete energy with the Hessians that Newton's method takes.

    They are Gauss-Newton's where these are cheap, and, for the curves that are marked, with what
    Gauss-Newton leaves out at the curves as they came, where the sum is positive definite.

    Parameters
    ----------
    energy
        The energy of A curves.
    flat
        The marks, (A,); None where there are none.
    """

    def __init__(self, energy: DiscreteEnergy, flat: Tensor | None = None) -> None:
        self.energy = energy
        self.flat = flat
        self._residual: Tensor | None = None

    def start(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Evaluate the curves as they came: values, gradients, Hessians, and who is convex."""
        x = self.energy.start
        index = torch.arange(len(x), device=x.device)
        rest, chosen = index, index[:0]
        if self.flat is not None:
            rest, chosen = places(~self.flat, self.flat)
        convex = torch.ones_like(index, dtype=torch.bool)
        if not chosen.numel():
            value, gradient, hessian = self.energy(x, index)
            return value, gradient, hessian, convex  # type: ignore[return-value]
        a, m = x.shape
        value, gradient, hessian = x.new_empty(a), x.new_empty((a, m)), x.new_empty((a, m, m))
        if rest.numel():
            value[rest], gradient[rest], hessian[rest] = self.energy(x[rest], rest)  # type: ignore[assignment]
        found = self.energy.with_residual(x[chosen], chosen)
        self._residual = torch.zeros_like(hessian)
        value[chosen], gradient[chosen], _, self._residual[chosen] = found
        hessian[chosen], convex[chosen] = self._whole(found[2], chosen)
        return value, gradient, hessian, convex

    def __call__(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return values, gradients and Hessians at free control points (A', m) of the curves."""
        value, gradient, hessian = self.energy(x, index)
        if hessian is not None and self._residual is not None:
            hessian = self._whole(hessian, index)[0]
        return value, gradient, hessian

    def _whole(self, hessian: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Add the residual to the marked curves' Hessians where the sum is positive definite.

        Returns the Hessians, and where that was so; the others stay as they are.
        """
        if self._residual is None or self.flat is None:
            return hessian, torch.ones_like(index, dtype=torch.bool)
        flat = self.flat[index]
        whole = hessian + self._residual[index]
        bad = ~whole.isfinite().flatten(1).all(1)
        whole = torch.where(bad[:, None, None], hessian, whole)
        definite = (torch.linalg.cholesky_ex(whole)[1] == 0) & ~bad
        added = (flat & definite)[:, None, None]
        return torch.where(added, whole, hessian), ~flat | definite


@dataclass(frozen=True)
class Certificate:
    """What a spline space says of curves in it; see `certificate`.

    Attributes
    ----------
    pairs
        The numbers of the A curves among all pairs.
    objective
        The energy, for a minimiser that goes on from here.
    minimizer
        Its settings.
    state
        The minimiser's state at the curves.
    convex
        Whether the energy is convex there, as far as Hessians tell, (A,).
    """

    pairs: Tensor
    objective: NewtonObjective
    minimizer: LBFGS
    state: LBFGSState
    convex: Tensor

    @property
    def predicted(self) -> Tensor:
        """The relative improvement in length that is predicted to be left, (A,)."""
        return relative_decrease(self.state)

    @property
    def sketched(self) -> bool:
        """Whether no more than a sketch of the metric is known."""
        return isinstance(self.state.preconditioner, LowRankPreconditioner)

    @property
    def caution(self) -> float:
        """By what predictions are to be multiplied: a sketch and a short memory do not see all."""
        return _SKETCHED_CAUTION if self.sketched else 1.0

    @property
    def finite(self) -> Tensor:
        """Whether energies and gradients are finite, (A,)."""
        return self.state.value.isfinite() & self.state.gradient.isfinite().all(1)


def certificate(
    energy: DiscreteEnergy,
    knots: Tensor,
    *,
    flat: Tensor | None = None,
    rough: Tensor | None = None,
    model: MetricTensors | MetricSketch | None = None,
    minimizer: LBFGS | None = None,
    memory: Memory | None = None,
) -> Certificate:
    """Judge curves by the Newton decrement in the spline space of a discrete energy.

    The decrement g^T H^-1 g / (4 E) is the relative improvement in length that Newton's method
    promises. A space richer than the one that the curves were found in tells what more control
    points would gain.

    Parameters
    ----------
    energy
        The energy of the curves.
    knots
        Knots of the space.
    flat
        Curves whose whole Hessian is to be evaluated, (A,), where Hessians come with the energy.
    rough
        Curves whose Gauss-Newton Hessian is to be evaluated, (A,), where it does not come.
    model
        What is known of the metric along the curves, for H where there are no Hessians.
    minimizer
        Settings of the minimiser.
    memory
        What it remembers of the curves in a space before, in the coordinates of this one.
    """
    objective = NewtonObjective(energy, flat)
    minimizer = minimizer or LBFGS()
    if energy.gauss_newton:
        value, gradient, hessian, convex = objective.start()
        newton = DensePreconditioner.of(hessian)
        state = minimizer.init(energy.start, value, gradient, newton)
        return Certificate(energy.pairs, objective, minimizer, state, convex)
    if model is None:
        raise RuntimeError("a certificate needs the Hessians of its energy, or the metric")
    n, d = energy.points.shape[1:]
    x, index = energy.start, torch.arange(len(energy.pairs), device=energy.pairs.device)
    plain, known = index, index[:0]
    if rough is not None and energy.renewable and is_dense(n, d):
        plain, known = places(~rough, rough)
    value, gradient = torch.empty_like(x[:, 0]), torch.empty_like(x)
    if plain.numel():
        value[plain], gradient[plain], _ = energy(x[plain], plain)
    preconditioner: Preconditioner = model.select(plain).preconditioner(knots, n)
    if known.numel():
        found = energy.with_hessian(x[known], known)
        value[known], gradient[known] = found[:2]
        factor = x.new_empty((*x.shape, x.shape[1]))
        factor[plain] = preconditioner.factor  # type: ignore[attr-defined]
        factor[known] = cholesky(found[2])
        preconditioner = DensePreconditioner(factor)
    state = minimizer.init(x, value, gradient, preconditioner, memory)
    return Certificate(energy.pairs, objective, minimizer, state, torch.ones_like(state.convex))


class Proof(Stage):
    """Two steps of the minimiser that put certificates to the proof.

    What the steps gain, and what is predicted after them, must be at most the tolerance together.

    Parameters
    ----------
    outcome
        Where the pairs' predictions are replaced by what was found.
    found
        The certificates.
    probed
        The places of those that are to be proved.
    tolerance
        Relative improvement that may be left.

    Attributes
    ----------
    refuted
        The minimiser's states of pairs whose certificate did not hold.
    """

    def __init__(
        self, outcome: Outcome, found: Certificate, probed: Tensor, tolerance: float
    ) -> None:
        self.outcome = outcome
        self.found = found
        self.tolerance = tolerance
        self.n_control_points = outcome.control_points.shape[1]
        self.state = found.state.select(probed)
        self.refuted = self.state.select(probed[:0])
        self.steps = 0

    @property
    def open(self) -> Tensor:  # type: ignore[override]
        """The pairs that are not judged yet."""
        return self.found.pairs[self.state.index]

    @property
    def refuted_pairs(self) -> Tensor:
        """The numbers of the pairs whose certificate did not hold."""
        return self.found.pairs[self.refuted.index]

    def step(self) -> None:
        """Take a step, and judge the pairs after the last one, or where there is no way down."""
        self.state = state = self.found.minimizer.step(self.state, self.found.objective)
        self.steps += 1
        judged = self.found.minimizer.stalled(state) | (self.steps >= LEAST_STEPS)
        left = gained(self.found, state) + self.found.caution * relative_decrease(state)
        # in what little is left rounding may look like anything
        convex = state.convex | (left <= _NOTHING * self.tolerance)
        proved = convex & (left <= self.tolerance)
        predicted = self.outcome.predicted_improvement
        predicted[self.open] = torch.where(judged, left, predicted[self.open])
        refuted, unjudged = places(judged & ~proved, ~judged)
        self.refuted = self.refuted.join(state.select(refuted))
        self.state = state.select(unjudged)


def gained(found: Certificate, state: LBFGSState) -> Tensor:
    """Return the relative improvement in length since a certificate, of the pairs of a state."""
    return 0.5 * (found.state.value[state.index] / state.value - 1.0)


def relative_decrease(state: LBFGSState) -> Tensor:
    """Turn a predicted decrease of the energy into one of the length: dL / L = dE / (2 E)."""
    decrease = state.predicted_decrease
    return torch.where(decrease > 0, decrease / (2.0 * state.value), 0.0)


def metric_tensors(
    problem: Problem, outcome: Outcome, knots: Tensor, points: Tensor, pairs: Tensor, m: int
) -> Tensor:
    """Return G in the middles of m equal intervals of t along curves, (A, m, d, d)."""
    at = (torch.arange(m, dtype=knots.dtype, device=knots.device) + 0.5) / m
    return problem.tensors(outcome, sent(basis_matrix(knots, at), points) @ points, pairs)


def next_level(n_control_points: int) -> int:
    """Return the number of control points after every knot span is halved."""
    return 2 * n_control_points - 3
