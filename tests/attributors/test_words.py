"""Word maps against the definition computed slowly, their identities, and regions whose words are known."""

import diffusers
import numpy as np
import pytest
import torch
import xarray as xr
from small import PIPELINES, SCHEDULERS, autoencoder, refusal, stable_diffusion, tokenizer
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

import denoscope
from denoscope import Words, words_at
from denoscope.attributors import recorded_words
from denoscope.attributors.attention import LayerMean, cubic_weights, enlarged
from denoscope.errors import Interrupted, ModelError
from denoscope.recording.hooks.attention import AttentionCall, attention_layers
from denoscope.recording.listening import Attended
from denoscope.recording.prompts import read
from denoscope.recording.shares import of_the_other_half

PROMPT = "a red circle left of a blue zebra, on white"
TOLD = "a,red,circle,left,of,a (2),blue,zebra,on,white"
LONG = f"{'red ' * 28}circle below a square"


@pytest.fixture(scope="module")
def model():
    loaded = denoscope.load(stable_diffusion())
    loaded.pipeline.set_progress_bar_config(disable=True)
    return loaded


CALL = dict(negative_prompt="a black cross", seed=1, num_inference_steps=3, height=48, width=32)


@pytest.fixture(scope="module")
def recorded(model):
    """A guided, non-square picture with a negative prompt, and what was heard of both halves while it was made."""
    with Words().recording(model) as heard, Words(half="unconditional").recording(model) as negative:
        trace = model.trace(PROMPT, **CALL)
    return trace, heard, negative


def pixart(components) -> diffusers.PixArtSigmaPipeline:
    """A transformer with cross-attention: patches of 2 × 2, and padding that a mask keeps out."""
    torch.manual_seed(0)
    text = T5Config(vocab_size=len(components.tokenizer), d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4)
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        cross_attention_dim=32,
        sample_size=8,
        caption_channels=32,
        use_additional_conditions=False,
    )
    return diffusers.PixArtSigmaPipeline(
        tokenizer=components.tokenizer,
        text_encoder=T5EncoderModel(text).eval(),
        vae=autoencoder(shift_factor=0.1),
        transformer=transformer.eval(),
        scheduler=SCHEDULERS["dpm-solver++"](),
    )


def stable_diffusion_3(components) -> diffusers.StableDiffusion3Pipeline:
    """Text and picture attend to each other in one sequence."""
    own = components.text_encoder.config.to_dict() | dict(projection_dim=32)
    encoders = [CLIPTextModelWithProjection(CLIPTextConfig(**own)).eval() for _ in range(2)]
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        pos_embed_max_size=16,
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder(shift_factor=0.1),
        text_encoder=encoders[0],
        tokenizer=components.tokenizer,
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def cubic_rows(small: int, large: int) -> torch.Tensor:
    """The matrix that enlarges one axis by Keys' cubic convolution (a = −0.75), edges repeated."""
    rows = torch.zeros(large, small, dtype=torch.float64)
    for i in range(large):
        x = (i + 0.5) * small / large - 0.5
        for j in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3):
            d, a = abs(x - j), -0.75
            if d <= 1:
                weight = (a + 2) * d**3 - (a + 3) * d**2 + 1
            else:
                weight = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
            rows[i, min(max(j, 0), small - 1)] += weight
    return rows


def slowly(trace, index: int, row: int) -> torch.Tensor:
    """Maps of every token, (tokens, h, w), one layer, head and row of the batch at a time."""
    step, seen = trace[index], {}
    layers = {path: m for path, m in attention_layers(trace.model.denoiser).items() if path.endswith("attn2")}
    handles = [
        module.register_forward_pre_hook(
            lambda m, args, kw, path=path: seen.update({path: (args[0], kw)}), with_kwargs=True
        )
        for path, module in layers.items()
    ]
    with torch.no_grad():
        step.predict(step.sample)
    for handle in handles:
        handle.remove()
    (height, width), maps = step.sample.shape[-2:], []
    for path, module in layers.items():
        hidden, kwargs = seen[path]
        query, key = module.to_q(hidden[row]), module.to_k(kwargs["encoder_hidden_states"][row])
        h, w = height // 2, width // 2
        assert len(query) == h * w
        for own in np.split(np.arange(query.shape[-1]), module.heads):
            masked = 0 if (mask := kwargs.get("attention_mask")) is None else mask[row]
            scores = (query[:, own] @ key[:, own].T / len(own) ** 0.5 + masked).double().exp()
            probabilities = scores / scores.sum(dim=1, keepdim=True)
            small = probabilities.T.reshape(-1, h, w)
            maps.append((cubic_rows(h, height) @ small @ cubic_rows(w, width).T).clamp(min=0))
    return torch.stack(maps).mean(dim=0).detach()


