"""Concepts against what is known of them: the prompt itself agrees with itself, and refusals come in words."""

import numpy as np
import pytest
import torch
from families.every import FAMILIES
from small import refusal, stable_diffusion

import denoscope
from denoscope import Concepts, Words
from denoscope.attributors.concepts import ABSENT, concept_shares, largest_tenth

PROMPT = "a red circle above a blue square"


@pytest.fixture(scope="module")
def trace():
    pipeline = stable_diffusion()
    pipeline.set_progress_bar_config(disable=True)
    return denoscope.load(pipeline).trace(PROMPT, seed=1, num_inference_steps=2, negative_prompt="a cross")


def test_the_prompt_as_a_concept_is_the_prompt(trace):
    """Its map is the mean of its words', and it hands every place what the prompt did."""
    found, words = Concepts((PROMPT, "a black cross"))(trace, [1]), Words()(trace, [1]).saliency
    np.testing.assert_allclose(found.saliency.sel(token=PROMPT), words.mean("token"), atol=1e-6)
    np.testing.assert_allclose(found.agreement.sel(token=PROMPT), 1, atol=1e-4)
    assert float(found.presence.sel(step=1, token=PROMPT)) == pytest.approx(1, abs=1e-4)
    assert float(found.presence.sel(step=1, token="a black cross")) < 1 - 1e-3
    assert found.attrs["compared"] == "attention weights" and found.agreement.max() <= 1 + 1e-5


def test_a_concept_that_nothing_is_read_as_is_called_absent(trace):
    found = Concepts((PROMPT, "a black cross"))(trace, [0, 1])
    assert ((found.presence < ABSENT) == (found.absent == 1)).all() and (found.absent.sel(token=PROMPT) == 0).all()


def test_asking_changes_nothing(trace):
    before = trace[1].predict(trace[1].sample)
    Concepts(("sky",))(trace, [1])
    assert torch.equal(trace[1].predict(trace[1].sample), before)
    assert not [m for m in trace.model.denoiser.modules() if m._forward_hooks or m._forward_pre_hooks]


def test_shares_are_a_softmax_over_concepts():
    """One place agrees with the second concept alone: e^2 against e^0."""
    picture, concepts = torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    shares = concept_shares(picture, concepts)
    torch.testing.assert_close(shares[0, 0], torch.tensor([1.0, np.exp(2.0)]).float() / (1 + np.exp(2.0)))


def test_the_largest_tenth():
    assert largest_tenth(np.arange(20.0).reshape(1, 4, 5)).tolist() == [18.5]


def test_refusals():
    assert "Give a tuple of texts" in refusal(Concepts, "sky") and "once" in refusal(Concepts, ("sky", "sky"))
    pipeline = FAMILIES["flux"].build()
    pipeline.set_progress_bar_config(disable=True)
    joint = denoscope.load(pipeline).trace(**FAMILIES["flux"].call(), seed=1)
    assert "at least two" in refusal(Concepts(("sky",)), joint, [1])
    assert "No concept was given" in refusal(Concepts(), joint)
    shares = Concepts(("sky", "fur"))(joint, [1])
    np.testing.assert_allclose(shares.saliency.sum("token"), 1, atol=1e-5)
    assert shares.attrs["compared"] == "attention outputs" and "agreement" not in shares
