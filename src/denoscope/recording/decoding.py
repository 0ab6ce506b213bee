"""From the last sample to the picture: the pipeline asked again, or its autoencoder as the pipeline itself used it."""

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from ..errors import NumericsError, ReplayError, in_short
from .batches import call_portions
from .comparing import FAILURES, disturbed, refuse_memory
from .engines import BATCHES, ONE_BY_ONE, Run
from .hooks.calls import DecoderCall
from .hooks.replay import alike
from .hooks.resume import Entry, Question
from .hooks.surroundings import weights_kept
from .hooks.trees import output_of
from .pictures import as_tensor, finished

AUTOENCODER = "autoencoder"
"""The name of the fast way: the autoencoder's own `decode`, scaled as the pipeline scales."""
RANGES = ((0.5, 0.5), (1.0, 0.0))
"""Ways from a decoder's output to values in [0, 1]: from [−1, 1], and as it is."""
EIGHT_BITS = 2 / 255
"""Largest difference of a picture of 8 bits from the tensor that it was made of."""
NEGATIVE = 1e-3
"""Value beyond [0, 1] that shows that pictures have another range."""
AGREEMENT = {torch.float64: 1e-5, torch.float32: 1e-3}
"""Largest difference of two decoded pictures, in [0, 1]; 0.05 in half precision."""


PIXELS_ON_CPU, PIXELS_ELSEWHERE = 2**16, 2**20
"""Pixels of all pictures that are decoded at once: one picture of 256 on a CPU, one of 1,024 elsewhere."""
BYTES_OF_PIXEL = 2**10
"""Estimated need of decoding, in bytes for each pixel and each byte of a number: a few maps of 256 channels."""


class PictureWarning(UserWarning):
    """The picture that a pipeline returned is not the one that its last sample decodes to."""


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """The pipeline's `decode`: latents are `scale · sample + shift` by channel, pictures `range` of the output."""

    call: DecoderCall
    scale: torch.Tensor
    shift: torch.Tensor
    to_unit: tuple[float, float]

    def __call__(self, samples: torch.Tensor) -> torch.Tensor:
        latents = (samples * self.scale + self.shift).to(self.call.latents.dtype)
        module: Any = self.call.module
        with weights_kept(module), self.call.autocast.again():
            output = output_of(module.decode(latents, *self.call.args, **self.call.kwargs))
        return in_unit(output, self.to_unit)

    @property
    def usable(self) -> bool:
        """True if the autoencoder still has the dtype in which the pipeline used it."""
        weights = next((each for each in self.call.module.parameters() if each.is_floating_point()), None)
        return weights is None or weights.dtype == self.call.latents.dtype


def in_unit(values: torch.Tensor, to_unit: tuple[float, float]) -> torch.Tensor:
    """Return values brought to [0, 1]; differentiable."""
    factor, offset = to_unit
    return (values * factor + offset).clamp(0, 1)


def in_colours(pictures: torch.Tensor) -> torch.Tensor:
    """Return pictures (n, 3, ...): grey, as a depth is shown, in all channels, and colours without their opacity."""
    return pictures[:, :3] if pictures.shape[1] > 1 else pictures.expand(-1, 3, *pictures.shape[2:])


