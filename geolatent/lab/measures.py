"""What is measured of a curve besides its length."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from geolatent.checks import check_codes, check_integer, check_tensor, describe, requirement
from geolatent.curves import CubicBSpline
from geolatent.interpolations import slerp_curve
from geolatent.lab.latent_model import LatentModel
from geolatent.lengths import measure as measure_lengths
from geolatent.metrics.base import Metric
from geolatent.metrics.rows import Rows
from geolatent.priors import log_prior

# curves -> columns of the table, B values each
Quantity = Callable[[CubicBSpline], Mapping[str, Tensor]]
# the same of straight lines and geodesics
Measure = Callable[[CubicBSpline, CubicBSpline], Mapping[str, Any]]

# points of a curve whose alignment is taken
ALIGNED = 16
# distances to codes that are held in memory at once
_DISTANCES = 2**24


def slerp_beside(line: CubicBSpline) -> CubicBSpline:
    """Return `slerp` between the ends of straight lines."""
    return slerp_curve(line.control_points[:, 0], line.control_points[:, -1])


def straight_and_slerp(curve: CubicBSpline) -> tuple[CubicBSpline, CubicBSpline]:
    """Return the straight lines and `slerp` between the ends of curves."""
    ends = curve.control_points
    line = CubicBSpline.straight(ends[:, 0], ends[:, -1])
    return line, slerp_beside(line)


def measure_along(quantities: Sequence[Quantity], *, with_slerp: bool = True) -> Measure:
    """Return the measure of quantities along the straight lines, `slerp` and the geodesics.

    The columns of a quantity ``name`` are ``straight_name``, ``slerp_name`` and ``name``.
    """

    def measure(line: CubicBSpline, curve: CubicBSpline) -> Mapping[str, Tensor]:
        curves = {"straight_": line} | ({"slerp_": slerp_beside(line)} if with_slerp else {})
        return {
            prefix + name: value
            for prefix, one in (curves | {"": curve}).items()
            for quantity in quantities
            for name, value in quantity(one).items()
        }

    return measure


def measure_slerp(metric: Metric, length_tolerance: float = 1e-4) -> Measure:
    """Return the measure that adds the columns ``slerp_length`` and ``slerp_relative_improvement``.

    The improvement is over the straight line, negative where `slerp` is longer.
    """

    def measure(line: CubicBSpline, _curve: CubicBSpline) -> Mapping[str, Tensor]:
        rows = Rows.of(metric, line.control_points[:, 0]).counting(line.batch_size)
        measured = measure_lengths(rows, [line, slerp_beside(line)], tolerance=length_tolerance)
        straight, length = measured.length
        improvement = torch.where(straight == 0, 0.0, (straight - length) / straight)
        return {"slerp_length": length, "slerp_relative_improvement": improvement}

    return measure


def _midpoints(n_points: int, curve: CubicBSpline) -> Tensor:
    """Return the middles of equal intervals of [0, 1]."""
    n, points = check_integer("n_points", n_points), curve.control_points
    return (torch.arange(n, dtype=points.dtype, device=points.device) + 0.5) / n


def _along(
    curve: CubicBSpline, values: Callable[[Tensor], Tensor], n_points: int
) -> tuple[Tensor, Tensor]:
    """Return values (B, T) at points (B, T, d) of curves, and their means by length, (B,)."""
    t = _midpoints(n_points, curve)
    found = values(curve(t).double())
    speed = curve.derivative(t).double().norm(dim=2).clamp_min(torch.finfo(torch.float64).tiny)
    return found, (found * speed).sum(1) / speed.sum(1)


def eigen(metric: Metric, codes: Tensor, name: str = "codes") -> tuple[Tensor, Tensor]:
    """Return the eigenvalues l_1 <= ... <= l_d of the metric, and its unit eigenvectors.

    Parameters
    ----------
    metric
        The metric G.
    codes
        Where, (..., d).
    name
        What errors call the codes.

    Returns
    -------
    tuple of Tensor
        Shapes (..., d) and (..., d, d), the eigenvectors in columns, float64. Eigenvalues below the
        largest times the precision of the codes' dtype count as that. NaN where G is not finite.
    """
    flat = codes.reshape(-1, codes.shape[-1])
    metric.check(name, flat[:1])
    tensors = Rows.of(metric, flat).tensor(codes).double()
    known = tensors.isfinite().flatten(-2).all(-1)[..., None]
    eye = torch.eye(flat.shape[1], dtype=tensors.dtype, device=tensors.device)
    values, vectors = torch.linalg.eigh(torch.where(known[..., None], tensors, eye))
    values = torch.maximum(values, torch.finfo(codes.dtype).eps * values[..., -1:])
    return torch.where(known, values, torch.nan), torch.where(known[..., None], vectors, torch.nan)


def plane_grid(
    low: Tensor, high: Tensor, resolution: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return z_1 (columns) and z_2 (rows) of a grid between two corners, and its points by rows.

    Shapes (R,), (R,) and (R R, 2) for the resolution R.
    """
    first, second = (
        torch.linspace(float(a), float(b), resolution, dtype=dtype)
        for a, b in zip(low, high, strict=True)
    )
    return first, second, torch.cartesian_prod(second, first).flip(1)


