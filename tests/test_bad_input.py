"""Bad input is refused at the door: argument, requirement and what was found are named."""

import functools
import re
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import geolatent as gl
from geolatent import (
    CubicBSpline,
    FirstOrderSolver,
    GaussianPullbackMetric,
    LatentGraph,
    PreconditionedSolver,
    PullbackMetric,
    TensorMetric,
    path_energy,
    path_length,
    solve_geodesic,
)
from geolatent.checks import check_alike, check_tensor
from geolatent.metrics.information import BernoulliPullbackMetric

META = torch.device("meta")
CODES = torch.ones(3, 2)


def double(z):
    return 2.0 * z


def heads(z):
    return z, z.exp()


METRIC = PullbackMetric(double)
PLANE = TensorMetric(lambda z: torch.eye(2).repeat(len(z), 1, 1), dim=2)


def check_refused(call, error, name, required="", found=""):
    """Require one of the two error types, with a message of three parts."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    pattern = (
        rf"^Parameter `{re.escape(name)}` should be (.+?)\. Found `{re.escape(name)} = (.+)`\.$"
    )
    match = re.match(pattern, message, flags=re.DOTALL)
    assert match, message
    assert required in match.group(1), message
    assert found in match.group(2), message


# Codes

BAD_CODES = {
    "a list": ([0.0, 1.0], TypeError, "floating-point tensor", "list of 2"),
    "an array of integers": (
        np.ones((3, 2), dtype=int),
        TypeError,
        "floating-point tensor",
        "numpy array of shape (3, 2)",
    ),
    "None": (None, TypeError, "floating-point tensor", "None"),
    "integers": (torch.ones(3, 2, dtype=torch.int64), TypeError, "floating-point", "torch.int64"),
    "complex": (torch.ones(3, 2, dtype=torch.complex64), TypeError, "floating-point", "complex64"),
    "a scalar": (torch.tensor(1.0), ValueError, "of shape", "shape ()"),
    "no codes": (torch.ones(0, 2), ValueError, "of shape", "shape (0, 2)"),
    "NaN": (torch.full((3, 2), torch.nan), ValueError, "finite", "6 values that are NaN"),
    "infinite": (torch.tensor([[torch.inf, 0.0]]), ValueError, "finite", "1 values"),
}


@pytest.mark.parametrize("case", BAD_CODES)
@pytest.mark.parametrize("name", ["start", "end"])
def test_bad_end_points(case, name):
    value, error, required, found = BAD_CODES[case]
    pair = {"start": CODES, "end": CODES, name: value}
    for call in (
        lambda: solve_geodesic(METRIC, pair["start"], pair["end"]),
        lambda: CubicBSpline.straight(pair["start"], pair["end"]),
    ):
        check_refused(call, error, name, required, found)


@pytest.mark.parametrize("case", [*BAD_CODES, "one dimension"])
@pytest.mark.parametrize("name", ["z", "v"])
def test_bad_codes_of_a_metric(case, name):
    if case == "one dimension":
        value, error, required, found = torch.ones(2), ValueError, "of shape (n, ", "shape (2,)"
    else:
        value, error, required, found = BAD_CODES[case]
    pair = {"z": CODES, "v": CODES, name: value}
    for metric in (METRIC, PLANE, GaussianPullbackMetric(heads)):
        check_refused(lambda m=metric: m.quadratic(**pair), error, name, required, found)
        if name == "z":
            check_refused(lambda m=metric: m.tensor(value), error, name, required, found)


@pytest.mark.parametrize(
    ("start", "end", "error", "required", "found"),
    [
        (torch.ones(3, 2), torch.ones(4, 2), ValueError, "broadcasts with `start`", "(4, 2)"),
        (torch.ones(3, 2), torch.ones(3, 3), ValueError, "broadcasts with `start`", "(3, 3)"),
        (torch.ones(2), torch.ones(3), ValueError, "of shape (1, 2)", "(1, 3)"),
        (torch.ones(2), torch.ones(2).double(), TypeError, "`start`, torch.float32", "float64"),
    ],
)
def test_end_points_that_do_not_go_together(start, end, error, required, found):
    check_refused(lambda: solve_geodesic(METRIC, start, end), error, "end", required, found)
    check_refused(lambda: CubicBSpline.straight(start, end), error, "end", required, found)


def test_tangents_that_do_not_go_with_the_codes():
    z = torch.ones(3, 2)
    for v, error, required in (
        (torch.ones(4, 2), ValueError, "of the shape of `z`, (3, 2)"),
        (torch.ones(3, 3), ValueError, "of shape (n, 2)"),
        (torch.ones(3, 2).double(), TypeError, "dtype of `z`, torch.float32"),
    ):
        check_refused(lambda v=v: METRIC.quadratic(z, v), error, "v", required)


def test_dimension_that_the_metric_fixes():
    z = torch.ones(3, 3)
    check_refused(lambda: PLANE.tensor(z), ValueError, "z", "(n, 2)", "(3, 3)")
    check_refused(lambda: solve_geodesic(PLANE, z, z), ValueError, "start", "2", "(3, 3)")
    line = CubicBSpline.straight(z, z)
    check_refused(lambda: path_length(PLANE, line), ValueError, "curve", "(n, 2)", "(3, 3)")


def test_codes_that_the_decoder_cannot_take():
    # half precision holds no codes: they stay as they are
    metric = PullbackMetric(nn.Linear(2, 4).half())
    for call, name in (
        (lambda z: metric.tensor(z), "z"),
        (lambda z: solve_geodesic(metric, z, z + 1), "start"),
        (lambda z: path_length(metric, CubicBSpline.straight(z, z)), "curve"),
        (lambda z: LatentGraph.from_codes(metric, z), "codes"),
    ):
        check_refused(
            lambda call=call: call(CODES), TypeError, name, "dtype of `decoder`", "float32"
        )


def picked(z):
    return z[:, [5]]


def asserted(z):
    assert z.shape[1] == 2, "two dimensions"
    return z


@pytest.mark.parametrize(
    ("decoder", "told"),
    [
        (nn.Linear(2, 4), "shapes cannot be multiplied"),
        (lambda z: z @ torch.ones(2, 4), "shapes cannot be multiplied"),
        (picked, "IndexError: index 5 is out of bounds"),
        (asserted, "AssertionError: two dimensions"),
        (nn.Sequential(nn.Unflatten(1, (2, 1, 1)), nn.Conv2d(2, 3, 1)), "unflatten"),
    ],
)
def test_codes_of_a_width_that_the_decoder_does_not_take(decoder, told):
    z = torch.ones(3, 5)
    for metric in (
        PullbackMetric(decoder),
        BernoulliPullbackMetric(decoder),
        GaussianPullbackMetric(lambda z: (decoder(z), decoder(z))),
    ):
        for call, name in (
            (lambda m: m.tensor(z), "z"),
            (lambda m: solve_geodesic(m, z, z + 1), "start"),
            (lambda m: path_length(m, CubicBSpline.straight(z, z)), "curve"),
        ):
            refused = functools.partial(call, metric)
            check_refused(refused, ValueError, name, "what `decoder` takes", "of width 5")
            with pytest.raises(ValueError, match=told):
                refused()
    with pytest.raises(ValueError, match="`features` takes") as raised:
        PullbackMetric(lambda z: 2.0 * z, decoder).tensor(z)
    assert isinstance(raised.value.__cause__, RuntimeError | IndexError | AssertionError)


def test_quantised_decoders():
    decoder = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dynamic = torch.ao.quantization.quantize_dynamic(decoder, {nn.Linear}, torch.qint8)
    for quantised in (dynamic, lambda z: dynamic(z)):
        metric = PullbackMetric(quantised)
        call = functools.partial(metric.tensor, CODES)
        found = "quantised weights, `0._packed_params"
        check_refused(call, ValueError, "decoder", "the floating-point model", found)


def test_decoders_whose_values_are_steps():
    fine = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    for stepped in (
        lambda z: (z @ fine).mul(255).round() / 255,
        lambda z: (10 * z).floor(),
    ):
        call = functools.partial(PullbackMetric(stepped).tensor, CODES)
        check_refused(call, ValueError, "decoder", "differentiable", "levels on a line")
    # plateaus of saturated outputs are no steps
    for flat in (lambda z: torch.tanh(1e6 * z), lambda z: 0.0 * z, lambda z: torch.relu(z - 9)):
        assert torch.equal(PullbackMetric(flat).tensor(CODES), torch.zeros(3, 2, 2))


def test_devices():
    there = nn.Linear(2, 4).to(META)
    metric = PullbackMetric(there)
    check_refused(lambda: metric.tensor(CODES), ValueError, "z", "`decoder` (meta", "on cpu")
    call = functools.partial(solve_geodesic, metric, CODES, CODES + 1)
    check_refused(call, ValueError, "start", "`decoder` (meta, parameter `weight`)", "on cpu")
    away = torch.ones(3, 2, device=META)
    call = functools.partial(check_alike, "end", away, "start", CODES)
    check_refused(call, ValueError, "end", "device of `start`, cpu", "on meta")


@pytest.mark.cuda
def test_devices_that_differ():
    away = CODES.cuda()
    for call, name in (
        (lambda: solve_geodesic(METRIC, CODES, away), "end"),
        (lambda: METRIC.quadratic(CODES, away), "v"),
        (lambda: solve_geodesic(PullbackMetric(nn.Linear(2, 3)), away, away + 1), "start"),
        (lambda: solve_geodesic(METRIC, away, away + 1, initial=CODES[None]), "initial"),
    ):
        check_refused(call, ValueError, name, "on the device of")


# Decoders

WRONG_OUTPUTS = {
    "an array": (lambda z: z.numpy(force=True), TypeError, "numpy array of shape (1, 2)"),
    "integers": (lambda z: z.round().long(), TypeError, "torch.int64"),
    "nothing": (lambda _: None, TypeError, "None"),
    "a list": (lambda z: z.tolist(), TypeError, "list of 1"),
    "a tuple": (heads, TypeError, "tuple of 2"),
    "one number": (lambda z: z.sum(), ValueError, "shape ()"),
    "other rows": (lambda z: torch.cat([z, z]), ValueError, "shape (2, 2)"),
    "detached": (lambda z: z.detach() * 2, ValueError, "without a gradient"),
    "no gradients": (torch.no_grad()(double), ValueError, "without a gradient"),
}


@pytest.mark.parametrize("case", WRONG_OUTPUTS)
def test_decoders_that_return_the_wrong_thing(case):
    decoder, error, found = WRONG_OUTPUTS[case]
    metric = PullbackMetric(decoder)
    line = CubicBSpline.straight(CODES, CODES + 1)
    for call in (
        lambda: metric.tensor(CODES),
        lambda: metric.quadratic(CODES, CODES),
        lambda: solve_geodesic(metric, CODES, CODES + 1),
        lambda: path_length(metric, line),
        lambda: path_energy(metric, line),
        lambda: LatentGraph.from_codes(metric, CODES),
        lambda: LatentGraph.lattice(metric, torch.zeros(2), torch.ones(2), resolution=3),
    ):
        check_refused(call, error, "decoder", found=found)


@pytest.mark.parametrize("case", WRONG_OUTPUTS)
def test_features_that_return_the_wrong_thing(case):
    features, error, found = WRONG_OUTPUTS[case]
    for metric in (PullbackMetric(double, features), GaussianPullbackMetric(heads, features)):
        call = functools.partial(metric.tensor, CODES)
        check_refused(call, error, "features", found=found)


@pytest.mark.parametrize(
    ("decoder", "error", "found"),
    [
        (double, TypeError, "tensor of shape (1, 2)"),
        (lambda z: (z,), TypeError, "tuple of 1"),
        (lambda z: (z, z, z), TypeError, "tuple of 3"),
        (lambda z: (z, None), TypeError, "None"),
        (lambda z: (z, z.long()), TypeError, "torch.int64"),
        (lambda z: (z, z[:, :1]), ValueError, "shape (1, 1)"),
        (lambda z: (z, z.sum()), ValueError, "shape ()"),
        (lambda z: {"mean": z, "std": z}, TypeError, "type dict"),
    ],
)
def test_gaussian_decoders_that_return_the_wrong_thing(decoder, error, found):
    metric = GaussianPullbackMetric(decoder)
    required = "a tuple of 2 floating-point tensors of one shape (n, ...)"
    for call in (
        lambda: metric.tensor(CODES),
        lambda: solve_geodesic(metric, CODES, CODES + 1),
    ):
        check_refused(call, error, "decoder", required, found)


@pytest.mark.parametrize("value", [None, 3, "decoder", torch.ones(2), [double]])
def test_what_cannot_be_called(value):
    check_refused(lambda: PullbackMetric(value), TypeError, "decoder", "callable")
    check_refused(lambda: GaussianPullbackMetric(value), TypeError, "decoder", "callable")
    check_refused(lambda: TensorMetric(value, dim=2), TypeError, "fn", "callable")
    if value is not None:
        check_refused(lambda: PullbackMetric(double, value), TypeError, "features", "callable")


class Model(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 4), layer)

    def decode(self, z):
        return self.body(z)

    forward = decode


TRAINING = {
    "BatchNorm": nn.BatchNorm1d(4),
    "BatchNorm without statistics": nn.BatchNorm1d(4, track_running_stats=False),
    "SyncBatchNorm": nn.SyncBatchNorm(4),
    "Dropout": nn.Dropout(0.1),
    "AlphaDropout": nn.AlphaDropout(0.1),
    "InstanceNorm with statistics": nn.InstanceNorm1d(4, track_running_stats=True),
}


@pytest.mark.parametrize("case", TRAINING)
def test_training_mode(case):
    layer = TRAINING[case]
    model = Model(layer).train()
    label = f"{type(layer).__name__} `body.1` in training mode"
    for decoder in (
        model,
        model.decode,
        functools.partial(model),
        functools.partial(lambda model, z: model(z), model),
        lambda z: model(z),
    ):
        call = functools.partial(PullbackMetric, decoder)
        check_refused(call, ValueError, "decoder", "call `decoder.eval()` first", label)
    call = functools.partial(PullbackMetric, double, model)
    check_refused(call, ValueError, "features", "call `features.eval()` first", label)
    call = functools.partial(GaussianPullbackMetric, model)
    check_refused(call, ValueError, "decoder", "evaluation mode", label)
    if case != "BatchNorm without statistics":
        PullbackMetric(model.eval())


def test_batch_norm_without_statistics_mixes_rows_even_in_evaluation_mode():
    model = Model(nn.BatchNorm1d(4, track_running_stats=False)).eval()
    call = functools.partial(PullbackMetric, model)
    check_refused(call, ValueError, "decoder", "without running statistics", "BatchNorm1d")


def test_layers_without_a_training_mode_of_their_own_are_welcome():
    for layer in (nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.ReLU(inplace=True)):
        PullbackMetric(Model(layer).train()).tensor(CODES)


def test_mode_changed_after_the_metric_was_made():
    model = Model(nn.BatchNorm1d(4)).eval()
    metric = PullbackMetric(model)
    metric.tensor(CODES)
    model.train()
    for call in (
        lambda: metric.tensor(CODES),
        lambda: solve_geodesic(metric, CODES, CODES + 1),
        lambda: path_length(metric, CubicBSpline.straight(CODES, CODES)),
    ):
        check_refused(call, ValueError, "decoder", "evaluation mode", "BatchNorm1d")
    assert model.body[1].num_batches_tracked == 0


def skewed(z):
    return torch.tensor([[1.0, 0.5], [0.0, 1.0]]).repeat(len(z), 1, 1)


@pytest.mark.parametrize(
    ("fn", "error", "found"),
    [
        (lambda z: z, ValueError, "shape (2, 2)"),
        (lambda _: torch.eye(2), ValueError, "shape (2, 2)"),
        (lambda z: torch.eye(3).repeat(len(z), 1, 1), ValueError, "shape (2, 3, 3)"),
        (lambda z: torch.eye(2).long().repeat(len(z), 1, 1), TypeError, "torch.int64"),
        (lambda _: np.eye(2), TypeError, "numpy array"),
        (skewed, ValueError, "|G - G^T| up to 0.5"),
        (torch.no_grad()(lambda z: torch.diag_embed(z.exp())), ValueError, "without a gradient"),
    ],
)
def test_tensor_fields_that_return_the_wrong_thing(fn, error, found):
    metric = TensorMetric(fn, dim=2)
    for call in (
        lambda: metric.tensor(CODES),
        lambda: metric.quadratic(CODES, CODES),
        lambda: solve_geodesic(metric, CODES, CODES + 1),
    ):
        check_refused(call, error, "fn", found=found)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"diagonal": "approximate"}, ValueError),
        ({"diagonal": None}, ValueError),
        ({"n_probes": 0}, ValueError),
        ({"n_probes": 2.5}, TypeError),
        ({"n_probes": True}, TypeError),
        ({"seed": -1}, ValueError),
        ({"seed": "a"}, TypeError),
    ],
)
def test_settings_of_the_gaussian_metric(options, error):
    (name,) = options
    check_refused(lambda: GaussianPullbackMetric(heads, **options), error, name)


@pytest.mark.parametrize(("dim", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError)])
def test_dimension_of_a_tensor_metric(dim, error):
    check_refused(lambda: TensorMetric(double, dim=dim), error, "dim", "an integer of at least 1")


# Solves

WRONG_KIND = [None, "metric", double, nn.Linear(2, 2), PullbackMetric]


@pytest.mark.parametrize("value", WRONG_KIND)
def test_what_is_no_metric(value):
    line, corners = CubicBSpline.straight(CODES, CODES), (torch.zeros(2), torch.ones(2))
    for function, *arguments in (
        (solve_geodesic, CODES, CODES),
        (path_length, line),
        (path_energy, line),
        (LatentGraph.from_codes, CODES),
        (LatentGraph.lattice, *corners),
        (gl.distance, CODES, CODES),
        (gl.pairwise_distances, CODES),
        (gl.shoot, CODES, CODES),
        (gl.exp_map, CODES, CODES),
        (gl.shoot_to, CODES, CODES),
        (gl.log_map, CODES, CODES),
        (gl.extrapolate, line, torch.ones(1)),
        (gl.geodesic_residual, line),
        (gl.parallel_transport, line, CODES),
        (gl.frechet_mean, CODES),
        (gl.brownian_motion, CODES, 1.0),
        (gl.magnification_factor, CODES),
        (gl.condition_number, CODES),
        (gl.gaussian_curvature, CODES),
        (gl.sectional_curvature, CODES, CODES, CODES),
        (gl.sample_volume, *corners, 3),
    ):
        call = functools.partial(function, value, *arguments)
        check_refused(call, TypeError, "metric", "a geolatent Metric")


@pytest.mark.parametrize("value", [CODES, None, [0.0], "curve"])
def test_what_is_no_curve(value):
    for function, *arguments in (
        (path_length,),
        (path_energy,),
        (gl.extrapolate, torch.ones(1)),
        (gl.geodesic_residual,),
        (gl.parallel_transport, CODES),
    ):
        call = functools.partial(function, METRIC, value, *arguments)
        check_refused(call, TypeError, "curve", "a CubicBSpline")


@pytest.mark.parametrize("value", ["adam", torch.optim.Adam, PreconditionedSolver, 3])
def test_what_is_no_solver(value):
    call = functools.partial(solve_geodesic, METRIC, CODES, CODES, value)
    check_refused(call, TypeError, "solver", "a geolatent Solver or None")


GRAPH = LatentGraph.lattice(METRIC, -torch.ones(2), torch.ones(2), resolution=3)
START, END = torch.zeros(3, 2), torch.ones(3, 2)
LINE = CubicBSpline.straight(START, END)


@pytest.mark.parametrize(
    ("initial", "error", "required", "found"),
    [
        ("straight", TypeError, "None, a LatentGraph, a CubicBSpline, or points", "straight"),
        (np.ones((3, 4, 2), dtype=int), TypeError, "None, a LatentGraph", "numpy array"),
        (torch.ones(3), ValueError, "(B, T, d)", "shape (3,)"),
        (torch.ones(3, 1, 2), ValueError, "T at least 2", "shape (3, 1, 2)"),
        (torch.ones(2, 4, 2), ValueError, "B = 1 or 3", "shape (2, 4, 2)"),
        (torch.ones(3, 4, 5), ValueError, "d = 2", "shape (3, 4, 5)"),
        (torch.full((3, 4, 2), torch.nan), ValueError, "finite", "24 values"),
        (torch.ones(3, 4, 2, dtype=torch.int64), TypeError, "floating-point", "int64"),
        (torch.ones(3, 4, 2).double(), TypeError, "dtype of `start`", "float64"),
        (torch.ones(3, 4, 2), ValueError, "curves from `start` to `end`", "a gap of 1.41"),
        (LINE.reverse(), ValueError, "curves from `start` to `end`", "a gap of 1.41"),
        (LINE[:2], ValueError, "B = 1 or 3", "shape (2, 4, 2)"),
        (LINE.to(dtype=torch.float64), TypeError, "dtype of `start`", "float64"),
    ],
)
def test_bad_starting_curves(initial, error, required, found):
    call = functools.partial(solve_geodesic, METRIC, START, END, initial=initial)
    check_refused(call, error, "initial", required, found)


def test_graphs_of_other_codes():
    wide = torch.ones(3, 5)
    call = functools.partial(solve_geodesic, METRIC, wide, wide + 1, initial=GRAPH)
    check_refused(call, ValueError, "initial", "codes of dimension 5", "(9, 2)")
    call = functools.partial(solve_geodesic, METRIC, START.double(), END.double(), initial=GRAPH)
    check_refused(call, TypeError, "initial", "dtype of `start`", "float32")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_rows": 0}, ValueError),
        ({"max_rows": 2.0}, TypeError),
        ({"length_tolerance": 0.0}, ValueError),
        ({"length_tolerance": float("nan")}, ValueError),
        ({"length_tolerance": "small"}, TypeError),
        ({"callback": 3}, TypeError),
    ],
)
def test_options_of_a_solve(options, error):
    (name,) = options
    check_refused(lambda: solve_geodesic(METRIC, START, END, **options), error, name)


@pytest.mark.parametrize(("limit", "error"), [(0, ValueError), (True, TypeError), (2.0, TypeError)])
def test_limit_of_rows(limit, error):
    check_refused(lambda: METRIC.limited(limit), error, "max_rows")


@pytest.mark.parametrize("quantity", [path_length, path_energy])
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"tolerance": 0.0}, ValueError),
        ({"tolerance": -1e-3}, ValueError),
        ({"tolerance": None}, TypeError),
    ],
)
def test_options_of_a_length(quantity, options, error):
    (name,) = options
    check_refused(lambda: quantity(METRIC, LINE, **options), error, name)


@pytest.mark.parametrize(
    ("solver", "options", "error"),
    [
        (PreconditionedSolver, {"tolerance": 0.0}, ValueError),
        (PreconditionedSolver, {"tolerance": float("inf")}, ValueError),
        (PreconditionedSolver, {"tolerance": "tight"}, TypeError),
        (PreconditionedSolver, {"first_control_points": 4}, ValueError),
        (PreconditionedSolver, {"max_control_points": 5}, ValueError),
        (PreconditionedSolver, {"max_control_points": 20.0}, TypeError),
        (PreconditionedSolver, {"nodes_per_span": 1}, ValueError),
        (PreconditionedSolver, {"max_nodes": 0}, ValueError),
        (PreconditionedSolver, {"metric_points": 0}, ValueError),
        (PreconditionedSolver, {"level_reduction": 0.0}, ValueError),
        (PreconditionedSolver, {"level_reduction": 1.5}, ValueError),
        (PreconditionedSolver, {"max_iterations": 0}, ValueError),
        (PreconditionedSolver, {"minimizer": "lbfgs"}, TypeError),
        (FirstOrderSolver, {"optimizer": "adam"}, TypeError),
        (FirstOrderSolver, {"optimizer": torch.optim.LBFGS}, ValueError),
        (FirstOrderSolver, {"learning_rate": 0.0}, ValueError),
        (FirstOrderSolver, {"decay": 1.1}, ValueError),
        (FirstOrderSolver, {"drops": -1}, ValueError),
        (FirstOrderSolver, {"drop_factor": 0.0}, ValueError),
        (FirstOrderSolver, {"steps": 0}, ValueError),
        (FirstOrderSolver, {"first_control_points": 3}, ValueError),
        (FirstOrderSolver, {"max_control_points": 3}, ValueError),
        (FirstOrderSolver, {"nodes": 1}, ValueError),
        (FirstOrderSolver, {"tolerance": -1.0}, ValueError),
    ],
)
def test_settings_of_the_solvers(solver, options, error):
    (name,) = options
    check_refused(lambda: solver(**options), error, name)


# Graphs


@pytest.mark.parametrize("case", [*BAD_CODES, "one dimension", "one code"])
def test_bad_codes_of_a_graph(case):
    if case == "one dimension":
        value, error, required, found = torch.ones(2), ValueError, "of shape (n, d)", "(2,)"
    elif case == "one code":
        value, error, required, found = CODES[:1], ValueError, "at least two codes", "(1, 2)"
    else:
        value, error, required, found = BAD_CODES[case]
        if case == "infinite":
            value = value.repeat(2, 1)
            found = "2 values"
    call = functools.partial(LatentGraph.from_codes, METRIC, value)
    check_refused(call, error, "codes", required, found)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"n_neighbors": 0}, ValueError),
        ({"n_neighbors": 1.5}, TypeError),
        ({"n_nodes": 0}, ValueError),
        ({"n_nodes": 10.0}, TypeError),
        ({"jitter": -0.1}, ValueError),
        ({"jitter": float("nan")}, ValueError),
        ({"seed": -1}, ValueError),
    ],
)
def test_options_of_a_graph(options, error):
    (name,) = options
    if name == "seed":
        options = {**options, "n_nodes": 10}
    call = functools.partial(LatentGraph.from_codes, METRIC, CODES, **options)
    check_refused(call, error, name)


@pytest.mark.parametrize(
    ("low", "high", "options", "error", "name"),
    [
        ([0.0], torch.ones(2), {}, TypeError, "low"),
        (torch.zeros(1, 2), torch.ones(2), {}, ValueError, "low"),
        (torch.zeros(2), torch.ones(3), {}, ValueError, "high"),
        (torch.zeros(2), torch.tensor([1.0, 0.0]), {}, ValueError, "high"),
        (torch.zeros(2), torch.tensor([1.0, torch.nan]), {}, ValueError, "high"),
        (torch.zeros(2), torch.ones(2).double(), {}, TypeError, "high"),
        (torch.zeros(4), torch.ones(4), {}, ValueError, "low"),
        (torch.zeros(2), torch.ones(2), {"resolution": 1}, ValueError, "resolution"),
        (torch.zeros(2), torch.ones(2), {"resolution": 8.0}, TypeError, "resolution"),
    ],
)
def test_bad_lattices(low, high, options, error, name):
    check_refused(lambda: LatentGraph.lattice(METRIC, low, high, **options), error, name)


def test_lattice_of_another_dimension_than_the_metric():
    call = functools.partial(LatentGraph.lattice, PLANE, torch.zeros(3), torch.ones(3))
    check_refused(call, ValueError, "low", "latent dimension", "(3,)")


@pytest.mark.parametrize(
    ("shape", "fitting", "others"),
    [
        ("(T,)", [(3,)], [(), (3, 1), (0,)]),
        ("(2,) or (B, 2)", [(2,), (5, 2)], [(3,), (2, 3), (12,), (1, 5, 2)]),
        ("(..., d)", [(3,), (2, 3), (1, 2, 3)], [()]),
        ("(B, T, ...)", [(2, 3), (2, 3, 4, 5)], [(2,)]),
    ],
)
def test_shapes(shape, fitting, others):
    for size in fitting:
        assert check_tensor("x", torch.zeros(size), shape).shape == size
    for size in others:
        call = functools.partial(check_tensor, "x", torch.zeros(size), shape)
        check_refused(call, ValueError, "x", f"a tensor of shape {shape}", f"{size}")


def test_messages_count_bad_values():
    value = torch.tensor([1.0, torch.nan, torch.inf])
    call = functools.partial(check_tensor, "x", value, "(n,)")
    check_refused(call, ValueError, "x", "finite", "with 2 values that are NaN or infinite")


# Rows


def standard_deviation(z):
    return z / z.std(0, keepdim=True)


ROW_MIXING = {
    "mean": lambda z: z - z.mean(0),
    "mean beside a large constant": lambda z: 1e4 + z - z.mean(0),
    "a little of the mean": lambda z: z + 0.05 * z.mean(0),
    "standard deviation": standard_deviation,
    "batch statistics": lambda z: (z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt(),
    "softmax over rows": lambda z: z.softmax(0),
    "running sum": lambda z: z.cumsum(0),
    "position": lambda z: z * torch.arange(1.0, len(z) + 1).to(z)[:, None],
    "number of rows": lambda z: z / len(z),
    "chance": lambda z: z + 0.1 * torch.rand_like(z),
}


@pytest.mark.filterwarnings(r"ignore:std\(\)")  # torch's own, of one row
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ROW_MIXING)
def test_rows_that_depend_on_one_another(case, dtype):
    mixing = ROW_MIXING[case]
    codes = torch.tensor([[0.3, -0.7], [0.1, 2.0]], dtype=dtype)
    for metric, name in (
        (PullbackMetric(mixing), "decoder"),
        (PullbackMetric(double, mixing), "features"),
    ):
        call = functools.partial(solve_geodesic, metric, codes, codes + 1)
        check_refused(call, ValueError, name, "each row by itself", "rest of the batch")


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_rounding_is_no_dependence(dtype, offset):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(8, 300), nn.GELU(), nn.Linear(300, 300), nn.Tanh())
    body = nn.Sequential(*body, nn.Linear(300, 784)).to(dtype)
    for seed in range(5):
        z = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)
        assert PullbackMetric(lambda z: offset + body(z)).tensor(z).dtype == dtype
