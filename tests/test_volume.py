"""Volume and curvature against closed forms."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import HALF_PLANE, SPHERE, cylinder, half_plane, perceptron, sphere
from torch import nn

from geolatent import GaussianPullbackMetric, PullbackMetric, TensorMetric
from geolatent.geometry.curvature import gaussian_curvature, sectional_curvature
from geolatent.geometry.volume import condition_number, magnification_factor, sample_volume

pytestmark = pytest.mark.usefixtures("float64")


def torus(z):
    """Radii 2 and 1: K = cos(v) / (2 + cos(v))."""
    u, v = z[:, 0], z[:, 1]
    ring = 2 + v.cos()
    return torch.stack([ring * u.cos(), ring * u.sin(), v.sin()], dim=1)


SURFACES = {
    "sphere": (SPHERE, lambda z: torch.ones(len(z))),
    "small sphere": (PullbackMetric(lambda z: 0.1 * sphere(z)), lambda z: 100 * torch.ones(len(z))),
    "cylinder": (PullbackMetric(cylinder), lambda z: torch.zeros(len(z))),
    "torus": (PullbackMetric(torus), lambda z: z[:, 1].cos() / (2 + z[:, 1].cos())),
    "half-plane": (HALF_PLANE, lambda z: -torch.ones(len(z))),
    "plane": (PullbackMetric(nn.Identity()), lambda z: torch.zeros(len(z))),
}


@pytest.mark.parametrize("name", SURFACES)
def test_gaussian_curvature(name):
    metric, expected = SURFACES[name]
    z = 0.3 + torch.rand(20, 2)
    torch.testing.assert_close(gaussian_curvature(metric, z), expected(z), rtol=1e-9, atol=1e-9)


def brioschi(metric, row):
    """Brioschi's formula with derivatives of E, F, G from torch.func, for one code."""

    def parts(z):
        tensor = metric.tensor(z[None])[0]
        return torch.stack([tensor[0, 0], tensor[0, 1], tensor[1, 1]])

    E, F, G = parts(row)
    first = torch.autograd.functional.jacobian(parts, row)
    second = torch.stack(
        [torch.autograd.functional.hessian(lambda z, k=k: parts(z)[k], row) for k in range(3)]
    )
    (Eu, Ev), (Fu, Fv), (Gu, Gv) = first
    corner = -0.5 * second[0, 1, 1] + second[1, 0, 1] - 0.5 * second[2, 0, 0]
    one = torch.stack(
        [
            torch.stack([corner, 0.5 * Eu, Fu - 0.5 * Ev]),
            torch.stack([Fv - 0.5 * Gu, E, F]),
            torch.stack([0.5 * Gv, F, G]),
        ]
    )
    zero = torch.zeros(())
    two = torch.stack(
        [
            torch.stack([zero, 0.5 * Ev, 0.5 * Gu]),
            torch.stack([0.5 * Ev, E, F]),
            torch.stack([0.5 * Gu, F, G]),
        ]
    )
    return (torch.det(one) - torch.det(two)) / (E * G - F**2) ** 2


def test_gaussian_curvature_equals_brioschi():
    heads = nn.Linear(2, 4)
    metrics = [
        PullbackMetric(perceptron(0)),
        GaussianPullbackMetric(lambda z: (heads(z).sin(), heads(z).square())),
        GaussianPullbackMetric(lambda z: (heads(z).sin(), heads(z).square()), nn.Linear(4, 3)),
    ]
    for metric in metrics:
        z = torch.randn(3, 2)
        expected = torch.stack([brioschi(metric, row) for row in z]).detach()
        torch.testing.assert_close(gaussian_curvature(metric, z), expected, rtol=1e-8, atol=1e-9)


@settings(max_examples=8)
@given(st.integers(2, 5), st.integers(0, 1000))
def test_constant_sectional_curvature(dim, seed):
    generator = torch.Generator().manual_seed(seed)
    z, u, v = torch.randn(3, 4, dim, generator=generator, dtype=torch.float64)
    one = torch.ones(4, dtype=torch.float64)
    found = sectional_curvature(SPHERE, z, u, v)
    torch.testing.assert_close(found, one, rtol=1e-8, atol=0)
    metric = TensorMetric(half_plane, dim=dim)
    found = sectional_curvature(metric, z.abs() + 0.2, u, v)
    torch.testing.assert_close(found, -one, rtol=1e-8, atol=0)


