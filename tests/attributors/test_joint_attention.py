"""Word and concept maps of joint and cross-attention against slow definitions, and networks whose truth is built in."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import small
import torch
from families.every import FAMILIES
from torch.nn.functional import interpolate

import denoscope
from denoscope import Concepts, Words
from denoscope.errors import ModelError
from denoscope.evaluation import auroc
from denoscope.recording.listening import Attended, listening, reading_of

WORDS = ("a", "large", "red", "circle")
CONCEPTS = ("circle", "a small blue square")
STEP = 1


@dataclass(frozen=True)
class Form:
    """The order of text and picture in a family's attention, as diffusers' source has it.

    `encoders` are the places of the first word in each encoder's part of the text. `is_plain` is True for samples
    (pictures, channels, h, w). `row` is the prompt's row of the batch.
    """

    text: range
    picture: range
    patches: tuple[int, ...]
    sample: tuple[int, ...]
    encoders: tuple[int, ...]
    row: int = 0
    is_plain: bool = False

    def tokens(self, first: int, count: int = 1) -> list[int]:
        """The text's own places of some words, in every encoder."""
        return [start + first + i for start in self.encoders for i in range(count)]


FORMS = {
    "sd3": Form(range(24, 72), range(24), (4, 6), (8, 12), (1, 32), row=1, is_plain=True),  # CLIP's 32, T5's 16
    "flux": Form(range(16), range(16, 40), (4, 6), (4, 6), (0,)),
    "cogvideo": Form(range(16), range(16, 34), (3, 2, 3), (3, 4, 6), (0,), row=1),
}


def recorded(pipeline: Any, **call: Any) -> Any:
    """A trace of a pipeline without progress bars."""
    pipeline.set_progress_bar_config(disable=True)
    return denoscope.load(pipeline).trace(seed=1, **call)


@functools.cache
def trace_of(name: str) -> Any:
    """The trace of a small family, made once."""
    return recorded(FAMILIES[name].build(), **FAMILIES[name].call())


@dataclass(frozen=True)
class Heard:
    """One call of the denoiser: its arguments, and the tensors of each attention, (rows, heads, positions, size)."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    queries: list[torch.Tensor] = field(default_factory=list)
    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)
    outputs: list[torch.Tensor] = field(default_factory=list)


def arguments_of(trace: Any, index: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of the denoiser's last call of a step."""
    seen: list[Any] = []
    hook = trace.model.denoiser.register_forward_pre_hook(lambda m, *call: seen.append(call), with_kwargs=True)
    with torch.no_grad():
        trace[index].predict(trace[index].sample)
    hook.remove()
    return seen[-1]


