"""Figures: every one can be drawn and saved, with named axes, also from awkward values."""

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread

from geolatent.lab import landscape, plotting, plotting_statistics, walk
from geolatent.lab.config import check_formats
from geolatent.lab.summary import paired_comparison

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


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 8)])
@pytest.mark.parametrize("n_pairs", [1, 3])
def test_image_strips(tmp_path, shape, n_pairs):
    images = GENERATOR.uniform(-1, 1, (n_pairs, 5, *shape))
    sequences = {"straight": images, "geodesic": images, "logistic geodesic": images}
    titles = [f"pair {pair}" for pair in range(n_pairs)]
    figure = plotting.image_strips(sequences, titles)
    panels = drawn(figure, tmp_path)
    assert [axes.get_ylabel() for axes in panels] == list(sequences) * n_pairs
    assert all(len(axes.images) == 5 for axes in panels)
    assert [text.get_text() for text in panels[-1].get_xticklabels()] == [
        "0",
        "0.25",
        "0.5",
        "0.75",
        "1",
    ]


@pytest.mark.parametrize(("n_pairs", "n_images"), [(6, 11), (6, 13), (2, 30), (1, 60)])
def test_image_strips_fit_a_page(n_pairs, n_images):
    """A4 less margins; long strips go on in another line."""
    images = np.zeros((n_pairs, n_images, 1, 8, 8))
    sequences = {"straight": images, "slerp": images, "geodesic": images, "features": images}
    figure = plotting.image_strips(sequences, [f"pair {i}" for i in range(n_pairs)])
    width, height = figure.get_size_inches()
    assert width <= 7.5
    assert height <= 11.0
    assert sum(len(axes.images) for axes in figure.axes) == 4 * n_pairs * n_images
    # nothing lies over anything else, nor off the page
    boxes = [axes.get_position() for axes in figure.axes]
    assert all(box.y0 > 0.0 and box.y1 < 1.0 and box.x1 <= 1.0 + 1e-9 for box in boxes)
    assert all(below.y1 <= above.y0 + 1e-9 for above, below in pairwise(boxes))


def test_images_that_are_not_finite_are_marked(tmp_path):
    images = np.zeros((1, 3, 1, 4, 4))
    images[0, 2] = np.nan
    figure = plotting.image_strips({"walk 1": images}, ["walks"])
    (axes,) = drawn(figure, tmp_path)
    assert [line.get_xdata()[0] for line in axes.lines] == [2]
    pixels = imread(tmp_path / "figure.png")
    # black images, a white page, and the grey field of the third
    greys = (np.abs(pixels[:, :, 0] - 0.784) < 0.01).mean()
    assert greys > 0.08


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_formats(tmp_path, ending):
    grid, axes = GENERATOR.uniform(1, 5, (12, 12)), (np.linspace(-2, 2, 12),) * 2
    codes, labels = GENERATOR.standard_normal((30, 2)), np.arange(30) % 3
    lines = GENERATOR.standard_normal((2, 5, 2))

    def draw(folder):
        figure = plotting.latent_plane(axes, grid, codes, labels, lines, lines)
        (path,) = plotting.save_figures({"plane": figure}, folder, [ending, ending])
        return path.read_bytes()

    content = draw(tmp_path)
    assert (tmp_path / "figures" / f"plane.{ending}").is_file()
    begins = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}
    assert content.startswith(begins[ending])
    assert content == draw(tmp_path / "again")
    if ending == "svg":  # text is text, the map is pixels
        assert b"latent coordinate" in content
        assert content.count(b"<image") >= 1
    if ending == "pdf":
        assert b"/TrueType" in content or b"/Type0" in content
        assert b"/Subtype /Image" in content


def test_formats_that_are_not_known_are_told():
    for wrong in ("jpg", ["png", "gif"]):
        with pytest.raises(ValueError, match="`format` should be one of png, pdf, svg"):
            check_formats(wrong)
    with pytest.raises(ValueError, match="`format` should be png, pdf, svg or a list"):
        check_formats([])
    assert check_formats(["pdf", "svg", "pdf"]) == ["pdf", "svg"]


