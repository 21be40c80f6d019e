"""Windows of dynamical systems, fields of temperature, and recurrent networks of them."""

import importlib.util
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.io import netcdf_file
from torch import nn

import geolatent as gl
from geolatent.cli import main
from geolatent.lab import plotting_sequences
from geolatent.lab.config import TrainingOptions
from geolatent.lab.data import DataOptions, load
from geolatent.lab.forecast import Forecast, forecast_errors
from geolatent.lab.plot import plot
from geolatent.lab.run import load_run
from geolatent.lab.sst import fields, winters
from geolatent.lab.systems import SYSTEMS, WINDOWS_EACH, observed_trajectories
from geolatent.lab.train import Train
from geolatent.lab.training import fit_model
from geolatent.metrics.map import Map
from geolatent.models import Forecaster, RecurrentVAE, load_model, save_model
from geolatent.models.recurrent import GatedCell

FEW = {"n_trajectories": 4, "n_steps": 6, "test_fraction": 0.25}
QUICK = TrainingOptions(epochs=2, batch_size=16, accelerator="cpu", progress=False)
BOTH = pytest.mark.parametrize("name", SYSTEMS)


def lorenz(_, u):
    x, y, z = u
    return [10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z]


def pendulum(_, u):
    angle, velocity, phase = u
    w = math.sqrt(9.81)
    torque = -(w**2) * math.sin(angle) + 1.5 * w**2 * math.cos(phase)
    return [velocity, torque - w / 2 * velocity, 2 * w / 3]


@pytest.mark.parametrize(("name", "equations"), [("lorenz", lorenz), ("pendulum", pendulum)])
def test_systems_are_their_equations(name, equations):
    system = SYSTEMS[name]
    start = system.begin(2, seed=3)
    for state in start:
        expected = torch.tensor(equations(0.0, state.tolist()), dtype=torch.float64)
        torch.testing.assert_close(system.derivative(state), expected)
    after = start
    for _ in range(5):
        after = system.step(after, substeps=20)
    for state, found in zip(start, after, strict=True):
        span = (0.0, 5 * system.time_step)
        truth = solve_ivp(equations, span, state.numpy(), rtol=1e-10, atol=1e-10).y[:, -1]
        np.testing.assert_allclose(found.numpy(), truth, rtol=1e-5, atol=1e-5)


@BOTH
def test_no_trajectory_is_in_both_splits(name):
    every = observed_trajectories(DataOptions(name, split="all", **FEW))[1]
    train = observed_trajectories(DataOptions(name, split="train", **FEW))[1]
    test = observed_trajectories(DataOptions(name, split="test", **FEW))[1]
    assert every.shape[:2] == (4, 6 * WINDOWS_EACH)
    # the integrator's steps depend on which trajectories it has: beginnings are compared
    torch.testing.assert_close(torch.cat([train, test]).shape, every.shape)
    begin = SYSTEMS[name].begin(4, 0)
    assert not torch.isclose(begin[:3, None], begin[None, 3:]).all(-1).any()


@BOTH
def test_windows_are_images_that_follow_one_another(name):
    options = DataOptions(name, split="test", **FEW)
    images, labels = load(options)
    seen, _ = observed_trajectories(options)
    assert images.shape == (WINDOWS_EACH, 1, 6, len(SYSTEMS[name].columns))
    assert images.dtype == torch.float32
    assert labels.shape == (WINDOWS_EACH,)
    torch.testing.assert_close(images[:, 0].flatten(0, 1), seen[0])
    assert float(images.abs().max()) <= 1 + 1e-6
    assert set(labels.tolist()) <= set(range(len(SYSTEMS[name].classes)))


def test_classes():
    x = torch.tensor([1.0, -1.0, -2.0, 3.0])
    states = torch.stack([x, x, x], -1)[None]
    assert SYSTEMS["lorenz"].classify(states).tolist() == [2]
    angle = torch.tensor([[0.0, 3.0], [0.0, 4.0], [0.0, -4.0]])
    turning = torch.stack([angle, angle, angle], -1)
    assert SYSTEMS["pendulum"].classify(turning).tolist() == [0, 1, 2]


