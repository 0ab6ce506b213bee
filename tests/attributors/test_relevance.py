"""The relevance of words: against loops over attention and gradients that were captured in another way."""

import copy
import warnings

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from small import PIPELINES, SCHEDULERS, conditional_unet, refusal, tokenizer
from transformers import CLIPTextModel, CLIPTextModelWithProjection

import denoscope
from denoscope import Relevance
from denoscope.attributors.relevance import (
    TextSide,
    grid_of,
    head_mean,
    normalised,
    resizing,
    scaled,
    text_excess,
    totals,
    unit_rows,
)
from denoscope.errors import DenoscopeError, InputError, ModelError
from denoscope.recording.models import TruncatedPromptWarning

PROMPT = "a red circle above a blue zebra"
WORDS = ["a", "red", "circle", "above", "a (2)", "blue", "zebra"]


def two_resolutions() -> UNet2DConditionModel:
    """Attention on the sample's grid and on the halved one."""
    torch.manual_seed(3)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=32,
        norm_num_groups=8,
    ).eval()


@pytest.fixture(scope="module")
def model():
    pipeline = PIPELINES["stable-diffusion"]()
    pipeline.scheduler = SCHEDULERS["dpm-solver++"]()
    pipeline.unet = two_resolutions()
    pipeline.set_progress_bar_config(disable=True)
    return denoscope.load(pipeline)


@pytest.fixture(scope="module")
def trace(model):
    return model.trace(PROMPT, seed=1, num_inference_steps=3, negative_prompt="a dotted square")


# The slow way: own capture, loops, R itself and not its excess, double precision.


class Kept:
    """Attention written out, that keeps its probabilities in a list, in the order of the calls."""

    def __init__(self, path, kept):
        self.path, self.kept = path, kept

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **kwargs):
        keys = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        split = lambda x: x.reshape(len(x), x.shape[1], attn.heads, -1).transpose(1, 2)  # noqa: E731
        q, k, v = split(attn.to_q(hidden_states)), split(attn.to_k(keys)), split(attn.to_v(keys))
        A = ((q @ k.transpose(-1, -2)) * attn.scale).softmax(-1)
        self.kept.append((self.path, encoder_hidden_states is not None, A))
        return attn.to_out[0]((A @ v).transpose(1, 2).reshape(hidden_states.shape))


def slow_head_mean(A, gradient):
    A, gradient = A.detach().double().numpy()[0], gradient.double().numpy()[0]
    mean = np.zeros(A.shape[1:])
    for h in range(len(A)):
        for i in range(A.shape[1]):
            for j in range(A.shape[2]):
                mean[i, j] += max(gradient[h, i, j] * A[h, i, j], 0) / len(A)
    return mean


def slow_text(model, text, reduced):
    encoder = copy.deepcopy(model.pipeline.text_encoder)
    encoder.set_attn_implementation("eager")
    words = model.pipeline.tokenizer
    ids = words(text, padding="max_length", max_length=words.model_max_length, return_tensors="pt").input_ids
    with torch.enable_grad():
        out = encoder(ids, output_attentions=True)
        gradients = torch.autograd.grad(out.last_hidden_state.sum(), out.attentions)
    R, n = np.eye(ids.shape[1]), ids.shape[1]
    for A, gradient in zip(out.attentions, gradients, strict=True):
        mean = slow_head_mean(A, gradient)
        if reduced:
            mean = np.array([[mean[:, j].sum() / n for j in range(n)] for _ in range(n)])
        R = R + mean @ R
    return R, out.last_hidden_state.detach()


def slow_attentions(step, unet, context):
    unet, kept = copy.deepcopy(unet), []
    unet.set_attn_processor({name: Kept(name, kept) for name in unet.attn_processors})
    with torch.enable_grad():
        y = unet(step.sample, int(step.timestep), encoder_hidden_states=context).sample.sum()
        gradients = torch.autograd.grad(y, [A for _, _, A in kept])
    return [(path, cross, slow_head_mean(A, g)) for (path, cross, A), g in zip(kept, gradients, strict=True)]


