"""The locally adaptive normal distribution (LAND) and its mixtures."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from geolatent.checks import (
    check_boolean,
    check_choice,
    check_integer,
    check_number,
    describe,
    requirement,
)
from geolatent.geometry.integrators import (
    DiscreteGeodesic,
    Integrator,
    RungeKutta,
    check_integrator,
)
from geolatent.geometry.logarithms import Logarithms
from geolatent.geometry.ode import TrajectoryStatus
from geolatent.geometry.volume import volume_element
from geolatent.graph import LatentGraph
from geolatent.learn.estimators import (
    SignsOfLife,
    check_graph_of,
    default_graph,
    fitted_codes,
    further_codes,
)
from geolatent.metrics.base import Metric, check_metric
from geolatent.metrics.rows import Rows
from geolatent.solvers.preconditioned import PreconditionedSolver

_LOG_TWO_PI = math.log(2.0 * math.pi)
_SMALLEST_STEP = 0.1
# of the default integrators: the tolerance of Runge-Kutta, how many vectors it has to follow in how
# many steps to be kept, and the steps of the chains that take its place
_TOLERANCE = 1e-3
_TRIED, _FEW_STEPS = 16, 16
_CHAIN_STEPS = 128
# parts that the last, larger samples are drawn in
_PARTS = 4


@dataclass(frozen=True)
class TangentSample:
    """Tangent vectors at a code, and what they weigh in integrals over the manifold.

    An integral of g(log_mean(x)) over the manifold by the volume measure is the mean of
    g(v) exp(log_weight) over the sample.

    Attributes
    ----------
    vectors
        v, (S, d), drawn from N(0, covariance).
    log_volume
        log of m(v) = sqrt(det G(exp v)) |det D exp(v)|, (S,): the volume at exp(v) for one unit of
        dv. Minus infinity beyond a conjugate point or where the geodesic failed.
    log_weight
        ``log_volume`` less the log density that v was drawn from, (S,).
    """

    vectors: Tensor
    log_volume: Tensor
    log_weight: Tensor

    @classmethod
    def joined(cls, parts: list[TangentSample]) -> TangentSample:
        """Return samples that were drawn in parts as one."""
        names = ("vectors", "log_volume", "log_weight")
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    def log_normalizer(self, precision: Tensor) -> Tensor:
        """Return log C, C = integral of exp(-v^T P v / 2) m(v) dv, for a precision P (d, d)."""
        exponent = _exponent(self.vectors, precision)
        return torch.logsumexp(exponent + self.log_weight, 0) - math.log(len(self.vectors))

    def mean(self, precision: Tensor) -> Tensor:
        """Return the expected tangent vector of the density of that precision, (d,)."""
        exponent = _exponent(self.vectors, precision)
        return torch.softmax(exponent + self.log_weight, 0) @ self.vectors


def sample_tangents(
    rows: Rows,
    mean: Tensor,
    covariance: Tensor,
    noise: Tensor,
    integrator: Integrator,
) -> TangentSample:
    """Follow geodesics from ``mean`` (d,) with velocities L e, L L^T the covariance, e (S, d).

    The derivative of the exponential map comes from d neighbours of each geodesic, integrated with
    the same steps.
    """
    s, d = noise.shape
    factor = torch.linalg.cholesky(covariance)
    vectors = noise @ factor.mT
    log_proposal = -0.5 * (noise.square().sum(1) + d * _LOG_TWO_PI)
    log_proposal = log_proposal - factor.diagonal().log().sum()
    size = 1e-4 if rows.dtype == torch.float64 else 1e-2
    shifts = size * factor.mT  # along the axes of the covariance
    neighbours = torch.cat([vectors[:, None], vectors[:, None] + shifts], dim=1)
    times = torch.ones(1, dtype=torch.float64, device=mean.device)
    way = integrator.follow(
        rows.counting(s), mean.expand(s, d + 1, d).contiguous(), neighbours, times
    )
    ends = way.points[:, -1]
    finite = ends.isfinite().all(2).all(1)
    log_volume = torch.full((s,), -torch.inf, dtype=torch.float64, device=mean.device)
    if bool(finite.any()):
        # columns D exp (shift); their determinant is positive up to the first conjugate point
        sign, log_change = torch.linalg.slogdet((ends[finite, 1:] - ends[finite, :1]).mT)
        log_shift = d * math.log(size) + factor.diagonal().log().sum()
        value = volume_element(rows, ends[finite, 0]).log() + log_change - log_shift
        log_volume[finite] = torch.where((sign > 0) & value.isfinite(), value, -torch.inf)
    return TangentSample(vectors, log_volume, log_volume - log_proposal)


def fit_precision(scatter: Tensor, sample: TangentSample, steps: int = 50) -> Tensor:
    """Return the precision P that maximises -tr(P S) / 2 - log C(P), (d, d).

    The density is an exponential family in P, so this is concave; at the maximum the expected
    v v^T is S = ``scatter``. Newton's method with halved steps, C by importance weights.
    """
    d = scatter.shape[0]
    upper = torch.triu_indices(d, d)
    scale = torch.where(upper[0] == upper[1], 1.0, 2.0).to(scatter)
    features = -0.5 * sample.vectors[:, upper[0]] * sample.vectors[:, upper[1]] * scale
    target = -0.5 * scatter[upper[0], upper[1]] * scale

    def matrix(flat: Tensor) -> Tensor:
        result = scatter.new_zeros(d, d)
        result[upper[0], upper[1]] = flat
        result[upper[1], upper[0]] = flat
        return result

    def value(flat: Tensor) -> Tensor:
        eigenvalues = torch.linalg.eigvalsh(matrix(flat))
        if not bool(eigenvalues[0] > 1e-8 * eigenvalues[-1].abs()):
            return flat.new_tensor(-torch.inf)
        return target @ flat - sample.log_normalizer(matrix(flat))

    flat = torch.linalg.inv(scatter)[upper[0], upper[1]]
    best = value(flat)
    for _ in range(steps):
        weights = torch.softmax(features @ flat + sample.log_weight, 0)
        mean = weights @ features
        gradient = target - mean
        centred = features - mean
        hessian = torch.einsum("s,si,sj->ij", weights, centred, centred)
        ridge = 1e-9 * hessian.diagonal().mean().clamp_min(1e-300)
        step = torch.linalg.solve(hessian + ridge * torch.eye(len(flat)).to(hessian), gradient)
        if float(gradient @ step) < 1e-12:
            break
        share = 1.0
        while share > 1e-4:
            trial = value(flat + share * step)
            if bool(trial > best):
                flat, best = flat + share * step, trial
                break
            share /= 2.0
        else:
            break
    return matrix(flat)


def _scatter(weight: Tensor, logs: Tensor) -> Tensor:
    """Return the weighted mean of v v^T, (d, d), kept away from singular ones."""
    scatter = torch.einsum("n,ni,nj->ij", weight, logs, logs)
    floor = 1e-6 * scatter.diagonal().mean().clamp_min(1e-300)
    return scatter + floor * torch.eye(len(scatter)).to(scatter)


def _proposal(scatter: Tensor) -> Tensor:
    """Return the covariance to draw from: wider than the data, so that weights stay bounded."""
    return 1.5 * scatter


def _reached(logs: Tensor) -> Tensor:
    """Return whether there is a logarithm, (..., d) -> (...)."""
    return logs.isfinite().all(-1)


def _exponent(logs: Tensor, precision: Tensor) -> Tensor:
    """Return -v^T P v / 2, (..., n), for P (..., d, d); minus infinity where there is no v."""
    square = torch.einsum("...ni,...ij,...nj->...n", logs, precision, logs)
    return torch.where(_reached(logs), -0.5 * square, -torch.inf)


def _shares_of_reached(responsibility: Tensor, logs: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights of sum 1 of the points that have a logarithm, (m,), and those, (m, d)."""
    reached = _reached(logs)
    weight = responsibility[reached]
    return weight / weight.sum(), logs[reached]


