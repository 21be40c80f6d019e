"""The page for users of other libraries keeps its word: every block runs."""

import re
from pathlib import Path

import foreign_models
import pytest
import torch
from test_adapters import Conditional
from torch import nn

import geolatent as gl

# said by libraries of their own code
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.:FutureWarning")
PAGE = Path(__file__).parents[1] / "docs" / "my-model.md"
TEXT = PAGE.read_text(encoding="utf-8")
SECTIONS = {
    part.splitlines()[0]: re.findall(r"^```python\n(.*?)^```$", part, re.DOTALL | re.MULTILINE)
    for part in TEXT.split("\n## ")[1:]
}


def diffusers():
    torch.manual_seed(0)
    vae = foreign_models.autoencoder_kl(dtype=torch.float32)
    return {"vae": vae, "images": torch.randn(2, 3, 4, 4)}


def scanpy():
    pytest.importorskip("scvi")
    pytest.importorskip("leidenalg")
    model = foreign_models.scvi_model(epochs=2, n_genes=50)
    adata = model.adata[:200].copy()
    adata.obsm["X_scVI"] = model.get_latent_representation()[:200]
    codes = torch.from_numpy(adata.obsm["X_scVI"])
    return {"adata": adata, "metric": gl.adapters.metric(gl.adapters.scvi(model), codes)}


# by section: the library, the latent dimension, and what the reader has
GIVEN = {
    "Any module": (None, 12, lambda: {"model": Conditional()}),
    "Distributions": (None, 3, lambda: {"network": nn.Linear(3, 5)}),
    "diffusers": ("diffusers", 16, diffusers),
    "scvi-tools": ("scvi", 10, lambda: {"model": foreign_models.scvi_model(n_genes=50)}),
    "scanpy": ("scanpy", 10, scanpy),
    "pythae": (
        "pythae",
        4,
        lambda: {"model": foreign_models.pythae_model(dtype=torch.float32)},
    ),
    "zuko": ("zuko", 3, lambda: {"flow": foreign_models.zuko_flow(dtype=torch.float32)}),
    "normflows": (
        "normflows",
        4,
        lambda: {"flow": foreign_models.normflows_flow(dtype=torch.float32)},
    ),
    "torchdiffeq": ("torchdiffeq", 3, lambda: {"field": lambda t, y: torch.sin(y + t)}),
    "GPyTorch": (
        "gpytorch",
        2,
        lambda: {"model": foreign_models.bayesian_gplvm(torch.float32)},
    ),
    "timm, torchvision, transformers": (
        "timm",
        4,
        lambda: {"decoder": foreign_models.images(torch.float32)},
    ),
}


SLOW = {"diffusers", "scanpy"}
WITH_BLOCKS = [
    pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
    for name, blocks in SECTIONS.items()
    if blocks
]


@pytest.mark.parametrize("section", WITH_BLOCKS)
def test_blocks_run_as_written(section):
    library, d, given = GIVEN[section]
    if library is not None:
        pytest.importorskip(library)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        names = {"gl": gl, "torch": torch, "codes": torch.randn(4, d), **given()}
        codes = names["codes"]
        for block in SECTIONS[section]:
            if "transformers" in block:
                pytest.importorskip("transformers")
            exec(compile(block, str(PAGE), "exec"), names)
            codes = names["codes"] if names["codes"].shape[1] == d else codes
            if section == "GPyTorch":
                with pytest.warns(UserWarning, match="double backward"):
                    names["metric"].check("codes", codes[:1])
            tensor = names["metric"].tensor(codes[:1])
            assert tensor.isfinite().all()
            assert tensor.abs().max() > 0
            if "solution" in names:
                assert (names["solution"].length <= names["solution"].straight_length).all()
    if section == "scanpy":
        assert {"geodesic", "leiden"} <= set(names["adata"].obs)
        assert names["adata"].obsm["X_umap"].shape == (200, 2)


def test_every_section_is_tested():
    assert {name for name, blocks in SECTIONS.items() if blocks} == set(GIVEN)
    assert "```" not in re.sub(r"```python\n.*?^```$", "", TEXT, flags=re.DOTALL | re.MULTILINE)


def test_names_in_the_text_exist():
    for name in re.findall(r"gl(?:\.\w+)+", TEXT):
        value = gl
        for part in name.split(".")[1:]:
            value = getattr(value, part)


def test_lines_of_the_table_run():
    """Those without a section of their own."""

    def decoder(z):
        return z.sin()

    z = torch.randn(1, 2)
    for metric in (
        gl.PullbackMetric(decoder),
        gl.GaussianPullbackMetric(lambda z: (z.sin(), z.exp())),
        gl.adapters.metric(decoder, z),
        gl.PullbackMetric(decoder, torch.exp),
        gl.PullbackMetric(gl.by_differences(decoder)),
    ):
        assert metric.tensor(z).shape == (1, 2, 2)