def slow_bilinear(small, large):
    """Weights (large, small), one position at a time; edges repeat."""
    U = np.zeros((large[0] * large[1], small[0] * small[1]))
    for Y in range(large[0]):
        for X in range(large[1]):
            y, x = (Y + 0.5) * small[0] / large[0] - 0.5, (X + 0.5) * small[1] / large[1] - 0.5
            y, x = max(y, 0), max(x, 0)
            for row, up in ((int(y), 1 - y % 1), (min(int(y) + 1, small[0] - 1), y % 1)):
                for column, along in ((int(x), 1 - x % 1), (min(int(x) + 1, small[1] - 1), x % 1)):
                    U[Y * large[1] + X, row * small[1] + column] += up * along
    return U


def slow_normalised(R):
    out = np.eye(len(R))
    for i in range(len(R)):
        total = sum(R[i, j] - (i == j) for j in range(len(R)))
        for j in range(len(R)):
            out[i, j] += (R[i, j] - (i == j)) / total if total > 0 else 0
    return out


FORMS = {"paper": Relevance.paper, "reference": Relevance.reference}


def slowly(trace, index, variant, guided=True):
    """R_iq by the book."""
    model, step = trace.model, trace[index]
    reference = variant == "reference"
    text = "a dotted square" if reference and guided else PROMPT
    R_qq, context = slow_text(model, text, reference)
    found = slow_attentions(step, model.denoiser, context)
    if reference:
        found = [each for part in ("up", "down", "mid") for each in found if each[0].startswith(part)]
    height, width = step.sample.shape[-2:]
    R_ii, R_iq = np.eye(height * width), np.zeros((height * width, len(R_qq)))
    for _, cross, mean in found:
        small = (height, width) if len(mean) == height * width else (height // 2, width // 2)
        U = slow_bilinear(small, (height, width))
        if cross:
            R_iq = R_iq + slow_normalised(R_ii).T @ (U @ mean) @ slow_normalised(R_qq)
            continue
        A = U @ mean @ (U / U.sum(0)).T
        R_iq, R_ii = R_iq + A @ R_iq, R_ii + A @ R_ii
        for i in range(len(R_iq)):
            length = np.sqrt((R_iq[i] ** 2).sum())
            R_iq[i] = R_iq[i] / length if length > 0 else 0
    return R_iq


POSITIONS = {"a": [1], "red": [2], "circle": [3], "above": [4], "a (2)": [5], "blue": [6], "zebra": [7, 8, 9, 10, 11]}


def compare(result, index, R_iq, positions, size):
    here = result.sel(step=index)
    assert list(here["token"].values) == WORDS
    rho = np.array([sum(R_iq[i, k] for i in range(len(R_iq)) for k in positions[word]) for word in WORDS])
    np.testing.assert_allclose(here["relevance"], rho, rtol=2e-4)
    np.testing.assert_allclose(here["relevance_scaled"], (rho - rho.min()) / (rho.max() - rho.min()), atol=1e-3)
    for word in WORDS:
        expected = R_iq[:, positions[word]].sum(1).reshape(size)
        np.testing.assert_allclose(here["saliency"].sel(token=word), expected, rtol=1e-3, atol=1e-4)


def test_the_definition(trace):
    result = Relevance()(trace)
    assert result["saliency"].dims == ("step", "token", "y", "x")
    for index in (0, 2):
        compare(result, index, slowly(trace, index, "paper"), POSITIONS, (8, 8))


def test_the_published_arithmetic(trace):
    """Another text, another order, another text side; of two "a" the second counts for both."""
    result = Relevance.reference()(trace, [1])
    compare(result, 1, slowly(trace, 1, "reference"), POSITIONS | {"a": POSITIONS["a (2)"]}, (8, 8))
    own = Relevance()(trace, [1])
    assert float(np.abs(result["relevance_scaled"] - own["relevance_scaled"]).max()) > 0.1


@pytest.mark.parametrize("variant", FORMS)
def test_without_guidance_and_not_square(model, variant):
    """Without guidance there is no other prompt than the prompt."""
    trace = model.trace(PROMPT, seed=2, num_inference_steps=2, guidance_scale=1.0, height=32, width=48)
    result = FORMS[variant]()(trace, [1])
    positions = POSITIONS if variant == "paper" else POSITIONS | {"a": POSITIONS["a (2)"]}
    compare(result, 1, slowly(trace, 1, variant, guided=False), positions, (8, 12))


def test_guidance_changes_the_trajectory_only(model, trace):
    """At the first step both runs have the same sample, and the half that reads the prompt is the same."""
    plain = model.trace(PROMPT, seed=1, num_inference_steps=3, guidance_scale=1.0)
    np.testing.assert_allclose(Relevance()(plain, [0]).relevance, Relevance()(trace, [0]).relevance, rtol=1e-4)


def test_a_map_adds_up_to_its_word(trace):
    """Where the largest attention is on the sample's grid."""
    result = Relevance()(trace)
    np.testing.assert_allclose(result["saliency"].sum(["y", "x"]), result["relevance"], rtol=1e-5)


def test_each_picture_of_a_batch_has_its_own_words(model):
    prompts = ["a red circle", "a striped square above a cross"]
    both = model.trace(prompts, seed=3, num_inference_steps=2, num_images_per_prompt=2)
    alone = model.trace(prompts, seed=3, num_inference_steps=2, num_images_per_prompt=2)
    for picture, words in ((1, ["a", "red", "circle"]), (2, ["a", "striped", "square", "above", "a (2)", "cross"])):
        result = Relevance()(both.picture(picture), [0])
        assert list(result.token.values) == words
        np.testing.assert_array_equal(result.relevance, Relevance()(alone.picture(picture), [0]).relevance)
    assert "2 pictures" in refusal(Relevance(), model.trace(prompts, seed=3, num_inference_steps=1))


def test_a_picture_of_a_batch_is_explained_as_it_would_be_alone(model, trace):
    """The same generator makes the first picture of a batch and the only one."""
    batch = model.trace([PROMPT, "a cross"], seed=1, num_inference_steps=3, negative_prompt=["a dotted square", ""])
    np.testing.assert_allclose(Relevance()(batch.picture(0)).relevance, Relevance()(trace).relevance, rtol=1e-3)


def test_space_around_words_changes_nothing(model, trace):
    spaced = model.trace(f"  {PROMPT.replace(' ', '   ')} ", seed=1, num_inference_steps=3, negative_prompt="")
    told = model.trace(PROMPT, seed=1, num_inference_steps=3, negative_prompt="")
    assert Relevance()(spaced).drop_attrs().identical(Relevance()(told).drop_attrs())


def test_words_that_were_cut_off_are_left_out(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncatedPromptWarning)
        trace = model.trace("red " * 29 + "circle above", seed=1, num_inference_steps=1)
    assert list(Relevance()(trace).token.values)[-2:] == ["red (29)", "circle"]


def two_encoders() -> StableDiffusionXLPipeline:
    base, words = PIPELINES["stable-diffusion"](), tokenizer()
    settings = copy.deepcopy(base.text_encoder.config)
    settings.hidden_size = settings.projection_dim = 16
    unet = conditional_unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )
    encoders = CLIPTextModel(settings).eval(), CLIPTextModelWithProjection(settings).eval()
    return StableDiffusionXLPipeline(base.vae, *encoders, words, words, unet, base.scheduler)