def hooks_of(module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


@pytest.mark.parametrize(("half", "row"), [("conditional", 1), ("unconditional", 0)])
def test_word_maps_are_the_definition(recorded, half, row):
    trace = recorded[0]
    text, told = (PROMPT, TOLD) if half == "conditional" else ("a black cross", "a,black,cross")
    found, prompt = Words(half=half)(trace, [0, 2]), read(trace.model.pipeline.tokenizer, text)
    assert ",".join(found.token.values) == told
    for index in (0, 2):
        expected = slowly(trace, index, row)
        for label in found.token.values:
            here = expected[list(prompt.positions(label))].mean(dim=0)
            np.testing.assert_allclose(found.saliency.sel(step=index, token=label), here, atol=1e-5)
            assert here.max() - here.min() > 1e-5


def test_attention_is_shared_out_among_all_tokens():
    """On the layer's own grid a place's shares sum to one; enlarged, to at least one, as what was negative is 0."""
    torch.manual_seed(0)
    probabilities = torch.randn(2, 3, 24, 7).softmax(dim=-1)
    own, larger = (enlarged(probabilities, shape, (6, 4)) / 3 for shape in ((6, 4), (12, 8)))
    torch.testing.assert_close(own.sum(dim=1), torch.ones(2, 6, 4))
    torch.testing.assert_close(own[1, 5], probabilities[1, :, :, 5].mean(dim=0).reshape(6, 4))
    assert larger.min() >= 0 and (larger.sum(dim=1) > 1 - 1e-5).all()


@pytest.mark.parametrize("surroundings", ["autocast", "default dtype"])
def test_heads_are_enlarged_in_float32_whatever_is_around(surroundings):
    """Oracle: torch's own cubic interpolation of each head, clamped, in float32."""
    probabilities = (3 * torch.randn(1, 3, 24, 5, generator=torch.Generator().manual_seed(0))).softmax(dim=-1)
    maps = probabilities[0].mT.reshape(3, 5, 6, 4)
    expected = torch.nn.functional.interpolate(maps, size=[12, 8], mode="bicubic").clamp(min=0).sum(dim=0)
    cubic_weights.cache_clear()
    if surroundings == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = enlarged(probabilities, (12, 8), (6, 4))
    else:
        torch.set_default_dtype(torch.float64)
        try:
            found = enlarged(probabilities, (12, 8), (6, 4))
        finally:
            torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[0], expected, atol=1e-6, rtol=0)


def test_recording_and_replay_agree(recorded):
    trace, heard, negative = recorded
    for ours, half in ((heard, "conditional"), (negative, "unconditional")):
        replayed, kept = Words(half=half)(trace), ours.maps(trace)
        xr.testing.assert_allclose(kept, replayed, atol=1e-5, rtol=0)
        assert replayed.attrs.pop("engine") == "direct"  # what was heard asked none
        assert kept.attrs == replayed.attrs and kept.sizes["step"] == 3 and kept.sizes["y"] == 12
    assert "cross" in negative.maps(trace, [1]).token.values


def test_one_map_of_each_token_is_kept_for_a_step(recorded):
    """Whatever the number of layers: float32, (tokens, h, w) of the half that is asked for.

    Tokens that are words in one of the texts: the longer one's.
    """
    trace, heard, negative = recorded
    texts = [read(trace.model.pipeline.tokenizer, text) for text in (PROMPT, "a black cross")]
    tokens = max(sum(len(word.positions) for word in text.words) for text in texts)
    assert heard.nbytes == negative.nbytes == len(trace) * tokens * 12 * 8 * 4


