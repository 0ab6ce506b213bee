"""The logsumexp of torch's fused attention, and the probabilities of a few keys by it."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from denoscope.recording.hooks import attention
from denoscope.recording.hooks.attention import AttentionCall, attending, attention_probabilities
from denoscope.recording.hooks.kernels import Kernels, as_rows, is_confirmed


def vectors(dtype: torch.dtype = torch.float32, heads: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 50, 16, generator=generator)
    return (2 * query).to(dtype), 2 * torch.randn(2, heads, 77, 16, generator=generator).to(dtype)


def told_of(query: torch.Tensor, key: torch.Tensor, **options: object) -> torch.Tensor | None:
    with torch.no_grad(), Kernels() as kernels:
        output = scaled_dot_product_attention(query, key, key, **options)
    assert torch.equal(output, scaled_dot_product_attention(query, key, key, **options))
    return as_rows(kernels.logsumexp, query)


@pytest.mark.parametrize("dtype, allowed", [(torch.float32, 1e-6), (torch.bfloat16, 2e-4), (torch.float64, 1e-12)])
@pytest.mark.parametrize("scale", [None, 0.4])
def test_probabilities_of_some_keys_are_those_of_the_definition(dtype, allowed, scale):
    query, key = vectors(dtype)
    told = told_of(query, key, scale=scale)
    assert told is not None and is_confirmed(told, query, key, 16**-0.5 if scale is None else scale)
    call = AttentionCall("layer", True, query=query, key=key, masks={"scale": scale}, logsumexp=told)
    rows, queries, heads, keys = [1], [3, 4, 9], [0, 2, 3], [5, 2, 70]
    parts = call.of_keys(rows, queries, heads, keys, at_once=20)
    assert [part.shape[1] for part in parts] == [2, 1]
    wide = torch.promote_types(dtype, torch.float32)
    whole = attention_probabilities(query.to(wide), key.to(wide), scale=scale)
    expected = whole[1][heads][:, queries][..., keys][None]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=allowed, rtol=0)


def test_fewer_heads_of_keys_are_those_of_several_queries():
    query, key = vectors(heads=2)
    repeated = key.repeat_interleave(2, dim=1)
    call = AttentionCall("layer", True, query=query, key=key, logsumexp=told_of(query, repeated))
    found = torch.cat(call.of_keys([0], list(range(50)), [1, 2], [7, 8]), dim=1)
    torch.testing.assert_close(found, attention_probabilities(query, repeated)[:1, 1:3, :, 7:9], atol=1e-6, rtol=0)


def test_another_logsumexp_is_not_confirmed():
    query, key = vectors()
    told = told_of(query, key)
    assert is_confirmed(told, query, key, 0.25)
    for other in (told + 1e-3, told / 0.6931, torch.full_like(told, float("nan")), told.roll(1, dims=2)):
        assert not is_confirmed(other, query, key, 0.25)
    assert (
        as_rows(told[:, :2], query) is None and as_rows(told[..., :0], query) is None and as_rows(None, query) is None
    )
    filled = torch.nn.functional.pad(told, (0, 14))
    assert torch.equal(as_rows(filled, query), told) and torch.equal(as_rows(told[..., None], query), told)


class Layer(torch.nn.Module):
    """An attention whose kernel's logsumexp is of the kind that is set."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q = self.to_k = torch.nn.Identity()

    def forward(self, query: torch.Tensor, **options: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(query, query, query, **options)


def heard(query: torch.Tensor, **options: torch.Tensor) -> AttentionCall:
    calls: list[AttentionCall] = []
    layer = torch.nn.ModuleDict({"layer": Layer()})
    with torch.no_grad(), attending(layer, calls.append):
        layer["layer"](query, **options)
    return calls[0]


def test_a_kernel_whose_logsumexp_is_another_is_not_used(monkeypatch):
    """As one in base 2 would be: all keys are computed, and the maps are the same."""
    query, _ = vectors()
    plain = heard(query)
    assert plain.logsumexp is not None
    monkeypatch.setattr(attention, "as_rows", lambda told, query: as_rows(told / 0.6931, query))
    other = heard(query)
    assert other.logsumexp is None
    arguments = ([0, 1], list(range(50)), [0, 1, 2, 3], [4, 20])
    torch.testing.assert_close(other.of_keys(*arguments)[0], plain.of_keys(*arguments)[0], atol=3e-6, rtol=0)


def test_masked_attention_is_computed_whole():
    query, _ = vectors()
    assert heard(query, attn_mask=torch.ones(50, 50, dtype=torch.bool).tril()).logsumexp is None
