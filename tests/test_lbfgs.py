"""Batched L-BFGS on problems whose minima are known, each problem alone and among others."""

from dataclasses import replace

import pytest
import torch
from rounding import assert_same_to_rounding

from geolatent.solvers.lbfgs import (
    LBFGS,
    DensePreconditioner,
    KroneckerPreconditioner,
    LowRankPreconditioner,
    Memory,
    cholesky,
)

pytestmark = pytest.mark.usefixtures("float64")


class Quadratics:
    """1/2 (x - c)^T A (x - c), each problem with an A of its own: minimum 0 at c."""

    def __init__(self, b=6, m=5, condition=1e3):
        rotation, _ = torch.linalg.qr(torch.randn(b, m, m))
        spectrum = torch.logspace(0, torch.tensor(condition).log10().item(), m)
        self.matrix = rotation @ torch.diag(spectrum) @ rotation.mT
        self.minimum = torch.randn(b, m)
        self.start = torch.zeros(b, m)

    def __call__(self, x, index):
        error = (x - self.minimum[index]).unsqueeze(2)
        gradient = self.matrix[index] @ error
        return 0.5 * (error * gradient).sum((1, 2)), gradient.squeeze(2), None


class Rosenbrocks:
    """(a - x)^2 + b (y - x^2)^2, each problem with an a and b of its own: minimum 0 at (a, a^2)."""

    def __init__(self):
        self.a = torch.tensor([1.0, 0.5, -1.0, 1.0, 2.0])
        self.b = torch.tensor([100.0, 10.0, 50.0, 1.0, 5.0])
        self.minimum = torch.stack([self.a, self.a**2], dim=1)
        self.start = torch.tensor([-1.2, 1.0]).repeat(5, 1)

    def __call__(self, x, index):
        a, b = self.a[index], self.b[index]
        first, second = a - x[:, 0], x[:, 1] - x[:, 0] ** 2
        by_x = -2 * first - 4 * b * second * x[:, 0]
        return first**2 + b * second**2, torch.stack([by_x, 2 * b * second], dim=1), None


class Quartics:
    """sum_i (x_i - c_i)^4 + (x_i - c_i)^2 from far away: minimum 0 at c, steep at the start."""

    def __init__(self):
        self.minimum = torch.randn(4, 3)
        self.start = 30.0 * torch.randn(4, 3)

    def __call__(self, x, index):
        error = x - self.minimum[index]
        return (error**4 + error**2).sum(1), 4 * error**3 + 2 * error, None


PROBLEMS = [Quadratics, Rosenbrocks, Quartics]


def identity(x):
    return torch.eye(x.shape[1]).repeat(x.shape[0], 1, 1)


def begin(objective, hessian=None, minimizer=None, chosen=slice(None)):
    """Return the state at the chosen problems' start; their numbers among all stay."""
    index = torch.arange(len(objective.start))[chosen]
    x = objective.start[index]
    value, gradient, _ = objective(x, index)
    preconditioner = DensePreconditioner.of(identity(x) if hessian is None else hessian[index])
    state = (minimizer or LBFGS()).init(x, value, gradient, preconditioner)
    return replace(state, index=index)


def run(objective, state, steps, minimizer=None):
    for _ in range(steps):
        state = (minimizer or LBFGS()).step(state, objective)
    return state


@pytest.mark.parametrize("make", PROBLEMS)
def test_finds_known_minima(make):
    objective = make()
    state = run(objective, begin(objective), 150)
    assert state.value.max() < 1e-16
    torch.testing.assert_close(state.x, objective.minimum, rtol=0, atol=1e-7)
    assert (state.predicted_decrease < 1e-14).all()


