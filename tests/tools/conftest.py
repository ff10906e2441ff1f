import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def load_tool() -> Callable[[Path], ModuleType]:
    """A script of tools/ as a module, since that folder is no package."""

    def load(script: Path) -> ModuleType:
        if str(script.parent) not in sys.path:  # where it looks for its neighbours, as when Python runs it
            sys.path.append(str(script.parent))
        spec = importlib.util.spec_from_file_location(script.stem, script)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
