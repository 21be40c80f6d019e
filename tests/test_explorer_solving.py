"""The explorer without a browser: what it solves, stops and gives away, and who may see it."""

import csv
import http.client
import io
import json
import select
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load

import geolatent as gl
from geolatent.cli import main
from geolatent.explorer.downloads import curve_csv, curve_safetensors, group_python, pair_python
from geolatent.explorer.jobs import BusyError, Jobs, StoppedError, in_words
from geolatent.explorer.pictures import pictures, strip
from geolatent.explorer.plane import Plane, make_plane
from geolatent.explorer.solving import (
    PairResult,
    Settings,
    clusters_of,
    mean_of,
    parse_code,
    solve_pair,
    walk,
)
from geolatent.explorer.subject import FEATURES, GAUSSIAN, MEAN, Subject
from geolatent.lab.config import DataOptions, ModelOptions
from geolatent.lab.landscape import measure_grid

COARSE = Settings(GAUSSIAN, 1e-2)
LONG = 30.0  # seconds after which a wait has failed


@pytest.fixture(scope="module")
def subject():
    return Subject(resolution=15)


@pytest.fixture(scope="module")
def deep():
    """A model of three latent dimensions that was not trained."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield Subject(
            model=ModelOptions(class_path="geolatent.models.MLPVAE", init_args={"latent_dim": 3}),
            data=DataOptions(split="test", per_class=5),
            resolution=5,
        )


@pytest.fixture
def jobs():
    made = Jobs()
    yield made
    made.close()


@pytest.fixture
def broken(monkeypatch):
    """Return a function that makes a subject of a model whose decoder is broken somewhere."""
    monkeypatch.syspath_prepend(Path(__file__).parent)

    def make(where, latent_dim=2):
        arguments = {"where": where, "latent_dim": latent_dim}
        model = ModelOptions(class_path="broken_models.Broken", init_args=arguments)
        return Subject(model=model, resolution=5)

    return make


def pair(subject):
    start, end = subject.first_pair()
    return start, end


@pytest.mark.parametrize("settings", [COARSE, Settings(GAUSSIAN), Settings(MEAN)], ids=str)
def test_a_pair_is_what_solve_geodesic_finds(subject, settings):
    vae = gl.models.digits_vae()
    metric = {
        GAUSSIAN: gl.GaussianPullbackMetric(vae.decode),
        MEAN: gl.PullbackMetric(vae.decode_mean),
    }[settings.metric]
    start, end = pair(subject)
    solver = gl.PreconditionedSolver(tolerance=settings.tolerance)
    expected = gl.solve_geodesic(metric, start, end, solver)
    found = solve_pair(subject, start, end, settings)
    assert found.length == pytest.approx(expected.length.item(), rel=1e-5)
    assert found.straight_length == pytest.approx(expected.straight_length.item(), rel=1e-5)
    assert found.status == expected.statuses[0].name
    assert found.rows == expected.evaluations.equivalents.item()
    assert 0.0 < found.improvement < 1.0


def test_a_job_is_shown_a_first_answer_that_says_so(subject, jobs):
    start, end = pair(subject)
    job = jobs.submit("page", "pair", lambda job: solve_pair(subject, start, end, COARSE, job))
    assert job.done.wait(LONG)
    assert job.early.early
    assert not job.result.early
    assert len(job.early.control_points) <= 7
    # it is the asked one that ends up in the page, from scratch
    alone = solve_pair(subject, start, end, COARSE)
    assert job.result.length == pytest.approx(alone.length, rel=1e-6)
    assert job.result.length <= job.early.length * (1 + 1e-3)


def test_a_result_lives_in_a_page(subject):
    found = solve_pair(subject, *pair(subject), COARSE)
    text = json.dumps(found.plain(), allow_nan=False)
    assert PairResult.from_plain(json.loads(text)) == found


SNIPPETS = [
    COARSE,
    Settings(MEAN, 1e-3),
    Settings(FEATURES, 1e-2),
    Settings(GAUSSIAN, 1e-2, "graph"),
]


@pytest.mark.parametrize("settings", SNIPPETS, ids=str)
def test_the_python_makes_the_same(subject, settings, capsys):
    found = solve_pair(subject, *pair(subject), settings)
    made = {}
    exec(compile(pair_python(subject, found), "pair.py", "exec"), made)
    assert made["solution"].length.item() == pytest.approx(found.length, rel=1e-5)
    assert "GeodesicSolution" in capsys.readouterr().out


def test_the_python_of_a_model_of_ones_own_makes_the_same(tmp_path):
    model = gl.models.save_model(gl.models.digits_vae(), tmp_path / "model.safetensors")
    own = Subject(model=ModelOptions(checkpoint=str(model)), data=DataOptions(per_class=3))
    settings = Settings(GAUSSIAN, 1e-2)
    found = solve_pair(own, *pair(own), settings)
    text = pair_python(own, found)
    assert str(model) in text
    made = {}
    exec(compile(text, "pair.py", "exec"), made)
    assert made["solution"].length.item() == pytest.approx(found.length, rel=1e-5)


def test_means_and_clusters_are_those_of_the_package(subject, capsys):
    members = (subject.labels == 0).nonzero().flatten().tolist()[:4]
    mean = mean_of(subject, members, COARSE)
    clusters = clusters_of(subject, members, 2, COARSE)
    for result, name in ((mean, "found"), (clusters, "model")):
        made = {}
        exec(compile(group_python(subject, result), "group.py", "exec"), made)
        centers = made[name].mean[None] if name == "found" else made[name].cluster_centers_
        assert torch.as_tensor(centers).tolist() == [
            pytest.approx(center, rel=1e-4, abs=1e-5) for center in result.centers
        ]
    assert "tensor" in capsys.readouterr().out
    assert set(clusters.clusters) == {0, 1}
    with pytest.raises(ValueError, match="`selection` should be 2 to 500 codes"):
        mean_of(subject, [1], COARSE)
    with pytest.raises(ValueError, match="`n_clusters`"):
        clusters_of(subject, members, 1, COARSE)


def test_downloads_read_back(subject, tmp_path):
    found = solve_pair(subject, *pair(subject), COARSE)
    content = curve_safetensors(subject, found)
    tensors = load(content)
    curve = gl.CubicBSpline(tensors["control_points"][None], tensors["knots"])
    metric = gl.GaussianPullbackMetric(gl.models.digits_vae().decode)
    length = gl.path_length(metric, curve, tolerance=1e-4).item()
    assert length == pytest.approx(found.length, rel=2e-3)  # to the solver's own tolerance
    assert tensors["length"].item() == pytest.approx(found.length, rel=1e-6)
    file = tmp_path / "curve.safetensors"
    file.write_bytes(content)
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["status"] == found.status

    rows = list(csv.DictReader(io.StringIO(curve_csv(subject, found))))
    assert [float(rows[0][f"geodesic_z{k}"]) for k in (1, 2)] == pytest.approx(found.start)
    assert [float(rows[-1][f"straight_z{k}"]) for k in (1, 2)] == pytest.approx(found.end)
    codes = torch.tensor([[float(row[f"geodesic_z{k}"]) for k in (1, 2)] for row in rows])
    mean, std = gl.models.digits_vae().decode(codes)
    steps = torch.cat([mean, std], dim=1).flatten(1).diff(dim=0).norm(dim=1)
    # equal steps of length in the output
    assert float(steps.std() / steps.mean()) < 0.05
    assert float(steps.sum()) == pytest.approx(found.length, rel=1e-2)


def test_walks_have_constant_speed_and_reach_both_ends(subject):
    found = solve_pair(subject, *pair(subject), COARSE)
    for codes, outputs in walk(subject, found, [0.0, 0.5, 1.0]):
        assert codes[0].tolist() == pytest.approx(found.start, abs=1e-6)
        assert codes[-1].tolist() == pytest.approx(found.end, abs=1e-6)
        assert outputs.shape == (3, 1, 8, 8)


def test_codes_are_read_as_they_are_typed():
    assert parse_code("first code", "1, 2.5;-3e-1", 3) == [1.0, 2.5, -0.3]
    for text in ("1", "1 2 3", "1 x", "nan 1", "", None):
        with pytest.raises(ValueError, match="Parameter `first code` should be 2 finite numbers"):
            parse_code("first code", text, 2)


# planes


def test_the_background_of_two_dimensions_is_the_magnification_factor(subject):
    first, second, logarithm = subject.background(GAUSSIAN, subject.plane)
    low, high = subject.plane.low.float(), subject.plane.high.float()
    expected = measure_grid(subject.pulled_back(GAUSSIAN), low, high, 15)
    torch.testing.assert_close(first, expected["first"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(second, expected["second"], rtol=1e-5, atol=1e-5)
    assert (logarithm - expected["magnification"].log10()).abs().max() < 1e-3


@pytest.mark.parametrize("kind", ["dimensions", "principal", "pair"])
def test_planes_of_more_dimensions(deep, kind):
    ends = deep.codes[[0, 7]].double()
    plane = make_plane(kind, deep.codes, (0, 2), ends)
    torch.testing.assert_close(plane.axes @ plane.axes.T, torch.eye(2, dtype=torch.float64))
    again = Plane.from_plain(json.loads(json.dumps(plane.plain())))
    assert (again.kind, again.names) == (plane.kind, plane.names)
    points = torch.tensor([[0.1, -0.2], [0.3, 0.0]])
    torch.testing.assert_close(again.points(plane.codes(points)), points.double())
    if kind == "pair":
        torch.testing.assert_close(plane.codes(plane.points(ends)), ends)
    _, _, logarithm = deep.background(MEAN, plane)
    corner = plane.codes(plane.low[None]).float()
    inner = plane.axes @ deep.pulled_back(MEAN).tensor(corner)[0].double() @ plane.axes.T
    assert float(logarithm[0, 0]) == pytest.approx(0.5 * float(inner.det().log10()), abs=1e-3)


def test_wrong_planes_are_told(deep):
    for dimensions, word in (((0, 0), "second"), ((0, 3), "second"), ((-1, 1), "first")):
        with pytest.raises(ValueError, match=f"`{word}"):
            make_plane("dimensions", deep.codes, dimensions, deep.codes[:2])
    with pytest.raises(ValueError, match="two different ones"):
        make_plane("pair", deep.codes, (0, 1), deep.codes[[0, 0]])


# pictures


def test_pictures_of_outputs_of_any_shape():
    assert pictures(torch.zeros(2, 8, 8)).shape == (2, 1, 8, 8)
    assert pictures(torch.zeros(2, 5, 8, 8)).shape == (2, 1, 8, 8)
    row = pictures(torch.tensor([[0.0, 5.0, 10.0]]))
    assert row.tolist() == [[[[-1.0, 0.0, 1.0]]]]
    assert pictures(torch.full((1, 3, 2, 2), torch.nan)).tolist()[0][0][0] == [0.0, 0.0]
    assert strip(pictures(torch.zeros(4, 3, 2, 2))).shape == (3, 2, 11)


# jobs


def test_a_long_solve_is_stopped_and_leaves_the_rest_usable(subject, jobs):
    job = jobs.submit(
        "page", "group", lambda _: mean_of(subject, list(range(100)), Settings(GAUSSIAN, 1e-5))
    )
    while not job.done.is_set() and job.seconds < 0.3:
        job.wait(0.05)
    assert not job.done.is_set()
    jobs.stop("page")
    assert job.done.wait(LONG)
    assert isinstance(job.error, StoppedError)
    assert in_words(job.error) == "Stopped."
    assert solve_pair(subject, *pair(subject), COARSE).length > 0.0


def waiting(event):
    """Return work that lasts until an event is set or it is stopped."""

    def work(job):
        while not event.wait(0.01):
            job.look()
        return "done"

    return work


def test_pages_do_not_touch_each_others_jobs(jobs):
    go = threading.Event()
    first = jobs.submit("one", "pair", waiting(go))
    second = jobs.submit("two", "pair", waiting(go))
    jobs.stop("one")
    assert first.done.wait(LONG)
    assert isinstance(first.error, StoppedError)
    assert not second.done.is_set()
    go.set()
    assert second.done.wait(LONG)
    assert (second.result, second.error) == ("done", None)
    assert jobs.of("two") == [second]


def test_a_page_has_one_job_of_a_kind(jobs):
    go = threading.Event()
    first = jobs.submit("page", "pair", waiting(go))
    second = jobs.submit("page", "pair", waiting(go))
    assert first.done.wait(LONG)
    assert isinstance(first.error, StoppedError)
    assert jobs.of("page") == [second]
    go.set()
    assert second.done.wait(LONG)


def test_jobs_are_bounded_in_number():
    jobs, go = Jobs(at_once=1, waiting=2), threading.Event()
    for page in range(3):
        jobs.submit(str(page), "pair", waiting(go))
    with pytest.raises(BusyError, match="3 solves are under way or wait"):
        jobs.submit("late", "pair", waiting(go))
    # whose page is left makes room
    jobs.stop("2")
    assert jobs.submit("late", "pair", waiting(go)) is not None
    go.set()
    jobs.close()


def test_the_job_of_a_page_that_asks_no_more_ends():
    jobs = Jobs(patience=0.05)
    job = jobs.submit("page", "pair", waiting(threading.Event()))
    assert job.done.wait(LONG)
    assert isinstance(job.error, StoppedError)
    jobs.close()


def test_what_one_page_builds_does_not_hold_up_another():
    """A page that waits for what another is making can be stopped."""
    shared, begun, go = Subject(), threading.Event(), threading.Event()

    def make():
        begun.set()
        go.wait(LONG)
        return 1

    jobs = Jobs()
    first = jobs.submit("one", "pair", lambda _: shared._once("slow", make))
    assert begun.wait(LONG)
    second = jobs.submit("two", "pair", lambda _: shared._once("slow", make))
    second.stop()
    assert second.done.wait(LONG)
    assert isinstance(second.error, StoppedError)
    go.set()
    assert first.done.wait(LONG)
    assert first.result == 1
    jobs.close()


# bad models


@pytest.mark.parametrize(
    ("where", "latent_dim", "told"),
    [
        ("everywhere", 2, "`model` should be one whose outputs are finite at some code"),
        ("half", 1, "`model` should be a model with two latent dimensions at least"),
    ],
)
def test_models_that_cannot_be_explored_are_told(broken, where, latent_dim, told):
    with pytest.raises(ValueError, match=told):
        broken(where, latent_dim).check()


class Raises(gl.models.MLPVAE):
    """A model whose decoder does not take its codes."""

    def decode(self, z):
        return z @ torch.ones(7, 3)


def test_a_decoder_that_raises_is_told(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    subject = Subject(model=ModelOptions(class_path=f"{Path(__file__).stem}.Raises"))
    with pytest.raises(
        ValueError, match=r"one that raises RuntimeError: .*cannot be multiplied"
    ) as told:
        subject.check()
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model.checkpoint=missing.safetensors"], "`model.checkpoint` should be an existing"),
        (
            ["--model.class_path=geolatent.models.MLPVAE", '--model.init_args={"latent_dim": 1}'],
            "`model` should be a model with two latent dimensions",
        ),
        (["--port=70000"], "`port` should be at most 65535"),
        (["--resolution=1"], "`resolution` should be an integer of at least 2"),
        (["--host="], "`host` should be a name or an address"),
    ],
)
def test_the_command_says_in_a_sentence_why_there_is_no_page(words, told, capsys):
    assert main(["explore", *words]) == 1
    printed = capsys.readouterr().err
    assert told in printed
    assert printed.count("\n") == 1


def test_a_pair_across_what_is_not_finite_is_told_and_shown(broken):
    subject = broken("half")
    subject.check()
    found = solve_pair(subject, [-1.0, 0.0], [1.0, 0.5], replace(COARSE))
    assert found.status == "NON_FINITE"
    json.dumps(found.plain(), allow_nan=False)
    assert found.clocks[0] is None
    outputs = walk(subject, found, [0.0, 1.0])[0][1]
    assert outputs.isfinite().flatten(1).all(1).tolist() == [True, False]
    logarithm = subject.background(GAUSSIAN, subject.plane)[2]
    assert logarithm.isnan().any()
    assert logarithm.isfinite().any()


def test_a_decoder_alone_is_explored_from_the_prior():
    linear = ModelOptions(
        class_path="torch.nn.Linear",
        init_args={"in_features": 3, "out_features": 5},
        decoder="forward",
        latent_dim=3,
    )
    subject = Subject(model=linear, source="prior", resolution=3)
    subject.check()
    assert list(subject.metrics) == [MEAN]
    assert subject.codes.shape == (500, 3)
    assert subject.labels is None
    found = solve_pair(subject, *pair(subject), Settings(MEAN))
    assert found.status == "STRAIGHT_IS_SHORTEST"
    outputs = walk(subject, found, [0.0, 0.5, 1.0])[1][1]
    assert strip(pictures(outputs)).shape == (1, 1, 17)
    with pytest.raises(ValueError, match="`metric` should be one of mean"):
        subject.pulled_back(GAUSSIAN)


def test_without_dash_the_command_says_what_to_install(monkeypatch, capsys):
    for name in list(sys.modules):
        if name.partition(".")[0] in ("dash", "flask") or name.startswith("geolatent.explorer."):
            monkeypatch.delitem(sys.modules, name)
    for name in ("dash", "flask"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["explore"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("geolatent explore: The explorer needs Dash.")
    assert "pip install '.[explore]'" in told
    assert told.count("\n") == 1


def test_equal_codes_stay_where_they_are(subject):
    found = solve_pair(subject, [0.5, 0.5], [0.5, 0.5], COARSE)
    assert (found.status, found.length, found.improvement) == ("EQUAL_END_POINTS", 0.0, 0.0)
    json.dumps(found.plain(), allow_nan=False)


# the page's answers, and its door


@pytest.fixture
def page(subject, jobs):
    pytest.importorskip("dash", reason="needs Dash: the extra `explore`")
    from geolatent.explorer.callbacks import Page

    return Page(subject, jobs)


def state_of(subject, name):
    return {
        **{"page": name, "plane": subject.plane.plain(), "result": None, "pairs": []},
        **{"group": None, "metric": GAUSSIAN, "tolerance": 1e-2, "initial": "straight"},
        **{"pointer": "choose", "selected": None, "codes": None},
    }


def solved(page, name, start, end):
    """Ask for a pair as a page does, and return the result that ends up there."""
    state, codes = state_of(page.subject, name), {"start": start, "end": end}
    found, began = page.solve(state, codes), time.monotonic()
    while not isinstance(found["result"], dict) or found["result"]["early"]:
        assert time.monotonic() - began < LONG
        for job in page.jobs.of(name):
            job.wait(0.1)
        found = page.poll({**state, "codes": codes})
    return found["result"]


def test_two_pages_at_once_get_their_own_results(page):
    codes = page.subject.codes.tolist()
    asked = {"one": (codes[0], codes[9]), "two": (codes[3], codes[5])}
    found = {}
    threads = [
        threading.Thread(target=lambda n=name: found.update({n: solved(page, n, *asked[n])}))
        for name in asked
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    for name, (start, end) in asked.items():
        assert (found[name]["start"], found[name]["end"]) == (start, end)
        alone = solve_pair(page.subject, start, end, COARSE)
        assert found[name]["length"] == pytest.approx(alone.length, rel=1e-6)


@pytest.fixture
def client(subject, jobs):
    """Return a function that gives a client of the page's server, with a token or without."""
    pytest.importorskip("dash", reason="needs Dash: the extra `explore`")
    from geolatent.explorer.server import make_app

    return lambda token=None: make_app(subject, jobs, token).server.test_client()


