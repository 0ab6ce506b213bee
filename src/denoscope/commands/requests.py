"""The settings of `denoscope explain`; importing them loads no torch."""

import math
import os
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ..errors import InputError, shown_value
from ..recording import schedules
from ..recording.limits import bytes_of
from ..recording.tasks import check_task
from ..results.explanations import Explanation
from .job import (
    FEWEST_MASKS,
    At,
    Watch,
    check_seed,
    check_steps,
    fitting,
    flag_each,
    flags,
    shown_steps,
    worker,
    written_texts,
)
from .literals import Pairs, kept_pairs, written_pair
from .names import (
    LAYER_METHODS,
    METHOD_OF,
    check_concepts,
    check_dtype,
    check_half,
    check_layers,
    check_methods,
    check_model,
    check_texts,
    methods_for_runs,
    methods_with,
)

if TYPE_CHECKING:
    from ..attributors.base import Attributor

DEFAULT_METHODS = ("df-rise-contrast", "df-rise")
SHOWN_PLACES = (0.07, 0.27, 0.53, 0.93)
"""The places in a run, from 0 to 1, of the steps that are explained if none are named."""
FILES = ("image", "mask_image", "control_image")
"""The fields of a request that are files of pictures."""
OPTION_OF = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "image": "image",
    "mask_image": "mask_image",
    "control_image": "control_image",
    "strength": "strength",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "height": "height",
    "width": "width",
    "seed": "seed",
    "generator": "seed",
    "schedule": "schedule",
    "shift": "shift",
    "scheduler": "scheduler",
}
"""Arguments of a pipeline's call, or of the recording, that have a field of their own."""
OF_THE_PAGE = ("output_type", "return_dict", "advance")
"""Arguments that say what becomes of the picture."""
OF_ONE_PICTURE = ("num_images_per_prompt", "num_videos_per_prompt", "batch_size")
"""Numbers of pictures."""


