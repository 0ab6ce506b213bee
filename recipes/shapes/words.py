"""The tokenizer: CLIP's byte-pair encoding, its merges learned from the vocabulary of the captions."""

import json
from pathlib import Path

import torch
from loop import DRAWN, cached, captions
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from denoscope.worlds.shapes.scenes import WORDS

LENGTH = 32


def tokenizer(folder: Path) -> CLIPTokenizer:
    """Write vocab.json and merges.txt to `folder`: every caption word is one token, other text is spelled in pieces."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2000, min_frequency=1, show_progress=False, end_of_word_suffix="</w>", initial_alphabet=alphabet
    )
    bpe.train_from_iterator([" ".join(WORDS)] * 2, trainer)
    learned = json.loads(bpe.to_str())["model"]
    pieces = [*alphabet, *(f"{c}</w>" for c in alphabet), *("".join(pair) for pair in learned["merges"])]
    vocabulary = list(dict.fromkeys([*pieces, "<|startoftext|>", "<|endoftext|>"]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(vocabulary)}))
    merges = [" ".join(pair) for pair in learned["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    return CLIPTokenizer(*files, model_max_length=LENGTH, vocabulary=sorted(WORDS))


def cached_tokens(folder: Path, words: CLIPTokenizer, count: int) -> torch.Tensor:
    """Return the token ids of a caption for each training seed, (count, LENGTH), made once and stored."""

    def tokens() -> torch.Tensor:
        return words(captions(0, count), padding="max_length", return_tensors="pt").input_ids

    return cached(folder / f"tokens-{count}-{DRAWN}.pt", tokens)


if __name__ == "__main__":
    import sys

    folder = Path(sys.argv[1]) / "shapes" / "tokenizer"
    words = tokenizer(folder)
    words.save_pretrained(folder)
    assert all(len(words(word).input_ids) == 3 for word in WORDS)