@BOTH
def test_what_is_drawn_is_the_state_in_its_units(name):
    system = SYSTEMS[name]
    states = system.begin(3, seed=1)[:, None] + 0.1 * torch.arange(8.0).double()[:, None]
    found = system.drawn(system.observe(states))
    shown = states[..., : found.shape[-1]]
    off = found - shown
    if name == "pendulum":
        turns = off[..., :1, :1] / (2 * math.pi)
        torch.testing.assert_close(turns, turns.round(), rtol=0, atol=1e-9)
        off[..., 0] -= off[..., :1, 0]
    torch.testing.assert_close(off, torch.zeros_like(off), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "digits", "n_steps": 4}, "`n_steps` should be given where `name` is one of"),
        ({"name": "lorenz", "n_trajectories": 1}, "`n_trajectories` should be"),
        ({"name": "lorenz", "path": "a.npy"}, "`path` should be"),
    ],
)
def test_options_that_do_not_belong_together(options, message):
    with pytest.raises(ValueError, match=message):
        DataOptions(**options)


def test_a_split_without_trajectories():
    with pytest.raises(ValueError, match="`test_fraction` should be"):
        load(DataOptions("lorenz", n_trajectories=3, test_fraction=0.1))


def test_the_cell_is_torchs():
    torch.manual_seed(0)
    theirs, ours = nn.GRUCell(3, 5).double(), GatedCell(3, 5).double()
    # torch's last part of the state's weights is of the new value too
    ours.of_input.load_state_dict({"weight": theirs.weight_ih, "bias": theirs.bias_ih})
    ours.of_state.load_state_dict({"weight": theirs.weight_hh, "bias": theirs.bias_hh})
    x, h = torch.randn(4, 3).double(), torch.randn(4, 5).double()
    torch.testing.assert_close(ours(x, h), theirs(x, h))


@pytest.mark.parametrize("both_ways", [False, True])
def test_a_recurrent_model_has_jacobians_in_forward_mode(both_ways, tmp_path):
    torch.manual_seed(0)
    model = RecurrentVAE(2, 6, (1, 5, 3), both_ways).double().eval().requires_grad_(False)
    z = torch.randn(4, 2).double()
    columns = Map(model.decode_mean, "decoder").columns(z)[1].unflatten(2, (1, 5, 3))
    full = torch.autograd.functional.jacobian(model.decode_mean, z)
    for row in range(4):
        expected = full[row, ..., row, :].movedim(-1, 0)
        torch.testing.assert_close(columns[:, row], expected)
    mean, std = model.encode(model.decode_mean(z))
    assert mean.shape == std.shape == (4, 2)
    loaded = load_model(save_model(model, tmp_path / "model"))
    torch.testing.assert_close(loaded.decode(z)[0], model.decode(z)[0])
    solved = gl.solve_geodesic(gl.GaussianPullbackMetric(model.decode), z[0], z[1])
    assert bool((solved.length <= solved.straight_length * (1 + 1e-9)).all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RecurrentVAE(image_shape=(3, 8, 8)), "`image_shape` should be"),
        (lambda: RecurrentVAE(hidden=0), "`hidden` should be"),
        (lambda: Forecaster(image_shape=(1, 8, 2), forced=8), "`forced` should be below 8"),
        (lambda: Forecaster(circles=[[0, 3]]), "`circles` should be columns below 3"),
        (lambda: Forecaster(circles=[[0, 1], [1, 2]]), "`circles` should be pairs"),
    ],
)
def test_bad_sizes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_steps_of_a_forecaster_are_its_forecast():
    torch.manual_seed(0)
    model = Forecaster(5, (1, 6, 4), forced=2, circles=[(0, 1)]).double().requires_grad_(False)
    rows = torch.randn(3, 6, 4).double()
    model.initialise(rows[:, None])
    torch.testing.assert_close(model.scale, rows.diff(dim=1).square().mean((0, 1)).sqrt())
    state = model.read(rows)
    ahead = model.forecast(rows, 4)
    for step in range(4):
        state = model.step(state)
        torch.testing.assert_close(ahead[:, step], state[:, :4])
    norms = ahead[..., :2].norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms))
    # errors are of the free run from the second row on
    free = torch.cat([model.forecast(rows[:, :1], 1), model.forecast(rows[:, :2], 4)], 1)
    torch.testing.assert_close(model.errors(rows[:, None]), (free - rows[:, 1:]) / model.scale)


