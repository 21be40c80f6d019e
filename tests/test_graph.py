"""Starting curves: graph paths against known distances, and where they lead the solver."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import HALF_PLANE, SPHERE, Counted, hill, sphere, sphere_distance
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

import geolatent
from geolatent import (
    Evaluations,
    GaussianFisherRaoMetric,
    LatentGraph,
    PullbackMetric,
    Status,
    TensorMetric,
    graph_distances,
    load_graph,
    path_length,
    save_graph,
    solve_geodesic,
)
from geolatent.curves import clamped_knots
from geolatent.graph import Path, curve_through_points, graph_curve
from geolatent.metrics.rows import Rows

pytestmark = pytest.mark.usefixtures("float64")


def flat(z):
    return 3.0 * z


def square_lattice(metric, half=1.0, resolution=21):
    corner = torch.tensor([half, half])
    return LatentGraph.lattice(metric, -corner, corner, resolution=resolution)


def path_lengths(graph, start, end):
    paths = graph.paths(start, end)
    return torch.tensor([path.arc_length[-1] for path in paths])


# Graphs


def test_lattice_is_exact_along_its_edges():
    # from node to node in one of the 16 directions that have edges
    graph = square_lattice(PullbackMetric(flat))
    steps = torch.tensor([[1, 0], [0, 1], [1, 1], [1, -1], [2, 1], [1, 2], [-2, 1], [1, -2]])
    start, end = -0.3 * steps, 0.3 * steps
    torch.testing.assert_close(
        path_lengths(graph, start, end), 3 * (end - start).norm(dim=1), rtol=1e-12, atol=0
    )


def test_lattice_overestimates_flat_distances_a_little():
    graph = square_lattice(PullbackMetric(flat))
    start, end = 1.9 * torch.rand(50, 2) - 0.95, 1.9 * torch.rand(50, 2) - 0.95
    far = (end - start).norm(dim=1) > 0.7
    ratio = (path_lengths(graph, start, end) / (3 * (end - start).norm(dim=1)))[far]
    assert far.sum() > 20
    assert ratio.min() >= 1 - 1e-12
    # zigzags between neighbours of the 16 directions cost at most 2.75 %, and the ends a little
    assert ratio.max() < 1.04


def test_graphs_approximate_distances_on_the_sphere():
    codes = 2 * torch.rand(1500, 2) - 1
    start, end = torch.rand(30, 2) - 0.9, torch.rand(30, 2) - 0.1
    distance = sphere_distance(start, end)
    for graph in (square_lattice(SPHERE, resolution=41), LatentGraph.from_codes(SPHERE, codes)):
        ratio = path_lengths(graph, start, end) / distance
        # chords are shorter than arcs: by 1 - h^2 / 24 for edges of length h, here below 0.3
        assert ratio.min() > 1 - 0.3**2 / 24
        assert ratio.max() < 1.04


def test_a_metric_without_immersion_measures_edges_at_their_middle():
    # Poincare's metric; vertical lines are geodesics of length log(y' / y)
    low, high = torch.tensor([-1.0, 0.5]), torch.tensor([1.0, 2.5])
    graph = LatentGraph.lattice(HALF_PLANE, low, high, resolution=41)
    start, end = torch.tensor([[0.0, 0.5]]), torch.tensor([[0.0, 2.5]])
    assert path_lengths(graph, start, end).item() == pytest.approx(math.log(5.0), rel=1e-3)


@pytest.mark.parametrize(("dim", "neighbors"), [(1, 2), (2, 16), (3, 98)])
def test_lattice_in_one_to_three_dimensions(dim, neighbors):
    metric = PullbackMetric(flat)
    graph = LatentGraph.lattice(metric, -torch.ones(dim), torch.ones(dim), resolution=7)
    assert graph.n_nodes == 7**dim
    assert graph.forward_rows == 7**dim
    assert torch.equal(graph.codes.min(0).values, -torch.ones(dim))
    assert torch.equal(graph.codes.max(0).values, torch.ones(dim))
    degrees = np.diff(graph.adjacency.indptr)
    assert degrees.max() == neighbors  # in the middle: all steps up to two cells, none twice
    start, end = torch.full((1, dim), -1.0), torch.full((1, dim), 1.0)
    expected = 3 * 2 * dim**0.5
    assert path_lengths(graph, start, end).item() == pytest.approx(expected, rel=1e-12)


def test_adjacency_holds_symmetric_chord_lengths():
    codes = torch.randn(60, 2)
    graph = LatentGraph.from_codes(SPHERE, codes, n_neighbors=5)
    dense = graph.adjacency.toarray()
    np.testing.assert_array_equal(dense, dense.T)
    chords = torch.cdist(sphere(codes), sphere(codes)).numpy()
    linked = dense > 0
    np.testing.assert_allclose(dense[linked], chords[linked], rtol=1e-9)
    assert not linked.diagonal().any()
    # the five nearest of each, and those that have it among theirs
    nearest = torch.cdist(codes, codes).argsort(dim=1)[:, 1:6]
    wanted = np.zeros_like(linked)
    np.put_along_axis(wanted, nearest.numpy(), True, axis=1)
    np.testing.assert_array_equal(linked, wanted | wanted.T)


def test_more_nodes_are_jittered_codes():
    metric = PullbackMetric(flat)
    codes = torch.randn(50, 2)
    graph = LatentGraph.from_codes(metric, codes, n_nodes=400, jitter=0.05, n_neighbors=64)
    assert graph.n_nodes == graph.forward_rows == 400
    assert torch.equal(graph.codes[:50], codes)
    shift = torch.cdist(graph.codes[50:], codes).min(dim=1).values
    assert 0 < shift.max() < 0.3
    again = LatentGraph.from_codes(metric, codes, n_nodes=400, jitter=0.05, n_neighbors=64)
    assert torch.equal(graph.codes, again.codes)
    other = LatentGraph.from_codes(metric, codes, n_nodes=400, jitter=0.05, n_neighbors=64, seed=1)
    assert not torch.equal(graph.codes, other.codes)


def test_building_in_small_steps_changes_nothing():
    codes = torch.randn(80, 2)
    for metric in (
        SPHERE,
        TensorMetric(lambda z: torch.eye(2) * (1 + z[:, :1, None] ** 2), dim=2),
    ):
        whole = LatentGraph.from_codes(metric, codes, n_neighbors=6).adjacency
        parts = LatentGraph.from_codes(metric.limited(7), codes, n_neighbors=6).adjacency
        np.testing.assert_allclose(parts.toarray(), whole.toarray(), rtol=1e-12)


def test_outputs_that_do_not_fit_into_memory_change_nothing(monkeypatch):
    codes = torch.randn(3000, 2)
    whole = LatentGraph.from_codes(SPHERE, codes, n_neighbors=6)
    monkeypatch.setattr("geolatent.graph._OUTPUT_BYTES", 1)
    parts = LatentGraph.from_codes(SPHERE, codes, n_neighbors=6)
    assert abs(parts.adjacency - whole.adjacency).max() < 1e-12
    assert parts.forward_rows > whole.forward_rows == 3000


# Paths


@pytest.mark.parametrize("make", ["lattice", "codes"])
def test_a_pairs_path_does_not_depend_on_the_others(make):
    if make == "lattice":
        graph = square_lattice(SPHERE)
    else:
        graph = LatentGraph.from_codes(SPHERE, torch.randn(300, 2), n_neighbors=8)
    start, end = torch.randn(40, 2).clamp(-1, 1), torch.randn(40, 2).clamp(-1, 1)
    together = graph.paths(start, end, spent := Evaluations.zeros(40))
    for k in (0, 7, 39):
        one = Evaluations.zeros(1)
        (alone,) = graph.paths(start[k : k + 1], end[k : k + 1], one)
        np.testing.assert_allclose(alone.points, together[k].points, rtol=0, atol=1e-12)
        np.testing.assert_allclose(alone.arc_length, together[k].arc_length, rtol=1e-12)
        assert one.equivalents[0] == spent.equivalents[k]


def test_paths_run_from_start_to_end_along_edges():
    codes = torch.randn(300, 2)
    graph = LatentGraph.from_codes(SPHERE, codes, n_neighbors=8)
    start, end = torch.randn(10, 2), torch.randn(10, 2)
    paths = graph.paths(start, end)
    for path, a, b in zip(paths, start, end, strict=True):
        np.testing.assert_array_equal(path.points[0], a.numpy())
        np.testing.assert_array_equal(path.points[-1], b.numpy())
        inner = torch.from_numpy(path.points[1:-1])
        assert (inner[:, None] == codes).all(2).any(1).all()
        values = sphere(torch.from_numpy(path.points))
        steps = values.diff(dim=0).norm(dim=1).cumsum(0).numpy()
        np.testing.assert_allclose(path.arc_length[1:], steps, rtol=1e-9)
        assert path.arc_length[0] == 0


def test_the_same_pair_back_has_the_same_length():
    graph = square_lattice(SPHERE)
    start, end = torch.rand(12, 2) - 0.5, torch.rand(12, 2) - 0.5
    ahead, back = path_lengths(graph, start, end), path_lengths(graph, end, start)
    torch.testing.assert_close(ahead, back, rtol=1e-10, atol=0)


@given(st.integers(0, 10**6), st.integers(4, 24), st.integers(2, 12))
def test_control_points_stay_on_the_path(seed, n, n_points):
    generator = np.random.default_rng(seed)
    points = generator.normal(size=(n_points, 2))
    arc = np.concatenate([[0.0], np.cumsum(generator.uniform(0.1, 1.0, size=n_points - 1))])
    control = Path(points, arc).control_points(n)
    assert control.shape == (n, 2)
    np.testing.assert_array_equal(control[[0, -1]], points[[0, -1]])
    # no overshoot: inside the path's bounding box
    assert (control >= points.min(0) - 1e-12).all()
    assert (control <= points.max(0) + 1e-12).all()


def test_control_points_follow_metric_arc_length():
    # half of the metric length lies on the last tenth of the segment
    path = Path(np.array([[0.0], [0.9], [1.0]]), np.array([0.0, 1.0, 2.0]))
    control = path.control_points(5)
    np.testing.assert_allclose(control[:, 0], [0, 0.3, 0.9, 0.9 + 0.1 * 2 / 3, 1.0], atol=1e-12)


@pytest.mark.parametrize("arc", [[0.0, 0.0, 0.0], [0.0, np.nan, np.nan], [0.0, np.inf, np.inf]])
def test_paths_of_unknown_length_are_run_through_by_index(arc):
    path = Path(np.array([[0.0], [3.0], [4.0]]), np.array(arc))
    np.testing.assert_allclose(path.control_points(5)[:, 0], [0, 1, 3, 3 + 2 / 3, 4], atol=1e-12)


def test_curve_through_points_has_constant_speed_on_a_line():
    metric = PullbackMetric(lambda z: 2.0 * z)
    t = torch.tensor([0.0, 0.05, 0.6, 1.0])  # uneven
    end = torch.randn(3, 1, 2)
    curve = curve_through_points(Rows.of(metric, end[0]).counting(3), t[:, None] * end, 9)
    at = torch.linspace(0, 1, 33)
    torch.testing.assert_close(curve(at), at[:, None] * end, rtol=0, atol=1e-12)


def test_graph_curve_is_close_to_the_geodesic():
    graph = square_lattice(SPHERE, resolution=61)
    start, end = torch.rand(10, 2) - 0.9, torch.rand(10, 2) - 0.1
    curve = graph_curve(graph, start, end, 24, spent := Evaluations.zeros(10))
    assert (spent.forward > 0).all()
    assert curve.n_control_points == 24
    assert torch.equal(curve.knots, clamped_knots(24))
    distance = sphere_distance(start, end)
    assert (path_length(SPHERE, curve) / distance).max() < 1.04


# What graphs are for


def test_a_graph_leads_round_the_hill():
    metric = PullbackMetric(hill)
    start = torch.tensor([[-1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    end = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [0.0, -1.0]])
    straight = solve_geodesic(metric, start, end)
    # by symmetry the straight line over the top has no downhill direction sideways
    over = [0, 2]
    assert straight.curve(torch.linspace(0, 1, 9))[0, :, 1].abs().max() < 1e-6
    for graph in (
        square_lattice(metric, half=1.5, resolution=31),
        LatentGraph.from_codes(metric, 3 * torch.rand(900, 2) - 1.5, n_neighbors=16),
    ):
        solution = solve_geodesic(metric, start, end, initial=graph)
        assert (solution.length <= straight.length * (1 + 1e-9)).all()
        assert (solution.length[over] < 0.8 * straight.length[over]).all()
        assert solution.length[1] == pytest.approx(straight.length[1].item(), rel=1e-3)
        assert (solution.status == Status.CONVERGED).all()
        # round the hill, at whichever side
        assert solution.curve(torch.tensor([0.5]))[0, 0, 1].abs() > 0.3


def test_a_graph_leads_round_a_hole_of_nan():
    def holed(z):  # the top of the hill is missing
        return torch.where(z.norm(dim=1, keepdim=True) < 0.2, torch.nan, hill(z))

    start, end = torch.tensor([[-1.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    assert solve_geodesic(PullbackMetric(holed), start, end).statuses == [Status.NON_FINITE]
    lengths = []
    for metric in (PullbackMetric(hill), PullbackMetric(holed)):
        graph = square_lattice(metric, half=1.5, resolution=31)
        solution = solve_geodesic(metric, start, end, initial=graph, length_tolerance=1e-7)
        assert solution.statuses == [Status.CONVERGED]
        lengths.append(solution.length)
    torch.testing.assert_close(lengths[0], lengths[1], rtol=1e-6, atol=0)
    assert solution.straight_length.isnan().all()
    assert solution.relative_improvement.isnan().all()  # nothing to compare with


def test_nodes_of_nan_are_left_out():
    def holed(z):
        return torch.where(z[:, :1] > 0.5, torch.nan, flat(z))

    graph = square_lattice(PullbackMetric(holed))
    bad = (graph.codes[:, 0] > 0.5).numpy()
    assert np.isfinite(graph.adjacency.data).all()
    assert (np.diff(graph.adjacency.indptr)[bad] == 0).all()
    start, end = torch.tensor([[-0.9, -0.9]]), torch.tensor([[0.3, 0.9]])
    (path,) = graph.paths(start, end)
    assert path.points[:, 0].max() <= 0.5
    assert np.isfinite(path.arc_length).all()


def test_clusters_are_joined_by_the_shortest_edges():
    centers = torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 50.0], [9.0, 60.0]])
    clusters = [torch.rand(40, 2) + center for center in centers]
    codes = torch.cat(clusters)[torch.randperm(160)]
    graph = LatentGraph.from_codes(PullbackMetric(flat), codes, n_neighbors=4)
    assert connected_components(graph.adjacency, directed=False)[0] == 1
    gaps = torch.stack([torch.stack([torch.cdist(a, b).min() for b in clusters]) for a in clusters])
    # 0 to 1, 0 to 2, 2 to 3: the others are longer
    expected = 3.0 * torch.stack([gaps[0, 1], gaps[0, 2], gaps[2, 3]]).sort().values
    lengths = np.unique(graph.adjacency.data)
    np.testing.assert_allclose(lengths[lengths > 3.0 * 2.0], expected, rtol=1e-9)
    # each node once, and those along three edges
    assert graph.forward_rows == 160 + 3 * 17
    # ways along the tree are those of a graph that is one without it
    whole = LatentGraph.from_codes(PullbackMetric(flat), codes, n_neighbors=130)
    assert whole.forward_rows == 160
    found = path_lengths(graph, clusters[0][:5], clusters[2][:5])
    near = path_lengths(whole, clusters[0][:5], clusters[2][:5])
    torch.testing.assert_close(found, near, rtol=0.1, atol=0)


def test_a_long_edge_is_measured_along_its_way():
    """A chord of the sphere is shorter than the way on it."""
    half = math.pi / 4
    arc = PullbackMetric(lambda z: torch.cat([z.cos(), z.sin()], dim=1))
    ends = [0.01 * torch.rand(10, 1) + sign * half for sign in (-1.0, 1.0)]
    graph = LatentGraph.from_codes(arc, torch.cat(ends), n_neighbors=3)
    assert graph.adjacency.data.max() == pytest.approx(
        float(ends[1].min() - ends[0].max()), rel=1e-3
    )


def test_many_parts_become_one():
    codes = torch.randn(200, 3)
    graph = LatentGraph.from_codes(PullbackMetric(flat), codes, n_neighbors=1)
    assert connected_components(graph.adjacency, directed=False)[0] == 1
    # with one neighbour for each node the edges are those of the minimum spanning tree
    tree = minimum_spanning_tree(3.0 * torch.cdist(codes, codes).numpy())
    assert graph.adjacency.nnz == 2 * 199
    assert graph.adjacency.sum() / 2 == pytest.approx(tree.sum(), rel=1e-9)


def walled(z):
    """Flat, but not finite between -1 and 1 of the first coordinate."""
    return torch.where(z[:, :1].abs() < 1.0, torch.nan, 3.0 * z)


def test_a_graph_that_is_not_connected_is_told():
    islands = torch.cat([0.1 * torch.randn(40, 2) - 2.0, 0.1 * torch.randn(40, 2) + 2.0])
    metric = PullbackMetric(walled)
    graph = LatentGraph.from_codes(metric, islands, n_neighbors=4)
    start = torch.tensor([[-2.0, -2.0], [-2.1, -2.0]])
    end = torch.tensor([[2.0, 2.0], [-1.9, -2.0]])
    paths = graph.paths(start, end)
    assert paths[0] is None
    assert paths[1] is not None
    with pytest.warns(UserWarning, match="the graph has no path for 1 of 2 pairs"):
        solution = solve_geodesic(metric, start, end, initial=graph)
    assert solution.status[0] == Status.NON_FINITE
    expected = 3.0 * (end[1] - start[1]).norm()
    torch.testing.assert_close(solution.length[1], expected, rtol=1e-3, atol=0)


def test_graph_rows_are_counted():
    counted = Counted(flat)
    graph = square_lattice(PullbackMetric(counted), resolution=9)
    assert graph.forward_rows == 81
    counted.rows = 0
    graph.paths(torch.rand(5, 2), torch.rand(5, 2), spent := Evaluations.zeros(5))
    assert counted.rows == spent.forward.sum()


def test_float32_codes():
    graph = LatentGraph.lattice(
        SPHERE, torch.full((2,), -1.0).float(), torch.ones(2).float(), resolution=21
    )
    assert graph.codes.dtype == torch.float32
    start, end = (torch.rand(4, 2) - 0.5).float(), (torch.rand(4, 2) - 0.5).float()
    curve = graph_curve(graph, start, end, 12)
    assert curve.control_points.dtype == torch.float32
    assert torch.equal(curve.control_points[:, -1], end)
    assert solve_geodesic(SPHERE, start, end, initial=graph).length.dtype == torch.float32


@pytest.mark.cuda
def test_graph_on_cuda():
    metric = PullbackMetric(hill)
    graph = LatentGraph.lattice(
        metric, torch.full((2,), -1.5).cuda(), torch.full((2,), 1.5).cuda(), resolution=31
    )
    start, end = torch.tensor([[-1.0, 0.0]]).cuda(), torch.tensor([[1.0, 0.0]]).cuda()
    solution = solve_geodesic(metric, start, end, initial=graph)
    assert solution.length.is_cuda
    assert solution.length < 0.8 * solution.straight_length


def test_saved_graphs_come_back_whole(tmp_path):
    codes = torch.rand(60, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    graph = LatentGraph.from_codes(SPHERE, codes, n_neighbors=5)
    path = geolatent.save_graph(graph, tmp_path / "graph.safetensors")
    back = geolatent.load_graph(path, SPHERE)
    assert back.forward_rows == graph.forward_rows
    assert torch.equal(back.codes, graph.codes)
    assert (back.adjacency != graph.adjacency).nnz == 0
    for one, other in zip(
        graph.paths(codes[:3], codes[3:6]),
        back.paths(codes[:3], codes[3:6]),
        strict=True,
    ):
        assert np.array_equal(one.points, other.points)

    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="graph"):
        geolatent.load_graph(path, SPHERE)
    with pytest.raises(FileNotFoundError, match="missing"):
        geolatent.load_graph(tmp_path / "missing", SPHERE)
    state = graph.state()
    del state["lengths"]
    with pytest.raises(ValueError, match="`state` should be of codes, indices"):
        LatentGraph.from_state(SPHERE, state)


def test_a_loaded_graph_has_a_metric_that_was_never_called(tmp_path):
    """One whose chords are known once it was."""

    def metric():
        return GaussianFisherRaoMetric(lambda z: (z.sin(), z.exp()))

    codes = torch.randn(30, 2)
    graph = LatentGraph.from_codes(metric(), codes, n_neighbors=4)
    again = load_graph(save_graph(graph, tmp_path / "graph.safetensors"), metric())
    ends = torch.randn(3, 2), torch.randn(3, 2)
    expected = graph_distances(graph, *ends)
    torch.testing.assert_close(graph_distances(again, *ends), expected)
    again = load_graph(tmp_path / "graph.safetensors", metric())
    expected = solve_geodesic(metric(), *ends, initial=graph).length
    torch.testing.assert_close(solve_geodesic(metric(), *ends, initial=again).length, expected)