class Decoding:
    """The way from samples of a run to pictures, checked against the picture that the pipeline returned."""

    def __init__(self, run: Run, result: Any, calls: Sequence[DecoderCall]):
        self.calls = tuple(calls)
        self._begin(run, picture_in(result, run.recorded(len(run.places) - 1).prev_sample))
        self.problem: str | None = self._nan() or self._other_picture()
        self.calls = self.calls if self.fast is not None else ()  # outputs of whole pictures are not needed any more

    def _begin(self, run: Run, picture: torch.Tensor | None) -> None:
        self.run, self.picture = run, picture
        self.nearness = EIGHT_BITS if picture is not None else 0.05
        self._range: tuple[float, float] | None = None
        self._batches: bool | None = None
        self._moves: bool | None = None
        self._judged = self._eight_bits = False

    @classmethod
    def known(
        cls, run: Run, picture: torch.Tensor | None, problem: str | None, fast: "Autoencoder | Pixels | None"
    ) -> "Decoding":
        """Return the decoding of a run that was checked when it was recorded."""
        decoding = cls.__new__(cls)
        decoding._begin(run, picture)
        decoding.calls, decoding.problem = (fast.call,) if isinstance(fast, Autoencoder) else (), problem
        decoding.__dict__["fast"] = fast
        return decoding

    def of_run(self, run: Run) -> "Decoding":
        """Return the decoding for the same run with its tensors elsewhere."""
        other = copy.copy(self)
        other.run = run
        return other

    @property
    def last(self) -> torch.Tensor:
        """The last sample of the run, all rows."""
        sample: torch.Tensor = self.run.recorded(len(self.run.places) - 1).prev_sample
        return sample

    # The check at the end of a recording.

    def _nan(self) -> str | None:
        for call in self.calls:
            if not torch.isfinite(call.output).all():
                return (
                    f"pipe.{call.name} ({type(call.module).__name__}) made NaN or infinite values of the last sample, "
                    "so the picture is black or broken. Half precision often overflows there: load the autoencoder "
                    "in float32, or one that was made for half precision."
                )
        return None

    def _other_picture(self) -> str | None:
        """Return in what the returned picture is not that of the last sample; None if it is, or cannot be compared."""
        if self.picture is None or self.fast is not None or self._heard_agrees():
            return None
        try:
            again = self._resumed(self.last)
        except FAILURES as error:
            refuse_memory(error)
            return None
        if again.shape != self.picture.shape or difference_of(again, self.picture) <= self.nearness:
            return None
        return (
            "The picture that the pipeline returned is not the one that its last sample decodes to: a safety checker "
            "that blackens pictures, or another result in its place. The steps are recorded as they were. Switch the "
            "checker off to explain the picture, safety_checker=None, or return the pipeline's own result."
        )

    def _heard_agrees(self) -> bool:
        """Return True if the decoder's recorded output is the returned picture."""
        assert self.picture is not None
        if not self.calls:
            return False
        outputs = [call.output for call in self.calls]
        if len({output.shape[1:] for output in outputs}) > 1:
            return False
        whole, picture = torch.cat(outputs), self.picture
        if picture.ndim == 5 and whole.ndim == 4:
            picture = picture.movedim(2, 1).flatten(0, 1)
        return any(difference_of(in_unit(whole, to_unit), picture) <= self.nearness for to_unit in RANGES)

    def warn(self) -> None:
        """Warn of a picture that is not the last sample's."""
        if self.problem is not None:
            warnings.warn(self.problem, PictureWarning, stacklevel=5)

    # Pictures of other samples.

    def __call__(self, samples: torch.Tensor) -> torch.Tensor:
        """Return the pictures of samples, (n, 3, height, width) in [0, 1]; clips have frames before the height.

        Differentiable. Raises `NumericsError` or `ReplayError` where the returned picture is not the last sample's,
        `ReplayError` where the pipeline cannot be asked.
        """
        self.run.refuse_absent()
        samples = samples.to(self.run.home)
        if self.problem is not None:
            raise (NumericsError if "NaN" in self.problem else ReplayError)(self.problem)
        if self.confirmed_fast is not None and self.confirmed_fast.usable:
            return in_colours(self._in_portions(self.confirmed_fast, samples, 1))
        try:
            self._refuse_unmoved()
            return in_colours(self._in_portions(self._resumed, samples, self.run.rows))
        except ReplayError:
            raise
        except FAILURES as error:
            refuse_memory(error)
            raise ReplayError(
                f"The pipeline could not be asked for the pictures of other samples: {in_short(error, 200)} Use a "
                "method that compares predictions and needs no pictures, such as df-rise."
            ) from error

    def _in_portions(
        self, decode: Callable[[torch.Tensor], torch.Tensor], samples: torch.Tensor, rows: int
    ) -> torch.Tensor:
        """Return the pictures of samples, of which so many rows make one, as few at once as fit in memory.

        A decoder's feature maps have the size of the picture, so they need more than a denoiser's.
        """
        limits = {"on_cpu": PIXELS_ON_CPU, "elsewhere": PIXELS_ELSEWHERE, "need": BYTES_OF_PIXEL}
        count = len(samples) // rows
        if self.picture is None or count <= 1 or len(samples) % rows:  # those of one picture go one by one anyway
            return decode(samples)
        like = samples.detach().new_empty(1).expand(1, *self.picture.shape[1:])
        portions = call_portions(like, None, "decode", **limits)
        if torch.is_grad_enabled() and samples.requires_grad:  # what is kept for gradients has portions of its own
            return torch.cat([decode(part) for part in torch.split(samples, portions.size * rows)])

        def decoded(part: slice) -> torch.Tensor:
            return decode(samples[part.start * rows : part.stop * rows])

        return torch.cat([pictures for _, pictures in portions.over(count, decoded, samples.device)])

    @property
    def engine(self) -> str:
        """The way that is taken: "autoencoder", or the resumed engine."""
        if self.confirmed_fast is not None and self.confirmed_fast.usable:
            return AUTOENCODER
        return BATCHES if self._in_batches() else ONE_BY_ONE

    @cached_property
    def fast(self) -> "Autoencoder | Pixels | None":
        """The fast way that made the returned picture of the last sample; None if none did."""
        if self.picture is None or self.picture.ndim != 4:
            return None
        candidates: list[Autoencoder | Pixels] = [Pixels(to_unit) for to_unit in RANGES] if not self.calls else []
        if len(self.calls) == 1 and self.calls[0].latents.shape == self.last.shape:
            fitted = by_channel(self.last, self.calls[0].latents)
            outputs = self.calls[0].output
            if fitted is not None:
                ranges = [r for r in RANGES if difference_of(in_unit(outputs, r), self.picture) <= self.nearness]
                return Autoencoder(self.calls[0], *fitted, ranges[0]) if ranges else None
        return next((one for one in candidates if difference_of(one(self.last), self.picture) <= self.nearness), None)

    @cached_property
    def confirmed_fast(self) -> "Autoencoder | Pixels | None":
        """The fast way, if it makes the pipeline's own picture of another sample, or none can be had to compare."""
        if self.fast is None or not self.fast.usable:
            return None
        other = disturbed(self.last)
        try:
            with torch.no_grad():
                expected, pictures = self._resumed(other), self.fast(other)
        except FAILURES as error:
            refuse_memory(error)
            return self.fast
        allowed = EIGHT_BITS if self._eight_bits else AGREEMENT.get(pictures.dtype, 0.05)
        same = difference_of(pictures, expected) <= allowed
        return self.fast if same else None

    # The pipeline asked again.

    def _refuse_unmoved(self) -> None:
        """Raise `ReplayError` if another last sample leaves the pipeline's picture as it is; tried once."""
        if self._moves is None:
            with torch.no_grad():
                own, other = (self._pictures(each, 1, False) for each in (self.last, disturbed(self.last)))
            self._moves = not torch.equal(own, other)
        if not self._moves:
            raise ReplayError(
                "The pipeline's picture stays the same when its last sample is changed, so it is made of something "
                "else, and other samples have no pictures. Use a method that needs none, such as df-rise."
            )

    def _resumed(self, samples: torch.Tensor) -> torch.Tensor:
        rows, gradient = self.run.rows, torch.is_grad_enabled() and samples.requires_grad
        samples = samples.to(self.last.dtype)
        if len(samples) % rows:
            return self._of_one_picture(samples, gradient)
        count = len(samples) // rows
        if count > 1 and not self._in_batches():
            return torch.cat([self._pictures(part, 1, gradient) for part in torch.split(samples, rows)])
        return self._pictures(samples, count, gradient)

    def _of_one_picture(self, samples: torch.Tensor, gradient: bool) -> torch.Tensor:
        """Return pictures of samples of one picture of a batch, each in the first place of the batch."""
        unit, pictures = self.run.unit, []
        for part in torch.split(samples, unit):
            pictures.append(self._pictures(torch.cat([part, self.last[unit:]]), 1, gradient)[:1])
        return torch.cat(pictures)

    def _pictures(self, samples: torch.Tensor, count: int, gradient: bool) -> torch.Tensor:
        values = self._asked(samples, count, gradient, "pt")
        pictures = in_unit(values, self._range_of_tensors())
        if gradient and not pictures.requires_grad:
            raise ReplayError(
                "The pipeline makes its pictures in a way that has no gradients. Use a method without gradients, such "
                "as df-rise or occlusion."
            )
        return pictures

    def _asked(self, samples: torch.Tensor, count: int, gradient: bool, output_type: str) -> torch.Tensor:
        question = Question(samples, None, self.run.places[-1], Entry("step"), count, gradient, output_type)
        self.run.fingerprint()
        try:
            result = self.run.resumption.ask(replace(question, judged=self._judged)).result
        except FAILURES as error:
            refuse_memory(error)
            result = self._otherwise(question, error)
        self._eight_bits = isinstance(finished(result), list)
        pictures = as_tensor(finished(result))
        wanted = len(samples) // self.run.unit
        if pictures is None or len(pictures) != wanted:
            returned = "none that can be read" if pictures is None else f"{len(pictures)} for {wanted} sample(s)"
            raise ReplayError(f"The pipeline, asked for the pictures of other samples, returned {returned}.")
        return pictures

    def _otherwise(self, question: Question, error: Exception) -> Any:
        """Return the result of a pipeline that makes no pictures without its safety checker, or none as tensors."""
        ways = [replace(question, judged=True), replace(question, judged=True, output_type="np")]
        for way in ways[1:] if self._judged else ways:
            if way.gradient and way.output_type == "np":
                continue
            try:
                result = self.run.resumption.ask(way).result
            except FAILURES as failure:
                refuse_memory(failure)
                continue
            self._judged = True
            return result
        raise error

    def _range_of_tensors(self) -> tuple[float, float]:
        """Return how this pipeline's tensors are brought to [0, 1], measured once on the recorded sample."""
        if self._range is None:
            with torch.no_grad():
                own = self._asked(self.last, 1, False, "pt")
                truth = self.picture if self.picture is not None else self._asked(self.last, 1, False, "np")
            if float(truth.min()) < -NEGATIVE:  # normals of surfaces are shown from −1 to 1
                truth = truth / 2 + 0.5
            apart = [difference_of(in_unit(own, to_unit), truth) for to_unit in RANGES]
            self._range = RANGES[apart.index(min(apart))]
        return self._range

    def _in_batches(self) -> bool:
        """Return True if several samples in one call have the pictures that they have one by one."""
        if self._batches is None:
            self._batches = False
            if self.run.rows == self.run.unit and self.run.resumption.count_argument() is not None:
                other = disturbed(self.last)
                try:
                    with torch.no_grad():
                        alone = self._pictures(other, 1, False)
                        together = self._pictures(torch.cat([self.last, other]), 2, False)
                    self._batches = difference_of(together[1:], alone) <= AGREEMENT.get(alone.dtype, 0.05)
                except FAILURES as error:
                    refuse_memory(error)
                    self._batches = False
        return self._batches