def test_a_forecaster_learns_a_rotation_and_its_exponent_is_zero():
    angle = 0.3 * torch.arange(12.0) + torch.linspace(0, 6.2, 256)[:, None]
    images = torch.stack([angle.cos(), angle.sin()], -1)[:, None]
    torch.manual_seed(0)
    model = Forecaster(16, (1, 12, 2), forced=2, circles=[(0, 1)])
    options = TrainingOptions(
        epochs=30, batch_size=32, learning_rate=1e-2, accelerator="cpu", progress=False
    )
    record = fit_model(model, images, options)
    assert record.validation_loss[-1] < 1e-2 * record.validation_loss[0]
    model.requires_grad_(False)
    state = model.read(images[:8, 0])
    found = gl.lyapunov_exponents(model.step, state, 100, n_exponents=1, n_transient=50)
    torch.testing.assert_close(found.exponents, torch.zeros(8, 1).double(), rtol=0, atol=0.01)


def test_forecast_errors_of_a_frozen_state_are_those_of_persistence():
    model = Forecaster(3, (1, 4, 2), forced=1).requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    true = torch.randn(2, 20, 2, generator=torch.Generator().manual_seed(0))
    errors = forecast_errors(model, true, 4, 5)
    std = true.flatten(0, 1).std(0)
    first = ((true[0, 3] - true[0, 4]) / std).square().mean().sqrt()
    assert errors.shape == (6, 5)
    torch.testing.assert_close(errors[0, 0], first)


def test_forecast_writes_a_run_that_can_be_drawn_again(tmp_path, capsys):
    name, system = "pendulum", SYSTEMS["pendulum"]
    work = Forecast(
        out=tmp_path / "run",
        model=lambda: Forecaster(8, (1, 6, len(system.columns)), 2, system.circles),
        data=DataOptions(name, **FEW),
        training=QUICK,
        n_ahead=10,
        n_steps=20,
        n_lyapunov=10,
    )
    work.run()
    run = load_run(tmp_path / "run")
    assert set(run.summary["lyapunov"]) == {"equations", "model"}
    assert set(run.summary["wasserstein"]) == set(system.coordinates)
    assert main(["report", str(tmp_path)]) == 0
    assert "pendulum: Lyapunov" in " ".join(capsys.readouterr().out.split())
    assert run.arrays["errors"].shape == (10,)
    before = sorted(path.name for path in (tmp_path / "run" / "figures").iterdir())
    assert before == ["attractor.png", "errors.png", "losses.png", "marginals.png"]
    plot(tmp_path / "run")
    assert isinstance(load_model(tmp_path / "run" / "model.safetensors"), Forecaster)


def test_forecast_wants_a_system_and_long_trajectories(tmp_path):
    def make():
        return Forecaster(4, (1, 6, 3), 2)

    with pytest.raises(ValueError, match=r"`data.name` should be one of lorenz, pendulum"):
        Forecast(out=tmp_path / "a", model=make, data=DataOptions()).check()
    with pytest.raises(ValueError, match="`n_ahead` should be at most 114"):
        Forecast(
            out=tmp_path / "a", model=make, data=DataOptions("lorenz", **FEW), n_ahead=115
        ).check()
    with pytest.raises(TypeError, match="`model` should be a callable that returns a Forecaster"):
        Forecast(
            out=tmp_path / "a",
            model=lambda: RecurrentVAE(2, 4, (1, 6, 3)),
            data=DataOptions("lorenz", **FEW),
        ).check()


def write_winters(path, **changes):
    """Write a small file of temperatures: two winters, 1999/2000 cold and 2009/10 warm."""
    days = [
        (np.datetime64(day) - np.datetime64("1800-01-01")).astype(int)
        for day in changes.pop("days", ("2000-01-15", "2010-01-15"))
    ]
    axes = {"time": days, "latitude": [-2.5, 2.5, 7.5], "longitude": [187.5, 192.5, 237.5]}
    sst = np.full((2, 3, 3), -1.0)
    sst[1] = 2.0
    missing = changes.get("missing", 1e20)
    sst[:, 2, 0] = missing
    with netcdf_file(path, "w") as file:
        for name, values in axes.items():
            file.createDimension(name, len(values))
            file.createVariable(name, "f8", (name,))[:] = values
        if changes.get("sst", True):
            variable = file.createVariable("sst", "f8", ("time", "latitude", "longitude"))
            variable.missing_value = missing
            variable[:] = sst
    return path


