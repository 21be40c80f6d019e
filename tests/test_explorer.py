"""The explorer's page in Chromium: clicks, keys, pictures, downloads, two visitors at once."""

import re
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import geolatent as gl
from geolatent.explorer.jobs import StoppedError
from geolatent.explorer.solving import warm
from geolatent.explorer.subject import Subject
from geolatent.lab.config import DataOptions, ModelOptions

pytest.importorskip("dash", reason="needs Dash: the extra `explore`")
from geolatent.explorer.server import Server

# what is shown is final, and nothing is solved for
SETTLED = """() => {
  const rows = document.querySelector("#numbers"), stop = document.querySelector("#stop");
  return rows && rows.innerText && !rows.innerText.includes("first answer") && stop.disabled;
}"""
pytestmark = pytest.mark.site
LONG = 60_000  # milliseconds


@contextmanager
def serving(subject, server=None):
    server = Server(subject, port=0) if server is None else server
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server.url
    finally:
        # waitress ends its loop when it has nothing to listen to
        server.close()
        thread.join(10.0)


@pytest.fixture(scope="module")
def address():
    subject = Subject(resolution=21)
    warm(subject)
    with serving(subject) as url:
        yield url


@contextmanager
def visiting(browser, url, width=1400):
    """Open a page in a browser session of its own; nothing may go wrong or come from elsewhere."""
    context = browser.new_context(viewport={"width": width, "height": 2400})
    page = context.new_page()
    page.set_default_timeout(LONG)
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on(
        "request",
        lambda sent: None if sent.url.startswith((url, "data:", "blob:")) else wrong.append(sent),
    )
    page.goto(url)
    page.wait_for_function(SETTLED)
    try:
        yield page
        assert wrong == []
    finally:
        context.close()


@pytest.fixture
def page(browser, address):
    with visiting(browser, address) as opened:
        yield opened


def python_of(page):
    return page.evaluate("() => document.querySelector('#python').textContent")


def settled(page, do, before=None):
    """Do something that asks for another solve, and wait until it is there."""
    before = python_of(page) if before is None else before
    do()
    page.wait_for_function(
        "before => document.querySelector('#python').textContent !== before", arg=before
    )
    page.wait_for_function(SETTLED)


def place(page, x, y):
    """Return where on the screen a point at shares of the plane is."""
    box = page.locator("#plane .nsewdrag").bounding_box()
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def handle(page, which):
    """Return where on the screen a chosen code is."""
    return page.evaluate(
        """which => {
          const gd = document.querySelector("#plane .js-plotly-plot");
          const { x, y } = gd.data.find((trace) => trace.meta === "ends");
          const { xaxis, yaxis } = gd._fullLayout, box = gd.getBoundingClientRect();
          return [box.left + xaxis._offset + xaxis.d2p(x[which]),
                  box.top + yaxis._offset + yaxis.d2p(y[which])];
        }""",
        which,
    )


def drawn(page, name):
    """Return the number of points of a curve in the plane."""
    return page.evaluate(
        """name => document.querySelector("#plane .js-plotly-plot").data
             .find((trace) => trace.meta === name).x.length""",
        name,
    )


def number(page, row):
    text = page.locator("#numbers tr", has_text=row).locator("td").inner_text()
    return float(text.replace(",", ""))