def test_sectional_curvature_depends_on_the_plane_alone():
    metric = PullbackMetric(lambda z: torch.cat([z, z.square(), z[:, :1] * z[:, 1:]], dim=1))
    z, u, v = torch.randn(3, 6, 3)
    other = sectional_curvature(metric, z, u, v)
    torch.testing.assert_close(sectional_curvature(metric, z, 2 * u - v, 3 * v + u), other)
    assert sectional_curvature(metric, z, u, 2 * u).isnan().all()


def test_magnification_and_condition_number():
    matrix = torch.randn(5, 3)
    metric = PullbackMetric(lambda z: z @ matrix.mT)
    values = torch.linalg.svdvals(matrix)
    z = torch.randn(4, 3)
    torch.testing.assert_close(magnification_factor(metric, z), values.prod().expand(4))
    torch.testing.assert_close(
        condition_number(metric, z), (values[0] / values[-1]).square().expand(4)
    )
    # 4 / (1 + |z|^2)^2 on the sphere
    plane = torch.randn(6, 2)
    expected = 4 / (1 + plane.square().sum(1)) ** 2
    torch.testing.assert_close(magnification_factor(SPHERE, plane), expected)
    flat = PullbackMetric(lambda z: z * torch.tensor([1.0, 0.0]))
    assert torch.equal(magnification_factor(flat, plane), torch.zeros(6))
    assert (condition_number(flat, plane) == torch.inf).all()
    assert magnification_factor(SPHERE, plane.float()).dtype == torch.float32


def test_sample_by_volume_of_the_half_plane():
    # density 1 / y^2 on [0, 1] x [1, 3]: y has the distribution function (1 - 1 / y) / (2 / 3)
    sample = sample_volume(HALF_PLANE, torch.tensor([0.0, 1.0]), torch.tensor([1.0, 3.0]), 4000)
    assert sample.codes.shape == (4000, 2)
    uniform = (1 - 1 / sample.codes[:, 1]) * 1.5
    for values in (uniform, sample.codes[:, 0]):
        gap = (values.sort().values - torch.arange(1, 4001) / 4000).abs().max()
        assert gap < 1.63 / math.sqrt(4000)  # Kolmogorov-Smirnov at 1 per cent
    assert sample.volume == pytest.approx(2 / 3, abs=4 * sample.standard_error)
    assert sample.acceptance == pytest.approx(1 / 3, rel=0.05)


def test_sample_by_weighted_volume():
    metric = PullbackMetric(nn.Identity())
    low, high = torch.zeros(1), torch.ones(1)
    sample = sample_volume(metric, low, high, 3000, weight=lambda z: 2 * z[:, 0], seed=1)
    assert sample.codes.mean() == pytest.approx(2 / 3, abs=4 * (1 / 18 / 3000) ** 0.5)
    assert sample.volume == pytest.approx(1.0, abs=4 * sample.standard_error)
    again = sample_volume(metric, low, high, 3000, weight=lambda z: 2 * z[:, 0], seed=1)
    assert torch.equal(sample.codes, again.codes)


def test_sample_gives_up():
    with pytest.raises(RuntimeError, match="64 proposals gave"):
        sample_volume(
            HALF_PLANE,
            torch.tensor([0.0, 0.001]),
            torch.tensor([1.0, 3.0]),
            1000,
            max_proposals=64,
        )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda z: condition_number(SPHERE, z[0]), ValueError, "`z`"),
        (lambda z: gaussian_curvature(SPHERE, z.repeat(1, 2)), ValueError, "`z`"),
        (
            lambda z: sectional_curvature(SPHERE, z, z, z[:1]),
            ValueError,
            "`v`.*shape of `z`",
        ),
        (lambda z: sample_volume(SPHERE, z[0], z[0], 3), ValueError, "`high`"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.ones(3, 2))
