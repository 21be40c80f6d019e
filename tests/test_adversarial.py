"""Decoders that mislead autograd are solved right or refused in words; none has a silent zero."""

import shutil
import warnings

import pytest
import torch
from adversarial import DIM, GLOBAL, REFUSED, SOLVED, network

import geolatent as gl

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:.*forward-mode"),
    pytest.mark.filterwarnings("ignore:.*cannot be batched"),
    pytest.mark.filterwarnings("ignore:.*torch.jit"),
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
    pytest.mark.filterwarnings("ignore:Sparse"),
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad"),
    pytest.mark.filterwarnings("ignore:The .grad attribute"),
]

CODES = torch.tensor([[0.3, -0.7, 0.2], [0.1, 1.0, -0.4]], dtype=torch.float64)


def by_quotients(function, z):
    """Return J^T J by central differences."""
    step = 1e-5
    columns = []
    for axis in torch.eye(DIM):
        with torch.no_grad():
            change = (function(z + step * axis) - function(z - step * axis)).detach()
        columns.append(change.flatten(1) / (2.0 * step))
    full = torch.stack(columns, dim=2)
    return full.mT @ full


def made(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


def check_solved(function):
    metric = gl.PullbackMetric(function)
    kept = CODES.clone()
    expected = by_quotients(lambda z: function(z.clone()), CODES)
    size = float(expected.abs().max())
    for _ in range(4):
        found = metric.tensor(CODES).detach()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * size)
        squares = torch.einsum("ni,nij,nj->n", CODES, expected, CODES)
        found = metric.quadratic(CODES, CODES).detach()
        torch.testing.assert_close(found, squares, rtol=0, atol=1e-6 * size)
    assert torch.equal(CODES, kept)
    solution = gl.solve_geodesic(metric, CODES[:1], CODES[1:])
    assert (solution.length > 0).all()
    assert (solution.length <= solution.straight_length).all()


def test_there_are_many_cases():
    assert len(SOLVED) + len(REFUSED) >= 65


@pytest.mark.parametrize("case", SOLVED)
def test_solved_right(case):
    check_solved(made(SOLVED[case]))


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_words(case):
    GLOBAL["scale"] = 1.0
    for call in (
        lambda metric: metric.tensor(CODES),
        lambda metric: gl.solve_geodesic(metric, CODES[:1], CODES[1:]),
    ):
        function = made(REFUSED[case])
        with pytest.raises((ValueError, TypeError), match=r"Parameter `.*` should be .* Found `"):
            call(gl.PullbackMetric(function))


def test_compiled():
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("needs a compiler")
    check_solved(torch.compile(network().requires_grad_(False), backend="eager"))
