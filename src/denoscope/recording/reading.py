"""The text of a run as its pipeline reads it, and where each token of it enters the denoiser.

Nothing is tokenised a second time: the pipeline is asked again for one step, its tokenizers and text encoders are
listened to, and each token's vector is disturbed where its encoder gives it. The arguments of the denoiser that change
then are that token's place. Which half of guidance is the prompt's comes from another prompt in its stead.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..errors import InputError, ModelError, ReplayError, in_short
from .comparing import FAILURES, refuse_memory
from .engines import Run
from .followed import sequences, tokens_by_sets, tokens_by_vectors
from .hooks.calls import ModuleCall
from .hooks.listened import TokenizerCall, listening_to_tokenizers, tokenizers_of
from .hooks.places import TextInput, number_of
from .hooks.resume import Answer, Entry, Question
from .hooks.trees import Path, leaves, with_leaves
from .hooks.unmixed import code, signs, unmixed
from .prompts import Prompt, Word, numbered, split_words
from .texts import EncodedText, EncoderCall, by_tokenizers, in_chunks, other_prompt, text_of

PROMPTS = ("prompt", "prompt_2", "prompt_3", "prompt_4")
LENGTH = "max_sequence_length"
"""The argument of many pipelines' calls that says how many tokens their texts are padded to."""
EMBEDS = {"conditional": "prompt_embeds", "unconditional": "negative_prompt_embeds"}
"""The argument with the vectors of a text, by the half of guidance that it is for."""
AGREES = 0.25
"""Largest distance of a token's vector from its text's own one, in median distances between the text's vectors."""


@dataclass(frozen=True, eq=False)
class Told:
    """What a pipeline told while it was asked again for a step's inputs."""

    tokenized: list[TokenizerCall]
    encoders: list[EncoderCall]
    others: list[str]
    calls: list[ModuleCall]


