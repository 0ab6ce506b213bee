"""Listening to attention: what is told against the definition, whatever the processor, and nothing changed."""

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from small import conditional_unet, pixel_unet, stable_diffusion

import denoscope
from denoscope.errors import CaptureError
from denoscope.recording.hooks.attention import attending, attention_layers, attention_probabilities
from denoscope.recording.hooks.layers import activations


@pytest.fixture
def unet():
    torch.manual_seed(1)
    return conditional_unet()


@pytest.fixture
def inputs():
    torch.manual_seed(2)
    return torch.randn(2, 4, 8, 8), torch.tensor(300), torch.randn(2, 7, 32)


def slowly(module, states, text=None):
    """softmax(Q Kᵀ / √d) of a diffusers attention module, one head of one picture at a time."""
    query, key = module.to_q(states), module.to_k(states if text is None else text)
    size = query.shape[-1] // module.heads
    maps = torch.zeros(len(states), module.heads, query.shape[1], key.shape[1])
    for n in range(len(states)):
        for head in range(module.heads):
            own = slice(head * size, (head + 1) * size)
            scores = query[n, :, own] @ key[n, :, own].T / size**0.5
            maps[n, head] = (scores - scores.max()).exp() / (scores - scores.max()).exp().sum(1, keepdim=True)
    return maps