@pytest.mark.parametrize("half", ["conditional", "unconditional"])
def test_the_half_that_is_asked_for_is_kept_of_every_picture(model, half):
    with Words(half=half).recording(model) as heard:
        trace = model.trace(PROMPT, **CALL | {"num_images_per_prompt": 2})
    kept = [[mean is not None for mean in call.means] for _, calls in heard.recorded.steps for call in calls]
    assert kept == [[half == "unconditional"] * 2 + [half == "conditional"] * 2] * len(trace)
    for number in (0, 1):
        picture = trace.picture(number)
        xr.testing.assert_allclose(heard.maps(picture), Words(half=half)(picture), atol=1e-6, rtol=0)


def test_a_half_that_was_let_go_of_is_refused_with_the_cure(model, monkeypatch):
    """As with a guidance scale below 0, where the prompt's row counts as the negative prompt's does elsewhere."""

    def turned(counts, conditional):
        return of_the_other_half(counts, not conditional)

    monkeypatch.setattr(recorded_words, "of_the_other_half", turned)
    with Words().recording(model) as heard:
        trace = model.trace(PROMPT, **CALL)
    assert 'Words(half="conditional")(trace)' in refusal(heard.maps, trace, kind=ModelError)


def test_the_picture_is_the_same(model, recorded):
    call = dict(negative_prompt="a black cross", num_inference_steps=3, height=48, width=32, output_type="np")
    plain = model.pipeline(PROMPT, generator=torch.Generator().manual_seed(1), **call)
    with Words().recording(model):
        heard = model.pipeline(PROMPT, generator=torch.Generator().manual_seed(1), **call)
    assert (plain.images == heard.images).all()
    assert torch.equal(recorded[0][-1].prev_sample, model.trace(PROMPT, seed=1, **call)[-1].prev_sample)


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ZeroDivisionError])
def test_nothing_stays_behind(model, recorded, failure):
    def stop(*_):
        raise failure

    def untouched():
        return hooks_of(model.denoiser) == 0 and "step" not in vars(model.pipeline.scheduler)

    assert untouched()
    with pytest.raises(failure), Words().recording(model):
        model.pipeline(PROMPT, num_inference_steps=2, callback_on_step_end=stop)
    assert untouched()
    with pytest.raises(Interrupted if failure is KeyboardInterrupt else failure):
        Words()(recorded[0], advance=stop)
    assert untouched()


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_each_picture_of_a_batch_has_its_own_words(model, guidance):
    prompts = ["a red circle", "a small blue square"]
    with Words().recording(model) as heard:
        trace = model.trace(
            prompts, num_images_per_prompt=2, seed=2, num_inference_steps=2, guidance_scale=guidance, output_type="np"
        )
    for index, prompt in enumerate(prompts):
        one = trace.picture(2 * index + 1)
        kept, replayed = heard.maps(one), Words()(one)
        assert " ".join(kept.token.values) == prompt
        xr.testing.assert_allclose(kept, replayed, atol=1e-5, rtol=0)
        expected = slowly(one, 1, row=-1)[1:4].numpy()
        np.testing.assert_allclose(replayed.saliency.sel(step=1)[:3], expected, atol=1e-5)
    assert trace.picture(3).picture(0).call["picture"] == 3
    assert "trace.picture(0)" in refusal(Words(), trace)
    assert "not what was listened to" in refusal(heard.maps, model.trace(prompts[0], seed=2, num_inference_steps=2))


def test_pieces_phrases_and_repeated_words(recorded):
    """The bundled tokenizer spells a zebra in five pieces."""
    trace, heard, _ = recorded
    maps = Words()(trace, [1])
    assert maps.pieces.sel(token="zebra") == 5 and maps.position.sel(token="a (2)") == 6
    pieces = heard.tokens(trace, 1)[8:13].mean(dim=0)
    np.testing.assert_allclose(maps.saliency.sel(step=1, token="zebra"), pieces, atol=1e-6)
    phrases = Words(phrases=("Red Circle", "blue zebra", "a (2)"))(trace, [1])
    assert ",".join(phrases.token.values) == "Red Circle,blue zebra,a (2)"
    np.testing.assert_allclose(phrases.saliency.sel(token="a (2)"), maps.saliency.sel(token="a (2)"), atol=1e-7)
    mean = maps.saliency.sel(token=["red", "circle"]).mean("token")
    np.testing.assert_allclose(phrases.saliency.sel(token="Red Circle"), mean, atol=1e-6)
    weighed = (maps.saliency.sel(token="blue") + 5 * maps.saliency.sel(token="zebra")) / 6
    np.testing.assert_allclose(phrases.saliency.sel(token="blue zebra"), weighed, atol=1e-6)


