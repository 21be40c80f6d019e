"""Lyapunov exponents against closed forms."""

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import geolatent as gl
from geolatent.lab.systems import SYSTEMS

pytestmark = pytest.mark.usefixtures("float64")


@given(
    factors=st.lists(st.floats(0.2, 0.8), min_size=2, max_size=5),
    largest=st.floats(0.1, 3.0),
    signs=st.integers(0, 31),
    seed=st.integers(0, 1000),
)
def test_of_a_linear_map_they_are_the_logarithms_of_its_eigenvalues(factors, largest, signs, seed):
    d = len(factors)
    moduli = largest * torch.tensor([1.0, *factors[1:]]).cumprod(0)
    values = moduli * torch.tensor([-1.0 if signs >> i & 1 else 1.0 for i in range(d)])
    generator = torch.Generator().manual_seed(seed)
    basis = torch.eye(d) + 0.3 * torch.randn(d, d, generator=generator).triu(1)
    matrix = basis @ torch.diag(values) @ torch.linalg.inv(basis)
    # gaps of 0.8: after 100 steps what is left of the beginning is 2e-10
    found = gl.lyapunov_exponents(
        lambda x: x @ matrix.T, torch.zeros(2, d), 20, n_transient=100, time_step=0.5
    )
    expected = moduli.log() / 0.5
    torch.testing.assert_close(found.exponents, expected.expand(2, d), rtol=0, atol=1e-6)
    assert float(found.standard_error.max()) < 1e-6


def test_of_a_rotation_that_shrinks_both_are_its_factor():
    turn = torch.tensor([[math.cos(0.3), -math.sin(0.3)], [math.sin(0.3), math.cos(0.3)]])
    found = gl.lyapunov_exponents(lambda x: 0.7 * x @ turn, torch.randn(1, 2), 50)
    torch.testing.assert_close(found.exponents, torch.full((1, 2), math.log(0.7)))


def test_of_the_full_logistic_map_it_is_log_2():
    # the orbit of 4 x (1 - x) itself would fall on 0 in floating point; of an angle it doubles
    start = torch.rand(50, 1, generator=torch.Generator().manual_seed(1))
    found = gl.lyapunov_exponents(lambda x: 4 * x * (1 - x), start, 2000, n_transient=10)
    assert abs(float(found.exponents.mean()) - math.log(2)) < 1e-3


def test_some_of_them_are_the_first_of_all():
    matrix = torch.randn(4, 4)
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh())
    module[0].weight.data = 3 * matrix
    start = torch.randn(3, 4)
    every = gl.lyapunov_exponents(module, start, 400, n_transient=400)
    some = gl.lyapunov_exponents(module, start, 400, n_transient=400, n_exponents=2)
    assert some.exponents.shape == (3, 2)
    # the directions that they start from are others
    torch.testing.assert_close(some.exponents, every.exponents[:, :2], rtol=0.05, atol=0.02)


def test_lorenz():
    system = SYSTEMS["lorenz"]
    state = system.begin(3000, seed=1)
    # from near a fixed point trajectories take long to reach the attractor
    for _ in range(1000):
        state = system.step(state)
    found = gl.lyapunov_exponents(
        lambda x: system.step(x, 3), state, 200, n_transient=100, time_step=system.time_step
    )
    sums = found.exponents.sum(1)
    torch.testing.assert_close(sums, torch.full_like(sums, -(10 + 1 + 8 / 3)), rtol=0, atol=1e-3)
    largest, flow, _ = found.exponents.mean(0).tolist()
    # Sprott, "Chaos and Time-Series Analysis", 2003: 0.9056, 0, -14.5723
    assert abs(largest - 0.90) < 0.02
    assert abs(flow) < 0.02


def test_the_sum_of_the_pendulums_is_its_damping():
    system = SYSTEMS["pendulum"]
    found = gl.lyapunov_exponents(
        lambda x: system.step(x, 2), system.begin(5), 20, time_step=system.time_step
    )
    sums = found.exponents.sum(1)
    torch.testing.assert_close(sums, torch.full_like(sums, -math.sqrt(9.81) / 2), rtol=0, atol=1e-4)


def test_one_that_is_lost_does_not_touch_the_others():
    start = torch.tensor([[0.1], [0.2], [1e200]])

    def step(x):
        return x + x**3

    with pytest.warns(UserWarning, match="1 of 3 trajectories left the finite numbers"):
        found = gl.lyapunov_exponents(step, start, 20)
    assert found.exponents.isnan().flatten().tolist() == [False, False, True]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = gl.lyapunov_exponents(step, start[:2], 20)
    torch.testing.assert_close(found.exponents[:2], alone.exponents)


def test_single_precision_of_the_map_gives_double_results():
    module = nn.Linear(2, 2, bias=False).float()
    module.weight.data = torch.diag(torch.tensor([0.5, 0.25], dtype=torch.float32))
    found = gl.lyapunov_exponents(module, torch.ones(2), 20, n_transient=40)
    assert found.exponents.dtype == torch.float64
    expected = torch.tensor([[0.5, 0.25]]).log()
    torch.testing.assert_close(found.exponents, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_exponents": 3}, "`n_exponents` should be at most 2"),
        ({"n_steps": 5}, "`n_steps` should be"),
        ({"time_step": 0.0}, "`time_step` should be"),
        ({"step": lambda x: x[:, :1]}, "`step` should be a map"),
        ({"step": 3}, "`step` should be"),
        ({"state": torch.tensor([math.nan, 0.0])}, "`state` should be finite"),
    ],
)
def test_bad_input(options, message):
    arguments = {"step": lambda x: 0.5 * x, "state": torch.ones(2), "n_steps": 20, **options}
    with pytest.raises((ValueError, TypeError), match=message):
        gl.lyapunov_exponents(**arguments)
