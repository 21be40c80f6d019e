"""Small models of other libraries, with random weights or trained for seconds; no downloads."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

import geolatent as gl
from geolatent import adapters


@dataclass(frozen=True)
class Model:
    """A metric of a model, codes of its prior, and what a naive reference needs of it.

    Attributes
    ----------
    metric
        The metric.
    start, end
        Codes of pairs, (B, d) each.
    outputs
        (n, d) -> (n, D): G is J^T J of it where there is no information.
    information
        Outputs (n, D) -> the diagonal of their Fisher information, (n, D).
    """

    metric: gl.metrics.base.Metric
    start: Tensor
    end: Tensor
    outputs: Callable[[Tensor], Tensor]
    information: Callable[[Tensor], Tensor] | None = None


def pulled_back(decoder, d: int, dtype: torch.dtype, features=None, spread: float = 1.0) -> Model:
    """Return the pull-back metric of a decoder with pairs of its prior."""

    def outputs(z: Tensor) -> Tensor:
        found = decoder(z)
        return (found if features is None else features(found)).flatten(1)

    start, end = pairs(d, dtype, spread)
    return Model(gl.PullbackMetric(decoder, features), start, end, outputs)


def pairs(d: int, dtype: torch.dtype, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return two pairs of a standard normal prior."""
    generator = torch.Generator().manual_seed(3)
    both = spread * torch.randn(2, 2, d, generator=generator, dtype=torch.float64)
    return both[0].to(dtype), both[1].to(dtype)