def test_special_tokens_come_last(recorded):
    trace, heard, _ = recorded
    maps = Words(phrases=("circle",), special_tokens=True)(trace, [1])
    assert list(maps.token.values) == ["circle", "<|startoftext|>", "<|endoftext|>", "<padding>"]
    with Words(special_tokens=True).recording(trace.model) as whole:
        again = trace.model.trace(PROMPT, **CALL)
    tokens = whole.tokens(again, 1)
    ends, padding = tokens[[0, 16]], tokens[17:].mean(dim=0)
    np.testing.assert_allclose(maps.saliency.sel(step=1)[1:3], ends, atol=1e-6)
    np.testing.assert_allclose(maps.saliency.sel(step=1, token="<padding>"), padding, atol=1e-6)
    assert maps.pieces.sel(token="<padding>") == 15
    own, words = heard.tokens(trace, 1), slice(1, 16)
    np.testing.assert_allclose(own[words], tokens[words], atol=1e-6)
    assert own[[0, *range(16, 32)]].isnan().all(), "what was not kept is not made up"


@pytest.mark.parametrize("choice", ["heads", "layers"])
def test_the_mean_over_parts_is_the_whole(recorded, choice):
    trace = recorded[0]
    layers = [path for path in attention_layers(trace.model.denoiser) if path.endswith("attn2")]
    parts = [Words(**{choice: (part,)})(trace, [1]) for part in (range(4) if choice == "heads" else layers)]
    assert len(parts) >= 4 and float(abs(parts[0].saliency - parts[1].saliency).max()) > 1e-4
    mean = sum(part.saliency for part in parts) / len(parts)
    xr.testing.assert_allclose(mean, Words()(trace, [1]).saliency, atol=1e-6)


def test_patterns_choose_layers(recorded):
    trace = recorded[0]
    up = [path for path in attention_layers(trace.model.denoiser) if path.startswith("up") and path.endswith("attn2")]
    chosen, named = Words(layers=("up_blocks.**",))(trace, [0]), Words(layers=tuple(up))(trace, [0])
    xr.testing.assert_equal(chosen.saliency, named.saliency)


def test_a_layer_is_gone_once_it_was_heard():
    """Two layers of other sizes and numbers of heads: every head counts alike."""
    torch.manual_seed(0)
    first, second = torch.rand(2, 3, 16, 5), torch.rand(2, 1, 4, 5)
    found = LayerMean((4, 4), numbers=[2, 4])
    for name, probabilities, grid in (("first", first, (4, 4)), ("second", second, (2, 2))):
        call = AttentionCall(name, True, taken=probabilities)
        places = tuple(range(probabilities.shape[2]))
        found.hear(Attended(call, (1,), {number: [number] for number in range(5)}, places, grid))
    expected = (enlarged(first, (4, 4), (4, 4)) + enlarged(second, (4, 4), (2, 2)))[1, [2, 4]] / 4
    torch.testing.assert_close(found.mean(), expected)


def test_a_transformer_with_cross_attention_has_word_maps(model):
    pixels = denoscope.load(pixart(model.pipeline))
    pixels.pipeline.set_progress_bar_config(disable=True)
    call = dict(height=32, width=32, use_resolution_binning=False, clean_caption=False, num_inference_steps=2)
    with Words().recording(pixels) as heard:
        trace = pixels.trace("a red circle", seed=0, **call)
    maps = Words()(trace)
    xr.testing.assert_allclose(heard.maps(trace), maps, atol=1e-5, rtol=0)
    np.testing.assert_allclose(maps.saliency.sel(step=1), slowly(trace, 1, row=1)[1:4], atol=1e-5)


# Refusals