@dataclass(frozen=True, eq=False)
class Reading:
    """How the denoiser reads a text of the run: in which call and rows, and at which of its numbered positions.

    `ordinal` counts the step's calls of the network `name`. `rows` are those of the picture in the call's text, of
    `total` rows. The positions of `prompt` count through `inputs`, one behind the other. `tensors` are the text's
    arguments as they were.
    """

    name: str
    ordinal: int
    rows: tuple[int, ...]
    total: int
    inputs: tuple[TextInput, ...]
    texts: tuple[EncodedText, ...]
    prompt: Prompt
    tensors: Mapping[Path, torch.Tensor]
    mixed: tuple[str, ...] = ()
    index: int = 0
    """The step that the pipeline was asked for."""
    tree: Any = None
    """All arguments of the denoiser's call at that step, for all pictures."""

    def numbers_of(self, text: EncodedText, token: int) -> tuple[int, ...]:
        """Return the numbered positions of a token of an encoder."""
        return tuple(number_of(self.inputs, path, position) for path, position in text.places.get(token, ()))

    def is_of(self, tree: Any) -> bool:
        """Return True if these arguments of the denoiser hold this very text, in all rows or in the reading's own."""
        tensors = leaves(tree)
        for path, own in self.tensors.items():
            other = tensors.get(path)
            if other is None or other.shape[1:] != own.shape[1:] or other.dtype != own.dtype:
                return False
            if other.shape == own.shape and torch.equal(other, own):
                continue
            if other.ndim != 3 or not torch.equal(other, own[self.rows_alone(len(own), len(other))]):
                return False
        return True

    def rows_alone(self, rows: int, own: int) -> list[int]:
        """Return the places among all `rows` of a picture's `own` rows, when it is asked about alone."""
        pictures = max(1, rows // max(own, 1))
        unit = len(self.rows) if own % len(self.rows) == 0 else 1
        place = (self.rows[0] // unit) % pictures
        copies = own // unit
        return [(copy * pictures + place) * unit + i for copy in range(copies) for i in range(unit)]

    def rows_of(self, rows: int) -> tuple[int, ...]:
        """Return the picture's rows in a call of so many rows, which may be that of the picture alone."""
        if rows == self.total:
            return self.rows
        pictures = max(1, self.total // max(rows, 1))
        unit = len(self.rows)
        copy = self.rows[0] // (pictures * unit)
        return tuple(copy * unit + i for i in range(unit))


# Asking.


def read_run(run: Run, index: int, picture: int, half: str, prompt_text: str | None = None, frames: int = 1) -> Reading:
    """Return how the denoiser reads a text of a run at a step.

    `picture` is its place in the batch, `half` "conditional" or "unconditional" for the negative prompt. `prompt_text`
    labels a run made from embeddings. `frames` are those of a clip, which may be rows of the text each.

    Raises `InputError` for a run without such a text, `ModelError` where no token of it can be followed into the
    denoiser, `ReplayError` if the pipeline cannot be asked again.
    """
    return _Reader(run, index, picture, frames).read(half, prompt_text)


def read_instead(run: Run, index: int, picture: int, text: str, frames: int = 1) -> Reading:
    """Return how the denoiser would read another text in the place of the prompt; raises as `read_run`."""
    reader = _Reader(run, index, picture, frames)
    instead = reader.with_prompt(text)
    return _Reader(run, index, picture, frames, instead, {}).read("conditional", None)


def tensors_read(run: Run, index: int, picture: int, text: EncodedText) -> list[Path]:
    """Return the paths, in an encoder's output, of the tensors of tokens that the denoiser depends on."""
    return _Reader(run, index, picture).tensors_read(text)


@dataclass(eq=False)
class _Reader:
    run: Run
    index: int
    picture: int
    frames: int = 1
    base: Mapping[str, Any] = field(default_factory=dict)
    memory: dict[Any, Any] | None = None
    """Outputs of the text encoders for the arguments of `base`, None for those of the run."""

    def read(self, half: str, prompt_text: str | None) -> Reading:
        call = self._call()
        if call.get("prompt") is None and call.get("prompt_embeds") is None:
            raise InputError(
                "This picture was made without a prompt, so there are no words to show. Give a trace that was made "
                "with a prompt, or use another method, such as df-rise."
            )
        if call.get(EMBEDS[half]) is not None:
            return self._of_embeds(call, EMBEDS[half], half, prompt_text)
        before = self._told({})
        if call.get("prompt") is None:  # the negative prompt alone is text
            return self._negative(call, before, _rows_of(before), None)
        other = self._told(self._instead(call))
        prompts, against = self._halves(before, other)
        own = self._reading(before, self._texts(before, other, prompts))
        return own if half == "conditional" else self._negative(call, before, against, own)

    def _negative(
        self, call: Mapping[str, Any], before: Told, pairs: Sequence[tuple[int, int]], own: Reading | None
    ) -> Reading:
        """Return the reading of the negative prompt, which lies elsewhere than the prompt's own."""
        texts = [text for text in self._texts(before, self._told(self._against(call)), pairs) if text[1]]
        if not texts:
            raise InputError(NO_OTHER_HALF)
        return self._reading(before, texts, apart=None if own is None else (own.name, own.ordinal, own.rows))

    def _call(self) -> dict[str, Any]:
        recorded = self.run.resumption.call
        parameters = [name for name in inspect.signature(type(recorded.pipeline).__call__).parameters if name != "self"]
        return dict(zip(parameters, recorded.args, strict=False)) | dict(recorded.kwargs) | dict(self.base)

    def _instead(self, call: Mapping[str, Any], text: Callable[[str], str] | None = None) -> dict[str, Any]:
        """Return other prompts in the place of the picture's own."""
        other = other_prompt if text is None else text
        instead: dict[str, Any] = {}
        for name in PROMPTS:
            own = call.get(name)
            if isinstance(own, str):
                instead[name] = other(own)
            elif isinstance(own, (tuple, list)) and own:
                place = self.picture * len(own) // max(self.pictures, 1)
                instead[name] = [*own[:place], other(str(own[place])), *own[place + 1 :]]
        return instead

    def with_prompt(self, text: str) -> dict[str, Any]:
        """Return the arguments of the call by which the picture's prompt is another text."""
        call = self._call()
        if call.get("prompt") is not None:
            return self._instead(call, lambda own: text)
        embeds = [name for name, value in call.items() if name.endswith("prompt_embeds") and value is not None]
        others = {name: None for name in embeds if not name.startswith("negative")}
        return {**others, "prompt": text}

    def _against(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """Return other negative prompts in the place of all that there are."""
        pipeline = type(self.run.resumption.call.pipeline)
        instead: dict[str, Any] = {}
        for name in (f"negative_{prompt}" for prompt in PROMPTS):
            text = call.get(name)
            if isinstance(text, (tuple, list)):
                instead[name] = [other_prompt(str(one)) for one in text]
            elif isinstance(text, str) or name in inspect.signature(pipeline.__call__).parameters:
                instead[name] = other_prompt(text or "")
        return instead

    @property
    def pictures(self) -> int:
        """The pictures of the run."""
        return self.run.rows // self.run.unit

    def _told(
        self,
        instead: Mapping[str, Any],
        disturb: Callable[[EncoderCall], Any] | None = None,
        fresh: frozenset[str] = frozenset(),
    ) -> Told:
        """Ask the pipeline for the inputs of the step, with other arguments or disturbed vectors of its text."""
        told = Told([], [], [], [])
        ids_by_name: dict[str, int] = {}

        def heard(name: str, number: int, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            ids = _ids_in(args, kwargs)
            if ids is None or "." in name:
                told.others.append(name)
                return output
            count = ids_by_name.get(name, 0)
            ids_by_name[name] = count + 1
            mask = kwargs.get("attention_mask")
            call = EncoderCall(name, count, args, kwargs, ids, mask if isinstance(mask, torch.Tensor) else None, output)
            told.encoders.append(call)
            return output if disturb is None else disturb(call)

        run, place = self.run, self.run.places[self.index]
        question = Question(
            run.recorded(self.index).sample,
            place,
            None,
            Entry("none"),
            inputs_only=True,
            instead={**self.base, **instead},
            on_network=heard,
            fresh=fresh,
        )
        pipeline, answer = run.resumption.call.pipeline, Answer()
        resumption = run.resumption if self.memory is None else replace(run.resumption, memory=self.memory)
        try:
            with listening_to_tokenizers(pipeline, told.tokenized.append):
                resumption.ask(question, answer)
        except FAILURES as error:
            refuse_memory(error)
            if not answer.calls:  # with the first call's inputs the pipeline need not come further
                raise ReplayError(
                    f"{type(pipeline).__name__}, asked again how it reads its text, failed: {in_short(error, 200)} "
                    "Use a method without words, such as df-rise."
                ) from error
        told.calls.extend(answer.calls)
        return told

    # Which rows are the prompt's.

    def _halves(self, before: Told, other: Told) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Return the encoders' rows that the prompt changes, and the others, as (place of the call, row)."""
        prompts: list[tuple[int, int]] = []
        against: list[tuple[int, int]] = []
        if len(before.encoders) != len(other.encoders):
            raise ModelError(_cannot_follow(before, "its text encoders are called in another way for another prompt"))
        for place, (own, changed_call) in enumerate(zip(before.encoders, other.encoders, strict=True)):
            for row in range(len(own.ids)):
                same = row < len(changed_call.ids) and own.row(row) == changed_call.row(row)
                (against if same else prompts).append((place, row))
        if not prompts:
            raise ModelError(_cannot_follow(before, "no text encoder of it is passed the prompt's tokens"))
        return prompts, against

    # Which places are a token's.

    def _followed(self, told: Told, place: int, row: int) -> dict[int, dict[Path, torch.Tensor]]:
        """Return, for each of the step's calls, the token of each position of its arguments, −1 for none."""
        call = told.encoders[place]
        length, key = call.ids.shape[1], (call.name, call.number)
        fresh = frozenset(told.others)

        def under(members: torch.Tensor | None) -> list[dict[Path, torch.Tensor]]:
            def disturb(other: EncoderCall) -> Any:
                if members is None or (other.name, other.number) != key:
                    return other.output
                return _disturbed(other.output, members, row, len(other.ids))

            with unmixed():
                calls = self._told({}, disturb, fresh).calls
            return [sequences((one.args, one.kwargs)) for one in calls]

        plain = [sequences((one.args, one.kwargs)) for one in told.calls]
        # The run's own texts are remembered, and nothing stands between encoders and denoiser that could mix tokens.
        is_plain = not fresh and self.memory is None and not self.base
        base = plain if is_plain else under(None)
        every = under(torch.ones(length, dtype=torch.bool))
        known = tokens_by_vectors(base, every, _vectors_of(call.output, row, len(call.ids), length))
        return tokens_by_sets(base, [under(members) for members in code(length)], length) if known is None else known

    def tensors_read(self, text: EncodedText) -> list[Path]:
        """Return the paths of an encoder's tensors that change the denoiser's arguments."""
        call = text.call
        assert call is not None
        length = call.ids.shape[1]
        everything = torch.ones(length, dtype=torch.bool)
        paths = list(_disturbed_leaves(call.output, everything, text.row, len(call.ids)))

        def under(path: Path | None) -> list[dict[Path, torch.Tensor]]:
            def disturb(other: EncoderCall) -> Any:
                if path is None or (other.name, other.number) != (call.name, call.number):
                    return other.output
                others = _disturbed_leaves(other.output, everything, text.row, len(other.ids))
                return with_leaves(other.output, {path: others[path]})

            calls = self._told({}, disturb).calls
            return [sequences((one.args, one.kwargs)) for one in calls]

        base = under(None)
        return [path for path in paths if not _same_arguments(under(path), base)]

    # The text of a row.

    def _texts(self, before: Told, other: Told, pairs: Sequence[tuple[int, int]]) -> list[tuple[EncodedText, Any]]:
        texts = []
        for place, row in pairs:
            call = before.encoders[place]
            text = text_of(self.run.resumption.call.pipeline, call, row, before.tokenized, other.tokenized)
            texts.append((replace(text, call=call), self._followed(before, place, row)))
        return texts

    def _reading(
        self,
        told: Told,
        texts: Sequence[tuple[EncodedText, dict[int, dict[Path, torch.Tensor]]]],
        apart: tuple[str, int, tuple[int, ...]] | None = None,
    ) -> Reading:
        """Return the reading in the first call and rows that the texts reach; those of `apart` are passed over."""
        names = [call.name for call in told.calls]
        ordinals = [names[:i].count(name) for i, name in enumerate(names)]
        for number in sorted({number for _, followed in texts for number in followed}):
            rows, total = self._rows(told.calls[number], [followed.get(number, {}) for _, followed in texts])
            if not rows or (names[number], ordinals[number], rows) == apart:
                continue
            reached = [
                replace(text, places=_places(followed[number], rows)) for text, followed in texts if number in followed
            ]
            reached = [text for text in reached if text.places]
            if reached:
                return self._made(told.calls[number], number, ordinals[number], rows, total, reached, texts)
        raise ModelError(_cannot_follow(told, "no argument of its denoiser holds the prompt's tokens as vectors"))

    def _rows(self, call: ModuleCall, followed: Sequence[Mapping[Path, torch.Tensor]]) -> tuple[tuple[int, ...], int]:
        """Return the rows of the picture among those that a text reaches, and the number of all rows."""
        reached: set[int] = set()
        total = 1
        tensors = leaves((call.args, call.kwargs))
        for tokens_by_path in followed:
            for path, tokens in tokens_by_path.items():
                if tensors[path].ndim == 2:
                    reached.add(int(path[-1]))
                    total = max(total, sum(other[:-1] == path[:-1] for other in tensors))
                else:
                    by_row = _by_row(tokens)
                    reached |= set((by_row >= 0).any(dim=1).nonzero().flatten().tolist())
                    total = max(total, len(by_row))
        rows, unit = sorted(reached), self.frames
        per_picture = unit if len(rows) % unit == 0 and total % (unit * self.pictures) == 0 else 1
        if len(rows) <= per_picture or self.pictures == 1:
            return tuple(rows[:per_picture]), total
        sharing = [row for row in rows if row < rows[0] + self.pictures * per_picture]
        start = (self.picture * per_picture) % len(sharing)
        return tuple(sharing[start : start + per_picture]), total

    def _made(
        self,
        call: ModuleCall,
        number: int,
        ordinal: int,
        rows: tuple[int, ...],
        total: int,
        texts: Sequence[EncodedText],
        every: Sequence[tuple[EncodedText, Any]],
    ) -> Reading:
        tree = (call.args, call.kwargs)
        tensors = leaves(tree)
        axes = {path: _axis_of(tokens) for _, followed in every for path, tokens in followed.get(number, {}).items()}
        inputs: dict[Path, TextInput] = {}
        for text in texts:
            for path, _ in (pair for pairs in text.places.values() for pair in pairs):
                inputs.setdefault(path, _input(path, tensors, axes.get(path, -2)))
        held = {
            path: tensor.clone()
            for path, tensor in tensors.items()
            if path in inputs or (path[:-1] in inputs and inputs[path[:-1]].is_list)
        }
        reading = Reading(
            call.name, ordinal, rows, total, tuple(inputs.values()), tuple(texts), Prompt("", (), (), {}, 0), held
        )
        return replace(reading, prompt=_prompt(reading), mixed=_mixed(reading), index=self.index, tree=tree)

    # Embeddings in the place of a prompt.

    def _of_embeds(self, call: Mapping[str, Any], name: str, half: str, prompt_text: str | None) -> Reading:
        """Return the reading of a label text in the place of the embeddings that the argument `name` has."""
        embeds = call.get(name)
        if prompt_text is None:
            raise InputError(
                f"This text was given as numbers ({EMBEDS[half]}), not as a prompt, so its words are not known. Give "
                "the text that the embeddings were made from, prompt_text=..., or make the picture with a prompt."
            )
        if not isinstance(embeds, torch.Tensor) or embeds.ndim != 3:
            raise InputError(
                f"{name} is no tensor (rows, tokens, features), so the words of prompt_text have no places in it."
            )
        length, row = embeds.shape[1], self.picture * len(embeds) // max(self.pictures, 1)
        told = self._told({})
        sets = []
        for members in [None, *code(length)]:
            instead = embeds
            if members is not None:
                instead = embeds.clone()
                instead[row] += _direction(embeds) * signs(members).to(embeds)[:, None]
            with unmixed():
                calls = self._told({name: instead}, fresh=frozenset(told.others)).calls
            sets.append([sequences((one.args, one.kwargs)) for one in calls])
        followed = tokens_by_sets(sets[0], sets[1:], length)
        blank = EncodedText(name, 0, 0, prompt_text, (None,) * length, (None,) * length)
        return self._labelled(self._reading(told, [(blank, followed)]), prompt_text, half)

    def _labelled(self, reading: Reading, text: str, half: str) -> Reading:
        """Return the reading of embeddings with the words of a text at the places at which the pipeline reads them."""
        blank, pipeline = reading.texts[0], self.run.resumption.call.pipeline
        length = len(blank.spans)
        own = self._read_as_prompt(text, half, sum(one.length for one in reading.inputs))
        if own is None:
            (spans, groups), learned = by_tokenizers(pipeline, text, length)
            return _with_texts(reading, [replace(blank, spans=spans, groups=groups, learned=learned)])
        _refuse_other_text(reading, own, text, blank.encoder)
        first, tokenizer, chunk = own.texts[0], tokenizers_of(pipeline)[0], own.prompt.length
        if length > chunk and length % chunk == 0 and first.groups[0] == tokenizer.bos_token:
            spans, groups = in_chunks(tokenizer, first.text, chunk, length // chunk)
            texts = [replace(blank, text=first.text, spans=spans, groups=groups, learned=first.learned)]
            return _with_texts(reading, texts)
        held = {(path, position) for pairs in blank.places.values() for path, position in pairs}
        texts = []
        for one in own.texts:
            places = {token: tuple(pair for pair in pairs if pair in held) for token, pairs in one.places.items()}
            texts.append(replace(one, encoder=blank.encoder, number=0, row=0, call=None, places=places))
        return _with_texts(reading, texts)

    def _read_as_prompt(self, text: str, half: str, length: int) -> Reading | None:
        """Return how the pipeline reads a text that it encodes itself, in so many positions; None if it cannot."""
        call = self._call()
        instead = self._as_prompts(call, text, half)
        reader = _Reader(self.run, self.index, self.picture, self.frames, instead, {})
        try:
            own = reader.read(half, None)
            parameters = inspect.signature(type(self.run.resumption.call.pipeline).__call__).parameters
            padded = call.get(LENGTH, getattr(parameters.get(LENGTH), "default", None))
            if isinstance(padded, int) and 0 < padded + length - own.prompt.length != padded:
                reader.base = {**instead, LENGTH: padded + length - own.prompt.length}
                own = reader.read(half, None)
        except (InputError, ModelError, ReplayError):
            return None
        return own

    def _as_prompts(self, call: Mapping[str, Any], text: str, half: str) -> dict[str, Any]:
        """Return arguments by which the pipeline encodes a text itself, in the place of all embeddings of the call."""
        tensors = {str(path[0]) for path in leaves(dict(call)) if "prompt" in str(path[0])}
        rows = len(call[EMBEDS[half]])

        def each(own: str) -> str | list[str]:
            return own if rows == 1 else [own] * rows

        prompts = {"prompt": each(text)}
        if half == "unconditional":
            prompts = {"prompt": each(other_prompt(text)), "negative_prompt": each(text)}
        return {**dict.fromkeys(tensors), **prompts}


NO_OTHER_HALF = (
    "The unconditional half was asked for, and no text is read there: this picture was made without guidance, or its "
    'pipeline reads zeros in the place of a negative prompt that was not given. Use half="conditional", or make the '
    "picture with a negative_prompt and a guidance_scale above 1."
)


def _cannot_follow(told: Told, why: str) -> str:
    names = ", ".join(sorted({call.name for call in told.calls})) or "the denoiser"
    return (
        f"The prompt's tokens cannot be followed into {names}: {why}. Word maps need a text that is read as a sequence "
        "of vectors, one for each token. Use a method without words, such as df-rise."
    )


def _rows_of(told: Told) -> list[tuple[int, int]]:
    return [(place, row) for place, call in enumerate(told.encoders) for row in range(len(call.ids))]


def _ids_in(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """Return the tokens' numbers that a text encoder is passed, (rows, length); None for another network."""
    given = [kwargs.get("input_ids"), *args[:1]]
    for value in given:
        if isinstance(value, torch.Tensor) and value.ndim == 2 and not value.is_floating_point():
            return value
    return None


def _same_arguments(some: Sequence[Mapping[Path, torch.Tensor]], others: Sequence[Mapping[Path, torch.Tensor]]) -> bool:
    return all(
        path in other and torch.equal(tensor, other[path])
        for one, other in zip(some, others, strict=False)
        for path, tensor in one.items()
    )


def _disturbed(output: Any, members: torch.Tensor, row: int, rows: int) -> Any:
    """Return an encoder's output with the vectors of some tokens disturbed, in one row."""
    return with_leaves(output, _disturbed_leaves(output, members, row, rows))


def _disturbed_leaves(output: Any, members: torch.Tensor, row: int, rows: int) -> dict[Path, torch.Tensor]:
    """Return the tensors of an encoder's output that have a vector for each token, disturbed in one row."""
    others = {}
    for path, tensor in leaves(output).items():
        if tensor.ndim < 3 or tensor.shape[-2] != len(members) or tensor.shape[-3] != rows:
            continue
        if not tensor.is_floating_point():
            continue
        only = torch.zeros(rows, 1, 1, dtype=tensor.dtype, device=tensor.device)
        only[row] = 1
        others[path] = tensor + only * signs(members).to(tensor)[:, None] * _direction(tensor)
    return others


def _vectors_of(output: Any, row: int, rows: int, length: int) -> list[torch.Tensor]:
    """Return the vectors of a row's tokens, (length, features), in each tensor of an encoder's output that has them."""
    tensors = [tensor for tensor in leaves(output).values() if tensor.ndim == 3 and tensor.is_floating_point()]
    return [tensor[row] for tensor in tensors if tensor.shape[:2] == (rows, length)]


def _direction(tensor: torch.Tensor) -> torch.Tensor:
    direction = torch.randn(tensor.shape[-1], generator=torch.Generator().manual_seed(7)).to(tensor)
    return direction * tensor.float().std().clamp(min=1e-3).to(tensor)


def _places(
    tokens_by_path: Mapping[Path, torch.Tensor], rows: Sequence[int]
) -> dict[int, tuple[tuple[Path, int], ...]]:
    """Return the arguments and positions of each token, in the first of the picture's rows."""
    places: dict[int, list[tuple[Path, int]]] = {}
    for path, tokens in tokens_by_path.items():
        if tokens.ndim == 1:
            own, base = (tokens, path[:-1]) if path[-1] == rows[0] else (None, path)
        else:
            own, base = _by_row(tokens)[rows[0]], path
        if own is None:
            continue
        for position in (own >= 0).nonzero().flatten().tolist():
            places.setdefault(int(own[position]), []).append((base, position))
    return {token: tuple(pairs) for token, pairs in places.items()}


def _axis_of(tokens: torch.Tensor) -> int:
    """Return the axis along which the tokens of an argument change, that of a tensor with a vector for each.

    (…, rows, tokens, features) as a rule; (rows, tokens, layers, features) where several layers of an encoder are read.
    """
    if tokens.ndim < 3 or tokens.shape[-1] == 1:
        return -2
    same = bool((tokens == tokens[..., :1]).all())
    return -3 if same and bool((tokens != tokens[..., :1, :]).any()) else -2


def _by_row(tokens: torch.Tensor) -> torch.Tensor:
    """Return the token of each position of each row, (rows, positions), −1 for none."""
    if _axis_of(tokens) == -3:
        tokens = tokens[..., 0]
    return tokens.reshape(-1, *tokens.shape[-2:]).amax(dim=0)


def _input(path: Path, tensors: Mapping[Path, torch.Tensor], axis: int) -> TextInput:
    if path in tensors:
        return TextInput.of(path, tensors[path], axis)
    listed = [tensor for other, tensor in tensors.items() if other[:-1] == path]
    return TextInput(path, len(listed), max(len(tensor) for tensor in listed), is_list=True)


# Embeddings and the text that they are said to be of.


def _with_texts(reading: Reading, texts: Sequence[EncodedText]) -> Reading:
    """Return a reading with other texts at its places."""
    other = replace(reading, texts=tuple(texts))
    return replace(other, prompt=_prompt(other), mixed=_mixed(other))


def _refuse_other_text(reading: Reading, own: Reading, text: str, name: str) -> None:
    """Raise `InputError` for embeddings that point elsewhere than the pipeline's own vectors of a text.

    Weights change the length of a token's vector and not its direction, so directions are compared, token by token.
    """
    vectors, others = _vectors(reading), _vectors(own)
    for one in own.texts:
        agree: list[bool] = []
        for path in vectors.keys() & others.keys():
            words, read = _positions_in(one, path, len(vectors[path]))
            agree += [_agree(vectors[path][i], others[path][i], others[path][read]) for i in words]
        if 2 * sum(agree) < len(agree):
            raise InputError(
                f'The {name} of this picture are not of the text "{text}": at {len(agree) - sum(agree)} of its '
                f"{len(agree)} tokens they point elsewhere than the pipeline's own vectors. Give as prompt_text the "
                "text that the embeddings were made from, without signs of weighting."
            )


def _positions_in(text: EncodedText, path: Path, length: int) -> tuple[list[int], list[int]]:
    """Return the first `length` positions of an argument that hold tokens of words, and all that hold no padding."""
    words, read = [], []
    for token, pairs in text.places.items():
        own = [position for other, position in pairs if other == path and position < length]
        words += own if text.spans[token] is not None else []
        read += own if text.groups[token] != "<padding>" else []
    return words, read


def _agree(vector: torch.Tensor, own: torch.Tensor, others: torch.Tensor) -> bool:
    """Return True if a vector points where a text's own one does, compared with how far apart the text's vectors are.

    Vectors of a text encoder all point to one side, so that a fixed angle would take other words for the same.
    """
    if vector.shape != own.shape or len(others) < 2:
        return True
    apart = (1 - others @ others.T)[~torch.eye(len(others), dtype=torch.bool)]
    return bool(1 - vector @ own <= AGREES * apart.median())


def _vectors(reading: Reading) -> dict[Path, torch.Tensor]:
    """Return the picture's vectors in the text's arguments, (positions, features), each of length 1."""
    vectors = {}
    for one in reading.inputs:
        if one.is_list:
            tensor = reading.tensors[(*one.path, reading.rows[0])]
        else:
            tensor = reading.tensors[one.path]
            tensor = tensor.reshape(-1, *tensor.shape[one.axis - 1 :])[0, reading.rows[0]].flatten(1)
        vectors[one.path] = torch.nn.functional.normalize(tensor.float().cpu(), dim=-1)
    return vectors


# Words.


def _prompt(reading: Reading) -> Prompt:
    """Return the words of a reading's texts by their positions; equal texts of several encoders are one."""
    by_text: dict[str, list[EncodedText]] = {}
    for text in reading.texts:
        by_text.setdefault(_same_words(text), []).append(text)
    words: list[tuple[str, tuple[int, ...]]] = []
    cut: list[str] = []
    for texts in by_text.values():
        for word, start, end in split_words(texts[0].text, texts[0].learned):
            positions: set[int] = set()
            for text in texts:
                positions |= _positions(reading, text, start, end)
            if positions:
                words.append((word, tuple(sorted(positions))))
            else:
                cut.append(word)
    special: dict[str, set[int]] = {}
    for text in reading.texts:
        for token, group in enumerate(text.groups):
            if group is not None:
                special.setdefault(group, set()).update(reading.numbers_of(text, token))
    labels = numbered([word for word, _ in words])
    named = tuple(Word(word, label, where) for label, (word, where) in zip(labels, words, strict=True))
    whole = " | ".join(dict.fromkeys(texts[0].text for texts in by_text.values()))
    specials = {name: tuple(sorted(places)) for name, places in special.items() if places}
    learned = tuple(dict.fromkeys(token for one in reading.texts for token in one.learned))
    return Prompt(whole, named, tuple(cut), specials, sum(one.length for one in reading.inputs), learned)


def _same_words(text: EncodedText) -> str:
    return " ".join(text.text.casefold().split())


def _positions(reading: Reading, text: EncodedText, start: int, end: int) -> set[int]:
    """Return the numbered positions of a word's tokens; none if a token of it was cut off, or is not read."""
    own = [i for i, span in enumerate(text.spans) if span is not None and max(span[0], start) < min(span[1], end)]
    covered = sum(min(span[1], end) - max(span[0], start) for span in (text.spans[i] for i in own) if span is not None)
    blanks = sum(character.isspace() for character in text.text[start:end])
    if not own or covered < end - start - blanks:
        return set()
    numbers = [reading.numbers_of(text, token) for token in own]
    return set() if any(not places for places in numbers) else {number for places in numbers for number in places}


def _mixed(reading: Reading) -> tuple[str, ...]:
    """Return texts that share positions although they differ: the denoiser reads both there."""
    texts = {_same_words(text): text for text in reading.texts}
    if len(texts) < 2:
        return ()
    numbers = [
        {number for token in text.places for number in reading.numbers_of(text, token)} for text in texts.values()
    ]
    shared = any(a & b for i, a in enumerate(numbers) for b in numbers[i + 1 :])
    return tuple(text.text for text in texts.values()) if shared else ()
