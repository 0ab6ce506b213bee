"""The terms of structural similarity against scikit-image and against their definition written out slowly."""

from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import slow_terms
from skimage.metrics import structural_similarity

from denoscope import DFRise, blend, targets
from denoscope.errors import InputError
from denoscope.targets import Closeness, FeatureCloseness, Similarity
from denoscope.vision import similarity
from denoscope.vision.similarity import C3, LocalMoments


@pytest.fixture
def pair():
    a = torch.randn(1, 4, 9, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    b = a + 0.5 * torch.randn(1, 4, 9, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return a, b


def test_terms_against_slow_windows(pair):
    a, b = (LocalMoments.of(v) for v in pair)
    for channel in range(4):
        expected = slow_terms(pair[0][0, channel].numpy(), pair[1][0, channel].numpy())
        for term, slow in zip((similarity.luminance, similarity.contrast, similarity.structure), expected, strict=True):
            assert np.allclose(term(a, b)[0, channel].numpy(), slow, atol=1e-12)


def test_full_ssim_against_scikit_image():
    """scikit-image pads by reflection, so only positions whose whole window is inside can agree."""
    rng = np.random.default_rng(0)
    a = rng.random((40, 40))
    b = a + 0.2 * rng.random((40, 40))
    _, expected = structural_similarity(
        a, b, data_range=1.0, gaussian_weights=True, sigma=1.5, truncate=4.5, use_sample_covariance=False, full=True
    )
    ours = similarity.full_ssim(*(LocalMoments.of(torch.from_numpy(v)[None, None]) for v in (a, b)))[0, 0].numpy()
    assert np.allclose(ours[8:-8, 8:-8], expected[8:-8, 8:-8], atol=1e-4)


def test_identical_predictions_have_similarity_one(pair):
    a = LocalMoments.of(pair[0])
    for name, term in similarity.SIMILARITIES.items():
        assert torch.allclose(term(a, a), torch.ones(()).double(), atol=1e-9), name


def test_structure_ignores_scale_and_flips_with_sign(pair):
    a, scaled, flipped = (LocalMoments.of(v * pair[0]) for v in (1.0, 3.0, -1.0))
    assert torch.allclose(similarity.structure(a, scaled), torch.ones(()).double(), atol=1e-2)
    assert (similarity.structure(a, flipped) < -0.98).all()


@pytest.mark.parametrize("similarity", similarity.SIMILARITIES)
@pytest.mark.parametrize("space", targets.SPACES)
def test_the_unperturbed_sample_is_most_similar(trace, similarity, space):
    target = Similarity(similarity=similarity, space=space, scalar=True)
    samples = torch.cat([trace[1].sample, torch.zeros_like(trace[1].sample)])
    with torch.no_grad():
        same, lost = target(trace[1], samples).tolist()
        maps = Similarity(similarity=similarity, space=space)(trace[1], samples)
    assert same == pytest.approx(1, abs=1e-3) and lost < same
    assert maps.shape == (2, *trace[1].sample.shape[-2:])
    assert torch.allclose(maps[0], torch.ones(()), atol=1e-2)


def test_reference_compares_with_the_next_sample_and_doubles_the_covariance(trace):
    step = trace[1]
    with torch.no_grad():
        got = Similarity(next_sample=True, numerator=2.0)(step, step.sample)[0]
        predicted = step.level.noise(step.sample, step.model_output)
    a, b = step.prev_sample[0].double().numpy(), predicted[0].double().numpy()
    slow = []
    for x, y in zip(a, b, strict=True):
        luminance, contrast, structure = slow_terms(x, y)
        del luminance, contrast
        slow.append(structure)
    root = [np.sqrt(slow_variance(x) * slow_variance(y)) + C3 for x, y in zip(a, b, strict=True)]
    doubled = np.mean([2 * (s * r - C3) / r + C3 / r for s, r in zip(slow, root, strict=True)], axis=0)
    assert np.allclose(got.numpy(), doubled, atol=1e-3)


def slow_variance(a):
    moments = LocalMoments.of(torch.from_numpy(a)[None, None])
    return moments.variance[0, 0].numpy()


def test_closeness_is_zero_only_for_the_unperturbed(trace):
    samples = torch.cat([trace[2].sample, 0.5 * trace[2].sample])
    with torch.no_grad():
        scores = Closeness()(trace[2], samples)
        features = FeatureCloseness(lambda pictures: pictures.mean(dim=(2, 3)))(trace[2], samples)
        expected = -(trace[2].predict_original(samples[1:]) - trace[2].pred_original_sample).square().mean()
    assert scores[0].item() == pytest.approx(0, abs=1e-8) and features[0].item() == pytest.approx(0, abs=1e-8)
    assert scores[1].item() == pytest.approx(float(expected), rel=1e-4) and features[1] < 0


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(InputError, match='Did you mean "structure"'):
        Similarity(similarity="structur")
    with pytest.raises(InputError, match='Did you mean "clean"'):
        Similarity(space="claen")


def test_the_target_of_contributing_is_one_class(trace):
    """Oracle: the mean over the pictures, computed by hand."""
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    names: dict = {}
    exec(text.split("```python\n")[2].split("```")[0], names)
    target, samples = names["Brightness"](), torch.cat([trace[1].sample, 0.5 * trace[1].sample])
    with torch.no_grad():
        scores = target(trace[1], samples)
        pictures = [trace[1].clean(sample[None]).numpy().mean() for sample in samples]
        assert scores.numpy() == pytest.approx(pictures, rel=1e-5)
    maps = DFRise(num_masks=16, target=target)(trace, steps=[1])
    assert np.isfinite(maps.saliency).all() and maps.attrs["target"] == "Brightness"


def test_frames_are_refused_by_questions_about_the_denoiser():
    frame = blend(torch.zeros(3, 8, 8), 2)[0]
    with pytest.raises(InputError, match="Give a trace"):
        Closeness()(frame, torch.zeros(1, 3, 8, 8))