def test_two_text_encoders_are_averaged():
    """SDXL reads the states before the last layer, which therefore counts for nothing."""
    pipeline = two_encoders()
    pipeline.set_progress_bar_config(disable=True)
    trace = denoscope.load(pipeline).trace(PROMPT, seed=0, num_inference_steps=1, height=32, width=32)
    ids = pipeline.tokenizer(PROMPT, padding="max_length", max_length=32, return_tensors="pt").input_ids
    R = []
    for encoder in (pipeline.text_encoder, pipeline.text_encoder_2):
        slow = copy.deepcopy(encoder)
        slow.set_attn_implementation("eager")
        out = slow(ids, output_attentions=True, output_hidden_states=True)
        (gradient,) = torch.autograd.grad(out.hidden_states[-2].sum(), out.attentions[:1])
        R.append(slow_head_mean(out.attentions[0], gradient))
    text = TextSide.of(trace, negative=False, reduced=False)
    np.testing.assert_allclose(text.excess, (R[0] + R[1]) / 2, rtol=1e-3, atol=1e-7)
    assert (Relevance()(trace).relevance > 0).all()


# Identities


def test_no_attention_leaves_the_identity():
    zero = torch.zeros(5, 5)
    assert not text_excess([zero, zero]).any()
    assert torch.equal(normalised(zero), torch.eye(5))


