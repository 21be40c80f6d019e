"""What all experiments share: the order of their steps, their options, their metric, their cost."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

import geolatent as gl
from geolatent.cli import main
from geolatent.lab.cluster import Cluster
from geolatent.lab.compare import Compare
from geolatent.lab.compare_paths import ComparePaths
from geolatent.lab.config import (
    AnimationOptions,
    DataOptions,
    FeatureOptions,
    InitialOptions,
    ModelOptions,
)
from geolatent.lab.distances import Distances
from geolatent.lab.dry_run import dry_run
from geolatent.lab.experiment import MetricExperiment, as_option
from geolatent.lab.improvement import Improvement
from geolatent.lab.interpolate import Interpolate
from geolatent.lab.landscape import Landscape
from geolatent.lab.run import load_run
from geolatent.lab.sample import Sample
from geolatent.lab.traverse import Traverse
from geolatent.lab.walk import Walk

FEW = DataOptions(split="test", per_class=3)


@dataclass(frozen=True, kw_only=True)
class Volume(MetricExperiment):
    """Measure the volume element at some codes of the prior."""

    called: ClassVar[list[str]] = []
    failing: ClassVar[str] = ""

    out: Path = Path("runs/volume")
    n: int = 3

    def note(self, name):
        self.called.append(name)
        if name == self.failing:
            raise ValueError(name)

    def check(self):
        super().check()
        self.note("check")

    def prepare(self):
        self.note("prepare")

    def work(self, folder, console):
        self.note("work")
        console.print(f"at work in {folder.path}")
        assert folder.path.is_dir()
        codes = torch.zeros(self.n, self.codec.dim)
        volume = torch.linalg.det(self.pulled_back.tensor(codes)).sqrt()
        return {"mean": volume.mean().item()}, {"volume": volume}

    def tell(self, console, summary):
        self.note("tell")
        console.print(f"mean {summary['mean']}")

    @staticmethod
    def figures(run):
        Volume.called.append("figures" if run.finished else "nothing to draw")
        return {}


@pytest.fixture(autouse=True)
def _nothing_called(monkeypatch):
    monkeypatch.setattr(Volume, "called", [])


def test_the_steps_of_a_run_come_in_order(tmp_path, capsys):
    run = Volume(out=tmp_path / "run", n=2).run()
    assert Volume.called == ["check", "prepare", "work", "tell", "figures"]
    assert run.command == "volume"
    assert run.arrays["volume"].shape == (2,)
    assert run.summary["seconds"] >= 0
    assert f"Results: {tmp_path / 'run'}" in capsys.readouterr().out
    with pytest.raises(FileExistsError, match="overwrite"):
        Volume(out=tmp_path / "run").run()
    assert Volume(out=tmp_path / "run", overwrite=True).run().arrays["volume"].shape == (3,)


@pytest.mark.parametrize("step", ["check", "prepare", "work"])
def test_a_folder_is_taken_when_all_is_prepared_and_given_back(step, tmp_path, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setattr(Volume, "failing", step)
    with pytest.raises(ValueError, match=step):
        Volume(out=out).run()
    assert out.exists() == (step == "work")
    monkeypatch.setattr(Volume, "failing", "")
    # of an experiment that cannot go on, what is there is replaced where that is asked for
    assert Volume(out=out, overwrite=True).run().finished


def test_a_dry_run_checks_and_writes_nothing(tmp_path, capsys):
    dry_run(Volume(out=tmp_path / "run"), {})
    assert Volume.called == ["check"]
    assert "Model model: MLPVAE, 2 latent dimensions" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "experiment",
    [
        Improvement(steps=(1.0, 2.0), solver=gl.FirstOrderSolver.michelis_becker()),
        Improvement(solver=gl.GEORCESolver(segments=7), pairs="codes", codes=Path("codes.npy")),
        Improvement(initial=InitialOptions("codes", n_nodes=None), max_rows=5),
        Cluster(model=ModelOptions("a.safetensors"), format=["png", "pdf"], n_clusters=3),
        Compare(models={"a": {}, "b": {"checkpoint": "a.safetensors", "latent_dim": 3}}),
        Interpolate(pairs="codes", codes=Path("codes.npy"), n_images=5),
        ComparePaths(geodesics=("density", "mean"), n_reference=None, n_images=5),
        Landscape(features=FeatureOptions(kind="logistic"), margin=0.5),
        Sample(source="data", data=FEW),
        Distances(
            solver=gl.GEORCESolver(segments=7), n_nodes=50, features=FeatureOptions("logistic")
        ),
        Walk(kind="circle", prior="uniform", data=FEW, max_rows=5),
        Walk(kind="loop", animate=True, animation=AnimationOptions(["gif", "webp"], n_frames=3)),
        Traverse(sample=3, attributes=((3, 8), (1, 7))),
    ],
)
def test_the_stored_options_give_the_experiment_again(experiment, tmp_path, monkeypatch):
    from geolatent.lab.run import RunFolder

    out = tmp_path / "run"
    with RunFolder.create(out, experiment.command, experiment.options, seed=0, device="cpu"):
        pass
    (tmp_path / "codes.npy").write_bytes(b"")
    (tmp_path / "a.safetensors").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    again = []
    monkeypatch.setattr(type(experiment), "run", lambda self: again.append(self))
    assert main([experiment.command, "--config", str(out / "config.yaml")]) == 0
    assert again == [experiment]
    assert set(experiment.options) == {field.name for field in fields(experiment)}


def test_costs_of_distances_and_walks():
    pairs = Distances(data=FEW, n_nodes=50)
    cost = pairs.cost(pairs.codec)
    assert (cost.n_geodesics, cost.rows) == (30 * 29 // 2, 50)
    walks = [Walk(kind=kind, n_walks=2, n_steps=4, length=0.1) for kind in ("radial", "brownian")]
    straight, random = (walk.cost(walk.codec) for walk in walks)
    assert straight.rows == random.rows == 2 * 5 * (2 * 2.5 + 1)  # JVPs, and the image
    assert straight.seconds == 0 < random.seconds


def test_options_that_are_no_objects_stay_as_they_are():
    for value in (3, None, Path("a"), FEW, (1.0, 2.0)):
        assert as_option(value) is value


@pytest.mark.parametrize("features", ["none", "logistic"])
def test_the_metric_is_limited_where_it_is_made(features, tmp_path):
    experiment = Volume(
        out=tmp_path, max_rows=5, features=FeatureOptions(kind=features), dtype="float64"
    )
    assert experiment.pulled_back.max_rows == 5
    assert (experiment.features_made[1] is not None) == (features == "logistic")
    assert experiment.codec.like.dtype == torch.float64


@pytest.mark.parametrize(
    "kind", [Improvement, Interpolate, Compare, Landscape, Cluster], ids=lambda kind: kind.__name__
)
def test_a_feature_map_that_cannot_be_made_is_told_before_anything_is_written(kind, tmp_path):
    features = FeatureOptions(kind="module", class_path="nowhere.Module")
    options = {Compare: {"models": {"a": {}, "b": {}}}, Improvement: {"pairs": "prior"}}
    with pytest.raises((ValueError, ImportError), match="nowhere"):
        kind(out=tmp_path / "run", features=features, **options.get(kind, {})).run()
    assert not (tmp_path / "run").exists()


def test_images_of_the_data_need_no_model(tmp_path, capsys):
    missing = ModelOptions("missing.safetensors")
    run = Sample(out=tmp_path, source="data", model=missing, data=FEW, n_samples=4).run()
    assert run.arrays["samples"].shape == (4, 1, 8, 8)
    assert f"4 images in {tmp_path / 'images'}" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match=r"missing\.safetensors"):
        Sample(out=tmp_path, model=missing, overwrite=True).run()


def test_max_rows_changes_no_results(tmp_path, capsys):
    common = {"pairs": "prior", "n_pairs": 2, "seed": 3, "device": "cpu"}
    solver = gl.PreconditionedSolver(max_control_points=7)
    initial = InitialOptions("lattice", resolution=20)
    runs = [
        Improvement(
            out=tmp_path / f"{rows}", max_rows=rows, solver=solver, initial=initial, **common
        ).run()
        for rows in (None, 64)
    ]
    np.testing.assert_allclose(*(run.pairs.column("length") for run in runs), rtol=1e-4)


def test_a_graph_that_several_cases_share_is_counted_once(tmp_path, capsys):
    run = Improvement(
        out=tmp_path,
        n_pairs=1,
        steps=(0.5, 1.0),
        solver=gl.PreconditionedSolver(max_control_points=7),
        initial=InitialOptions("lattice", resolution=16),
        alignment=False,
        device="cpu",
    )
    assert len(run.cases()) == 2
    graph = run.cases()[0].initial
    assert run.run().summary["graph_rows"] == graph.forward_rows


def test_clusters_are_found_under_a_feature_map(tmp_path, capsys):
    options = {"data": FEW, "n_seeds": 1, "n_init": 1, "n_nodes": 1700, "device": "cpu"}
    Cluster(out=tmp_path, features=FeatureOptions(kind="logistic"), **options).run()
    assert load_run(tmp_path).config["features"]["kind"] == "logistic"
    assert main(["cluster", "--dry-run", f"--out={tmp_path / 'other'}"]) == 0
    assert "about 6,000 decoder rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "n_geodesics"),
    [({}, 300), ({"steps": (1.0,)}, 100), ({"pairs": "prior", "n_pairs": 7}, 7)],
)
def test_a_cost_counts_the_geodesics(options, n_geodesics):
    experiment = Improvement(**options)
    cost = experiment.cost(experiment.codec)
    assert cost.n_geodesics == n_geodesics
    assert cost.rows == 256**2
    cheaper = Improvement(**options, alignment=False, initial=InitialOptions("straight"))
    assert cheaper.cost(experiment.codec).rows_each < cost.rows_each
