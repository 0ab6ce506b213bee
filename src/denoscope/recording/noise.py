"""How noisy a step is, and what its prediction says of the clean sample and of the noise."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ModelError


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
        """The predicted clean sample x0, of the sample's shape (a predicted variance behind the output is left out)."""
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
        """The predicted noise ε, of the sample's shape."""
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
        """The scheduler's sample at this level of a clean sample x0 and a noise ε: (alpha x0 + sigma ε) / scale."""
        return (self.alpha * original + self.sigma * noise) / self.scale


def noise_level(scheduler: Any, timestep: float, sigma_index: int | None, scale: float) -> NoiseLevel:
    """Read the noise level of a step that the scheduler has just taken.

    A scheduler that scales its samples (x / sqrt(1 + σ²)) gives σ away by the scale; one that walks along `sigmas`
    knows it by its position; the others by ᾱ at the time step. Raises `ModelError` where none of these is there.
    """
    prediction_type = _prediction_type(scheduler)
    if prediction_type == "flow_prediction":
        sigma = _sigma(scheduler, timestep, sigma_index)
        return NoiseLevel(1 - sigma, sigma, scale, prediction_type)
    if scale < 1 - 1e-6:
        return NoiseLevel(scale, math.sqrt(1 - scale * scale), scale, prediction_type)
    sigmas = getattr(scheduler, "sigmas", None)
    if sigma_index is not None and sigmas is not None:
        sigma = float(sigmas[sigma_index])
        alpha = 1 / math.sqrt(1 + sigma * sigma)
        return NoiseLevel(alpha, sigma * alpha, scale, prediction_type)
    cumulative = getattr(scheduler, "alphas_cumprod", None)
    if cumulative is None:
        raise ModelError(
            f"The noise level of {type(scheduler).__name__} at time step {timestep:g} is unknown: it has neither "
            "alphas_cumprod nor sigmas. Give the pipeline a DDPM, DDIM, DPM-Solver, Euler or flow-match scheduler."
        )
    product = float(cumulative[int(timestep)])
    return NoiseLevel(math.sqrt(product), math.sqrt(1 - product), scale, prediction_type)


def _prediction_type(scheduler: Any) -> str:
    config = scheduler.config
    if config.get("use_flow_sigmas") or "prediction_type" not in config:
        return "flow_prediction"
    kind = config["prediction_type"]
    allowed = ("epsilon", "v_prediction", "sample", "flow_prediction")
    if kind not in allowed:
        raise ModelError(
            f'{type(scheduler).__name__} says prediction_type="{kind}", which is not one of {", ".join(allowed)}. '
            "Its clean prediction cannot be computed; use a scheduler with one of those."
        )
    return kind


def _sigma(scheduler: Any, timestep: float, sigma_index: int | None) -> float:
    if sigma_index is not None:
        return float(scheduler.sigmas[sigma_index])
    return timestep / scheduler.config["num_train_timesteps"]
