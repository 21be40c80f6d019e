"""The commands for distances, clusters and walks: what they store and draw."""

import warnings

import numpy as np
import pytest
import torch

from geolatent import LatentGraph, PreconditionedSolver, PullbackMetric, models
from geolatent.cli import main
from geolatent.lab import cluster, data, distances, walk
from geolatent.lab.data import DataOptions
from geolatent.lab.plotting import save_figures
from geolatent.lab.run import load_run
from geolatent.priors import prior_norm


def draw(run, command, folder):
    """Draw all figures of a run; return their names."""
    return sorted(path.stem for path in save_figures(command.figures(run), folder))


def test_distances_command(tmp_path, capsys):
    distances.Distances(
        out=tmp_path,
        data=DataOptions(split="test", classes=(0, 1, 2), per_class=2),
        solver=PreconditionedSolver(tolerance=1e-2),
        length_tolerance=1e-3,
        n_nodes=1500,
        n_neighbors=12,
        device="cpu",
    ).run()
    run = load_run(tmp_path)
    assert "geodesic" in capsys.readouterr().out
    matrices = {name: run.arrays[name] for name in ("geodesic", "graph", "straight", "latent")}
    for matrix in matrices.values():
        assert matrix.shape == (6, 6)
        np.testing.assert_allclose(matrix, matrix.T, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(np.diag(matrix), 0.0, atol=1e-4)
    assert (matrices["geodesic"] <= matrices["straight"] * (1 + 1e-3)).all()
    summary = run.summary["distances"]
    assert summary["geodesic"]["ratio"] > 1.0
    assert abs(summary["graph"]["excess"]["mean"]) < 0.1
    assert summary["straight"]["excess"]["min"] >= -1e-3
    assert draw(run, distances.Distances, tmp_path / "again") == ["compared", "distances"]


def test_cluster_command(tmp_path, capsys):
    cluster.Cluster(out=tmp_path, n_seeds=2, n_init=3, n_nodes=2000, device="cpu").run()
    run = load_run(tmp_path)
    assert "Rand" in capsys.readouterr().out
    methods = run.summary["methods"]
    plain, geodesic = (np.mean(methods[name]["adjusted_rand"]) for name in cluster.METHODS)
    assert geodesic > plain
    assert run.arrays["geodesic_clusters"].shape == (2, 450)
    assert run.arrays["euclidean_centers"].shape == (2, 10, 2)
    assert draw(run, cluster.Cluster, tmp_path / "again") == ["clusters", "scores"]


@pytest.mark.parametrize("kind", ["brownian", "radial", "circle"])
def test_walk_command(kind, tmp_path, capsys):
    walk.Walk(out=tmp_path, kind=kind, n_walks=2, n_steps=6, length=2.0, device="cpu").run()
    run = load_run(tmp_path)
    assert "magnification" in capsys.readouterr().out
    walks = run.arrays["walks"]
    assert walks.shape == (2, 7, 2)
    norms = np.linalg.norm(walks, axis=2)
    np.testing.assert_allclose(run.arrays["norm"], norms, rtol=1e-5)
    if kind == "radial":
        np.testing.assert_allclose(norms, np.linspace(0, 2, 7)[None].repeat(2, 0), atol=1e-5)
    if kind == "circle":
        np.testing.assert_allclose(norms, norms[:, :1].repeat(7, 1), rtol=1e-5)
    assert run.summary["prior_norm"]["mean"] == pytest.approx(prior_norm(2)[0])
    assert draw(run, walk.Walk, tmp_path / "again") == [
        "curves",
        "images",
        "outputs",
        "plane",
    ]


def test_report_has_a_row_for_each(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")  # nothing is wrapped
    few = DataOptions(split="test", per_class=3)
    walk.Walk(out=tmp_path / "walk", kind="radial", n_walks=2, n_steps=3).run()
    cluster.Cluster(out=tmp_path / "cluster", data=few, n_seeds=1, n_init=1, n_nodes=1700).run()
    distances.Distances(
        out=tmp_path / "distances",
        data=DataOptions(split="test", classes=(0, 1), per_class=2),
        solver=PreconditionedSolver(tolerance=1e-2),
        length_tolerance=1e-2,
        n_nodes=1700,
    ).run()
    capsys.readouterr()
    assert main(["report", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for text in ("2 radial walks", "adjusted Rand index", "between over within classes"):
        assert text in printed
    assert main(["plot", str(tmp_path / "walk")]) == 0
    assert "curves.png" in capsys.readouterr().out


def test_distances_of_images_without_classes(tmp_path, capsys):
    images, _ = data.digits("test")
    solver = PreconditionedSolver(tolerance=1e-1, max_control_points=7)

    def measure(out, n):  # a tenth of them are the test split
        np.save(tmp_path / f"{n}.npy", images[:n, 0].numpy())
        path = str(tmp_path / f"{n}.npy")
        chosen = DataOptions("file", split="test", path=path, low=-1.0, high=1.0)
        options = {"solver": solver, "length_tolerance": 1e-2, "n_nodes": 500, "device": "cpu"}
        distances.Distances(out=out, data=chosen, **options).run()

    measure(tmp_path / "run", 40)
    assert "geodesic" in capsys.readouterr().out
    assert load_run(tmp_path / "run").summary["distances"]["geodesic"]["ratio"] is None
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "4 images" in capsys.readouterr().out
    with pytest.raises(ValueError, match="`data` should be three or more images"):
        measure(tmp_path / "few", 20)


def test_commands_name_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="`n_walks`"):
        walk.Walk(out=tmp_path / "a", data=DataOptions(split="test", per_class=1), n_walks=99).run()
    with pytest.raises(ValueError, match="`n_clusters`"):
        cluster.Cluster(out=tmp_path / "b", n_clusters=1).run()
    (tmp_path / "c").mkdir()
    walk.Walk(out=tmp_path / "c", kind="radial", n_walks=1, n_steps=2).run()
    with pytest.raises(FileExistsError, match="overwrite"):
        walk.Walk(out=tmp_path / "c", kind="radial", n_walks=1, n_steps=2).run()


def test_islands_are_an_error():
    codes = torch.cat([torch.rand(5, 2), torch.rand(5, 2) + 50])

    def parted(z):
        return torch.where((z[:, :1] - 25.0).abs() < 20.0, torch.nan, z)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = LatentGraph.from_codes(PullbackMetric(parted), codes, n_neighbors=2)
    with pytest.raises(ValueError, match="connected"):
        cluster.cluster_codes(graph, codes, 2, [0])


def test_walks_of_a_higher_dimension_have_no_plane():
    vae = models.digits_vae()
    images, _ = data.digits("test")
    with torch.no_grad():
        start = vae.encode(images[:3])[0]
    metric = PullbackMetric(torch.nn.Linear(4, 9))
    codes = torch.cat([start, start], dim=1)
    walks, t = walk.walk_codes("brownian", metric, codes, length=1.0, n_steps=4)
    assert walks.shape == (3, 5, 4)
    assert t[-1] == pytest.approx(0.25)


def test_figures_in_the_formats_that_are_asked_for(tmp_path, capsys):
    few = ["--kind=radial", "--n_walks=1", "--n_steps=2", "--device=cpu"]
    assert main(["walk", f"--out={tmp_path}", *few, "--format=[pdf, svg]"]) == 0
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    names = ("curves", "images", "outputs", "plane")
    assert drawn == {f"{name}.{ending}" for name in names for ending in ("pdf", "svg")}
    assert main(["plot", str(tmp_path), "--format=svg"]) == 0
    assert "curves.svg" in capsys.readouterr().out
    assert main(["plot", str(tmp_path), "--format=jpg"]) == 2
    # nothing is computed before a format is refused
    with pytest.raises(ValueError, match="`format`"):
        walk.Walk(out=tmp_path / "other", format="jpg").run()
    assert not (tmp_path / "other").exists()
