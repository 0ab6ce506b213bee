"""A text in a text encoder: the user's part of it, and the characters of each token, as the pipeline tokenized them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import ModelError
from .hooks.listened import TokenizerCall, tokenizers_of
from .hooks.trees import Path
from .prompts import LONGEST, encoded, learned_tokens

OTHER_PROMPTS = ("zebra", "moon")
"""Prompts in whose place another one shows what in a text is the user's, and what the pipeline's own."""
NOT_OPTIONS = {
    "return_tensors",
    "return_offsets_mapping",
    "return_special_tokens_mask",
    "return_attention_mask",
    "return_length",
    "return_overflowing_tokens",
    "return_token_type_ids",
    "return_dict",
    "verbose",
}
"""Options of a tokenizer that do not change its tokens."""


@dataclass(frozen=True, eq=False)
class EncoderCall:
    """A text encoder's call while the pipeline was asked again: the numbers of its tokens, (rows, length)."""

    name: str
    number: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    ids: torch.Tensor
    mask: torch.Tensor | None
    output: Any

    def row(self, index: int) -> tuple[int, ...]:
        """Return the tokens of a row without padding."""
        ids = self.ids[index]
        if self.mask is not None and self.mask.shape == self.ids.shape:
            ids = ids[self.mask[index].bool()]
        return tuple(ids.tolist())


@dataclass(frozen=True, eq=False)
class EncodedText:
    """One text in an encoder: the user's part of it, the characters of each token, and its places in the denoiser.

    `spans` are (start, end) in `text`, None for tokens that are not the user's. `groups` are the special groups of
    tokens that are no words ("<padding>", a special token's name, "<instruction>"). `places` are the arguments and
    positions that a token is found at in the denoiser's call.
    """

    encoder: str
    number: int
    row: int
    text: str
    spans: tuple[tuple[int, int] | None, ...]
    groups: tuple[str | None, ...]
    learned: tuple[str, ...] = ()
    places: Mapping[int, tuple[tuple[Path, int], ...]] = field(default_factory=dict)
    call: EncoderCall | None = None
    """The encoder's call that the text was in, None for embeddings."""


def other_prompt(text: str) -> str:
    """Return a prompt that has nothing of a text."""
    return next((other for other in OTHER_PROMPTS if other not in text.casefold()), OTHER_PROMPTS[0])


Labels = tuple[tuple[tuple[int, int] | None, ...], tuple[str | None, ...]]


def text_of(
    pipeline: Any,
    call: EncoderCall,
    row: int,
    tokenized: Sequence[TokenizerCall],
    others: Sequence[TokenizerCall],
) -> EncodedText:
    """Return the text of an encoder's row; raises `ModelError` if no text that was tokenized has its tokens."""
    ids = call.ids[row].tolist()
    for tokenizer, text, options, inner in _candidates(tokenized, others):
        options = {key: value for key, value in options.items() if key not in NOT_OPTIONS}
        try:
            tokens = encoded(tokenizer, text, **options)
        except (TypeError, ValueError):
            continue
        core = [i for i, read in enumerate(tokens["attention_mask"]) if read]
        wanted = [tokens["input_ids"][i] for i in core]
        start = _found(wanted, ids)
        if start is None or (not wanted and text.strip()):
            continue
        begin = text.find(inner) if text.count(inner) == 1 else _begin(text, inner, tokenized, others)
        spans, groups = _labels(tokenizer, tokens, text, core, len(ids), inner, start, begin)
        return EncodedText(call.name, call.number, row, inner, spans, groups, learned_tokens(tokenizer))
    raise ModelError(
        f"The tokens that {call.name} of {type(pipeline).__name__} was passed are those of no text that its tokenizers "
        "read, so it is not known which token is which word. Use a method without words, such as df-rise."
    )


def _candidates(
    tokenized: Sequence[TokenizerCall], others: Sequence[TokenizerCall]
) -> Iterator[tuple[Any, str, dict[str, Any], str]]:
    """Yield tokenizers with the texts that they read, the options, and the user's part of the text."""
    for number, call in enumerate(tokenized):
        other = others[number] if number < len(others) and others[number].tokenizer is call.tokenizer else None
        for place, text in enumerate(call.texts):
            counterpart = other.texts[place] if other is not None and place < len(other.texts) else None
            yield call.tokenizer, text, call.options, users_part(text, counterpart)


