"""The way of an image: sources in, table or picture out, from the command line, from Python and from MLflow."""

import sys
from types import ModuleType

import torch  # noqa: F401 - before the stand-in is in its place


def _import_timm() -> None:
    """Import timm with a stand-in for torch's compiler, whose own import takes as long as torch's.

    torchvision and timm import it to ask whether it is at work, and to keep functions from it. No prediction compiles anything.
    """
    compiler, utilities = ModuleType("torch._dynamo"), ModuleType("torch._dynamo.utils")
    compiler.disable = lambda function, *_, **__: function  # type: ignore[attr-defined]
    utilities.is_compile_supported = lambda device: False  # type: ignore[attr-defined]
    stand_ins = {module.__name__: module for module in (compiler, utilities)}
    if not sys.modules.keys().isdisjoint(stand_ins):
        return
    sys.modules.update(stand_ins)
    try:
        import timm  # noqa: F401
    except (ImportError, AttributeError):
        pass  # a version that asks it for more; `d4lens.models` imports it with the compiler
    finally:
        for name in stand_ins:
            del sys.modules[name]


_import_timm()