def test_normalised_rows_add_up_to_two_or_to_one():
    """R̂ − I has rows of one; where R is the identity in a row, of nought."""
    excess = torch.rand(6, 6) * 1e-9
    excess[2] = 0
    expected = torch.tensor([2.0, 2, 1, 2, 2, 2])
    torch.testing.assert_close(normalised(excess).sum(1), expected)


def test_unit_rows():
    R = torch.randn(4, 7)
    R[1] = 0
    torch.testing.assert_close(unit_rows(R).square().sum(1), torch.tensor([1.0, 0, 1, 1]))


def test_one_layer_of_text_is_its_attention():
    A = torch.rand(4, 4)
    torch.testing.assert_close(text_excess([A]), A)
    torch.testing.assert_close(text_excess([A, A]), 2 * A + A @ A)
    torch.testing.assert_close(text_excess([A], reduced=True), A.mean(0).expand(4, 4))


def test_only_what_speaks_for_the_output_counts():
    A = torch.rand(1, 3, 2, 2)
    assert not head_mean(A, -torch.ones_like(A)).any()
    torch.testing.assert_close(head_mean(A, torch.ones_like(A)), A[0].mean(0))


@pytest.mark.parametrize("small, large", [((4, 4), (8, 8)), ((3, 5), (6, 9)), ((2, 2), (2, 2)), ((1, 1), (4, 4))])
def test_resizing_keeps_row_sums(small, large):
    up, down = resizing(small, large)
    mean = torch.rand(small[0] * small[1], small[0] * small[1])
    torch.testing.assert_close((up @ mean @ down).sum(1), up @ mean.sum(1))
    np.testing.assert_allclose(up, slow_bilinear(small, large), atol=1e-6)
    flat = torch.ones(len(mean), len(mean)) / len(mean)
    torch.testing.assert_close((up @ flat @ down).sum(1), torch.ones(len(up)))


def test_grids():
    assert grid_of(64, 64, 64) == (8, 8) and grid_of(15, 9, 17) == (3, 5) and grid_of(6, 2, 3) == (2, 3)
    assert "no grid of a sample of 8 × 8" in refusal(grid_of, 10, 8, 8)


def test_scaling_words_that_are_all_the_same():
    assert scaled(np.array([3.0, 3.0])).tolist() == [0, 0]
    assert scaled(np.array([1.0, 3.0, 2.0])).tolist() == [0, 1, 0.5]


def test_totals_add_up_steps_that_are_scaled_each(trace):
    result = Relevance()(trace)
    expected = np.zeros(len(WORDS))
    for step in range(3):
        raw = [float(result.relevance.sel(step=step, token=word)) for word in WORDS]
        expected += [(value - min(raw)) / (max(raw) - min(raw)) for value in raw]
    np.testing.assert_allclose(totals(result), expected, rtol=1e-5, atol=1e-6)
    assert list(totals(result).token.values) == WORDS


# What may not matter, and what may not stay behind