def downloaded(page, button, folder):
    with page.expect_download() as waiting:
        page.click(f"#{button}")
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def test_two_clicks_draw_the_geodesic_that_solve_geodesic_finds(page, tmp_path):
    settled(page, lambda: page.check("text=0.001"))
    for x, y in ((0.3, 0.4), (0.6, 0.55)):
        settled(page, lambda x=x, y=y: page.mouse.click(*place(page, x, y)))
    assert drawn(page, "geodesic") > 50
    found = load_file(downloaded(page, "take-safetensors", tmp_path))
    metric = gl.GaussianPullbackMetric(gl.models.digits_vae().decode)
    solver = gl.PreconditionedSolver(tolerance=1e-3)
    expected = gl.solve_geodesic(metric, found["start"], found["end"], solver)
    assert found["length"].item() == pytest.approx(expected.length.item(), rel=1e-5)
    assert number(page, "geodesic length") == pytest.approx(expected.length.item(), rel=1e-3)
    assert number(page, "straight length") == pytest.approx(
        expected.straight_length.item(), rel=1e-3
    )
    assert expected.statuses[0].explanation in page.inner_text("#status")
    # both clicks are where the codes are
    for which, code in enumerate(("start", "end")):
        shown = [float(word) for word in page.input_value(f"#{code}-code").split()]
        assert shown == pytest.approx(found[code].tolist(), rel=1e-4)
        x, y = place(page, *((0.3, 0.4), (0.6, 0.55))[which])
        assert handle(page, which) == pytest.approx([x, y], abs=2.0)
    for strip in ("straight", "geodesic"):
        assert page.get_attribute(f"#{strip}-strip", "src").startswith("data:image/png")
        assert "11 decoded outputs" in page.get_attribute(f"#{strip}-strip", "alt")
    # the Python and the table are of the same pair
    python = downloaded(page, "take-python", tmp_path).read_text()
    assert python == python_of(page)
    assert str(found["start"].tolist()) in python
    rows = downloaded(page, "take-csv", tmp_path).read_text().splitlines()
    assert len(rows) == 102
    assert downloaded(page, "take-png", tmp_path).read_bytes()[1:4] == b"PNG"
    assert "<svg" in downloaded(page, "take-svg", tmp_path).read_text()


def test_codes_are_dragged_moved_by_keys_and_typed(page):
    settled(page, lambda: page.check("text=0.01"))
    x, y = handle(page, 0)

    def drag():
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 50, y - 30, steps=4)
        page.mouse.up()

    settled(page, drag)
    assert handle(page, 0) == pytest.approx([x + 50, y - 30], abs=3.0)
    before = [float(word) for word in page.input_value("#end-code").split()]

    def keys():
        page.focus("#end-keys")
        page.keyboard.press("ArrowUp")
        page.keyboard.press("Shift+ArrowLeft")

    settled(page, keys)
    after = [float(word) for word in page.input_value("#end-code").split()]
    assert after[0] < before[0]
    assert after[1] > before[1]
    assert before[0] - after[0] > 2 * (after[1] - before[1])

    def typed():
        page.fill("#start-code", "0.5, -0.25")
        page.keyboard.press("Enter")

    settled(page, typed)
    assert page.input_value("#start-code") == "0.5 -0.25"
    assert "torch.tensor([0.5, -0.25]" in python_of(page)
    page.fill("#start-code", "0.5 x")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('#problem').innerText")
    assert page.inner_text("#problem").startswith("Parameter `first code` should be 2 finite")


def test_the_slider_walks_along_both_curves(page):
    first = page.get_attribute("#geodesic-large", "src")
    page.focus("#walk")
    page.keyboard.press("Home")
    page.wait_for_function("() => document.querySelector('#walk-text').innerText === '0 %'")
    for curve in ("straight", "geodesic"):
        assert "decoded output 0 % along the" in page.get_attribute(f"#{curve}-large", "alt")
    # at the first code both curves show the same
    assert page.get_attribute("#straight-large", "src") == page.get_attribute(
        "#geodesic-large", "src"
    )
    assert page.get_attribute("#geodesic-large", "src") != first
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => document.querySelector('#walk-text').innerText === '1 %'")
    assert drawn(page, "walk") == 2


