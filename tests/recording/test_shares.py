"""What rows count in a prediction, and which half of guidance that makes them."""

import pytest
import torch

from denoscope.recording.shares import counted, of_the_other_half


def outputs(number: int, rows: int = 2) -> list[torch.Tensor]:
    return [torch.randn(rows, 4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(number)]


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("apart", [False, True], ids=["one call", "two calls"])
def test_counts_are_those_of_guidance(sign, apart):
    """Two pictures, u first; a pipeline that negates its denoiser's output counts the same."""
    u, c = outputs(2)
    prediction, sample = sign * (u + 7.5 * (c - u)), torch.randn(2, 4, 8, 8)
    counts = counted([u, c] if apart else [torch.cat([u, c])], sample, prediction)
    expected = [(-6.5,), (7.5,)] if apart else [(-6.5, 7.5)]
    assert [pytest.approx(call, abs=1e-4) for call in expected] == counts


def test_learned_variances_beside_the_prediction_do_not_count():
    u, c = outputs(2)
    beside = torch.cat([torch.cat([u, c]), torch.randn(4, 4, 8, 8)], dim=1)
    assert counted([beside], torch.randn(2, 4, 8, 8), u + 3 * (c - u)) == [pytest.approx((-2, 3), abs=1e-4)]


def test_what_is_no_sum_of_the_outputs_is_not_counted():
    u, c = outputs(2)
    sample = torch.randn(2, 4, 8, 8)
    assert counted([torch.cat([u, c])], sample, (u + 3 * (c - u)).clamp(-1, 1)) is None
    assert counted([torch.randn(3, 4, 8, 8)], sample, u) is None


THREE_WAY = (7.5, -6.0, -0.5)
"""InstructPix2Pix: text and picture, the picture alone, neither."""
PERTURBED = (-6.5, 10.5, -3.0)


@pytest.mark.parametrize(
    "counts, conditional, unconditional",
    [
        ([(-6.5, 7.5)], [{0}], [{1}]),
        ([(7.5,), (-6.5,)], [set(), {0}], [{0}, set()]),
        ([THREE_WAY], [{1, 2}], [{0}]),
        ([PERTURBED], [{0, 2}], [{1}]),
        ([(7.5, -6.5, 0.0)], [{1}], [{0}]),
        ([(0.3, 0.7)], [set()], [set()]),
        ([(1.0,)], [set()], [set()]),
        ([(1.0005, -0.0005)], [set()], [set()]),
        ([(1.002, -0.002)], [{1}], [{0}]),
    ],
)
def test_only_what_is_clear_is_of_the_other_half(counts, conditional, unconditional):
    assert [set(rows) for rows in of_the_other_half(counts, True)] == conditional
    assert [set(rows) for rows in of_the_other_half(counts, False)] == unconditional
