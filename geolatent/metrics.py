"""Riemannian metrics on a latent space: pull-backs through decoders, or any tensor field."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from geolatent.checks import (
    check_alike,
    check_choice,
    check_codes,
    check_function,
    check_integer,
    describe,
    requirement,
)
from geolatent.chords import Chords
from geolatent.differences import check_gradient
from geolatent.jacobians import Map
from geolatent.rows import check_rows, neighbour

# codes of one call at which a tensor field is looked at
_CHECKED_CODES = 256


class Metric(ABC):
    """A Riemannian metric z -> G(z) on R^d.

    Subclasses give ``_tensor`` and ``_quadratic`` for codes that are known to be good; the public
    methods check their input. A metric that is the pull-back of the Euclidean metric by one map F,
    G = J_F^T J_F, also gives that map as ``immersion``: path energies then need only values of F.

    Attributes
    ----------
    dim
        Latent dimension d where the metric fixes it, else None.
    immersion
        The map F with G = J_F^T J_F, or None.
    quadratic_cost
        What one row of ``quadratic`` evaluates: one JVP row, or one forward row.
    """

    dim: int | None = None
    immersion: Map | None = None
    quadratic_cost: Literal["jvp", "forward"] = "jvp"

    @abstractmethod
    def _tensor(self, z: Tensor) -> Tensor: ...

    @abstractmethod
    def _quadratic(self, z: Tensor, v: Tensor) -> Tensor: ...

    @property
    def chords(self) -> Chords | None:
        """How outputs give lengths: None where only the speed does. Known once `check` has run."""
        return None if self.immersion is None else Chords(self.immersion)

    def tensor_rows(self, dim: int) -> int:
        """Forward rows that one metric tensor counts as."""
        return dim

    def row_width(self, z: Tensor) -> int:
        """Return about how many numbers one row makes at once, from which budgets are chosen.

        To be given by metrics that make more than their immersion's output, or have none.
        """
        return z.shape[1] if self.immersion is None else self.immersion.width(z)

    def check(self, name: str, z: Tensor) -> None:
        """Evaluate the metric's functions on codes from outside; errors name ``name``."""
        if self.immersion is not None:
            self.immersion.check(name, z)

    def check_definite(self, name: str, z: Tensor) -> None:  # noqa: B027
        """Raise where the metric is negative in a direction at codes from outside.

        For those who give the metric itself; what is a sum of squares cannot be. Errors name
        ``name``.
        """

    def tensor(self, z: Tensor) -> Tensor:
        """Return the metric tensors G(z).

        Parameters
        ----------
        z
            Codes, shape (n, d).

        Returns
        -------
        Tensor
            Shape (n, d, d), symmetric, in squared units of the decoder's output.

        Raises
        ------
        TypeError, ValueError
            Where ``z`` is no finite floating-point tensor of that shape.
        """
        z = check_codes("z", z, self.dim)
        self.check("z", z[:1].detach())
        return self._tensor(z)

    def quadratic(self, z: Tensor, v: Tensor) -> Tensor:
        """Return the quadratic forms v^T G(z) v, differentiable in ``z`` and ``v``.

        Parameters
        ----------
        z, v
            Codes and tangent vectors, shape (n, d) each.

        Returns
        -------
        Tensor
            Shape (n,), squared lengths of the tangent vectors.

        Raises
        ------
        TypeError, ValueError
            Where the tensors are not finite or their shapes, dtypes or devices differ.
        """
        z = check_codes("z", z, self.dim)
        v = check_codes("v", v, z.shape[1])
        check_alike("v", v, "z", z)
        if v.shape != z.shape:
            raise ValueError(
                requirement("v", f"of the shape of `z`, {tuple(z.shape)}", describe(v))
            )
        self.check("z", z[:1].detach())
        return self._quadratic(z, v)


