"""Figures: every one can be drawn and saved, with named axes, also from awkward values."""

import numpy as np
import pytest
from matplotlib.image import imread

from geolatent import plotting, plotting_statistics

GENERATOR = np.random.default_rng(0)


def improvements(n=20, low=0.0):
    return low + 0.1 * GENERATOR.random(n)


def drawn(figure, tmp_path):
    """Save a figure and return its panels, those of colour bars apart."""
    path = plotting.save_figure(figure, tmp_path / "figure.png", dpi=40)
    pixels = imread(path)
    assert pixels.std() > 0
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def all_named(panels):
    return all(axes.get_xlabel() and axes.get_ylabel() for axes in panels)


def test_figures_are_named_files(tmp_path):
    figures = {"one": plotting.improvement_histograms({"a": improvements()})}
    assert plotting.save_figures(figures, tmp_path) == [tmp_path / "figures" / "one.png"]
    assert (tmp_path / "figures" / "one.png").read_bytes()[1:4] == b"PNG"


@pytest.mark.parametrize("shape", [(8, 8), (6, 8, 3)])
@pytest.mark.parametrize("n_pairs", [1, 3])
def test_image_strips(tmp_path, shape, n_pairs):
    images = GENERATOR.uniform(-1, 1, (n_pairs, 5, *shape))
    sequences = {"straight": images, "geodesic": images, "logistic geodesic": images}
    titles = [f"pair {pair}" for pair in range(n_pairs)]
    figure = plotting.image_strips(sequences, titles, (-1.0, 1.0))
    panels = drawn(figure, tmp_path)
    assert len(panels) == 3 * 5 * n_pairs
    assert [axes.get_ylabel() for axes in panels[::5]] == list(sequences) * n_pairs


def test_channels_are_moved_or_dropped():
    assert plotting.grey_or_colour(np.zeros((2, 5, 1, 8, 6))).shape == (2, 5, 8, 6)
    assert plotting.grey_or_colour(np.zeros((2, 3, 8, 6))).shape == (2, 8, 6, 3)
    with pytest.raises(ValueError, match="one or three channels"):
        plotting.grey_or_colour(np.zeros((2, 2, 8, 6)))


@pytest.mark.parametrize("n_images", [1, 13])
def test_image_grid(tmp_path, n_images):
    images = GENERATOR.uniform(-1, 1, (n_images, 8, 8))
    assert len(drawn(plotting.image_grid(images, (-1.0, 1.0)), tmp_path)) == n_images


@pytest.mark.parametrize("values", [improvements(), np.zeros(3), improvements(1)])
def test_improvement_histograms(tmp_path, values):
    figure = plotting.improvement_histograms({"step 1": values, "step 2": 2 * values})
    panels = drawn(figure, tmp_path)
    assert [axes.get_ylabel() for axes in panels] == ["pairs", "pairs"]
    assert panels[-1].get_xlabel() == "relative length improvement over the straight line (%)"


def test_improvement_by_step(tmp_path):
    groups = {1.0: improvements(), 2.0: improvements(low=0.1), 4.0: improvements(low=0.2)}
    panels = drawn(plotting.improvement_by_step(groups), tmp_path)
    assert all_named(panels)
    means = panels[0].lines[0].get_ydata()
    np.testing.assert_allclose(means, [100 * values.mean() for values in groups.values()])


@pytest.mark.parametrize("n_pairs", [0, 1, 20])
def test_before_and_after(tmp_path, n_pairs):
    straight, geodesic = improvements(n_pairs), improvements(n_pairs)
    if n_pairs > 1:
        geodesic[0] = np.nan
    panels = drawn(plotting.before_and_after(straight, geodesic, "alignment"), tmp_path)
    assert all_named(panels)


@pytest.mark.parametrize("n_sequences", [1, 3])
def test_correlation_matrices(tmp_path, n_sequences):
    matrices = GENERATOR.uniform(0.2, 1, (2, n_sequences, 6, 6))
    names = [f"curve {number}" for number in range(n_sequences)]
    figure = plotting.correlation_matrices(matrices, names, ["pair 0", "pair 1"])
    assert len(drawn(figure, tmp_path)) == 2 * n_sequences
    titles = [axes.get_title() for axes in figure.axes[:n_sequences]]
    assert all(title.startswith(name) for title, name in zip(titles, names, strict=True))


@pytest.mark.parametrize("most", [0, 3, 40])
def test_count_bars(tmp_path, most):
    counts = {"straight": np.arange(most + 1), "geodesic": np.zeros(most + 1, dtype=np.int64)}
    panels = drawn(plotting.count_bars(counts, "changes of class along the curve"), tmp_path)
    assert all_named(panels)


@pytest.mark.parametrize("n_models", [2, 3])
def test_improvements_compared(tmp_path, n_models):
    values = {f"model {number}": improvements() for number in range(n_models)}
    comparable = GENERATOR.random(20) > 0.5
    figure = plotting.improvements_compared(values, comparable, 0.02)
    panels = drawn(figure, tmp_path)
    assert len(panels) == n_models - 1
    assert all_named(panels)


def test_landscape_maps(tmp_path):
    axes = (np.linspace(-2, 2, 12), np.linspace(0, 3, 12))
    grid = GENERATOR.uniform(1, 5, (12, 12))
    grid[0, 0] = np.nan
    direction = GENERATOR.standard_normal((12, 12, 2))
    codes, labels = GENERATOR.standard_normal((30, 2)), np.arange(30) % 3
    figure = plotting.landscape_maps(axes, grid, grid, direction, grid, codes, labels)
    assert all_named(drawn(figure, tmp_path))


def test_norm_profiles(tmp_path):
    times = np.linspace(0, 1, 9)
    norms = {"straight": GENERATOR.uniform(5, 10, (4, 9)), "slerp": np.full((4, 9), 10.0)}
    panels = drawn(plotting.norm_profiles(times, norms, (9.97, 0.71)), tmp_path)
    assert all_named(panels)
    assert panels[0].lines[-1].get_ydata() == pytest.approx(norms["slerp"].mean(0))


@pytest.mark.parametrize("n_classes", [1, 3, 12])
def test_clusters_and_walks_in_the_plane(tmp_path, n_classes):
    codes, labels = GENERATOR.standard_normal((40, 2)), np.arange(40) % n_classes
    centers = {"k-means": codes[:n_classes]}
    figure = plotting_statistics.cluster_maps(
        codes, {"classes": labels, "k-means": labels}, centers
    )
    assert len(drawn(figure, tmp_path)) == 2
    walks = GENERATOR.standard_normal((3, 7, 2))
    walks[1, 4:] = np.nan
    assert all_named(drawn(plotting_statistics.walks_in_the_plane(codes, labels, walks), tmp_path))
    place = np.linspace(0, 1, 7)
    outputs = GENERATOR.uniform(-1, 1, (n_classes, 7, 5))
    panels = drawn(plotting_statistics.output_curves(place, "turns", outputs, "pixels"), tmp_path)
    assert sum(bool(axes.get_title()) for axes in panels) == n_classes


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2], [2, 2, 7]])
def test_distance_matrices(tmp_path, labels):
    matrix = GENERATOR.uniform(0, 1, (3, 3))
    figure = plotting_statistics.distance_matrices(
        {"geodesic": (matrix, "output units")}, np.array(labels)
    )
    (panel,) = drawn(figure, tmp_path)
    assert [text.get_text() for text in panel.get_xticklabels()] == [
        str(label) for label in sorted(set(labels))
    ]
