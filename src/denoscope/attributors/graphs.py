"""The graph of one prediction: whole where it fits in memory, else block by block."""

from collections.abc import Callable
from typing import TypeVar

import torch

from ..recording.batches import portions_of
from ..recording.hooks.checkpointing import (
    ALL,
    SOME,
    Blocks,
    block_by_block,
    blocks_in,
    counting_saved,
    weights_without_gradients,
)
from ..recording.memory import BEYOND_SAVED, room_for_saved
from ..recording.steps import Step

Result = TypeVar("Result")


def in_room(
    kind: str, step: Step, work: Callable[[Blocks], Result], *, whole: bool = False, beyond: float = BEYOND_SAVED
) -> Result:
    """Return work(blocks), which computes and walks back through a prediction of the step's denoiser.

    What autograd saves is counted. Where it is more than there is room for, or memory runs out, the work is done again
    with the denoiser's `blocks` computed twice, once forth and once on the way back. A `whole` graph is never divided.
    `beyond` is the whole need of the work by the bytes that autograd saves. `kind` names the work; what was found
    for it stands for all steps of a question. Raises `MemoryShortage` where memory runs out all the same.
    """
    device = step.sample.device
    portions = portions_of(kind, step.sample, None, lambda: (1, 1), again=ALL if whole else SOME)

    def done(part: slice) -> Result:
        with torch.enable_grad(), weights_without_gradients(step.networks):
            if whole:
                return work(Blocks())
            if portions.again == ALL:
                with block_by_block([step.denoiser]) as blocks:
                    return work(blocks)
            with counting_saved(step.networks, room_for_saved(device, beyond)):
                return work(Blocks())

    return next(result for _, result in portions.over(1, done, device))


def lies_inside(denoiser: torch.nn.Module, path: str) -> bool:
    """Return True for a layer inside of a block that would be computed twice, and not a block itself."""
    parts = path.split(".")
    above = {id(denoiser.get_submodule(".".join(parts[:i]))) for i in range(1, len(parts))}
    return any(id(block) in above for block in blocks_in(denoiser))
