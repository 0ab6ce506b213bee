"""A recorded run: its steps, its pictures and the call that made them."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from ..errors import InputError
from .hooks.replay import Replay
from .hooks.trees import tensors_of
from .keeping import Keeper
from .loading import device_of
from .pictures import Images, finished
from .steps import Step
from .stored import read
from .storing import Parts, packed, write

READ_SCALE = ("guidance", "timestep_cond")
"""Arguments by which distilled denoisers are told the guidance scale."""


class Trace(Sequence[Step]):
    """A recorded run: a sequence of `Step`s, the pictures, and the call that made them."""

    def __init__(self, steps: Sequence[Step], result: Any, call: dict[str, Any], model: Any):
        self.steps, self.result, self.call, self.model = tuple(steps), result, call, model

    def __len__(self) -> int:
        return len(self.steps)

    @overload
    def __getitem__(self, index: int) -> Step: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Step, ...]: ...
    def __getitem__(self, index: int | slice) -> Step | tuple[Step, ...]:
        return self.steps[index]

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __repr__(self) -> str:
        first, last = self.steps[0], self.steps[-1]
        return (
            f"Trace of {len(self)} steps, time steps {first.timestep:g} to {last.timestep:g}, {self.pictures} "
            f"picture(s), samples {tuple(first.sample.shape[1:])}, {self.nbytes / 1e6:.1f} MB"
        )

    @property
    def images(self) -> Any:
        """The pictures or clips that the pipeline returned; raises `InputError` if it returned something else."""
        images = finished(self.result)
        if images is None:
            raise InputError(self._no_images())
        return images

    def _no_images(self) -> str:
        fields = ", ".join(getattr(self.result, "keys", list)()) or "no fields"
        return (
            f"The pipeline returned {type(self.result).__name__} with {fields} and no pictures. Denoscope explains "
            "pictures and clips: record a pipeline that returns one. The pipeline's own result is trace.result."
        )

    @property
    def image(self) -> Any:
        """The first picture."""
        return self.images[0]

    @property
    def pictures(self) -> int:
        """The number of pictures that were made at once."""
        return len(self.steps[0].sample) // self.unit

    @property
    def unit(self) -> int:
        """The rows of a sample that make one picture: 1 as a rule, the frames of a clip in some pipelines."""
        return 1 if self.steps[0].run is None else self.steps[0].run.unit

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        """Return the pictures of samples, as `Step.decode`."""
        return self.steps[-1].decode(samples)

    def made_under(self, context: Callable[[], AbstractContextManager[Any]]) -> None:
        """Let the pipeline be asked under this context too, which was open around the recorded call."""
        run = self.steps[0].run
        if run is not None:
            run.resumption.contexts.append(context)

    def forget_checks(self) -> None:
        """Check every step's engine again at its next question: the network may have been changed since."""
        for step in self.steps:
            if not step.checked:
                step.forget_check()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors the trace holds; what steps share counts once."""
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in self._tensors()
        }
        return sum(storages.values())

    def _tensors(self) -> list[torch.Tensor]:
        tensors = []
        for step in self.steps:
            tensors += [step.sample, step.model_output, step.prev_sample]
            for call in step.direct.calls if step.direct is not None else ():
                tensors += tensors_of((call.args, call.kwargs, call.beside))
        return tensors

    # A trace that lasts.

    @property
    def stored_nbytes(self) -> int:
        """Bytes of the folder that `save` would write, to within a few thousand: PNG makes pictures smaller."""
        return packed(self._parts()).nbytes

    def save(self, folder: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Store the trace in a new folder, whole or not at all, and return the folder's absolute path.

        >>> Trace.load(trace.save("circle"), model)[3].predict(trace[3].sample).equal(trace[3].predict(trace[3].sample))
        True

        Tensors are stored as safetensors, pictures as PNG, and the rest as JSON. `stored_nbytes` is the size. A trace
        that is there is replaced if `overwrite` is true. Raises `InputError` for a place where no folder can be
        made or something else is, and for a trace that no folder can hold; `OutputError` if the disk has too little
        room or cannot be written to. Warns of arguments that cannot be stored, such as callbacks.
        """
        return write(self._parts(), folder, overwrite)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], model: Any = None) -> "Trace":
        """Return a trace that `save` stored.

        Without its `model` it has its pictures, samples, predictions and noise levels, and refuses what needs a network
        with a `ModelError`. With it, it can be asked like the trace that was stored. Raises `InputError` if the folder
        holds no trace, and `ModelError` for a model with other weights (by their SHA-256) or settings.
        """
        parts = read(folder, model)
        return cls(parts.steps, parts.result, parts.call, parts.model)

    def to(self, device: str | torch.device) -> "Trace":
        """Return the trace with its recorded tensors on a device, "cpu" to free an accelerator's memory.

        It can still be asked: what a question needs is brought to the model's device for that time, and answers are
        where the samples of the question are. Raises `InputError` for a device that cannot hold numbers.
        """
        place = device_of(device)
        assert place is not None
        moved, replays = Keeper(place), dict[int, Replay]()

        def replay(direct: Replay | None) -> Replay | None:
            if direct is not None and id(direct) not in replays:
                replays[id(direct)] = direct.to(moved)
            return None if direct is None else replays[id(direct)]

        run = self.steps[0].run
        run = None if run is None else run.moved(moved, [replay(direct) for direct in run.directs])
        return Trace(
            [step.moved(moved, replay(step.direct), run) for step in self.steps], self.result, self.call, self.model
        )

    def _parts(self) -> Parts:
        return Parts(self.steps, self.result, self.call, self.model)

    # Its parts.

    def picture(self, index: int) -> "Trace":
        """Return the trace of one picture of a batch.

        Raises `InputError` if there is no such picture, or if the samples are not one for each picture.
        """
        if not 0 <= index < self.pictures:
            raise InputError(
                f"This trace has no picture {index}: it holds {self.pictures}, counted from 0 to {self.pictures - 1}."
            )
        if len(self.images) != self.pictures:
            raise InputError(
                f"This trace has {self.pictures} samples for {len(self.images)} pictures, so the sample of a picture "
                "is not known, and no picture can be chosen. Record one picture in a call."
            )
        result = Images(self.images[index : index + 1])
        steps: list[Step] = []
        for step in self.steps:
            steps.append(step.picture(index, steps[-1] if steps else None))
        return Trace(steps, result, {**self.call, "picture": self.call.get("picture", 0) + index}, self.model)

    def guidance_in_effect(self, scale: float | None) -> float | None:
        """Return the guidance scale that counted in this run, for the `scale` that the pipeline was given.

        1 if the denoiser saw each sample once and was not told the scale: diffusers switches guidance off so, in most
        pipelines for every scale of 1 or less. The scale itself for guided runs, for denoisers that are told it, and
        for runs that cannot be replayed and have a scale above 1.
        """
        direct = self.steps[0].direct
        if scale is None or scale == 1:
            return scale
        if direct is None:
            return max(scale, 1.0)
        reads_scale = any(call.kwargs.get(name) is not None for name in READ_SCALE for call in direct.calls)
        return scale if direct.copies > 1 or reads_scale else 1.0

    def with_steps(self, steps: Sequence[Step]) -> "Trace":
        """Return the same trace with these steps in the place of those of their index."""
        others = {step.index: step for step in steps}
        return Trace([others.get(step.index, step) for step in self.steps], self.result, self.call, self.model)

    def continued(self, index: int, samples: torch.Tensor) -> torch.Tensor:
        """Return the clean samples that other samples of a step end in, (n, channels, h, w) to the same.

        `next_sample` from that step to the last: stateless and deterministic. The step's own sample ends in the
        recorded one only if the scheduler's own step is the same. Euler's is (4e-6 apart in 8 steps of the bundled
        model), and DDIM's if its previous time steps are the recorded ones and its last step goes to x0: leading
        spacing with `set_alpha_to_one` is 3e-6 apart, without it 0.11, linspace spacing 0.45, `clip_sample` 3.2.
        Raises `InputError` if there is no such step.
        """
        if not 0 <= index < len(self):
            raise InputError(f"This trace has no step {index} to go on from: it has steps 0 to {len(self) - 1}.")
        for step in self.steps[index:]:
            samples = step.next_sample(samples)
        return samples

    def samples_decoded(self) -> np.ndarray:
        """Return every step's sample as a picture: (steps, [frames,] height, width, 3) in [0, 1], of the first."""
        return self._decoded(lambda step: step.sample[: self.unit])

    def clean_decoded(self) -> np.ndarray:
        """Return every step's predicted clean picture: (steps, [frames,] height, width, 3) in [0, 1], of the first."""
        return self._decoded(lambda step: step.pred_original_sample[: self.unit])

    @torch.no_grad()
    def _decoded(self, part: Callable[[Step], torch.Tensor]) -> np.ndarray:
        pictures = [step.decode(part(step))[0] for step in self.steps]
        return torch.stack(pictures).movedim(1, -1).float().cpu().numpy()