def test_one_name_and_unit_of_the_magnification_factor(tmp_path):
    grid, axes = GENERATOR.uniform(1, 5, (12, 12)), (np.linspace(-2, 2, 12),) * 2
    codes, labels = GENERATOR.standard_normal((30, 2)), np.arange(30) % 3
    lines = GENERATOR.standard_normal((2, 5, 2))
    direction = GENERATOR.standard_normal((12, 12, 2))
    maps = plotting.landscape_maps(axes, grid, grid, direction, grid, codes, labels)
    plane = plotting.latent_plane(axes, grid, codes, labels, lines, lines)
    labels = [figure.axes[0].child_axes[0].get_ylabel() for figure in (maps, plane)]
    assert labels[0] == labels[1]
    assert "magnification factor" in labels[0]
    assert "per latent unit" in labels[0]
    for name in (walk._NAMES["magnification"], landscape._NAMES["magnification"]):
        assert name == plotting.MAGNIFICATION
    assert "output units" in plotting.MAGNIFICATION


def test_a_map_of_nothing_finite(tmp_path):
    axes = (np.linspace(-2, 2, 5),) * 2
    nothing, direction = np.full((5, 5), np.nan), np.full((5, 5, 2), np.nan)
    codes, labels = GENERATOR.standard_normal((9, 2)), np.arange(9) % 3
    figure = plotting.landscape_maps(axes, nothing, nothing, direction, nothing, codes, labels)
    assert all_named(drawn(figure, tmp_path))


def test_values_that_are_not_known(tmp_path):
    some = np.where(np.arange(20) % 3 == 0, np.nan, improvements())
    nothing = np.full(20, np.nan)
    for values in (some, nothing):
        for figure in (
            plotting.improvement_histograms({"step 1": values, "step 2": nothing}),
            plotting.improvement_by_step({1.0: values, 2.0: nothing}),
            plotting.before_and_after(values, values, "alignment"),
            plotting.count_bars({"straight": np.round(10 * values), "slerp": nothing}, "crossings"),
            plotting.improvements_compared({"a": values, "b": values}, some > 0, 0.02),
            plotting.correlation_matrices(
                np.where(np.isnan(values[:16]), np.nan, 0.5).reshape(1, 1, 4, 4), ["a"], ["pair"]
            ),
            plotting_statistics.distances_compared(
                values, {"graph": (values, "output units"), "latent": (values, "latent units")}
            ),
        ):
            drawn(figure, tmp_path)
    figure = plotting.improvement_histograms({"step 1": some})
    assert "20 pairs, 7 of them not finite" in figure.axes[0].get_title(loc="left")


def test_histogram_texts_do_not_touch(tmp_path):
    groups = {f"step {number}": improvements(200) for number in range(3)}
    figure = plotting.improvement_histograms(groups)
    panels = drawn(figure, tmp_path)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    boxes = [axes.get_window_extent(renderer) for axes in panels]
    for axes in panels:
        title = axes._left_title.get_window_extent(renderer)
        assert not any(title.overlaps(box) for box in boxes)


def test_distances_compared_are_excesses(tmp_path):
    geodesic = np.array([1.0, 2.0, 4.0])
    others = {"graph": (1.1 * geodesic, "output units"), "Euclidean": (geodesic, "latent units")}
    excess, plain = drawn(plotting_statistics.distances_compared(geodesic, others), tmp_path)
    np.testing.assert_allclose(excess.collections[0].get_offsets()[:, 1], 10.0)
    assert "excess" in excess.get_ylabel()
    assert "%" in excess.get_ylabel()
    np.testing.assert_allclose(plain.collections[0].get_offsets()[:, 1], geodesic)


def test_clusters_have_the_colours_of_their_classes(tmp_path):
    codes = GENERATOR.standard_normal((60, 2))
    classes = np.arange(60) % 3
    renamed = np.array([2, 0, 1])[classes]
    figure = plotting_statistics.cluster_maps(codes, {"classes": classes, "k-means": renamed}, {})
    first, second = drawn(figure, tmp_path)
    for one, other in zip(first.collections, second.collections, strict=True):
        np.testing.assert_array_equal(one.get_offsets(), other.get_offsets())
        np.testing.assert_array_equal(one.get_facecolor(), other.get_facecolor())