def quiet(build: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    """Return what a function builds, from a fixed seed, in evaluation mode, without gradients."""
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        return build().to(dtype).eval().requires_grad_(False)


# diffusers


def autoencoder_kl(attention: bool = False, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return diffusers' AutoencoderKL of latent shape (4, h, w), images twice as large."""
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "block_out_channels": (8, 16)}
    blocks |= {"up_block_types": ("UpDecoderBlock2D",) * 2, "norm_num_groups": 4}
    options = {"latent_channels": 4, "sample_size": 8, "mid_block_add_attention": attention}
    return quiet(lambda: AutoencoderKL(**blocks, **options, shift_factor=0.1), dtype)


def autoencoder_tiny(d: int = 16, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, tuple]:
    """Return diffusers' AutoencoderTiny and its latent shape, of d = 4 s^2 numbers."""
    from diffusers import AutoencoderTiny

    side = round((d / 4) ** 0.5)
    assert 4 * side**2 == d
    options = {"encoder_block_out_channels": (16, 16), "decoder_block_out_channels": (16, 16)}
    options |= {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    return quiet(lambda: AutoencoderTiny(**options), dtype), (4, side, side)


def vq_model(attention: bool = False, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return diffusers' VQModel of latent shape (3, h, w), images twice as large."""
    from diffusers import VQModel

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "block_out_channels": (8, 16)}
    blocks |= {"up_block_types": ("UpDecoderBlock2D",) * 2, "norm_num_groups": 4}
    options = {"latent_channels": 3, "num_vq_embeddings": 16, "mid_block_add_attention": attention}
    return quiet(lambda: VQModel(**blocks, **options), dtype)


# scvi-tools


def cells():
    """Return the 700 cells inside scanpy's package with their counts, which their logarithms tell.

    Their normalised expression is a whole multiple of each cell's smallest.
    """
    import anndata
    import scanpy
    from scipy.sparse import csr_matrix

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reduced = scanpy.datasets.pbmc68k_reduced()
    values = np.expm1(np.asarray(reduced.raw.X.todense(), dtype=np.float64))
    smallest = np.where(values > 0, values, np.inf).min(1, keepdims=True)
    counts = np.rint(values / smallest).astype(np.float32)
    data = anndata.AnnData(
        csr_matrix(counts), obs=reduced.obs[["bulk_labels", "phase", "percent_mito"]].copy()
    )
    data.var_names = reduced.raw.var_names
    return data


def scvi_model(
    likelihood: str = "nb",
    *,
    d: int = 10,
    epochs: int = 5,
    dispersion: str = "gene",
    batch: bool = False,
    n_genes: int = 200,
    seed: int = 0,
    **setup,
):
    """Return scvi-tools' SCVI trained for some epochs on the counts of `cells`."""
    import scvi

    logging.getLogger("scvi").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    data = cells()
    order = np.argsort(-np.asarray(data.X.sum(0)).ravel(), kind="stable")[:n_genes]  # most counts
    data = data[:, np.sort(order)].copy()
    before = torch.get_default_dtype()
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.set_default_dtype(torch.float32)
        scvi.settings.seed = seed
        scvi.model.SCVI.setup_anndata(data, batch_key="phase" if batch else None, **setup)
        networks = {"n_latent": d, "n_hidden": 32, "dispersion": dispersion}
        model = scvi.model.SCVI(data, gene_likelihood=likelihood, **networks)
        quietly = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False}
        model.train(max_epochs=epochs, **quietly)
        torch.set_default_dtype(before)
    model.module.eval()
    return model


def scvi_expression(dtype: torch.dtype) -> Model:
    """Give the mean counts of SCVI."""
    model = scvi_model()
    model.module.to(dtype)
    return pulled_back(adapters.scvi(model, "mean", library_size=100.0), 10, dtype)


def scvi_fisher_rao(dtype: torch.dtype, likelihood: str = "nb", **options) -> Model:
    """Give the Fisher-Rao metric of SCVI's likelihood."""
    model = scvi_model(likelihood, **options)
    model.module.to(dtype)
    decoder = adapters.scvi(model)
    start, end = pairs(10, dtype)

    def rate_and_zeros(z: Tensor) -> Tensor:
        px = decoder(z)
        if likelihood != "zinb":
            return px.mean
        pi, none = px.zi_logits.sigmoid(), (px.theta / (px.theta + px.mu)) ** px.theta
        return torch.cat([pi + (1 - pi) * none, px.mu], dim=1)

    def information(outputs: Tensor) -> Tensor:
        if likelihood == "poisson":
            return 1 / outputs
        mean = outputs[:, -200:]
        r = model.module.px_r.exp()
        of_mean = r / (mean * (mean + r))
        if likelihood == "nb":
            return of_mean
        zero = outputs[:, :200]
        none = (r / (r + mean)) ** r
        slope = -none * r / (r + mean)
        left = (1 - zero) / (1 - none) * (of_mean - slope**2 / (none * (1 - none)))
        return torch.cat([1 / (zero * (1 - zero)), left], dim=1)

    metric = adapters.metric(decoder, start)
    return Model(metric, start, end, rate_and_zeros, information)


# pythae


def pythae_model(kind: str = "VAE", dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return a model of pythae with fully connected networks, d = 4."""
    import pythae.models

    config = getattr(pythae.models, f"{kind}_Config" if "_" in kind else f"{kind}Config")
    build = getattr(pythae.models, kind)
    return quiet(lambda: build(config(input_dim=(1, 8, 8), latent_dim=4)), dtype)


# flows


def zuko_flow(kind: str = "NSF", dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return a flow of zuko in three dimensions."""
    import zuko

    build = getattr(zuko.flows, kind)
    return quiet(lambda: build(3, transforms=3, hidden_features=(16, 16)), dtype)


def normflows_flow(kind: str = "affine", dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return a flow of normflows in four dimensions, of affine couplings or of splines."""
    import normflows as nf

    def build() -> nn.Module:
        flows = []
        for _ in range(3):
            if kind == "affine":
                network = nf.nets.MLP([2, 16, 4])
                flows += [nf.flows.AffineCouplingBlock(network), nf.flows.Permute(4, mode="swap")]
            else:
                flows += [nf.flows.CoupledRationalQuadraticSpline(4, 2, 16)]
                flows += [nf.flows.LULinearPermute(4)]
        flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(4, trainable=False), flows)
        for parameter in flow.parameters():  # which begins as the identity
            nn.init.normal_(parameter, std=0.3)
        return flow

    return quiet(build, dtype)


def neural_ode(dtype: torch.dtype) -> Model:
    """Give the flow of a small vector field from t = 0 to 1 by torchdiffeq, in fixed steps."""
    from torchdiffeq import odeint

    field = quiet(lambda: nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 3)), dtype)
    options = {"method": "rk4", "options": {"step_size": 0.1}}
    t = torch.tensor([0.0, 1.0], dtype=dtype)
    return pulled_back(lambda z: odeint(lambda _, y: field(y), z, t, **options)[-1], 3, dtype)


# GPyTorch


def bayesian_gplvm(dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return GPyTorch's BayesianGPLVM of 5 outputs, d = 2, its inducing values drawn at random."""
    import gpytorch
    from gpytorch.models.gplvm.bayesian_gplvm import BayesianGPLVM
    from gpytorch.models.gplvm.latent_variable import PointLatentVariable
    from gpytorch.variational import CholeskyVariationalDistribution, VariationalStrategy

    class GPLVM(BayesianGPLVM):
        def __init__(self, n: int = 30, outputs: int = 5, d: int = 2, inducing: int = 12) -> None:
            given = CholeskyVariationalDistribution(inducing, batch_shape=torch.Size([outputs]))
            given.variational_mean.data.normal_()
            given.chol_variational_covar.data *= torch.linspace(0.1, 0.5, outputs)[:, None, None]
            places = torch.randn(outputs, inducing, d)
            strategy = VariationalStrategy(self, places, given, learn_inducing_locations=True)
            super().__init__(PointLatentVariable(n, d, nn.Parameter(torch.randn(n, d))), strategy)
            strategy.variational_params_initialized.fill_(1)
            self.mean_module = gpytorch.means.ZeroMean()
            self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())

        def forward(self, z: Tensor) -> gpytorch.distributions.MultivariateNormal:
            covariance = self.covar_module(z)
            return gpytorch.distributions.MultivariateNormal(self.mean_module(z), covariance)

    return quiet(GPLVM, dtype)


def gplvm(dtype: torch.dtype) -> Model:
    """Give the expected metric of a Bayesian GPLVM."""
    decoder = adapters.gplvm(bayesian_gplvm(dtype))
    start, end = pairs(2, dtype)
    metric = gl.GaussianPullbackMetric(decoder)
    return Model(metric, start, end, lambda z: torch.cat(decoder(z), dim=1))


# feature maps


def images(dtype: torch.dtype) -> nn.Module:
    """Return a decoder of images (3, 32, 32) from d = 4."""
    layers = nn.Linear(4, 3 * 32 * 32), nn.Tanh(), nn.Unflatten(1, (3, 32, 32))
    return quiet(lambda: nn.Sequential(*layers), dtype)


def featured(build: Callable[[], nn.Module], dtype: torch.dtype, output=None) -> Model:
    """Give the metric of a network's features of images."""
    network = quiet(build, dtype)
    return pulled_back(images(dtype), 4, dtype, adapters.decoder(network, output))


def timm_network(name: str, dtype: torch.dtype) -> Model:
    """Give the metric of a timm model's ten logits."""
    import timm

    return featured(lambda: timm.create_model(name, num_classes=10), dtype)


def torchvision_network(name: str, dtype: torch.dtype) -> Model:
    """Give the metric of a torchvision model's ten logits."""
    import torchvision

    return featured(lambda: torchvision.models.get_model(name, weights=None, num_classes=10), dtype)


def transformers_network(kind: str, dtype: torch.dtype) -> Model:
    """Give the metric of a transformers model's features."""
    import transformers

    two = {"hidden_sizes": [8, 16], "depths": [1, 1]}
    options: dict = {
        "ConvNext": dict(num_stages=2, **two),
        "ResNet": dict(embedding_size=8, layer_type="basic", **two),
        "ViT": {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
        }
        | {"intermediate_size": 32, "patch_size": 8},
    }[kind]
    config = getattr(transformers, f"{kind}Config")(**options)
    build = getattr(transformers, f"{kind}Model")
    output = "last_hidden_state" if kind == "ViT" else "pooler_output"
    return featured(lambda: build(config), dtype, output)


def tiny(d: int, dtype: torch.dtype) -> Model:
    """Give the metric of AutoencoderTiny."""
    model, shape = autoencoder_tiny(d, dtype)
    return pulled_back(adapters.autoencoder(model, shape), d, dtype)


def kl(dtype: torch.dtype, attention: bool = False) -> Model:
    """Give the metric of AutoencoderKL."""
    decoder = adapters.autoencoder(autoencoder_kl(attention, dtype), image_size=4)
    return pulled_back(decoder, 16, dtype)


def vq(dtype: torch.dtype, attention: bool = False) -> Model:
    """Give the metric of VQModel."""
    decoder = adapters.autoencoder(vq_model(attention, dtype), image_size=4)
    return pulled_back(decoder, 12, dtype)


def pythae_vae(kind: str, dtype: torch.dtype) -> Model:
    """Give the metric of a decoder of pythae."""
    decoder = adapters.decoder(pythae_model(kind, dtype).decoder, "reconstruction")
    return pulled_back(decoder, 4, dtype)


def zuko_inverse(kind: str, dtype: torch.dtype) -> Model:
    """Give the metric of a flow of zuko, from noise to data."""
    flow = zuko_flow(kind, dtype)
    return pulled_back(lambda z: flow().transform.inv(z), 3, dtype)


def normflows_forward(kind: str, dtype: torch.dtype) -> Model:
    """Give the metric of a flow of normflows, from noise to data."""
    return pulled_back(adapters.decoder(normflows_flow(kind, dtype).forward), 4, dtype)


# by name: the library, the dimension, and what gives the model in a dtype
MODELS: dict[str, tuple[str, int, Callable[[torch.dtype], Model]]] = {
    "AutoencoderKL": ("diffusers", 16, kl),
    "AutoencoderKL, attention": ("diffusers", 16, partial(kl, attention=True)),
    "AutoencoderTiny, d = 16": ("diffusers", 16, partial(tiny, 16)),
    "AutoencoderTiny, d = 64": ("diffusers", 64, partial(tiny, 64)),
    "VQModel": ("diffusers", 12, vq),
    "VQModel, attention": ("diffusers", 12, partial(vq, attention=True)),
    "SCVI, mean": ("scvi", 10, scvi_expression),
    "SCVI, negative binomial": ("scvi", 10, scvi_fisher_rao),
    "SCVI, zero-inflated": ("scvi", 10, partial(scvi_fisher_rao, likelihood="zinb")),
    "SCVI, Poisson": ("scvi", 10, partial(scvi_fisher_rao, likelihood="poisson")),
    "VAE": ("pythae", 4, partial(pythae_vae, "VAE")),
    "NSF": ("zuko", 3, partial(zuko_inverse, "NSF")),
    "MAF": ("zuko", 3, partial(zuko_inverse, "MAF")),
    "NICE": ("zuko", 3, partial(zuko_inverse, "NICE")),
    "affine couplings": ("normflows", 4, partial(normflows_forward, "affine")),
    "spline couplings": ("normflows", 4, partial(normflows_forward, "spline")),
    "odeint": ("torchdiffeq", 3, neural_ode),
    "BayesianGPLVM": ("gpytorch", 2, gplvm),
    "resnet10t, features": ("timm", 4, partial(timm_network, "resnet10t")),
    "convnext_atto, features": ("timm", 4, partial(timm_network, "convnext_atto")),
    "mobilenet_v3_small, features": (
        "torchvision",
        4,
        partial(torchvision_network, "mobilenet_v3_small"),
    ),
    "shufflenet_v2_x0_5, features": (
        "torchvision",
        4,
        partial(torchvision_network, "shufflenet_v2_x0_5"),
    ),
    "regnet_y_400mf, features": (
        "torchvision",
        4,
        partial(torchvision_network, "regnet_y_400mf"),
    ),
    "ConvNextModel, features": ("transformers", 4, partial(transformers_network, "ConvNext")),
    "ResNetModel, features": ("transformers", 4, partial(transformers_network, "ResNet")),
    "ViTModel, features, attention": ("transformers", 4, partial(transformers_network, "ViT")),
}


def reference(model: Model, z: Tensor) -> Tensor:
    """Return metric tensors (n, d, d) by whole Jacobians in reverse mode, row by row."""
    found = []
    for row in z:
        whole = torch.autograd.functional.jacobian(lambda x: model.outputs(x[None])[0], row)
        weights = torch.ones_like(whole[:, 0])
        if model.information is not None:
            with torch.no_grad():
                weights = model.information(model.outputs(row[None]))[0]
        found.append(whole.mT @ (weights[:, None] * whole))
    return torch.stack(found)
