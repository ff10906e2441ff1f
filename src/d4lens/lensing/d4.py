"""The eight symmetries of the square, acting on images, fields and points by flips and quarter turns alone.

Element g in 0..7 is (flip f, quarter turns r) with g = 4 f + r: first y -> -y if f, then r times (x, y) -> (-y, x),
which is the rotation by +90 degrees from the x axis to the y axis (seen clockwise when row 0 is drawn at the top).
The content found at a point p of an image is found at `transform_points(p, g)` of the transformed image.
"""

import torch
from torch import Tensor

from d4lens.errors import PhysicsError
from d4lens.lensing.checks import Number

ELEMENTS = range(8)


def _split(g: int) -> tuple[int, int]:
    """(flip, quarter turns) of an element. Raises PhysicsError for anything but 0..7."""
    if isinstance(g, bool) or g not in ELEMENTS:
        raise PhysicsError(f"g must be an element 0..7 of D4, not {g!r}")
    return divmod(int(g), 4)


def compose(g: int, h: int) -> int:
    """Return the element that acts as h first, then g.

    Parameters
    ----------
    g, h : int
        Elements, 0 to 7.

    Returns
    -------
    int
        The element g h.
    """
    (f, r), (e, s) = _split(g), _split(h)
    # A flip turns the sense of the quarter turns that it passes: f rot(s) = rot(-s) f.
    return 4 * ((f + e) % 2) + (r + (-s if f else s)) % 4


def inverse(g: int) -> int:
    """Return the element that undoes g.

    Parameters
    ----------
    g : int
        An element, 0 to 7.

    Returns
    -------
    int
        Its inverse.
    """
    flip, turns = _split(g)
    return g if flip else (-turns) % 4


def transform(image: Tensor, g: int) -> Tensor:
    """Transform a scalar image by g, exactly: no pixel is interpolated.

    Parameters
    ----------
    image : Tensor
        (..., N, N), rows along y.
    g : int
        Element 0..7.

    Returns
    -------
    Tensor
        (..., N, N).

    Raises
    ------
    PhysicsError
        If the last two axes differ or g is no element.
    """
    flip, turns = _split(g)
    if image.ndim < 2 or image.shape[-1] != image.shape[-2]:
        raise PhysicsError(f"image must be square (…, N, N), not shape {tuple(image.shape)}")
    if flip:
        image = image.flip(-2)
    return torch.rot90(image, turns, dims=(-1, -2))


def transform_points(x: Number, y: Number, g: int) -> tuple[Number, Number]:
    """Transform coordinates, or the two components of any vector, by g.

    Parameters
    ----------
    x, y : float or Tensor
        Components of one shape and unit, which are kept.
    g : int
        Element 0..7. PhysicsError otherwise.

    Returns
    -------
    x, y : float or Tensor
        The transformed components.
    """
    flip, turns = _split(g)
    if flip:
        y = -y
    for _ in range(turns):
        x, y = -y, x
    return x, y


def transform_spin2_values(a1: Number, a2: Number, g: int) -> tuple[Number, Number]:
    """Transform the components of a spin-2 quantity (shear, ellipticity) by g, as parameters.

    Parameters
    ----------
    a1, a2 : float or Tensor
        Components. No array is moved: for fields see `transform_spin2`.
    g : int
        Element 0..7. PhysicsError otherwise.

    Returns
    -------
    a1, a2 : float or Tensor
        The transformed components.
    """
    flip, turns = _split(g)
    if flip:
        a2 = -a2
    return (-a1, -a2) if turns % 2 else (a1, a2)


def transform_vector(ax: Tensor, ay: Tensor, g: int) -> tuple[Tensor, Tensor]:
    """Transform a vector field (deflection) by g: the arrays move and the components mix.

    Parameters
    ----------
    ax, ay : Tensor
        Components, each (..., N, N).
    g : int
        Element 0..7.

    Returns
    -------
    ax, ay : Tensor
        The transformed components, each (..., N, N).

    Raises
    ------
    PhysicsError
        If the fields are not square or g is no element.
    """
    return transform_points(transform(ax, g), transform(ay, g), g)  # type: ignore[return-value]


def transform_spin2(a1: Tensor, a2: Tensor, g: int) -> tuple[Tensor, Tensor]:
    """Transform a spin-2 field (shear map) by g: the arrays move and the components change sign.

    Parameters
    ----------
    a1, a2 : Tensor
        Components, each (..., N, N).
    g : int
        Element 0..7.

    Returns
    -------
    a1, a2 : Tensor
        The transformed components, each (..., N, N).

    Raises
    ------
    PhysicsError
        If the fields are not square or g is no element.
    """
    return transform_spin2_values(transform(a1, g), transform(a2, g), g)  # type: ignore[return-value]