@dataclass
class _Component:
    """One component while it is fitted; float64."""

    mean: Tensor
    precision: Tensor
    sample: TangentSample
    log_normalizer: Tensor
    logs: Tensor  # logarithms of all points at the mean, (n, d); NaN where there is none
    step: float = 1.0
    moved: bool = False

    def log_density(self) -> Tensor:
        """Return the log density of all points by the volume measure, (n,)."""
        return _exponent(self.logs, self.precision) - self.log_normalizer


class LandMixture(DensityMixin, BaseEstimator):
    r"""Mixture of locally adaptive normal distributions, by maximum likelihood.

    .. math::

        p(x) = \sum_k \frac{w_k}{C_k} \exp(-\tfrac{1}{2} \log_k(x)^T P_k \log_k(x)),

    log_k the logarithm map at the mean of component k and P_k its precision: normal distributions
    along the geodesics of a metric. Densities are by the volume measure sqrt(det G) dx. The
    constant is an integral over the tangent space,

    .. math::

        C = \int \exp(-\tfrac{1}{2} v^T P v) \sqrt{\det G(\exp v)} \, |\det D \exp(v)| \, dv,

    by Monte Carlo with geodesics that are shot from the mean. (The published LAND leaves the last
    factor out, and its densities need not integrate to one where there is curvature.) Vectors
    beyond the cut locus but before the first conjugate point count in C as well, although a shorter
    geodesic leads to their end: C is then an upper bound, and densities are too small.

    Expectation maximisation. Given the logarithms the best precision is the solution of a concave
    problem on one set of weighted tangent vectors (`fit_precision`); the mean goes along the
    difference of the data's and the model's mean tangent vector, by a step that raises the
    likelihood. Random numbers are drawn once, so that steps can be compared.

    A code that no finite geodesic reaches from a mean is infinitely far from it: its density under
    that component is 0, so that it pulls at other components alone. ``fit`` leaves codes that no
    mean reaches out, weight and all, and drops components that have no code left; both are told by
    a warning. A step that would lose a code of its component is turned down.

    Parameters
    ----------
    metric
        The metric.
    n_components
        Number of components; one is the LAND itself.
    n_samples
        Tangent vectors for each constant while fitting; four times as many at the end.
    max_iter
        Iterations, each with a step of every mean.
    tol
        Gain in mean log-likelihood, in nats, at which the fit ends.
    graph
        A graph for geodesics to start from; by default one on the codes that ``fit`` gets.
    n_nodes
        Nodes of the default graph; by default four times the codes, 2,000 at least. Those beyond
        the codes lie around them, with a fifth of the codes' standard deviation.
    integrator
        How geodesics are shot. By default ``RungeKutta(tolerance=1e-3)``; but where a few of the
        first vectors take it more than 16 steps, and the metric has an immersion, all go by
        ``DiscreteGeodesic(128)``. In walls of uncertainty Runge-Kutta takes some hundred steps for
        each, and at that tolerance its geodesics part from their neighbours too early: constants
        come out too large.
    callback
        Called by ``fit`` after the start and every iteration with the iterations done and the mean
        log-likelihood; minutes may pass between two calls.
    verbose
        Whether what takes more than ten seconds tells on standard error how far it is, every ten
        seconds.
    random_state
        Seed or `numpy.random.RandomState`.

    Attributes
    ----------
    weights_, means_, precisions_
        Shapes (K,), (K, d) and (K, d, d), K the components that were not dropped; the weights have
        the sum 1.
    log_normalizers_
        log C of each component, (K,).
    normalizer_error_
        Relative standard errors of the constants, (K,).
    lower_bound_
        Mean log-likelihood of the codes of ``fit`` that were not left out, by the volume measure.
    n_iter_
        Iterations.
    converged_
        Whether the gain fell to ``tol``.
    graph_
        The graph.
    n_features_in_, feature_names_in_
        Latent dimension d; the names of the coordinates, where ``fit`` got a table with names.

    References
    ----------
    Arvanitidis, Hansen, Hauberg, "A Locally Adaptive Normal Distribution", NIPS 2016,
    https://arxiv.org/abs/1606.02518.

    Examples
    --------
    In flat space the LAND is the normal distribution.

    >>> from geolatent import PullbackMetric
    >>> codes = torch.randn(200, 1, generator=torch.Generator().manual_seed(0)).double()
    >>> model = LandMixture(PullbackMetric(lambda z: z), random_state=0, max_iter=2).fit(codes)
    >>> normal = torch.distributions.Normal(codes.mean(), codes.std(correction=0))
    >>> bool(abs(model.score(codes) - float(normal.log_prob(codes).mean())) < 1e-2)
    True
    """

    def __init__(
        self,
        metric: Metric,
        n_components: int = 1,
        *,
        n_samples: int = 400,
        max_iter: int = 20,
        tol: float = 1e-3,
        graph: LatentGraph | None = None,
        n_nodes: int | None = None,
        integrator: Integrator | None = None,
        callback: Callable[[int, float], None] | None = None,
        verbose: bool = True,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.metric = metric
        self.n_components = n_components
        self.n_samples = n_samples
        self.max_iter = max_iter
        self.tol = tol
        self.graph = graph
        self.n_nodes = n_nodes
        self.integrator = integrator
        self.callback = callback
        self.verbose = verbose
        self.random_state = random_state

    def fit(self, X: ArrayLike | Tensor, y: object = None) -> Self:  # noqa: ARG002
        """Fit means, precisions and weights to codes (n, d).

        Raises
        ------
        ValueError
            Where no mean reaches any of its codes.
        """
        metric = check_metric(self.metric)
        k = check_integer("n_components", self.n_components)
        n_samples = check_integer("n_samples", self.n_samples, minimum=10)
        max_iter = check_integer("max_iter", self.max_iter)
        tol = check_number("tol", self.tol, at_least=0.0)
        random = check_random_state(self.random_state)
        codes = fitted_codes(self, X, metric, check_graph_of(self.graph))
        n, d = codes.shape
        if n < max(k, d + 1):
            raise ValueError(requirement("X", f"at least {max(k, d + 1)} codes", describe(codes)))
        metric.check("X", codes[:1])
        signs = self._signs("start")
        self._prepare(metric, codes, random)
        signs.tell(f"graph of {self.graph_.n_nodes} nodes")
        noise = torch.from_numpy(random.randn(n_samples, d)).to(codes.device)
        logarithms = self._logarithms(codes.repeat(k, 1), signs)
        means, responsibilities = self._begin(codes, k, random)

        numbers = torch.arange(k * n, device=codes.device).reshape(k, n)
        logs = self._logs_at(logarithms, codes, means, numbers)
        alive, kept = self._usable(logs, responsibilities)
        numbers, responsibilities = numbers[alive][:, kept], responsibilities[alive][:, kept]

        def logs_at(means: Tensor) -> Tensor:
            return self._logs_at(logarithms, codes[kept], means, numbers)

        self._choose_integrator(means[alive], logs[alive][:, kept], responsibilities, noise)
        parts = [
            self._component(mean, log, responsibility, noise)
            for mean, log, responsibility in zip(
                means[alive], logs[alive][:, kept], responsibilities, strict=True
            )
        ]
        # a code of a dropped component counts once the first densities are known
        shares = responsibilities.sum(1) / responsibilities.sum()
        bound, self.converged_, self.n_iter_ = -math.inf, False, 0
        while True:
            joint = torch.stack([part.log_density() for part in parts]) + shares.log()[:, None]
            total = torch.logsumexp(joint, 0)
            new_bound = float(total.mean())
            # a mean whose step was turned down tries a shorter one first
            settled = all(part.moved or part.step < _SMALLEST_STEP for part in parts)
            self.converged_ = self.n_iter_ > 0 and settled and new_bound - bound <= tol
            bound = max(bound, new_bound)
            if self.callback is not None:
                self.callback(self.n_iter_, new_bound)
            if self.converged_ or self.n_iter_ >= max_iter:
                break
            self.n_iter_ += 1
            responsibilities = torch.exp(joint - total)
            shares = responsibilities.mean(1)
            signs.stage = f"iteration {self.n_iter_} of at most {max_iter}"
            signs.tell(f"mean log-likelihood {new_bound:.3f}")
            self._step(parts, responsibilities, noise, logs_at, signs)
        self.lower_bound_ = bound
        signs.stage = "end"
        self._finish(parts, shares, random, signs)
        return self

    def _signs(self, stage: str) -> SignsOfLife:
        signs = SignsOfLife(type(self).__name__, check_boolean("verbose", self.verbose))
        signs.stage = stage
        return signs

    def _prepare(self, metric: Metric, codes: Tensor, random: np.random.RandomState) -> None:
        self._integrator = check_integrator(self.integrator, tolerance=_TOLERANCE)
        self._rows = Rows.of(metric, codes)
        self._dtype = codes.dtype
        graph = check_graph_of(self.graph)
        self.graph_ = graph or default_graph(metric, codes, self.n_nodes, random)

    def _logarithms(self, points: Tensor, signs: SignsOfLife) -> Logarithms:
        solver = PreconditionedSolver(tolerance=1e-3)
        return Logarithms(self.metric, points, solver, self.graph_, None, signs.solving)

    def _logs_at(
        self, logarithms: Logarithms, codes: Tensor, means: Tensor, numbers: Tensor
    ) -> Tensor:
        """Return the logarithms of codes (n, d) at means (K, d), (K, n, d), NaN where none is.

        ``numbers`` (K, n) are those of the pairs among the points of ``logarithms``.
        """
        at = means.to(codes.dtype).repeat_interleave(len(codes), dim=0)
        logs, lengths, _ = logarithms(at, numbers.flatten())
        logs = torch.where(lengths.isfinite()[:, None], logs, torch.nan)
        return logs.reshape(*numbers.shape, -1)

    def _usable(self, logs: Tensor, responsibilities: Tensor) -> tuple[Tensor, Tensor]:
        """Return which components have a code they reach, (K,), and which codes are reached, (n,).

        Warns where any are not.
        """
        reached = _reached(logs)
        alive = (reached & (responsibilities > 0)).any(1)
        if not bool(alive.any()):
            required = "within reach of finite geodesics from where the means start"
            raise ValueError(requirement("X", required, "means that reach none of their codes"))
        kept = reached[alive].any(0)
        if not bool(reached.all()):
            warnings.warn(
                f"{int((~reached).sum())} of {reached.numel()} geodesics from the means are not "
                f"finite: density 0. {int((~kept).sum())} of {kept.numel()} codes, which no mean "
                f"reaches, are left out and {int((~alive).sum())} of {alive.numel()} components, "
                "which have no code left, are dropped",
                stacklevel=3,
            )
        return alive, kept

    def _begin(self, codes: Tensor, k: int, random: np.random.RandomState) -> tuple[Tensor, Tensor]:
        """Return the codes nearest to k-means centres, and hard assignments (K, n)."""
        from sklearn.cluster import KMeans

        points = codes.double().cpu().numpy()
        model = KMeans(k, n_init=5, random_state=random).fit(points)
        squares = ((points[:, None] - model.cluster_centers_) ** 2).sum(2)
        means = torch.from_numpy(points[squares.argmin(0)]).to(codes.device)
        labels = torch.from_numpy(model.labels_).long().to(codes.device)
        return means, torch.nn.functional.one_hot(labels, k).mT.double()

    def _choose_integrator(
        self, means: Tensor, logs: Tensor, responsibilities: Tensor, noise: Tensor
    ) -> None:
        """Take chains where the user chose nothing and Runge-Kutta needs many steps.

        Once for a fit, so that its constants can be compared.
        """
        if self.integrator is not None or self._rows.metric.immersion is None:
            return
        few = RungeKutta(_TOLERANCE, max_steps=_FEW_STEPS)
        one = torch.ones(1, dtype=torch.float64, device=means.device)
        for mean, log, responsibility in zip(means, logs, responsibilities, strict=True):
            scatter = _scatter(*_shares_of_reached(responsibility, log))
            factor = torch.linalg.cholesky(_proposal(scatter))
            vectors = (noise[:_TRIED] @ factor.mT)[:, None]
            rows = self._rows.counting(len(vectors))
            way = few.follow(rows, mean.expand_as(vectors).contiguous(), vectors, one)
            if bool((way.status == TrajectoryStatus.MAX_STEPS).any()):
                self._integrator = DiscreteGeodesic(_CHAIN_STEPS)
                return

    def _component(
        self, mean: Tensor, logs: Tensor, responsibility: Tensor, noise: Tensor
    ) -> _Component:
        """Return the best component with a given mean."""
        scatter = _scatter(*_shares_of_reached(responsibility, logs))
        sample = sample_tangents(self._rows, mean, _proposal(scatter), noise, self._integrator)
        precision = fit_precision(scatter, sample)
        return _Component(mean, precision, sample, sample.log_normalizer(precision), logs)

    def _step(
        self,
        parts: list[_Component],
        responsibilities: Tensor,
        noise: Tensor,
        logs_at: Callable[[Tensor], Tensor],
        signs: SignsOfLife,
    ) -> None:
        """Move every mean, where that raises its share of the likelihood."""
        directions = []
        for part, responsibility in zip(parts, responsibilities, strict=True):
            weight, logs = _shares_of_reached(responsibility, part.logs)
            directions.append(weight @ logs - part.sample.mean(part.precision))
        trial = torch.stack(
            [part.mean + part.step * way for part, way in zip(parts, directions, strict=True)]
        )
        found = logs_at(trial)
        for number, responsibility in enumerate(responsibilities):
            signs.tell(f"constant of component {number + 1} of {len(parts)}")
            part, own = parts[number], responsibility > 0
            # the old mean with the new responsibilities, and the new one
            stay = self._at_place(part, responsibility)
            if bool(_reached(found[number])[own].all()):
                move = self._component(trial[number], found[number], responsibility, noise)
                weight = responsibility[own]
                if float(weight @ (move.log_density() - stay.log_density())[own]) > 0.0:
                    move.step, move.moved = min(1.0, 2.0 * part.step), True
                    parts[number] = move
                    continue
            stay.step = part.step / 2.0
            parts[number] = stay

    def _at_place(self, part: _Component, responsibility: Tensor) -> _Component:
        """Return the component with the precision for new weights, its mean and sample kept."""
        scatter = _scatter(*_shares_of_reached(responsibility, part.logs))
        precision = fit_precision(scatter, part.sample)
        log_normalizer = part.sample.log_normalizer(precision)
        return _Component(part.mean, precision, part.sample, log_normalizer, part.logs)

    def _finish(
        self,
        parts: list[_Component],
        shares: Tensor,
        random: np.random.RandomState,
        signs: SignsOfLife,
    ) -> None:
        """Take the constants anew with more samples, and keep the results."""
        d = parts[0].mean.numel()
        normalizers, errors = [], []
        for number, part in enumerate(parts):
            noise = torch.from_numpy(random.randn(_PARTS * self.n_samples, d)).to(part.mean)
            covariance = 1.3 * torch.linalg.inv(part.precision)
            samples = []
            for some in noise.chunk(_PARTS):
                signs.tell(f"constant of component {number + 1} of {len(parts)}")
                samples.append(
                    sample_tangents(self._rows, part.mean, covariance, some, self._integrator)
                )
            sample = TangentSample.joined(samples)
            values = torch.exp(sample.log_weight + _exponent(sample.vectors, part.precision))
            normalizers.append(float(sample.log_normalizer(part.precision)))
            errors.append(float(values.std() / values.mean() / len(values) ** 0.5))
        self._means = torch.stack([part.mean for part in parts])
        self._precisions = torch.stack([part.precision for part in parts])
        self._log_normalizers = torch.tensor(normalizers).to(self._means)
        self._shares = shares
        self.means_ = self._means.cpu().numpy()
        self.precisions_ = self._precisions.cpu().numpy()
        self.weights_ = shares.cpu().numpy()
        self.log_normalizers_ = np.array(normalizers)
        self.normalizer_error_ = np.array(errors)

    def _joint(self, codes: Tensor) -> Tensor:
        """Return log w_k p_k by the volume measure, (K, n); warns where all are minus infinity."""
        k, n = len(self._means), len(codes)
        numbers = torch.arange(k * n, device=codes.device).reshape(k, n)
        logarithms = self._logarithms(codes.repeat(k, 1), self._signs("densities"))
        logs = self._logs_at(logarithms, codes, self._means, numbers)
        lost = ~_reached(logs).any(0)
        if bool(lost.any()):
            warnings.warn(
                f"{int(lost.sum())} of {n} codes have density 0: no finite geodesic reaches them "
                "from a mean",
                stacklevel=3,
            )
        scale = self._shares.log() - self._log_normalizers
        return _exponent(logs, self._precisions) + scale[:, None]

    def score_samples(self, X: ArrayLike | Tensor, measure: str = "latent") -> NDArray[np.float64]:
        """Return log densities of codes (n, d), in nats, (n,).

        Minus infinity where no finite geodesic reaches a code from a mean, with a warning.

        Parameters
        ----------
        X
            Codes.
        measure
            ``"latent"``: by the latent coordinates, p(x) sqrt(det G(x)), to be compared with other
            densities there; ``"volume"``: by the volume measure.
        """
        check_is_fitted(self)
        check_choice("measure", measure, ("latent", "volume"))
        codes = further_codes(self, X, self._means.to(self._dtype))
        values = torch.logsumexp(self._joint(codes), 0)
        if measure == "latent":
            factor = volume_element(self._rows, codes)
            values = torch.where(values.isfinite(), values + factor.log(), values)
        return values.cpu().numpy()

    def score(self, X: ArrayLike | Tensor, y: object = None) -> float:  # noqa: ARG002
        """Return the mean log density of codes by the latent coordinates, in nats.

        Minus infinity where one of them is not reached; see `score_samples`.
        """
        return float(self.score_samples(X).mean())

    def predict_proba(self, X: ArrayLike | Tensor) -> NDArray[np.float64]:
        """Return the components' shares in each code's density, (n, K); NaN where that is 0."""
        check_is_fitted(self)
        joint = self._joint(further_codes(self, X, self._means.to(self._dtype)))
        return torch.softmax(joint, 0).mT.cpu().numpy()

    def predict(self, X: ArrayLike | Tensor) -> NDArray[np.int64]:
        """Return the component with the largest share, (n,); -1 where the density is 0."""
        shares = self.predict_proba(X)
        return np.where(np.isnan(shares).any(1), -1, shares.argmax(1))