@dataclass(frozen=True)
class Request:
    """The settings of one explained generation.

    >>> Request("a red circle", steps=10, at=(2, 8)).run().save("out")                   # doctest: +SKIP

    `steps` and `guidance` None mean the pipeline's own defaults. `at` are the steps to explain, from 0 (the noisiest);
    None means four of them, from early to late.

    `image`, `mask_image` (white is painted) and `control_image` are files of pictures. `pipeline` makes another one of
    the model's parts: text2img, img2img or inpaint. `layers` are patterns for the methods that look into layers. `call`
    has all else that the pipeline's call takes, by name.

    `masks` None are 256 in DF-RISE's contrast form and 500 in its others, as many as are published.

    `methods` None are df-rise-contrast and df-rise. `phrases`, `half` and `special_tokens` are those of `Words`; they
    add the method words to these two. `concepts` are those of `Concepts`; they add the method concepts to any. `memory`
    is a limit such as "8GB" (`denoscope.memory_limit`), None the memory that is free. Raises
    `InputError` for a value that no run can have, and for an option that none of the methods takes.
    """

    prompt: str | None = None
    model: str = "shapes"
    seed: int = 0
    steps: int | None = 30
    schedule: schedules.Schedule = "uniform"
    shift: float | None = None
    scheduler: str | None = None
    lora: str | None = None
    guidance: float | None = None
    height: int | None = None
    width: int | None = None
    at: At = None
    methods: tuple[str, ...] | None = None
    masks: int | None = None
    until: float | None = None
    device: str | None = None
    dtype: str | None = None
    negative_prompt: str | None = None
    image: str | os.PathLike[str] | None = None
    mask_image: str | os.PathLike[str] | None = None
    control_image: str | os.PathLike[str] | None = None
    strength: float | None = None
    pipeline: str | None = None
    layers: tuple[str, ...] = ()
    call: Mapping[str, Any] | Pairs = ()
    phrases: tuple[str, ...] | None = None
    half: str | None = None
    special_tokens: bool = False
    concepts: tuple[str, ...] | None = None
    memory: str | None = None

    def __post_init__(self) -> None:
        if self.prompt is not None and not self.prompt.strip() and not any(self.files.values()):
            raise InputError('The prompt is empty. Say what the picture should show, such as "a red circle".')
        if self.steps is not None and self.steps < 1:
            raise InputError(f"steps is {self.steps}. Give at least 1; 20 to 50 are usual.")
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise InputError(f"guidance is {self.guidance}. Give a finite number; 1 is no guidance, 7.5 is usual.")
        if self.masks is not None and self.masks < FEWEST_MASKS:
            raise InputError(
                f"masks is {self.masks}. Give at least {FEWEST_MASKS}; 256 are usual in the contrast form, else 500."
            )
        if self.until is not None and not 0 < self.until < 1:
            raise InputError(f"until is {self.until:g}. Give a reliability between 0 and 1, such as 0.95.")
        for name, pixels in (("height", self.height), ("width", self.width)):
            if pixels is not None and pixels < 1:
                raise InputError(f"{name} is {pixels}. Give a positive number of pixels, or leave it out.")
        if self.strength is not None and not 0 <= self.strength <= 1:
            raise InputError(
                f"strength is {self.strength:g}. Give a number from 0 to 1; 1 keeps nothing of the picture given."
            )
        object.__setattr__(self, "call", kept_pairs(self.call))
        self._check_call()
        check_task(self.pipeline)
        check_layers(self.layers)
        check_seed(self.seed)
        self._check_methods()
        schedules.resolve(self.schedule, self.steps or 1, self.shift)
        schedules.check_scheduler(self.scheduler)
        check_dtype(self.dtype)
        bytes_of(self.memory)
        check_steps(self.at)

    def _check_methods(self) -> None:
        """Raise `InputError` for methods that no run can have, and for options about words that none of them takes."""
        if self.methods is not None:
            check_methods(self.methods, methods_for_runs())
        check_half(self.half)
        check_texts("phrases", self.phrases)
        check_texts("concepts", self.concepts)
        check_concepts(self.running_methods, self.concepts)

    def _check_call(self) -> None:
        """Raise `InputError` for an argument of the call that has a field of its own, or that the page needs."""
        for name, value in self.arguments_of_call.items():
            if name in OPTION_OF:
                raise InputError(
                    f'The argument "{name}" of the call has an option of its own, so it could be said twice. Give it '
                    f'as option "{OPTION_OF[name]}" instead.'
                )
            if name in OF_THE_PAGE or (name in OF_ONE_PICTURE and value != 1):
                raise InputError(
                    f"call has {name}={shown_value(value)}, and a page shows one picture as the pipeline makes it. "
                    "Leave it out, or record with denoscope.Model.trace."
                )

    @property
    def arguments_of_call(self) -> dict[str, Any]:
        """The further arguments of the pipeline's call, by their names."""
        return dict(self.call)

    @property
    def options_about_words(self) -> dict[str, Any]:
        """The options about words that were given, by their names."""
        options = {name: getattr(self, name) for name in METHOD_OF}
        return {name: value for name, value in options.items() if value is not None and value is not False}

    @property
    def running_methods(self) -> tuple[str, ...]:
        """The names of the methods that run, those that an option about words adds among them."""
        return methods_with([*self.options_about_words], self.methods, DEFAULT_METHODS)

    @property
    def files(self) -> dict[str, str | os.PathLike[str] | None]:
        """The files of pictures by the names of their fields; None for those that are not given."""
        return {name: getattr(self, name) for name in FILES}

    def check(self) -> None:
        """Raise `ModelError` for the name of a model that can be none, `InputError` for a file that is no picture."""
        check_model(self.model)
        self.check_files()

    def check_files(self) -> None:
        """Raise `InputError` for a file that is no picture, or a mask that says nothing."""
        from .inputs import read_pictures

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are given when the pictures are read for the run
            read_pictures(self.files)

    def run(self, watch: Watch | None = None) -> Explanation:
        """Load the model, record the run and explain it; see `denoscope.explain`."""
        self.check()
        return cast(Explanation, worker("explain")(self, watch=watch))

    def steps_to_explain(self, total: int) -> Sequence[int]:
        """Return the steps to explain in a run of `total` steps; raises `InputError` for one that it does not have."""
        return shown_steps(self.at, total, early_to_late(total))

    def attributors(self) -> "dict[str, Attributor]":
        """Return the methods with their options, by the name of their group in the result."""
        from ..attributors.base import method

        check_layers(self.layers, self.running_methods)
        made = {}
        for name in self.running_methods:
            options: dict[str, Any] = {"until": self.until, **self.options_about_words}
            if self.masks is not None:
                options["num_masks"] = self.masks
            if self.layers and name in LAYER_METHODS:
                options["layers"] = self.layers
            made[name.replace("-", "_")] = method(name, **fitting(name, options))
        return made

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of `Model.trace`, without the pictures."""
        call: dict[str, Any] = {
            "seed": self.seed,
            "schedule": self.schedule,
            "shift": self.shift,
            "scheduler": self.scheduler,
        }
        for_pipeline = {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "strength": self.strength,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "height": self.height,
            "width": self.width,
        }
        typed = {name: value for name, value in for_pipeline.items() if value is not None}
        return call | typed | self.arguments_of_call

    def command(self) -> str:
        """Return the command line that asks for the same again."""
        prompt = [] if self.prompt is None else [self.prompt]
        return shlex.join(["denoscope", "explain", *prompt, *flags(self.single()), *self.repeated()])

    def single(self) -> dict[str, Any]:
        """Return the settings that a command line has once."""
        texts = {name: written_texts(getattr(self, name)) for name in ("phrases", "concepts")}
        return {**vars(self), **dict.fromkeys(("prompt", "layers", "call")), "methods": self.running_methods, **texts}

    def repeated(self) -> list[str]:
        """Return the options of a command line that may be repeated."""
        pairs = [written_pair(name, value) for name, value in self.arguments_of_call.items()]
        return flag_each("layers", self.layers) + flag_each("call", pairs)


def early_to_late(steps: int) -> tuple[int, ...]:
    """Return an early step, two in the middle and a late one: the steps that are explained when none are named."""
    return tuple(sorted({round(place * (steps - 1)) for place in SHOWN_PLACES}))
