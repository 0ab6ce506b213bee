"""Structural similarity's local moments: the filter against a convolution, and its copies."""

import torch

from denoscope.vision import similarity


def test_a_filter_is_a_convolution_with_a_gaussian_whatever_was_asked_before():
    """The filter is kept between calls: one without gradients may come first, in another dtype too."""
    values = torch.randn(2, 3, 9, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.inference_mode():
        similarity.blurred(values.float(), 5, 1.5)
        similarity.blurred(values, 5, 1.5)
    values.requires_grad_()
    line = torch.exp(-((torch.arange(5.0, dtype=torch.float64) - 2) ** 2) / (2 * 1.5**2))
    kernel = torch.outer(line, line) / line.sum() ** 2
    expected = torch.nn.functional.conv2d(values.flatten(0, 1)[:, None], kernel[None, None], padding=2)
    blurred = similarity.blurred(values, 5, 1.5)
    torch.testing.assert_close(blurred.flatten(0, 1), expected[:, 0], rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(blurred.sum(), values)
    (truth,) = torch.autograd.grad(expected.sum(), values)
    torch.testing.assert_close(gradient, truth, rtol=0, atol=1e-12)


def test_a_filter_is_copied_to_a_device_once():
    values = torch.zeros(1, 1, 7, 11)
    similarity.blurred(values, 5, 1.5)
    before = similarity._band_matrix.cache_info().misses
    similarity.blurred(values + 1, 5, 1.5)
    assert similarity._band_matrix.cache_info().misses == before