@pytest.mark.parametrize("make", PROBLEMS)
@pytest.mark.parametrize("history", [1, 3, 20])
def test_values_never_rise_and_state_is_consistent(make, history):
    objective, minimizer = make(), LBFGS(history=history)
    state = begin(objective, minimizer=minimizer)
    for _ in range(40):
        before = state
        state = minimizer.step(state, objective)
        assert (state.value <= before.value).all()
        value, gradient, _ = objective(state.x, state.index)
        for k in range(len(value)):  # each by its own size
            assert_same_to_rounding(state.value[k], value[k])
            assert_same_to_rounding(state.gradient[k], gradient[k], ulps=1e5)
        assert (state.slope <= 0).all()
        rested = state.rejections > 0
        assert torch.equal(state.x[rested], before.x[rested])
        assert (state.step[rested] <= 0.5 * before.step[rested]).all()
        assert (state.step[~rested] == 1).all()


def test_exact_hessian_solves_a_quadratic_in_one_step():
    objective = Quadratics(condition=1e6)
    state = begin(objective, objective.matrix)
    # the Newton decrement is twice what is to be gained, where the model is exact
    torch.testing.assert_close(state.predicted_decrease, state.value, rtol=1e-2, atol=0)
    state = run(objective, state, 1)
    assert (state.rejections == 0).all()
    # the factorisation adds 1e-8 of the mean diagonal
    torch.testing.assert_close(state.x, objective.minimum, rtol=0, atol=1e-1)
    assert run(objective, begin(objective, objective.matrix), 4).value.max() < 1e-12


def test_hessian_that_comes_with_the_objective_replaces_the_old_one():
    class Newton(Quartics):
        def __call__(self, x, index):
            value, gradient, _ = super().__call__(x, index)
            error = x - self.minimum[index]
            return value, gradient, torch.diag_embed(12 * error**2 + 2)

    objective = Newton()
    fast = run(objective, begin(objective), 60)
    assert fast.value.max() < 1e-16
    expected = cholesky(objective(fast.x, fast.index)[2])
    torch.testing.assert_close(fast.preconditioner.factor, expected)


def test_preconditioner_removes_the_condition_number():
    objective = Quadratics(condition=1e8)
    good = run(objective, begin(objective, 3.0 * objective.matrix), 12)
    poor = run(objective, begin(objective), 12)
    assert good.value.max() < 1e-6
    assert poor.value.min() > 1e-6


