"""What a solve returns: chosen pairs, statuses in words, the table in text and HTML."""

import copy
import pickle
import re
from dataclasses import fields
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from geolatent import CubicBSpline, Evaluations, GeodesicSolution, PullbackMetric, Status
from geolatent.display import Table
from geolatent.geometry.ode import TrajectoryStatus
from geolatent.solve import solve_geodesic

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def made_up(n, *, n_points=7, d=2, dtype=torch.float32, device="cpu"):
    """Return a solution of n pairs whose numbers tell the pairs apart."""
    number = torch.arange(n, device=device)
    start = torch.stack([number.to(dtype)] * d, dim=1)
    straight = number.to(dtype) + 2.0
    counts = Evaluations(10 * number + 4, number, 2 * number)
    return GeodesicSolution(
        curve=CubicBSpline.straight(start, start + 1.0, n_points),
        length=0.75 * straight,
        straight_length=straight,
        energy=straight.square(),
        predicted_improvement=1e-5 * (number.to(dtype) + 1.0),
        status=number % len(Status),
        iterations=number + 3,
        control_points=4 + number % 60,
        evaluations=counts,
    )


def leaves(solution):
    """Yield the name and the tensor of everything that a solution holds for each pair."""
    for field in fields(solution):
        value = getattr(solution, field.name)
        if isinstance(value, CubicBSpline):
            yield field.name, value.control_points
        elif isinstance(value, Evaluations):
            yield from ((part.name, getattr(value, part.name)) for part in fields(value))
        else:
            yield field.name, value


def assert_pairs(solution, whole, numbers):
    assert isinstance(solution, GeodesicSolution)
    assert len(solution) == len(numbers)
    for (name, part), (_, value) in zip(leaves(solution), leaves(whole), strict=True):
        assert part.dtype == value.dtype
        assert torch.equal(part, value[list(numbers)]), name
    assert torch.equal(solution.curve.knots, whole.curve.knots)


# pairs that are chosen


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("index", "numbers"),
    [
        (3, [3]),
        (-1, [8]),
        (-9, [0]),
        (np.int64(2), [2]),
        (torch.tensor(4), [4]),
        (slice(2, 5), [2, 3, 4]),
        (slice(None), range(9)),
        (slice(-2, None), [7, 8]),
        (slice(None, None, 4), [0, 4, 8]),
        (slice(None, None, -3), [8, 5, 2]),
        (slice(7, 99), [7, 8]),
        (slice(5, 2), []),
        (torch.tensor([6, -9, 6]), [6, 0, 6]),
        (torch.tensor([1, 0], dtype=torch.uint8), [1, 0]),
        (torch.arange(9) % 4 == 1, [1, 5]),
        (torch.zeros(9, dtype=torch.bool), []),
        ([2, 0], [2, 0]),
        ([], []),
        (np.array([5, -1]), [5, 8]),
        (np.arange(9) > 6, [7, 8]),
    ],
)
def test_pairs_are_chosen_as_from_a_tensor(index, numbers, device):
    whole = made_up(9, device=device)
    assert_pairs(whole[index], whole, numbers)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("index", "error", "told"),
    [
        (3, IndexError, "Parameter `index` should be from -3 to 2, for there are 3 pairs."),
        (-4, IndexError, "Found `index = -4`"),
        ([0, 7], IndexError, "Found `index = 7`"),
        (torch.tensor([0, 3]), IndexError, "Found `index = 3`"),
        (torch.ones(2, dtype=torch.bool), IndexError, r"a mask of shape \(3,\)"),
        (True, IndexError, r"a mask of shape \(3,\)"),
        (1.0, TypeError, "an integer, a slice, a mask"),
        ("length", TypeError, "an integer, a slice, a mask"),
        (None, TypeError, "an integer, a slice, a mask"),
        (torch.tensor([[0]]), TypeError, "an integer, a slice, a mask"),
        ([[0], [1, 2]], TypeError, "an integer, a slice, a mask"),
    ],
)
def test_pairs_that_are_not_there_are_refused(index, error, told, device):
    with pytest.raises(error, match=told):
        made_up(3, device=device)[index]


