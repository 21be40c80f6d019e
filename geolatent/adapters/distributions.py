"""The metric that belongs to what a decoder returns."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent

from geolatent.arrays import Array
from geolatent.checks import (
    check_codes,
    check_function,
    parameter_behind,
    requirement,
    returned,
)
from geolatent.metrics.base import Metric
from geolatent.metrics.counts import (
    NegativeBinomialFisherRaoMetric,
    NegativeBinomialPullbackMetric,
    PoissonPullbackMetric,
    ZeroInflatedNegativeBinomialMetric,
)
from geolatent.metrics.information import (
    BernoulliPullbackMetric,
    BetaFisherRaoMetric,
    CategoricalPullbackMetric,
    GammaFisherRaoMetric,
    GaussianFisherRaoMetric,
)
from geolatent.metrics.pullback import GaussianPullbackMetric, PullbackMetric


class Outputs:
    """What a decoder returns as a distribution, and parameters of it as functions of the code.

    Parameters
    ----------
    decoder
        (n, d) -> a distribution.
    z
        One code, (1, d), that requires a gradient.
    """

    def __init__(self, decoder: Callable[[Tensor], Distribution], z: Tensor) -> None:
        self.decoder = decoder
        self.z = z
        self.found = _base(decoder(z))

    def function(self, *names: str) -> Callable[[Tensor], Any]:
        """Return the function from codes to parameters, a tensor or a tuple of them."""

        def parameters(z: Tensor) -> Any:
            found = _base(self.decoder(z))
            values = tuple(getattr(found, name) for name in names)
            return values if len(values) > 1 else values[0]

        return parameters

    def varies(self, name: str) -> bool:
        """Whether a parameter depends on the code."""
        value = getattr(self.found, name)
        if not isinstance(value, Tensor) or not value.requires_grad:
            return False
        (slope,) = torch.autograd.grad(value.sum(), self.z, allow_unused=True, retain_graph=True)
        return slope is not None

    def constant(self, name: str) -> Tensor:
        """Return a parameter that must not depend on the code, of the shape of one row."""
        if self.varies(name):
            kind = type(self.found).__name__
            required = f"a callable returning a {kind} whose `{name}` does not depend on the code"
            raise ValueError(requirement("decoder", required, "one whose does"))
        value = getattr(self.found, name)
        return torch.as_tensor(value).detach().to(self.z)[:1]


def _base(found: Any) -> Any:
    """Return the distribution of single outputs; that they are independent changes nothing."""
    while isinstance(found, Independent):
        found = found.base_dist
    return found


def _scaled(embedding: type, outputs: Outputs, event: int) -> Metric:
    """Return the metric of counts out of so many trials, by that of one trial's embedding."""
    trials = outputs.found.total_count
    if isinstance(trials, Tensor):
        trials = outputs.constant("total_count").reshape(1, *trials.shape[1:], *[1] * event)
        factor: Tensor | float = trials.sqrt()
    else:
        factor = math.sqrt(trials)
    embed = embedding(outputs.function("logits"), output="logits")._embed
    return PullbackMetric(outputs.function("logits"), lambda logits: factor * embed(logits))


def _negative_binomial(outputs: Outputs, dispersion: str) -> Metric:
    mean = outputs.function("mean")
    if outputs.varies(dispersion):
        return NegativeBinomialFisherRaoMetric(outputs.function("mean", dispersion))
    return NegativeBinomialPullbackMetric(mean, outputs.constant(dispersion))


def _zero_inflated(outputs: Outputs) -> Metric:
    parameters = outputs.function("mu", "zi_logits")
    return ZeroInflatedNegativeBinomialMetric(parameters, outputs.constant("theta"))


def _normal(outputs: Outputs) -> Metric:
    return GaussianPullbackMetric(outputs.function("loc", "scale"))


def _poisson(outputs: Outputs) -> Metric:
    return PoissonPullbackMetric(outputs.function("rate"))


def _categorical(outputs: Outputs) -> Metric:
    return CategoricalPullbackMetric(outputs.function("logits"), output="logits")