def test_words_that_are_not_there_are_refused(recorded):
    trace = recorded[0]
    assert 'Did you mean "circle"?' in refusal(Words(phrases=("circel",)), trace)
    assert "is not in the prompt" in refusal(Words(phrases=("red zebra",)), trace)
    assert "is not in the prompt" in refusal(Words(phrases=("red circle (2)",)), trace)


@pytest.mark.filterwarnings("ignore:The prompt is longer")
def test_a_phrase_that_was_cut_off_says_so(model):
    trace = model.trace(LONG, seed=0, num_inference_steps=1)
    assert "was cut off" in refusal(Words(phrases=("a square",)), trace)
    assert list(Words(phrases=("circle",))(trace).token.values) == ["circle"]
    assert "square" not in Words()(trace).token.values


def test_options_that_cannot_be_are_refused(recorded):
    trace = recorded[0]
    assert 'Did you mean "conditional"?' in refusal(Words, half="conditonal")
    for wrong in (dict(phrases="red circle"), dict(phrases=()), dict(heads=(1, 1)), dict(heads=(-1,))):
        refusal(Words, **wrong)
    assert "heads are 0 to 3" in refusal(Words(heads=(4,)), trace, [0])
    assert "mid_block.attentions.0" in refusal(Words(layers=("mid_block.attention.0",)), trace)
    assert "self-attention" in refusal(Words(layers=("**.attn1",)), trace, [0], kind=ModelError)
    assert "Words()(trace, steps=[0])" in refusal(Words().explain, trace[0], print)


def test_an_unconditional_half_needs_guidance_and_a_text(model):
    with_guidance, without = (model.trace(PROMPT, seed=1, num_inference_steps=1, guidance_scale=w) for w in (5, 1))
    assert "has no words" in refusal(Words(half="unconditional"), with_guidance)
    assert "without guidance" in refusal(Words(half="unconditional", special_tokens=True), without)
    ends = Words(half="unconditional", special_tokens=True)(with_guidance)
    assert list(ends.token.values) == ["<|startoftext|>", "<|endoftext|>", "<padding>"]


def test_models_without_words_are_refused(model):
    pixels = denoscope.load(PIPELINES["ddpm"]())
    pixels.pipeline.set_progress_bar_config(disable=True)
    trace = pixels.trace(seed=0, num_inference_steps=1)
    assert "takes no prompt" in refusal(Words(), trace, kind=ModelError)
    with pytest.raises(ModelError, match="takes no prompt"), Words().recording(pixels):
        pass
    embedded = model.trace(prompt_embeds=torch.zeros(1, 32, 32), guidance_scale=1, seed=0, num_inference_steps=1)
    assert "prompt_embeds" in refusal(Words(), embedded)
    assert "frames were given" in refusal(Words(), [])


# Region → words


@pytest.fixture
def quadrants():
    """ "red" attends to the upper left, "blue" to the right half, "a" everywhere; at step 5 red has moved down."""
    red, blue, even = np.zeros((2, 4, 8)), np.zeros((2, 4, 8)), np.full((2, 4, 8), 0.5)
    red[0, :2, :4], red[1, 2:, :4], blue[:, :, 4:] = 0.2, 0.2, 0.4
    saliency = (("step", "token", "y", "x"), np.stack([even, red, blue], axis=1))
    coords = {"step": [2, 5], "token": ["a", "red", "blue"]}
    return xr.Dataset({"saliency": saliency}, coords, {"picture_size": (32, 64)})


def test_regions_know_their_words(quadrants):
    upper_left = words_at(quadrants, box=(0, 0, 32, 16), steps=[2])
    assert list(upper_left.token.values) == ["red", "a", "blue"]
    np.testing.assert_allclose(upper_left.share, [1, 0.25, 0])
    np.testing.assert_allclose(upper_left.enrichment, [4, 1, 0])
    np.testing.assert_allclose(upper_left["mean"], [0.2, 0.5, 0])
    both = words_at(quadrants, box=(0, 0, 32, 16))
    np.testing.assert_allclose(both.sel(token="red").share, 0.5)
    assert list(words_at(quadrants, box=(32, 0, 64, 32)).token.values) == ["blue", "a", "red"]


