"""Relevance where text and picture are one sequence: against a walk through the sequence that is written out."""

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from families.every import FAMILIES
from small import refusal

import denoscope
from denoscope import Relevance
from denoscope.attributors.relevance import Attention, TextSide, propagated_joint
from denoscope.errors import ModelError
from denoscope.recording.listening import reading_of

KERNEL = torch.nn.functional.scaled_dot_product_attention


def trace_of(name: str) -> denoscope.Trace:
    pipeline = FAMILIES[name].build()
    pipeline.set_progress_bar_config(disable=True)
    return denoscope.load(pipeline).trace(**FAMILIES[name].call(), seed=1)


@contextlib.contextmanager
def written_out(monkeypatch: pytest.MonkeyPatch, kept: list[torch.Tensor]) -> Iterator[None]:
    """Compute attention step by step, and keep its probabilities."""

    def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **kwargs):
        assert attn_mask is None and not is_causal
        A = (query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)).softmax(-1)
        A.requires_grad_() if not A.requires_grad else A.retain_grad()
        kept.append(A)
        return A @ value

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
        yield


@pytest.mark.parametrize(("name", "text_first"), [("sd3", False), ("flux", True)])
def test_one_sequence_is_walked_through_as_chefer_gur_and_wolf_do(monkeypatch, name, text_first):
    """R += Ā R over the whole sequence, in its own order; the picture's rows and the text's columns are read off."""
    trace = trace_of(name)
    step, reading = trace[1], reading_of(trace[0])
    call, row, kept = step.replay.single, reading.rows[0], []
    with torch.enable_grad(), written_out(monkeypatch, kept):
        outputs = call(step.sample.clone().requires_grad_(), 1)
        gradients = torch.autograd.grad(outputs[row].sum(), kept)
    tokens, places = reading.prompt.length, kept[0].shape[-1] - reading.prompt.length
    text = np.arange(tokens) + (0 if text_first else places)
    picture = np.arange(places) + (tokens if text_first else 0)
    R = np.eye(tokens + places)
    for A, gradient in zip(kept, gradients, strict=True):
        mean = (A.detach() * gradient).clamp(min=0)[row].double().mean(dim=0).numpy()
        R = R + mean @ R
    side = TextSide.of(trace, negative=False, reduced=False)
    excess = side.excess.double().numpy()
    sums = excess.sum(axis=1, keepdims=True)
    R_qq = np.divide(excess, sums, out=np.zeros_like(excess), where=sums > 0) + np.eye(tokens)
    R_iq = R[np.ix_(picture, text)] @ R_qq
    found = Relevance()(trace, [1])
    for word in side.prompt.words:
        expected = R_iq[:, list(word.positions)].sum()
        np.testing.assert_allclose(found.relevance.sel(step=1, token=word.label), expected, rtol=2e-3)
    assert found.saliency.sizes["token"] == len(side.prompt.words) and float(found.saliency.std()) > 0


def test_the_text_alone_attending_to_itself_gives_the_picture_nothing():
    """Ā from the text to the text only: no word has relevance for a place."""
    mean = torch.zeros(5, 5)
    mean[:2, :2] = 1
    assert not propagated_joint([Attention("block", False, mean, joint=True)], torch.zeros(2, 2), 3).any()
    mean[3, 1] = 0.5
    R_iq = propagated_joint([Attention("block", False, mean, joint=True)], torch.zeros(2, 2), 3)
    assert R_iq[1, 1] == 0.5 and R_iq.sum() == 0.5


def test_layers_without_probabilities_are_named():
    """Sana's linear self-attention has none; its word maps need the cross-attention alone."""
    trace = trace_of("sana")
    assert "transformer_blocks.0.attn1" in refusal(Relevance(), trace, [1], kind=ModelError)
    assert denoscope.Words()(trace, [1]).saliency.sizes["token"] == 4


def test_attention_within_frames_is_refused():
    assert "within each frame" in refusal(Relevance(), trace_of("latte"), [1], kind=ModelError)