def test_pairs_are_kept_shown_again_and_removed(page):
    settled(page, lambda: page.check("text=0.01"))
    kept = page.input_value("#end-code")
    page.click("#keep")
    page.wait_for_selector("#pairs-list li")
    assert drawn(page, "kept") > 50
    settled(page, lambda: page.mouse.click(*place(page, 0.3, 0.3)))
    settled(page, lambda: page.mouse.click(*place(page, 0.6, 0.7)))
    assert page.input_value("#end-code") != kept
    settled(page, lambda: page.click("text=Show"))
    assert page.input_value("#end-code") == kept
    page.click("text=Remove")
    page.wait_for_selector("#pairs-list li", state="detached")


def test_a_selection_has_clusters_and_a_mean_that_can_be_stopped(page):
    page.check("text=select by a box")
    page.wait_for_function(
        "() => document.querySelector('#plane .js-plotly-plot')._fullLayout.dragmode === 'select'"
    )
    page.mouse.move(*place(page, 0.3, 0.3))
    page.mouse.down()
    page.mouse.move(*place(page, 0.6, 0.6), steps=4)
    page.mouse.up()
    page.wait_for_function(
        "() => /^[0-9]+ codes are/.test(document.querySelector('#selection-text').innerText)"
    )
    n = int(page.inner_text("#selection-text").split()[0])
    assert 10 < n < 450
    page.click("#clusters")
    page.wait_for_function(
        "() => document.querySelector('#group-text').innerText.includes('clusters of')"
    )
    assert page.inner_text("#group-text").startswith(f"3 clusters of {n} codes")
    assert drawn(page, "centers") == 3
    settled(page, lambda: page.check("text=0.00001"))
    page.click("#mean")
    page.wait_for_function("() => !document.querySelector('#stop').disabled")
    page.click("#stop")
    page.wait_for_function("() => document.querySelector('#stop').disabled")
    assert "stopped" in page.inner_text("#group-text")
    # the page is as good as before
    page.check("text=choose and drag codes")
    settled(page, lambda: page.check("text=0.01"))
    settled(page, lambda: page.mouse.click(*place(page, 0.6, 0.7)))


def test_two_visitors_do_not_see_each_other(browser, address):
    with visiting(browser, address) as one, visiting(browser, address) as two:
        untouched = two.input_value("#start-code")
        for page in (one, two):
            settled(page, lambda page=page: page.check("text=0.01"))
        before = python_of(two)
        settled(one, lambda: one.mouse.click(*place(one, 0.35, 0.65)))
        one.click("#keep")
        one.wait_for_selector("#pairs-list li")
        assert python_of(two) == before
        assert two.input_value("#start-code") == untouched
        assert two.locator("#pairs-list li").count() == 0
        # and both are answered at once
        shown = {page: python_of(page) for page in (one, two)}
        for page, x in ((one, 0.3), (two, 0.6)):
            page.mouse.click(*place(page, x, 0.3))
        for page in (one, two):
            settled(page, lambda: None, shown[page])
        assert python_of(one) != python_of(two)


def test_a_page_that_is_left_ends_its_solves(browser):
    subject = Subject(resolution=5)
    server = Server(subject, port=0)
    with serving(subject, server) as url, visiting(browser, url) as page:
        page.click("#select-all")
        page.wait_for_function(
            "() => document.querySelector('#selection-text').innerText.startsWith('450 codes are')"
        )
        page.click("#mean")
        page.wait_for_function("() => !document.querySelector('#stop').disabled")
        jobs = [job for job in server.jobs._jobs.values() if job.kind == "group"]
        assert len(jobs) == 1
        assert not jobs[0].done.is_set()
        page.goto("about:blank")
        assert jobs[0].done.wait(LONG / 1000)
        assert isinstance(jobs[0].error, StoppedError)


def test_a_page_for_others_works_with_its_token_alone(browser):
    subject = Subject(resolution=5)
    server = Server(subject, host="0.0.0.0", port=0)
    with serving(subject, server) as url:
        here = f"http://127.0.0.1:{server.port}/"
        context = browser.new_context()
        page = context.new_page()
        assert page.goto(here).status == 403
        page.goto(here + url.partition("/?")[2].join(["?", ""]))
        page.wait_for_function(SETTLED, timeout=LONG)
        assert page.url == here  # the token has left the address
        assert page.evaluate("() => document.cookie") == ""
        context.close()


