"""The recording of a run: the steps that pass by while a pipeline is called, as a `Trace`.

A step that cannot be replayed, or whose noise level is not known, is recorded with the reason. The user's call goes on.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..errors import DenoscopeError, ModelError, RecordingError, ReplayError, in_short
from .hooks.calls import DenoiserCall, SchedulerStep, recording
from .hooks.replay import Replay
from .hooks.schedulers import time_steps
from .noise import NoiseLevel, noise_level
from .traces import Step, Trace, refuse_non_finite


def record(
    model: Any,
    denoiser: torch.nn.Module,
    scheduler: Any,
    run: Callable[[], Any],
    timesteps: Sequence[int] | None,
    call: dict[str, Any],
    advance: Callable[[int], None] | None = None,
) -> Trace:
    """Run a pipeline once and record its denoiser and its scheduler; `advance(1)` is called after each step.

    Raises `NumericsError` at the step where a prediction is not finite and `RecordingError` if no step was recorded.
    """
    steps: list[Step] = []

    def on_step(calls: list[DenoiserCall], step: SchedulerStep) -> None:
        refuse_non_finite(step.model_output, len(steps), step.timestep)
        steps.append(_step(model, denoiser, scheduler, calls, step, steps[-1] if steps else None))
        if advance is not None:
            advance(1)

    with time_steps(scheduler, timesteps), recording(denoiser, scheduler, on_step):
        result = run()
    if not steps:
        raise RecordingError(
            f"The pipeline ran, but its {type(scheduler).__name__}.step was never called with a prediction and a "
            "sample, so there is nothing to explain. Record a pipeline that denoises in its own call, with at least "
            "one inference step."
        )
    return Trace(_linked(steps), result, call, model)


def _linked(steps: Sequence[Step]) -> list[Step]:
    """Return the same steps, each with the noise level that it leads to."""
    following = [step.noise for step in steps[1:]]
    return [replace(step, next_level=level) for step, level in zip(steps, [*following, None], strict=True)]


def _step(
    model: Any,
    denoiser: torch.nn.Module,
    scheduler: Any,
    calls: list[DenoiserCall],
    taken: SchedulerStep,
    before: Step | None,
) -> Step:
    """Build a step; what equals the step before's is shared with it, not stored again."""
    engine, refusal = _replay(denoiser, calls, taken, None if before is None else before.engine)
    noise, level_refusal = _noise(scheduler, taken)
    follows = before is not None and torch.equal(before.prev_sample, taken.sample)
    sample = before.prev_sample if before is not None and follows else taken.sample
    return Step(
        index=0 if before is None else before.index + 1,
        timestep=taken.timestep,
        noise=noise,
        sample=sample,
        model_output=taken.model_output,
        prev_sample=taken.prev_sample,
        engine=engine,
        decoder=model,
        refusal=refusal,
        level_refusal=level_refusal,
    )


def _replay(
    denoiser: torch.nn.Module, calls: list[DenoiserCall], taken: SchedulerStep, earlier: Replay | None
) -> tuple[Replay | None, ReplayError | None]:
    """Return the replay of a step, or the reason why there is none: a recording must not end the user's call."""
    try:
        return Replay.of(denoiser, calls, taken, earlier), None
    except ReplayError as error:
        return None, error.with_traceback(None)


def _noise(scheduler: Any, taken: SchedulerStep) -> tuple[NoiseLevel | None, DenoscopeError | None]:
    """Return the noise level of a step, or the reason why it is not known."""
    if taken.problem is not None:
        return None, ModelError(
            f"The noise level of this step is not known: {taken.problem}. Give the pipeline a DDPM, DDIM, DPM-Solver, "
            "Euler or flow-match scheduler."
        )
    try:
        return noise_level(scheduler, taken.timestep, taken.sigma_index, taken.scale), None
    except DenoscopeError as error:
        return None, error.with_traceback(None)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        return None, ModelError(
            f"The noise level of {type(scheduler).__name__} at time step {taken.timestep:g} is not known: "
            f"{in_short(error, 120)} Give the pipeline a DDPM, DDIM, DPM-Solver, Euler or flow-match scheduler."
        )
