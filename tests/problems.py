"""Problems with known answers and solvers of stated accuracy, which the tests cross."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from geolatent import (
    BernoulliPullbackMetric,
    CategoricalPullbackMetric,
    ConformalMetric,
    FirstOrderSolver,
    GaussianFisherRaoMetric,
    GEORCESolver,
    Metric,
    PreconditionedSolver,
    PullbackMetric,
    Solver,
    TensorMetric,
)


def sphere(z):
    """Inverse stereographic projection from the north pole; |z| <= 1 is the lower half."""
    square = z.square().sum(1, keepdim=True)
    return torch.cat([2 * z, square - 1], dim=1) / (square + 1)


def sphere_distance(a, b):
    """Great-circle distance; an arc of angle w has the chord 2 sin(w / 2)."""
    return 2 * ((sphere(a) - sphere(b)).norm(dim=-1) / 2).asin()


def sphere_mean(points, weights):
    """Frechet mean on the unit sphere, by closed-form logarithms and exponentials to rounding."""
    mean = weights @ points
    mean = mean / mean.norm()
    for _ in range(1000):
        cosine = points @ mean
        across = points - cosine[:, None] * mean
        angle = torch.atan2(across.norm(dim=1), cosine)
        logs = angle[:, None] * across / across.norm(dim=1, keepdim=True)
        step = weights @ logs / weights.sum()
        size = step.norm()
        if size < 1e-15:
            break
        mean = size.cos() * mean + size.sin() * step / size
    return mean


def half_plane(z):
    """Poincare's metric |dz|^2 / y^2, y the last of two coordinates or more."""
    return torch.eye(z.shape[1]).to(z) / z[:, -1, None, None] ** 2


def half_plane_distance(a, b):
    """By cosh d = 1 + |a - b|^2 / (2 y y'), that is sinh(d / 2) = |a - b| / (2 sqrt(y y'))."""
    return 2 * ((a - b).norm(dim=1) / (2 * (a[:, -1] * b[:, -1]).sqrt())).asinh()


def sheared(z):
    """A bent map of the plane, so that straight lines of codes are not straight."""
    return torch.stack([z[:, 0] + 0.4 * z[:, 1] ** 2, z[:, 1] + 0.3 * z[:, 0].sin()], dim=1)


def cylinder(z):
    """A cylinder of radius 1.5, by sheared angle and height."""
    angle, height = sheared(z).unbind(1)
    return torch.stack([1.5 * angle.cos(), 1.5 * angle.sin(), height], dim=1)


def cylinder_distance(a, b):
    # unrolled, the cylinder of radius r is the plane (r angle, height); curves that start from
    # the straight line keep its winding, so the angle is not taken modulo 2 pi
    return ((sheared(a) - sheared(b)) * torch.tensor([1.5, 1.0])).norm(dim=1)


class Coupling(nn.Module):
    """A bijection that scales and shifts half of the codes by a ReLU network of the other half."""

    def __init__(self, d, flipped, generator):
        super().__init__()
        self.kept, self.flipped = d // 2, flipped
        sizes = (self.kept, 32, 32, 2 * (d - self.kept))
        layers = [nn.Linear(i, j) for i, j in itertools.pairwise(sizes)]
        for layer in layers:
            with torch.no_grad():
                scale = (2 / layer.in_features) ** 0.5
                layer.weight.copy_(scale * torch.randn(layer.weight.shape, generator=generator))
                layer.bias.copy_(0.3 * torch.randn(layer.bias.shape, generator=generator))
        self.network = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])

    def forward(self, z):
        z = z.flip(1) if self.flipped else z
        kept, moved = z[:, : self.kept], z[:, self.kept :]
        scale, shift = (0.5 * self.network(kept)).chunk(2, dim=1)
        return torch.cat([kept, moved * torch.exp(0.5 * scale.tanh()) + shift], dim=1)


