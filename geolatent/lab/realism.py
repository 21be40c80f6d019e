"""How near images, or codes, are to samples: nearest distances, balls of neighbours, densities."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from geolatent.checks import check_integer, check_number, check_tensor, describe, requirement

# distances that are held in memory at once
_DISTANCES = 2**24


@dataclass(frozen=True)
class Nearness:
    """How near points are to samples, (n,) each.

    Attributes
    ----------
    distance
        To the nearest sample.
    realism
        R of `Neighbourhoods`: at least 1 within the balls that it looks at.
    inside
        Whether the point is in the ball of a sample.
    """

    distance: Tensor
    realism: Tensor
    inside: Tensor


class Neighbourhoods:
    r"""Balls around samples that reach to the k-th nearest other sample.

    With r_i the distance of the sample x_i from its k-th nearest other sample,

    .. math::

        R(x) = \max_i \frac{r_i}{|x - x_i|}

    is the realism of a point x, the maximum over the samples whose r_i is at most the median. The
    share of points in the union of all balls is their precision.

    Parameters
    ----------
    samples
        Of any shape, (n, ...), which is flattened; n above k.
    k
        The neighbour that a ball reaches to.

    References
    ----------
    Kynkaanniemi, Karras, Laine, Lehtinen, Aila, "Improved precision and recall metric for assessing
    generative models", NeurIPS 2019, https://arxiv.org/abs/1904.06991, section 5 (realism).

    Examples
    --------
    >>> balls = Neighbourhoods(torch.tensor([[0.0], [1.0], [3.0], [10.0]]), k=1)
    >>> balls.radii
    tensor([1., 1., 2., 7.])
    >>> found = balls.nearness(torch.tensor([[1.5], [5.0]]))
    >>> found.distance, found.realism, found.inside
    (tensor([0.5000, 2.0000]), tensor([2.0000, 0.2500]), tensor([True, True]))
    """

    def __init__(self, samples: Tensor, k: int = 3) -> None:
        self.samples = check_tensor("samples", samples, "(n, ...)").flatten(1)
        self.k = check_integer("k", k)
        if len(self.samples) <= k:
            required = f"more than k = {k} samples"
            raise ValueError(requirement("samples", required, describe(samples)))
        # of each sample the nearest is itself
        parts = [part.kthvalue(k + 1, dim=1).values for part in self._distances(self.samples)]
        self.radii = torch.cat(parts)
        self._narrow = self.radii <= self.radii.median()

    def _distances(self, points: Tensor) -> list[Tensor]:
        parts = points.split(max(1, _DISTANCES // len(self.samples)))
        return [torch.cdist(part, self.samples) for part in parts]

    def nearness(self, points: Tensor) -> Nearness:
        """Return how near points (n, ...) are; NaN, and not inside, for those that are not finite.

        The realism of a sample itself is infinite.
        """
        flat = points.flatten(1).to(self.samples)
        finite = flat.isfinite().all(1)
        distance, realism, inside = [], [], []
        for each in self._distances(torch.where(finite[:, None], flat, 0.0)):
            distance.append(each.amin(1))
            realism.append((self.radii[self._narrow] / each[:, self._narrow]).amax(1))
            inside.append((each <= self.radii).any(1))
        return Nearness(
            torch.where(finite, torch.cat(distance), torch.nan),
            torch.where(finite, torch.cat(realism), torch.nan),
            torch.cat(inside) & finite,
        )


class KernelDensity(nn.Module):
    r"""Logarithm of a Gaussian kernel density of codes.

    .. math::

        \log p(z) = \log \frac{1}{n} \sum_i \frac{1}{(2 \pi)^{d/2} \prod_j h_j}
        \exp\left(-\frac{1}{2} \sum_j \frac{(z_j - z_{ij})^2}{h_j^2}\right)

    Parameters
    ----------
    codes
        The codes z_i, (n, d), two or more.
    scale
        The bandwidths h_j are this times n^(-1 / (d + 4)) times the standard deviation of the
        codes' component j: 1 is Scott's rule.

    References
    ----------
    Scott, "Multivariate Density Estimation", Wiley 1992, section 6.3.

    Examples
    --------
    >>> density = KernelDensity(torch.tensor([[-1.0], [1.0]]))
    >>> bool(density(torch.tensor([[1.0]])) > density(torch.tensor([[3.0]])))
    True
    """

    def __init__(self, codes: Tensor, scale: float = 1.0) -> None:
        super().__init__()
        codes = check_tensor("codes", codes, "(n, d)").detach()
        scale = check_number("scale", scale, above=0.0)
        n, d = codes.shape
        deviation = codes.double().std(0) if n > 1 else codes.new_zeros(d)
        if not bool((deviation > 0).all()):
            required = "two codes or more, which differ in every dimension"
            raise ValueError(requirement("codes", required, describe(codes)))
        bandwidth = scale * n ** (-1.0 / (d + 4)) * deviation
        volume = float(bandwidth.log().sum()) + 0.5 * d * math.log(2.0 * math.pi)
        self.constant = -math.log(n) - volume
        self.register_buffer("bandwidth", bandwidth.to(codes))
        # about their mean, so that squares of differences lose no digits
        self.register_buffer("mean", codes.mean(0))
        self.register_buffer("scaled", (codes - codes.mean(0)) / bandwidth.to(codes))
        self.eval()

    def forward(self, z: Tensor) -> Tensor:
        """Return log p(z) in nats, (n, d) -> (n,)."""
        scaled: Tensor = self.scaled  # type: ignore[assignment]
        x = (z - self.mean) / self.bandwidth  # type: ignore[operator]
        squares = x.square().sum(1, keepdim=True) - 2.0 * x @ scaled.mT + scaled.square().sum(1)
        return torch.logsumexp(-0.5 * squares, dim=1) + self.constant
