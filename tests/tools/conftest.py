import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def load_tool() -> Callable[[Path], ModuleType]:
    """A script of tools/ as a module, since that folder is no package."""

    def load(script: Path) -> ModuleType:
        spec = importlib.util.spec_from_file_location(script.stem, script)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
