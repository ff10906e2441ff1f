import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from lenstronomy.Data.psf import PSF

from d4lens.lensing import convolve_psf, gaussian_psf


@pytest.mark.parametrize("sigma", [0.86, 1.725, 3.0])
def test_referee_14_psf_sum_and_width(sigma: float) -> None:
    kernel = gaussian_psf(sigma, torch.float64)
    assert abs(kernel.sum() - 1) < 1e-6
    assert kernel.shape[0] % 2 == 1
    middle = kernel.shape[0] // 2
    offsets = torch.arange(-middle, middle + 1, dtype=torch.float64)
    second_moment = (kernel.sum(0) * offsets**2).sum()
    # A point source, seen: the same kernel, in the same place.
    point = torch.zeros(61, 61, dtype=torch.float64)
    point[30, 30] = 1
    image = convolve_psf(point, sigma)
    assert abs(image.sum() - 1) < 1e-6
    torch.testing.assert_close(image[30 - middle : 31 + middle, 30 - middle : 31 + middle], kernel, atol=1e-8, rtol=0)
    # Width where the profile along a row crosses half its height, by interpolating its logarithm.
    profile = image[30, 30:].clamp_min(1e-300).log()
    r = torch.arange(31.0, dtype=torch.float64)
    k = int((profile > profile[0] - math.log(2)).sum()) - 1
    between = (profile[k] - (profile[0] - math.log(2))) / (profile[k] - profile[k + 1])
    half_squared = r[k] ** 2 + between * (r[k + 1] ** 2 - r[k] ** 2)  # log of a Gaussian is linear in r^2
    fwhm = 2 * half_squared.sqrt()
    assert abs(fwhm / (math.sqrt(8 * math.log(2)) * sigma) - 1) < 0.01
    assert abs(second_moment.sqrt() / sigma - 1) < 0.01


@pytest.mark.parametrize("shape", [(150, 150), (40, 25)])
def test_agrees_with_scipy_and_lenstronomy(shape: tuple[int, int]) -> None:
    image = torch.rand(2, 3, *shape, dtype=torch.float64)
    theirs = scipy.ndimage.gaussian_filter(image.numpy(), (0, 0, 1.725, 1.725), truncate=10, mode="nearest")
    np.testing.assert_allclose(convolve_psf(image, 1.725).numpy(), theirs, atol=1e-12)
    kernel = PSF("GAUSSIAN", fwhm=math.sqrt(8 * math.log(2)) * 1.725, pixel_size=1.0, truncation=6).kernel_point_source
    middle = len(kernel) // 2
    point = torch.zeros(101, 101, dtype=torch.float64)
    point[50, 50] = 1
    seen = convolve_psf(point, 1.725)[50 - middle : 51 + middle, 50 - middle : 51 + middle]
    np.testing.assert_allclose(seen.numpy(), kernel, atol=1e-8)


def test_flat_sky_stays_flat() -> None:
    torch.testing.assert_close(convolve_psf(torch.full((20, 20), 10.0), 3.0), torch.full((20, 20), 10.0))


def test_one_sigma_per_image_and_gradients() -> None:
    image = torch.rand(2, 9, 9, dtype=torch.float64)
    sigma = torch.tensor([0.8, 2.0], dtype=torch.float64)
    both = convolve_psf(image, sigma)
    for k in range(2):
        torch.testing.assert_close(both[k], convolve_psf(image[k], sigma[k].item()), rtol=0, atol=1e-15)
    assert torch.autograd.gradcheck(convolve_psf, (image.requires_grad_(), sigma.requires_grad_()))
    mapped = torch.func.vmap(convolve_psf)(image, sigma)
    torch.testing.assert_close(mapped, both)


def test_precision_is_kept_under_autocast() -> None:
    image = torch.rand(30, 30)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seen = convolve_psf(image, 1.7)
    assert torch.equal(seen, convolve_psf(image, 1.7))
    assert convolve_psf(image.bfloat16(), 1.7).dtype == torch.bfloat16
