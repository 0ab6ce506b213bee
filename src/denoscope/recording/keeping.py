"""Recorded tensors kept on another device than the pipeline's: in host memory, to leave an accelerator's free."""

from typing import Any

import torch


class Keeper:
    """Moves tensors to a device, each once, so that what steps share is still shared there.

    Known are the tensors that were moved since the last but one `next_step`: what a step shares, it shares with the
    step before, and older originals can be freed.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._before: dict[tuple[Any, ...], tuple[torch.Tensor, torch.Tensor]] = {}
        self._known: dict[tuple[Any, ...], tuple[torch.Tensor, torch.Tensor]] = {}

    def next_step(self) -> None:
        """Forget the tensors of the step before the last."""
        self._before, self._known = self._known, {}

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor on the device, the same one for the same tensor."""
        key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device)
        if key not in self._known:  # the original is kept with it, so that its address stays its own
            self._known[key] = self._before.get(key) or (tensor, kept(tensor, self.device))
        return self._known[key][1]


def kept(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor on a device; coming from an accelerator of CUDA to the host, in pinned memory."""
    if tensor.device == device or tensor.device.type != "cuda" or device.type != "cpu":
        return tensor.to(device)
    host = torch.empty_like(tensor, device=device, pin_memory=True)
    return host.copy_(tensor)
