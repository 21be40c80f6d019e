"""Products with the Jacobians of common layers, for less than torch's rules for forward mode take.

Where one argument of an operation has a tangent and another has none, such as a layer's weights,
torch takes zeros for the missing one: a convolution is computed once more, with weights of zero,
and the shape of a sum or product with zeros is worked out in Python, 0.2 ms each time. Tangents of
normalisations take thirty times as long as their values. Here each has its own rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import TransformType, peek_interpreter_stack
from torch.autograd import forward_ad
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_PLAIN = (Tensor, nn.Parameter)
_Dual = tuple[Tensor, Tensor]
_Rule = Callable[[Callable[..., Any], tuple[Any, ...], Mapping[str, Any]], _Dual | None]


class ForwardRules(TorchFunctionMode):
    """Within it operations of `RULES` follow their rules where forward mode goes through them.

    A rule is given an operation and its arguments, and returns value and tangent of the result, or
    None where it is not for such arguments: they, and all other operations, are torch's.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_dynamo_compiling():
            return func(*args, **kwargs)  # it would compile these rules too
        rule = RULES.get(func)
        found = rule(func, args, kwargs) if rule is not None and _innermost() else None
        return func(*args, **kwargs) if found is None else forward_ad.make_dual(*found)


def _innermost() -> bool:
    """Whether forward mode is the innermost transform: a function's own has other tangents."""
    top = peek_interpreter_stack()
    return top is not None and top.key() == TransformType.Jvp


def _split(argument: Any) -> tuple[Any, Tensor | None]:
    """Return the value of an argument, and its tangent if it has one."""
    # parameters are no results of anything
    if not isinstance(argument, Tensor) or type(argument) is nn.Parameter:
        return argument, None
    value, tangent = forward_ad.unpack_dual(argument)
    return value, tangent


def _plain(arguments: Iterable[Any]) -> bool:
    """Whether all tensors among arguments are torch's own."""
    return all(type(each) in _PLAIN for each in arguments if isinstance(each, Tensor))


