import pytest

from d4lens import imports
from d4lens.imports import closure


@pytest.fixture
def source(tmp_path):
    """A toy package, and a script beside a module of its own."""
    for path, text in {
        "d4lens/__init__.py": "import d4lens.heavy",
        "d4lens/heavy.py": "",
        "d4lens/errors.py": "import d4lens.heavy",
        "d4lens/train/__init__.py": "from d4lens.train.loop import train",
        "d4lens/train/loop.py": "import numpy\nfrom d4lens import grid\nfrom d4lens.errors import Sentence\ndef train():\n    from . import losses",
        "d4lens/train/losses.py": "from ..models import net",
        "d4lens/models/__init__.py": "from d4lens.models.net import Net",
        "d4lens/models/net.py": "import d4lens.models.layers as layers",
        "d4lens/models/layers.py": "",
        "d4lens/grid.py": "import d4lens.train",
        "stages/common.py": "import d4lens.models",
        "stages/train.py": "from common import arguments\nfrom d4lens.train.loop import train",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    return tmp_path


def names(found, root):
    return {path.relative_to(root).as_posix().removeprefix("d4lens/") for path in found}


def test_lazy_relative_and_circular_imports_are_followed_and_a_package_only_where_something_is_taken_from_it(source):
    found = closure(source / "d4lens/train/loop.py", source)
    assert names(found, source) == {
        *("train/loop.py", "train/__init__.py", "train/losses.py", "grid.py"),
        *("models/net.py", "models/layers.py"),
    }


def test_a_script_s_neighbours_count_and_a_name_leads_to_its_package_where_there_is_no_module(source):
    found = names(closure(source / "stages/train.py", source), source)
    assert {"stages/train.py", "stages/common.py", "models/__init__.py"} <= found
    assert not found & {"__init__.py", "heavy.py", "errors.py"}


def test_the_digest_sees_an_edit_of_what_is_imported_alone(source, monkeypatch):
    monkeypatch.setattr(imports, "SOURCE", source)
    before = imports.digest("models")
    assert imports.digest("models") == before
    (source / "d4lens/grid.py").write_text("# edited")
    assert imports.digest("models") == before
    (source / "d4lens/models/layers.py").write_text("# edited")
    assert imports.digest("models") != before
