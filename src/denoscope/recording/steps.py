"""One step of a recorded run, in diffusers' words: what it was, and what it would be for other samples."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from ..errors import DenoscopeError, ModelError, NumericsError, ReplayError, in_short, sentence
from .batches import width_of
from .comparing import FAILURES, difference, refuse_memory, tolerance
from .engines import BATCHES, DIRECT, FROM_START, ONE_BY_ONE, Run
from .hooks.replay import Replay
from .hooks.surroundings import is_compiled
from .layout import Layout, measured
from .noise import NoiseLevel


class Decoder(Protocol):
    """The way from samples to pictures."""

    def decode(self, samples: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a run, in diffusers' words.

    `index` counts scheduler steps from 0; `timestep` is the scheduler's. `sample` (x_t), `model_output` (guided) and
    `prev_sample` have the pipeline's own shape, (pictures, channels, h, w) as a rule: `layout` says where their numbers
    lie. `next_level` is the noise level of the next step, None at the last step, behind which there is no noise.

    `decoder` takes the place of the run's own way to pictures, for steps without a run.

    `direct` is the denoiser alone, ready to be called again, None where the step has another form; `refusal` says
    why. Some schedulers have no known noise level: `level_refusal` is the reason, and `level` raises it.
    """

    index: int
    timestep: float
    noise: NoiseLevel | None
    sample: torch.Tensor
    model_output: torch.Tensor
    prev_sample: torch.Tensor
    direct: Replay | None
    decoder: Decoder | None = None
    next_level: NoiseLevel | None = None
    refusal: ReplayError | None = None
    level_refusal: DenoscopeError | None = None
    checked: bool = False
    """True if `model_output` is the engine's own prediction, so that there is nothing to check."""
    contradicted: bool = False
    """True if the scheduler's own clean prediction is another than that of the noise level."""
    run: Run | None = None
    row: int | None = None
    """The picture of the run's batch that this step is of; None for all."""

    def of_run(self, run: Run, rows: int, next_level: NoiseLevel | None) -> "Step":
        """Return this step as one of a run; of its tensors the first `rows` rows are kept."""
        direct, refusal = self.direct, self.refusal
        if rows < len(self.sample) and direct is not None:
            direct, refusal = None, ReplayError("The denoiser of this step reads each sample several times over.")
        parts = {name: getattr(self, name)[:rows] for name in ("sample", "model_output", "prev_sample")}
        return replace(self, **parts, run=run, next_level=next_level, direct=direct, refusal=refusal)

    # The engines.

    @property
    def home(self) -> torch.device:
        """The device on which the pipeline has its samples, wherever this step's tensors are kept."""
        return self.sample.device if self.run is None else self.run.home

    def brought(self) -> "Step":
        """Return this step with its tensors on the pipeline's device; itself if they lie there."""
        home = self.home
        if self.sample.device == home:
            return self

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(home)

        return self.moved(move, None if self.direct is None else self.direct.to(move), self.run)

    def moved(self, move: Callable[[torch.Tensor], torch.Tensor], direct: Replay | None, run: Run | None) -> "Step":
        """Return this step with its tensors moved, for a direct engine and a run whose tensors are."""
        sample, output, following = (move(each) for each in (self.sample, self.model_output, self.prev_sample))
        step = replace(self, sample=sample, model_output=output, prev_sample=following, direct=direct, run=run)
        step.__dict__[CONFIRMED] = self._confirmed
        return step

    @property
    def _confirmed(self) -> dict[str, Any]:
        """The name of the engine that was right, and the weights with which it was; empty if none was asked."""
        known: dict[str, Any] = self.__dict__.setdefault(CONFIRMED, {})
        return known

    def _confirm(self, name: str) -> None:
        self._confirmed.update(name=name, weights=self._weights())

    @property
    def replay(self) -> Replay:
        """The direct engine; raises the `refusal`, or `ReplayError` where the pipeline does something else."""
        if self.run is not None:
            self.run.refuse_absent()
        if self.direct is None:
            raise ReplayError(str(self.refusal))
        if self.run is not None and (why := self.run.refusal_of_direct(self.index)):
            raise ReplayError(f"The denoiser of step {self.index} cannot be asked directly: {why}.")
        direct = self.brought().direct
        assert direct is not None
        return direct

    @property
    def asks_directly(self) -> bool:
        """True if the pipeline does what the direct engine does; the recorded prediction is not compared here."""
        return self.direct is not None and (self.run is None or self.run.refusal_of_direct(self.index) is None)

    @property
    def hears_directly(self) -> bool:
        """True if `again` makes the denoiser's calls alone.

        In half precision the direct engine is compared first, as the pipeline's own numbers may be in single precision.
        """
        if not self.asks_directly:
            return False
        half = torch.finfo(self.sample.dtype).bits < 32
        return not half or self._engine()[0] == DIRECT

    @property
    def engine(self) -> str:
        """The engine that answers for other samples: "direct", "resumed in batches", "resumed one by one", or
        "resumed from the start" for a pipeline whose step needs what was computed for the steps before.

        Raises `ReplayError` if none gives the recorded prediction for the recorded sample.
        """
        return self._engine()[0]

    @property
    def asked_engine(self) -> str | None:
        """The engine that has answered since the last check; None if none was asked."""
        return self._confirmed.get("name")

    def _engine(self, changed: bool = False) -> tuple[str, Callable[[torch.Tensor], torch.Tensor]]:
        """Return the engine's name and the engine, checked on this step's own sample once.

        It is checked again if weights have changed since, unless they are `changed` on purpose.
        """
        known, reasons = self._confirmed, []
        if known and (self.checked or changed or known["weights"] == self._weights()):
            sure = next((each for each in self._engines() if each[0] == known["name"]), None)
            if sure is not None:
                return sure
        for name, engine in self._engines():
            try:
                if not self.checked:
                    self._check(engine)
            except FAILURES as error:
                refuse_memory(error)
                reasons.append(f"{name}: {in_short(error, 240)}")
                continue
            self._confirm(name)
            return name, engine
        raise ReplayError(self._no_engine(reasons))

    def _engines(self) -> Iterator[tuple[str, Callable[[torch.Tensor], torch.Tensor]]]:
        """Yield the engines to be tried, by their names; they take samples on the pipeline's device.

        Raises `ModelError` for a trace that was loaded without its model.
        """
        if self.run is not None:
            self.run.refuse_absent()
        if self.direct is not None and self.asks_directly:
            yield DIRECT, self.direct
        if self.run is not None:
            run, index, row = self.run, self.index, self.row
            alone = row is not None and run.rows > run.unit
            together = not alone and run.rows == run.unit and run.in_batches(index)
            name = FROM_START if run.needs_computing(index) else BATCHES if together else ONE_BY_ONE
            yield name, lambda samples: run.predict(index, samples, row)

    def _no_engine(self, reasons: Sequence[str]) -> str:
        direct = str(self.refusal) if self.direct is None else None
        if direct is None and self.run is not None:
            why = self.run.refusal_of_direct(self.index)
            direct = None if why is None else f"The denoiser cannot be asked directly: {why}."
        causes = " ".join([*([direct] if direct else []), *(sentence(reason) for reason in reasons)])
        return (
            f"Step {self.index} (time step {self.timestep:g}) cannot be replayed: no engine gives the prediction that "
            f"the scheduler received for the recorded sample. {causes} Was the network, or an argument of the call, "
            "changed since? Record the picture again."
        )

    def _weights(self) -> int:
        """Return a number that changes when weights of the denoiser are written to or replaced."""
        return 0 if self.run is None else self.run.fingerprint()

    def _check(self, engine: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Raise `ReplayError` unless an engine gives the recorded prediction for the recorded sample."""
        with torch.no_grad():
            self._compare(engine, engine(self.sample))

    def _compare(self, engine: Callable[[torch.Tensor], torch.Tensor], again: torch.Tensor) -> None:
        apart = difference(again.detach(), self.model_output)
        allowed = tolerance(engine, self.sample, self.model_output, apart)
        if not apart <= allowed:
            raise ReplayError(
                f"with its own sample its prediction is {apart:.2g} (relative) away from the recorded one, and "
                f"up to {allowed:.2g} is allowed"
            )

    def forget_check(self) -> None:
        """Check the engine again at the next question: the network may have been changed since."""
        self._confirmed.clear()

    @property
    def denoiser(self) -> torch.nn.Module:
        """The network that made this step's prediction, the last one of several."""
        if self.run is not None:
            self.run.refuse_absent()
        if self.direct is not None:
            return self.direct.denoiser
        if self.run is None:
            raise ReplayError(str(self.refusal))
        return self.run.denoiser(self.index)

    @property
    def networks(self) -> list[torch.nn.Module]:
        """The networks of the run's pipeline, decoders among them; without a run the denoisers of the step."""
        if self.run is not None:
            modules = list(self.run.resumption.modules.values())
        else:
            modules = [] if self.direct is None else [call.denoiser for call in self.direct.calls]
        return list({id(module): module for module in modules}.values())

    # Levels.

    @property
    def level(self) -> NoiseLevel:
        """alpha and sigma of the denoiser's input; raises the `level_refusal`."""
        if self.noise is None:
            raise ModelError(str(self.level_refusal))
        return self.noise

    @property
    def log_snr(self) -> float:
        """log(alpha² / sigma²), which makes steps of different schedulers comparable; raises the `level_refusal`."""
        return self.level.log_snr

    # Places.

    @property
    def layout(self) -> Layout:
        """The place of each number of a sample on the picture, measured once a run; raises `InputError` if unknown."""
        if self.run is None:
            return Layout("cyx" if self.sample.ndim == 4 else "cfyx", (self.sample.shape[-2], self.sample.shape[-1]))
        return layout_of(self.run)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns (h, w) of the sample's map; raises as `layout`."""
        return self.layout.grid

    def as_maps(self, samples: torch.Tensor) -> torch.Tensor:
        """Return samples as maps (n, channels, [frames,] h, w); differentiable. Raises as `layout`."""
        return self.layout.as_maps(samples)

    def as_samples(self, maps: torch.Tensor) -> torch.Tensor:
        """Return maps (n, channels, [frames,] h, w) as samples of the pipeline's own shape."""
        return self.layout.as_samples(maps)

    # Predictions.

    @property
    def pred_original_sample(self) -> torch.Tensor:
        """The clean sample that the recorded prediction amounts to, without any clipping; shape as `sample`.

        Raises the `level_refusal`.
        """
        return self.level.original(self.sample, self.model_output)

    def predict(self, samples: torch.Tensor) -> torch.Tensor:
        """Return the prediction that the scheduler would receive for other samples of this step, shape as given.

        Stateless and differentiable. The first call checks the `engine` on the step's own sample and raises
        `ReplayError` if the result is not the prediction that the scheduler received; `NumericsError` if a prediction
        is not finite. Samples may lie on any device; predictions lie on theirs.
        """
        step, count = self.brought(), len(samples)
        width = width_of(count)
        if width > count and step.is_compiled:
            samples = torch.cat([samples, samples[-1:].expand(width - count, *samples.shape[1:])])
        return step._finite(step._engine()[1](samples.to(step.home)))[:count].to(samples.device)

    @property
    def is_compiled(self) -> bool:
        """True if a denoiser of the run is compiled, whole or in parts: each new number of samples is compiled for."""
        run = self.run
        return run is not None and any(is_compiled(run.resumption.modules[name]) for name in run.resumption.denoisers)

    def half(self, copy: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the denoiser's own prediction in one guidance half, before they are mixed, as a function of samples.

        `copy` is 0 or 1; without guidance there is only 0. Checked as in `predict`, when it is asked for. Raises
        `ReplayError` for a step whose denoiser cannot be asked directly.
        """
        step = self.brought()
        replay = step.replay
        if not step.checked:
            known = step._confirmed
            sure = bool(known) and known["name"] == DIRECT and known["weights"] == step._weights()
            step._refuse_other(replay, None if sure else replay(step.sample))
        half = replay.half(copy)
        return lambda samples: step._finite(half(samples.to(step.home))).to(samples.device)

    def predict_original(self, samples: torch.Tensor) -> torch.Tensor:
        """Return the predicted clean samples, shape as given."""
        return self.level.original(samples, self.predict(samples))

    def next_sample(self, samples: torch.Tensor) -> torch.Tensor:
        """Return x_{t−1} that other samples of this step lead to, shape as given.

        One step of DDIM with η = 0 (Song, Meng, Ermon 2021, equation 12), x_{t−1} = α' x0 + σ' ε, with the predicted
        x0 (not clipped) and ε and the noise of the next step; the last step goes to x0. Stateless, deterministic and
        differentiable whatever the scheduler is, so a multistep or a random one's own `prev_sample` is another.
        """
        return self._next(samples, self.predict(samples))

    def _next(self, samples: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
        original = self.level.original(samples, prediction)
        if self.next_level is None:
            return original
        return self.next_level.noisy(original, self.level.noise(samples, prediction))

    def with_sample(self, sample: torch.Tensor) -> "Step":
        """Return this step as it would be for another sample, shape as `sample`, its conditioning kept.

        Its prediction is the denoiser's for that sample now, and `prev_sample` is `next_sample`. Differentiable: the
        tensors of the new step are functions of the sample.
        """
        step = self.brought()
        prediction = step._finite(step._engine(changed=True)[1](sample.to(step.home))).to(sample.device)
        following = self._next(sample, prediction)
        other = replace(self, sample=sample, model_output=prediction, prev_sample=following, checked=True)
        other.__dict__[CONFIRMED] = dict(step._confirmed)
        return other

    def clean(self, samples: torch.Tensor | None = None) -> torch.Tensor:
        """Return the predicted clean pictures, (n, 3, height, width) in [0, 1]; without samples, the recorded ones.

        Clips are (n, 3, frames, height, width). Raises as `level`, `predict` and `decode`.
        """
        original = self.pred_original_sample if samples is None else self.predict_original(samples)
        return self.decode(original)

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        """Return the pictures of samples by the pipeline's own decoding, (n, 3, [frames,] height, width) in [0, 1].

        Differentiable. Raises `NumericsError` or `ReplayError` where the returned picture is not the last sample's.
        """
        if self.decoder is not None:
            return self.decoder.decode(samples)
        if self.run is None:
            raise ReplayError("This step belongs to no recorded run, so its samples cannot be decoded.")
        pictures: torch.Tensor = self.run.decoding(samples)
        return pictures.to(samples.device)

    def picture(self, index: int, earlier: "Step | None" = None) -> "Step":
        """Return this step for one picture of the batch; conditioning equal to that of `earlier` is shared with it."""
        unit = 1 if self.run is None else self.run.unit
        rows = slice(index * unit, (index + 1) * unit)
        shared = None if earlier is None else earlier.direct
        return replace(
            self,
            sample=self.sample[rows],
            model_output=self.model_output[rows],
            prev_sample=self.prev_sample[rows],
            direct=None if self.direct is None else self.direct.picture(index, unit, shared),
            checked=False,
            row=index if self.row is None else self.row,
        )

    def repeat(self) -> torch.Tensor:
        """Return the prediction for the step's own sample, by the recorded denoiser calls alone, for hooks to hear.

        Differentiable: under gradients, whatever depends on the sample has a graph. Raises `ReplayError` if it is not
        the prediction that the scheduler received, or if the denoiser cannot be asked directly.
        """
        if (step := self.brought()) is not self:
            return step.repeat()
        replay = self.replay
        again = self._called(replay)
        if not self.checked:
            self._refuse_other(replay, again)
        return self._finite(again)

    def _called(self, replay: Replay) -> torch.Tensor:
        """Return a direct prediction for the step's own sample; raises `ReplayError` where the network fails."""
        gradient = torch.is_grad_enabled()
        try:
            return replay(self.sample.detach().clone().requires_grad_() if gradient else self.sample)
        except DenoscopeError:
            raise
        except FAILURES as error:
            refuse_memory(error)
            of_gradients = " with gradients" if gradient else ""
            raise ReplayError(
                f"The denoiser could not be called again{of_gradients} for step {self.index}: {in_short(error, 160)} "
                "Quantised weights and kernels for inference may have no gradients: load the pipeline without them, or "
                "use a method that needs none, such as df-rise."
            ) from error

    def again(self) -> torch.Tensor:
        """Return the prediction for the step's own sample by the engine that answers, for hooks to hear its calls.

        Differentiable, as `repeat`. Raises `ReplayError` if it is not the prediction that the scheduler received.
        """
        if (step := self.brought()) is not self:
            return step.again()
        if self.hears_directly:
            return self.repeat()
        if self.run is None:
            raise ReplayError(str(self.refusal))
        gradient = torch.is_grad_enabled()
        sample = self.sample.detach().clone().requires_grad_() if gradient else self.sample
        run, index, row = self.run, self.index, self.row
        prediction = run.predict(index, sample, row)
        *_, (name, engine) = self._engines()  # the resumed one
        if not self.checked:
            try:
                self._compare(engine, prediction)
            except ReplayError as error:
                raise ReplayError(self._no_engine([f"{name}: {error}"])) from None
            self._confirm(name)
        return self._finite(prediction)

    def _refuse_other(self, replay: Replay, again: torch.Tensor | None) -> None:
        """Raise `ReplayError` unless a direct prediction is the recorded one; None was checked before."""
        if again is None:
            return
        try:
            self._compare(replay, again)
        except ReplayError as error:
            raise ReplayError(self._no_engine([f"{DIRECT}: {error}"])) from None
        self._confirm(DIRECT)

    def _finite(self, prediction: torch.Tensor) -> torch.Tensor:
        refuse_non_finite(prediction, self.index, self.timestep)
        return prediction


CONFIRMED = "_confirmed"
"""Where a step remembers its engine, and the weights with which it was right; shared with the step on its device."""


def layout_of(run: Run) -> Layout:
    """Return the layout of a run's samples, measured at the first question."""
    if run.layout is None:
        last, decoding = run.decoding.last[: run.unit], run.decoding
        picture = decoding.picture
        run.refuse_absent()
        if picture is None and last.ndim == 4 and run.unit == 1:  # latents were asked for: the usual order
            usual = run.layout = Layout("cyx", (last.shape[-2], last.shape[-1]))
            return usual
        if picture is None:
            with torch.no_grad():
                picture = decoding(last)
        run.layout = measured(last, run.unit, picture.shape[2:], decoding, trusted=run.is_chain)
    layout: Layout = run.layout
    return layout


def refuse_non_finite(prediction: torch.Tensor, index: int, timestep: float) -> None:
    """Raise `NumericsError`, naming the step, for a prediction with NaN or infinite values."""
    if not torch.isfinite(prediction).all():
        raise NumericsError(
            f"The prediction at step {index} (time step {timestep:g}) has NaN or infinite values. Only finite "
            "predictions can be explained. Half precision often overflows: load the model with dtype=torch.float32, "
            "or check its weights."
        )
