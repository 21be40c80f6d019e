"""Scripts name what there is: they run for minutes, by hand, and nobody would know before."""

import ast
import importlib
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[1] / "scripts").glob("*.py"))


def imported(tree):
    """Return what a script imports from the package, by the names that it gives them."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "geolatent":
                    found[alias.asname or "geolatent"] = importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("geolatent"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):  # a module of its own
                    importlib.import_module(f"{node.module}.{alias.name}")
                found[alias.asname or alias.name] = getattr(module, alias.name)
    return found


def dotted(node):
    """Return the parts of a.b.c, or nothing."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return [*before, node.attr]
    return []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_what_scripts_use_of_the_package_exists(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = imported(tree)
    missing = set()
    for node in ast.walk(tree):
        first, *rest = dotted(node) or [""]
        if first not in names:
            continue
        value = names[first]
        for part in rest:
            # attributes of modules and classes; those of objects are known when they are made
            if not isinstance(value, type) and not hasattr(value, "__path__"):
                break
            fields = getattr(value, "__dataclass_fields__", {})
            if not hasattr(value, part) and part not in fields:
                missing.add(".".join([first, *rest]))
                break
            value = getattr(value, part, None)
    assert not missing
