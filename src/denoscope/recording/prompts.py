"""Prompts as a model reads them: words, their tokens, and the positions of both."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..errors import InputError, ModelError, did_you_mean
from .hooks.listened import tokenizers_of

JOINERS = "\u200c\u200d"
MARKS = "".join(filter(lambda sign: unicodedata.category(sign).startswith("M"), map(chr, range(0x10000)))) + JOINERS
"""Accents, vowel signs and joiners, which belong to the letter before them and are no letters to `re`."""

WORD = re.compile(rf"\w[\w{MARKS}]*(?:['’-]\w[\w{MARKS}]*)*|[^\w\s]+")
"""A word, with the parts that an apostrophe or a hyphen joins to it, or a run of punctuation."""

LETTERS = re.compile(r"[^\W_]+")
"""The parts of a word between hyphens, apostrophes and other signs."""

LONGEST = 10**6
"""Tokens that a tokenizer without a length of its own reads at most."""

COUNTED = re.compile(r"(.+) \(([1-9]\d*)\)")
"""A phrase, and the number of its repetition."""


@dataclass(frozen=True)
class Word:
    """A word of a prompt: as it is written, its label (unlike those of its repetitions), and its tokens' positions."""

    text: str
    label: str
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model reads it, in `length` tokens.

    `words` are the words that are read whole, in their order; `cut` the words that did not fit. `special` has the
    positions of the tokens that are no words, by name: the start's, the end's, and "<padding>".
    """

    text: str
    words: tuple[Word, ...]
    cut: tuple[str, ...]
    special: dict[str, tuple[int, ...]]
    length: int
    learned: tuple[str, ...] = ()
    """Tokens of textual inversion, which are one word each however many vectors they have."""

    @property
    def labels(self) -> list[str]:
        """The words, each once: the second "a" is "a (2)"."""
        return [word.label for word in self.words]

    def find(self, phrase: str) -> tuple[Word, ...]:
        """Return the words that a phrase names: a label, or words that follow each other, in upper or lower case.

        >>> prompt.find("red circle"), prompt.find("red circle (2)"), prompt.find("a (2)")      # doctest: +SKIP

        Of a phrase that is there more than once the first is meant; the others are counted. Raises `InputError`, with
        near misses, for a phrase that is not there or was cut off.
        """
        exact = [word for word in self.words if word.label == phrase]
        if exact:
            return tuple(exact)
        counted = COUNTED.fullmatch(phrase)
        text, number = (counted[1], int(counted[2])) if counted else (phrase, 1)
        wanted = _folded([word for word, _, _ in split_words(text, self.learned)])
        words = _folded([word.text for word in self.words])
        starts = _places(wanted, words)
        if len(starts) < number:
            cut_off = len(_places(wanted, [*words, *_folded(self.cut)])) >= number
            raise InputError(self._absent(phrase, cut_off))
        start = starts[number - 1]
        return self.words[start : start + len(wanted)]

    def positions(self, phrase: str) -> tuple[int, ...]:
        """Return the positions of a phrase, or of a special token by its name; raises `InputError` as `find` does."""
        if phrase in self.special:
            return self.special[phrase]
        return tuple(position for word in self.find(phrase) for position in word.positions)

    def _absent(self, phrase: str, cut_off: bool) -> str:
        if cut_off:
            return (
                f'"{phrase}" was cut off: the model reads {self.length} tokens, and these words of the prompt did not '
                f'fit: "{" ".join(self.cut[:12])}". Put what matters first, or shorten the prompt.'
            )
        return f'"{phrase}" is not in the prompt "{self.text}". {did_you_mean(phrase, self.labels)}'


def read(tokenizer: Any, text: str, length: int | None = None) -> Prompt:
    """Return the prompt as a pipeline gives it to the model: padded or cut to `length` (the tokenizer's own)."""
    length = int(tokenizer.model_max_length) if length is None else length
    tokens = encoded(tokenizer, text, padding="max_length", max_length=length, truncation=True)
    whole = encoded(tokenizer, text, truncation=False, verbose=False)
    readable_positions = {i for i, special in enumerate(tokens["special_tokens_mask"]) if not special}
    spans = [(match.group(), *match.span()) for match in WORD.finditer(text)]
    pieces = [(word, _pieces(whole, start, end)) for word, start, end in spans]
    readable = [(word, places) for word, places in pieces if places and readable_positions.issuperset(places)]
    cut = [word for word, places in pieces if not readable_positions.issuperset(places)]
    labels = numbered([word for word, _ in readable])
    words = [Word(word, label, positions) for label, (word, positions) in zip(labels, readable, strict=True)]
    return Prompt(text, tuple(words), tuple(cut), _special(tokenizer, tokens), len(tokens["input_ids"]))


@dataclass(frozen=True, eq=False)
class TextReader:
    """A pipeline's tokenizer: prompts as the model reads them."""

    tokenizer: Any

    @property
    def length(self) -> int:
        """The number of tokens that the model reads, special tokens included."""
        return min(int(self.tokenizer.model_max_length), LONGEST)

    def read(self, text: str, length: int | None = None) -> Prompt:
        """Return a prompt's words and tokens by position, padded or cut to `length` tokens (the tokenizer's own)."""
        return read(self.tokenizer, text, length)

    def tokens(self, prompt: str) -> list[str]:
        """Return the prompt's tokens, special tokens included, without padding."""
        ids = self.tokenizer(prompt, truncation=True, max_length=self.length).input_ids
        return list(self.tokenizer.convert_ids_to_tokens(ids))

    def cut_off(self, prompt: str) -> str:
        """Return the end of the prompt that does not fit; usually empty."""
        ids = self.tokenizer(prompt, truncation=False, verbose=False).input_ids
        if len(ids) <= self.length:
            return ""
        return str(self.tokenizer.decode(ids[self.length - 1 : -1])).strip()

    def vocabulary(self) -> list[str] | None:
        """Return the words of a closed vocabulary, sorted; None for a tokenizer that spells any word from pieces.

        A tokenizer whose tokens are words has its words. One that spells, but was trained with a model that has seen
        certain words only, names them as `vocabulary` in its tokenizer_config.json.
        """
        declared = getattr(self.tokenizer, "init_kwargs", {}).get("vocabulary")
        if declared is not None:
            return sorted(declared)
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if type(getattr(backend, "model", None)).__name__ != "WordLevel":
            return None
        return sorted(set(self.tokenizer.get_vocab()) - set(self.tokenizer.all_special_tokens))

    def unknown_words(self, prompt: str) -> list[str]:
        """Return the words of a prompt that are not in the vocabulary, or become the unknown token, each once."""
        vocabulary = self.vocabulary()
        words = dict.fromkeys(match.group() for match in WORD.finditer(prompt))
        if vocabulary is None:
            return [word for word in words if self._is_unknown(word)]
        readable = set(_folded(vocabulary))
        return [word for word in words if not readable.issuperset(_folded(LETTERS.findall(word)))]

    def _is_unknown(self, word: str) -> bool:
        ids = self.tokenizer(word, add_special_tokens=False, verbose=False).input_ids
        return self.tokenizer.unk_token_id is not None and self.tokenizer.unk_token_id in ids


def prompt_of(call: Mapping[str, Any], name: str = "prompt") -> str | None:
    """Return the text that a recorded picture was made from; of several texts, the picture's own.

    `name` is "prompt" or "negative_prompt". None if the call had no such text.
    """
    texts = call.get(name)
    if texts is None and name == "prompt" and call.get("args"):
        texts = call["args"][0]
    if texts is None or isinstance(texts, str):
        return texts
    each = call.get("num_images_per_prompt") or 1
    return str(texts[min(call.get("picture", 0) // each, len(texts) - 1)])


def numbered(words: Sequence[str]) -> list[str]:
    """Return each word, with its count from the second time on.

    >>> numbered(["a", "circle", "above", "a", "square"])
    ['a', 'circle', 'above', 'a (2)', 'square']
    """
    counts = [words[: i + 1].count(word) for i, word in enumerate(words)]
    return [word if count == 1 else f"{word} ({count})" for word, count in zip(words, counts, strict=True)]


def encoded(tokenizer: Any, text: str, **options: Any) -> Any:
    """Return a tokenizer's result with the characters of each token, which slow tokenizers do not give themselves."""
    if tokenizer.is_fast:
        return tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True, **options)
    tokens, spans = tokenizer(text, return_special_tokens_mask=True, **options), iter(_spans(tokenizer, text))
    tokens["offset_mapping"] = [(0, 0) if special else next(spans) for special in tokens["special_tokens_mask"]]
    return tokens


def _spans(tokenizer: Any, text: str) -> list[tuple[int, int]]:
    """Return the characters of each token, as exactly as the edges of the text's words tell.

    The text is tokenized up to each edge. If the tokens are not the first of the whole text's, the edge lies inside a
    token and is left out: the tokens around it then stand for the characters on both sides.
    """

    def ids(part: str) -> list[int]:
        return list(tokenizer(part, add_special_tokens=False, verbose=False).input_ids)

    whole = ids(text)
    tokens_before = {0: 0, len(text): len(whole)}
    edges = {edge for match in WORD.finditer(text) for edge in match.span()}
    for edge in edges:
        beginning = ids(text[:edge])
        if beginning == whole[: len(beginning)]:
            tokens_before[edge] = len(beginning)
    spans: list[tuple[int, int]] = []
    for start, end in pairwise(sorted(tokens_before)):
        spans += [(start, end)] * (tokens_before[end] - tokens_before[start])
    return spans


def _pieces(tokens: Any, start: int, end: int) -> tuple[int, ...]:
    """Return the positions of the tokens that stand for some of the characters from `start` to `end`."""
    spans = zip(tokens["offset_mapping"], tokens["special_tokens_mask"], strict=True)
    return tuple(i for i, ((a, b), special) in enumerate(spans) if not special and max(a, start) < min(b, end))


def _special(tokenizer: Any, tokens: Any) -> dict[str, tuple[int, ...]]:
    """Return the positions of the special tokens by their names; those that are not read are "<padding>"."""
    positions: dict[str, list[int]] = {}
    names = tokenizer.convert_ids_to_tokens(tokens["input_ids"])
    masks = zip(tokens["special_tokens_mask"], tokens["attention_mask"], strict=True)
    for i, (name, (special, is_read)) in enumerate(zip(names, masks, strict=True)):
        if special:
            positions.setdefault(name if is_read else "<padding>", []).append(i)
    return {name: tuple(places) for name, places in positions.items()}


def learned_tokens(tokenizer: Any) -> tuple[str, ...]:
    """Return the tokens that were added to a tokenizer and are not special ones, such as those of textual inversion.

    A token of several vectors is named once: the further ones are its name with "_1", "_2" and so on.
    """
    added = getattr(tokenizer, "added_tokens_encoder", None) or {}
    special = set(getattr(tokenizer, "all_special_tokens", ()))
    names = [name for name in added if name not in special]
    further = {f"{name}_{i}" for name in names for i in range(1, len(names) + 1)}
    return tuple(name for name in names if name not in further)


def split_words(text: str, learned: Sequence[str] = ()) -> list[tuple[str, int, int]]:
    """Return the words of a text, with the characters from where to where; learned tokens are one word each.

    >>> split_words("a <toy> <toy>_1 car", ("<toy>",))
    [('a', 0, 1), ('<toy>', 2, 15), ('car', 16, 19)]
    """
    if not learned:
        return [(match.group(), *match.span()) for match in WORD.finditer(text)]
    names = "|".join(re.escape(name) for name in sorted(learned, key=len, reverse=True))
    pattern = re.compile(rf"(?P<name>{names})(?:\s*(?P=name)_\d+)*|(?:{WORD.pattern})")
    return [(match["name"] or match.group(), *match.span()) for match in pattern.finditer(text)]


def _places(wanted: Sequence[str], words: Sequence[str]) -> list[int]:
    """Return the places at which all of the wanted words stand side by side."""
    return [i for i in range(len(words)) if wanted and words[i : i + len(wanted)] == wanted]


def _folded(words: Sequence[str]) -> list[str]:
    return [word.casefold() for word in words]


# The text of a recorded run, and the words in it that have a map.


def chosen_words(prompt: Prompt, phrases: Sequence[str] | None, special_tokens: bool) -> tuple[Word, ...]:
    """Return phrases of a prompt, all of its words for None, and behind them its special tokens if wanted.

    Raises `InputError` where there is none, or a phrase is not in the prompt.
    """
    if phrases is None:
        phrases = [word.label for word in prompt.words if is_word(word)]
    words = [Word(phrase, phrase, prompt.positions(phrase)) for phrase in phrases]
    if special_tokens:
        words += [Word(label, label, positions) for label, positions in prompt.special.items()]
    if not words:
        raise InputError(
            f'The text "{prompt.text}" has no words that the model reads. Give special_tokens=True for the tokens at '
            "its start and end."
        )
    return tuple(words)


def is_word(word: Word) -> bool:
    """Return True if a word is more than a sign such as a comma."""
    return any(letter.isalnum() for letter in word.text)


def refuse_wordless(model: Any) -> None:
    """Raise `ModelError` for a model that takes no prompt."""
    if not tokenizers_of(model.pipeline):
        raise ModelError(
            f"{type(model.pipeline).__name__} takes no prompt, so there are no words to show. Load a text-to-image "
            "model, or use another method, such as df-rise."
        )