def test_affine_change_of_variables_changes_nothing():
    # x = T u: gradient T^T g, Hessian T^T H T; steps in u are steps in x
    objective = Rosenbrocks()
    change = torch.tensor([[2.0, 1.0], [0.0, 0.5]])

    class Changed:
        start = torch.linalg.solve(change, objective.start.unsqueeze(2)).squeeze(2)

        def __call__(self, u, index):
            value, gradient, _ = objective(u @ change.T, index)
            return value, gradient @ change, None

    changed = Changed()
    hessian = (change.T @ change).repeat(5, 1, 1)
    plain = run(objective, begin(objective), 10)
    other = run(changed, begin(changed, hessian), 10)
    # the ridge of the factorisation, 1e-8, is all that differs
    torch.testing.assert_close(other.x @ change.T, plain.x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", PROBLEMS)
def test_alone_as_among_others(make):
    objective = make()
    together = run(objective, begin(objective), 12)
    for k in range(len(objective.start)):
        alone = run(objective, begin(objective, chosen=[k]), 12)
        torch.testing.assert_close(alone.x[0], together.x[k], rtol=1e-9, atol=1e-9)
        assert alone.rejections[0] == together.rejections[k]


@pytest.mark.parametrize("make", PROBLEMS)
def test_problems_that_leave_do_not_disturb_the_others(make):
    objective = make()
    whole = begin(objective)
    part = begin(objective)
    keep = torch.arange(len(objective.start)) % 2 == 0
    whole = run(objective, whole, 12)
    part = run(objective, run(objective, part, 5).select(keep), 7)
    assert part.index.tolist() == keep.nonzero().squeeze(1).tolist()
    torch.testing.assert_close(part.x, whole.x[keep], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["value", "gradient"])
def test_values_that_are_not_finite_spoil_only_their_own_problem(bad, where):
    clean = Rosenbrocks()

    class Walled(Rosenbrocks):
        """Not finite beyond x = -1 for problems 1 and 3: the first step is already too long."""

        def __call__(self, x, index):
            value, gradient, _ = super().__call__(x, index)
            hit = (x[:, 0] > -1.0) & ((index == 1) | (index == 3))
            if where == "value":
                value = torch.where(hit, bad, value)
            else:
                gradient = torch.where(hit[:, None], bad, gradient)
            return value, gradient, None

    walled = Walled()
    expected = run(clean, begin(clean), 60)
    state = run(walled, begin(walled), 60)
    free = torch.tensor([0, 2, 4])
    assert_same_to_rounding(state.x[free], expected.x[free])
    assert state.x.isfinite().all()
    assert state.value.isfinite().all()
    assert state.gradient.isfinite().all()
    # they went as far as they could: down, and not through the wall
    assert (state.x[[1, 3], 0] <= -1.0).all()
    assert (state.value[[1, 3]] < begin(clean).value[[1, 3]]).all()


def test_no_decrease_is_called_a_stall_after_so_many_rejections():
    class Wrong:
        """A gradient of the wrong sign."""

        start = torch.ones(2, 3)

        def __call__(self, x, _index):
            return x.square().sum(1), -2 * x, None

    minimizer = LBFGS(max_rejections=5)
    objective = Wrong()
    state = begin(objective, minimizer=minimizer)
    for _ in range(4):
        state = minimizer.step(state, objective)
        assert not minimizer.stalled(state).any()
    state = minimizer.step(state, objective)
    assert minimizer.stalled(state).all()
    assert torch.equal(state.x, objective.start)


def test_at_the_minimum_nothing_moves():
    objective = Quadratics()
    objective.start = objective.minimum.clone()
    state = run(objective, begin(objective), 3)
    assert torch.equal(state.x, objective.minimum)
    assert (state.predicted_decrease == 0).all()


def test_cholesky_of_a_definite_matrix():
    matrix = Quadratics(condition=10.0).matrix
    factor = cholesky(matrix)
    torch.testing.assert_close(factor @ factor.mT, matrix, rtol=0, atol=1e-6)
    assert torch.equal(factor, factor.tril())


def test_cholesky_of_other_matrices_is_usable_and_spoils_no_neighbour():
    good = Quadratics(b=1, m=3).matrix[0]
    matrices = torch.stack(
        [
            good,
            torch.diag(torch.tensor([1.0, -1.0, 2.0])),  # indefinite
            torch.full((3, 3), torch.nan),
            torch.full((3, 3), torch.inf),
            torch.ones(3, 3),  # singular
            1e-30 * good,
        ]
    )
    factors = cholesky(matrices)
    assert factors.isfinite().all()
    assert (factors.diagonal(dim1=1, dim2=2) > 0).all()
    assert_same_to_rounding(factors[0], cholesky(good[None])[0])
    steps = torch.cholesky_solve(torch.ones(6, 3, 1), factors)
    assert (steps.squeeze(2).sum(1) > 0).all()  # downhill
    # where nothing depends on x, nothing has to move
    flat = torch.cholesky_solve(torch.zeros(1, 3, 1), cholesky(torch.zeros(1, 3, 3)))
    assert (flat == 0).all()


@pytest.mark.cuda
def test_on_cuda():
    objective = Rosenbrocks()
    expected = run(objective, begin(objective), 20)
    for name in ("a", "b", "minimum", "start"):
        setattr(objective, name, getattr(objective, name).cuda())
    x = objective.start
    index = torch.arange(5, device="cuda")
    value, gradient, _ = objective(x, index)
    preconditioner = DensePreconditioner.of(identity(x).cuda())
    state = LBFGS().init(x, value, gradient, preconditioner)
    state = run(objective, state, 20)
    assert state.x.is_cuda
    torch.testing.assert_close(state.x.cpu(), expected.x, rtol=1e-6, atol=1e-6)


def test_kronecker_preconditioner_is_the_dense_one_of_the_product():
    generator = torch.Generator().manual_seed(4)
    root = torch.randn(5, 5, generator=generator)
    shared = root @ root.mT + torch.eye(5)
    roots = torch.randn(3, 2, 2, generator=generator)
    each = roots @ roots.mT + torch.eye(2)
    product = torch.stack([torch.kron(shared, matrix) for matrix in each])
    vectors = torch.randn(3, 10, 4, generator=generator)
    fast = KroneckerPreconditioner.of(shared, each)
    torch.testing.assert_close(
        fast.solve(vectors), torch.linalg.solve(product, vectors), rtol=1e-6, atol=1e-7
    )
    chosen = torch.tensor([True, False, True])
    torch.testing.assert_close(
        fast.select(chosen).solve(vectors[chosen]), fast.solve(vectors)[chosen]
    )


def test_low_rank_preconditioner_is_the_dense_one_of_the_product():
    generator = torch.Generator().manual_seed(5)
    root = torch.randn(4, 4, generator=generator)
    shared = root @ root.mT + torch.eye(4)
    for rank in (0, 2, 3):
        basis = torch.linalg.qr(torch.randn(2, 6, rank, generator=generator))[0]
        ridge, weights = torch.tensor([0.5, 2.0]), torch.rand(2, rank, generator=generator) * 9
        low = LowRankPreconditioner(ridge, basis, weights, cholesky(shared[None])[0])
        matrices = ridge[:, None, None] * torch.eye(6) + (basis * weights[:, None]) @ basis.mT
        product = torch.stack([torch.kron(shared, matrix) for matrix in matrices])
        vectors = torch.randn(2, 24, 3, generator=generator)
        torch.testing.assert_close(
            low.solve(vectors), torch.linalg.solve(product, vectors), rtol=1e-6, atol=1e-7
        )
        one = torch.tensor([False, True])
        torch.testing.assert_close(low.select(one).solve(vectors[one]), low.solve(vectors)[one])
        both = low.select(one).join(low.select(~one)).solve(vectors.flip(0))
        torch.testing.assert_close(both, low.solve(vectors).flip(0))


def test_memory_keeps_inner_products_in_other_coordinates():
    generator = torch.Generator().manual_seed(6)
    inserted = torch.randn(7, 4, generator=generator)
    lifted = torch.linalg.pinv(inserted).mT  # V^T W = I
    memory = Memory.none(torch.zeros(2, 12), 5)
    for useful in ((True, True), (True, False), (False, True)):
        move, change = torch.randn(2, 2, 12, generator=generator)
        inverse = 1.0 / (move * change).sum(1)
        memory = memory.push(torch.tensor(useful), move, change, inverse)
    assert memory.length == 3
    assert (memory.curvature[0, 2:] == 0).all()
    assert (memory.curvature[:, :2] != 0).all()
    moved = memory.moved(inserted, lifted)
    for k in range(2):
        inner = (moved.differences[:, k] * moved.gradient_differences[:, k]).sum(1)
        torch.testing.assert_close(1.0 / inner, moved.curvature[:, k])


def test_a_problem_that_is_known_but_for_a_factor_takes_few_steps():
    # a quadratic whose preconditioner is its Hessian times a hundredth, or a hundred
    generator = torch.Generator().manual_seed(7)
    scales = torch.rand(2, 1, generator=generator) + 0.5

    def objective(x, index):
        gradient = scales[index] * x
        return 0.5 * (gradient * x).sum(1), gradient, None

    x, index = torch.randn(2, 8, generator=generator), torch.arange(2)
    value, gradient, _ = objective(x, index)
    for factor in (0.01, 100.0):
        ridge, nothing = factor * scales[:, 0], torch.zeros(2, 4, 0)
        known = LowRankPreconditioner(ridge, nothing, torch.zeros(2, 0), torch.eye(2))
        state = LBFGS().init(x, value, gradient, known)
        for _ in range(8):
            state = LBFGS().step(state, objective)
        assert (state.value < 1e-12 * value).all()