def test_a_page_for_this_machine_answers_to_its_own_names_alone(client):
    local = client()
    for host in ("127.0.0.1:8050", "localhost:8050", "[::1]:8050"):
        assert local.get("/", headers={"Host": host}).status_code == 200
    refused = local.get("/", headers={"Host": "attacker.example:8050"})
    assert refused.status_code == 403
    assert refused.data == b"The explorer answers to this machine's own names alone.\n"
    sent = local.post("/closed", headers={"Host": "127.0.0.1", "Origin": "http://evil.example"})
    assert sent.status_code == 403


def test_a_page_for_others_asks_for_its_token(client):
    there = client("secret-token")
    there.get("/")
    for path in ("/", "/_dash-layout", "/assets/explorer.js", "/?token=wrong", "/?token="):
        assert there.get(path).status_code == 403, path
    assert there.post("/closed").status_code == 403
    entered = there.get("/?token=secret-token")
    assert entered.status_code == 303
    assert entered.headers["Location"] == "/"
    cookie = entered.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert there.get("/").status_code == 200
    assert there.get("/_dash-layout").status_code == 200
    assert client("another-token").get("/").status_code == 403


def test_any_host_but_loopback_gets_a_token(subject):
    pytest.importorskip("dash", reason="needs Dash: the extra `explore`")
    from geolatent.explorer.server import Server

    local = Server(subject, port=0)
    assert local.url == f"http://127.0.0.1:{local.port}/"
    with pytest.raises(OSError, match="`port` should be a free port, or 0 for any"):
        Server(subject, port=local.port)
    local.close()
    with pytest.raises(OSError, match="`host` should be a name or an address of this machine"):
        Server(subject, host="no.such.host.invalid", port=0)
    tokens = set()
    for _ in range(2):
        server = Server(subject, host="0.0.0.0", port=0)
        tokens.add(server.url.partition("?token=")[2])
        server.close()
    assert len(tokens) == 2
    assert min(map(len, tokens)) >= 32