def users_part(text: str, other: str | None) -> str:
    """Return the part of a text that is the user's, from the same text with another prompt; all of it if unknown.

    >>> users_part("Describe: a red circle.", "Describe: zebra.")
    'a red circle'
    """
    prompt = next((name for name in OTHER_PROMPTS if other is not None and name in other.casefold()), None)
    if prompt is None or other is None or text == other:
        return text
    start = other.casefold().rfind(prompt)
    before, after = other[:start], other[start + len(prompt) :]
    if text.startswith(before) and text.endswith(after) and len(text) >= len(before) + len(after):
        return text[len(before) : len(text) - len(after)]
    return text


def _begin(text: str, inner: str, tokenized: Sequence[TokenizerCall], others: Sequence[TokenizerCall]) -> int:
    """Return where the user's part begins in a text that has it several times."""
    for call, other in zip(tokenized, others, strict=False):
        for own, counterpart in zip(call.texts, other.texts, strict=False):
            prompt = next((name for name in OTHER_PROMPTS if name in counterpart.casefold()), None)
            if own == text and prompt is not None:
                return counterpart.casefold().rfind(prompt)
    return max(text.rfind(inner), 0)


def _found(wanted: Sequence[int], ids: Sequence[int]) -> int | None:
    """Return where a sequence of tokens lies in a longer one; None if it does not."""
    for start in range(len(ids) - len(wanted) + 1):
        if list(ids[start : start + len(wanted)]) == list(wanted):
            return start
    return None


def _labels(
    tokenizer: Any,
    tokens: Any,
    text: str,
    core: Sequence[int],
    length: int,
    inner: str,
    start: int = 0,
    begin: int | None = None,
) -> Labels:
    """Return the characters in the user's part of each of an encoder's tokens, and the special group of the others."""
    begin = max(text.find(inner), 0) if begin is None else begin
    end = begin + len(inner)
    names = tokenizer.convert_ids_to_tokens(tokens["input_ids"])
    spans: list[tuple[int, int] | None] = [None] * length
    groups: list[str | None] = ["<padding>"] * length
    for offset, i in enumerate(core):
        place = start + offset
        a, b = tokens["offset_mapping"][i]
        special = bool(tokens["special_tokens_mask"][i])
        read = bool(tokens["attention_mask"][i])
        groups[place] = None
        if special:
            groups[place] = str(names[i]) if read else "<padding>"
        elif max(a, begin) < min(b, end):
            spans[place] = (max(a, begin) - begin, min(b, end) - begin)
        elif b <= begin or a >= end:
            groups[place] = "<instruction>"
    return tuple(spans), tuple(groups)


def in_chunks(tokenizer: Any, text: str, longest: int, chunks: int) -> Labels:
    """Return the labels of a text in chunks, each with a start and an end of its own, as weighting libraries make."""
    whole = encoded(tokenizer, text, add_special_tokens=False, truncation=False, verbose=False)
    inside = longest - 2
    spans: list[tuple[int, int] | None] = []
    groups: list[str | None] = []
    names = [str(name) for name in (tokenizer.bos_token, tokenizer.eos_token)]
    for chunk in range(chunks):
        offsets = whole["offset_mapping"][chunk * inside : (chunk + 1) * inside]
        padding = inside - len(offsets)
        spans += [None, *[(int(a), int(b)) for a, b in offsets], None, *[None] * padding]
        groups += [names[0], *[None] * len(offsets), names[1], *["<padding>"] * padding]
    return tuple(spans), tuple(groups)


def by_tokenizers(pipeline: Any, text: str, length: int) -> tuple[Labels, tuple[str, ...]]:
    """Return a text's labels, and learned tokens, by a pipeline's tokenizers.

    Raises `ModelError` if these read it in different ways, or there is none.
    """
    tokenizers = tokenizers_of(pipeline)
    labels = [_by_tokenizer(tokenizer, text, length) for tokenizer in tokenizers]
    if not labels:
        raise ModelError(f"{type(pipeline).__name__} has no tokenizer, so prompt_text cannot be read.")
    if any(other[0] != labels[0][0] for other in labels):
        raise ModelError(
            f"{type(pipeline).__name__} has tokenizers that read prompt_text in different ways, and without its text "
            "encoders it is not known which of them the embeddings are of. Load the text encoders, and make the "
            "picture from the prompt."
        )
    return labels[0], learned_tokens(tokenizers[0])


def _by_tokenizer(tokenizer: Any, text: str, length: int) -> Labels:
    longest = min(int(tokenizer.model_max_length), LONGEST)
    if length > longest and length % longest == 0:
        return in_chunks(tokenizer, text, longest, length // longest)
    tokens = encoded(tokenizer, text, padding="max_length", max_length=length, truncation=True)
    return _labels(tokenizer, tokens, text, range(len(tokens["input_ids"])), length, text)