# by library and class; scvi-tools has distributions of its own
_FAMILIES: dict[str, Callable[[Outputs], Metric]] = {
    "torch.Normal": _normal,
    "scvi.Normal": _normal,
    "torch.LogNormal": lambda o: GaussianFisherRaoMetric(o.function("loc", "scale")),
    "torch.Bernoulli": lambda o: BernoulliPullbackMetric(o.function("logits"), output="logits"),
    "torch.Binomial": lambda o: _scaled(BernoulliPullbackMetric, o, 0),
    "torch.Categorical": _categorical,
    "torch.OneHotCategorical": _categorical,
    "torch.Multinomial": lambda o: _scaled(CategoricalPullbackMetric, o, 1),
    "torch.Poisson": _poisson,
    "scvi.Poisson": _poisson,
    "torch.NegativeBinomial": lambda o: _negative_binomial(o, "total_count"),
    "scvi.NegativeBinomial": lambda o: _negative_binomial(o, "theta"),
    "scvi.ZeroInflatedNegativeBinomial": _zero_inflated,
    "torch.Gamma": lambda o: GammaFisherRaoMetric(o.function("concentration", "rate")),
    "torch.Exponential": lambda o: PullbackMetric(o.function("rate"), torch.log),
    "torch.Beta": lambda o: BetaFisherRaoMetric(o.function("concentration1", "concentration0")),
}


def metric(decoder: Callable[[Tensor], Any], codes: Array) -> Metric:
    r"""Return the metric for what a decoder returns at a code: a tensor or a distribution.

    A tensor gives its `PullbackMetric`; a normal distribution the expected metric of its mean and
    standard deviation, `GaussianPullbackMetric`; every other distribution of
    `torch.distributions`, or of scvi-tools, its Fisher-Rao metric G = sum_j J_j^T I_j J_j, with the
    Fisher information I of each output's parameters and their Jacobians J:

    - Bernoulli: `BernoulliPullbackMetric`; Categorical, OneHotCategorical:
      `CategoricalPullbackMetric`; Binomial, Multinomial: these times the number of trials,
    - Poisson: `PoissonPullbackMetric`,
    - NegativeBinomial: `NegativeBinomialPullbackMetric`, or `NegativeBinomialFisherRaoMetric` where
      the dispersion depends on the code; ZeroInflatedNegativeBinomial (of scvi-tools):
      `ZeroInflatedNegativeBinomialMetric`,
    - Exponential: the pull-back by the rate's logarithm; Gamma: `GammaFisherRaoMetric`; Beta:
      `BetaFisherRaoMetric`; LogNormal: `GaussianFisherRaoMetric` of its logarithm.

    ``Independent`` around them changes nothing.

    Parameters
    ----------
    decoder
        (n, d) -> a tensor (n, ...), or a distribution of that batch shape.
    codes
        Codes (n, d), of which the first is looked at.

    Raises
    ------
    TypeError
        Where the decoder returns anything else, or a distribution that is not in the table.
    ValueError
        Where a parameter depends on the code that must not.

    Examples
    --------
    >>> from torch.distributions import Poisson
    >>> metric(lambda z: Poisson(z, validate_args=False), torch.ones(1, 1)).tensor(torch.ones(1, 1))
    tensor([[[1.]]])

    References
    ----------
    Arvanitidis, Gonzalez-Duque, Pouplin, Kalatzis, Hauberg, "Pulling back information geometry",
    AISTATS 2022, https://arxiv.org/abs/2106.05367.
    """
    check_function("decoder", decoder)
    codes = check_codes("codes", codes, like=parameter_behind(decoder))
    point = codes[:1].detach().clone().requires_grad_()
    with torch.enable_grad():
        found = decoder(point)
        if isinstance(found, Tensor):
            return PullbackMetric(decoder)
        if not isinstance(found, Distribution):
            required = "a tensor or a distribution (see `adapters.decoder`)"
            raise TypeError(returned("decoder", required, found))
        kind = type(_base(found))
        family = _FAMILIES.get(f"{kind.__module__.split('.')[0]}.{kind.__name__}")
        if family is None:
            known = ", ".join(_FAMILIES)
            required = f"a callable returning a tensor or one of {known}"
            raise TypeError(requirement("decoder", required, f"one returning a {kind.__name__}"))
        return family(Outputs(decoder, point))