def test_every_control_has_a_name_and_every_image_a_text(page):
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("main input, main button, main select")]
          .filter((each) => each.offsetParent !== null)
          .filter((each) => !(each.getAttribute("aria-label") || each.innerText
            || [...(each.labels || [])].some((label) => label.innerText)))
          .map((each) => each.outerHTML)"""
    )
    # buttons of the number field's own are hidden from readers of the screen, and keys do the same
    assert [text for text in unnamed if "dash-stepper" not in text] == []
    silent = page.evaluate(
        "() => [...document.querySelectorAll('img')].filter((each) => !each.alt).length"
    )
    assert silent == 0
    assert page.get_attribute("html", "lang") == "en"
    for live in ("status", "selection-text", "walk-text", "group-text"):
        assert page.get_attribute(f"#{live}", "aria-live") == "polite"
    # the focus is seen
    page.focus("#keep")
    page.keyboard.press("Tab")
    outline = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"


def test_a_narrow_screen_is_not_wider_than_it_is(browser, address):
    with visiting(browser, address, width=390) as page:
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 390


def test_planes_of_a_model_of_three_dimensions(browser):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        subject = Subject(
            model=ModelOptions(class_path="geolatent.models.MLPVAE", init_args={"latent_dim": 3}),
            data=DataOptions(split="test", per_class=5),
            resolution=5,
        )
        warm(subject)
    with serving(subject) as url, visiting(browser, url) as page:
        assert "the other dimensions" in page.inner_text("#plane-text")
        for label, told, axis in (
            ("principal components", "vary most", "first principal"),
            ("the plane of", "through the two codes", "along the two codes"),
        ):
            page.locator("#plane-kind").get_by_label(label).check()
            page.wait_for_selector(f"#plane .xtitle:text('{axis}')")
            assert told in page.inner_text("#plane-text")
        page.wait_for_function(SETTLED)
        settled(page, lambda: page.mouse.click(*place(page, 0.6, 0.15)))
        assert len(page.input_value("#start-code").split()) == 3


class RaisesRight(gl.models.MLPVAE):
    """The embedded model's kind, whose decoder raises where z_1 is above 1000."""

    def decode(self, z):
        if bool((z[:, 0] > 1000.0).any()):
            raise KeyError("no such place")
        return super().decode(z)


def test_a_model_that_is_not_finite_on_the_way_is_told_in_a_sentence(browser, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    model = ModelOptions(
        class_path="broken_models.Broken", init_args={"where": "half", "latent_dim": 2}
    )
    subject = Subject(model=model, resolution=5)
    subject.check()
    with serving(subject) as url, visiting(browser, url) as page:

        def typed():
            page.fill("#start-code", "-1 0")
            page.keyboard.press("Enter")

        settled(page, typed)
        page.fill("#end-code", "1 0.3")
        page.keyboard.press("Enter")
        page.wait_for_function(
            "() => document.querySelector('#status').innerText.includes('NON_FINITE')"
        )
        assert "not known" in page.inner_text("#numbers")
        assert "not finite" in page.get_attribute("#straight-strip", "alt")


def test_a_decoder_that_raises_is_told_in_a_sentence(browser, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    subject = Subject(model=ModelOptions(class_path=f"{Path(__file__).stem}.RaisesRight"))
    subject.check()
    with serving(subject) as url, visiting(browser, url) as page:
        page.fill("#end-code", "2000 0")
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.querySelector('#problem').innerText")
        assert re.search(r"KeyError: 'no such place'", page.inner_text("#problem"))
        assert "Traceback" not in page.content()
        page.fill("#end-code", "1 0")
        page.keyboard.press("Enter")
        page.wait_for_function("() => !document.querySelector('#problem').innerText")