@pytest.mark.parametrize("processor", [None, AttnProcessor()], ids=["torch's attention", "softmax of its own"])
@pytest.mark.parametrize("through", [False, True])
def test_what_is_told_is_the_definition_and_the_output_stays(unet, inputs, processor, through):
    if processor is not None:
        unet.set_attn_processor(processor)
    told, states = [], {}
    layers = attention_layers(unet)
    handles = [
        module.register_forward_pre_hook(
            lambda m, args, kw, path=path: states.update({path: (args, kw)}), with_kwargs=True
        )
        for path, module in layers.items()
    ]
    with torch.no_grad():
        plain = unet(*inputs)[0]
        with attending(unet, told.append, through=through):
            again = unet(*inputs)[0]
    for handle in handles:
        handle.remove()
    assert torch.equal(again, plain) if not through else torch.allclose(again, plain, atol=1e-5)
    assert [call.layer for call in told] == [path for path in layers if "down" in path] + [
        path for path in layers if "mid" in path
    ] + [path for path in layers if "up_" in path]
    for call in told:
        (hidden, *_), kwargs = states[call.layer]
        text = kwargs.get("encoder_hidden_states")
        assert call.cross == (text is not None) == call.layer.endswith("attn2")
        expected = slowly(layers[call.layer], hidden, text)
        torch.testing.assert_close(call.probabilities, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(call.probabilities.sum(-1), torch.ones(expected.shape[:3]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("through", [False, True])
def test_half_precision_is_accumulated_in_float32(unet, inputs, dtype, through, monkeypatch):
    """Oracle: the softmax in float32 of the very queries and keys that the model hands to its kernel."""
    unet.to(dtype)
    calls, projected, kernel = [], [], torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, *args, **kwargs):
        projected.append((query, key))
        return kernel(query, key, *args, **kwargs)

    samples, timestep, text = inputs
    inputs = 4 * samples.to(dtype), timestep, 4 * text.to(dtype)
    with torch.no_grad():
        plain = unet(*inputs)[0]
        with monkeypatch.context() as patch:
            patch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
            unet(*inputs)
        with attending(unet, calls.append, through=through):
            again = unet(*inputs)[0]
    assert len(projected) == len(calls) > 0
    if not through:
        assert torch.equal(again, plain)
        for call, (query, key) in zip(calls, projected, strict=True):
            expected = (query.float() @ key.float().mT / query.shape[-1] ** 0.5).softmax(-1)
            torch.testing.assert_close(call.probabilities, expected, atol=1e-6, rtol=0)
    assert float((again - plain).abs().max() / plain.abs().max()) < 8 * torch.finfo(dtype).eps


def test_the_text_encoder_is_heard_too():
    """Causal rows: nothing ahead is attended to."""
    pipeline, told = stable_diffusion(), []
    ids = pipeline.tokenizer("a red circle", return_tensors="pt").input_ids
    with torch.no_grad(), attending(pipeline.text_encoder, told.append):
        pipeline.text_encoder(ids)
    assert len(told) == 2 and not any(call.cross for call in told)
    for call in told:
        assert call.probabilities.triu(1).abs().max() == 0
        torch.testing.assert_close(call.probabilities.sum(-1), torch.ones(1, 4, ids.shape[1]))


def test_gradients_go_through_the_probabilities(unet, inputs):
    """Finite differences: the output's change along ∂y/∂A matches what adding to A makes of it."""
    told = []
    with attending(unet, told.append, through=True):
        y = unet(*inputs)[0].sum()
    gradients = torch.autograd.grad(y, [call.probabilities for call in told])
    assert all(gradient.shape == call.probabilities.shape for gradient, call in zip(gradients, told, strict=True))
    assert sum(float(gradient.abs().sum()) for gradient in gradients) > 0


def test_only_wanted_layers_are_told(unet, inputs):
    told = []
    with torch.no_grad(), attending(unet, told.append, wanted=lambda layer, cross: cross):
        unet(*inputs)
    assert told and all(call.cross for call in told)


def hooks_of(module):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_nothing_stays_behind(unet, inputs):
    before, told = hooks_of(unet), []
    with torch.no_grad(), attending(unet, told.append):
        unet(*inputs)
    assert hooks_of(unet) == before
    with pytest.raises(ZeroDivisionError), attending(unet, lambda call: 1 / 0):
        unet(*inputs)
    assert hooks_of(unet) == before
    heard = len(told)
    unet(*inputs)
    assert len(told) == heard


def test_capturing_nothing_is_an_error(unet):
    with pytest.raises(CaptureError, match="none of its layers was called"), attending(unet, print):
        pass
    with pytest.raises(CaptureError, match="has no attention layers"), attending(torch.nn.Linear(2, 2), print):
        pass


class OwnKernel:
    """A processor that neither calls torch's attention nor takes a softmax."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, *args, **kwargs):
        return hidden_states


def test_an_attention_that_cannot_be_read_is_refused(unet, inputs):
    unet.set_attn_processor(OwnKernel())
    with pytest.raises(CaptureError, match="OwnKernel"), torch.no_grad(), attending(unet, lambda call: None):
        unet(*inputs)


def test_masks_are_added_or_exclude():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 5, 4)
    for mask in (torch.rand(5, 5) > 0.3, torch.randn(5, 5)):
        expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3)
        torch.testing.assert_close(attention_probabilities(query, key, mask, scale=0.3) @ value, expected)


def test_activations_are_told_in_order_with_their_graph(unet, inputs):
    told = []
    layers = ["up_blocks.0.resnets.0", "down_blocks.0.resnets.0"]
    with activations(unet, layers, lambda path, output: told.append((path, output))):
        y = unet(*inputs)[0].sum()
    assert [path for path, _ in told] == layers[::-1] and hooks_of(unet) == 0
    gradients = torch.autograd.grad(y, [output for _, output in told])
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_a_layer_that_is_not_called_is_an_error():
    unet = pixel_unet()
    unet.spare = torch.nn.Linear(1, 1)
    x = torch.randn(1, unet.config.in_channels, 8, 8)
    with pytest.raises(CaptureError, match="spare"), activations(unet, ["spare"], lambda path, output: None):
        unet(x, 1)


def test_the_bundled_model_is_heard():
    model, told = denoscope.load("shapes"), []
    model.pipeline.set_progress_bar_config(disable=True)
    plain = model.pipeline(
        "a red circle", generator=torch.Generator().manual_seed(0), num_inference_steps=2, output_type="np"
    )
    with attending(model.denoiser, told.append):
        heard = model.pipeline(
            "a red circle", generator=torch.Generator().manual_seed(0), num_inference_steps=2, output_type="np"
        )
    assert (heard.images == plain.images).all()
    assert sum(call.cross for call in told) == 2 * 7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_relevance_is_not_refused_in_half_precision(dtype):
    """Ground truth: the words' relevance in float32. Rounding moves it by percents; no attention is refused."""
    model = denoscope.load("shapes")
    call = dict(seed=3, num_inference_steps=2, output_type="latent")
    prompt = "a large plain purple triangle right of a small purple cross on a white background"
    exact = denoscope.Relevance()(model.trace(prompt, **call), [0]).relevance_scaled
    model.pipeline.to(dtype)
    half = denoscope.Relevance()(model.trace(prompt, **call), [0]).relevance_scaled
    assert float(abs(half - exact).max()) < 0.3