def test_iteration_gives_solutions_of_one_pair():
    whole = made_up(4)
    parts = list(whole)
    assert len(parts) == len(whole) == 4
    for number, part in enumerate(parts):
        assert_pairs(part, whole, [number])
    assert [float(pair.length) for pair in whole] == whole.length.tolist()


def test_solutions_are_equal_to_themselves_alone():
    solution = made_up(3)
    assert solution == solution
    assert solution != made_up(3)
    assert solution[0] not in solution
    assert solution.evaluations != made_up(3).evaluations


def test_chosen_pairs_are_what_was_solved(float64):
    metric = PullbackMetric(lambda z: torch.cat([z, (2.0 * z).sin()], dim=1))
    start, end = torch.randn(2, 5, 2)
    whole = solve_geodesic(metric, start, end)
    ends = torch.tensor([0.0, 1.0])
    part = whole[[3, 1]]
    assert torch.equal(part.curve(ends), torch.stack([start, end], dim=1)[[3, 1]])
    assert torch.equal(part.relative_improvement, whole.relative_improvement[[3, 1]])
    assert part.statuses == [whole.statuses[3], whole.statuses[1]]


def test_a_mask_of_no_pair_gives_a_solution_of_none():
    none = made_up(5)[torch.zeros(5, dtype=torch.bool)]
    assert none.statuses == []
    assert none.relative_improvement.shape == (0,)
    assert none.curve(torch.linspace(0, 1, 3)).shape == (0, 3, 2)
    assert none.summary() == ""
    assert str(none).startswith("GeodesicSolution: 0 pairs")
    assert list(none) == []


# statuses


@pytest.mark.parametrize("kind", [Status, TrajectoryStatus])
def test_statuses_print_as_words(kind):
    for status in kind:
        assert str(status) == f"{status}" == status.name
        assert f"{status:>30}" == status.name.rjust(30)
        assert repr([status]) == f"[{kind.__name__}.{status.name}]"
        assert status.explanation.endswith(".")


@pytest.mark.parametrize("kind", [Status, TrajectoryStatus])
def test_statuses_stay_integers(kind):
    for number, status in enumerate(kind):
        assert status == number == torch.tensor(number)
        assert kind(number) is status
        assert pickle.loads(pickle.dumps(status)) is copy.deepcopy(status) is status


def test_the_summary_counts_statuses_in_words():
    lines = made_up(2 * len(Status) + 1).summary().splitlines()
    assert lines[0] == f"3 CONVERGED: {Status.CONVERGED.explanation}"
    assert [line.split(" ")[1] for line in lines] == [f"{status}:" for status in Status]


# the table


def rows_of(text):
    """Return the words of each line below the heading."""
    return [line.split() for line in text.splitlines()[3:]]


def test_the_table_of_one_pair():
    text = str(made_up(4)[2])
    assert text.splitlines()[0] == "GeodesicSolution: 1 pair, d = 2, float32 on cpu"
    words = ["0", "3.000", "4.000", "25.0", "0.0030", "6", "38", "EQUAL_END_POINTS"]
    assert rows_of(text) == [words]
    header = " ".join(text.splitlines()[1:3]).split()
    assert set(header) >= {"pair", "length", "straight", "shorter", "predicted", "rows", "status"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("device", DEVICES)
def test_the_table_names_type_and_device(dtype, device):
    solution = made_up(3, dtype=dtype, device=device)
    place = str(solution.length.device)
    assert f"3 pairs, d = 2, {str(dtype)[6:]} on {place}" in str(solution)
    cpu = made_up(3, dtype=dtype)
    assert rows_of(str(solution)) == rows_of(str(cpu))


def test_a_few_pairs_are_all_shown():
    rows = rows_of(str(made_up(12)))
    assert [row[0] for row in rows[:12]] == [str(number) for number in range(12)]
    assert rows[12][:3] == ["mean", "5.625", "7.500"]


def test_of_many_pairs_the_ends_are_shown_with_means_and_counts():
    rows = rows_of(str(made_up(10_000)))
    names = [row[0] for row in rows]
    first, last = [str(n) for n in range(5)], [str(n) for n in range(9995, 10_000)]
    assert names[:12] == [*first, "...", *last, "mean"]
    # the mean of 2 ... 10,001, of 25 %, of 4 ... 63 and of 4 + 17 number
    assert rows[11][1:4] == ["3751", "5002", "25.0"]
    assert rows[11][6] == f"{4 + 17 * 9999 / 2:,.0f}"
    counts = " ".join(word for row in rows[12:] for word in row)
    each, more = divmod(10_000, len(Status))
    assert counts == ", ".join(f"{each + (s < more):,} {s}" for s in Status)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 123.456, 1e12])
