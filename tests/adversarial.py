"""Decoders that mislead autograd, each made afresh: by what they do, right or not."""

import functools

import numpy as np
import torch
from derivatives import LegacySine, ReverseSine, UnbatchedSine
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

DIM = 3
GENERATOR = torch.Generator().manual_seed(1)
WEIGHT = torch.randn(DIM, 5, generator=GENERATOR, dtype=torch.float64)


def smooth(z):
    return torch.tanh(z @ WEIGHT.to(z))


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(DIM, 8), nn.Tanh(), nn.Linear(8, 5)).double()


class Once(LegacySine):
    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent):
        return cotangent * ctx.saved_tensors[0].cos()


class Silent(LegacySine):
    @staticmethod
    def backward(ctx, cotangent):
        return (cotangent * ctx.saved_tensors[0].cos()).detach()


class Inner(LegacySine):
    """Differentiates by itself in its backward, as adjoint solvers of equations do."""

    @staticmethod
    def backward(ctx, cotangent):
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            return torch.autograd.grad(x.sin(), x, cotangent)[0]


class Backwards(LegacySine):
    @staticmethod
    def backward(ctx, cotangent):
        return -cotangent * ctx.saved_tensors[0].cos()


class Rounding(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x.mul(8).round() / 8

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(_ctx, cotangent):
        return cotangent

    @staticmethod
    def jvp(_ctx, tangent):
        return tangent


class NumPy(LegacySine):
    @staticmethod
    def backward(ctx, cotangent):
        factor = np.cos(ctx.saved_tensors[0].detach().numpy())
        return torch.from_numpy(cotangent.detach().numpy() * factor)


class Forward(UnbatchedSine):
    """Right in forward mode, in reverse mode once."""

    generate_vmap_rule = True

    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent):
        return cotangent * ctx.saved_tensors[0].cos()


