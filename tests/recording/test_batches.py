"""How many samples go through a network at once."""

import pytest
import torch

from denoscope.recording.batches import samples_at_once


@pytest.mark.parametrize(("side", "count"), [(8, 64), (16, 64), (32, 16), (128, 1), (256, 1)])
def test_samples_share_the_positions_of_a_cpu(side, count):
    """16,384 positions together, at most 64 samples and at least one."""
    assert samples_at_once(torch.zeros(1, 4, side, side)) == count


def test_other_devices_hold_more():
    sample = torch.zeros(1, 4, 64, 128, device="meta")
    assert samples_at_once(sample) == 2**17 // (64 * 128)
    assert samples_at_once(sample, elsewhere=2**14, most=16) == 2
    assert samples_at_once(torch.zeros(1, 4, 16, 32), on_cpu=2**12, most=16) == 8
