"""What is measured of a curve besides its length."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geolatent.checks import check_codes, check_integer, check_tensor, describe, requirement
from geolatent.curves import CubicBSpline
from geolatent.lab.latent_model import LatentModel
from geolatent.metrics.base import Metric
from geolatent.metrics.rows import Rows
from geolatent.priors import log_prior

# points of a curve whose alignment is taken
ALIGNED = 16
# distances to codes that are held in memory at once
_DISTANCES = 2**24


def _midpoints(n: int, curve: CubicBSpline) -> Tensor:
    """Return the middles of n equal intervals of [0, 1]."""
    points = curve.control_points
    return (torch.arange(n, dtype=points.dtype, device=points.device) + 0.5) / n


def _speeds(curve: CubicBSpline, t: Tensor) -> Tensor:
    """Return |gamma'(t)| in the latent space, (B, T), float64."""
    return curve.derivative(t).double().norm(dim=2)


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
    t = _midpoints(check_integer("n_points", n_points), curve)
    points = curve(t)
    metric.check("curve", points[0, :1])
    tensors = Rows.of(metric, points[0]).tensor(points).double()
    finite = torch.isfinite(tensors).flatten(1).all(1)
    eye = torch.eye(curve.dim, dtype=tensors.dtype, device=tensors.device)
    tensors = torch.where(finite[:, None, None, None], tensors, eye)
    values, vectors = torch.linalg.eigh(tensors)
    largest = values[..., -1:]
    precision = torch.finfo(points.dtype).eps
    ratios = (largest / values.clamp_min(precision * largest)).log()
    tangent = curve.derivative(t).double()
    speed = tangent.norm(dim=2)
    tangent = tangent / speed[..., None].clamp_min(torch.finfo(torch.float64).tiny)
    cosines = torch.einsum("btik,bti->btk", vectors, tangent)
    followed = ((cosines.square() * ratios).sum(2) * speed).sum(1)
    possible = (ratios[..., 0] * speed).sum(1)
    # rounding in the eigenvalues of an isotropic tensor is no preference
    decided = finite & (possible > 1e3 * precision * speed.sum(1))
    return torch.where(decided, followed / possible, torch.nan)


def data_distance(curve: CubicBSpline, codes: Tensor, *, n_points: int = 64) -> Tensor:
    r"""Return the mean distance of curves from the data.

    D = integral of min_i |gamma(t) - z_i| ds  /  integral of ds,    ds = |gamma'| dt,

    with the codes z_i of the data; all lengths are Euclidean, in latent units.

    Parameters
    ----------
    curve
        B curves.
    codes
        Codes of the data, (n, d).
    n_points
        Points on each curve, the middles of equal intervals of t.

    Returns
    -------
    Tensor
        Shape (B,), float64; of curves of no length, their distance.
    """
    codes = check_codes("codes", codes, curve.dim).double()
    t = _midpoints(check_integer("n_points", n_points), curve)
    points = curve(t).double()
    rows = max(1, _DISTANCES // len(codes))
    nearest = torch.cat(
        [torch.cdist(part, codes).amin(1) for part in points.flatten(0, 1).split(rows)]
    ).reshape(points.shape[:2])
    speed = _speeds(curve, t).clamp_min(torch.finfo(torch.float64).tiny)
    return (nearest * speed).sum(1) / speed.sum(1)


def prior_density(curve: CubicBSpline, *, n_points: int = 64) -> tuple[Tensor, Tensor]:
    r"""Return mean and minimum along curves of the log density of their codes under N(0, I).

    The mean is integral of log p(gamma(t)) ds / integral of ds, ds = |gamma'| dt.

    Parameters
    ----------
    curve
        B curves.
    n_points
        Points on each curve, the middles of equal intervals of t.

    Returns
    -------
    tuple of Tensor
        Shape (B,) each, float64, in nats.

    Examples
    --------
    >>> line = CubicBSpline.straight(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 0.0]))
    >>> mean, lowest = prior_density(line)  # -log(2 pi) - x^2 / 2, x from -1 to 1
    >>> print(f"{float(mean):.2f} {float(lowest):.2f}")
    -2.00 -2.32
    """
    t = _midpoints(check_integer("n_points", n_points), curve)
    density = log_prior(curve(t).double())
    speed = _speeds(curve, t).clamp_min(torch.finfo(torch.float64).tiny)
    return (density * speed).sum(1) / speed.sum(1), density.amin(1)


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
    """Return the most probable class at equal steps of t, (B, T), as positions of the outputs.

    -1 where the decoded image is not finite.

    Parameters
    ----------
    model
        Decodes the curve.
    classifier
        Images -> scores or log-probabilities (n, K).
    curve
        B curves.
    n_points
        Points on each curve, the ends included.
    """
    classes = []
    for number in range(curve.batch_size):
        images = decode_along(model, curve[number], n_points)[0]
        with torch.no_grad():
            known = images.flatten(1).isfinite().all(1)
            classes.append(torch.where(known, classifier(images).argmax(1), -1))
    return torch.stack(classes)


def class_crossings(classes: Tensor) -> Tensor:
    """Return how often the class changes along curves, (B, T) -> (B,).

    Examples
    --------
    >>> class_crossings(torch.tensor([[3, 3, 5, 5, 3], [1, 1, 1, 1, 1]]))
    tensor([2, 0])
    """
    return (classes[:, 1:] != classes[:, :-1]).sum(1)


def classes_visited(classes: Tensor) -> Tensor:
    """Return the number of different classes along curves, (B, T) -> (B,).

    Examples
    --------
    >>> classes_visited(torch.tensor([[3, 3, 5, 5, 3], [1, 1, 1, 1, 1]]))
    tensor([2, 1])
    """
    ordered = classes.sort(dim=1).values
    return 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(1)


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
    check_tensor("images", images, "of shape (B, T, ...)", (3, 4, 5))
    if images.shape[1] < 2:
        raise ValueError(requirement("images", "sequences of two or more", describe(images)))
    flat = images.flatten(2).double()
    flat = flat - flat.mean(2, keepdim=True)
    norms = flat.norm(dim=2, keepdim=True)
    flat = torch.where(norms > 0, flat / norms.clamp_min(torch.finfo(flat.dtype).tiny), 0.0)
    correlations = (flat @ flat.mT).clamp(-1.0, 1.0)
    return torch.where(known[:, :, None] & known[:, None], correlations, torch.nan)