def coupling_flow(d, layers, seed=0):
    """A flow with kinks; under its pull-back the distance of codes is that of their images."""
    generator = torch.Generator().manual_seed(seed)
    flow = nn.Sequential(*(Coupling(d, k % 2 == 1, generator) for k in range(layers)))
    return flow.to(torch.get_default_dtype()).requires_grad_(False)


def cone(z):
    """Distance from the apex and angle, on a cone of half-angle 30 degrees."""
    r, angle = z[:, 0], z[:, 1]
    return torch.stack([0.5 * r * angle.cos(), 0.5 * r * angle.sin(), 0.75**0.5 * r], dim=1)


def cone_distance(a, b):
    # cut open, the cone is a sector of the plane in which the angle shrinks by sin(30 degrees):
    # the law of cosines for the sides r, r' and the angle between them (below 180 degrees)
    between = 0.5 * (a[:, 1] - b[:, 1])
    return (a[:, 0] ** 2 + b[:, 0] ** 2 - 2 * a[:, 0] * b[:, 0] * between.cos()).sqrt()


def folded(z):
    """A sheared sheet of paper, creased by a right angle along a line: an isometry with a kink."""
    across, along = sheared(z).unbind(1)
    return torch.stack([across, across.abs(), 2**0.5 * along], dim=1) / 2**0.5


def folded_distance(a, b):
    return (sheared(a) - sheared(b)).norm(dim=1)


def hill(z):
    """A hill in the way: the straight line over its top is a geodesic, and not the shortest."""
    return torch.cat([z, 3.0 * (-4 * z.square().sum(1, keepdim=True)).exp()], dim=1)


class Counted:
    """A function of codes that counts the rows of its calls."""

    def __init__(self, function):
        self.function, self.rows = function, 0

    def __call__(self, z):
        self.rows += len(z)
        return self.function(z)