def _layer(rule: Callable[..., _Dual | None]) -> _Rule:
    """Return the rule of an operation whose first argument alone has a tangent.

    ``rule`` takes the operation, its first argument's value and tangent, and what else it is given.
    """

    def whole(
        func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> _Dual | None:
        others = (*args[1:], *kwargs.values())
        if not args or not _plain((args[0], *others)):
            return None
        value, tangent = _split(args[0])
        if tangent is None or any(_split(other)[1] is not None for other in others):
            return None
        return rule(func, value, tangent, *args[1:], **kwargs)

    return whole


def _product(divided: bool = False) -> _Rule:
    """Return the rule of products of which one factor has a tangent; the second does not divide."""

    def rule(
        func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> _Dual | None:
        found = _single(args, kwargs)
        if found is None or (divided and found[0] == 1):
            return None
        which, values, tangent = found
        value = func(*values)
        values[which] = tangent
        return value, func(*values)

    return rule


def _sum(*signs: int) -> _Rule:
    """Return the rule of sums, with signs, of which one part has a tangent."""

    def rule(
        func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> _Dual | None:
        found = _single(args, kwargs)
        if found is None:
            return None
        which, values, tangent = found
        value = func(*values)
        if tangent.dtype != value.dtype:
            return None
        # in-place operations on the result are to change its tangent, and no other
        tangent = tangent.expand(value.shape)
        return value, tangent.clone() if signs[which] > 0 else tangent.neg()

    return rule


def _single(
    args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[int, list[Any], Tensor] | None:
    """Return which of two arguments has a tangent, the values of both, and it; None otherwise."""
    if len(args) != 2 or kwargs or not _plain(args):
        return None
    (first, of_first), (second, of_second) = map(_split, args)
    if of_first is not None and of_second is None:
        return 0, [first, second], of_first
    if of_second is not None and of_first is None:
        return 1, [first, second], of_second
    return None


def _affine(
    func: Callable[..., Tensor],
    value: Tensor,
    tangent: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *rest: Any,
    **named: Any,
) -> _Dual:
    """Layers with weights and a bias: f(x) = W x + b."""
    return func(value, weight, bias, *rest, **named), func(tangent, weight, None, *rest, **named)


def _batch_norm(
    func: Callable[..., Tensor],
    value: Tensor,
    tangent: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> _Dual | None:
    """Batch normalisation by constants: f(x) = w (x - m) / sqrt(v + eps) + b."""
    if training or running_mean is None or running_var is None:
        return None
    rest = (running_var, weight, None, False, momentum, eps)
    result = func(value, running_mean, running_var, weight, bias, False, momentum, eps)
    return result, func(tangent, torch.zeros_like(running_mean), *rest)


def _group_norm(
    func: Callable[..., Tensor],
    value: Tensor,
    tangent: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> _Dual:
    """Normalisation over groups of channels."""
    result = func(value, num_groups, weight, bias, eps)
    shape = (len(value), num_groups, -1)
    turned = _standardised(value.reshape(shape), tangent.reshape(shape), (-1,), eps)
    if weight is not None:
        weight = weight.reshape(-1, *(1 for _ in value.shape[2:]))
    return _weighted(result, turned.reshape(value.shape), weight)


def _layer_norm(
    func: Callable[..., Tensor],
    value: Tensor,
    tangent: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> _Dual:
    """Normalisation over the last dimensions."""
    result = func(value, normalized_shape, weight, bias, eps)
    dims = tuple(range(-len(normalized_shape), 0))
    return _weighted(result, _standardised(value, tangent, dims, eps), weight)


def _rms_norm(
    func: Callable[..., Tensor],
    value: Tensor,
    tangent: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> _Dual:
    """Division by the root of the mean square over the last dimensions."""
    result = func(value, normalized_shape, weight, eps)
    dims = tuple(range(-len(normalized_shape), 0))
    eps = torch.finfo(value.dtype).eps if eps is None else eps
    return _weighted(result, _standardised(value, tangent, dims, eps, centred=False), weight)


def _standardised(
    value: Tensor, tangent: Tensor, dims: tuple[int, ...], eps: float, *, centred: bool = True
) -> Tensor:
    r"""Return the tangent of (x - mean x) / sqrt(var x + eps) over dimensions.

    With x^ the result and s the root it is (t - mean t - x^ mean(x^ t)) / s; without the means
    that of x / sqrt(mean x^2 + eps). Half precision is left for it, as by torch's own.
    """
    wide = torch.promote_types(value.dtype, torch.float32)
    value, tangent = value.to(wide), tangent.to(wide)
    if centred:
        value = value - value.mean(dims, keepdim=True)
        tangent = tangent - tangent.mean(dims, keepdim=True)
    scale = (value.square().mean(dims, keepdim=True) + eps).rsqrt()
    normal = value * scale
    along = (normal * tangent).mean(dims, keepdim=True)
    return tangent.addcmul(normal, along, value=-1) * scale


def _weighted(result: Tensor, tangent: Tensor, weight: Tensor | None) -> _Dual:
    """Return a result and its tangent, times weights, in the result's type."""
    return result, (tangent if weight is None else tangent * weight).to(result.dtype)


RULES: Mapping[Any, _Rule] = {
    **dict.fromkeys(
        (
            functional.linear,
            torch.conv1d,
            torch.conv2d,
            torch.conv3d,
            torch.conv_transpose1d,
            torch.conv_transpose2d,
            torch.conv_transpose3d,
        ),
        _layer(_affine),
    ),
    functional.batch_norm: _layer(_batch_norm),
    functional.group_norm: _layer(_group_norm),
    functional.layer_norm: _layer(_layer_norm),
    functional.rms_norm: _layer(_rms_norm),
    **dict.fromkeys(
        (
            torch.mul,
            Tensor.mul,
            Tensor.__mul__,
            Tensor.__rmul__,
            torch.matmul,
            Tensor.matmul,
            Tensor.__matmul__,
            torch.mm,
            torch.bmm,
        ),
        _product(),
    ),
    **dict.fromkeys((torch.div, Tensor.div, Tensor.__truediv__), _product(divided=True)),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), _sum(1, 1)),
    **dict.fromkeys((torch.sub, Tensor.sub, Tensor.__sub__), _sum(1, -1)),
    Tensor.__rsub__: _sum(-1, 1),
}
