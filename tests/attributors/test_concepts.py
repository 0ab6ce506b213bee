"""Concepts against what is known of them: the prompt itself agrees with itself, and refusals come in words."""

import json

import numpy as np
import pytest
import torch
from families.every import FAMILIES
from small import refusal, stable_diffusion

import denoscope
from denoscope import Concepts, Words
from denoscope.attributors.concepts import ABSENT, FAINT, absent, concept_shares, largest_tenth
from denoscope.recording.hooks.attention import attention_layers

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
    bound = np.maximum(ABSENT, FAINT * found.presence.max("token"))
    assert ((found.presence < bound) == (found.absent == 1)).all() and (found.absent.sel(token=PROMPT) == 0).all()
    assert absent(np.array([0.9, 0.41, 0.40])).tolist() == [False, False, True], "below 0.45 of the strongest"
    assert absent(np.array([0.3, 0.26, 0.24])).tolist() == [False, False, True], "below 0.25"


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


def test_layers_share_out_the_map(trace):
    """The picture stays the recorded one in every layer, whichever layers are asked for."""
    layers = [path for path in attention_layers(trace.model.denoiser) if path.endswith("attn2")]
    whole, parts = Concepts(("sky",))(trace, [1]), [Concepts(("sky",), (layer,))(trace, [1]) for layer in layers]
    assert float(abs(parts[0].saliency - parts[1].saliency).max()) > 1e-4
    np.testing.assert_allclose(whole.saliency, sum(part.saliency for part in parts) / len(parts), atol=1e-5)


def test_the_agreement_is_a_cosine_of_all_layers_vectors(trace):
    """Slow and by its own hooks: the layers' outputs before their last projection, for the concept, prompt and nothing.

    The picture's queries are the recorded ones, so each layer is asked alone with the recorded input.
    """
    step, pipeline = trace[1], trace.model.pipeline
    texts = {"prompt": PROMPT, "concept": "sky", "nothing": ""}
    vectors = {name: pipeline.encode_prompt(text, "cpu", 1, False)[0] for name, text in texts.items()}
    layers = [m for path, m in step.denoiser.named_modules() if path in set(attention_layers(step.denoiser))]
    crossed = [
        layer for layer in layers if layer.to_k.in_features == vectors["prompt"].shape[-1] and layer.is_cross_attention
    ]
    states = {}
    hooks = [
        layer.register_forward_pre_hook(lambda m, args, kwargs: states.update({m: args[0][1:]}), with_kwargs=True)
        for layer in crossed
    ]
    step.again()
    for hook in hooks:
        hook.remove()
    sums, size = [0, 0, 0], step.layout.shape
    for layer, state in states.items():
        handed = {}
        for name, text in vectors.items():
            split = [
                t.unflatten(-1, (layer.heads, -1)).transpose(1, 2)
                for t in (layer.to_q(state), layer.to_k(text), layer.to_v(text))
            ]
            handed[name] = torch.nn.functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)[0]
        own, prompt = handed["concept"] - handed["nothing"], handed["prompt"] - handed["nothing"]
        side = round(len(own) ** 0.5)
        for k, product in enumerate(((own * prompt).sum(-1), (own**2).sum(-1), (prompt**2).sum(-1))):
            grid = (product / (prompt**2).sum(-1).mean()).reshape(1, 1, side, side)
            sums[k] = sums[k] + torch.nn.functional.interpolate(grid, size=size, mode="bilinear")[0, 0]
    expected = (sums[0] / (sums[1] * sums[2]).sqrt()).detach()
    np.testing.assert_allclose(Concepts(("sky",))(trace, [1]).agreement[0, 0], expected, atol=1e-5)


def test_a_picture_of_a_batch_is_asked_with_its_own_vectors():
    """SD3 pools its text beside the sequence. Oracle: the same picture made alone from the same noise."""
    pipeline = FAMILIES["sd3"].build()
    pipeline.set_progress_bar_config(disable=True)
    call, prompts = FAMILIES["sd3"].call(), ["a red circle", "a blue square"]
    model, shape = denoscope.load(pipeline), denoscope.load(pipeline).trace(**call, seed=1)[0].sample.shape[1:]
    noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(2))
    batch = model.trace(**{**call, "prompt": prompts, "negative_prompt": ["a cross"] * 2}, latents=noise)
    own = {**call, "prompt": prompts[1], "negative_prompt": "a cross"}
    alone = Concepts(("sky", "fur"))(model.trace(**own, latents=noise[1:]), [1])
    together = Concepts(("sky", "fur"))(batch.picture(1), [1])
    np.testing.assert_allclose(together.saliency, alone.saliency, atol=1e-5)


def test_steps_do_not_depend_on_which_are_asked_together(trace):
    """The second step is asked with its own time step, whether the first one was asked before or not."""
    together, alone = Concepts(("sky",))(trace, [0, 1]).sel(step=1), Concepts(("sky",))(trace, [1]).sel(step=1)
    pipeline = stable_diffusion()
    pipeline.set_progress_bar_config(disable=True)
    fresh = denoscope.load(pipeline).trace(PROMPT, seed=1, num_inference_steps=2, negative_prompt="a cross")
    first = Concepts(("sky",))(fresh, [1]).sel(step=1)
    for name in ("saliency", "agreement"):
        np.testing.assert_allclose(together[name], first[name], atol=1e-6)
        np.testing.assert_allclose(alone[name], first[name], atol=1e-6)


def test_the_presence_is_said_on_the_page_and_in_the_terminal(tmp_path):
    explanation = denoscope.explain(
        denoscope.Request(prompt="a red circle", steps=2, at=(1,), methods=("words",), concepts=("green triangle",))
    )
    presence = float(explanation.methods()["concepts"].presence.sel(step=1, token="green triangle"))
    explanation.save(tmp_path / "run")
    assert f"green triangle {presence:.2f}" in str(explanation.rows().rows)
    said = json.dumps(["presence of “green triangle”", f"{presence:.2f}"], separators=(",", ":"))
    assert said in (tmp_path / "run" / "report.html").read_text(encoding="utf-8"), "the page holds its numbers as JSON"
