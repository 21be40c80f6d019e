"""The rooms of the package: who may import whom, and what they may depend on."""

import ast
import importlib
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import geolatent

PACKAGE = Path(geolatent.__file__).parent

# From the bottom up: rooms, which are sub-packages, and nouns that stand alone at the top. Each
# imports from itself and from lower levels only, so that metrics and models know nothing of each
# other.
LEVELS = [
    [
        "_version",
        "requirements",
        "arrays",
        "callables",
        "display",
        "files",
        "quadrature",
        "transfers",
    ],
    ["checks", "shapes"],
    ["curves", "priors", "solution"],
    ["interpolations"],
    ["metrics", "models"],
    ["lengths", "graph"],
    ["solvers", "graph_files"],
    ["solve"],
    ["geometry"],
    ["learn"],
    ["adapters"],
    ["lab"],
    ["explorer"],
    ["cli"],
    ["__main__"],
]
LEVEL = {unit: depth for depth, units in enumerate(LEVELS) for unit in units}

# the numerical part, and what it may need besides itself
NUMERICAL = ["metrics", "lengths", "graph", "solvers", "solve", "geometry", "learn"]
NUMERICAL += [
    "requirements",
    "arrays",
    "callables",
    "display",
    "quadrature",
    "checks",
    "curves",
    "shapes",
    "solution",
]
NUMERICAL += ["interpolations", "priors", "transfers"]
LIBRARIES = {"torch", "numpy", "scipy"}

# what the command line needs before a command begins its work
LIGHT = ["_version", "requirements", "files", "cli", "lab", "lab.config", "lab.idx", "lab.outline"]
LIGHT += ["lab.places", "lab.terminal", "lab.words"]
HEAVY = {"torch", "scipy", "matplotlib", "pyarrow"}


def modules():
    """Yield (module, path) of every file, the package's own but for its public names."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            yield name, path


def unit(module):
    """Return the room of a module, or the module itself where it stands alone."""
    return module.split(".")[0]


MODULES = dict(modules())
FILES = [pytest.param(name, path, id=name) for name, path in MODULES.items()]


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
                for alias in child.names:
                    if f"{child.module}.{alias.name}".removeprefix("geolatent.") in MODULES:
                        yield f"{child.module}.{alias.name}", top
            elif is_type_checking(child):
                continue
            else:
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, top and not inside)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), True)


def own_modules(path):
    """Yield the modules of the package that a file imports; "" is the package itself."""
    for module, _ in imports(path):
        if module.split(".")[0] == "geolatent":
            yield module.removeprefix("geolatent").removeprefix(".")


def test_every_module_belongs_to_one_room():
    assert {unit(name) for name in MODULES} == set(LEVEL)
    assert sum(map(len, LEVELS)) == len(LEVEL)


def test_rooms_say_what_they_own():
    for path in PACKAGE.glob("*/__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path.parent.name


@pytest.mark.parametrize(("name", "path"), FILES)
def test_imports_point_downwards(name, path):
    for imported in own_modules(path):
        # the public names of the package are for those above the numerical part
        depth = LEVEL[unit(imported)] if imported else LEVEL["lab"] - 1
        inside = unit(imported) == unit(name)
        assert inside or depth < LEVEL[unit(name)], f"{name} imports {imported or 'geolatent'}"


@pytest.mark.parametrize(("name", "path"), [f for f in FILES if unit(f.id) in NUMERICAL])
def test_the_numerical_part_knows_no_models_options_or_files(name, path):
    assert {unit(imported) for imported in own_modules(path)} <= set(NUMERICAL)
    allowed = LIBRARIES | sys.stdlib_module_names | {"geolatent"}
    for module, top in imports(path):
        root = unit(module)
        # scikit-learn is slow to import: of the core, only graphs of codes need it, when made
        sklearn = root == "sklearn" and (unit(name) == "learn" or (name == "graph" and not top))
        assert root in allowed or sklearn, f"{name} imports {module}"


@pytest.mark.parametrize("name", LIGHT)
def test_the_command_line_needs_no_torch(name):
    for module, top in imports(MODULES[name]):
        assert not top or unit(module) not in HEAVY, f"{name} imports {module}"
        if module.startswith("geolatent.") and top:
            assert module.removeprefix("geolatent.") in LIGHT, f"{name} imports {module}"


@pytest.mark.parametrize(("name", "path"), [f for f in FILES if unit(f.id) != "metrics"])
def test_metrics_are_evaluated_by_rows_alone(name, path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        private = isinstance(node, ast.Attribute) and node.attr in ("_tensor", "_quadratic")
        assert not private, f"{name}, line {node.lineno}: {ast.unparse(node)}"


def test_the_minimiser_knows_no_geometry():
    assert set(own_modules(MODULES["solvers.lbfgs"])) <= {"checks", "requirements"}


def test_no_cycles():
    graph = {name: set(own_modules(path)) - {"", name} for name, path in MODULES.items()}
    done = set()
    while len(done) < len(graph):
        ready = {name for name, needs in graph.items() if needs <= done} - done
        assert ready, f"a cycle among {sorted(set(graph) - done)}"
        done |= ready


def test_importing_the_package_loads_no_extras():
    heavy = {"torch", "matplotlib", "sklearn", "lightning", "pyarrow", "ray", "jsonargparse"}
    code = f"import sys, geolatent; print({heavy} & sys.modules.keys())"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    assert result.stdout.strip() == "set()"


def public_names():
    """Yield (name, module) of what the stub imports under its own name, as type checkers ask."""
    for node in ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8")).body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name
            yield alias.name, node.module


PUBLIC = list(public_names())


def test_public_names_are_listed_once():
    assert sorted(name for name, _ in PUBLIC) == geolatent.__all__
    assert set(geolatent.__all__) <= set(dir(geolatent))


@pytest.mark.parametrize(("name", "module"), PUBLIC, ids=[name for name, _ in PUBLIC])
def test_public_names_are_what_they_are_where_they_are(name, module):
    scope = {}
    exec(f"from {module} import {name}", scope)
    assert getattr(geolatent, name) is scope[name]


def test_names_that_the_stub_does_not_list():
    assert geolatent.curves is importlib.import_module("geolatent.curves")
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        geolatent.nonsense  # noqa: B018
    assert pickle.loads(pickle.dumps(geolatent.solve_geodesic)) is geolatent.solve_geodesic
