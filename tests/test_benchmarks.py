"""The arithmetic of the benchmarks, on small models."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from small import refusal

import denoscope
from denoscope import DFRise
from denoscope.attributors.estimators import kept_ratio

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SIMILARITIES = ["structure", "contrast", "luminance", "ssim", "cosine", "features"]


@pytest.fixture(scope="module")
def ablation() -> ModuleType:
    """The module benchmarks/ablation.py, which finds the other benchmarks beside it."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("ablation_benchmark", BENCHMARKS / "ablation.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module


@pytest.fixture(scope="module")
def trace(components):
    """A guided latent trace that is not square."""
    return denoscope.load(components).trace("a red circle", seed=1, num_inference_steps=4, height=24, width=32)


def features(pictures: torch.Tensor) -> torch.Tensor:
    """Colours of 4 × 4 parts of pictures (n, 3, H, W), (n, 48)."""
    return torch.nn.functional.adaptive_avg_pool2d(pictures, 4).flatten(1)


def test_the_ablation_is_df_rise_under_each_similarity(ablation, trace):
    targets = ablation.similarities(features)
    maps = ablation.ablation(trace, targets, [1, 3], num_masks=20, seed=2, batch_size=7)
    assert maps.similarity.values.tolist() == SIMILARITIES
    for name, target in targets.items():
        rise = replace(DFRise.paper(20, seed=2), target=target)
        alone = (replace(rise, estimator=kept_ratio) if name == "features" else rise)(trace, [1, 3])
        for variable in ("saliency", "standard_error"):
            values, truth = maps[variable].sel(similarity=name), alone[variable]
            assert np.allclose(values, truth, rtol=1e-4, atol=1e-5), (name, variable)
            assert truth.std() > 0


def test_the_ablation_calls_the_denoiser_as_often_as_one_map(ablation, trace):
    counts = []
    trace[1].predict(trace[1].sample)  # checked once, before it is counted

    def count(module, args, output):
        counts.append(len(args[0]))

    handle = trace.model.denoiser.register_forward_hook(count)
    ablation.ablation(trace, ablation.similarities(features), [1], num_masks=20)
    handle.remove()
    assert sum(counts) == 2 * 20  # both halves of the guidance


def test_an_ablation_of_nothing(ablation, trace):
    assert "at least 4 masks" in refusal(ablation.ablation, trace, ablation.similarities(features), num_masks=2)
    assert "0 similarities" in refusal(ablation.ablation, trace, {})
