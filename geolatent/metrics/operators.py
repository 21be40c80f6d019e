"""The metric tensor as an operator on vectors: a matrix in few dimensions, products in many."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from geolatent.checks import requirement
from geolatent.metrics.base import Metric
from geolatent.metrics.rows import Rows

# latent dimensions up to which tensors are formed, where one costs so many rows
FORMED_UP_TO = 512
# latent dimensions beyond which nothing forms them
LARGEST_FORMED = 4096
# products of one solve by conjugate gradients
_MOST_PRODUCTS = 2000
# products (n, d) -> (n, d) of the codes whose numbers are given, (n,)
Product = Callable[[Tensor, Tensor], Tensor]


def is_formed(metric: Metric, dim: int) -> bool:
    """Return whether tensors of the metric are formed in so many dimensions."""
    return dim <= FORMED_UP_TO or metric.tensor_rows(dim) < dim


def check_formed(name: str, dim: int, instead: str, largest: int | None = None) -> None:
    """Raise where codes have too many dimensions for what forms whole tensors."""
    largest = LARGEST_FORMED if largest is None else largest
    if dim > largest:
        required = f"codes of at most {largest} dimensions, of which whole metric tensors "
        required += f"are formed here ({instead})"
        raise ValueError(requirement(name, required, f"{dim} dimensions"))


class MetricOperator(ABC):
    """G at codes (A, ..., d); vectors and covectors are (A, ..., d), float64."""

    @abstractmethod
    def times(self, vectors: Tensor) -> Tensor:
        """Return G v."""

    @abstractmethod
    def solve(
        self, covectors: Tensor, tolerance: float | None = None, guess: Tensor | None = None
    ) -> Tensor:
        """Return G^-1 p; NaN where G is not positive definite.

        Products begin with a guess and go on until |G v - p| is at most ``tolerance`` times |p|; by
        default 1e-10 in float64 and 1e-5 in float32. Matrices are solved with to rounding.
        """

    @abstractmethod
    def __getitem__(self, index: Tensor) -> MetricOperator:
        """Return that of the chosen of the A."""

    def norms(self, vectors: Tensor) -> Tensor:
        """Return |v|_G = sqrt(v^T G v), (A, ...); 0 where rounding makes it less."""
        return (vectors * self.times(vectors)).sum(-1).clamp_min(0.0).sqrt()


def metric_operator(rows: Rows, z: Tensor, pairs: Tensor | None = None) -> Formed | ByProducts:
    """Return G at codes (A, ..., d), formed where `is_formed` says so."""
    if is_formed(rows.metric, z.shape[-1]):
        return Formed(rows.tensor(z, pairs).double())
    if rows.spent.forward.numel():
        places = torch.arange(len(z), device=z.device) if pairs is None else pairs
        each = math.prod(z.shape[1:-1])
        return ByProducts(rows, z, places.repeat_interleave(each).reshape(z.shape[:-1]))
    return ByProducts(rows, z, None)


@dataclass(frozen=True)
class Formed(MetricOperator):
    """Tensors (A, ..., d, d), float64."""

    tensors: Tensor

    def times(self, vectors: Tensor) -> Tensor:
        """Return G v."""
        return torch.einsum("...ij,...j->...i", self.tensors, vectors)

    def norms(self, vectors: Tensor) -> Tensor:
        """Return |v|_G, (A, ...)."""
        return norms(self.tensors, vectors)

    def solve(
        self,
        covectors: Tensor,
        tolerance: float | None = None,  # noqa: ARG002
        guess: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Return G^-1 p by Cholesky factors."""
        return solve_metric(self.tensors, covectors)

    def __getitem__(self, index: Tensor) -> Formed:
        """Return that of the chosen of the A."""
        return Formed(self.tensors[index])


@dataclass(frozen=True)
class ByProducts(MetricOperator):
    """Codes (A, ..., d), at which products with G are taken, and the pairs that they count for."""

    rows: Rows
    z: Tensor
    pairs: Tensor | None

    def product(self, index: Tensor, vectors: Tensor) -> Tensor:
        """Return G v for vectors (n, d), float64, at the codes of the given numbers, (n,)."""
        codes = self.z.reshape(-1, self.z.shape[-1])[index]
        pairs = None if self.pairs is None else self.pairs.reshape(-1)[index]
        return self.rows.product(codes, vectors, pairs).double()

    def times(self, vectors: Tensor) -> Tensor:
        """Return G v."""
        flat = vectors.reshape(-1, vectors.shape[-1])
        every = torch.arange(len(flat), device=flat.device)
        return self.product(every, flat).reshape(vectors.shape)

    def solve(
        self, covectors: Tensor, tolerance: float | None = None, guess: Tensor | None = None
    ) -> Tensor:
        """Return G^-1 p by conjugate gradients."""
        if tolerance is None:
            tolerance = 1e-10 if self.rows.dtype == torch.float64 else 1e-5
        tolerance = max(tolerance, 16.0 * torch.finfo(self.rows.dtype).eps)
        flat = covectors.reshape(-1, covectors.shape[-1])
        begin = None if guess is None else guess.reshape(flat.shape)
        return conjugate_gradients(self.product, flat, tolerance, begin).reshape(covectors.shape)

    def __getitem__(self, index: Tensor) -> ByProducts:
        """Return that of the chosen of the A."""
        pairs = None if self.pairs is None else self.pairs[index]
        return ByProducts(self.rows, self.z[index], pairs)


def norms(tensors: Tensor, vectors: Tensor) -> Tensor:
    """Return |v|_G = sqrt(v^T G v) for (..., d, d) and (..., d); 0 where rounding makes it less."""
    squares = torch.einsum("...i,...ij,...j->...", vectors, tensors, vectors)
    return squares.clamp_min(0.0).sqrt()


