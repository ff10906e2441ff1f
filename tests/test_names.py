"""A name means one thing in the package: its modules, their functions and their classes do not borrow each other's."""

import ast
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "d4lens"
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = [path.parent.name if path.stem == "__init__" else path.stem for path in FILES if path.stem != "__main__"]


def public(kind):
    for path in FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, kind) and not node.name.startswith("_"):
                yield node.name


def test_no_function_is_called_as_a_module():
    assert not set(public(ast.FunctionDef)) & set(MODULES)


def test_no_two_classes_have_one_name():
    # Every study has its own, beside its STUDY.
    assert [name for name, times in Counter(public(ast.ClassDef)).items() if times > 1] == ["Parameters"]


def test_no_two_modules_have_one_name():
    # A training's own data, beside the data of all.
    assert [name for name, times in Counter(MODULES).items() if times > 1] == ["data"]
