"""Noise levels: how noisy a step is, and the clean sample and the noise that its prediction amounts to."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ModelError

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction", "trigflow")
AGREEMENT = {torch.float64: 1e-5, torch.float32: 1e-3}
"""Largest relative difference from the scheduler's own clean prediction; 0.1 in half precision."""
SCALE_TOLERANCE = 1e-4
"""Largest relative difference between 1 / sqrt(1 + σ²) and the scheduler's own scale that counts as none."""


@dataclass(frozen=True)
class NoiseLevel:
    """The denoiser's input is x = alpha x0 + sigma ε; `scale` takes the scheduler's sample to that input.

    Sources: epsilon, Ho et al. 2020; v-prediction v = alpha ε − sigma x0, Salimans and Ho 2022; flow v = ε − x0,
    Lipman et al. 2023. In the first three alpha² + sigma² = 1, in the last alpha + sigma = 1. A "preconditioned" output
    (EDM, Karras et al. 2022; consistency models, Song et al. 2023) is x0 = skip · sample + out · output, with the
    scheduler's sample x0 + σ ε. TrigFlow (Lu and Song 2024) is v with alpha = cos t.
    """

    alpha: float
    sigma: float
    scale: float
    prediction_type: str
    skip: float = 0.0
    out: float = 1.0

    @property
    def log_snr(self) -> float:
        """log(alpha² / sigma²); infinite where there is no noise."""
        if self.sigma == 0:
            return math.inf
        return 2 * math.log(self.alpha / self.sigma) if self.alpha > 0 else -math.inf

    def original(self, sample: torch.Tensor, model_output: torch.Tensor) -> torch.Tensor:
        """Return the predicted clean sample x0, of the sample's shape; a variance behind the output is left out."""
        x, y = self.scale * sample, model_output[:, : sample.shape[1]]
        match self.prediction_type:
            case "epsilon":
                return (x - self.sigma * y) / self.alpha
            case "v_prediction":
                return self.alpha * x - self.sigma * y
            case "flow_prediction":
                return x - self.sigma * y
            case "preconditioned":
                return self.skip * sample + self.out * y
        return y

    def noise(self, sample: torch.Tensor, model_output: torch.Tensor) -> torch.Tensor:
        """Return the predicted noise ε, of the sample's shape."""
        x, y = self.scale * sample, model_output[:, : sample.shape[1]]
        match self.prediction_type:
            case "epsilon":
                return y
            case "v_prediction":
                return self.alpha * y + self.sigma * x
            case "flow_prediction":
                return x + self.alpha * y
            case "preconditioned":
                return (x - self.alpha * (self.skip * sample + self.out * y)) / max(self.sigma, 1e-12)
        return (x - self.alpha * y) / max(self.sigma, 1e-12)

    def noisy(self, original: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return the scheduler's sample of a clean sample x0 and a noise ε: (alpha x0 + sigma ε) / scale."""
        return (self.alpha * original + self.sigma * noise) / self.scale

    def refuse_other_than(
        self, sample: torch.Tensor, model_output: torch.Tensor, original: torch.Tensor | None, scheduler: Any
    ) -> None:
        """Raise `ModelError` if the scheduler's own clean prediction is another; places that it clipped do not count.

        `original` is the scheduler's, None if it returns none.
        """
        config = scheduler.config
        if original is None or original.shape != sample.shape or config.get("thresholding"):
            return
        own = self.original(sample, model_output).float()
        limit = float(config.get("clip_sample_range") or 1.0) if config.get("clip_sample") else math.inf
        counted = (original.float().abs() < 0.999 * limit) & torch.isfinite(own)
        if not bool(counted.any()):
            return
        apart = float((own - original.float())[counted].abs().max())
        size = float(original.float()[counted].abs().max())
        rounding = (
            16 * torch.finfo(sample.dtype).eps * float(sample.float().abs().max()) * self.scale / max(self.alpha, 1e-12)
        )
        if apart > AGREEMENT.get(sample.dtype, 0.1) * size + rounding:
            raise ModelError(
                _unknown(scheduler, f"its own clean prediction is {apart:.2g} away from the known form, of {size:.2g}")
            )


def noise_level(scheduler: Any, timestep: float, sigma_index: int | None, scale: float) -> NoiseLevel:
    """Read the noise level of a step that the scheduler has just taken.

    `scale` is the factor of the scheduler's own `scale_model_input`. A scheduler that walks along `sigmas` knows σ by
    its position, the others know ᾱ by the time step. Raises `ModelError` for a scheduler whose clean prediction is of
    another form than x = alpha x0 + sigma ε, or that says neither.
    """
    preconditioned = _preconditioned(scheduler, sigma_index)
    if preconditioned is not None:
        return preconditioned
    cosine = _cosine(scheduler, timestep)
    if cosine is not None:
        return cosine
    prediction_type = _prediction_type(scheduler)
    if prediction_type == "trigflow":
        return NoiseLevel(math.cos(timestep), math.sin(timestep), scale, "v_prediction")
    if prediction_type == "flow_prediction":
        flow = _flow_sigma(scheduler, timestep, sigma_index)
        return NoiseLevel(1 - flow, flow, scale, prediction_type)
    sigma = _sigma(scheduler, sigma_index, scale)
    if sigma is not None:
        alpha = 1 / math.sqrt(1 + sigma * sigma)
        return NoiseLevel(alpha, sigma * alpha, _exact_scale(alpha, scale), prediction_type)
    cumulative = getattr(scheduler, "alphas_cumprod", None)
    if cumulative is None or not math.isfinite(timestep) or not math.isfinite(scale):
        raise ModelError(_unknown(scheduler, f"it has neither alphas_cumprod at time step {timestep:g} nor sigmas"))
    product = float(cumulative[int(timestep)])
    return NoiseLevel(math.sqrt(product), math.sqrt(1 - product), scale, prediction_type)


def _preconditioned(scheduler: Any, sigma_index: int | None) -> NoiseLevel | None:
    """Return the level of EDM and of consistency models, which mix output and input; None for the others.

    The scheduler's own functions are asked for the mixture. Raises `ModelError` where the step is not known.
    """
    asks_outputs = hasattr(scheduler, "precondition_outputs")
    if not asks_outputs and not (
        hasattr(scheduler, "get_scalings_for_boundary_condition") and hasattr(scheduler, "sigmas")
    ):
        return None
    if sigma_index is None:
        raise ModelError(_unknown(scheduler, "it does not say at which of its sigmas it is"))
    sigma = float(scheduler.sigmas[sigma_index])
    data = float(scheduler.config.get("sigma_data", 0.5))
    if asks_outputs:
        one, zero, level = torch.ones(1), torch.zeros(1), torch.tensor(sigma)
        skip = float(scheduler.precondition_outputs(one, zero, level))
        out = float(scheduler.precondition_outputs(zero, one, level))
    else:
        skip, out = (float(value) for value in scheduler.get_scalings_for_boundary_condition(torch.tensor(sigma)))
    scale = 1 / math.sqrt(sigma * sigma + data * data)
    return NoiseLevel(scale, sigma * scale, scale, "preconditioned", skip, out)


def _cosine(scheduler: Any, timestep: float) -> NoiseLevel | None:
    """Return the level of Würstchen and Stable Cascade, whose ᾱ is a cosine of a time from 0 to 1; None for the others.

    The scheduler's own ᾱ is asked. The denoiser predicts the noise (Pernias et al. 2023).
    """
    if not hasattr(scheduler, "_alpha_cumprod") or scheduler.config.get("prediction_type") is not None:
        return None
    product = float(scheduler._alpha_cumprod(torch.tensor([timestep]), torch.device("cpu"))[0])
    return NoiseLevel(math.sqrt(product), math.sqrt(1 - product), 1.0, "epsilon")


def _prediction_type(scheduler: Any) -> str:
    config = scheduler.config
    kind = config.get("prediction_type")
    if config.get("use_flow_sigmas") or (kind is None and hasattr(scheduler, "scale_noise")):
        return "flow_prediction"
    if kind not in PREDICTION_TYPES:
        problem = "it has no prediction_type" if kind is None else f'its prediction_type is "{kind}"'
        raise ModelError(_unknown(scheduler, f"{problem}; allowed are {', '.join(PREDICTION_TYPES)}"))
    return str(kind)


def _sigma(scheduler: Any, sigma_index: int | None, scale: float) -> float | None:
    """Return σ of x / scale = x0 + σ ε for a scheduler that walks along `sigmas`, None for the others.

    KDPM2 and its kin take every second step between two of their `sigmas`, which their scale gives away.
    """
    sigmas = getattr(scheduler, "sigmas", None)
    scales = scale < 1 - 1e-6
    if sigma_index is not None and sigmas is not None and math.isfinite(scale):
        sigma = float(sigmas[sigma_index])
        if not scales or abs(scale * math.sqrt(1 + sigma * sigma) - 1) < SCALE_TOLERANCE:
            return sigma
    return math.sqrt(1 / scale**2 - 1) if scales and scale > 0 else None


def _exact_scale(alpha: float, scale: float) -> float:
    """Return 1 for a scheduler that does not scale its samples, alpha = 1 / sqrt(1 + σ²) for one that does."""
    return alpha if scale < 1 - 1e-6 else scale


def _flow_sigma(scheduler: Any, timestep: float, sigma_index: int | None) -> float:
    """Return σ of x = (1 − σ) x0 + σ ε; raises `ModelError` unless it is from 0 to 1."""
    sigmas = getattr(scheduler, "sigmas", None)
    if sigma_index is not None and sigmas is not None:
        sigma = float(sigmas[sigma_index])
    else:
        sigma = timestep / scheduler.config.get("num_train_timesteps", 1000)
    if not 0 <= sigma <= 1 + 1e-6:
        raise ModelError(_unknown(scheduler, f"its sigma {sigma:g} is none of flow matching, which go from 0 to 1"))
    return sigma


def _unknown(scheduler: Any, problem: str) -> str:
    return (
        f"The noise level and the clean prediction of {type(scheduler).__name__} are not known: {problem}. "
        "Questions about them cannot be answered for this run. Give the pipeline a DDPM, DDIM, DPM-Solver, Euler or "
        "flow-match scheduler."
    )
