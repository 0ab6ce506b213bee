"""Which tokens are which words: against the tokenizer's own pieces, one word at a time."""

import pytest
from small import refusal, tokenizer
from transformers import ByT5Tokenizer

from denoscope.recording.prompts import numbered, read


@pytest.fixture(scope="module")
def words():
    return tokenizer()


@pytest.mark.parametrize(
    "text",
    [
        "a red circle left of a striped square",
        "  A  Red\tcircle ",
        "a zebra's red-ish circle, on white!",
        "ü 123 a",
        "a red circle with a zebra and a zebra",
    ],
)
def test_each_word_has_the_pieces_that_it_has_alone(words, text):
    prompt = read(words, text)
    ids = words(text, padding="max_length", max_length=words.model_max_length, truncation=True).input_ids
    at = 1
    for word in prompt.words:
        alone = words(word.text).input_ids[1:-1]
        assert word.positions == tuple(range(at, at + len(alone)))
        assert [ids[i] for i in word.positions] == alone
        at += len(alone)
    others = sorted(i for positions in prompt.special.values() for i in positions)
    assert others == [0, *range(at, len(ids))] and prompt.length == len(ids) and prompt.cut == ()
    assert prompt.special["<|startoftext|>"] == (0,) and prompt.special["<|endoftext|>"] == (at,)
    assert prompt.special["<padding>"] == tuple(range(at + 1, len(ids)))


def test_repeated_words_stay_apart(words):
    prompt = read(words, "a red circle above a red circle")
    assert prompt.labels == ["a", "red", "circle", "above", "a (2)", "red (2)", "circle (2)"]
    assert prompt.positions("red") == (2,) and prompt.positions("red (2)") == (6,)
    assert numbered(["a", "a", "A", "a"]) == ["a", "a (2)", "A", "a (3)"]


def test_phrases(words):
    prompt = read(words, "a small Red circle left of a blue zebra")
    assert prompt.positions("red circle") == (3, 4)
    assert prompt.positions("LEFT OF a") == (5, 6, 7)
    assert prompt.positions("blue zebra") == (8, 9, 10, 11, 12, 13)
    assert prompt.positions("<|endoftext|>") == (14,)


def test_phrases_that_are_there_again_are_counted(words):
    prompt = read(words, "a red circle above a red circle")
    assert prompt.positions("red circle") == (2, 3) and prompt.positions("Red circle (2)") == (6, 7)
    assert "is not in the prompt" in refusal(prompt.find, "red circle (3)")


class WithoutOffsets:
    """The bundled tokenizer as one that does not say which characters a token stands for."""

    is_fast = False

    def __init__(self, own):
        self.own, self.convert_ids_to_tokens = own, own.convert_ids_to_tokens
        self.model_max_length = own.model_max_length

    def __call__(self, text, **options):
        return self.own(text, **options)


@pytest.mark.parametrize(
    "text", ["a red circle", "a zebra's red-ish circle, on white!", "ü 123 a", "red " * 28 + "zebra"]
)
def test_offsets_can_be_done_without(words, text):
    assert read(WithoutOffsets(words), text) == read(words, text)


def test_a_tokenizer_of_bytes():
    """ByT5 is none of the tokenizers library: a token for every byte, spaces too, and no start token."""
    prompt = read(ByT5Tokenizer(), "a rød circle", 20)
    assert prompt.positions("rød") == (2, 3, 4, 5) and prompt.positions("circle") == tuple(range(7, 13))
    assert prompt.special == {"</s>": (13,), "<padding>": tuple(range(14, 20))}


def test_a_phrase_that_is_not_there(words):
    prompt = read(words, "a small red circle")
    assert 'Did you mean "circle"? Allowed: a, small, red, circle.' in refusal(prompt.find, "circel")
    assert "is not in the prompt" in refusal(prompt.find, "small circle")
    assert "is not in the prompt" in refusal(prompt.find, " ")


def test_what_is_cut_off_is_no_word(words):
    """30 of the 32 tokens are words; the last of them, of several pieces, is cut in the middle."""
    prompt = read(words, "red " * 28 + "zebra circle above")
    assert len(prompt.words) == 28 and prompt.cut == ("zebra", "circle", "above")
    assert "<padding>" not in prompt.special
    assert "was cut off: the model reads 32 tokens" in refusal(prompt.find, "zebra circle")
    assert "was cut off" in refusal(prompt.find, "red zebra")
    assert read(words, "red " * 30).cut == ()


def test_an_empty_prompt_has_no_words(words):
    prompt = read(words, "")
    assert prompt.words == () and len(prompt.special["<padding>"]) == 30