def indefinite(tensors: Tensor) -> Tensor:
    """Return which symmetric matrices (..., d, d) have an eigenvalue negative beyond rounding.

    Beyond the square root of the type's precision, as a part of the largest entry.
    """
    scale = tensors.abs().amax((-2, -1))
    eye = torch.eye(tensors.shape[-1], dtype=torch.float64, device=tensors.device)
    floor = (torch.finfo(tensors.dtype).eps ** 0.5 * scale).double()[..., None, None] * eye
    failed = torch.linalg.cholesky_ex(tensors.double() + floor)[1] > 0
    return failed & scale.isfinite() & (scale > 0)


def negative(squares: Tensor) -> Tensor:
    """Return which rows of values v^T G v, (..., Q), have one that is negative beyond rounding.

    Beyond the square root of the type's precision, as a part of the row's largest value.
    """
    scale = squares.abs().nan_to_num(0.0, 0.0, 0.0).amax(-1, keepdim=True)
    return (squares < -(torch.finfo(squares.dtype).eps ** 0.5) * scale).any(-1)


def check_metric(value: object) -> Metric:
    """Return ``value``, a metric."""
    if not isinstance(value, Metric):
        raise TypeError(requirement("metric", "a geolatent Metric", describe(value)))
    return value


class _ImmersedMetric(Metric):
    """G = J_F^T J_F for one map F."""

    def __init__(self, immersion: Map) -> None:
        self.immersion: Map = immersion

    def _tensor(self, z: Tensor) -> Tensor:
        return _gram(self.immersion.columns(z)[1])

    def _quadratic(self, z: Tensor, v: Tensor) -> Tensor:
        return self.immersion.jvp(z, v)[1].square().sum(1)


