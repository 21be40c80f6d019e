"""Decoders of four latent dimensions from the layers and operations that others build theirs of."""

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

DIM = 4


class Op(nn.Module):
    """A layer between codes, made wide and given a shape, and the output."""

    def __init__(self, shape, operation):
        super().__init__()
        size = torch.Size(shape)
        self.first = nn.Linear(DIM, size.numel())
        self.shape = size
        self.operation = operation

    def forward(self, z):
        return self.operation(self.first(z).unflatten(1, self.shape))


class Second(nn.Module):
    """Calls a layer with its input twice, as memory or as a pair."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x, 0.5 * x + 0.1)


class First(nn.Module):
    """The first of what a layer returns, as its output without the hidden state."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.layer(x, x, x)[0]


def spread(x):
    """Return positive definite matrices from square ones."""
    return x @ x.mT + 2.0 * torch.eye(x.shape[-1]).to(x)


def warped(x):
    grid = functional.affine_grid(torch.eye(2, 3).to(x).expand(len(x), 2, 3), x.shape, False)
    return functional.grid_sample(x, grid + 0.1 * torch.tanh(x[:, :2].permute(0, 2, 3, 1)))


def scatter(x):
    return torch.zeros_like(x).scatter_add(1, torch.zeros_like(x, dtype=torch.int64), x * x)


VECTOR, SERIES, IMAGE, VOLUME, TOKENS = (6,), (4, 8), (4, 6, 6), (2, 4, 4, 4), (5, 8)

LAYERS = {
    "Linear": (VECTOR, lambda: nn.Linear(6, 5)),
    "Bilinear": (VECTOR, lambda: Second(nn.Bilinear(6, 6, 5))),
    "Conv1d": (SERIES, lambda: nn.Conv1d(4, 3, 3, padding=1)),
    "Conv2d": (IMAGE, lambda: nn.Conv2d(4, 3, 3, stride=2, padding=1)),
    "Conv2d circular": (IMAGE, lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular")),
    "Conv2d groups": (IMAGE, lambda: nn.Conv2d(4, 4, 3, groups=4, dilation=2)),
    "Conv3d": (VOLUME, lambda: nn.Conv3d(2, 3, 3)),
    "ConvTranspose1d": (SERIES, lambda: nn.ConvTranspose1d(4, 3, 3, stride=2)),
    "ConvTranspose2d": (IMAGE, lambda: nn.ConvTranspose2d(4, 2, 3, stride=2, output_padding=1)),
    "ConvTranspose3d": (VOLUME, lambda: nn.ConvTranspose3d(2, 2, 2)),
    "BatchNorm1d": (VECTOR, lambda: nn.BatchNorm1d(6)),
    "BatchNorm2d": (IMAGE, lambda: nn.BatchNorm2d(4)),
    "GroupNorm": (IMAGE, lambda: nn.GroupNorm(2, 4)),
    "LayerNorm": (VECTOR, lambda: nn.LayerNorm(6)),
    "LayerNorm of images": (IMAGE, lambda: nn.LayerNorm([4, 6, 6], elementwise_affine=False)),
    "InstanceNorm1d": (SERIES, lambda: nn.InstanceNorm1d(4)),
    "InstanceNorm2d": (IMAGE, lambda: nn.InstanceNorm2d(4, affine=True)),
    "RMSNorm": (VECTOR, lambda: nn.RMSNorm(6)),
    "LocalResponseNorm": (IMAGE, lambda: nn.LocalResponseNorm(2)),
    "spectral norm": (VECTOR, lambda: spectral_norm(nn.Linear(6, 5))),
    "weight norm": (VECTOR, lambda: weight_norm(nn.Linear(6, 5))),
    "GRU": (TOKENS, lambda: First(nn.GRU(8, 4, num_layers=2, batch_first=True))),
    "LSTM": (TOKENS, lambda: First(nn.LSTM(8, 4, batch_first=True, bidirectional=True))),
    "RNN": (TOKENS, lambda: First(nn.RNN(8, 4, batch_first=True))),
    "GRUCell": (VECTOR, lambda: nn.GRUCell(6, 5)),
    "LSTMCell": (VECTOR, lambda: First(nn.LSTMCell(6, 5))),
    "RNNCell": (VECTOR, lambda: nn.RNNCell(6, 5)),
    "Upsample nearest": (IMAGE, lambda: nn.Upsample(scale_factor=2)),
    "Upsample bilinear": (IMAGE, lambda: nn.Upsample(scale_factor=2, mode="bilinear")),
    "Upsample bicubic": (IMAGE, lambda: nn.Upsample(scale_factor=1.5, mode="bicubic")),
    "Upsample trilinear": (VOLUME, lambda: nn.Upsample(scale_factor=2, mode="trilinear")),
    "PixelShuffle": (IMAGE, lambda: nn.PixelShuffle(2)),
    "MaxPool2d": (IMAGE, lambda: nn.MaxPool2d(2)),
    "AvgPool2d": (IMAGE, lambda: nn.AvgPool2d(2)),
    "AdaptiveAvgPool2d": (IMAGE, lambda: nn.AdaptiveAvgPool2d(4)),
    "AdaptiveMaxPool2d": (IMAGE, lambda: nn.AdaptiveMaxPool2d(4)),
    "LPPool2d": (IMAGE, lambda: nn.LPPool2d(2, 2)),
    "Unfold": (IMAGE, lambda: nn.Unfold(2)),
    "Fold": ((16, 9), lambda: nn.Fold((4, 4), 2)),
    "reflection padding": (IMAGE, lambda: nn.ReflectionPad2d(2)),
    "Dropout": (VECTOR, lambda: nn.Dropout(0.5)),
    "MultiheadAttention": (TOKENS, Attention),
    "TransformerEncoder": (
        TOKENS,
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu"), 2
        ),
    ),
    "TransformerDecoderLayer": (
        TOKENS,
        lambda: Second(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True, activation="gelu")),
    ),
    "PReLU": (VECTOR, lambda: nn.PReLU()),
    "GLU": (VECTOR, lambda: nn.GLU()),
    "CosineSimilarity": (TOKENS, lambda: Second(nn.CosineSimilarity())),
    "PairwiseDistance": (TOKENS, lambda: Second(nn.PairwiseDistance())),
}