def state(pipeline):
    modules = [m for part in (pipeline.unet, pipeline.text_encoder) for m in part.modules()]
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)
    parameters = [p for part in (pipeline.unet, pipeline.text_encoder) for p in part.parameters()]
    flags = [(p.requires_grad, p.grad is None) for p in parameters]
    return hooks, flags, pipeline.unet.attn_processors, pipeline.text_encoder.config._attn_implementation


def test_nothing_stays_behind(model, trace):
    before, grad = state(model.pipeline), torch.is_grad_enabled()
    Relevance()(trace, [0])
    assert state(model.pipeline) == before and torch.is_grad_enabled() == grad
    with pytest.raises(ZeroDivisionError):
        Relevance()(trace, [0], advance=lambda done: 1 / 0)
    assert state(model.pipeline) == before


def test_frozen_weights_and_other_processors_change_nothing(model, trace):
    expected = Relevance()(trace, [1]).relevance
    pipeline = model.pipeline
    for part in (pipeline.unet, pipeline.text_encoder):
        part.requires_grad_(False)
    try:
        with torch.no_grad():
            np.testing.assert_allclose(Relevance()(trace, [1]).relevance, expected, rtol=1e-5)
        pipeline.unet.set_attn_processor(AttnProcessor())
        np.testing.assert_allclose(Relevance()(trace, [1]).relevance, expected, rtol=1e-4)
    finally:
        for part in (pipeline.unet, pipeline.text_encoder):
            part.requires_grad_(True)
        pipeline.unet.set_default_attn_processor()


def test_the_text_side_is_worked_out_once(model, trace):
    calls = []
    handle = model.pipeline.text_encoder.register_forward_hook(lambda *heard: calls.append(1))
    try:
        Relevance()(trace)
        three = len(calls)
        Relevance()(trace, [0], show_progress=False)
    finally:
        handle.remove()
    assert three == 1 and len(calls) == 2  # what recording has read is remembered, and each question weighs it once


def test_with_a_bar(trace, capsys):
    assert Relevance()(trace, [0], show_progress=True).identical(Relevance()(trace, [0]))


def test_latent_diffusion_reads_its_text_too():
    pipeline = PIPELINES["latent-diffusion"]()
    pipeline.set_progress_bar_config(disable=True)
    trace = denoscope.load(pipeline).trace("a red circle", seed=0, num_inference_steps=2)
    for variant in FORMS:
        result = FORMS[variant]()(trace)
        assert list(result.token.values) == ["a", "red", "circle"]
        assert np.isfinite(result.saliency).all() and (result.relevance > 0).all()


# Refusals


def test_no_words_no_relevance():
    pipeline = PIPELINES["ddpm"]()
    pipeline.set_progress_bar_config(disable=True)
    trace = denoscope.load(pipeline).trace(seed=0, num_inference_steps=1)
    assert "DDPMPipeline has no words" in refusal(Relevance(), trace, kind=ModelError)
    assert "Photographs have no prompt" in refusal(Relevance(), denoscope.blend(torch.zeros(3, 8, 8), 2))


def test_a_prompt_that_is_not_known_or_not_the_one_that_was_read(model):
    embeds = model.pipeline.encode_prompt(PROMPT, "cpu", 1, False)[0].detach()
    unsaid = model.trace(prompt_embeds=embeds, guidance_scale=1.0, seed=0, num_inference_steps=1)
    assert "(prompt_embeds)" in refusal(Relevance(), unsaid, kind=InputError)
    trace = model.trace(PROMPT, guidance_scale=1.0, seed=0, num_inference_steps=1)
    weights = model.pipeline.text_encoder.get_input_embeddings().weight
    before = weights.detach().clone()
    try:
        with torch.no_grad():
            weights.mul_(1.5)
        assert "was the network" in refusal(Relevance(), trace, kind=DenoscopeError).casefold()
    finally:
        with torch.no_grad():
            weights.copy_(before)


def test_options():
    assert Relevance().options()["form"] == "paper" and Relevance.reference().options()["form"] == "reference"
    assert "relevance" in denoscope.list_methods()