def instead_of_attention(function: Callable[..., torch.Tensor]) -> pytest.MonkeyPatch:
    """Put a function in the place of torch's attention until `undo`; it is passed the query, the key and the value."""
    patch = pytest.MonkeyPatch()

    def own(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensors = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
        assert tensors.get("attn_mask") is None and tensors.get("scale") is None
        return function(tensors["query"], tensors["key"], tensors["value"])

    patch.setattr(torch.nn.functional, "scaled_dot_product_attention", own)
    return patch


def heard_of(trace: Any, index: int) -> Heard:
    """The tensors of all attentions of a step's call, in the order in which they ran."""
    heard = Heard(*arguments_of(trace, index))
    kernel = torch.nn.functional.scaled_dot_product_attention

    def spy(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        output = kernel(query, key, value)
        for tensors, tensor in zip((heard.queries, heard.keys, heard.values), (query, key, value), strict=True):
            tensors.append(tensor.detach())
        heard.outputs.append(output)
        return output

    patch = instead_of_attention(spy)
    with torch.no_grad():
        trace.model.denoiser(*heard.args, **heard.kwargs)
    patch.undo()
    return heard


def softmax(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Shares of attention over the whole sequence, of one head: (queries, size), (keys, size) -> (queries, keys)."""
    scores = (query.double() @ key.double().T / query.shape[-1] ** 0.5).exp()
    return scores / scores.sum(dim=1, keepdim=True)


def larger(values: torch.Tensor, form: Form) -> torch.Tensor:
    """Values of the picture's places as a map of the sample's size, not below 0."""
    maps = values.reshape(form.patches)
    if form.patches == form.sample:
        return maps
    flat = maps.reshape(-1, 1, *form.patches[-2:])
    return interpolate(flat, size=form.sample[-2:], mode="bicubic").clamp(min=0).reshape(form.sample)


def slow_words(heard: Heard, form: Form, columns: Sequence[Sequence[int]]) -> torch.Tensor:
    """The map of one word: the mean over its tokens, each of which lies at some columns of the attention."""
    means = []
    for column in columns:
        maps = []
        for query, key in zip(heard.queries, heard.keys, strict=True):
            for head in range(query.shape[1]):
                shares = softmax(query[form.row, head], key[form.row, head])
                maps.append(shares[form.picture.start : form.picture.stop][:, list(column)].sum(dim=1))
        by_head = torch.stack(maps)
        if form.is_plain:
            means.append(torch.stack([larger(each, form) for each in by_head]).mean(dim=0))
        else:
            means.append(larger(by_head.mean(dim=0), form))
    return torch.stack(means).mean(dim=0)


def difference(maps: Any, label: str, expected: torch.Tensor, index: int = STEP) -> float:
    """The largest difference of a map from an expected one that is not flat."""
    assert expected.max() - expected.min() > 1e-3
    return float(np.abs(maps.saliency.sel(step=index, token=label) - expected.numpy()).max())


@pytest.mark.parametrize("name", FORMS)
def test_word_maps_are_shares_of_the_whole_sequence(name):
    form, trace = FORMS[name], trace_of(name)
    maps, heard = Words()(trace, [STEP]), heard_of(trace, STEP)
    assert tuple(maps.token.values) == WORDS and len(heard.queries) == 2
    for number, word in enumerate(WORDS):
        columns = [[form.text.start + token] for token in form.tokens(number)]
        assert difference(maps, word, slow_words(heard, form, columns)) < 1e-5


# Concepts


def embedded(pipeline: Any, text: str) -> torch.Tensor:
    """The text's vectors as the pipeline's encoders make them, (1, length, features)."""
    options: dict[str, Any] = {"max_sequence_length": 16}
    kind = type(pipeline).__name__
    if kind.startswith("Flux"):
        options |= {"prompt": text, "prompt_2": text}
    elif kind.startswith("StableDiffusion3"):
        options |= {"prompt": text, "prompt_2": text, "prompt_3": text, "do_classifier_free_guidance": False}
    elif kind.startswith("CogVideoX"):
        options |= {"prompt": text, "do_classifier_free_guidance": False}
    else:
        device = torch.device("cpu")
        options = dict(prompt=text, device=device, num_images_per_prompt=1, do_classifier_free_guidance=False)
    with torch.no_grad():
        vectors: torch.Tensor = pipeline.encode_prompt(**options)[0]
    return vectors


def handed_on(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """What attention hands on, (heads, positions, size), in float64 whatever the model's numbers are."""
    heads = range(query.shape[0])
    return torch.stack([softmax(query[head], key[head]) @ value[head].double() for head in heads])


def slow_outputs(trace: Any, heard: Heard, form: Form, concept: str) -> list[torch.Tensor]:
    """The concept's attention outputs in each layer, (tokens, heads · size), beside the recorded picture."""
    vectors: list[torch.Tensor] = []
    text, picture = slice(form.text.start, form.text.stop), slice(form.picture.start, form.picture.stop)

    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        layer, key, value = len(vectors), key.clone(), value.clone()
        key[:, :, picture] = heard.keys[layer][form.row, :, picture]
        value[:, :, picture] = heard.values[layer][form.row, :, picture]
        exact = handed_on(query[0], key[0], value[0])
        vectors.append(exact[:, text].transpose(0, 1).flatten(1))
        output = exact[None].to(query.dtype)
        output[:, :, picture] = heard.outputs[layer][form.row, :, picture]
        return output

    one = slice(form.row, form.row + 1)
    kwargs = {
        name: value[one] if isinstance(value, torch.Tensor) and value.ndim and "_ids" not in name else value
        for name, value in heard.kwargs.items()
    }
    kwargs["encoder_hidden_states"] = embedded(trace.model.pipeline, concept)
    patch = instead_of_attention(attention)
    with torch.no_grad():
        trace.model.denoiser(**kwargs)
    patch.undo()
    return vectors


def slow_concepts(trace: Any, form: Form, concepts: Sequence[str], index: int) -> torch.Tensor:
    """Softmax over concepts of inner products of attention outputs, mean over layers, (concepts, h, w)."""
    heard = heard_of(trace, index)
    by_layer: list[list[torch.Tensor]] = [[] for _ in heard.queries]
    for concept in concepts:
        tokens = form.tokens(0, len(concept.split()))
        for layer, vectors in enumerate(slow_outputs(trace, heard, form, concept)):
            by_layer[layer].append(vectors[tokens].mean(dim=0))
    shares = []
    for layer, vectors in enumerate(by_layer):
        exact = handed_on(heard.queries[layer][form.row], heard.keys[layer][form.row], heard.values[layer][form.row])
        own = exact.transpose(0, 1).flatten(1)[form.picture.start : form.picture.stop]
        products = torch.stack([own @ vector for vector in vectors]).exp()
        shares.append(products / products.sum(dim=0, keepdim=True))
    mean = torch.stack(shares).mean(dim=0)
    return torch.stack([larger(each, form) for each in mean])


@pytest.mark.parametrize("name", FORMS)
def test_concept_maps_are_shares_of_attention_outputs(name):
    trace = trace_of(name)
    maps = Concepts(CONCEPTS)(trace, [STEP])
    expected = slow_concepts(trace, FORMS[name], CONCEPTS, STEP)
    assert maps.attrs["compared"] == "attention outputs"
    for concept, own in zip(CONCEPTS, expected, strict=True):
        assert difference(maps, concept, own) < 1e-5


def test_concept_maps_of_cross_attention_are_other_keys_for_the_same_queries():
    """Open-vocabulary attention maps: (Q of the picture) · (K of the concept), of all layers and heads."""
    trace = trace_of("sd-text")
    maps, heard = Concepts(CONCEPTS)(trace, [STEP]), heard_of(trace, STEP)
    layers = [m for path, m in ordered_attentions(trace, heard) if path.endswith("attn2")]
    crossed = [query for query, key in zip(heard.queries, heard.keys, strict=True) if key.shape[2] == 32]
    assert maps.attrs["compared"] == "attention weights" and len(layers) == len(crossed) == 4
    for concept in CONCEPTS:
        vectors, enlarged = embedded(trace.model.pipeline, concept)[0], []
        for module, query in zip(layers, crossed, strict=True):
            keys = module.to_k(vectors).detach().unflatten(-1, (module.heads, -1))
            side = int(query.shape[2] ** 0.5)
            form = Form(range(0), range(0), (side, side), (8, 8), ())
            for head in range(module.heads):
                shares = softmax(query[1, head], keys[:, head])[:, 1 : 1 + len(concept.split())]
                enlarged += [larger(column, form) for column in shares.T]
        assert difference(maps, concept, torch.stack(enlarged).mean(dim=0)) < 1e-5


def ordered_attentions(trace: Any, heard: Heard) -> list[tuple[str, torch.nn.Module]]:
    """The attention layers of a U-Net by their paths, in the order in which they run."""
    order: list[tuple[str, torch.nn.Module]] = []
    hooks = [
        module.register_forward_pre_hook(lambda m, args, path=path: order.append((path, m)))
        for path, module in trace.model.denoiser.named_modules()
        if path.endswith(("attn1", "attn2"))
    ]
    with torch.no_grad():
        trace.model.denoiser(*heard.args, **heard.kwargs)
    for hook in hooks:
        hook.remove()
    return order


# Half precision

ROUNDED = 1e-3, 2e-2
"""Largest difference of word maps and of concept maps of a model in bfloat16 from those of the model in float32.

Measured with three noises and three models: 3e-4 to 6e-4, and 4e-3 to 1.2e-2. Of the concepts' nothing is left to gain
within such a model: to round its weights alone, and compute all else in float32, moves them by 4e-3 to 1e-2.
"""


@pytest.mark.parametrize("name", ["sd3", "flux", "cogvideo"])
def test_half_precision_hardly_moves_the_maps(name):
    """The first step of the same noise. Its time step, 1000, and the guidance, 4000, are exact in bfloat16."""
    family, shape = FAMILIES[name], trace_of(name)[0].sample.shape
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(4)).bfloat16()
    call = {**family.call(), "guidance_scale": 4.0, "num_inference_steps": 1}
    pipelines = family.build(), family.build().to(torch.bfloat16)
    exact, half = (recorded(pipeline, **call, latents=noise.to(pipeline.dtype)) for pipeline in pipelines)
    assert torch.equal(exact[0].sample, half[0].sample.float()) and half[0].sample.dtype == torch.bfloat16
    for method, allowed in zip((Words(), Concepts(CONCEPTS)), ROUNDED, strict=True):
        maps = [method(trace, [0]).saliency for trace in (exact, half)]
        assert maps[1].dtype == np.float32 and 0 < float(abs(maps[0] - maps[1]).max()) < allowed
        assert float(maps[0].max() - maps[0].min()) > 4 * allowed


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_word_maps_in_half_precision_are_computed_in_float32(name):
    """Oracle: the softmax in float64 of the very queries and keys that the model in bfloat16 has."""
    family, form = FAMILIES[name], FORMS[name]
    trace = recorded(family.build().to(torch.bfloat16), **family.call())
    maps, heard = Words()(trace, [STEP]), heard_of(trace, STEP)
    assert heard.queries[0].dtype == torch.bfloat16
    for number, word in enumerate(WORDS):
        columns = [[form.text.start + token] for token in form.tokens(number)]
        assert difference(maps, word, slow_words(heard, form, columns)) < 1e-5


@pytest.mark.parametrize("name", ["sd3", "flux", "cogvideo"])
def test_concept_maps_in_half_precision_are_computed_in_float32(name):
    """Oracle: outputs in float64 of the very queries, keys and values that the model in bfloat16 has."""
    trace = recorded(FAMILIES[name].build().to(torch.bfloat16), **FAMILIES[name].call())
    maps, expected = Concepts(CONCEPTS)(trace, [STEP]), slow_concepts(trace, FORMS[name], CONCEPTS, STEP)
    for concept, own in zip(CONCEPTS, expected, strict=True):
        assert difference(maps, concept, own) < 4e-3


# Networks in which one word is read in one region.

PICTURE, TEXT = 0, 1
"""The channels of the network's streams with the feature of the region, and with that of the word."""
STRONG = 20.0
TAUGHT = {
    "sd3": (small.stable_diffusion_3, Form(range(64, 112), range(64), (8, 8), (8, 8), (1, 32), is_plain=True)),
    "flux": (small.flux, Form(range(16), range(16, 40), (4, 6), (4, 6), (0,))),
}


def without_context(encoder: torch.nn.Module) -> None:
    """Let a text encoder give each token its own vector, whatever is around it."""
    ends = ("out_proj", "fc2", "position_embedding", ".o", ".wo")
    for name, layer in encoder.named_modules():
        if name.endswith(ends):
            for weight in layer.parameters(recurse=False):
                weight.zero_()


def direction_of(pipeline: Any, form: Form, word: str, texts: Sequence[str]) -> torch.Tensor:
    """The direction in which the word's vectors are 1 and those of all other tokens of some texts are 0."""
    vectors = torch.cat([embedded(pipeline, text)[0] for text in texts]).double()
    wanted = [torch.zeros(len(form.text), dtype=torch.double) for _ in texts]
    for text, values in zip(texts, wanted, strict=True):
        if word in text.split():
            values[form.tokens(text.split().index(word))] = 1.0
    direction = torch.linalg.pinv(vectors, rtol=1e-6) @ torch.cat(wanted)
    torch.testing.assert_close(vectors @ direction, torch.cat(wanted), atol=1e-3, rtol=0)
    return direction.float()


def feed(layer: Any, channel: int, weight: torch.Tensor, gain: float = STRONG) -> None:
    """Let one channel of a stream be one direction of its input, and nothing else."""
    layer.weight[channel], layer.bias[channel] = (gain * weight).reshape(layer.weight[channel].shape), 0.0


def read_features(layer: torch.nn.Linear, size: int, features: Sequence[int], constant: int) -> None:
    """Let the first number of every head be the sum of some features, another a constant; the others are small."""
    layer.weight.mul_(0.1)
    layer.bias.zero_()
    layer.bias[constant::size] = 1.0
    layer.weight[::size] = 0.0
    layer.weight[::size, list(features)] = 1.0


@torch.no_grad()
def teach(pipeline: Any, form: Form, texts: Sequence[str]) -> None:
    """Let the places with the region's feature attend to the word "circle", and no others to anything of their own.

    The feature is the sample's first channel, which the network leaves as it is.
    """
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        if getattr(pipeline, name, None) is not None:
            without_context(getattr(pipeline, name))
    network = pipeline.transformer
    is_packed = not hasattr(network, "pos_embed") or not hasattr(network.pos_embed, "proj")
    entry = network.x_embedder if is_packed else network.pos_embed.proj
    if not is_packed:
        network.pos_embed.pos_embed[..., PICTURE] = 0.0
    feed(entry, PICTURE, torch.eye(entry.weight[0].numel())[0])
    feed(entry, TEXT, torch.zeros(entry.weight[0].numel()))
    feed(network.context_embedder, PICTURE, torch.zeros(network.context_embedder.in_features))
    feed(network.context_embedder, TEXT, direction_of(pipeline, form, "circle", texts))
    network.proj_out.weight[0], network.proj_out.bias[0] = 0.0, 0.0
    for path, layer in network.named_modules():
        size = network.config.attention_head_dim
        if path.endswith(("to_q", "add_q_proj")):
            read_features(layer, size, (PICTURE, TEXT), constant=1)
        elif path.endswith(("to_k", "add_k_proj")):
            read_features(layer, size, (TEXT,), constant=2)
        elif path.endswith(("to_v", "add_v_proj")):
            layer.weight[::size], layer.bias[::size] = 0.0, 0.0
            layer.weight[::size, TEXT] = 0.3
        elif "norm_" in path and path.endswith(("_q", "_k")):
            layer.weight.fill_(2.0)


@pytest.mark.parametrize("name", TAUGHT)
def test_a_word_and_a_concept_are_found_where_only_they_are_read(name):
    build, form = TAUGHT[name]
    pipeline, call, concepts = build(), small.FAMILIES[name][1], ("circle", "blue square")
    prompt = "a large red circle"
    teach(pipeline, form, ("", prompt, *concepts, "zebra", "moon"))
    mask = np.zeros(form.sample, bool)
    mask[1:3, 2:5] = True
    packed = torch.randn(1, mask.size, 16, generator=torch.Generator().manual_seed(0))
    packed[..., 0] = torch.from_numpy(mask).float().flatten()
    latents = packed if name == "flux" else packed[..., :4].mT.reshape(1, 4, *mask.shape)
    trace = recorded(pipeline, **{**call, "prompt": prompt}, num_inference_steps=3, latents=latents)
    maps, shares = Words()(trace).saliency, Concepts(concepts)(trace).saliency
    for index in range(3):
        scores = {word: auroc(maps.sel(step=index, token=word).values, mask) for word in WORDS}
        assert scores.pop("circle") >= 0.99 and max(scores.values()) < 0.5
        assert auroc(shares.sel(step=index, token="circle").values, mask) >= 0.99
        assert auroc(shares.sel(step=index, token="blue square").values, mask) <= 0.01


# The probe


class Ordered:
    """Joint attention with text and picture in another order of the sequence, which changes nothing else."""

    def __init__(self, order: torch.Tensor):
        self.order = order

    def __call__(self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: Any) -> Any:
        streams = {
            "picture": (hidden_states, attn.to_q, attn.to_k, attn.to_v),
            "text": (encoder_hidden_states, attn.add_q_proj, attn.add_k_proj, attn.add_v_proj),
        }
        parts = [
            [projection(states).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for projection in projections]
            for states, *projections in streams.values()
        ]
        query, key, value = (torch.cat(both, dim=2)[:, :, self.order] for both in zip(*parts, strict=True))
        output = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        together = output[:, :, self.order.argsort()].transpose(1, 2).flatten(2)
        picture, text = together.split([hidden_states.shape[1], encoder_hidden_states.shape[1]], dim=1)
        text = text if attn.context_pre_only else attn.to_add_out(text)
        return attn.to_out[0](picture), text


ORDERS = {
    "text first": torch.cat([torch.arange(24, 72), torch.arange(24)]),
    "picture within the text": torch.cat([torch.arange(24, 40), torch.arange(24), torch.arange(40, 72)]),
    "text shuffled": torch.cat([torch.arange(24), 24 + torch.randperm(48, generator=torch.Generator().manual_seed(0))]),
}


def attended(trace: Any, index: int = STEP) -> list[Attended]:
    """All attentions between picture and text that are listened to at a step."""
    heard: list[Attended] = []
    step = trace[index]
    with torch.no_grad(), listening(step, reading_of(step), heard.append):
        step.again()
    assert len(heard) == 2
    return heard


@pytest.mark.parametrize("name", FORMS)
def test_places_of_text_and_picture_are_measured(name):
    form = FORMS[name]
    for each in attended(trace_of(name)):
        assert each.keys == {number: [place] for number, place in enumerate(form.text)}
        assert each.queries == tuple(form.picture) and each.grid == form.patches and each.rows == (form.row,)


@pytest.mark.parametrize("order", ORDERS)
def test_another_order_of_text_and_picture_has_the_same_maps(order):
    pipeline = FAMILIES["sd3"].build()
    pipeline.transformer.set_attn_processor(Ordered(ORDERS[order]))
    trace, usual = recorded(pipeline, **FAMILIES["sd3"].call()), trace_of("sd3")
    torch.testing.assert_close(trace[-1].prev_sample, usual[-1].prev_sample, atol=1e-4, rtol=0)
    places = ORDERS[order].argsort().tolist()
    for each in attended(trace):
        assert each.keys == {number: [places[24 + number]] for number in range(48)}
        assert list(each.queries) == sorted(places[:24]) and each.grid == (4, 6)
    for method in (Words(), Concepts(CONCEPTS)) if order == "picture within the text" else (Words(),):
        maps, expected = (method(each, [STEP]).saliency for each in (trace, usual))
        assert float(abs(maps - expected).max()) < 1e-5 < float(expected.max() - expected.min())


def test_another_order_of_the_pictures_own_places_is_not_taken_for_the_usual_one():
    """Column by column: the maps are those of the usual order, or refused."""
    pipeline = FAMILIES["sd3"].build()
    by_column = torch.arange(24).reshape(4, 6).T.flatten()
    pipeline.transformer.set_attn_processor(Ordered(torch.cat([by_column, torch.arange(24, 72)])))
    trace, usual = recorded(pipeline, **FAMILIES["sd3"].call()), trace_of("sd3")
    try:
        maps = Words()(trace, [STEP]).saliency
    except ModelError:
        return
    assert float(abs(maps - Words()(usual, [STEP]).saliency).max()) < 1e-5


class Moved(torch.nn.Module):
    """An embedder of the text that hands on its tokens at other places; some may be there twice."""

    def __init__(self, inner: torch.nn.Module, places: Sequence[int]):
        super().__init__()
        self.inner, self.places = inner, list(places)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        moved: torch.Tensor = self.inner(text)[:, self.places]
        return moved


def moved(name: str, places: Sequence[int]) -> Any:
    """The trace of a family whose denoiser moves its text before its blocks."""
    pipeline = FAMILIES[name].build()
    pipeline.transformer.context_embedder = Moved(pipeline.transformer.context_embedder, places)
    return recorded(pipeline, **FAMILIES[name].call())


def columns_of(form: Form, places: Sequence[int], number: int) -> list[list[int]]:
    """The columns of each token of a word in a text whose tokens were moved."""
    tokens = form.tokens(number)
    return [[form.text.start + i for i, place in enumerate(places) if place == token] for token in tokens]


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_a_shifted_text_is_noticed(name):
    form = FORMS[name]
    count = len(form.text)
    places = [(i - 1) % count for i in range(count)]
    trace = moved(name, places)
    for each in attended(trace):
        assert each.keys == {number: [form.text.start + (number + 1) % count] for number in range(count)}
    maps, heard = Words()(trace, [STEP]), heard_of(trace, STEP)
    for number, word in enumerate(WORDS):
        shifted = columns_of(form, places, number)
        assert shifted == [[form.text.start + token + 1] for token in form.tokens(number)]
        assert difference(maps, word, slow_words(heard, form, shifted)) < 1e-5
        unmoved = slow_words(heard, form, columns_of(form, range(count), number))
        assert difference(maps, word, unmoved) > 1e-4


def test_a_doubled_token_is_noticed():
    """CLIP's "large" is there twice: its map is the sum of both columns."""
    form = FORMS["sd3"]
    places = [0, 1, 2, *range(2, 48)]
    trace = moved("sd3", places)
    for each in attended(trace):
        assert each.keys == {
            number: [24 + i for i, place in enumerate(places) if place == number] for number in range(48)
        }
        assert each.keys[2] == [26, 27]
    maps, heard = Words()(trace, [STEP]), heard_of(trace, STEP)
    for number, word in enumerate(WORDS):
        columns = columns_of(form, places, number)
        assert len(columns[0]) == (2 if word == "large" else 1)
        assert difference(maps, word, slow_words(heard, form, columns)) < 1e-5


def test_a_text_that_is_pooled_is_not_in_the_pictures_own_keys():
    """Lumina modulates the picture by its text's mean, so that all keys change with it; attn2 alone reads the text."""
    layers = {one.call.layer for one in attended(trace_of("lumina"))}
    assert layers == {"layers.0.attn2", "layers.1.attn2"}
