"""Tells from one image of a strong gravitational lens which dark matter is in it.

```python
from d4lens import load_model, fit, predict, simulate
```

All four come from `d4lens.inference.api`, imported when first used. `predict` and `simulate` name a module and a function alike:
`from d4lens.simulator import render` and `simulate("deeplense", n=3)` both work, whichever comes first.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from d4lens.inference.api import fit, load_model, predict, simulate

__all__ = ["fit", "load_model", "predict", "simulate"]


class _AlsoAFunction(ModuleType):
    """A submodule that, called, is the function of its name in `d4lens.inference.api`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)

    @property
    def __wrapped__(self) -> Any:  # where `inspect.signature` looks
        return getattr(import_module("d4lens.inference.api"), self.__name__.rpartition(".")[2])


class _Package(ModuleType):
    """Makes the submodules of a public function's name callable as the import system binds them here."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in __all__ and isinstance(value, ModuleType):
            value.__class__ = _AlsoAFunction
        super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name in ("fit", "load_model"):
        return getattr(import_module("d4lens.inference.api"), name)
    if name in __all__:
        return import_module(f"d4lens.{name}")
    if name == "__version__":
        from importlib.metadata import version

        return version("d4lens")
    raise AttributeError(f"module 'd4lens' has no attribute {name!r}")


sys.modules[__name__].__class__ = _Package