def perceptron(seed, n_outputs=5):
    """A small random network of the plane."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, n_outputs))


def normal_heads(z):
    """Mean and standard deviation of a normal distribution of one variable."""
    return z[:, :1], z[:, 1:].exp()


def normal_distance(a, b):
    # Fisher information (dmean^2 + 2 dstd^2) / std^2: with x = mean / sqrt 2 twice the half-plane's
    a, b = (torch.stack([z[:, 0] / 2**0.5, z[:, 1].exp()], dim=1) for z in (a, b))
    return 2**0.5 * half_plane_distance(a, b)


def bernoulli_distance(a, b):
    # independent variables: the arcs 2 |arcsin sqrt p - arcsin sqrt q| add up in squares
    arcs = [2 * torch.sigmoid(z).sqrt().asin() for z in (a, b)]
    return (arcs[0] - arcs[1]).norm(dim=1)


def three_classes(z):
    """Logits of three classes; the codes of the plane are all their probabilities."""
    return nn.functional.pad(z, (0, 1))


def categorical_distance(a, b):
    # twice the arc between the roots of the probabilities, which lie on the unit sphere
    overlap = (three_classes(a).softmax(1) * three_classes(b).softmax(1)).sqrt().sum(1)
    return 2 * overlap.acos()


def ball(dim):
    """Codes in the unit ball."""

    def sample(n):
        way = nn.functional.normalize(torch.randn(n, dim), dim=1)
        return torch.rand(n, 1) ** (1 / dim) * way

    return sample


def box(low, high):
    """Codes between two corners."""

    def sample(n):
        corner = torch.tensor(low)
        return corner + torch.rand(n, len(low)) * (torch.tensor(high) - corner)

    return sample


@dataclass(frozen=True)
class Problem:
    """A metric whose distances are known.

    Attributes
    ----------
    function
        What the metric is made of: a decoder or a tensor field.
    make
        Makes the metric of it, or of it with something around it.
    sample
        Draws n codes (n, d), between any two of which the geodesic is unique.
    distance
        Exact distances, (n,), between codes (n, d) and others.
    isometric
        Whether rotations and translations of the function's values change no length.
    kink
        Whether the function has a kink, at which polygons and splines are less accurate.
    """

    function: Callable[..., Any]
    make: Callable[..., Metric]
    sample: Callable[[int], Tensor]
    distance: Callable[[Tensor, Tensor], Tensor]
    isometric: bool = False
    kink: bool = False

    @property
    def metric(self):
        return self.make(self.function)


MATRIX = torch.randn(20, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SQUARE = box([-1.2, -1.2], [1.2, 1.2])

SPHERE = PullbackMetric(sphere)
HALF_PLANE = TensorMetric(half_plane, dim=2)

PROBLEMS = {
    "sphere": Problem(sphere, PullbackMetric, ball(2), sphere_distance, isometric=True),
    "8-d sphere": Problem(sphere, PullbackMetric, ball(8), sphere_distance, isometric=True),
    "cylinder": Problem(cylinder, PullbackMetric, SQUARE, cylinder_distance, isometric=True),
    "cone": Problem(
        cone, PullbackMetric, box([0.4, -1.5], [2.0, 1.5]), cone_distance, isometric=True
    ),
    "20-d plane": Problem(
        lambda z: z @ MATRIX.to(z),
        PullbackMetric,
        ball(20),
        lambda a, b: ((a - b) @ MATRIX).norm(dim=1),
        isometric=True,
    ),
    "folded plane": Problem(
        folded, PullbackMetric, SQUARE, folded_distance, isometric=True, kink=True
    ),
    "half-plane": Problem(
        half_plane,
        lambda field: TensorMetric(field, dim=2),
        box([-2.0, 0.3], [2.0, 3.0]),
        half_plane_distance,
    ),
    "conformal half-space": Problem(
        lambda z: 1.0 * z,
        lambda f: ConformalMetric(PullbackMetric(f), lambda z: z[:, -1] ** -2),
        box([-1.0, -1.0, 0.4], [1.0, 1.0, 2.0]),
        half_plane_distance,
    ),
    "normal": Problem(normal_heads, GaussianFisherRaoMetric, SQUARE, normal_distance),
    "Bernoulli": Problem(
        torch.sigmoid, BernoulliPullbackMetric, box([-3.0, -3.0], [3.0, 3.0]), bernoulli_distance
    ),
    "Bernoulli, logits": Problem(
        lambda z: 1.0 * z,
        lambda f: BernoulliPullbackMetric(f, output="logits"),
        box([-3.0, -3.0], [3.0, 3.0]),
        bernoulli_distance,
    ),
    "categorical": Problem(
        lambda z: three_classes(z).softmax(1),
        CategoricalPullbackMetric,
        SQUARE,
        categorical_distance,
    ),
    "categorical, logits": Problem(
        three_classes,
        lambda f: CategoricalPullbackMetric(f, output="logits"),
        SQUARE,
        categorical_distance,
    ),
}


@dataclass(frozen=True)
class Accuracy:
    """A solver, and what is promised of it.

    Attributes
    ----------
    solver
        The solver.
    excess
        How much longer than the geodesic its curves may be, relative to it.
    length_tolerance
        To which lengths are measured.
    takes_all
        Whether it takes all its steps whatever it has reached.
    """

    solver: Solver
    excess: float
    length_tolerance: float = 1e-4
    takes_all: bool = False


SOLVERS = {
    # stops where an improvement of 1e-4 is predicted, and lengths are measured to as much; the
    # prediction may be too small by a factor of some units
    "default": Accuracy(PreconditionedSolver(), 5e-4),
    # ten times what it stops at
    "tight": Accuracy(PreconditionedSolver(tolerance=1e-8), 1e-7, 1e-9),
    # what splines of ten control points leave is below the lengths' own tolerance
    "Adam": Accuracy(FirstOrderSolver(), 1e-4, takes_all=True),
    # the same splines; its steps shrink so fast that some of the way may be left
    "Michelis-Becker": Accuracy(FirstOrderSolver.michelis_becker(), 5e-4, takes_all=True),
    # it stops where 3e-4 can be gained among polygons of 100 segments, which have their own error
    "GEORCE": Accuracy(GEORCESolver(), 1.5e-3),
}
TIGHT = SOLVERS["tight"].solver