@pytest.mark.parametrize("n", [0, 1, 2, 12, 13, 10_000, 1_000_000])
def test_the_table_fits_a_terminal(n, scale):
    solution = made_up(n) if n else made_up(1)[:0]
    for lengths in (solution.length, solution.straight_length, solution.predicted_improvement):
        lengths.mul_(scale)
    solution.evaluations.forward.mul_(123_457)
    lines = str(solution).splitlines()
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 80
    assert not any(line.endswith(" ") for line in lines)


def test_numbers_that_are_not_finite_are_shown_and_left_out_of_means():
    solution = made_up(4)
    solution.length[1] = torch.nan
    solution.straight_length[1] = torch.inf
    solution.predicted_improvement[2] = torch.nan
    rows = rows_of(str(solution))
    assert rows[1][1:4] == ["nan", "inf", "nan"]
    assert rows[2][4] == "nan"
    # lengths 1.5, 3 and 3.75; 1, 2 and 4 thousandths of a per cent left
    assert rows[4] == ["mean", "2.750", "3.667", "25.0", "0.0023", *rows[4][5:]]
    assert " ".join(rows[4][7:]) == "of the finite values"
    lost = made_up(3)
    lost.length.fill_(torch.nan)
    assert rows_of(str(lost))[3][1] == "nan"


def test_repr_is_the_table():
    solution = made_up(3)
    assert repr(solution) == str(solution)


class Largest(TorchDispatchMode):
    """Remembers the largest result of all operations."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("show", [str, GeodesicSolution._repr_html_])
def test_the_table_leaves_the_curves_alone(show):
    solution = made_up(1000, n_points=67, d=16)
    with Largest() as largest:
        show(solution)
    assert 0 < largest.numel <= 1000


@pytest.mark.parametrize("device", DEVICES)
def test_only_what_is_shown_leaves_the_device(monkeypatch, device):
    moved = []
    whole = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t: moved.append(t.numel()) or whole(t))
    str(made_up(10_000, device=device))
    assert sum(moved) == 10 * 7  # six numbers and the status of each pair shown


# HTML


class Cells(HTMLParser):
    """Collects the rows of a table, the tags' attributes, and checks that every tag is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.text, self.hints = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.hints += [value for name, value in attributes if name == "title"]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        else:
            self.text.append(data)


@pytest.mark.parametrize("n", [1, 12, 10_000])
def test_html_says_what_the_text_says(n):
    solution = made_up(n)
    found = Cells(solution._repr_html_())
    assert found.rows[0] == [
        *("pair", "length", "straight length", "shorter by %", "predicted left %"),
        *("control points", "rows", "status"),
    ]
    assert all(len(row) == 8 for row in found.rows)
    shown = [" ".join(row).split() for row in found.rows[1:]]
    assert shown == rows_of(str(solution))[: len(shown)]
    assert len(shown) == {1: 1, 12: 13, 10_000: 12}[n]
    assert Status.CONVERGED.explanation in found.hints


def test_html_escapes_every_text():
    bad = "<script>'\"&"
    table = Table(bad, [bad, bad], [[bad, bad]], [bad], {bad: bad})
    assert "<script" not in table.html()
    found = Cells(table.html())
    assert found.rows == [[bad, bad], [bad, bad]]
    assert found.hints == [bad, bad]
    assert "".join(found.text).split() == [bad, bad]
    assert len(re.findall("&lt;script&gt;", table.html())) == 8
