"""A name means one thing in the package: its modules, their functions and their classes do not borrow each other's."""

import ast
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "d4lens"
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = [path.parent.name if path.stem == "__init__" else path.stem for path in FILES if path.stem != "__main__"]


# What every study or every module of networks defines, so that it is found by this name; the two `main` are entry points.
PLUG_IN = {"STUDY", "Parameters", "run", "summarise", "NETWORKS", "main"}
# Short for numpy's array of the type that a module computes in.
ALIASES = {"Array"}


def public(*kinds):
    """Names that the modules define at their top, once a module."""
    for path in FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
            for name in (getattr(target, "name", getattr(target, "id", "_")) for target in targets):
                if isinstance(node, kinds) and not name.startswith("_"):
                    yield name


def test_no_function_is_called_as_a_module():
    assert not set(public(ast.FunctionDef)) & set(MODULES)


def test_no_name_is_defined_twice():
    names = Counter(public(ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign))
    assert {name for name, times in names.items() if times > 1} <= PLUG_IN | ALIASES


def test_no_two_modules_have_one_name():
    assert [name for name, times in Counter(MODULES).items() if times > 1] == []
