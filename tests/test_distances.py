"""Distances between pairs, all pairs, and along graphs."""

import numpy as np
import pytest
import torch
from problems import HALF_PLANE, SPHERE, sphere

from geolatent import LatentGraph, PullbackMetric, solve_geodesic
from geolatent.geometry.distances import (
    distance,
    graph_distance_matrix,
    graph_distances,
    pairwise_distances,
)

pytestmark = pytest.mark.usefixtures("float64")


def codes(n):
    return 1.4 * torch.rand(n, 2) - 0.7


def test_distance_is_the_length_of_the_geodesic():
    start, end = codes(5), codes(5)
    length = solve_geodesic(SPHERE, start, end).length
    torch.testing.assert_close(distance(SPHERE, start, end), length, rtol=1e-9, atol=0)


def test_pairwise_distances_are_a_distance():
    z = codes(7)
    matrix = pairwise_distances(SPHERE, z)
    torch.testing.assert_close(
        matrix, 2 * (torch.cdist(sphere(z), sphere(z)) / 2).asin(), rtol=1e-3, atol=1e-7
    )
    assert torch.equal(matrix, matrix.mT)
    assert torch.equal(matrix.diagonal(), torch.zeros(7))
    around = matrix[:, :, None] + matrix[None]
    assert (matrix[:, None] <= around * (1 + 1e-3) + 1e-9).all()


def test_distances_between_two_sets():
    z, others = codes(3), codes(4)
    matrix = pairwise_distances(HALF_PLANE, z + 1.0, others + 1.0)
    assert matrix.shape == (3, 4)
    for i in range(3):
        row = distance(HALF_PLANE, z[i] + 1.0, others + 1.0)
        torch.testing.assert_close(matrix[i], row, rtol=1e-6, atol=0)


def test_one_code():
    assert torch.equal(pairwise_distances(SPHERE, codes(1)), torch.zeros(1, 1))


def test_progress_is_told():
    told = []
    pairwise_distances(SPHERE, codes(4), callback=told.append)
    assert told[-1].fraction == 1.0
    assert told[-1].n_pairs == 6


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    nodes = 1.8 * torch.rand(4000, 2, dtype=torch.float64) - 0.9
    return LatentGraph.from_codes(SPHERE, nodes, n_neighbors=24)


def test_graph_distances_against_polished_ones(graph):
    """The stated error: within 3 per cent (1 on average), beyond a few node spacings."""
    start, end = codes(40), codes(40)
    far = (start - end).norm(dim=1) > 0.3
    start, end = start[far], end[far]
    fast = graph_distances(graph, start, end)
    polished = distance(SPHERE, start, end, initial=graph)
    error = fast / polished - 1
    assert error.abs().max() < 0.03
    assert error.abs().mean() < 0.01


def test_graph_matrix_equals_pairs(graph):
    points, others = codes(3), codes(5)
    matrix = graph_distance_matrix(graph, points, others)
    assert matrix.shape == (3, 5)
    for i in range(3):
        row = graph_distances(graph, points[i], others)
        torch.testing.assert_close(matrix[i], row, rtol=1e-9, atol=1e-12)
    to_nodes = graph_distance_matrix(graph, points)
    assert to_nodes.shape == (3, graph.n_nodes)
    near = graph_distance_matrix(graph, points, graph.codes[:50])
    torch.testing.assert_close(to_nodes[:, :50], near, rtol=1e-9, atol=1e-12)


def test_equal_points_and_islands():
    two = torch.cat([0.05 * torch.rand(10, 2), 5 + 0.05 * torch.rand(10, 2)])
    walled = PullbackMetric(lambda z: torch.where((z[:, :1] - 2.5).abs() < 1.0, torch.nan, z))
    graph = LatentGraph.from_codes(walled, two, n_neighbors=3)
    start, end = torch.zeros(2, 2), torch.tensor([[0.0, 0.0], [5.0, 5.0]])
    found = graph_distances(graph, start, end)
    assert found[0] == 0.0
    assert found[1] == np.inf
    assert graph_distance_matrix(graph, start[:1], end[1:]).item() == np.inf


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda z: pairwise_distances(SPHERE, z[0]), ValueError, "`points`"),
        (lambda z: pairwise_distances(SPHERE, z, z.float()), TypeError, "`others`.*dtype"),
        (lambda z: pairwise_distances(SPHERE, z, z[:, :1]), ValueError, "`others`"),
        (lambda z: graph_distances(SPHERE, z, z), TypeError, "`graph`"),
        (lambda z: graph_distance_matrix(SPHERE, z), TypeError, "`graph`"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.rand(3, 2))


def test_bad_codes_for_a_graph(graph):
    with pytest.raises(ValueError, match="`start`"):
        graph_distances(graph, torch.rand(3), torch.rand(3))


def test_codes_are_brought_to_the_dtype_of_a_graph(graph):
    codes = torch.rand(3, 2)
    for others in (codes.float(), codes.float().numpy()):
        matrix = graph_distance_matrix(graph, others)
        assert matrix.dtype == torch.float64
        torch.testing.assert_close(matrix, graph_distance_matrix(graph, codes), rtol=0, atol=1e-5)
