"""The job of `denoscope evaluate`: every method on many pictures, against the known truth about each picture.

The pictures of the bundled model are drawn from scenes whose things are found again in the picture. The pictures of any
other model are made of the user's prompts, and compared with masks that the user gives. This module imports no torch,
so that wrong settings are refused at once.
"""

import math
import shlex
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import InputError, Interrupted, did_you_mean, sentence
from ..files.claims import claimed
from ..recording.limits import bytes_of
from ..results.resumable import ResumableFolder
from .job import FEWEST_MASKS, check_seed, check_workers, flags
from .names import check_dtype
from .subjects import TrialSubject, bundled_subject, read_subjects, unused_masks

if TYPE_CHECKING:
    from .evaluation_result import EvaluationResult
    from .job import Watch
    from .pictures import TrialSettings
    from .trial import Trial, TrialInFolder

PLACES = (0.2, 0.5, 0.8)
"""Places in a run of the steps that are explained unless others are named: early, middle and late."""
USUAL_SCENES = 50
NO_SETTINGS = ("scenes", "device", "memory")
"""Options on which no result depends: the same work may go on with others."""
SPARE = 3
"""Scenes at hand for each that is measured, as the model does not always draw what its prompt says."""


class SkippedWarning(UserWarning):
    """A check that is skipped, or a mask that is not used."""