def alignment(metric: Metric, curve: CubicBSpline, *, n_points: int = ALIGNED) -> Tensor:
    r"""Return how far curves follow the metric's smallest eigenvectors, in [0, 1].

    With the eigenvalues l_1 <= ... <= l_d and unit eigenvectors e_1, ..., e_d of G(gamma(t)), and
    the unit tangent u = gamma' / |gamma'|,

        A = integral of sum_k (u . e_k)^2 log(l_d / l_k) ds  /  integral of log(l_d / l_1) ds,

    ds = |gamma'| dt: squared cosines, averaged along the curve, each weighted by the logarithm of
    its own condition number. A is 1 for a curve that follows e_1 wherever G distinguishes
    directions, 0 for one that follows e_d. Where G is a multiple of the identity all directions are
    equal, and the point has no weight. A does not depend on the parametrisation, on the sign of the
    eigenvectors or on their choice where eigenvalues are equal.

    The idea is the "curve measure" of the code of Michelis and Becker, which takes the cosine with
    e_1 alone, weighted by l_d / l_1. Logarithms keep a few nearly singular points from deciding,
    and the other eigenvectors count by their own eigenvalues.

    Parameters
    ----------
    metric
        The metric G.
    curve
        B curves.
    n_points
        Points on each curve, the middles of equal intervals of t: d forward rows each.

    Returns
    -------
    Tensor
        Shape (B,), float64. NaN where G is isotropic along the whole curve, or not finite, and for
        curves of no length. Eigenvalues below the largest times the dtype's precision count as
        that.

    References
    ----------
    Michelis, Becker, "On Linear Interpolation in the Latent Space of Deep Generative Models",
    2021, https://arxiv.org/abs/2105.03663.

    Examples
    --------
    >>> from geolatent import TensorMetric
    >>> metric = TensorMetric(lambda z: torch.diag(torch.tensor([100.0, 1.0])).expand(
    ...     len(z), 2, 2), dim=2)
    >>> ends = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    >>> alignment(metric, CubicBSpline.straight(0 * ends, ends)).float()
    tensor([0.0000, 0.5000, 1.0000])
    """
    t = _midpoints(n_points, curve)
    values, vectors = eigen(metric, curve(t), "curve")
    ratios = (values[..., -1:] / values).log()
    tangent = curve.derivative(t).double()
    speed = tangent.norm(dim=2)
    tangent = tangent / speed[..., None].clamp_min(torch.finfo(torch.float64).tiny)
    cosines = torch.einsum("btik,bti->btk", vectors, tangent)
    followed = ((cosines.square() * ratios).sum(2) * speed).sum(1)
    possible = (ratios[..., 0] * speed).sum(1)
    # rounding in the eigenvalues of an isotropic tensor is no preference
    decided = possible > 1e3 * torch.finfo(t.dtype).eps * speed.sum(1)
    return torch.where(decided, followed / possible, torch.nan)


def alignment_with(metric: Metric) -> Quantity:
    """Return the quantity ``alignment`` of a metric."""
    return lambda curve: {"alignment": alignment(metric, curve)}


