"""Noise levels: how noisy a step is, and the clean sample and the noise that its prediction amounts to."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ModelError

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction")
SCALE_TOLERANCE = 1e-4
"""Largest relative difference between 1 / sqrt(1 + σ²) and the scheduler's own scale that counts as none."""


@dataclass(frozen=True)
class NoiseLevel:
    """The denoiser's input is x = alpha x0 + sigma ε; `scale` takes the scheduler's sample to that input.

    Sources: epsilon, Ho et al. 2020; v-prediction v = alpha ε − sigma x0, Salimans and Ho 2022; flow v = ε − x0,
    Lipman et al. 2023. In the first three alpha² + sigma² = 1, in the last alpha + sigma = 1.
    """

    alpha: float
    sigma: float
    scale: float
    prediction_type: str

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
        return (x - self.alpha * y) / max(self.sigma, 1e-12)

    def noisy(self, original: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return the scheduler's sample of a clean sample x0 and a noise ε: (alpha x0 + sigma ε) / scale."""
        return (self.alpha * original + self.sigma * noise) / self.scale


def noise_level(scheduler: Any, timestep: float, sigma_index: int | None, scale: float) -> NoiseLevel:
    """Read the noise level of a step that the scheduler has just taken.

    `scale` is the factor of the scheduler's own `scale_model_input`. A scheduler that walks along `sigmas` knows σ by
    its position, the others know ᾱ by the time step. Raises `ModelError` for a scheduler whose clean prediction is of
    another form than x = alpha x0 + sigma ε, or that says neither.
    """
    _refuse_preconditioned(scheduler)
    prediction_type = _prediction_type(scheduler)
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


def _refuse_preconditioned(scheduler: Any) -> None:
    """Raise `ModelError` for EDM (Karras et al. 2022) and consistency models: they mix output and input."""
    if hasattr(scheduler, "precondition_outputs") or "sigma_data" in scheduler.config:
        raise ModelError(_unknown(scheduler, "it mixes the denoiser's output with its input (sigma_data)"))


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
