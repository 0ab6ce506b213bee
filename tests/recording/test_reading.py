"""Where each word of a run's text lies in the denoiser: stated, and found by pictures with one other word.

The ground truth replaces a word of the prompt by another of as many tokens, in a pipeline whose text encoders hand on
nothing from token to token. The positions of `encoder_hidden_states` that change are the word's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import small
import torch
from families.every import FAMILIES
from small import refusal

import denoscope
from denoscope import Words
from denoscope.errors import ModelError
from denoscope.recording.hooks.listened import listening_to_tokenizers, tokenizers_of
from denoscope.recording.listening import reading_of
from denoscope.recording.prompts import split_words
from denoscope.recording.reading import Reading

pytestmark = pytest.mark.filterwarnings("ignore::denoscope.recording.models.TruncatedPromptWarning")
PROMPT, OTHER = "a red circle", "a small blue square"
WIDE, SMALL = {"height": 32, "width": 48}, small.SMALL
MIXING = (".o", ".o_proj", ".out_proj", ".to_out")
"""The ends of the names of the layers by which tokens of an encoder learn of each other."""


def unmixed(pipeline: Any) -> Any:
    """The pipeline with encoders whose attention hands on zeros, so that a token changes its own vector alone."""
    for part in pipeline.components.values():
        if hasattr(part, "get_input_embeddings"):
            layers = [module for name, module in part.named_modules() if name.endswith(MIXING)]
            assert layers
            for weight in (weight for layer in layers for weight in layer.parameters()):
                weight.data.zero_()
    return pipeline


def texts_of(pipeline: Any, call: Mapping[str, Any]) -> list[torch.Tensor]:
    """The text that the denoiser is passed in each of its calls at the first step, (rows, tokens, features)."""
    denoiser, heard = getattr(pipeline, "unet", None) or pipeline.transformer, []
    handle = denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: heard.append(kwargs["encoder_hidden_states"].detach().clone()), with_kwargs=True
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline(**{**call, "num_inference_steps": 2}, generator=torch.Generator().manual_seed(0), output_type="latent")
    handle.remove()
    return heard


def changed_positions(
    build: Callable[[], Any], call: Mapping[str, Any], other: Mapping[str, Any], ordinal: int = 0
) -> tuple[set[int], tuple[int, ...]]:
    """The rows and the positions of the text that change in a call of the denoiser with other arguments."""
    pipeline = unmixed(build())
    before, now = (texts_of(pipeline, arguments)[ordinal] for arguments in (call, {**call, **other}))
    differ = (before - now).abs().amax(dim=-1) > 1e-4
    return set(differ.any(1).nonzero().flatten().tolist()), tuple(differ.any(0).nonzero().flatten().tolist())


def trace_of(pipeline: Any, call: Mapping[str, Any], picture: int | None = None) -> denoscope.Trace:
    trace = denoscope.load(pipeline).trace(**{**call, "num_inference_steps": 2}, seed=1)
    return trace if picture is None else trace.picture(picture)


def read(pipeline: Any, call: Mapping[str, Any], half: str = "conditional", text: str | None = None) -> Reading:
    return reading_of(trace_of(pipeline, call)[0], half, text)


def positions_of(reading: Reading) -> dict[str, tuple[int, ...]]:
    return {word.label: word.positions for word in reading.prompt.words}


@dataclass(frozen=True)
class Case:
    """A pipeline, its call, the positions of its words, and of a word those that change with `other` arguments."""

    build: Callable[[], Any]
    call: Mapping[str, Any]
    words: Mapping[str, tuple[int, ...]]
    word: str
    other: Mapping[str, Any]
    rows: tuple[int, ...]
    special: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    half: str = "conditional"
    ordinal: int = 0


def family(name: str, **changes: Any) -> tuple[Callable[[], Any], dict[str, Any]]:
    """A family's pipeline and call, with other arguments."""
    return FAMILIES[name].build, {**FAMILIES[name].call(), **changes}


