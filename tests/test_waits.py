"""How often a solve makes the processor wait for a GPU, counted on a device that is none."""

import warnings
from itertools import pairwise

import pytest
import torch
from pretended import Pretended
from test_counts import random_decoder, random_pairs
from torch import nn

import geolatent as gl
from geolatent.lab.demo import digit_pairs

pytestmark = pytest.mark.usefixtures("float64")

# which pairs leave, and which are due for something: once a step
A_STEP = 1
# which have converged, are rough or flat, and go on; the steps of proofs come on top
A_LEVEL = 4
# checks at the door, how pairs are split, and what a measurement of lengths doubles
A_CALL = 16


def kinked(d):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Linear(d, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)]
    return nn.Sequential(*layers).requires_grad_(False).eval()


def embedded(device):
    model = digit_pairs(1, seed=0).model
    return gl.GaussianPullbackMetric(device.put(model).decode)


# a latent dimension, what makes a metric on a device, and what a call asks more than others
CASES = {
    "smooth": (8, lambda device: gl.PullbackMetric(device.put(random_decoder(8))), 0),
    "kinks": (10, lambda device: gl.PullbackMetric(device.put(kinked(10))), 0),
    "embedded": (2, embedded, 0),
    # eigenvalues of a sketch, twice
    "sketched": (96, lambda device: gl.PullbackMetric(device.put(random_decoder(96))), 2),
    "by speed": (3, lambda _: gl.TensorMetric(conformal, dim=3), 2),
}


def conformal(z):
    return torch.eye(3, dtype=z.dtype, device=z.device) / (1.0 + z.square().sum(1))[:, None, None]


class Here:
    """The processor's own memory."""

    def put(self, value):
        return value


@pytest.mark.parametrize("case", CASES)
def test_a_solve_waits_once_a_step(case):
    d, make, more = CASES[case]
    start, end = random_pairs(2, d)
    solver = gl.PreconditionedSolver(tolerance=3e-3, max_control_points=19)
    expected = gl.solve_geodesic(make(Here()), start, end, solver)
    steps = []
    with Pretended() as device, warnings.catch_warnings():
        warnings.simplefilter("error")
        metric, first, last = make(device), device.put(start), device.put(end)
        gl.solve_geodesic(metric, first[:1], last[:1], solver)  # tries the decoder out
        device.waits.clear()

        def note(progress):
            place = progress.n_control_points, progress.iteration
            steps.append((place, sum(device.waits.values())))

        solution = gl.solve_geodesic(metric, first, last, solver, callback=note)
        waits = sum(device.waits.values())
        found = solution.length.cpu()
        rows = solution.evaluations.equivalents.cpu()
    assert torch.allclose(found, expected.length, rtol=1e-9)
    assert torch.equal(rows, expected.evaluations.equivalents)
    steps = steps[:-1]  # the last is the end
    levels = 1 + sum(after[1] <= before[1] for (before, _), (after, _) in pairwise(steps))
    for (before, first_waits), (after, then) in pairwise(steps):
        if after[1] == before[1] + 1:
            assert then - first_waits <= A_STEP, device.waits
    assert waits <= A_STEP * len(steps) + A_LEVEL * levels + A_CALL + more, device.waits


def test_bases_of_splines_are_made_on_the_processor():
    with Pretended() as device:
        metric = gl.PullbackMetric(device.put(random_decoder(4)))
        start, end = (device.put(z) for z in random_pairs(2, 4))
        gl.solve_geodesic(metric, start, end)
        assert not [place for _, place in device.waits if place.startswith("curves.py")]
        device.waits.clear()
        # what has been sent is not waited for
        gl.CubicBSpline.straight(start, end, 20)
        assert {name for name, _ in device.waits} <= {"_local_scalar_dense"}


def test_the_device_refuses_what_cuda_refuses():
    with Pretended() as device:
        there, here = device.put(torch.ones(2, 3)), torch.ones(2, 3)
        device.waits.clear()
        with pytest.raises(RuntimeError, match="same device"):
            there + here
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert (there + torch.tensor(1.0)).device == there.device  # a number, as CUDA has it
        assert not device.waits
        there[there > 0.0] = 2.0
        assert not device.waits
        assert there[there > 0.0].shape == (6,)
        assert float(there.sum()) == 12.0
        assert [name for name, _ in device.waits] == ["index by a mask", "_local_scalar_dense"]
