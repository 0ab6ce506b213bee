"""The pipelines themselves, asked with hooks that know nothing of Denoscope: what is right for other samples."""

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

SEED = 1


@dataclass
class Seen:
    """The tensors of a scheduler at each step: taken, returned, and the clean sample it names without any clipping."""

    outputs: list[torch.Tensor] = field(default_factory=list)
    samples: list[torch.Tensor] = field(default_factory=list)
    returned: list[torch.Tensor] = field(default_factory=list)
    originals: list[torch.Tensor | None] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    result: Any = None


def run(pipe: Any, call: Mapping[str, Any], disturbed_step: int | None = None, **more: Any) -> Seen:
    """Call a pipeline; the result of one step (counted from 0) is disturbed by noise of its own."""
    seen = Seen()
    with contextlib.ExitStack() as undo:
        for scheduler in {id(s): s for s in schedulers(pipe) if hasattr(s, "step")}.values():
            undo.enter_context(_hooked(scheduler, seen, disturbed_step))
        taken = {**call, "generator": torch.Generator().manual_seed(SEED), **more}
        torch.manual_seed(SEED)  # some pipelines draw noise without the generator
        seen.result = pipe(**taken)
    return seen


def schedulers(pipe: Any) -> list[Any]:
    return [part for part in pipe.components.values() if hasattr(part, "set_timesteps")]


@contextlib.contextmanager
def _hooked(scheduler: Any, seen: Seen, disturbed_step: int | None) -> Iterator[None]:
    own = scheduler.step
    names = list(inspect.signature(own).parameters)

    def step(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        values = {**dict(zip(names, args, strict=False)), **kwargs}
        sample = next((values[name] for name in values if name.startswith("sample")), None)
        if not isinstance(sample, torch.Tensor) or not isinstance(values.get("model_output"), torch.Tensor):
            return original(*args, **kwargs)
        index = len(seen.outputs)
        seen.outputs.append(values["model_output"].detach().clone())
        seen.samples.append(sample.detach().clone())
        seen.owners.append(id(original.__self__))
        seen.originals.append(_original(original.__self__, values))  # a copy of the scheduler has its own
        result = original(*args, **kwargs)
        result = result if index != disturbed_step else _disturbed(result)
        seen.returned.append(_following(result).detach().clone())
        return result

    scheduler.step = functools.wraps(own)(functools.partial(step, own))
    try:
        yield
    finally:
        del scheduler.step


CLIPPING = ("clip_sample", "thresholding")
"""Settings by which schedulers clip their clean sample."""


def _original(scheduler: Any, values: Mapping[str, Any]) -> torch.Tensor | None:
    """Return the clean sample that a copy of the scheduler names with its clipping off; None if it names none."""
    beside = copy.deepcopy({key: value for key, value in vars(scheduler).items() if key != "step"})
    other = object.__new__(type(scheduler))
    vars(other).update(beside)
    other.register_to_config(**{name: False for name in CLIPPING if other.config.get(name)})
    taken = {key: value for key, value in values.items() if key not in ("generator", "return_dict", "self")}
    if "return_dict" not in inspect.signature(type(scheduler).step).parameters:
        return None
    try:
        with torch.random.fork_rng():
            result = type(scheduler).step(other, **taken, return_dict=True)
    except Exception:
        return None
    return getattr(result, "pred_original_sample", getattr(result, "denoised", None))


def _following(result: Any) -> torch.Tensor:
    """Return the sample of a scheduler's result."""
    sample: torch.Tensor = result[0] if isinstance(result, tuple) else result.prev_sample
    return sample


def _disturbed(result: Any) -> Any:
    """Return a scheduler's result with noise on its sample, and on what is the sample again."""
    sample = _following(result)
    noise = torch.randn(sample.shape, generator=torch.Generator().manual_seed(5)).to(sample)
    other = sample + 0.25 * sample.float().std().to(sample) * noise

    def changed(value: Any) -> Any:
        same = isinstance(value, torch.Tensor) and value.shape == sample.shape and torch.equal(value, sample)
        return other if same else value

    if isinstance(result, tuple):
        return tuple(changed(value) for value in result)
    result = copy.copy(result)
    for name, value in list(vars(result).items()):
        setattr(result, name, changed(value))
    return result


def numbers(value: Any) -> np.ndarray:
    """Return pictures, clips or tensors of a result as one array, channels last, in the values that they have."""
    if isinstance(value, Image.Image):
        return np.asarray(value.convert("RGB"), dtype=np.float64) / 255
    if isinstance(value, torch.Tensor):
        return value.detach().double().numpy()
    if isinstance(value, np.ndarray):
        return value.astype(np.float64)
    return np.stack([numbers(part) for part in value])


def finished(result: Any) -> Any:
    """Return the first field of a pipeline's result."""
    return result[0] if isinstance(result, tuple) else next(iter(result.values()))


OUTPUT_TYPES = ("pt", "np")
"""Forms of pictures that no 8 bits have rounded, the first that a pipeline has is taken."""
RANGES = ((1.0, 0.0), (0.5, 0.5))
"""Factor and offset that bring pictures to [0, 1]: as they are, and from [-1, 1]."""


def exact_pictures(pipe: Any, call: Mapping[str, Any], disturbed_step: int) -> tuple[torch.Tensor, Seen]:
    """Return pictures (n, channels, [frames,] height, width) in [0, 1] of a disturbed run, and the run.

    They are not rounded to 8 bits, where the pipeline has such pictures. The range of its numbers is that in which the
    undisturbed run's numbers are its pictures.
    """
    shown = channels_second(finished(run(pipe, call).result))
    for output_type in (*OUTPUT_TYPES, None):
        more = {} if output_type is None else {"output_type": output_type}
        try:
            own = channels_second(finished(run(pipe, call, **more).result))
            break
        except Exception:  # any: the pipeline's own code does not have this form
            if output_type is None:
                raise
    factor, offset = _range_of(own, shown)
    seen = run(pipe, call, disturbed_step, **more)
    return (channels_second(finished(seen.result)) * factor + offset).clamp(0, 1), seen


def _range_of(own: torch.Tensor, shown: torch.Tensor) -> tuple[float, float]:
    """Return factor and offset that bring a pipeline's numbers to its pictures in [0, 1]."""
    negative = float(shown.min()) < -1e-3
    if negative or own.shape != shown.shape:  # normals of surfaces, and latents in the place of pictures
        return RANGES[1] if float(own.min()) < -1e-3 else RANGES[0]
    apart = [float((own * factor + offset - shown).abs().max()) for factor, offset in RANGES]
    return RANGES[apart.index(min(apart))]


def channels_second(pictures: Any) -> torch.Tensor:
    """Return pictures of a result, in any form, as (n, 3, [frames,] height, width) in float64; latents as they are.

    Grey is in all three channels; how far a picture can be seen through is left out.
    """
    if isinstance(pictures, (list, tuple)) and isinstance(pictures[0], torch.Tensor):
        pictures = torch.stack(list(pictures))
    if isinstance(pictures, torch.Tensor):
        by_frames = pictures.ndim == 5 and pictures.shape[2] in (1, 3, 4)
        values = (pictures.movedim(2, 1) if by_frames else pictures).detach().double()
    else:
        values = torch.from_numpy(numbers(pictures)).movedim(-1, 1)
    return values[:, :3] if values.shape[1] == 4 else values.expand(-1, max(3, values.shape[1]), *values.shape[2:])


def relative(a: Any, b: Any) -> float:
    """Return the largest difference of two tensors over the largest value of the second."""
    a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
    if a.shape != b.shape:
        return float("inf")
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-12))


Build = Callable[[], Any]
