"""The demo in one HTML file: it is whole, needs nothing else, and shows what the solver finds."""

import base64
import json
import re
import runpy
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

import geolatent as gl
from geolatent.explorer.static import static_page

SCRIPT = Path(__file__).parents[1] / "scripts" / "static_demo.py"
# coarse, so that the tests are quick
SETTINGS = {"tolerance": 1e-2, "resolution": 24}


class Reader(HTMLParser):
    """Notes the tags that are open, those that load something, and the data."""

    def __init__(self):
        super().__init__()
        self.open, self.loads, self.data, self.ids = [], [], "", []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.loads += [given[name] for name in ("src", "href") if name in given]
        self.ids += [given["id"]] if "id" in given else []
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open[-1:] == ["script"] and text.startswith("{"):
            self.data = text


@pytest.fixture(scope="module")
def page():
    return static_page(per_label=1, **SETTINGS)


@pytest.fixture(scope="module")
def content(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    assert len(set(reader.ids)) == len(reader.ids)
    assert reader.loads == []
    return json.loads(reader.data)


@pytest.fixture(scope="module")
def solved():
    """Return the model, and what solves a pair as the page was solved."""
    model = gl.models.digits_vae(dtype=torch.float64)
    metric = gl.GaussianPullbackMetric(model.decode)
    images, _ = gl.data.digits("test")
    with torch.no_grad():
        codes = model.encode(images.double())[0]
    low, high = codes.amin(0) - 0.5, codes.amax(0) + 0.5
    graph = gl.LatentGraph.lattice(metric, low, high, resolution=SETTINGS["resolution"])

    def solve(first, second):
        solver = gl.PreconditionedSolver(tolerance=SETTINGS["tolerance"])
        return gl.solve_geodesic(metric, codes[first], codes[second], solver, initial=graph)

    return model, codes, solve


def test_the_file_is_written_whole(page, tmp_path, monkeypatch, capsys):
    out = tmp_path / "folder" / "demo.html"
    asked = []

    def solved_before(per_label, *, tell):
        asked.append(per_label)
        tell(0.5)
        return page

    monkeypatch.setattr("geolatent.explorer.static.static_page", solved_before)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(out), "--per_label=1"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert asked == [1]
    text = out.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert text.endswith("</html>\n")
    assert out.stat().st_size < 3e6
    assert [path.name for path in out.parent.iterdir()] == ["demo.html"]
    assert "demo.html, 0." in capsys.readouterr().out


def test_nothing_comes_from_elsewhere(page, content):
    assert len(content["chosen"]) == 10
    assert "default-src 'none'" in page
    addresses = set(re.findall(r"https?://[^\s\"'<]+", page))
    assert addresses == {"http://www.w3.org/2000/svg"}


def test_lengths_and_curves_are_those_of_the_solver(content, solved):
    _, codes, solve = solved
    chosen, pairs = content["chosen"], content["pairs"]
    n = len(chosen)
    places = [(i, j) for i in range(n) for j in range(i + 1, n)]
    low, high = np.array(content["low"]), np.array(content["high"])
    curves = np.frombuffer(base64.b64decode(pairs["curves"]), "<u2")
    curves = low + curves.reshape(len(places), pairs["stored"], 2) / 65535 * (high - low)
    for place in (0, 20):
        i, j = places[place]
        expected = solve(chosen[i], chosen[j])
        assert pairs["length"][place] == pytest.approx(expected.length.item(), rel=1e-6)
        assert pairs["straight"][place] == pytest.approx(expected.straight_length.item(), rel=1e-6)
        assert pairs["status"][place] == expected.statuses[0].name
        ends = codes[[chosen[i], chosen[j]]].numpy()
        assert np.abs(curves[place, [0, -1]] - ends).max() < 1e-3
        # every stored point lies on the curve
        dense = expected.curve(torch.linspace(0, 1, 4001, dtype=torch.float64))[0].numpy()
        apart = np.linalg.norm(curves[place][:, None] - dense[None], axis=2).min(1)
        assert apart.max() < 2e-3


@pytest.fixture(params=["light", "dark"])
def shown(browser, page, tmp_path, request):
    """The file in a browser without a network; nothing may go wrong."""
    file = tmp_path / "demo.html"
    file.write_text(page, encoding="utf-8")
    context = browser.new_context(
        color_scheme=request.param, offline=True, viewport={"width": 390, "height": 2000}
    )
    opened = context.new_page()
    wrong = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    opened.goto(file.as_uri())
    opened.wait_for_function("() => document.querySelector('#length').textContent")
    yield opened
    assert opened.evaluate("() => document.documentElement.scrollWidth") <= 390
    context.close()
    assert wrong == []


def pixels(shown, canvas):
    """Return the grey values of a canvas, (height, width)."""
    values, width = shown.evaluate(
        """id => {
          const canvas = document.getElementById(id), { width, height } = canvas;
          const found = canvas.getContext("2d").getImageData(0, 0, width, height).data;
          return [[...found].filter((_, k) => k % 4 === 0), width];
        }""",
        canvas,
    )
    return np.array(values).reshape(-1, width)


def test_two_chosen_codes_show_what_the_solver_finds(shown, content, solved):
    model, codes, solve = solved
    chosen = content["chosen"]
    # from the lists, and the second by a click on its circle
    shown.select_option("#first", "7")
    shown.select_option("#second", "4")
    for first, second in ((7, 4), (2, 4)):
        if first == 2:
            shown.click("circle[data-place='2']", force=True)
        values = [int(shown.input_value(f"#{which}")) for which in ("first", "second")]
        assert values == [first, second]
        expected = solve(*(chosen[place] for place in sorted((first, second))))
        printed = {
            "length": (expected.length.item(), 4),
            "straight-length": (expected.straight_length.item(), 4),
            "improvement": (100 * expected.relative_improvement.item(), 3),
        }
        for name, (value, digits) in printed.items():
            assert shown.inner_text(f"#{name}") == f"{value:#.{digits}g}".rstrip("."), name
        assert expected.statuses[0].explanation in shown.inner_text("#status")
    # the slider's ends are the codes, decoded in the browser as by the model
    for percent, place in ((0, 2), (100, 4)):
        shown.fill("#walk", str(percent))
        assert shown.inner_text("#walk-text") == f"{percent} %"
        image = model.decode_mean(codes[chosen[place]][None])[0, 0]
        levels = 255 * (image.numpy() + 1) / 2
        for curve in ("straight", "geodesic"):
            # codes have 16 bits
            assert np.abs(pixels(shown, f"{curve}-large") - levels).max() < 1.0
            assert f"{percent} % along" in shown.get_attribute(f"#{curve}-large", "aria-label")
    assert pixels(shown, "geodesic-strip").shape == (8, 11 * 9 - 1)


def test_one_digit_is_not_chosen_twice(shown):
    shown.select_option("#first", "5")
    shown.select_option("#second", "5")
    values = [shown.input_value(f"#{which}") for which in ("first", "second")]
    assert values[1] == "5"
    assert values[0] != "5"
