"""Tells from one image of a strong gravitational lens which dark matter is in it.

```python
from d4lens import load_model, detect, fit, predict, simulate
```

All five come from `d4lens.inference.api`, which is imported when one of them is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from d4lens.inference.api import detect, fit, load_model, predict, simulate

__all__ = ["detect", "fit", "load_model", "predict", "simulate"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from d4lens.inference import api

        return getattr(api, name)
    if name == "__version__":
        from importlib.metadata import version

        return version("d4lens")
    raise AttributeError(f"module 'd4lens' has no attribute {name!r}")
