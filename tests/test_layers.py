"""The layers of the package: who may import whom, and what the core may depend on."""

import ast
import importlib
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import geolatent

PACKAGE = Path(geolatent.__file__).parent

# From the bottom up; a module imports from its own layer and lower ones only.
LAYERS = [
    ["_version", "requirements", "files", "display", "quadrature", "ode", "callables"],
    ["console", "terminal", "forward_mode"],
    ["checks", "config", "memory", "idx"],
    ["places", "rows", "differences"],
    ["minimize", "solution", "curves", "jacobians", "outline", "words"],
    ["chords", "interpolations", "models"],
    ["metrics", "data", "features", "plotting", "results"],
    ["budget", "metric_families", "plotting_statistics"],
    ["energy", "lengths", "transport", "volume", "training_figures"],
    ["initial", "problem", "training"],
    ["preconditioned", "first_order", "georce"],
    ["solver"],
    ["exponential", "distances", "graph_files"],
    ["statistics", "diffusion", "estimators"],
    ["clustering", "land"],
    ["experiments"],
    ["cli"],
    ["__main__"],
]
LAYER = {name: depth for depth, names in enumerate(LAYERS) for name in names}

# what the command line needs before a command begins its work
LIGHT = ["_version", "requirements", "config", "files", "outline", "terminal", "words", "cli"]
LIGHT += ["idx", "places"]
HEAVY = {"torch", "scipy", "matplotlib", "pyarrow"}
NUMERICAL = {"torch", "numpy", "scipy"}


def modules():
    """Return (unit, path) of every file: a unit is a module or a whole subpackage."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).with_suffix("").parts[0], path


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) in (
        "TYPE_CHECKING",
        "typing.TYPE_CHECKING",
    )


def imports(path):
    """Yield (module, whether at the top level) of all imports that run."""

    def walk(node, top):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield alias.name, top
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path.name}: relative import"
                yield child.module, top
                if child.module == "geolatent":
                    for alias in child.names:
                        yield f"geolatent.{alias.name}", top
            elif is_type_checking(child):
                continue
            else:
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, top and not inside)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), True)


def own_units(path):
    for module, _ in imports(path):
        parts = module.split(".")
        if parts[0] == "geolatent":
            yield parts[1] if len(parts) > 1 else "__init__"


def core():
    """Return the modules that `solve_geodesic` is made of: what the solver imports, all the way."""
    found, new = set(), {"solver"}
    while new:
        found |= new
        new = {unit for name in new for unit in own_units(core_path(name))} - found
    return sorted(found)


def core_path(name):
    path = PACKAGE / f"{name}.py"
    assert path.is_file(), f"the core imports {name}, which is no single module"
    return path


@pytest.mark.parametrize(
    ("unit", "path"),
    [
        pytest.param(*entry, id=str(entry[1].relative_to(PACKAGE)))
        for entry in modules()
        if entry[0] != "__init__"
    ],
)
def test_imports_point_downwards(unit, path):
    for imported in own_units(path):
        # the public names of the package are for those above the solver
        depth = LAYER["land"] if imported == "__init__" else LAYER[imported]
        assert depth <= LAYER[unit], f"{unit} imports {imported}"


def test_core_knows_no_models_data_or_files():
    assert {"checks", "metrics", "curves", "energy", "lengths", "minimize", "initial"} < set(core())
    above = {"models", "data", "training", "files", "config", "results", "plotting", "cli"}
    assert not above & set(core())


@pytest.mark.parametrize("name", core())
def test_core_needs_nothing_but_numerical_libraries(name):
    allowed = NUMERICAL | sys.stdlib_module_names | {"geolatent"}
    for module, top in imports(core_path(name)):
        root = module.split(".")[0]
        # scikit-learn is slow to import, and only graphs of codes need it
        lazy = name == "initial" and root == "sklearn" and not top
        assert root in allowed or lazy, f"{name} imports {module}"


@pytest.mark.parametrize("name", LIGHT)
def test_the_command_line_needs_no_torch(name):
    for module, top in imports(PACKAGE / f"{name}.py"):
        assert not top or module.split(".")[0] not in HEAVY, f"{name} imports {module}"
        if module.startswith("geolatent.") and top:
            assert module.split(".")[1] in LIGHT, f"{name} imports {module}"


def test_minimize_knows_no_geometry():
    assert set(own_units(core_path("minimize"))) <= {"checks", "requirements"}


def test_no_cycles():
    graph = {}
    for unit, path in modules():
        graph.setdefault(unit, set()).update(set(own_units(path)) - {unit})
    done = set()
    while len(done) < len(graph):
        ready = {unit for unit, needs in graph.items() if needs <= done} - done
        assert ready, f"a cycle among {sorted(set(graph) - done)}"
        done |= ready


def test_importing_the_package_loads_no_extras():
    heavy = ["matplotlib", "sklearn", "lightning", "pyarrow", "ray", "jsonargparse", "torchvision"]
    code = f"import sys, geolatent; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    assert result.stdout.strip() == "[]"


def names_for_type_checkers():
    """Yield (name, module) of what the package imports where types are checked."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = filter(is_type_checking, tree.body)
    for node in block.body:
        for alias in node.names:
            yield alias.name, node.module


def test_lazy_names_are_those_that_type_checkers_see():
    seen = dict(names_for_type_checkers())
    assert {*seen, "__version__"} == set(geolatent.__all__)
    for name, module in seen.items():
        assert getattr(geolatent, name) is getattr(importlib.import_module(module), name)
    assert set(geolatent.__all__) <= set(dir(geolatent))
    assert geolatent.curves is sys.modules["geolatent.curves"]
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        geolatent.nonsense  # noqa: B018
    assert pickle.loads(pickle.dumps(geolatent.solve_geodesic)) is geolatent.solve_geodesic


def test_all_lists_what_is_there():
    assert sorted(geolatent.__all__) == sorted(set(geolatent.__all__))
    for name in geolatent.__all__:
        assert hasattr(geolatent, name)
