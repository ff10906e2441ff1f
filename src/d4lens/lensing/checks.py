"""Refuses non-physical arguments: one reduction per tensor argument, nothing under vmap, compile or `unchecked`."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from d4lens.errors import PhysicsError

Number = float | Tensor
"""A parameter: a Python number, or a tensor that broadcasts against x and y."""

MIN_PIXELS = 8

_checking: ContextVar[bool] = ContextVar("d4lens_checking", default=True)


@contextmanager
def unchecked() -> Iterator[None]:
    """Trust the parameters within this block: for inner loops whose bounds already hold (no device sync).

    Yields
    ------
    None
        Once, for a `with`.
    """
    token = _checking.set(False)
    try:
        yield
    finally:
        _checking.reset(token)


def _extremes(name: str, value: Any) -> tuple[float, float] | None:
    """Smallest and largest value, NaN if any is NaN; None where values cannot be read (vmap, meta)."""
    if isinstance(value, Tensor):
        if value.is_complex():
            raise PhysicsError(f"{name} must be real, not a tensor of {value.dtype}")
        if value.numel() == 0 or value.is_meta:
            return None
        try:
            low, high = torch.aminmax(value.detach())
            return low.item(), high.item()
        except RuntimeError:  # a batched tensor inside vmap has no value to read
            return None
    return float(value), float(value)


def parameter(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    low_open: bool = False,
    high_open: bool = False,
) -> Number:
    """Return a parameter after checking that it is finite and within its bounds.

    Parameters
    ----------
    name : str
        The argument's name, for the message.
    value : float or Tensor
        The value. Other numbers and array-likes are converted.
    low, high : float
        Bounds.
    low_open, high_open : bool
        Whether the bound itself is out of range.

    Returns
    -------
    float or Tensor
        The value itself. Within `unchecked`, under vmap or torch.compile it is not checked.

    Raises
    ------
    PhysicsError
        If a value is not finite or out of bounds. The message names the argument and the value.
    """
    if isinstance(value, float | Tensor):
        number: Number = value
    else:
        try:
            number = float(value) if isinstance(value, Real) else torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError):
            raise PhysicsError(f"{name} must be a number or a tensor, not {value!r}") from None
    if torch.compiler.is_compiling() or not _checking.get():
        return number
    extremes = _extremes(name, number)
    if extremes is None:
        return number
    smallest, largest = extremes
    if not (math.isfinite(smallest) and math.isfinite(largest)):
        raise PhysicsError(f"{name} must be finite, not {smallest if not math.isfinite(smallest) else largest}")
    if smallest < low or (low_open and smallest <= low):
        raise PhysicsError(f"{name} must be {'above' if low_open else 'at least'} {low:g}, not {smallest:g}")
    if largest > high or (high_open and largest >= high):
        raise PhysicsError(f"{name} must be {'below' if high_open else 'at most'} {high:g}, not {largest:g}")
    return number


def positive(name: str, value: Any) -> Number:
    """Return a finite value above zero.

    Parameters
    ----------
    name : str
        The parameter, for the message.
    value : float or Tensor
        Its value.

    Returns
    -------
    float or Tensor
        As `parameter` returns it.

    Raises
    ------
    PhysicsError
        For any other value.
    """
    return parameter(name, value, 0.0, low_open=True)


def axis_ratio(name: str, value: Any) -> Number:
    """Return a value in (0, 1].

    Parameters
    ----------
    name : str
        The parameter, for the message.
    value : float or Tensor
        Its value.

    Returns
    -------
    float or Tensor
        As `parameter` returns it.

    Raises
    ------
    PhysicsError
        For any other value.
    """
    return parameter(name, value, 0.0, 1.0, low_open=True)


def size(name: str, value: Any, at_least: int = MIN_PIXELS) -> int:
    """Return a whole number of pixels.

    Parameters
    ----------
    name : str
        The parameter, for the message.
    value : int
        Its value.
    at_least : int
        The least that is allowed.

    Returns
    -------
    int
        The value.

    Raises
    ------
    PhysicsError
        For any other value.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < at_least:
        raise PhysicsError(f"{name} must be a whole number of at least {at_least}, not {value!r}")
    return int(value)


def field(name: str, value: Any, n_axes: int = 0) -> Tensor:
    """Return a value as a real floating-point tensor.

    Parameters
    ----------
    name : str
        The argument's name, for the message.
    value : Tensor or array_like
        A number takes torch's default dtype.
    n_axes : int
        Least number of axes.

    Returns
    -------
    Tensor
        The value, of the dtype that it had.

    Raises
    ------
    PhysicsError
        If the value is integer, complex, no tensor or has too few axes.
    """
    if isinstance(value, Tensor):
        tensor = value
    else:
        try:
            is_number = isinstance(value, Real)
            tensor = torch.as_tensor(value, dtype=torch.get_default_dtype() if is_number else None)
        except (TypeError, ValueError, RuntimeError):
            raise PhysicsError(f"{name} must be a floating-point tensor, not {value!r}") from None
    if not tensor.is_floating_point():
        raise PhysicsError(f"{name} must be a floating-point tensor, not one of {tensor.dtype}: cast it with .float()")
    if tensor.ndim < n_axes:
        raise PhysicsError(
            f"{name} must have at least {n_axes} axes (…, rows, columns), not shape {tuple(tensor.shape)}"
        )
    return tensor


def like(value: Number, field: Tensor) -> Tensor:
    """Return a parameter as a tensor, so that sqrt and cos apply; a float takes the dtype and device of `field`.

    Parameters
    ----------
    value : float or Tensor
        The parameter.
    field : Tensor
        What it is used with.

    Returns
    -------
    Tensor
        The value.
    """
    if isinstance(value, Tensor):
        return value
    return torch.tensor(value, dtype=field.dtype, device=field.device)
