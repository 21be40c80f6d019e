"""The pages for users of other libraries keep their word: every block runs."""

import math
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
DOCS = Path(__file__).parents[1] / "docs"
TEXTS = {
    name: (DOCS / f"{name}.md").read_text(encoding="utf-8")
    for name in ("my-model", "cells", "latents")
}
# sections of My model by their names, those of the other pages after the page's
SECTIONS = {
    title if page == "my-model" else f"{page}: {title}": re.findall(
        r"^```python\n(.*?)^```$", part, re.DOTALL | re.MULTILINE
    )
    for page, text in TEXTS.items()
    for part in text.split("\n## ")[1:]
    for title in part.splitlines()[:1]
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


def scvi_codes():
    model = foreign_models.scvi_model(n_genes=50)
    return {"model": model, "codes": torch.from_numpy(model.get_latent_representation())}


# by section: the library, the latent dimension, and what the reader has
GIVEN = {
    "Any module": (None, 12, lambda: {"model": Conditional()}),
    "Distributions": (None, 3, lambda: {"network": nn.Linear(3, 5)}),
    "diffusers": ("diffusers", 16, diffusers),
    "scvi-tools": ("scvi", 10, lambda: {"model": foreign_models.scvi_model(n_genes=50)}),
    "scanpy": ("scanpy", 10, scanpy),
    "cells: The metric": ("scvi", 10, lambda: {"model": foreign_models.scvi_model(n_genes=50)}),
    "cells: AnnData and scanpy": ("scvi", 10, scvi_codes),
    "latents: The decoder": ("diffusers", 16, diffusers),
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


SLOW = {"diffusers", "scanpy", "latents: The decoder"}
WITH_BLOCKS = [
    pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
    for name, blocks in SECTIONS.items()
    if blocks
]


@pytest.mark.site
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
            exec(compile(block, section, "exec"), names)
            codes = names["codes"] if math.prod(names["codes"].shape[1:]) == d else codes
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
    for text in TEXTS.values():
        assert "```" not in re.sub(r"```python\n.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def test_names_in_the_text_exist():
    for name in re.findall(r"gl(?:\.\w+)+", "".join(TEXTS.values())):
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
