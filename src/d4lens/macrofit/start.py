"""Where a fit sets out: the image's moments, and the other places tried for images that did not converge."""

import torch
from torch import Tensor

from d4lens.macrofit.smooth_lens import SmoothLensModel

# Multiples of what the moments say of (theta_E, shear, source position). The first is the rule, from the mean radius of
# the light of a ring, its second moments, and a centroid that a sphere displaces twice as far as the source; the others
# span what substructure, or a source far off the axis, does to it.
VARIANTS = ((0.9, 0.5, 0.5), (0.8, 0.0, 1.0), (1.0, 0.0, 0.0), (0.7, 1.0, 0.25), (1.1, 0.5, 1.0), (0.6, 0.0, 0.5))


def moments(counts: Tensor, model: SmoothLensModel) -> Tensor:
    """Measure the moments of the light in images.

    Light is what stands three standard deviations above the sky. An image without any has a mean radius of a quarter
    of its half-width, the rest zero; a pixel that is not finite has none. Moments depend neither on the other images nor
    on their number.

    Parameters
    ----------
    counts : Tensor
        (B, N, N) photons per pixel.
    model : SmoothLensModel
        Its pixels and sky.

    Returns
    -------
    Tensor
        (B, 5): mean radius (arcsec), second moments (x² - y², 2xy) over r², centroid (arcsec).
    """
    sky = model.constants["sky"] * model.binning**2
    x, y = (axis.to("cpu", torch.float64) for axis in model.pixel_centres())
    light = counts.to("cpu", torch.float64) - sky
    light = torch.where(light > 3 * sky**0.5, light, 0.0)
    weights = torch.stack([torch.hypot(x, y), x * x - y * y, 2 * x * y, x * x + y * y, x, y, torch.ones_like(x)])
    sums = torch.stack([(weights * image).sum((1, 2)) for image in light])
    total, second = sums[:, 6], sums[:, 3]
    dark = total <= 0
    total, second = total.masked_fill(dark, 1.0), second.masked_fill(dark, 1.0)
    radius = (sums[:, 0] / total).masked_fill(dark, model.observation.half_width / 4)
    return torch.stack([radius, sums[:, 1] / second, sums[:, 2] / second, sums[:, 4] / total, sums[:, 5] / total], 1)


def starting_point(from_moments: Tensor, model: SmoothLensModel, variant: int) -> Tensor:
    """Return where a fit sets out. Parameters of which the moments say nothing start at their constants.

    Parameters
    ----------
    from_moments : Tensor
        (B, 5), as of `moments`.
    model : SmoothLensModel
        What is fitted.
    variant : int
        Which of VARIANTS.

    Returns
    -------
    Tensor
        (B, F), in the order of `model.free`.
    """
    size, pull, place = VARIANTS[variant]
    radius, second_x, second_y, centre_x, centre_y = from_moments.unbind(1)
    known = {
        "theta_E": size * radius,
        "gamma1": pull * second_x,
        "gamma2": pull * second_y,
        "source_x": place * centre_x,
        "source_y": place * centre_y,
    }
    columns = [known[name] if name in known else torch.full_like(radius, model.constants[name]) for name in model.free]
    return torch.stack(columns, 1)
