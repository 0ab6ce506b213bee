"""The settings of `denoscope explain`; importing them loads no torch."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ..errors import InputError
from ..recording import schedules
from ..results.explanations import Explanation
from .job import FEWEST_MASKS, At, Watch, check_seed, check_steps, fitting, flags, shown_steps, worker
from .names import check_dtype, check_methods, check_model, methods_for_runs

if TYPE_CHECKING:
    from ..attributors.base import Attributor

DEFAULT_METHODS = ("df-rise-contrast", "df-rise")
SHOWN_PLACES = (0.07, 0.27, 0.53, 0.93)
"""The places in a run, from 0 to 1, of the steps that are explained if none are named."""
"""The fewest masks from which DF-RISE makes a map with a reliability."""


@dataclass(frozen=True)
class Request:
    """The settings of one explained generation.

    >>> Request("a red circle", steps=10, at=(2, 8)).run().save("out")                   # doctest: +SKIP

    `steps` and `guidance` None mean the pipeline's own defaults. `at` are the steps to explain, from 0 (the noisiest);
    None means four of them, from early to late. Raises `InputError` for a value that no run can have.
    """

    prompt: str | None
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
    methods: tuple[str, ...] = DEFAULT_METHODS
    masks: int = 500
    until: float | None = None
    device: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        if self.prompt is not None and not self.prompt.strip():
            raise InputError('The prompt is empty. Say what the picture should show, such as "a red circle".')
        if self.steps is not None and self.steps < 1:
            raise InputError(f"steps is {self.steps}. Give at least 1; 20 to 50 are usual.")
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise InputError(f"guidance is {self.guidance}. Give a finite number; 1 is no guidance, 7.5 is usual.")
        if self.masks < FEWEST_MASKS:
            raise InputError(f"masks is {self.masks}. Give at least {FEWEST_MASKS}; 500 are usual.")
        if self.until is not None and not 0 < self.until < 1:
            raise InputError(f"until is {self.until:g}. Give a reliability between 0 and 1, such as 0.95.")
        for name, pixels in (("height", self.height), ("width", self.width)):
            if pixels is not None and pixels < 1:
                raise InputError(f"{name} is {pixels}. Give a positive number of pixels, or leave it out.")
        check_seed(self.seed)
        check_methods(self.methods, methods_for_runs())
        schedules.resolve(self.schedule, self.steps or 1, self.shift)
        schedules.check_scheduler(self.scheduler)
        check_dtype(self.dtype)
        check_steps(self.at)

    def check(self) -> None:
        """Raise `ModelError` for the name of a model that can be none."""
        check_model(self.model)

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

        options = {"num_masks": self.masks, "until": self.until}
        return {name.replace("-", "_"): method(name, **fitting(name, options)) for name in self.methods}

    def call(self) -> dict[str, Any]:
        """Return the keyword arguments of `Model.trace`."""
        call: dict[str, Any] = {
            "seed": self.seed,
            "schedule": self.schedule,
            "shift": self.shift,
            "scheduler": self.scheduler,
        }
        for_pipeline = {
            "prompt": self.prompt,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "height": self.height,
            "width": self.width,
        }
        return call | {name: value for name, value in for_pipeline.items() if value is not None}

    def command(self) -> str:
        """Return the command line that asks for the same again."""
        prompt = [] if self.prompt is None else [self.prompt]
        return shlex.join(["denoscope", "explain", *prompt, *flags({**vars(self), "prompt": None})])


def early_to_late(steps: int) -> tuple[int, ...]:
    """Return an early step, two in the middle and a late one: the steps that are explained when none are named."""
    return tuple(sorted({round(place * (steps - 1)) for place in SHOWN_PLACES}))
