"""Adapters on the models of other libraries, and on stand-ins for what they return."""

import warnings
from dataclasses import dataclass

import foreign_models
import pytest
import torch
from foreign_models import MODELS, reference
from torch import distributions as td
from torch import nn

import geolatent as gl
from geolatent import adapters

pytestmark = [
    pytest.mark.usefixtures("float64"),
    # said by the libraries of their own code
    pytest.mark.filterwarnings("ignore:.torch.jit.:FutureWarning"),
]
# what has no forward-mode rule in the library itself
DOUBLE_BACKWARD = {"BayesianGPLVM"}


@dataclass
class Output:
    """As libraries return theirs."""

    sample: torch.Tensor
    scale: float = 1.0


class Conditional(nn.Module):
    """A decoder of images with a label, an option and an output of several parts."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(2, 3, 3, padding=1)
        self.labels = nn.Embedding(4, 3)

    def forward(self, z, label, scale=1.0):
        sample = scale * (self.body(z) + self.labels(label)[:, :, None, None]).tanh()
        return Output(sample)


def test_shape_fixed_arguments_and_output():
    model = Conditional()
    decoder = adapters.decoder(model, "sample", (2, 2, 3), label=torch.tensor([3]), scale=2.0)
    z = torch.randn(5, 12)
    expected = model(z.reshape(5, 2, 2, 3), torch.full((5,), 3), 2.0).sample
    torch.testing.assert_close(decoder(z), expected, rtol=0, atol=0)
    whole = gl.PullbackMetric(decoder).tensor(z[:1])
    torch.testing.assert_close(
        whole, gl.PullbackMetric(lambda z: decoder(z).flatten(1)).tensor(z[:1])
    )


@pytest.mark.parametrize("returned", [dict, tuple, Output])
def test_outputs_by_key_attribute_and_place(returned):
    def function(z):
        values = {"sample": 2.0 * z, "scale": 3.0 * z}
        return (
            values
            if returned is dict
            else returned(values.values())
            if returned is tuple
            else Output(**values)
        )

    names = (0, 1) if returned is tuple else ("sample", "scale")
    z = torch.rand(2, 3)
    torch.testing.assert_close(adapters.decoder(function, names[1])(z), 3.0 * z)
    both = adapters.decoder(function, names)
    expected = 13.0 * torch.eye(3).expand(2, 3, 3)
    torch.testing.assert_close(gl.GaussianPullbackMetric(both).tensor(z), expected)
    with pytest.raises(TypeError, match=rf"`output` should be one of {names[0]!r}, {names[1]!r}"):
        adapters.decoder(function)(z)
    with pytest.raises(ValueError, match=rf"one of {names[0]!r}.*Found `output = 'mean'`"):
        adapters.decoder(function, "mean")(z)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: adapters.decoder("vae"), TypeError, "`function` should be callable"),
        (lambda: adapters.decoder(torch.sin, 1.5), TypeError, "`output`"),
        (lambda: adapters.decoder(torch.sin, shape=(2, 0)), ValueError, "`shape`"),
        (
            lambda: adapters.decoder(torch.sin, shape=(2, 2))(torch.ones(1, 3)),
            ValueError,
            "3 numbers",
        ),
        (lambda: adapters.decoder(nn.Dropout()), ValueError, "eval"),
        (lambda: adapters.decoder(repr)(torch.ones(1, 3)), TypeError, "no tensor"),
        (lambda: adapters.autoencoder(nn.Linear(2, 2), (1, 2, 2)), TypeError, "`model`"),
        (lambda: adapters.gplvm(None), TypeError, "`model`"),
        (lambda: adapters.scvi(nn.Linear(2, 2)), TypeError, "`model`"),
        (lambda: adapters.metric(None, torch.ones(1, 2)), TypeError, "`decoder`"),
        (lambda: adapters.metric(torch.sin, torch.ones(2)), ValueError, "`codes`"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_distributions_pass_through():
    decoder = adapters.decoder(lambda z: td.Poisson(z.exp()))
    z = torch.randn(2, 3)
    assert isinstance(adapters.metric(decoder, z), gl.PoissonPullbackMetric)
    # and a part of one is a tensor
    assert isinstance(adapters.metric(adapters.decoder(decoder, "mean"), z), gl.PullbackMetric)


@pytest.mark.parametrize("name", MODELS)
def test_metric_of_a_real_model_is_that_of_whole_jacobians(name):
    library, d, build = MODELS[name]
    pytest.importorskip(library)
    model = build(torch.float64)
    z = model.start[:1]
    assert z.shape == (1, d)
    if name in DOUBLE_BACKWARD:
        with pytest.warns(UserWarning, match="double backward"):
            found = model.metric.tensor(z)
    else:
        found = model.metric.tensor(z)
    expected = reference(model, z)
    scale = float(expected.abs().max())
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=1e-9 * scale)


# one of each library, the quickest
SOLVED = ["AutoencoderTiny, d = 16", "SCVI, negative binomial", "VAE", "MAF", "affine couplings"]
SOLVED += ["BayesianGPLVM", "odeint", "ResNetModel, features"]


@pytest.mark.parametrize("name", SOLVED)
def test_geodesics_of_real_models(name):
    library, _, build = MODELS[name]
    pytest.importorskip(library)
    model = build(torch.float32)
    with warnings.catch_warnings():
        if name in DOUBLE_BACKWARD:
            warnings.filterwarnings("ignore", ".*double backward", UserWarning)
        solution = gl.solve_geodesic(model.metric, model.start, model.end)
    assert (solution.length <= solution.straight_length).all()
    ends = {gl.Status.CONVERGED, gl.Status.ROUGH, gl.Status.STRAIGHT_IS_SHORTEST}
    assert set(solution.statuses) <= ends


class TestDiffusers:
    @pytest.fixture(autouse=True)
    def _needs(self):
        pytest.importorskip("diffusers")

    def test_codes_are_those_of_the_diffusion_model(self):
        model = foreign_models.autoencoder_kl()
        decoder = adapters.autoencoder(model, (4, 2, 2))
        z = torch.randn(3, 16)
        scaled = z.reshape(3, 4, 2, 2) / model.config.scaling_factor + model.config.shift_factor
        torch.testing.assert_close(decoder(z), model.decode(scaled).sample)

    def test_latent_shape_follows_from_the_images(self):
        for model, shape in (
            (foreign_models.autoencoder_kl(), (4, 3, 2)),
            (foreign_models.autoencoder_tiny()[0], (4, 3, 2)),
            (foreign_models.vq_model(), (3, 3, 2)),
        ):
            decoder = adapters.autoencoder(model, image_size=(6, 4))
            assert decoder.shape == shape
            assert decoder(torch.randn(1, shape[0] * 6)).shape == (1, 3, 6, 4)

    def test_shape_or_size(self):
        model = foreign_models.vq_model()
        with pytest.raises(ValueError, match="`shape` should be given, or `image_size`"):
            adapters.autoencoder(model)
        with pytest.raises(ValueError, match="multiple of 2"):
            adapters.autoencoder(model, image_size=5)

    def test_quantisation_has_no_gradient_and_is_left_out(self):
        model = foreign_models.vq_model()
        z = torch.randn(2, 12)
        plain = adapters.autoencoder(model, (3, 2, 2))(z)
        scaled = z.reshape(2, 3, 2, 2) / model.config.scaling_factor
        quantised = model.decode(scaled).sample
        assert not torch.allclose(plain, quantised)
        torch.testing.assert_close(plain, model.decode(scaled, force_not_quantize=True).sample)

    def test_codes_that_are_numbers_of_a_codebook_are_refused(self):
        from diffusers import VQModel

        model = VQModel(lookup_from_codebook=True, norm_num_groups=1, block_out_channels=(4,))
        with pytest.raises(ValueError, match="lookup_from_codebook"):
            adapters.autoencoder(model.eval(), (3, 2, 2))


class TestSingleCells:
    @pytest.fixture(autouse=True)
    def _needs(self):
        pytest.importorskip("scvi")
        pytest.importorskip("scanpy")

    @pytest.mark.parametrize(
        ("likelihood", "dispersion", "expected"),
        [
            ("nb", "gene", gl.NegativeBinomialPullbackMetric),
            ("nb", "gene-batch", gl.NegativeBinomialPullbackMetric),
            ("nb", "gene-cell", gl.NegativeBinomialFisherRaoMetric),
            ("zinb", "gene", gl.ZeroInflatedNegativeBinomialMetric),
            ("poisson", "gene", gl.PoissonPullbackMetric),
            ("normal", "gene", gl.GaussianPullbackMetric),
        ],
    )
    def test_metric_of_the_likelihood(self, likelihood, dispersion, expected):
        batch = dispersion == "gene-batch"
        model = foreign_models.scvi_model(
            likelihood, dispersion=dispersion, batch=batch, epochs=1, n_genes=30
        )
        codes = torch.from_numpy(model.get_latent_representation())
        decoder = adapters.scvi(model, batch="S" if batch else None)
        metric = adapters.metric(decoder, codes)
        assert type(metric) is expected
        assert metric.tensor(codes[:2]).shape == (2, 10, 10)

    def test_zero_inflation_with_a_dispersion_of_the_cell_is_refused(self):
        model = foreign_models.scvi_model("zinb", dispersion="gene-cell", epochs=1, n_genes=30)
        codes = torch.from_numpy(model.get_latent_representation())
        with pytest.raises(ValueError, match="`theta` does not depend on the code"):
            adapters.metric(adapters.scvi(model), codes)

    def test_expression_is_the_models_own(self):
        """With batch and covariates, against scvi-tools' own prediction from cells."""
        model = foreign_models.scvi_model(
            batch=True,
            epochs=1,
            n_genes=30,
            categorical_covariate_keys=["bulk_labels"],
            continuous_covariate_keys=["percent_mito"],
        )
        data = model.adata
        cell = 5
        covariates = {
            "bulk_labels": data.obs["bulk_labels"].iloc[cell],
            "percent_mito": float(data.obs["percent_mito"].iloc[cell]),
        }
        code = torch.from_numpy(model.get_latent_representation(indices=[cell]))
        decoder = adapters.scvi(
            model, "mean", library_size=500.0, batch="G2M", covariates=covariates
        )
        found = decoder(code)
        assert found.shape == (1, 30)
        assert float(found.detach().sum()) == pytest.approx(500.0, rel=1e-4)
        with torch.no_grad():
            module = model.module
            tensors = next(iter(model._make_data_loader(adata=data, indices=[cell])))
            inputs = module._get_inference_input(tensors)
            outputs = module.inference(**inputs)
            outputs["z"] = code
            given = module._get_generative_input(tensors, outputs)
            given["library"] = torch.full((1, 1), 500.0).log().float()
            given["transform_batch"] = None
            given["batch_index"] = torch.full_like(given["batch_index"], 1)
            own = module.generative(**given)["px"].mean
        names = list(model.adata_manager.get_state_registry("batch").categorical_mapping)
        assert names.index("G2M") == 1
        torch.testing.assert_close(found.detach(), own)

    def test_a_dispersion_by_labels_is_refused(self):
        model = foreign_models.scvi_model(
            dispersion="gene-label", epochs=1, n_genes=30, labels_key="bulk_labels"
        )
        with pytest.raises(ValueError, match="gene-label"):
            adapters.scvi(model)

    def test_what_must_be_fixed(self):
        model = foreign_models.scvi_model(
            batch=True, epochs=1, n_genes=30, continuous_covariate_keys=["percent_mito"]
        )
        with pytest.raises(ValueError, match="`batch` should be one of 'G1', 'G2M', 'S'"):
            adapters.scvi(model)
        with pytest.raises(ValueError, match=r"`covariates` should be a value for each of"):
            adapters.scvi(model, batch="S")
        with pytest.raises(ValueError, match=r"Found `covariates = \['percent_mito', 'sex'\]`"):
            adapters.scvi(model, batch="S", covariates={"percent_mito": 1.0, "sex": "f"})
        with pytest.raises(ValueError, match="`library_size`"):
            adapters.scvi(model, batch="S", covariates={"percent_mito": 1.0}, library_size=0.0)

    @pytest.mark.slow
    def test_neighbours_clusters_and_map_of_cells(self):
        scanpy = pytest.importorskip("scanpy")
        pytest.importorskip("leidenalg")
        model = foreign_models.scvi_model(epochs=3, n_genes=30)
        data = model.adata[:50].copy()
        data.obsm["X_scVI"] = model.get_latent_representation()[:50]
        codes = torch.from_numpy(data.obsm["X_scVI"])
        metric = adapters.metric(adapters.scvi(model), codes)
        near = gl.GeodesicKNeighborsTransformer(metric, 5)
        scanpy.pp.neighbors(data, use_rep="X_scVI", transformer=near)
        assert data.uns["neighbors"]["params"]["n_neighbors"] == 5
        lengths = data.obsp["distances"]
        # straight lines are no shorter, and distances are the same both ways
        i, j = lengths.nonzero()
        pairs = torch.from_numpy(data.obsm["X_scVI"][i]), torch.from_numpy(data.obsm["X_scVI"][j])
        straight = gl.path_length(metric, gl.CubicBSpline.straight(*pairs), tolerance=1e-2)
        found = torch.from_numpy(lengths[i, j].A1).to(straight)
        assert (found <= straight * (1 + 1e-2)).all()
        both = lengths.multiply(lengths.T > 0)
        assert abs(both - both.T).max() == 0
        scanpy.tl.leiden(data, flavor="igraph", n_iterations=2, directed=False)
        assert data.obs["leiden"].nunique() > 1
        graph = gl.LatentGraph.from_codes(metric, codes, n_neighbors=10)
        kmeans = gl.GeodesicKMeans(metric, 3, graph=graph, random_state=0)
        data.obs["geodesic"] = kmeans.fit_predict(codes).astype(str)
        assert set(data.obs["geodesic"]) == {"0", "1", "2"}
