"""Precision of a Gaussian decoder that falls away from the data, so that its uncertainty grows."""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from geolatent.checks import (
    check_codes,
    check_integer,
    check_number,
    check_tensor,
    requirement,
)

_BLOCK_ELEMENTS = 2**17


class RBFPrecision(nn.Module):
    r"""Positive radial basis function network for the precision of a Gaussian decoder.

    For every output j,

        beta_j(z) = sum_k W_kj exp(-lambda_k |z - c_k|^2) + zeta_j,    sigma_j(z) = beta_j(z)^(-1/2)

    with positive weights W = exp(``log_weights``). Away from all centres c_k the precision falls
    to the floor zeta_j, hence the standard deviation grows to its bound zeta_j^(-1/2).

    Parameters
    ----------
    centers
        The centres c_k in latent space, (K, d).
    bandwidths
        The positive lambda_k, (K,), one over latent units squared.
    output_dim
        Number of outputs D.
    floor
        The positive zeta, a number or (D,), one over output units squared.

    References
    ----------
    G. Arvanitidis, L. K. Hansen, S. Hauberg, "Latent Space Oddity: on the Curvature of Deep
    Generative Models", ICLR 2018, arXiv:1710.11379, section 4.

    Examples
    --------
    >>> network = RBFPrecision(torch.zeros(1, 2), torch.ones(1), output_dim=3, floor=0.25)
    >>> network.std(torch.tensor([[0.0, 0.0], [100.0, 0.0]])).detach()
    tensor([[0.8944, 0.8944, 0.8944],
            [2.0000, 2.0000, 2.0000]])
    """

    centers: Tensor
    bandwidths: Tensor
    floor: Tensor

    def __init__(
        self, centers: Tensor, bandwidths: Tensor, output_dim: int, floor: float | Tensor
    ) -> None:
        super().__init__()
        check_codes("centers", centers)
        check_tensor("bandwidths", bandwidths, f"({len(centers)},)")
        check_integer("output_dim", output_dim)
        if not isinstance(floor, Tensor):
            check_number("floor", floor, above=0.0)
            floor = torch.full((output_dim,), floor, dtype=centers.dtype, device=centers.device)
        if floor.shape != (output_dim,):
            required = f"a number or a tensor of shape ({output_dim},)"
            raise ValueError(requirement("floor", required, tuple(floor.shape)))
        for name, value in (("bandwidths", bandwidths), ("floor", floor)):
            if not bool((value > 0).all()):
                raise ValueError(requirement(name, "positive", float(value.min())))
        self.register_buffer("centers", centers.detach().clone())
        self.register_buffer("bandwidths", bandwidths.detach().clone())
        self.register_buffer("floor", floor.detach().clone())
        self.log_weights = nn.Parameter(
            torch.zeros(len(centers), output_dim, dtype=centers.dtype, device=centers.device)
        )

    @classmethod
    def from_codes(
        cls,
        codes: Tensor,
        n_centers: int,
        output_dim: int,
        scale: float = 1.5,
        floor: float | Tensor = 0.01,
        seed: int = 0,
    ) -> Self:
        r"""Place the centres by k-means and set the bandwidths from the clusters' spread.

        With C_k the codes of cluster k,

            lambda_k = 1/2 (scale / |C_k| sum_{z in C_k} |z - c_k|)^(-2).

        The mean distance within a cluster counts as at least a quarter of its average over all
        codes, so that a cluster of one code, or of equal codes, has a finite bandwidth.

        Parameters
        ----------
        codes
            Latent codes of the training data, (n, d).
        n_centers
            Number of centres K; fewer than there are distinct codes.
        output_dim
            Number of outputs D.
        scale
            Width of the bumps in mean distances within a cluster.
        floor
            The positive zeta, a number or (D,).
        seed
            Seed of k-means.

        Returns
        -------
        RBFPrecision
            With weights 1: call `fit` next.

        Raises
        ------
        ValueError
            Where there are not more distinct codes than centres.

        Examples
        --------
        >>> codes = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
        >>> network = RBFPrecision.from_codes(codes, n_centers=2, output_dim=1)
        >>> network.centers.sort(dim=0).values.T, network.bandwidths  # 1/2 (1.5 * 0.5)^-2
        (tensor([[ 0.5000, 10.5000]]), tensor([0.8889, 0.8889]))
        """
        # imported here: scikit-learn takes over a second, and using a trained model needs none
        from sklearn.cluster import KMeans
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        check_codes("codes", codes)
        check_integer("n_centers", n_centers)
        check_number("scale", scale, above=0.0)
        points = codes.detach().cpu().double().numpy()
        distinct = len(np.unique(points, axis=0))
        if n_centers >= distinct:
            required = f"below the number of distinct codes, {distinct}"
            raise ValueError(requirement("n_centers", required, n_centers))
        # threads add up the clusters' sums in any order; one thread makes the result repeatable
        with threadpool_limits(limits=1):
            clusters = KMeans(n_centers, n_init=4, random_state=seed).fit(points)
        centers, members = clusters.cluster_centers_, clusters.labels_
        distances = np.linalg.norm(points - centers[members], axis=1)
        counts = np.bincount(members, minlength=n_centers)
        spread = np.bincount(members, distances, minlength=n_centers) / np.maximum(counts, 1)
        spread = np.maximum(spread, 0.25 * distances.mean())
        return cls(
            torch.from_numpy(centers).to(codes),
            torch.from_numpy(0.5 / (scale * spread) ** 2).to(codes),
            output_dim,
            floor,
        )

    def basis(self, z: Tensor) -> Tensor:
        """Return the bumps exp(-lambda_k |z - c_k|^2), (n, d) -> (n, K)."""
        offset = z.unsqueeze(-2) - self.centers
        # offset * offset, not a power: the derivative of x**2 would be 0 * inf for huge codes
        return torch.exp(-self.bandwidths * (offset * offset).sum(-1))

    def forward(self, z: Tensor) -> Tensor:
        """Return the precision beta, (n, d) -> (n, D), in one over output units squared."""
        return self.basis(z) @ self.log_weights.exp() + self.floor

    def std(self, z: Tensor) -> Tensor:
        """Return the standard deviation beta^(-1/2), (n, d) -> (n, D), in output units."""
        return self(z).rsqrt()

    @torch.no_grad()
    def fit(self, codes: Tensor, squared_residuals: Tensor, iterations: int = 200) -> Tensor:
        r"""Set the weights by maximum likelihood, with the decoder's mean held fixed.

        Minimises over positive W the convex function, with r the residuals of the mean,

            F(W) = sum_n sum_j 1/2 [beta_j(z_n) r_nj^2 - log beta_j(z_n)].

        Bounding the logarithm of the sum over k from below by Jensen's inequality separates the
        weights, and the minimum of the bound is the multiplicative update

            W_kj <- W_kj sum_n phi_k(z_n) / beta_j(z_n)  /  sum_n phi_k(z_n) r_nj^2,

        which keeps W positive, never increases F and has no step size.

        Parameters
        ----------
        codes
            Latent codes z_n, (n, d).
        squared_residuals
            The squared errors r_nj^2 of the decoder's mean, (n, D); positive, for a residual of
            zero would ask for an infinite precision.
        iterations
            Number of updates.

        Returns
        -------
        Tensor
            F per code before each update, (iterations,); it decreases.

        Examples
        --------
        >>> network = RBFPrecision(torch.zeros(1, 1), torch.ones(1), output_dim=1, floor=0.01)
        >>> _ = network.fit(torch.zeros(5, 1), torch.full((5, 1), 0.25))
        >>> network.std(torch.zeros(1, 1)).detach()
        tensor([[0.5000]])
        """
        check_codes("codes", codes, self.centers.shape[1])
        check_integer("iterations", iterations)
        shape = f"({len(codes)}, {len(self.floor)})"
        check_tensor("squared_residuals", squared_residuals, shape)
        if not bool((squared_residuals > 0).all()):
            smallest_found = float(squared_residuals.min())
            raise ValueError(requirement("squared_residuals", "positive", smallest_found))
        basis = self.basis(codes)
        weights = self.log_weights.exp()
        # a centre that no code is near, or a weight far below the floor, changes nothing; the
        # bounds keep the logarithm of the weights finite
        tiny = torch.finfo(weights.dtype).tiny
        wanted = (basis.T @ squared_residuals).clamp_min(tiny)
        smallest = 1e-4 * self.floor
        total_residuals = squared_residuals.sum(0) @ self.floor
        # blocks of rows whose precisions stay in the processor's cache
        blocks = basis.split(max(1, _BLOCK_ELEMENTS // len(self.floor)))
        history = []
        for _ in range(iterations):
            found = torch.zeros_like(weights)
            log_sum = torch.zeros_like(total_residuals)
            for block in blocks:
                beta = torch.addmm(self.floor, block, weights)
                log_sum += beta.log().sum()
                found.addmm_(block.T, beta.reciprocal_())
            # beta r^2 is linear in the weights, so its sum over the codes is known beforehand
            quadratic = (weights * wanted).sum() + total_residuals
            history.append(0.5 * (quadratic - log_sum) / len(codes))
            weights = torch.maximum(weights * found / wanted, smallest)
        self.log_weights.copy_(weights.log())
        return torch.stack(history)