class PullbackMetric(_ImmersedMetric):
    """Pull-back metric of a deterministic decoder f, G(z) = J_f^T J_f.

    With a feature map h on the decoder's output, G = J_f^T J_h^T J_h J_f, J_h at f(z).

    Parameters
    ----------
    decoder
        f: (n, d) -> (n, ...), any module or function whose rows do not depend on one another.
    features
        h: takes what the decoder returns, gives (n, ...).

    Raises
    ------
    TypeError, ValueError
        Where a function is not callable, a module is in training mode with BatchNorm or Dropout,
        or (at the first use) returns something else than a floating-point tensor of n rows.

    Examples
    --------
    >>> decoder = lambda z: torch.stack([z[:, 0], z[:, 1], z[:, 0] * z[:, 1]], dim=1)
    >>> metric = PullbackMetric(decoder)
    >>> metric.tensor(torch.tensor([[1.0, 2.0]]))
    tensor([[[5., 2.],
             [2., 2.]]])
    >>> metric.quadratic(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, -1.0]]))
    tensor([3.])

    References
    ----------
    Tosi, Hauberg, Vellido, Lawrence, "Metrics for Probabilistic Geometries", UAI 2014,
    https://arxiv.org/abs/1411.7432.
    """

    def __init__(
        self,
        decoder: Callable[[Tensor], Tensor],
        features: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.decoder = Map(decoder, "decoder")
        self.features = None if features is None else Map(features, "features")
        if self.features is None:
            super().__init__(self.decoder)
        else:
            parts = (self.decoder, self.features)
            super().__init__(Map(self._chain, "decoder", parts=parts))

    def row_width(self, z: Tensor) -> int:
        """Return the size of the decoder's output, or of the features' where it is larger."""
        width = self.decoder.width(z)
        if self.features is None:
            return width
        if not self.features.is_known:
            with torch.no_grad():
                self._chain(z[:1])
        return max(width, self.features.output_shape.numel())

    def _chain(self, z: Tensor) -> Tensor:
        if self.features is None:
            return self.decoder(z)
        return self.features(self.decoder.apply(z))

    def check(self, name: str, z: Tensor) -> None:
        """Evaluate decoder and feature map on codes from outside; errors name ``name``."""
        output = self.decoder.check(name, z)
        if self.features is not None:
            shape = self.decoder.output_shape
            self.features.check("decoder output", output.reshape(-1, *shape))


class GaussianPullbackMetric(Metric):
    """Expected pull-back metric of a Gaussian decoder, G = J_mu^T J_mu + J_sigma^T J_sigma.

    mu(z) is the decoder's mean and sigma(z) its standard deviation (not the variance).
    With a feature map h, G = J_mu^T J_h^T J_h J_mu + J_sigma^T diag(J_h^T J_h) J_sigma, J_h at
    mu(z).

    Parameters
    ----------
    decoder
        (n, d) -> (mean, standard deviation), each (n, ...), of one shape.
    features
        h: takes the mean, gives (n, ...).
    diagonal
        How diag(J_h^T J_h) is had: ``"exact"``, one vector-Jacobian product per output of h;
        ``"hutchinson"``, E |J_h (s * J_sigma v)|^2 over random signs s; ``"auto"``, exact up to 64
        outputs.
    n_probes
        Number of random sign vectors.
    seed
        Seed of the signs. They are the same at every code and in every call, so that the metric is
        a deterministic function.

    Raises
    ------
    TypeError, ValueError
        As for `PullbackMetric`.

    Examples
    --------
    >>> decoder = lambda z: (z, torch.exp(z))
    >>> GaussianPullbackMetric(decoder).tensor(torch.zeros(1, 2))
    tensor([[[2., 0.],
             [0., 2.]]])

    References
    ----------
    Arvanitidis, Hansen, Hauberg, "Latent Space Oddity", ICLR 2018,
    https://arxiv.org/abs/1710.11379, equation 5. Michelis, Becker, "On Linear Interpolation in the
    Latent Space of Deep Generative Models", 2021, https://arxiv.org/abs/2105.03663, equation 4
    and appendix E. Hutchinson, "A stochastic estimator of the trace of the influence matrix",
    1990.
    """

    def __init__(
        self,
        decoder: Callable[[Tensor], tuple[Tensor, Tensor]],
        features: Callable[[Tensor], Tensor] | None = None,
        *,
        diagonal: str = "auto",
        n_probes: int = 16,
        seed: int = 0,
    ) -> None:
        self.diagonal = check_choice("diagonal", diagonal, ("auto", "exact", "hutchinson"))
        self.n_probes = check_integer("n_probes", n_probes)
        self.seed = check_integer("seed", seed, minimum=0)
        self.decoder = Map(decoder, "decoder", n_outputs=2)
        self.features = None if features is None else Map(features, "features")
        self._plain = _ImmersedMetric(self.decoder)
        self.immersion = self.decoder if features is None else None
        self._chart = None if features is None else Map(self._weighted, "decoder")

    def check(self, name: str, z: Tensor) -> None:
        """Evaluate decoder and feature map on codes from outside; errors name ``name``."""
        joint = self.decoder.check(name, z)
        if self.features is not None:
            mean = joint.chunk(2, dim=1)[0]
            self.features.check("decoder mean", mean.reshape(-1, *self.decoder.output_shape))

    def row_width(self, z: Tensor) -> int:
        """Return the size of mean and standard deviation, and of the features beside them."""
        width = self.decoder.width(z)
        if self.features is None:
            return width
        if not self.features.is_known:
            with torch.no_grad():
                self._quadratic(z[:1], torch.zeros_like(z[:1]))
        return width + self.features.output_shape.numel()

    @property
    def chords(self) -> Chords | None:
        """Chords of the features and, by their exact squared norms, the standard deviation."""
        if self._chart is None:
            return super().chords
        if not self._is_exact(self.features.output_shape.numel()):  # type: ignore[union-attr]
            return None
        return Chords(self._chart, self.decoder.output_shape.numel())

    def _weighted(self, z: Tensor) -> Tensor:
        """Return h(mu), sigma and diag(J_h^T J_h) side by side, (n, K + 2 D)."""
        joint = self.decoder(z)
        mean, std = joint.chunk(2, dim=1)
        mean = mean.reshape(-1, *self.decoder.output_shape)
        values, norms = _squared_column_norms(self.features, mean)  # type: ignore[arg-type]
        return torch.cat([values, std, norms.flatten(1)], dim=1)

    def _is_exact(self, n_features: int) -> bool:
        """Whether diag(J_h^T J_h) is computed row by row."""
        return self.diagonal == "exact" or (self.diagonal == "auto" and n_features <= 64)

    def _tensor(self, z: Tensor) -> Tensor:
        if self.features is None:
            return self._plain._tensor(z)
        d, n = z.shape[1], z.shape[0]
        joint, columns = self.decoder.columns(z)
        mean, mean_columns, std_columns = self._split(joint, columns)
        repeated = mean.repeat(d, *[1] * (mean.ndim - 1))
        pushed = self.features.jvp(repeated, mean_columns.flatten(0, 1))[1].reshape(d, n, -1)
        return _gram(pushed) + self._diagonal_gram(mean, std_columns, pushed.shape[2])

    def _quadratic(self, z: Tensor, v: Tensor) -> Tensor:
        if self.features is None:
            return self._plain._quadratic(z, v)
        joint, tangent = self.decoder.jvp(z, v)
        mean, mean_tangent, std_tangent = self._split(joint, tangent[None])
        pushed = self.features.jvp(mean, mean_tangent[0])[1]
        diagonal = self._diagonal_gram(mean, std_tangent, pushed.shape[1])
        return pushed.square().sum(1) + diagonal[:, 0, 0]

    def _split(self, joint: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take the joined mean and standard deviation apart, in the shape that h expects.

        Returns the mean (n, ...) and the tangents (m, n, ...) of mean and standard deviation.
        """
        shape = self.decoder.output_shape
        mean = joint.chunk(2, dim=1)[0].reshape(-1, *shape)
        m = tangents.shape[0]
        mean_tangents, std_tangents = (
            part.reshape(m, -1, *shape) for part in tangents.chunk(2, dim=2)
        )
        return mean, mean_tangents, std_tangents

    def _diagonal_gram(self, mean: Tensor, tangents: Tensor, n_features: int) -> Tensor:
        """Return w_i^T diag(J_h^T J_h) w_j for tangents w (m, n, ...) at the n means, (n, m, m)."""
        features: Map = self.features  # type: ignore[assignment]
        m, n = tangents.shape[:2]
        if self._is_exact(n_features):
            diagonal = _squared_column_norms(features, mean)[1]
            flat = tangents.flatten(2)
            return torch.einsum("inD,nD,jnD->nij", flat, diagonal.flatten(1), flat)
        gram = tangents.new_zeros((n, m, m))
        repeated = mean.repeat(m, *[1] * (mean.ndim - 1))
        for signs in self._signs(mean):
            pushed = features.jvp(repeated, (tangents * signs).flatten(0, 1))[1]
            gram = gram + _gram(pushed.reshape(m, n, -1)) / self.n_probes
        return gram

    def _signs(self, mean: Tensor) -> Tensor:
        """Return the probes, (n_probes, ...), the same in every call."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.n_probes, *mean.shape[1:])
        return (2 * torch.randint(0, 2, shape, generator=generator) - 1).to(mean)


def _gram(columns: Tensor) -> Tensor:
    """Return the inner products of columns (d, n, D), shape (n, d, d)."""
    return torch.einsum("inD,jnD->nij", columns, columns)


def _squared_column_norms(map_: Map, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return F(x) and diag(J^T J), of the shape of x, by one vector-Jacobian product per output."""
    differentiable = torch.is_grad_enabled() and x.requires_grad
    with torch.inference_mode(False), torch.enable_grad():
        point = x if x.requires_grad else x.detach().clone().requires_grad_()
        value = map_(point)
        total = torch.zeros_like(x)
        for k in range(value.shape[1] if value.requires_grad else 0):
            (row,) = torch.autograd.grad(
                value[:, k].sum(),
                point,
                retain_graph=True,
                create_graph=differentiable,
                materialize_grads=True,
            )
            total = total + row.square()
    return (value if differentiable else value.detach()), total


class TensorMetric(Metric):
    """A metric given by its tensor field.

    Parameters
    ----------
    fn
        (n, d) -> (n, d, d), symmetric positive definite matrices, differentiable. Where a solve
        meets one with a negative eigenvalue, its status is ``INDEFINITE_METRIC``.
    dim
        Latent dimension d.

    Raises
    ------
    TypeError, ValueError
        At the first use, where ``fn`` returns something else than symmetric (n, d, d), has a
        gradient that does not fit its values, or a negative eigenvalue at a code of the call.

    Examples
    --------
    >>> half_plane = TensorMetric(
    ...     lambda z: torch.eye(2).expand(len(z), 2, 2) / z[:, 1, None, None] ** 2, dim=2
    ... )
    >>> half_plane.quadratic(torch.tensor([[0.0, 2.0]]), torch.tensor([[2.0, 0.0]]))
    tensor([1.])
    """

    quadratic_cost = "forward"

    def __init__(self, fn: Callable[[Tensor], Tensor], dim: int) -> None:
        self.dim = check_integer("dim", dim)
        self.fn: Callable[[Tensor], Any] = check_function("fn", fn)
        self._tested = False

    def tensor_rows(self, dim: int) -> int:  # noqa: ARG002
        """Forward rows that one metric tensor counts as: it is one evaluation of ``fn``."""
        return 1

    def row_width(self, z: Tensor) -> int:
        """Return the size of a tensor."""
        return z.shape[1] ** 2

    def check(self, name: str, z: Tensor) -> None:
        """Evaluate ``fn`` on codes from outside: symmetric, with a gradient that is its own."""
        code = z[:1].detach()
        with torch.no_grad():
            tensor = self._tensor(torch.cat([code, neighbour(code)]))
            alone = self._tensor(code).flatten(1)
        skew = float((tensor - tensor.mT).abs().max())
        if skew > 1e-3 * float(tensor.abs().max()):
            required = "a callable returning symmetric matrices"
            raise ValueError(requirement("fn", required, f"one with |G - G^T| up to {skew:.3g}"))

        def flat(codes: Tensor) -> Tensor:
            return self._tensor(codes).flatten(1)

        check_rows("fn", flat, code, alone, thorough=not self._tested)
        if not self._tested:
            check_gradient("fn", flat, code)
            self._tested = True
        self.check_definite(name, z)

    def check_definite(self, name: str, z: Tensor) -> None:
        """Raise where ``fn`` has a negative eigenvalue at one of the first codes."""
        with torch.no_grad():
            tensors = self._tensor(z[:_CHECKED_CODES].detach())
        wrong = tensors[indefinite(tensors)]
        if len(wrong):
            values = torch.linalg.eigvalsh(wrong[0].double())
            required = "a callable returning positive definite matrices"
            found = f"one with the eigenvalues {float(values[0]):.3g} to {float(values[-1]):.3g}"
            raise ValueError(requirement("fn", required, f"{found} at a code of `{name}`"))

    def _tensor(self, z: Tensor) -> Tensor:
        tensor = self.fn(z.clone())
        shape = (z.shape[0], self.dim, self.dim)
        required = f"a callable returning a floating-point tensor of shape {shape}"
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise TypeError(requirement("fn", required, f"one returning {describe(tensor)}"))
        if tensor.shape != shape:
            raise ValueError(requirement("fn", required, f"one returning {describe(tensor)}"))
        return tensor

    def _quadratic(self, z: Tensor, v: Tensor) -> Tensor:
        tensor = self._tensor(z)
        square = torch.einsum("ni,nij,nj->n", v, tensor, v)
        # what is negative by the rounding of the sum is zero, and keeps its gradient
        with torch.no_grad():
            terms = torch.einsum("ni,nij,nj->n", v.abs(), tensor.abs(), v.abs())
            rounding = 2.0 * tensor.shape[-1] * torch.finfo(tensor.dtype).eps * terms
            excess = torch.where(square >= -rounding, square.clamp_max(0.0), 0.0)
        return square - excess