def solve_metric(tensors: Tensor, covectors: Tensor) -> Tensor:
    """Return G^-1 p for (..., d, d) and (..., d); NaN where G is not positive definite."""
    factor, info = torch.linalg.cholesky_ex(tensors.double())
    vectors = torch.cholesky_solve(covectors[..., None], factor)[..., 0]
    return torch.where((info == 0)[..., None], vectors, torch.nan)


def conjugate_gradients(
    product: Product, covectors: Tensor, tolerance: float, guess: Tensor | None = None
) -> Tensor:
    """Return G^-1 p for p (n, d), float64; NaN where G is not positive definite or none is found.

    Rows that are done leave the batch.

    References
    ----------
    Hestenes, Stiefel, "Methods of conjugate gradients for solving linear systems", 1952.
    """
    goal = tolerance * covectors.norm(dim=1)
    if guess is None:
        found, residual = torch.zeros_like(covectors), covectors
    else:
        found = torch.where(guess.isfinite(), guess, 0.0)
        every = torch.arange(len(found), device=found.device)
        residual = covectors - product(every, found)
    found[~goal.isfinite()] = torch.nan
    index = (goal.isfinite() & (residual.norm(dim=1) > goal)).nonzero()[:, 0]
    residual = residual[index]
    direction, square = residual, residual.square().sum(1)
    for _ in range(_MOST_PRODUCTS):
        if not index.numel():
            return found
        image = product(index, direction)
        curvature = (direction * image).sum(1)
        positive = curvature > 0  # false for NaN too
        found[index[~positive]] = torch.nan
        step = (square / curvature)[:, None]
        found[index] += step * direction
        residual = residual - step * image
        new_square = residual.square().sum(1)
        direction = residual + (new_square / square)[:, None] * direction
        going = positive & (new_square.sqrt() > goal[index])
        index, residual, direction = index[going], residual[going], direction[going]
        square = new_square[going]
    found[index] = torch.nan
    return found


@dataclass(frozen=True)
class Krylov:
    """Lanczos' bases and matrices of n operators: G Q = Q T + beta_m q_{m+1} e_m^T.

    Attributes
    ----------
    basis
        Q, orthonormal rows (n, m, d).
    values, vectors
        Eigenvalues of T, ascending, (n, m), and eigenvectors in columns, (n, m, m).
    residual
        beta_m, (n,).
    """

    basis: Tensor
    values: Tensor
    vectors: Tensor
    residual: Tensor


def lanczos(
    product: Product, start: Tensor, enough: Callable[[Krylov], bool], most: int, every: int = 8
) -> Krylov:
    """Return Lanczos' bases from vectors (n, d), float64, grown until they are ``enough``.

    Fully orthogonalised, twice. Where a Krylov space is exhausted, it goes on with a random vector
    orthogonal to it, which T is not coupled to. ``enough`` is asked after ``every`` products; they
    end at ``most``, or d.

    References
    ----------
    Lanczos, "An iteration method for the solution of the eigenvalue problem of linear differential
    and integral operators", 1950. Golub, Van Loan, "Matrix Computations", 2013, section 10.3.
    """
    n, d = start.shape
    most = min(most, d)
    generator = torch.Generator().manual_seed(0)
    index = torch.arange(n, device=start.device)
    basis = start.new_zeros(n, most, d)
    diagonal, beside = start.new_zeros(n, most), start.new_zeros(n, most)
    vector = start / start.norm(dim=1, keepdim=True)
    scale = start.new_zeros(n)
    for m in range(most):
        basis[:, m] = vector
        image = product(index, vector)
        scale = torch.maximum(scale, image.norm(dim=1))
        diagonal[:, m] = (vector * image).sum(1)
        known = basis[:, : m + 1]
        rest = _orthogonal(_orthogonal(image, known), known)
        beside[:, m] = rest.norm(dim=1)
        exhausted = beside[:, m] <= 1e-12 * scale
        beside[exhausted, m] = 0.0
        if m + 1 == most or (m + 1) % every == 0:
            found = _krylov(basis[:, : m + 1], diagonal[:, : m + 1], beside[:, : m + 1])
            if m + 1 == most or enough(found):
                return found
        fresh = torch.randn(n, d, generator=generator, dtype=torch.float64, device="cpu").to(
            start.device
        )
        fresh = _orthogonal(_orthogonal(fresh, known), known)
        rest = torch.where(exhausted[:, None], fresh, rest)
        vector = rest / rest.norm(dim=1, keepdim=True)
    raise AssertionError("most is at least 1")  # pragma: no cover


def _orthogonal(vectors: Tensor, basis: Tensor) -> Tensor:
    """Return what vectors (n, d) have beyond an orthonormal basis (n, m, d)."""
    return vectors - torch.einsum("nmd,nm->nd", basis, torch.einsum("nmd,nd->nm", basis, vectors))


def _krylov(basis: Tensor, diagonal: Tensor, beside: Tensor) -> Krylov:
    matrix = torch.diag_embed(diagonal)
    if diagonal.shape[1] > 1:
        inner = beside[:, :-1]
        matrix = matrix + torch.diag_embed(inner, 1) + torch.diag_embed(inner, -1)
    finite = matrix.isfinite().all(2).all(1)
    values, vectors = torch.linalg.eigh(torch.where(finite[:, None, None], matrix, 0.0))
    values = torch.where(finite[:, None], values, torch.nan)
    return Krylov(basis, values, vectors, beside[:, -1])