class Stateful(nn.Module):
    """Recurrent, with the hidden state of the call before."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(DIM, 5).double()
        self.hidden = None

    def forward(self, z):
        last = None if self.hidden is None else self.hidden.mean(0).expand(len(z), 5)
        self.hidden = self.cell(z, last)
        return self.hidden


class Buffered(nn.Module):
    """Writes its output into a buffer, and returns that."""

    def __init__(self):
        super().__init__()
        self.inner = network()
        self.register_buffer("out", torch.zeros(0, 5, dtype=torch.float64))

    def forward(self, z):
        self.out = self.inner(z)
        return self.out


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = network()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, z):
        self.calls += 1
        return self.inner(z) * self.calls


class Counting:
    """Returns something else from call to call."""

    def __init__(self, change):
        self.calls, self.change = 0, change

    def __call__(self, z):
        self.calls += 1
        return self.change(smooth(z), self.calls)


class Cached:
    """Remembers the first values for each number of rows."""

    def __init__(self):
        self.known = {}

    def __call__(self, z):
        return self.known.setdefault(z.shape, smooth(z))


def hooked(change, *, backward=False):
    made = network()
    if backward:
        made[0].register_full_backward_hook(lambda *_: (change(_[1][0]),))
    else:
        made[1].register_forward_hook(lambda _m, _i, output: change(output))
    return made


def no_grad(z):
    with torch.no_grad():
        return smooth(z)


def inference(z):
    with torch.inference_mode():
        return smooth(z)


def half_no_grad(z):
    with torch.no_grad():
        shift = torch.sin(z @ WEIGHT)
    return smooth(z) + shift


def numpy_round_trip(z):
    return torch.from_numpy(np.tanh(z.detach().numpy() @ WEIGHT.numpy()))


def listed(z):
    return torch.tensor([[float(value) for value in row] for row in z.detach()]).to(z)


def scaled_by_item(z):
    factors = [float(row.detach().square().sum()) for row in z]
    return smooth(z) * torch.tensor(factors).to(z)[:, None]


def in_place(z):
    return z.mul_(2.0).sin_() @ WEIGHT


def written(z):
    out = z.new_zeros(len(z), 5)
    out[:, :3] = z.sin()
    out[:, 3:] = z[:, :2] * z[:, 1:]
    return out


def data_written(z):
    out = smooth(z)
    out.data.mul_(3.0)
    return out


def data_shifted(z):
    out = smooth(z)
    out.data.add_(z.data[:, :1].square())
    return out


def set_data(z):
    out = smooth(z)
    out.data = (z @ WEIGHT).sin().detach()
    return out


def clamped(z):
    return (z @ WEIGHT).clamp(-0.5, 0.5)


def differentiating(z):
    """Return the gradient of a potential, as in an energy-based decoder."""
    with torch.enable_grad():
        point = z if z.requires_grad else z.detach().requires_grad_()
        return torch.autograd.grad(smooth(point).square().sum(), point, create_graph=True)[0]


def functional_gradient(z):
    return torch.func.vmap(torch.func.grad(lambda x: smooth(x[None]).square().sum()))(z)


def straight_through(levels):
    def decode(z):
        out = smooth(z)
        return out + (out.mul(levels).round() / levels - out).detach()

    return decode


def gumbel(z):
    return nn.functional.gumbel_softmax(z @ WEIGHT, hard=True)


def hardest(z):
    soft = (z @ WEIGHT).softmax(1)
    hard = nn.functional.one_hot(soft.argmax(1), 5).to(z)
    return hard + soft - soft.detach()


def normalised(z):
    out = z @ WEIGHT
    return (out - out.mean(0)) / (1.0 + out.std(0, unbiased=False))


def own_dropout(z):
    return nn.functional.dropout(smooth(z), 0.5, training=True)


def noisy(z):
    return smooth(z) + 1e-3 * torch.randn_like(z[:, :1])


def seeded_noise(z):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return smooth(z) + torch.randn(1, 5).to(z)


def by_rows(z):
    return torch.stack([smooth(row[None])[0] for row in z])


def strided(z):
    return smooth(z).T.contiguous().T


def sparse_weight(z):
    return torch.sparse.mm(WEIGHT.T.to_sparse(), z.T).T.tanh()


@functools.lru_cache(maxsize=8)
def remembered(rows):
    return torch.ones(rows, 1, dtype=torch.float64)


GLOBAL = {"scale": 1.0}
OUTPUTS = torch.zeros(5, dtype=torch.float64)


def global_state(z):
    GLOBAL["scale"] *= 1.1
    return GLOBAL["scale"] * smooth(z)


def copied(z):
    return smooth(z.detach().clone().requires_grad_())


def scripted(trace=False, freeze=False):
    made = network().eval()
    module = (
        torch.jit.trace(made, torch.zeros(2, DIM).double()) if trace else torch.jit.script(made)
    )
    return torch.jit.freeze(module) if freeze else module


def checkpointed(reentrant):
    made = network()
    return lambda z: checkpoint(made, z, use_reentrant=reentrant)


# what works: the metric is that of difference quotients
SOLVED = {
    "frozen": lambda: network().requires_grad_(False),
    "legacy function": lambda: lambda z: LegacySine.apply(z @ WEIGHT),
    "reverse rule": lambda: lambda z: ReverseSine.apply(z @ WEIGHT),
    "no vmap rule": lambda: lambda z: UnbatchedSine.apply(z @ WEIGHT),
    "forward mode alone": lambda: lambda z: Forward.apply(z @ WEIGHT),
    "checkpoint": lambda: checkpointed(False),
    "scripted": scripted,
    "traced": lambda: scripted(trace=True),
    "scripted and frozen": lambda: scripted(freeze=True),
    "in place on the input": lambda: in_place,
    "written": lambda: written,
    "clamped": lambda: clamped,
    "differentiates": lambda: differentiating,
    "differentiates by torch.func": lambda: functional_gradient,
    "row by row": lambda: by_rows,
    "not contiguous": lambda: strided,
    "the input itself": lambda: lambda z: z,
    "view of the input": lambda: lambda z: z[:, :2],
    "transposed view": lambda: lambda z: z[:, None].mT,
    "expanded": lambda: lambda z: smooth(z)[:, :, None].expand(-1, -1, 4),
    "noise from a seed": lambda: seeded_noise,
    "remembered constants": lambda: lambda z: smooth(z) * remembered(len(z)),
    "writes a global": lambda: lambda z: OUTPUTS.copy_(smooth(z[:1])[0].detach()) * 0.0 + smooth(z),
    "hook that scales": lambda: hooked(lambda output: 2.0 * output),
    "sparse weight": lambda: sparse_weight,
    "copied parameters": lambda: functools.partial(
        torch.func.functional_call, network(), dict(network().named_parameters())
    ),
    "detached constants": lambda: lambda z: smooth(z) + WEIGHT.detach()[:1],
    "with gradients off outside": lambda: torch.enable_grad()(smooth),
}

# what is refused: by which words
REFUSED = {
    "detached input": lambda: lambda z: smooth(z.detach()) + 0.0 * z[:, :1],
    "detached output": lambda: lambda z: smooth(z).detach(),
    "partly detached": lambda: lambda z: smooth(z) + smooth(2.0 * z).detach(),
    "no_grad": lambda: no_grad,
    "partly no_grad": lambda: half_no_grad,
    "inference mode": lambda: inference,
    "NumPy": lambda: numpy_round_trip,
    "list of numbers": lambda: listed,
    "scaled by item": lambda: scaled_by_item,
    "once differentiable": lambda: lambda z: Once.apply(z @ WEIGHT),
    "silently once": lambda: lambda z: Silent.apply(z @ WEIGHT),
    "silently once, in part": lambda: lambda z: Silent.apply(z @ WEIGHT) + smooth(z),
    "inner gradient": lambda: lambda z: Inner.apply(z @ WEIGHT),
    "wrong sign": lambda: lambda z: Backwards.apply(z @ WEIGHT),
    "NumPy backwards": lambda: lambda z: NumPy.apply(z @ WEIGHT),
    "rounds with a straight rule": lambda: lambda z: Rounding.apply(z @ WEIGHT),
    "straight-through": lambda: straight_through(4),
    "straight-through, fine": lambda: straight_through(255),
    "rounded": lambda: lambda z: (z @ WEIGHT).mul(255).round(),
    "integers": lambda: lambda z: (z @ WEIGHT).mul(255).to(torch.int64).to(z),
    "vector quantised": lambda: hardest,
    "Gumbel": lambda: gumbel,
    "written through data": lambda: data_written,
    "shifted through data": lambda: data_shifted,
    "data replaced": lambda: set_data,
    "hook that detaches": lambda: hooked(lambda output: output.detach()),
    "hook that detaches a part": lambda: hooked(
        lambda output: torch.cat([output[:, :4], output[:, 4:].detach()], 1)
    ),
    "backward hook that scales": lambda: hooked(lambda slope: 0.5 * slope, backward=True),
    "copied input": lambda: copied,
    "batch statistics": lambda: normalised,
    "own dropout": lambda: own_dropout,
    "noise": lambda: noisy,
    "cache by shape": Cached,
    "grows from call to call": lambda: Counting(lambda out, calls: out * calls),
    "other from the third call": lambda: Counting(lambda out, calls: out if calls < 3 else 2 * out),
    "global state": lambda: global_state,
    "state of the call before": Stateful,
    "output kept as a buffer": Buffered,
    "calls counted in a buffer": Counter,
    "reentrant checkpoint": lambda: checkpointed(True),
    "training mode": lambda: nn.Sequential(network(), nn.Dropout(0.5)).train(),
}