@dataclass(frozen=True)
class Evaluation:
    """The settings of `denoscope evaluate`; None is the choice that suits the model.

    For the bundled model that is 50 scenes, every method and every usual check. For another model it is every prompt,
    every method that explains no class, and every usual check for which enough is given. `at` are the steps to
    explain. Stability, sanity and attacks are checked at the middle one of them, as they explain a picture many times.
    `memory` is a limit such as "8GB" (`denoscope.memory_limit`), of which each of several workers has its part.
    Raises `InputError` for settings that cannot be evaluated.
    """

    model: str = "shapes"
    scenes: int | None = None
    prompts: str | None = None
    masks: str | None = None
    methods: tuple[str, ...] | None = None
    checks: tuple[str, ...] | None = None
    at: tuple[int, ...] | Literal["all"] | None = None
    steps: int = 30
    guidance: float | None = None
    seed: int = 0
    num_masks: int = 256
    encoder: str | None = None
    device: str | None = None
    dtype: str | None = None
    memory: str | None = None

    def __post_init__(self) -> None:
        self._refuse_impossible_numbers()
        self._refuse_repeated("methods", self.methods)
        self._refuse_repeated("checks", self.checks)
        self._refuse_options_of_other_models()
        self._refuse_unknown_names()
        self._refuse_unsuitable_names()

    def _refuse_impossible_numbers(self) -> None:
        if self.scenes is not None and self.scenes < 2:
            raise InputError(f"--scenes is {self.scenes}. An interval over scenes needs at least 2; 50 are usual.")
        if self.steps < 1:
            raise InputError(f"--steps is {self.steps}. Give at least 1; 20 to 50 are usual.")
        check_seed(self.seed)
        check_dtype(self.dtype)
        bytes_of(self.memory)
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise InputError(f"--guidance is {self.guidance}. Give a finite number; 1 is none, 7.5 is usual.")
        if self.num_masks < FEWEST_MASKS:
            raise InputError(f"--num-masks is {self.num_masks}. Give at least {FEWEST_MASKS}; 256 is the default.")
        steps = self.steps_shown
        outside = [step for step in steps if not 0 <= step < self.steps]
        if not steps or outside or len(set(steps)) < len(steps):
            raise InputError(
                f"The steps {', '.join(map(str, steps)) or '(none)'} cannot be explained: a run has {self.steps} "
                f"steps, 0 (the noisiest) to {self.steps - 1}. Name some of these, each once."
            )

    @staticmethod
    def _refuse_repeated(option: str, names: Sequence[str] | None) -> None:
        if names is not None and (not names or len(set(names)) < len(names)):
            raise InputError(f"--{option} is {','.join(names) or 'empty'}. Give at least one name, each once.")

    def _refuse_options_of_other_models(self) -> None:
        if self.bundled and (self.prompts or self.masks):
            raise InputError(
                f'The model "{self.model}" is evaluated on its own scenes, whose masks are known. --prompts and '
                "--masks are for other models: leave them out, or name one with --model."
            )
        if self.bundled and self.seed:
            raise InputError(
                f"--seed is {self.seed}, and the scenes of the bundled model have seeds of their own. --seed is for "
                "the pictures of --prompts: leave it out."
            )
        if not self.bundled and self.prompts is None:
            raise InputError(
                f'The pictures that "{self.model}" should draw are not known. Give --prompts FILE, a prompt a line, '
                "and --masks FOLDER with masks named after the lines, or evaluate the bundled model, shapes."
            )

    def _refuse_unknown_names(self) -> None:
        from .checks.registry import CHECKS
        from .methods import evaluated_methods

        _refuse_unknown("method", self.methods or (), evaluated_methods())
        _refuse_unknown("check", self.checks or (), tuple(CHECKS))

    def _refuse_unsuitable_names(self) -> None:
        from ..attributors.base import needs_of

        skipped = self.skipped_checks
        for check in self.checks or ():
            if check in skipped:
                raise InputError(f"{check.capitalize()} cannot be checked: {skipped[check]}.")
        for method in self.methods or ():
            if not self.bundled and needs_of(method) == "label":
                raise InputError(
                    f"{method} explains a class, and the class of a prompt's picture is not known. Leave it out; the "
                    "bundled model's own scenes have classes."
                )

    @property
    def bundled(self) -> bool:
        """True if the model is a bundled one, whose pictures are scenes."""
        from ..worlds.shapes.judge import is_shapes_model

        return is_shapes_model(self.model)

    @property
    def steps_shown(self) -> tuple[int, ...]:
        """The steps that are explained, in order."""
        if self.at == "all":
            return tuple(range(self.steps))
        if self.at is not None:
            return tuple(sorted(self.at))
        return tuple(sorted({min(round(place * self.steps), self.steps - 1) for place in PLACES}))

    @property
    def methods_used(self) -> tuple[str, ...]:
        """The methods, without the baselines, which are always measured."""
        from ..attributors.base import needs_of
        from .methods import evaluated_methods

        if self.methods is not None:
            return self.methods
        return tuple(name for name in evaluated_methods() if self.bundled or needs_of(name) != "label")

    @property
    def skipped_checks(self) -> dict[str, str]:
        """The checks for which something is not given, with the reason."""
        from .checks.registry import CHECKS, REASONS_TO_SKIP

        if self.bundled:
            return {}
        missing = {"masks": self.masks is None, "encoder": self.encoder is None}
        skipped = {}
        for check in CHECKS.values():
            if check.needs is not None and missing[check.needs]:
                skipped[check.name] = REASONS_TO_SKIP[check.needs]
        return skipped

    @property
    def checks_used(self) -> tuple[str, ...]:
        """The checks that are run."""
        from .checks.registry import usual_checks

        if self.checks is not None:
            return self.checks
        return tuple(check for check in usual_checks() if check not in self.skipped_checks)

    @property
    def count(self) -> int | None:
        """The number of pictures to measure; None for every prompt."""
        return USUAL_SCENES if self.scenes is None and self.bundled else self.scenes

    @property
    def guidance_used(self) -> float | None:
        """The guidance scale, 3 for the bundled model as in its examples; None for the pipeline's own."""
        return 3.0 if self.guidance is None and self.bundled else self.guidance

    def trial_settings(self) -> "TrialSettings":
        """Return the settings that all pictures share."""
        from .pictures import TrialSettings

        encoder = None
        if "games" in self.checks_used:
            encoder = self.encoder or "shapes"
        return TrialSettings(
            model=self.model,
            methods=self.methods_used,
            checks=self.checks_used,
            steps=self.steps,
            steps_shown=self.steps_shown,
            guidance=self.guidance_used,
            num_masks=self.num_masks,
            encoder=encoder,
            device=self.device,
            dtype=self.dtype,
        )

    def read_subjects(self) -> list[TrialSubject]:
        """Read the subjects that there may be; of scenes more than are measured.

        Raises `InputError` for prompts or masks that cannot be used.
        """
        if self.bundled:
            count = SPARE * (self.count or USUAL_SCENES)
            return [bundled_subject(number) for number in range(count)]
        subjects = read_subjects(self.prompts or "", self.masks, self.seed)[: self.scenes]
        if len(subjects) < 2:
            raise InputError(f'"{self.prompts}" has {len(subjects)} prompt. An interval needs at least 2 pictures.')
        return subjects

    def settings(self) -> dict[str, Any]:
        """Return the settings that all results of one table share: all on which they depend."""
        from ..results.records import version_of

        shared = {name: value for name, value in asdict(self).items() if name not in NO_SETTINGS}
        return {
            **shared,
            "methods": self.methods_used,
            "checks": self.checks_used,
            "at": self.steps_shown,
            "guidance": self.guidance_used,
            "denoscope": version_of("denoscope"),
        }

    def command(self) -> str:
        """Return the command line of the same evaluation."""
        defaults = {name: option.default for name, option in self.__dataclass_fields__.items()}
        changed = {name: value for name, value in vars(self).items() if value != defaults[name]}
        return shlex.join(["denoscope", "evaluate", *flags(changed)])

    def run(
        self,
        watch: "Watch | None" = None,
        *,
        folder: str | Path | None = None,
        workers: int | None = None,
        overwrite: bool = False,
    ) -> "EvaluationResult":
        """Measure the pictures, and return their scores with the leaderboard.

        >>> result = Evaluation(scenes=10, methods=("words",)).run()        # doctest: +SKIP
        >>> result.save("evaluation")                                       # doctest: +SKIP

        Each picture is written to `folder` when it is finished, and a later run with the same settings goes on from
        there; `overwrite` starts again. Without a folder the work is kept in memory. `workers` pictures are measured
        side by side, one per CPU unless given.

        Raises `InputError` for settings that no picture can be made with, or if fewer than two pictures could be
        measured. Raises `Interrupted` on Ctrl-C if the finished pictures are in a folder; without a folder it returns
        them if they are enough, with `interrupted` True.
        """
        check_workers(workers)
        from .evaluation_result import EvaluationResult
        from .scores import gather, summarise
        from .trial import TrialInFolder, check_settings

        subjects, settings = self.read_subjects(), self.trial_settings()
        check_settings(settings, subjects[0])
        self._warn_of_skipped(subjects)
        with _place(folder) as place:
            work = TrialInFolder(settings, ResumableFolder.opened(place, self.settings(), overwrite))
            trials, interrupted = self._run_trials(work, subjects, workers, watch)
            if interrupted and folder is not None:
                raise Interrupted(f"Interrupted: the pictures finished are kept in {folder}. The same command goes on.")
            measured = [trial for trial in trials if _is_measured(trial)]
            _refuse_too_few(measured, trials, len(subjects), interrupted)
            maps = {trial.subject.name: work.folder.arrays(trial.subject.name) for trial in measured}
        scores, table = summarise(gather(settings, measured, maps))
        return EvaluationResult(
            command=self.command(),
            settings=self.settings(),
            skipped_checks=self.skipped_checks if self.checks is None else {},
            trials=tuple(measured),
            unmade=tuple(trial for trial in trials if not _is_measured(trial) and trial.failures),
            maps=maps,
            scores=scores,
            table=table,
            folder=None if folder is None else work.folder.folder,
            interrupted=interrupted,
        )

    def _run_trials(
        self, work: "TrialInFolder", subjects: Sequence[TrialSubject], workers: int | None, watch: "Watch | None"
    ) -> "tuple[list[Trial], bool]":
        """Run trials in order until enough pictures are measured; return them, and True if Ctrl-C stopped the work."""
        from .pictures import release_networks
        from .workers import default_workers, results_in_order

        if workers is None:
            workers = default_workers(self.device)
        limit = bytes_of(self.memory)
        work = replace(work, memory=None if limit is None else limit // workers)
        if workers > 1:
            release_networks()
        count = min(self.count or len(subjects), len(subjects))
        advance = watch("Pictures", count) if watch else None
        trials: list[Trial] = []
        try:
            with closing(results_in_order(work, subjects, _is_measured, count, workers)) as results:
                for trial in results:
                    trials.append(trial)
                    if advance and _is_measured(trial):
                        advance(1)
        except KeyboardInterrupt:
            return trials, True
        return trials, False

    def _warn_of_skipped(self, subjects: Sequence[TrialSubject]) -> None:
        """Warn of the checks that are skipped although none was named, and of masks without a prompt."""
        if self.checks is None:
            for check, reason in self.skipped_checks.items():
                warnings.warn(f"{check} is skipped: {reason}.", SkippedWarning, stacklevel=1)
        if self.masks is not None:
            unused = unused_masks(self.masks, subjects)
            if unused:
                message = f"masks that belong to no prompt: {', '.join(unused)}."
                warnings.warn(message, SkippedWarning, stacklevel=1)


def evaluate(
    evaluation: Evaluation,
    watch: "Watch | None" = None,
    *,
    folder: str | Path | None = None,
    workers: int | None = None,
    overwrite: bool = False,
) -> "EvaluationResult":
    """Measure the pictures of an evaluation; see `Evaluation.run`.

    >>> evaluate(Evaluation(scenes=4, checks=("localisation",))).save("evaluation")        # doctest: +SKIP
    """
    return evaluation.run(watch, folder=folder, workers=workers, overwrite=overwrite)


def _refuse_unknown(kind: str, names: Sequence[str], allowed: Sequence[str]) -> None:
    for name in names:
        if name not in allowed:
            raise InputError(f'There is no {kind} "{name}". {did_you_mean(name, allowed)}')


def _is_measured(trial: "Trial") -> bool:
    return trial.skipped is None


def _refuse_too_few(measured: "Sequence[Trial]", trials: "Sequence[Trial]", total: int, interrupted: bool) -> None:
    """Raise `InputError` for fewer than two measured pictures, or `Interrupted` if that is why."""
    if len(measured) > 1:
        return
    if interrupted:
        raise Interrupted("Interrupted before two pictures were measured; nothing is kept.")
    skipped = [trial.skipped for trial in trials if trial.skipped is not None]
    first = f" The first of the others: {sentence(skipped[0])}" if skipped else ""
    raise InputError(f"Of {total} pictures {len(measured)} could be measured, and an interval needs at least 2.{first}")


@contextmanager
def _place(folder: str | Path | None) -> Iterator[Path]:
    """Yield the folder, claimed, or a temporary one."""
    if folder is not None:
        with claimed(folder) as place:
            yield place
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary) / "evaluation"