FIRST = {"a": (1,), "red": (2,), "circle": (3,)}
AGAINST = {"a": (1,), "small": (2,), "blue": (3,), "square": (4,)}
BOTH = {"prompt": PROMPT, "negative_prompt": OTHER}
SD = small.stable_diffusion
BLUE = {"prompt": "a blue circle"}
SD3 = {"max_sequence_length": 16, **SMALL}
FLUX = {"max_sequence_length": 16, **WIDE}
PIXART = {name: value for name, value in small.FAMILIES["pixart"][1].items() if name != "prompt"}
LARGE, BLUER = "a large red circle", {"prompt": "a large blue circle"}
GREEN = {"negative_prompt": "a small green square"}


def fourth(start: int) -> dict[str, tuple[int, ...]]:
    """The words of "a large red circle" from a position on."""
    return {word: (start + i,) for i, word in enumerate(LARGE.split())}


ENHANCE = ['Given a user prompt, generate an "Enhanced prompt" that', "User Prompt: a red circle", "User Prompt:"]
CASES = {
    "stable diffusion": Case(
        SD,
        BOTH,
        FIRST,
        "red",
        BLUE,
        (1,),
        {"<|startoftext|>": (0,), "<|endoftext|>": (4,), "<padding>": tuple(range(5, 32))},
    ),
    "negative prompt": Case(SD, BOTH, AGAINST, "blue", GREEN, (0,), half="unconditional"),
    "prompt equal to negative prompt": Case(SD, {**BOTH, "negative_prompt": PROMPT}, FIRST, "red", BLUE, (1,)),
    "negative prompt equal to prompt": Case(
        SD,
        {**BOTH, "negative_prompt": PROMPT},
        FIRST,
        "red",
        {"negative_prompt": "a blue circle"},
        (0,),
        half="unconditional",
    ),
    "no guidance": Case(SD, {"prompt": PROMPT, "guidance_scale": 1.0}, FIRST, "red", BLUE, (0,)),
    "both words that stand in for others": Case(
        SD,
        {"prompt": "a zebra on the moon, red"},
        {"a": (1,), "zebra": (2, 3, 4, 5, 6), "on": (7,), "the": (8,), "moon": (9, 10, 11), ",": (12,), "red": (13,)},
        "red",
        {"prompt": "a zebra on the moon, blue"},
        (1,),
    ),
    "repeated words": Case(
        SD,
        {"prompt": "a red circle above a red circle"},
        {**FIRST, "above": (4,), "a (2)": (5,), "red (2)": (6,), "circle (2)": (7,)},
        "red (2)",
        {"prompt": "a red circle above a blue circle"},
        (1,),
    ),
    "reversed halves": Case(
        *family("sd-instruct-pix2pix", prompt=PROMPT, negative_prompt=OTHER), FIRST, "red", BLUE, (0,)
    ),
    "reversed halves, negative": Case(
        *family("sd-instruct-pix2pix", prompt=PROMPT, negative_prompt=OTHER),
        AGAINST,
        "blue",
        GREEN,
        (1,),
        half="unconditional",
    ),
    "sdxl, first text": Case(
        small.sdxl,
        {"prompt": PROMPT, "prompt_2": OTHER, **SMALL},
        {**FIRST, "a (2)": (1,), "small": (2,), "blue": (3,), "square": (4,)},
        "red",
        BLUE,
        (1,),
    ),
    "sdxl, second text": Case(
        small.sdxl,
        {"prompt": PROMPT, "prompt_2": OTHER, **SMALL},
        {**FIRST, "a (2)": (1,), "small": (2,), "blue": (3,), "square": (4,)},
        "blue",
        {"prompt_2": "a small green square"},
        (1,),
    ),
    "sd3": Case(
        small.stable_diffusion_3,
        {"prompt": PROMPT, **SD3},
        {"a": (1, 32), "red": (2, 33), "circle": (3, 34)},
        "red",
        BLUE,
        (1,),
        {"</s>": (35,)},
    ),
    "sd3, three texts": Case(
        small.stable_diffusion_3,
        {"prompt": PROMPT, "prompt_2": "blue square", "prompt_3": "a small green circle above", **SD3},
        {
            **FIRST, "blue": (1,), "square": (2,),
            "a (2)": (32,), "small": (33,), "green": (34,), "circle (2)": (35,), "above": (36,),
        },
        "green",
        {"prompt_3": "a small yellow circle above"},
        (1,),
    ),
    "flux": Case(
        small.flux,
        {"prompt": PROMPT, **FLUX},
        {"a": (0,), "red": (1,), "circle": (2,)},
        "red",
        BLUE,
        (0,),
        {"</s>": (3,), "<padding>": tuple(range(4, 16))},
    ),
    "flux, longer": Case(
        small.flux,
        {"prompt": PROMPT, **FLUX, "max_sequence_length": 32},
        {"a": (0,), "red": (1,), "circle": (2,)},
        "red",
        BLUE,
        (0,),
        {"</s>": (3,), "<padding>": tuple(range(4, 32))},
    ),
    "flux, second text": Case(
        small.flux,
        {"prompt": PROMPT, "prompt_2": OTHER, **FLUX},
        {"a": (0,), "small": (1,), "blue": (2,), "square": (3,)},
        "blue",
        {"prompt_2": "a small green square"},
        (0,),
    ),
    "pixart's lower case": Case(
        small.pixart,
        {"prompt": " A Red Circle ", **PIXART},
        {"a": (0,), "red": (1,), "circle": (2,)},
        "red",
        {"prompt": "A Blue Circle"},
        (1,),
    ),
    "qwen-image": Case(*family("qwen-image"), fourth(0), "red", BLUER, (0,), {"<instruction>": (4, 5, 6, 7, 8)}),
    "qwen-image, negative": Case(
        *family("qwen-image"),
        {"a": (0,), "small": (1,), "blue": (2,), "square": (3,)},
        "blue",
        GREEN,
        (0,),
        half="unconditional",
        ordinal=1,
    ),
    "hunyuan-video": Case(*family("hunyuan-video"), fourth(0), "red", BLUER, (0,), {"<instruction>": (4,)}),
    "lumina-2": Case(
        *family("lumina-2"), fourth(31), "red", BLUER, (0,), {"<bos>": (0,), "<instruction>": tuple(range(1, 31))}
    ),
    "lumina-2, negative has no instruction": Case(
        *family("lumina-2"), AGAINST, "blue", GREEN, (0,), half="unconditional", ordinal=1
    ),
    "sana, instructed": Case(
        *family("sana", complex_human_instruction=ENHANCE, max_sequence_length=32),
        fourth(2),
        "red",
        BLUER,
        (1,),
        {"<bos>": (0,), "<instruction>": (1,)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_word_lies_where_the_text_changes_with_it(name):
    case = CASES[name]
    rows, positions = changed_positions(case.build, case.call, case.other, case.ordinal)
    assert rows.issuperset(case.rows) and positions == case.words[case.word]  # InstructPix2Pix has two negative rows
    reading = read(case.build(), case.call, case.half)
    assert positions_of(reading) == case.words
    assert (reading.rows, reading.ordinal) == (case.rows, case.ordinal)
    assert {name: reading.prompt.special[name] for name in case.special} == case.special


# Texts of several encoders.


def test_texts_that_share_positions_are_named():
    two = {"prompt": PROMPT, "prompt_2": OTHER, **SMALL}
    assert read(small.sdxl(), two).mixed == (PROMPT, OTHER)
    assert read(small.sdxl(), {**two, "prompt_2": PROMPT}).mixed == ()
    assert read(small.flux(), {**two, **FLUX}).mixed == ()  # the first text is read as one vector only
    against = {"negative_prompt": "green", "negative_prompt_2": "yellow square"}
    reading = read(small.sdxl(), {**two, **against}, "unconditional")
    assert positions_of(reading) == {"green": (1,), "yellow": (1,), "square": (2,)}


def test_zeros_in_the_place_of_a_negative_prompt_are_no_text():
    trace = trace_of(small.sdxl(), {"prompt": PROMPT, **SMALL})
    assert "reads zeros in the place of a negative prompt" in refusal(reading_of, trace[0], "unconditional")


# Lengths.


@pytest.mark.parametrize(
    ("text", "words", "cut"),
    [
        ("red " * 29 + "circle", 30, ()),
        ("red " * 30 + "circle", 30, ("circle",)),
        ("red " * 29 + "zebra", 29, ("zebra",)),  # its first token of five is read
        ("red circle above " * 50, 30, ("red", "circle", "above") * 40),
        ("", 0, ()),
        ("  ", 0, ()),
    ],
    ids=["the limit", "one above", "a word cut in the middle", "150 words", "empty", "blanks"],
)
def test_words_that_do_not_fit_are_cut(text, words, cut):
    prompt = read(SD(), {"prompt": text}).prompt
    assert [word.positions for word in prompt.words] == [(i,) for i in range(1, words + 1)]
    assert prompt.cut == cut and prompt.length == 32
    assert prompt.special["<|endoftext|>"] == (31,) if len(text) > 100 else (1,)
    assert prompt.special.get("<padding>", ()) == (() if len(text) > 100 else tuple(range(2, 32)))


def test_the_last_word_of_the_limit_is_read_and_the_next_is_not():
    for count, positions in ((29, (30,)), (30, ())):
        texts = ["red " * count + last for last in ("circle", "square")]
        assert changed_positions(SD, {"prompt": texts[0]}, {"prompt": texts[1]})[1] == positions


def test_a_word_behind_the_end_of_clip_is_read_through_t5_alone():
    texts = ["red " * 31 + f"{word} above" for word in ("circle", "square")]
    call = {**SD3, "prompt": texts[0], "max_sequence_length": 48}
    assert changed_positions(small.stable_diffusion_3, call, {"prompt": texts[1]})[1] == (63,)
    words = positions_of(read(small.stable_diffusion_3(), call))
    assert words["circle"] == (63,) and words["above"] == (64,)
    assert words["red (30)"] == (30, 61) and words["red (31)"] == (62,)
    short = read(small.stable_diffusion_3(), {**call, "max_sequence_length": 16}).prompt
    assert short.cut == ("red", "circle", "above")
    assert (short.words[14].positions, short.words[15].positions) == ((15, 46), (16,))


def test_an_empty_prompt_of_t5():
    prompt = read(small.flux(), {"prompt": "", **FLUX}).prompt
    assert (prompt.words, prompt.special) == ((), {"</s>": (0,), "<padding>": tuple(range(1, 16))})


# Learned tokens.


def learned(vectors: int, token: str = "<cat-toy>") -> Any:
    """Stable Diffusion with a token of textual inversion."""
    pipeline = SD()
    torch.manual_seed(3)
    pipeline.load_textual_inversion(torch.randn(vectors, 32), token=token)
    return pipeline


@pytest.mark.parametrize("vectors", [1, 3])
def test_learned_tokens_are_one_word(vectors):
    own = tuple(range(2, 2 + vectors))
    text, other = "a {} red circle", " ".join(["blue", "green", "small"][:vectors])
    calls = [{"prompt": text.format(word)} for word in ("<cat-toy>", other)]
    assert changed_positions(lambda: learned(vectors), *calls)[1] == own
    reading = read(learned(vectors), calls[0])
    assert positions_of(reading) == {"a": (1,), "<cat-toy>": own, "red": (2 + vectors,), "circle": (3 + vectors,)}
    negative = {"prompt": PROMPT, "negative_prompt": text.format("<cat-toy>")}
    assert positions_of(read(learned(vectors), negative, "unconditional")) == positions_of(reading)


def test_learned_tokens_that_look_like_words():
    words = positions_of(read(learned(2, "cattoy"), {"prompt": "a cattoy red cattoy"}))
    assert words == {"a": (1,), "cattoy": (2, 3), "red": (4,), "cattoy (2)": (5, 6)}


def test_learned_tokens_in_a_tokenizer_that_is_extended_by_hand():
    pipeline = SD()
    pipeline.tokenizer.add_tokens(["<cat-toy>", "<cat-toy>_1", "<cat-toy>_2"])
    pipeline.text_encoder.resize_token_embeddings(len(pipeline.tokenizer), mean_resizing=False)
    words = positions_of(read(pipeline, {"prompt": "a <cat-toy> red circle"}))
    assert words == {"a": (1,), "<cat-toy>": (2, 3, 4), "red": (5,), "circle": (6,)}


def test_maps_of_learned_tokens_are_those_of_their_positions():
    model = denoscope.load(learned(3))
    with Words(phrases=("<cat-toy>", "red")).recording(model) as heard:
        trace = model.trace("a <cat-toy> red circle", seed=1, num_inference_steps=2)
    tokens = heard.tokens(trace, 1).cpu().numpy()
    maps = Words(phrases=("<cat-toy>", "red"))(trace, steps=[1]).saliency.isel(step=0)
    np.testing.assert_allclose(maps.sel(token="<cat-toy>"), tokens[[2, 3, 4]].mean(0), atol=1e-6)
    np.testing.assert_allclose(maps.sel(token="red"), tokens[5], atol=1e-6)
    assert np.abs(tokens[5] - tokens[3]).max() > 1e-4


# Several pictures.


@pytest.mark.parametrize(
    ("picture", "row", "words", "negative"),
    [
        (0, 4, FIRST, {"green": (1,)}),
        (2, 6, AGAINST, {"yellow": (1,), "square": (2,)}),
    ],
)
def test_each_picture_of_several_has_its_own_prompt(picture, row, words, negative):
    texts = {"prompt": [PROMPT, OTHER], "negative_prompt": ["green", "yellow square"]}
    step = trace_of(SD(), {**texts, "num_images_per_prompt": 2}, picture)[0]
    reading, against = reading_of(step), reading_of(step, "unconditional")
    assert (reading.rows, reading.total, positions_of(reading)) == ((row,), 8, words)
    assert (against.rows, against.total, positions_of(against)) == ((row - 4,), 8, negative)


def test_rows_of_several_pictures():
    """Ground truth: the rows in which the text changes with the second prompt."""
    call = {"prompt": [PROMPT, OTHER], "num_images_per_prompt": 2}
    rows, positions = changed_positions(SD, call, {"prompt": [PROMPT, "a small green square"]})
    assert (rows, positions) == ({6, 7}, (3,))


# Embeddings in the place of prompts.


def with_embeds(
    text: str | list[str] = PROMPT, against: str | list[str] = "", weights: tuple[float, ...] = ()
) -> tuple[Any, dict[str, Any]]:
    """Stable Diffusion, and the arguments by which it is passed a text as numbers."""
    pipeline = SD()
    with torch.no_grad():
        embeds, negative = pipeline.encode_prompt(text, "cpu", 1, True, against)
    scales = torch.ones(embeds.shape[1])
    scales[: len(weights)] = torch.tensor(weights)
    return pipeline, {"prompt_embeds": embeds * scales[:, None], "negative_prompt_embeds": negative}


@pytest.mark.parametrize("weights", [(), (1.0, 1.2, 0.0, 1.3)])
def test_weighted_embeddings_have_the_words_of_their_text(weights):
    pipeline, call = with_embeds(weights=weights)
    reading = read(pipeline, call, text=PROMPT)
    assert (positions_of(reading), reading.rows) == (FIRST, (1,))
    assert reading.prompt.special["<|endoftext|>"] == (4,)
    trace = trace_of(pipeline, call)
    maps = Words(prompt_text=PROMPT)(trace, steps=[0])
    assert list(maps.position.values) == [1, 2, 3]
    if not weights:
        own = Words()(trace_of(SD(), {"prompt": PROMPT}), steps=[0])
        np.testing.assert_allclose(maps.saliency, own.saliency, atol=1e-5)


def test_embeddings_without_their_text_are_refused():
    pipeline, call = with_embeds()
    assert "prompt_text=" in refusal(Words(), trace_of(pipeline, call))


@pytest.mark.parametrize("text", [OTHER, "red circle", "above a red circle", "square", "the red circle above a square"])
def test_another_text_than_that_of_the_embeddings_is_refused(text):
    pipeline, call = with_embeds(weights=(1.0, 1.0, 1.5, 0.4))
    trace = trace_of(pipeline, call)
    assert f'are not of the text "{text}"' in refusal(Words(prompt_text=text), trace)


def test_embeddings_of_a_negative_prompt():
    pipeline, call = with_embeds(against=OTHER)
    reading = read(pipeline, call, "unconditional", OTHER)
    assert (positions_of(reading), reading.rows) == (AGAINST, (0,))
    mixed = {"prompt": PROMPT, "negative_prompt_embeds": call["negative_prompt_embeds"]}
    assert positions_of(read(pipeline, mixed)) == FIRST
    assert positions_of(read(pipeline, mixed, "unconditional", OTHER)) == AGAINST
    trace = trace_of(pipeline, mixed)
    assert "negative_prompt_embeds of this picture are not" in refusal(reading_of, trace[0], "unconditional", PROMPT)
    assert "(negative_prompt_embeds)" in refusal(reading_of, trace[0], "unconditional")
    other = {"prompt_embeds": call["prompt_embeds"], "negative_prompt": OTHER}
    reading = read(pipeline, other, "unconditional")
    assert (positions_of(reading), reading.rows) == (AGAINST, (0,))


def test_embeddings_of_several_pictures():
    pipeline, call = with_embeds([PROMPT, OTHER], ["green", "yellow square"])
    trace = trace_of(pipeline, {**call, "num_images_per_prompt": 2})
    for picture, text, words in ((1, PROMPT, FIRST), (2, OTHER, AGAINST)):
        reading = reading_of(trace.picture(picture)[0], prompt_text=text)
        assert (positions_of(reading), reading.rows) == (words, (4 + picture,))
    assert "are not of the text" in refusal(reading_of, trace.picture(2)[0], "conditional", PROMPT)


def in_two_chunks(text: str) -> tuple[Any, dict[str, Any]]:
    """A text in two chunks of the tokenizer's length, each with a start and an end, as weighting libraries make it."""
    pipeline, call = with_embeds(text)
    words = pipeline.tokenizer
    ids = words(text, add_special_tokens=False).input_ids
    rows = [[words.bos_token_id, *ids[start : start + 30], words.eos_token_id] for start in (0, 30)]
    padded = torch.tensor([row + [words.pad_token_id] * (32 - len(row)) for row in rows])
    with torch.no_grad():
        embeds = pipeline.text_encoder(padded)[0].reshape(1, 64, -1)
    return pipeline, {"prompt_embeds": embeds, "negative_prompt_embeds": call["negative_prompt_embeds"].repeat(1, 2, 1)}


def test_embeddings_of_two_chunks():
    text = "red " * 29 + "circle above square"
    reading = read(*in_two_chunks(text), text=text)
    words = positions_of(reading)
    assert [words[name] for name in ("red", "red (29)", "circle", "above", "square")] == [
        (1,), (29,), (30,), (33,), (34,),
    ]  # fmt: skip
    assert reading.prompt.cut == ()
    assert reading.prompt.special["<|startoftext|>"] == (0, 32)
    assert reading.prompt.special["<|endoftext|>"] == (31, 35)
    short = read(*in_two_chunks(PROMPT), text=PROMPT)
    assert positions_of(short) == FIRST and short.prompt.special["<|endoftext|>"] == (4, 33)
    trace = trace_of(*in_two_chunks("red circle above " * 15))
    for other in ("blue " + "red circle above " * 15, "a small blue square " * 8):
        assert "are not of the text" in refusal(reading_of, trace[0], "conditional", other)


def test_embeddings_lie_where_the_pipeline_reads_their_text():
    """Flux is passed T5's vectors, Stable Diffusion 3 both tokenizers', Lumina 2 an instruction before the prompt."""
    pipeline = small.flux()
    embeds, pooled, _ = pipeline.encode_prompt(PROMPT, None, "cpu", max_sequence_length=24)
    call = {"prompt_embeds": embeds.detach(), "pooled_prompt_embeds": pooled.detach(), **WIDE}
    assert positions_of(read(pipeline, call, text=PROMPT)) == {"a": (0,), "red": (1,), "circle": (2,)}
    assert "are not of the text" in refusal(reading_of, trace_of(pipeline, call)[0], "conditional", OTHER)

    pipeline = small.stable_diffusion_3()
    embeds = pipeline.encode_prompt(PROMPT, None, None, device="cpu", max_sequence_length=16)
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    call = {name: one.detach() for name, one in zip(names, embeds, strict=True)}
    assert positions_of(read(pipeline, {**call, **SMALL}, text=PROMPT)) == CASES["sd3"].words

    build, call = family("lumina-2")
    pipeline = build()
    embeds = pipeline.encode_prompt(call.pop("prompt"), max_sequence_length=64, device="cpu")
    names = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
    call |= {name: one.detach() for name, one in zip(names, embeds, strict=True)}
    del call["negative_prompt"]
    assert positions_of(read(pipeline, call, text=LARGE)) == fourth(31)


def test_embeddings_of_a_pipeline_without_its_text_encoders():
    """The tokenizer alone says where the words lie; two that disagree say nothing."""
    pipeline, call = with_embeds()
    pipeline.text_encoder = None
    assert positions_of(read(pipeline, call, text=PROMPT)) == FIRST
    pipeline = small.flux()
    embeds, pooled, _ = pipeline.encode_prompt(PROMPT, None, "cpu", max_sequence_length=16)
    pipeline.text_encoder = pipeline.text_encoder_2 = None
    call = {"prompt_embeds": embeds.detach(), "pooled_prompt_embeds": pooled.detach(), **WIDE}
    trace = trace_of(pipeline, call)
    assert "not known which of them" in refusal(reading_of, trace[0], "conditional", PROMPT, kind=ModelError)


# Other ways of reading.


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_layers_of_clip_that_are_skipped(clip_skip):
    pipeline = SD()
    if not hasattr(pipeline.text_encoder, "text_model"):
        pytest.skip("this diffusers looks for CLIPTextModel.text_model, which this transformers has no longer")
    assert positions_of(read(pipeline, {"prompt": PROMPT, "clip_skip": clip_skip})) == FIRST


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("赤い 円 circle", ["赤い", "円", "circle"]),
        ("🍎 red 👩‍👩‍👧 circle", ["🍎", "red", "👩‍👩‍👧", "circle"]),
        ("a café crème", ["a", "café", "crème"]),
        ("un cafe\u0301s red", ["un", "cafe\u0301s", "red"]),
        ("लाल हिन्दी", ["लाल", "हिन्दी"]),
        ("می\u200cخواهم red", ["می\u200cخواهم", "red"]),
        ("red ❤\ufe0f", ["red", "❤\ufe0f"]),
    ],
)
def test_words_of_other_scripts_are_whole_and_as_typed(text, words):
    """Oracle: each word has as many tokens as alone, one word behind the other."""
    pipeline = SD()
    assert [word for word, _, _ in split_words(text)] == words
    counts = [len(pipeline.tokenizer(word, add_special_tokens=False).input_ids) for word in words]
    edges = np.cumsum([1, *counts]).tolist()
    expected = {word: tuple(range(edges[i], edges[i + 1])) for i, word in enumerate(words)}
    assert positions_of(read(pipeline, {"prompt": text})) == expected


# The tokenizers.


@pytest.mark.parametrize(
    ("build", "call"),
    [
        (SD, {"prompt": LARGE}),
        (small.stable_diffusion_3, {"prompt": LARGE, **SD3}),
        (small.pixart, {"prompt": LARGE, **PIXART}),
        *(family(name) for name in ("qwen-image", "lumina-2", "hunyuan-video", "z-image")),
        family("sana", complex_human_instruction=ENHANCE, max_sequence_length=32),
    ],
    ids=["sd", "sd3", "pixart", "qwen-image", "lumina-2", "hunyuan-video", "z-image", "sana"],
)
def test_the_tokens_read_are_those_heard(build, call):
    """Ground truth: the numbers that the encoders are passed, decoded one by one."""
    pipeline = build()
    heard: list[tuple[str, torch.Tensor]] = []
    encoders = {name: getattr(pipeline, name) for name in ("text_encoder", "text_encoder_2", "text_encoder_3")
                if isinstance(getattr(pipeline, name, None), torch.nn.Module)}  # fmt: skip
    for name, encoder in encoders.items():
        encoder.register_forward_pre_hook(
            lambda module, args, kwargs, name=name: heard.append((name, kwargs["input_ids"] if not args else args[0])),
            with_kwargs=True,
        )
    reading = read(pipeline, call)
    tokenizers = {name: getattr(pipeline, name.replace("text_encoder", "tokenizer")) for name in encoders}
    for text in reading.texts:
        assert text.call is not None
        assert any(name == text.encoder and torch.equal(ids, text.call.ids) for name, ids in heard)
        words = [
            tokenizers[text.encoder].decode([number]).strip()
            for number, span in zip(text.call.ids[text.row].tolist(), text.spans, strict=True)
            if span is not None
        ]
        assert words == LARGE.split()
        assert [text.text[slice(*span)].strip() for span in text.spans if span is not None] == LARGE.split()


def classes(pipeline: Any) -> list[tuple[type, type, set[str]]]:
    return [(type(one), one.__class__, set(vars(one))) for one in tokenizers_of(pipeline)]


def test_nothing_is_left_on_the_tokenizers(monkeypatch):
    pipeline = small.stable_diffusion_3()
    trace = trace_of(pipeline, {"prompt": PROMPT, **SD3})
    before = classes(pipeline)
    reading_of(trace[0])
    assert classes(pipeline) == before and len(before) == 3

    def interrupted(call: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), listening_to_tokenizers(pipeline, interrupted):
        assert classes(pipeline) != before
        pipeline.tokenizer_2(PROMPT)
    assert classes(pipeline) == before
    monkeypatch.setattr(pipeline.text_encoder_3, "forward", interrupted)
    trace = replace(trace[0], run=replace(trace[0].run, readings={}))
    trace.run.resumption.memory.clear()
    with pytest.raises((KeyboardInterrupt, TypeError)):
        reading_of(trace)
    assert classes(pipeline) == before


def test_a_tokenizer_that_is_listened_to_gives_the_same():
    words, heard = small.tokenizer(), []
    options = {"padding": "max_length", "max_length": 8, "truncation": True, "return_tensors": "pt"}
    ids = words(PROMPT, **options).input_ids
    pipeline = SD()
    with listening_to_tokenizers(pipeline, heard.append):
        assert torch.equal(pipeline.tokenizer([PROMPT], **options).input_ids, ids)
        assert isinstance(pipeline.tokenizer, type(words))
    (call,) = heard
    assert (call.texts, call.ids, call.options) == ((PROMPT,), (tuple(ids[0].tolist()),), options)
