"""The settings of `denoscope recognise`; importing them loads no torch."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import InputError, did_you_mean
from ..recording.limits import bytes_of
from ..results.together import Recognition
from .job import At, Watch, check_seed, check_steps, flag_each, flags, shown_steps, worker
from .names import check_dtype, check_methods, methods_for_labels
from .requests import Request

if TYPE_CHECKING:
    from ..attributors.base import Attributor
    from ..vision.classifiers import Classifier

STUDY_METHODS = ("integrated-gradients", "gradient-shap", "occlusion")
NOISINGS = ("blend", "ddpm")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


@dataclass(frozen=True)
class Preset:
    """Settings of a published study, each of which an option of the user replaces."""

    frames: int
    noising: str
    at: At
    methods: tuple[str, ...]
    n_steps: int


USUAL = Preset(frames=100, noising="blend", at=None, methods=STUDY_METHODS, n_steps=50)
PRESETS = {"study": Preset(frames=100, noising="blend", at="all", methods=STUDY_METHODS, n_steps=20)}
"""The settings of the study (KCC 2024 Explainable AI workshop) beside those that are defaults here anyway: Gradient
SHAP with n_samples=50 and stdevs=1e-4, Occlusion with windows of 15 × 15 of 224 pixels every 8."""


def preset_of(name: str | None) -> Preset:
    """Return the settings of a preset, or the usual ones for None. Raises `InputError` for an unknown name."""
    if name is None:
        return USUAL
    if name not in PRESETS:
        raise InputError(f'There is no preset "{name}". {did_you_mean(name, PRESETS)}')
    return PRESETS[name]


@dataclass(frozen=True)
class Study:
    """The settings of a recognition: photographs, or a generation (`trace`) to look at instead.

    >>> Study(photographs=("cat.png",), labels=("tabby",)).run().save("out")             # doctest: +SKIP

    `labels` are followed in every photograph; none means the likeliest label of each clean photograph. For a zero-shot
    classifier they are its texts. `draws` noises give the likelihood its intervals, and the first `map_draws` of them
    are attributed. `n_steps` are the points of Integrated Gradients. `masks` are picture files, one for each
    photograph, that show where the object is (see `commands.masks`). `memory` is a limit such as "8GB". Raises
    `InputError` for settings that cannot be used.
    """

    photographs: tuple[str, ...] = ()
    trace: Request | None = None
    labels: tuple[str, ...] = ()
    classifier: str = "imagenet"
    frames: int = USUAL.frames
    noising: str = USUAL.noising
    beta_schedule: str = "linear"
    draws: int = 5
    map_draws: int = 1
    seed: int = 0
    at: At = USUAL.at
    methods: tuple[str, ...] = USUAL.methods
    n_steps: int = USUAL.n_steps
    masks: tuple[str, ...] = ()
    preset: str | None = None
    device: str | None = None
    dtype: str | None = None
    memory: str | None = None

    def __post_init__(self) -> None:
        if bool(self.photographs) == (self.trace is not None):
            raise InputError("Give at least one photograph, or a prompt to generate from (--trace), and not both.")
        if self.noising not in NOISINGS:
            raise InputError(f'There is no noising "{self.noising}". {did_you_mean(self.noising, NOISINGS)}')
        if self.noising == "ddpm" and self.beta_schedule not in BETA_SCHEDULES:
            raise InputError(
                f"beta_schedule is {self.beta_schedule}. {did_you_mean(self.beta_schedule, BETA_SCHEDULES)}"
            )
        check_dtype(self.dtype)
        bytes_of(self.memory)
        self._check_numbers()
        pictures = max(1, len(self.photographs))
        if self.masks and len(self.masks) != pictures:
            raise InputError(
                f"There are {len(self.masks)} masks and {pictures} pictures. Give one for each, in their order, or "
                "none."
            )
        check_methods(self.methods, methods_for_labels(), " for a class")
        check_steps(self.at)
        total = self.frames if self.trace is None else self.trace.steps
        if total is not None:
            shown_steps(self.at, total, ())

    def _check_numbers(self) -> None:
        check_seed(self.seed)
        if self.frames < 1:
            raise InputError(f"frames is {self.frames}. Give at least 1; the study has 100.")
        if self.n_steps < 2:
            raise InputError(f"n_steps is {self.n_steps}. Give at least 2; 20 to 50 are usual.")
        if self.draws < 1:
            raise InputError(f"draws is {self.draws}. Give at least 1; 5 are usual.")
        if not 1 <= self.map_draws <= self.draws:
            raise InputError(f"map_draws is {self.map_draws}, of {self.draws} draws. Give 1 to {self.draws}.")

    def check(self) -> None:
        """Raise `InputError` for a photograph or a mask that is not there, and for a model that can be none."""
        if self.trace is not None:
            self.trace.check()
        for file in (*self.photographs, *self.masks):
            if not Path(file).expanduser().exists():
                raise InputError(f'The file "{file}" does not exist. Give the path of a picture.')

    def run(self, watch: Watch | None = None) -> Recognition:
        """Load the classifier and the pictures, follow the labels and attribute them; see `denoscope.recognise`."""
        self.check()
        return cast(Recognition, worker("recognise")(self, watch=watch))

    def attributors(self, classifier: "Classifier", label: str | int) -> "dict[str, Attributor]":
        """Return the methods for one label, by the name of their group in the result."""
        from ..attributors.gradients import GradientShap, IntegratedGradients
        from ..attributors.occlusion import Occlusion
        from ..targets import ClassScore

        target = ClassScore(classifier, label)
        attributors: dict[str, Attributor] = {
            "integrated-gradients": IntegratedGradients(target, n_steps=self.n_steps),
            "gradient-shap": GradientShap(target, n_samples=50, stdevs=1e-4, seed=self.seed),
            "occlusion": Occlusion(target),
        }
        return {name.replace("-", "_"): attributors[name] for name in self.methods}

    def command(self) -> str:
        """Return the command line that asks for the same again."""
        options: dict[str, Any] = {**vars(self), **dict.fromkeys(WRITTEN_APART)}
        if self.noising != "ddpm":
            options["beta_schedule"] = None
        if self.trace is not None:
            run = self.trace
            options |= dict.fromkeys(OF_PHOTOGRAPHS)
            options |= {"trace": run.prompt, "model": run.model, "steps": run.steps, "guidance": run.guidance}
        again = [*flag_each("label", self.labels), *flag_each("mask", self.masks)]
        return shlex.join(["denoscope", "recognise", *self.photographs, *again, *flags(options)])


WRITTEN_APART = ("photographs", "trace", "labels", "masks", "preset")
"""Settings that the command line writes in another way; those of a preset are written instead of its name."""
OF_PHOTOGRAPHS = ("frames", "noising", "beta_schedule", "draws", "map_draws")
"""Settings that a generation does not use."""
