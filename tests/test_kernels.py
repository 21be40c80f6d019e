"""Attention is differentiated by kernels that have every rule, and no setting of torch stays so."""

import threading

import pytest
import torch
from derivatives import jacobian
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

import geolatent as gl
from geolatent.metrics.information import DivergenceMetric
from geolatent.metrics.kernels import DIFFERENTIABLE_KERNELS

TOKENS, WIDTH, DIM = 5, 8, 3


class Decoder(nn.Module):
    """Codes to tokens, a block of attention that the user did not write, and its output."""

    def __init__(self, block, width=WIDTH):
        super().__init__()
        self.tokens = nn.Linear(DIM, TOKENS * width)
        self.block = block

    def forward(self, z):
        return self.block(self.tokens(z).unflatten(1, (TOKENS, -1))).flatten(1)


class Plain(nn.Module):
    def __init__(self, heads=1, **options):
        super().__init__()
        self.heads = heads
        self.options = options

    def forward(self, x):
        q, k, v = x.unflatten(2, (self.heads, -1)).transpose(1, 2).chunk(3, dim=3)
        return scaled_dot_product_attention(q, k, v, **self.options).transpose(1, 2)


class MultiHead(nn.Module):
    def __init__(self, *, need_weights=False, masked=False):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.need_weights = need_weights
        self.mask = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1) if masked else None

    def forward(self, x):
        weights = self.need_weights
        return self.attention(x, x, x, need_weights=weights, attn_mask=self.mask)[0]


class Checkpointed(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return checkpoint(self.block, x, use_reentrant=False)


class CrossAttending(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(WIDTH, 2, 16, batch_first=True)

    def forward(self, x):
        return self.layer(x, x.flip(1))


def encoder(depth=0, **options):
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True, **options)
    return nn.TransformerEncoder(layer, depth, enable_nested_tensor=False) if depth else layer


MASK = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril(1)
BLOCKS = {
    "plain": (lambda: Plain(), 12),
    "heads": (lambda: Plain(2), 12),
    "causal": (lambda: Plain(is_causal=True), 12),
    "masked": (lambda: Plain(attn_mask=MASK), 12),
    "multi-head": (MultiHead, WIDTH),
    "multi-head with weights": (lambda: MultiHead(need_weights=True), WIDTH),
    "multi-head, masked": (lambda: MultiHead(masked=True), WIDTH),
    "encoder layer": (encoder, WIDTH),
    "encoder, norm first": (lambda: encoder(2, norm_first=True), WIDTH),
    "encoder": (lambda: encoder(2, activation="gelu"), WIDTH),
    "decoder layer": (CrossAttending, WIDTH),
    "checkpointed": (lambda: Checkpointed(Plain(2)), 12),
}


def settings():
    return (
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.backends.cuda.cudnn_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
    )


@pytest.fixture(autouse=True)
def settings_stay():
    before = settings()
    yield
    assert settings() == before


def make(case, dtype, *, frozen=False):
    block, width = BLOCKS[case]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Decoder(block(), width).to(dtype).eval().requires_grad_(not frozen)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", BLOCKS)
def test_attention_is_differentiated(case, dtype, frozen):
    decoder = make(case, dtype, frozen=frozen)
    generator = torch.Generator().manual_seed(1)
    z, v = torch.randn(2, 2, DIM, generator=generator, dtype=dtype)
    with sdpa_kernel(SDPBackend.MATH):
        full = torch.stack([jacobian(decoder, row) for row in z])
    expected = full.mT @ full
    metric = gl.PullbackMetric(decoder)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    close = {"rtol": tolerance, "atol": tolerance * float(expected.abs().max())}
    torch.testing.assert_close(metric.tensor(z).detach(), expected, **close)
    squares = torch.einsum("ni,nij,nj->n", v, expected, v)
    torch.testing.assert_close(metric.quadratic(z, v).detach(), squares, **close)
    assert metric.decoder.forward_mode
    assert metric.decoder.batched_columns


@pytest.mark.parametrize("case", ["plain", "multi-head", "encoder", "checkpointed"])
@pytest.mark.parametrize("solver", [None, gl.FirstOrderSolver(steps=5, drops=1)])
def test_solves_through_attention(case, solver):
    metric = gl.PullbackMetric(make(case, torch.float64))
    start, end = torch.randn(2, 2, DIM, generator=torch.Generator().manual_seed(2)).double()
    solution = gl.solve_geodesic(metric, start, end, solver)
    assert (solution.length <= solution.straight_length).all()


@pytest.mark.filterwarnings("ignore:.*right forward-mode second derivative")
@pytest.mark.parametrize("case", ["plain", "multi-head", "encoder", "checkpointed"])
def test_gradients_of_the_quadratic_form(case):
    decoder = make(case, torch.float64)
    metric = gl.PullbackMetric(decoder)
    z, v = torch.randn(2, 2, DIM, generator=torch.Generator().manual_seed(1)).double()
    z, v = z.requires_grad_(), v.requires_grad_()
    assert torch.autograd.gradcheck(metric.quadratic, (z, v), eps=1e-6, rtol=1e-4)


def test_divergences_and_tensor_fields_with_attention():
    decoder = make("multi-head", torch.float64, frozen=True)
    z = torch.randn(1, DIM, generator=torch.Generator().manual_seed(1)).double()
    pulled_back = gl.PullbackMetric(decoder)
    divergence = DivergenceMetric(
        lambda z: 1.0 * z, lambda x, y: (decoder(x) - decoder(y)).square().sum(1)
    )
    torch.testing.assert_close(divergence.tensor(z), pulled_back.tensor(z))

    def field(z):
        return torch.diag_embed(1.0 + decoder(z)[:, :DIM].square())

    gl.solve_geodesic(gl.TensorMetric(field, dim=DIM), z, z + 1)


@pytest.mark.parametrize("at", [0, 5, 10])
def test_settings_are_put_back_after_errors(at):
    network, calls = make("plain", torch.float64, frozen=True), [0]

    def failing(z):
        calls[0] += 1
        if calls[0] > at:
            raise KeyError("lost")
        return network(z)

    z = torch.zeros(1, DIM, dtype=torch.float64)
    with pytest.raises(KeyError):
        gl.solve_geodesic(gl.PullbackMetric(failing), z, z + 1)


def test_settings_of_the_user_are_put_back():
    z = torch.zeros(1, DIM, dtype=torch.float64)
    metric = gl.PullbackMetric(make("multi-head", torch.float64, frozen=True))
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
            before = settings()
            metric.tensor(z)
            assert settings() == before
            assert before[2:] == (False, False, False)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def test_settings_are_put_back_by_the_last_thread_to_leave():
    before = settings()
    inside, leave = threading.Event(), threading.Event()

    def stay():
        with DIFFERENTIABLE_KERNELS:
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=stay)
    with DIFFERENTIABLE_KERNELS:
        thread.start()
        assert inside.wait(10)
        assert settings() == (False, False, False, True, False)
    assert settings() == (False, False, False, True, False)
    leave.set()
    thread.join()
    assert settings() == before


def test_threads_share_attention():
    metric = gl.PullbackMetric(make("encoder", torch.float64, frozen=True))
    z = torch.randn(4, DIM, generator=torch.Generator().manual_seed(1)).double()
    expected = metric.tensor(z)
    wrong = []

    def work():
        for _ in range(5):
            if not torch.allclose(metric.tensor(z), expected, rtol=1e-10):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
