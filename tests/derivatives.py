"""Derivatives the slow way, and operations for which torch has not every rule."""

import torch


def jacobian(function, row):
    """Return the full Jacobian at one row by reverse mode, (D, d); of all outputs where several."""

    def flat(row):
        output = function(row[None])
        parts = output if isinstance(output, tuple) else (output,)
        return torch.cat([part.reshape(-1) for part in parts])

    full = torch.autograd.functional.jacobian(flat, row)
    return full.reshape(full.shape[0], -1)


def check_metric(metric, expected, z):
    """Compare tensor and quadratic form with the given tensors, each to 1e-10."""
    v = torch.randn_like(z)
    tensor = metric.tensor(z)
    torch.testing.assert_close(tensor, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(tensor, tensor.mT, rtol=0, atol=1e-13)
    quadratic = torch.einsum("ni,nij,nj->n", v, expected, v)
    torch.testing.assert_close(metric.quadratic(z, v), quadratic, rtol=1e-10, atol=1e-12)


class LegacySine(torch.autograd.Function):
    """Written before torch.func: no setup_context, no forward-mode rule."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, cotangent):
        (x,) = ctx.saved_tensors
        return cotangent * x.cos()


class ReverseSine(LegacySine):
    """A reverse-mode rule alone."""

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, _output):
        ctx.save_for_backward(inputs[0])


class UnbatchedSine(ReverseSine):
    """Has a forward-mode rule, and no rule for vmap."""

    @staticmethod
    def setup_context(ctx, inputs, _output):
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def jvp(ctx, tangent):
        (x,) = ctx.saved_tensors
        return tangent * x.cos()