SQUARE = (4, 4)
OPERATIONS = {
    "relu": (VECTOR, torch.relu),
    "gelu": (VECTOR, functional.gelu),
    "gelu tanh": (VECTOR, lambda x: functional.gelu(x, approximate="tanh")),
    "silu": (VECTOR, functional.silu),
    "softplus": (VECTOR, functional.softplus),
    "elu": (VECTOR, functional.elu),
    "selu": (VECTOR, functional.selu),
    "mish": (VECTOR, functional.mish),
    "hardswish": (VECTOR, functional.hardswish),
    "leaky relu": (VECTOR, lambda x: functional.leaky_relu(x, 0.2)),
    "logsigmoid": (VECTOR, functional.logsigmoid),
    "softmax": (VECTOR, lambda x: x.softmax(1)),
    "log softmax": (VECTOR, lambda x: x.log_softmax(1)),
    "logsumexp": (TOKENS, lambda x: x.logsumexp(2)),
    "normalize": (TOKENS, lambda x: functional.normalize(x, dim=2)),
    "attention": (TOKENS, lambda x: functional.scaled_dot_product_attention(x, x, x.sin())),
    "causal attention": (
        TOKENS,
        lambda x: functional.scaled_dot_product_attention(x, x.cos(), x, is_causal=True),
    ),
    "FFT": (SERIES, lambda x: torch.view_as_real(torch.fft.fft(x)).square()),
    "real FFT and back": (SERIES, lambda x: torch.fft.irfft(torch.fft.rfft(x) ** 2)),
    "grid_sample": (IMAGE, warped),
    "einsum": (SQUARE, lambda x: torch.einsum("nij,njk->nik", x, x)),
    "cumsum": (VECTOR, lambda x: x.sin().cumsum(1)),
    "cumprod": (VECTOR, lambda x: x.cumprod(1)),
    "prod": (VECTOR, lambda x: x.prod(1)),
    "sort": (VECTOR, lambda x: x.sin().sort(1).values),
    "topk": (VECTOR, lambda x: x.exp().topk(3, dim=1).values),
    "gather": (VECTOR, lambda x: (x * x).gather(1, x.argsort(1)[:, :3])),
    "scatter": (VECTOR, scatter),
    "median": (VECTOR, lambda x: x.exp().median(1).values),
    "where": (VECTOR, lambda x: torch.where(x > 0, x.exp(), x.sin())),
    "clamp": (VECTOR, lambda x: x.clamp(-0.5, 0.5)),
    "var": (TOKENS, lambda x: x.var(2)),
    "std": (TOKENS, lambda x: x.std(2)),
    "norm": (TOKENS, lambda x: x.norm(dim=2)),
    "cdist": (TOKENS, lambda x: torch.cdist(x, x.flip(2))),
    "solve": (SQUARE, lambda x: torch.linalg.solve(spread(x), x)),
    "inv": (SQUARE, lambda x: torch.linalg.inv(spread(x))),
    "cholesky": (SQUARE, lambda x: torch.linalg.cholesky(spread(x))),
    "logdet": (SQUARE, lambda x: torch.logdet(spread(x))),
    "eigvalsh": (SQUARE, lambda x: torch.linalg.eigvalsh(spread(x))),
    "svdvals": (SQUARE, lambda x: torch.linalg.svdvals(spread(x))),
    "matrix_exp": (SQUARE, torch.matrix_exp),
    "erf": (VECTOR, torch.erf),
    "lgamma": (VECTOR, lambda x: torch.lgamma(x.exp() + 1.0)),
    "complex": (VECTOR, lambda x: torch.polar(x.exp(), x).abs() + torch.polar(x.exp(), x).angle()),
    "atan2": (VECTOR, lambda x: torch.atan2(x, 1.0 + x.flip(1).square())),
    "roll and flip": (SERIES, lambda x: (x * x).roll(1, 2) + x.flip(1)),
    "in place": (VECTOR, lambda x: (2.0 * x).mul_(3.0).sin_().add_(x)),
}


def decoder(case, dtype):
    """Return the seeded decoder of a case, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if case in LAYERS:
            shape, layer = LAYERS[case]
            made = Op(shape, layer())
        else:
            made = Op(*OPERATIONS[case])
        for module in made.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                nn.init.uniform_(module.running_var, 0.5, 2.0)
                nn.init.normal_(module.weight)
    return made.to(dtype).eval()


CASES = [*LAYERS, *OPERATIONS]