@dataclass(frozen=True)
class Pixels:
    """Samples that are pictures already."""

    to_unit: tuple[float, float]
    usable: bool = True

    def __call__(self, samples: torch.Tensor) -> torch.Tensor:
        return in_unit(samples, self.to_unit)


def by_channel(sample: torch.Tensor, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return scale and shift, (1, channels, 1, 1), that make the latents of the sample; None if they do not."""
    dims = (0, *range(2, sample.ndim))
    x, z = sample.cpu().double(), latents.cpu().double()
    x_mean, z_mean = x.mean(dim=dims, keepdim=True), z.mean(dim=dims, keepdim=True)
    variance = (x - x_mean).square().mean(dim=dims, keepdim=True)
    if not (variance > 0).all():
        return None
    scale = ((x - x_mean) * (z - z_mean)).mean(dim=dims, keepdim=True) / variance
    shift = z_mean - scale * x_mean
    is_unshifted = bool((shift.abs() <= 1e-6 * scale.abs() * variance.sqrt()).all())
    is_one_scale = float(scale.max() - scale.min()) <= 1e-6 * float(scale.abs().max())
    if is_unshifted and is_one_scale:  # one number, free of the rounding of each channel
        scale, shift = scale.mean().expand_as(scale), torch.zeros_like(shift)
    if not alike(latents, (scale * x + shift).to(latents.device, latents.dtype), slack=2):
        return None
    return scale.to(sample.device, torch.float32), shift.to(sample.device, torch.float32)


def difference_of(pictures: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference of pictures; infinite for other shapes. Of other channels, colours are compared."""
    if pictures.shape != expected.shape:
        pictures, expected = in_colours(pictures), in_colours(expected)
    if pictures.shape != expected.shape:
        return float("inf")
    value = float((pictures.detach().float().cpu() - expected.detach().float().cpu()).abs().max())
    return value if value == value else float("inf")


def picture_in(result: Any, last: torch.Tensor) -> torch.Tensor | None:
    """Return the pictures of a result as a tensor in [0, 1]; None for latents and results without pictures."""
    pictures = finished(result)
    if isinstance(pictures, torch.Tensor) and pictures.shape == last.shape and torch.equal(pictures.to(last), last):
        return None
    whole = as_tensor(pictures)
    return None if whole is None or whole.min() < -NEGATIVE or whole.max() > 1 + NEGATIVE else whole