def test_a_box_may_cut_cells(quadrants):
    """A quarter of one cell of 8 × 8 pixels, inside the red."""
    found = words_at(quadrants, box=(4, 4, 8, 8), steps=[2])
    np.testing.assert_allclose(found.sel(token="red").share, 1 / 32)
    np.testing.assert_allclose(found.sel(token="red").enrichment, 4)
    np.testing.assert_allclose(found.attrs["area"], 1 / 128)


def test_a_mask_says_what_its_box_says(quadrants):
    large, small = np.zeros((32, 64), bool), np.zeros((4, 8), bool)
    large[:16, :32] = small[:2, :4] = True
    expected = words_at(quadrants, box=(0, 0, 32, 16))
    xr.testing.assert_allclose(words_at(quadrants, mask=large), expected)
    xr.testing.assert_allclose(words_at(quadrants, mask=small), expected)


def test_a_word_that_attends_nowhere_comes_last(quadrants):
    quadrants["saliency"].loc[dict(token="red")] = 0
    assert words_at(quadrants, box=(0, 0, 9, 9)).token.values[-1] == "red"


@pytest.mark.parametrize(
    ("region", "why"),
    [
        (dict(box=(0, 0, 65, 10)), "outside the picture of 64 × 32 pixels"),
        (dict(box=(8, 0, 8, 10)), "empty or outside"),
        (dict(box=(float("nan"), 0, 8, 10)), "empty or outside"),
        (dict(box=(0, 0, 8)), "four numbers"),
        (dict(mask=np.zeros((32, 64), bool)), "empty"),
        (dict(mask=np.ones((64, 64), bool)), r"shape (64, 64)"),
        (dict(mask=np.ones((32, 64))), "boolean"),
        (dict(), "either a box or a mask"),
        (dict(box=(0, 0, 8, 8), steps=[3]), "step 3 has no word maps"),
        (dict(box=(0, 0, 8, 8), steps=[]), "No step"),
    ],
)
def test_regions_that_are_none_are_refused(quadrants, region, why):
    assert why in refusal(words_at, quadrants, **region)


def test_other_maps_have_no_words(quadrants):
    assert "Words()(trace)" in refusal(words_at, quadrants.isel(token=0, drop=True), box=(0, 0, 8, 8))


def test_words_of_the_bundled_model_find_their_things():
    """The picture shows the red circle at the lower left and the blue square at the right."""
    bundled = denoscope.load("shapes")
    bundled.pipeline.set_progress_bar_config(disable=True)
    prompt = "a small plain red circle left of a large striped blue square on a white background"
    with Words(phrases=("red circle", "blue square")).recording(bundled) as heard:
        trace = bundled.trace(prompt, seed=3, num_inference_steps=12, guidance_scale=3.0)
    maps = heard.maps(trace)
    left, right = words_at(maps, box=(14, 42, 34, 62), steps=[6]), words_at(maps, box=(34, 26, 62, 54), steps=[6])
    assert left.token.values[0] == "red circle" and right.token.values[0] == "blue square"


# What recording costs.


def test_recording_calls_the_denoiser_as_often_as_the_pipeline_does(model):
    """The places are seen in the first call; the words are found without another."""
    unet, count = model.denoiser, 0
    forward = unet.forward

    def counted(*args, **kwargs):
        nonlocal count
        count += 1
        return forward(*args, **kwargs)

    unet.forward = counted
    try:
        with Words().recording(model) as heard:
            trace = model.trace(PROMPT, **CALL)
        heard.maps(trace)
    finally:
        del unet.forward
    assert count == CALL["num_inference_steps"]


def test_a_layer_that_cannot_be_heard_does_not_end_the_call(model):
    """Its processor computes attention by itself; the maps are refused when they are asked for."""

    class Own:
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **kwargs):
            return hidden_states

    name, layer = next((n, m) for n, m in model.denoiser.named_modules() if n.endswith("attn2"))
    before = layer.processor
    layer.processor = Own()
    try:
        with Words().recording(model) as heard:
            trace = model.trace(PROMPT, **CALL)
    finally:
        layer.processor = before
    assert f"the layer {name} works in a way of its own" in refusal(heard.maps, trace, kind=ModelError)