def test_a_server_is_closed_by_its_own_loop(subject, monkeypatch):
    """Nothing is closed under a loop that is about to wait for it, nor waited for for ever."""
    pytest.importorskip("dash", reason="needs Dash: the extra `explore`")
    from geolatent.explorer.server import Server

    about_to_wait, closed = threading.Event(), threading.Event()

    def slow(*args):
        about_to_wait.set()
        assert closed.wait(LONG)
        return select.select(*args)

    server = Server(subject, port=0)
    with closing(http.client.HTTPConnection("127.0.0.1", server.port)) as kept_open:
        monkeypatch.setattr("waitress.wasyncore.select", SimpleNamespace(select=slow))
        thread = threading.Thread(target=server.run)
        thread.start()
        assert about_to_wait.wait(LONG)
        kept_open.connect()
        server.close()
        server.close()
        closed.set()
        thread.join(LONG)
    assert not thread.is_alive()


def test_a_page_that_is_left_ends_its_work(client, jobs):
    job = jobs.submit("a-page", "pair", waiting(threading.Event()))
    assert client().post("/closed", data="a-page").status_code == 204
    assert job.done.wait(LONG)
    assert isinstance(job.error, StoppedError)


def test_each_visit_has_a_name_of_its_own(client):
    there = client()
    layouts = [json.dumps(there.get("/_dash-layout").json) for _ in range(2)]
    assert layouts[0] != layouts[1]