def test_walks_are_drawn_whole(tmp_path):
    curves = {"norm (latent units)": GENERATOR.random((9, 5)), "mean": GENERATOR.random((9, 5))}
    names = [f"walk {number}" for number in range(9)]
    figure = plotting_statistics.walk_curves(
        np.linspace(0, 1, 5), "time (squared output units)", curves, (1.2, 0.3), names
    )
    panels = drawn(figure, tmp_path)
    assert panels[-1].get_xlabel() == "time (squared output units)"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()][1:] == names
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    box, whole = legend.get_window_extent(renderer), figure.bbox
    assert box.y0 >= whole.y0
    assert box.x1 <= whole.x1
    assert not any(box.overlaps(axes.get_window_extent(renderer)) for axes in panels)


def test_channels_are_moved_or_dropped():
    assert plotting.grey_or_colour(np.zeros((2, 5, 1, 8, 6))).shape == (2, 5, 8, 6)
    assert plotting.grey_or_colour(np.zeros((2, 3, 8, 6))).shape == (2, 8, 6, 3)
    with pytest.raises(ValueError, match="one or three channels"):
        plotting.grey_or_colour(np.zeros((2, 2, 8, 6)))


@pytest.mark.parametrize("n_images", [1, 13])
def test_image_grid(tmp_path, n_images):
    images = GENERATOR.uniform(-1, 1, (n_images, 1, 8, 8))
    assert len(drawn(plotting.image_grid(images), tmp_path)) == n_images


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


@pytest.mark.parametrize("channels", [1, 3])
def test_a_decoded_plane_has_its_images_where_they_are(tmp_path, channels):
    first, second = np.array([0.0, 1.0, 2.0]), np.array([5.0, 6.0])
    images = np.full((2, 3, channels, 4, 4), -1.0)
    images[1, 0] = 1.0  # z_1 = 0, the larger z_2
    images[0, 2] = np.nan
    figure = plotting.decoded_plane((first, second), images)
    panels = drawn(figure, tmp_path)
    assert all_named(panels)
    (picture,) = panels[0].images
    assert picture.get_extent() == [-0.5, 2.5, 4.5, 6.5]
    mosaic = np.asarray(picture.get_array()).reshape(10, 15, -1)[..., 0]
    assert (mosaic[:4, :4] == 1.0).all()
    assert (mosaic[:4, 5:9] == 0.0).all()
    assert np.allclose(mosaic[5:9, 10:14], 200 / 255)


def test_compared_paths_are_drawn(tmp_path):
    values = {name: improvements() for name in ("straight", "slerp", "mean")}
    entries = {
        ("length (output units)", True): paired_comparison(values, lower=True),
        ("realism (ratio)", False): paired_comparison(values, lower=False),
        ("one pair", False): paired_comparison({n: v[:1] for n, v in values.items()}, lower=False),
        # as a summary tells what is not known
        ("none", True): {
            "n": 0,
            "best": [],
            "paths": {name: dict.fromkeys(("mean", "difference", "error")) for name in values},
        },
    }
    panels = drawn(plotting_statistics.compared_paths(entries, "straight"), tmp_path)
    assert [axes.get_title() for axes in panels] == [
        "length\n← less is better",
        "realism\nmore is better →",
        "one pair\nmore is better →",
        "none\n← less is better",
    ]
    names = [text.get_text() for text in panels[0].get_yticklabels()]
    assert names == list(values)


def test_answers_are_drawn(tmp_path):
    place = np.linspace(-1.0, 1.0, 5)
    values = {name: GENERATOR.random((2, 5, 3)) for name in ("straight", "geodesic")}
    values["geodesic"][0, 3:] = np.nan
    figure = plotting_statistics.class_answers(
        place, "step (units)", values, ["0 to 1", "2 to 0"], [(0, 1), (2, 0)]
    )
    panels = drawn(figure, tmp_path)
    assert [axes.get_title() for axes in panels] == ["class 0 to 1", "class 2 to 0"]
    assert all(len(axes.lines) == 5 for axes in panels)


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