def data_distance(curve: CubicBSpline, codes: Tensor, *, n_points: int = 64) -> Tensor:
    r"""Return the mean distance of curves from the data.

    D = integral of min_i |gamma(t) - z_i| ds  /  integral of ds,    ds = |gamma'| dt,

    with the codes z_i of the data, (n, d); all lengths are Euclidean, in latent units.
    They are taken at the middles of equal intervals of t. Shape (B,), float64; of curves of no
    length, their distance.
    """
    codes = check_codes("codes", codes, curve.dim).double()

    def nearest(points: Tensor) -> Tensor:
        parts = points.flatten(0, 1).split(max(1, _DISTANCES // len(codes)))
        return torch.cat([torch.cdist(part, codes).amin(1) for part in parts]).reshape(
            points.shape[:2]
        )

    return _along(curve, nearest, n_points)[1]


def prior_densities(
    curve: CubicBSpline, *, prior: str = "normal", n_points: int = 64
) -> dict[str, Tensor]:
    r"""Return mean and minimum along curves of the log density of their codes under the prior.

    The mean is integral of log p(gamma(t)) ds / integral of ds, ds = |gamma'| dt, over the middles
    of equal intervals of t.

    Returns
    -------
    dict
        ``log_density`` and ``lowest_log_density``, shape (B,) each, float64, in nats.

    Examples
    --------
    >>> line = CubicBSpline.straight(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 0.0]))
    >>> found = prior_densities(line)  # -log(2 pi) - x^2 / 2, x from -1 to 1
    >>> {name: round(float(value), 2) for name, value in found.items()}
    {'log_density': -2.0, 'lowest_log_density': -2.32}
    """
    density, mean = _along(curve, lambda points: log_prior(points, prior), n_points)
    return {"log_density": mean, "lowest_log_density": density.amin(1)}


def decode_along(model: LatentModel, curve: CubicBSpline, n_points: int) -> Tensor:
    """Return decoded (mean) images at equal steps of t, ends included, (B, T, ...)."""
    points = curve.control_points
    t = torch.linspace(
        0.0, 1.0, check_integer("n_points", n_points, 2), dtype=points.dtype, device=points.device
    )
    images = model.images(curve(t).flatten(0, 1))
    return images.reshape(curve.batch_size, n_points, *images.shape[1:])


def classes_along(
    model: LatentModel, classifier: nn.Module, curve: CubicBSpline, n_points: int = 128
) -> Tensor:
    """Return the most probable class at equal steps of t, ends included, (B, T).

    It is a position among the outputs of a classifier of images, scores or log-probabilities
    (n, K); -1 where the decoded image is not finite.
    """
    classes = []
    for number in range(curve.batch_size):
        scores, known = class_scores(classifier, decode_along(model, curve[number], n_points)[0])
        classes.append(torch.where(known, scores.argmax(1), -1))
    return torch.stack(classes)


@torch.no_grad()
def class_scores(classifier: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return a classifier's scores of images, (n, K), and which images are finite, (n,).

    Scores of those that are not are NaN.
    """
    known = images.flatten(1).isfinite().all(1)
    scores = classifier(torch.where(known[:, None, None, None], images, 0.0))
    return torch.where(known[:, None], scores, torch.nan), known


def confidences(scores: Tensor) -> Tensor:
    """Return the largest class probability of scores or log-probabilities, (n, K) -> (n,).

    Examples
    --------
    >>> confidences(torch.tensor([[0.0, 0.0], [0.0, 100.0]]))
    tensor([0.5000, 1.0000])
    """
    return scores.softmax(1).amax(1)


def class_counts(classes: Tensor) -> dict[str, Tensor]:
    """Return how often the class changes along curves (B, T), and how many different ones it is.

    Returns
    -------
    dict
        ``crossings`` and ``classes``, (B,) each; NaN where a class on the way is not known, -1.

    Examples
    --------
    >>> counts = class_counts(torch.tensor([[3, 3, 5, 5, 3], [1, 1, 1, 1, 1], [1, 1, -1, 2, 2]]))
    >>> counts["crossings"], counts["classes"]
    (tensor([2., 0., nan]), tensor([2., 1., nan]))
    """
    known = (classes >= 0).all(1)
    changes = {"crossings": classes.diff(dim=1), "classes": classes.sort(dim=1).values.diff(dim=1)}
    counts = {name: (change != 0).sum(1) for name, change in changes.items()}
    counts["classes"] += 1
    return {name: torch.where(known, count, torch.nan) for name, count in counts.items()}


def correlation_matrices(images: Tensor) -> Tensor:
    r"""Return how alike the images of sequences are, each with each.

    C_ij = <x_i - m_i, x_j - m_j> / (|x_i - m_i| |x_j - m_j|),    m_i the mean pixel of x_i.

    The variance of the entries of C tells how unevenly a sequence changes: that of one that stays
    and then jumps is large.

    Parameters
    ----------
    images
        Sequences of T images, (B, T, ...).

    Returns
    -------
    Tensor
        Shape (B, T, T), in [-1, 1], float64; 0 beside an image of one grey value, NaN beside one
        that is not finite.

    References
    ----------
    Michelis, Becker, "On Linear Interpolation in the Latent Space of Deep Generative Models",
    2021, https://arxiv.org/abs/2105.03663; their code leaves the mean in.
    """
    known = images.flatten(2).isfinite().all(2)
    images = torch.where(images.isfinite(), images, 0.0)
    check_tensor("images", images, "(B, T, D, ...)")
    if images.shape[1] < 2:
        raise ValueError(requirement("images", "sequences of two or more", describe(images)))
    flat = images.flatten(2).double()
    flat = flat - flat.mean(2, keepdim=True)
    norms = flat.norm(dim=2, keepdim=True)
    flat = torch.where(norms > 0, flat / norms.clamp_min(torch.finfo(flat.dtype).tiny), 0.0)
    correlations = (flat @ flat.mT).clamp(-1.0, 1.0)
    return torch.where(known[:, :, None] & known[:, None], correlations, torch.nan)