@pytest.mark.parametrize("missing", [1e20, -9999.0, float("nan")])
def test_winters_are_classes_by_the_middle_of_the_pacific(tmp_path, missing):
    path = write_winters(tmp_path / "sst.nc", missing=missing)
    found = winters(path)
    assert found.years.tolist() == [2000, 2010]
    np.testing.assert_allclose(found.nino34, [-1.0, 2.0])
    images, labels = fields(path)
    assert labels.tolist() == [0, 2]
    assert images.shape == (2, 1, 3, 3)
    torch.testing.assert_close(images[1, 0, 0], torch.full((3,), 0.4))
    assert images[:, 0, 2, 0].tolist() == [0.0, 0.0]
    chosen, _ = load(DataOptions("sst", path=str(path), split="train", test_fraction=0.5))
    assert len(chosen) == 1


def test_files_without_temperatures(tmp_path):
    with pytest.raises(FileNotFoundError, match="`path` should be an existing file"):
        winters(tmp_path / "none.nc")
    (tmp_path / "text.nc").write_text("nothing")
    for path in (tmp_path / "text.nc", write_winters(tmp_path / "bare.nc", sst=False)):
        with pytest.raises(ValueError, match="a readable NetCDF 3 file with sst"):
            winters(path)


def test_what_to_install_is_said(monkeypatch):
    monkeypatch.setattr("geolatent.lab.sst.find_spec", lambda _: None)
    with pytest.raises(FileNotFoundError, match="pip install eofs"):
        winters()


@pytest.mark.skipif(importlib.util.find_spec("eofs") is None, reason="needs eofs")
def test_the_winters_of_eofs():
    found = winters()
    assert found.anomalies.shape == (50, 18, 30)
    assert (found.years[0], found.years[-1]) == (1963, 2012)
    # strong ones of both kinds, as all lists have them
    strongest = found.years[found.nino34.argsort()]
    assert {1983, 1998} == set(strongest[-2:].tolist())
    assert {1974, 1989} <= set(strongest[:4].tolist())
    images, labels = load(DataOptions("sst", split="all"))
    assert images.abs().max() < 1
    assert labels.bincount().min() > 10


def test_trainings_draw_lines_and_maps(tmp_path):
    make = {
        "lorenz": lambda: RecurrentVAE(2, 4, (1, 6, 3)),
        "sst": lambda: gl.models.MLPVAE(2, (4,), (1, 3, 3)),
    }
    data = {
        "lorenz": DataOptions("lorenz", **FEW),
        "sst": DataOptions("sst", path=str(write_winters(tmp_path / "a.nc")), split="all"),
    }
    for name, options in data.items():
        Train(
            out=tmp_path / name,
            model=make[name],
            data=options,
            test_data=options,
            training=TrainingOptions(
                epochs=1, validation_fraction=0.0, accelerator="cpu", progress=False
            ),
        ).run()
        assert (tmp_path / name / "figures" / "reconstructions.png").is_file()


@pytest.mark.parametrize("name", ["pendulum", "sst"])
def test_strips_of_sequences(name):
    generator = torch.Generator().manual_seed(0)
    shape = (1, 6, 5) if name == "pendulum" else (1, 18, 30)
    images = torch.rand(2, 4, *shape, generator=generator).numpy()
    figure = plotting_sequences.drawn_strips(
        {"data": {"name": name}}, {"straight": images, "geodesic": images}, ["a", "b"]
    )
    axes = [axes for part in (figure, *figure.subfigs) for axes in part.axes]
    labels = {axes.get_ylabel() for axes in axes} | {axes.get_xlabel() for axes in axes}
    if name == "pendulum":
        assert {"angle θ (rad)", "velocity θ' (rad/s)", "time (s)"} <= labels
    else:
        assert {"sea surface temperature anomaly (K)", "longitude (°E)"} <= labels
