"""The memory that is free on a device, within the user's limit; a picture that needs more is refused before the run."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from .components import autoencoder_of, denoiser_of, working_device
from .limits import limit_in_effect

SHARE = 0.8
"""The share of the free memory that is taken: allocators keep odd ends, and a CPU's memory is other programs' too."""


def refuse_too_large(pipeline: Any, height: int, width: int, pictures: int, steps: int) -> None:
    """Raise `InputError` if the picture needs more memory than the pipeline's device has free."""
    needed = least_bytes(pipeline, height, width, pictures, steps)
    device = working_device(pipeline)
    free = free_bytes(device)
    if free is not None and needed > free:
        raise InputError(
            f"{pictures} picture(s) of {width} × {height} pixels in {steps} recorded steps take at least "
            f"{needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free on {device}. Give a smaller height and width, "
            "or fewer steps."
        )


def least_bytes(pipeline: Any, height: int, width: int, pictures: int, steps: int) -> int:
    """Return a lower bound of the bytes that are held at once, from sizes that the parts' configs give.

    Recorded: the prediction and the next sample of each step. At work: two feature maps of the denoiser's first block
    (for all pictures), or two of the autoencoder's at full size (for one) and the pictures in float32.
    """
    denoiser: Any = denoiser_of(pipeline)
    autoencoder = autoencoder_of(pipeline)
    item = next(denoiser.parameters()).element_size()
    factor = 1 if autoencoder is None else int(getattr(pipeline, "vae_scale_factor", 8))
    places = (height // factor) * (width // factor)
    config = denoiser.config if autoencoder is None else autoencoder.config
    channels = config.get("latent_channels") or config.get("in_channels") or 1
    recorded = 2 * steps * pictures * channels * places * item
    denoising = 2 * pictures * _first_block(denoiser.config) * places * item
    decoding = pictures * 3 * height * width * 4
    if autoencoder is not None and not getattr(autoencoder, "use_tiling", False):
        decoding += 2 * _first_block(autoencoder.config) * height * width * item
    return int(recorded + max(denoising, decoding))


def _first_block(config: Mapping[str, Any]) -> int:
    """Return the channels of a network's first block, 1 if its config does not give them."""
    channels = config.get("block_out_channels") or (1,)
    return int(channels[0]) if isinstance(channels[0], int) else 1


def free_bytes(device: torch.device) -> int | None:
    """Return the free memory of a device; None if it cannot be told."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type == "mps":
        # Not tried on such a machine: the system's recommended most, less what the driver has given to this process,
        # of which what no tensor takes can be used again.
        cached = torch.mps.driver_allocated_memory() - torch.mps.current_allocated_memory()
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory() + cached
    if device.type != "cpu":
        return None
    return _available() or _installed()


def used_bytes(device: torch.device) -> int:
    """Return the memory of a device that this process uses: that of tensors, and on a CPU that of the process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    return _resident() if device.type == "cpu" else 0


def room(device: torch.device) -> int | None:
    """Return the bytes that may be taken beside those that are used: of the free memory, and within the user's limit.

    0 where the limit is reached already; None if neither is known.
    """
    free, limit = free_bytes(device), limit_in_effect()
    bounds = [] if free is None else [int(SHARE * free)]
    if limit is not None:
        bounds.append(max(0, limit - used_bytes(device)))
    return min(bounds, default=None)


BEYOND_SAVED = 1.3
"""The whole need of a gradient, by the bytes that autograd saves."""


def room_for_saved(device: torch.device, beyond: float = BEYOND_SAVED) -> int | None:
    """Return the bytes that autograd may save for a gradient, so that all that it needs fits in the `room`."""
    free = room(device)
    return None if free is None else int(free / beyond)


def _resident() -> int:
    """Return the resident memory of this process on Linux; elsewhere the most that it has had so far."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, UnicodeDecodeError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


def _available() -> int | None:
    """Return the memory that Linux could give to a program, its caches included; None on other systems."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    kilobytes = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(kilobytes[0]) * 1024 if kilobytes else None


def _installed() -> int | None:
    """Return the memory of the machine; None if the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
