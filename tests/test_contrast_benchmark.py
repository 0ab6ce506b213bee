"""The other estimators of benchmarks/contrast.py against slow definitions and known indices."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def contrast():
    """The module benchmarks/contrast.py, which finds the other benchmarks beside it."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("contrast_benchmark", BENCHMARKS / "contrast.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module


def test_hsic_is_the_trace_of_its_kernels(contrast):
    rng = np.random.default_rng(0)
    masks, scores = (rng.random((20, 2, 3)) < 0.5).astype(np.float32), rng.normal(size=20)
    H, apart = np.eye(20) - 1 / 20, np.abs(scores[:, None] - scores)
    L = np.exp(-(apart**2) / 2 / np.median(apart[~np.eye(20, dtype=bool)]) ** 2)
    values = contrast.hsic(masks, scores)
    for at in np.ndindex(2, 3):
        column = masks[(slice(None), *at)]
        K = (column[:, None] == column).astype(float)
        assert values[at] == pytest.approx(np.trace(K @ H @ L @ H) / 19**2, rel=1e-6)


def test_sobol_indices_of_a_weighted_sum_are_its_squared_weights(contrast):
    weights = np.arange(16.0)
    masks = contrast.sobol_masks((4, 4), 1024).astype(np.float64)
    indices = contrast.sobol((masks.reshape(18, 1024, 16) * weights).sum(axis=2), (4, 4))
    assert np.allclose(indices.ravel(), weights**2 / (weights**2).sum(), atol=0.01)


def test_calls_are_read_off_a_curve(contrast):
    curve = {64: 0.8, 256: 0.9}
    assert contrast.calls_for(curve, 0.85) == "128"
    assert contrast.calls_for(curve, 0.7) == "at most 64" and contrast.calls_for(curve, 0.95) == "more than 256"
