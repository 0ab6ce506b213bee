"""Exact worlds: denoisers in closed form, so that every measurement on them has a right answer.

A world is a distribution of pictures x0 in about [−1, 1]. With y = x_t / alpha = x0 + s ε, s² = sigma² / alpha², its
denoiser is E[x0 | y]; `world.pipeline()` is a diffusers pipeline of it, which `denoscope.load` takes.
"""

import inspect
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch
from diffusers import DDIMScheduler
from diffusers.configuration_utils import FrozenDict
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from scipy import integrate, stats

from ..errors import InputError, shown_value
from ..recording.traces import Trace
from ..timing.likelihood import crossing

HALF_POWER = math.sqrt(0.5)
"""The amplitude at half of the power."""


class World(ABC):
    """A distribution of pictures of one `shape` (channels, side, side)."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a picture."""

    @abstractmethod
    def denoised(self, y: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        """Return E[x0 | x0 + s ε = y] of y (n, channels, h, w) and s² (n, 1, 1, 1) or one number."""

    @abstractmethod
    def draw(self, count: int, seed: int = 0) -> torch.Tensor:
        """Draw pictures of the world itself, (count, channels, h, w)."""

    def pipeline(self, scheduler: Any = None) -> "ExactPipeline":
        """Return a pipeline with the exact denoiser and a scheduler, DDIM if it is None.

        Raises `InputError` for a scheduler that does not predict ε.
        """
        ddim: Any = DDIMScheduler
        scheduler = scheduler or ddim(clip_sample=False)
        prediction = scheduler.config.get("prediction_type")
        if prediction != "epsilon":
            raise InputError(
                f"{type(scheduler).__name__} has prediction_type={shown_value(prediction)}, and the exact denoisers "
                'predict the noise. Give a scheduler with prediction_type="epsilon".'
            )
        return ExactPipeline(ExactDenoiser(self, scheduler.alphas_cumprod), scheduler)


@final
@dataclass(frozen=True, eq=False)
class GaussianWorld(World):
    """N(μ, Σ_k λ_k u_k u_kᵀ): `mean` (c, h, w), orthonormal `modes` (k, c, h, w), `variances` λ (k,).

    Its denoiser is μ + Σ λ_k / (λ_k + s²) u_k u_kᵀ (y − μ): mode k emerges at s² ≈ λ_k, so what varies most comes first
    (Wang and Vastola 2023).
    """

    mean: torch.Tensor
    modes: torch.Tensor
    variances: torch.Tensor

    @classmethod
    def cosines(cls, side: int, variances: list[float]) -> "GaussianWorld":
        """Return the world of grey pictures of plane cosines, the coarsest first, with these variances; mean 0.

        >>> GaussianWorld.cosines(8, [4.0, 1.0, 0.25]).modes.shape
        torch.Size([3, 1, 8, 8])
        """
        waves = torch.cos(math.pi / side * torch.outer(torch.arange(side), torch.arange(side) + 0.5))
        waves = waves / waves.norm(dim=1, keepdim=True)
        places = sorted(np.ndindex(side, side), key=lambda place: (place[0] ** 2 + place[1] ** 2, place))
        if len(variances) > len(places):
            raise InputError(f"{len(variances)} variances were given, and {side} × {side} pixels have {side**2} modes.")
        modes = torch.stack([torch.outer(waves[i], waves[j]) for i, j in places[: len(variances)]])
        return cls(torch.zeros(1, side, side), modes[:, None], torch.tensor(variances))

    @classmethod
    def of_covariance(cls, covariance: torch.Tensor, mean: torch.Tensor) -> "GaussianWorld":
        """Return the world of a covariance (d, d) of the d = c·h·w values of a `mean` (c, h, w).

        Its modes are ordered by their variances, the largest first.
        """
        variances, vectors = torch.linalg.eigh(covariance.double())
        order = (variances > 1e-6 * variances[-1]).nonzero()[:, 0].flip(0)
        return cls(mean, vectors.T[order].reshape(-1, *mean.shape).to(mean), variances[order].to(mean))

    @classmethod
    def window(cls, mask: np.ndarray, variance: float = 0.25, reach: float = 2.0) -> "GaussianWorld":
        """Return the world of grey pictures that vary inside a boolean mask (side, side) only, over `reach` pixels.

        The predicted clean picture depends on the noisy one inside the mask and on nothing outside it.
        """
        places = np.argwhere(np.ones_like(mask))
        apart = ((places[:, None] - places[None]) ** 2).sum(axis=-1)
        inside = np.outer(mask.ravel(), mask.ravel())
        covariance = variance * np.exp(-apart / (2 * reach**2)) * inside
        return cls.of_covariance(torch.from_numpy(covariance), torch.zeros(1, *mask.shape))

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.mean.shape
        return channels, height, width

    def coefficients(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return u_kᵀ (x − μ) of pictures (n, c, h, w), as (n, k)."""
        return torch.einsum("nchw,kchw->nk", pictures - self.mean.to(pictures), self.modes.to(pictures))

    def denoised(self, y: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        gains = self.variances.to(y) / (self.variances.to(y) + variance.reshape(-1, 1))
        return self._of(gains * self.coefficients(y))

    def draw(self, count: int, seed: int = 0) -> torch.Tensor:
        noise = torch.randn(count, len(self.modes), generator=torch.Generator().manual_seed(seed))
        return self._of(noise * self.variances.sqrt())

    def _of(self, coefficients: torch.Tensor) -> torch.Tensor:
        modes = self.modes.to(coefficients)
        return self.mean.to(coefficients) + torch.einsum("nk,kchw->nchw", coefficients, modes)

    def emergence(self, level: float = HALF_POWER) -> np.ndarray:
        """Return s² (k,) at which each mode of the clean prediction has reached a share `level` of its final value.

        Without noise of the sampler's own, y's part along u_k is proportional to √(λ_k + s²), so the prediction's is
        √(λ_k / (λ_k + s²)) of the final one: s² = λ_k (1 / level² − 1). At half of its power, level √½, that is λ_k.
        """
        return self.variances.numpy() * (1 / level**2 - 1)


def measured_emergence(trace: Trace, world: GaussianWorld, level: float = HALF_POWER) -> np.ndarray:
    """Return s² (k,) at which the modes of a run's clean predictions reach a share `level` of their final value.

    Compare it with `world.emergence(level)`, for samplers without noise of their own. Between steps log s² is
    interpolated. NaN for a mode that reaches it at the first step, or never.
    """
    clean = torch.cat([step.pred_original_sample[:1] for step in trace])
    shares = (world.coefficients(clean) / world.coefficients(trace[-1].prev_sample[:1])).numpy()
    places = np.array([crossing(share, level, lasting=1) for share in shares.T])
    log_variances = [-step.log_snr for step in trace]
    return np.exp(np.interp(np.where(places > 0, places, np.nan), np.arange(len(trace)), log_variances))


@final
@dataclass(frozen=True, eq=False)
class MixtureWorld(World):
    """Σ_j w_j N(m_j, v I): `means` (j, c, h, w), `variance` v, `weights` w, equal if empty.

    The mode of a picture is decided around the speciation time (Biroli, Bonnaire, de Bortoli, Mézard
    2024).
    """

    means: torch.Tensor
    variance: float
    weights: tuple[float, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self.means.shape
        return channels, height, width

    @property
    def shares(self) -> torch.Tensor:
        """The weights, adding up to one."""
        weights = torch.tensor(self.weights) if self.weights else torch.ones(len(self.means))
        return weights / weights.sum()

    def posterior(self, y: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        """Return p(mode | y), (n, j), of y (n, c, h, w) and s²."""
        apart = (y[:, None] - self.means.to(y)).square().sum(dim=(2, 3, 4))
        return (self.shares.to(y).log() - apart / (2 * (self.variance + variance.reshape(-1, 1)))).softmax(dim=1)

    def denoised(self, y: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        centre = torch.einsum("nj,jchw->nchw", self.posterior(y, variance), self.means.to(y))
        return centre + self.variance / (self.variance + variance) * (y - centre)

    def draw(self, count: int, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        modes = torch.multinomial(self.shares, count, replacement=True, generator=generator)
        return self.means[modes] + math.sqrt(self.variance) * torch.randn(count, *self.shape, generator=generator)

    def nearest(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return the number of the mode that each picture (n, c, h, w) is closest to, (n,)."""
        return torch.cdist(pictures.flatten(1), self.means.to(pictures).flatten(1)).argmin(dim=1)

    @property
    def speciation(self) -> float:
        """The s² at which the class begins to be decided: the largest variance between the modes, less that within.

        There the density of y loses its single peak: for two equal modes ± m the curvature along m vanishes where
        |m|² = v + s². `ou_time` gives the published form, ½ ln(1 + |m|² − v), which tends to ½ ln Λ, Λ being the
        largest eigenvalue of the data's covariance. Raises `InputError` where the modes are not apart.
        """
        weighted = (self.means - torch.einsum("j,jchw->chw", self.shares, self.means)).flatten(1)
        between = float(torch.linalg.matrix_norm(self.shares.sqrt()[:, None] * weighted, 2) ** 2)
        if between <= self.variance:
            raise InputError(
                f"These modes have the variance {self.variance:g} and between them only {between:g}, so there is one "
                "peak at every time and no speciation. Put them further apart."
            )
        return between - self.variance

    def agreement(self, log_snr: float) -> float:
        """Return P(two clones of one x_t end in the same mode) for a noisy sampler and two equal modes ± m.

        It is E[p² + (1 − p)²] with p = 1 / (1 + exp(−2 √r z)), z ~ N(√r, 1) and r = |m|² / (v + s²): ½ in pure noise,
        1 without. The same is P(a picture keeps its mode) when it is noised to x_t and finished again.
        """
        root = math.sqrt(self._separation(log_snr))

        def same(z: float) -> float:
            p = 1 / (1 + math.exp(-2 * root * z))
            return (p * p + (1 - p) ** 2) * float(stats.norm.pdf(z, root))

        return float(integrate.quad(same, root - 8, root + 8)[0])

    def survival(self, log_snr: float) -> float:
        """Return P(a picture keeps its mode), noised to x_t and finished without noise: Φ(√r)."""
        return float(stats.norm.cdf(math.sqrt(self._separation(log_snr))))

    def _separation(self, log_snr: float) -> float:
        """Return r = |m|² / (v + s²)."""
        if len(self.means) != 2 or not math.isclose(*self.shares.tolist()):
            raise InputError(f"The closed form is of two equal modes, and there are {len(self.means)}: {self.shares}.")
        distance = float((self.means[0] - self.means[1]).norm()) / 2
        return distance**2 / (self.variance + math.exp(-log_snr))


def ou_time(variance: float) -> float:
    """Return t of s² on the Ornstein–Uhlenbeck process, x_t = e^{−t} x0 + √(1 − e^{−2t}) ε: ½ ln(1 + s²)."""
    return math.log1p(variance) / 2


class ExactDenoiser(torch.nn.Module):
    """The exact prediction of ε for x = alpha x0 + sigma ε, with alpha and sigma of the time step."""

    def __init__(self, world: World, alphas_cumprod: torch.Tensor):
        super().__init__()
        self.world = world
        self.sigmas = ((1 - alphas_cumprod) / alphas_cumprod).double().sqrt().numpy()
        channels, _, side = world.shape
        config_of: Any = FrozenDict
        self.config = config_of(in_channels=channels, sample_size=side)
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def forward(self, sample: torch.Tensor, timestep: Any, return_dict: bool = True) -> Any:
        t = np.atleast_1d(np.asarray(torch.as_tensor(timestep).cpu(), dtype=float))
        s = torch.from_numpy(np.interp(t, np.arange(len(self.sigmas)), self.sigmas)).reshape(-1, 1, 1, 1)
        y = sample.double() * (1 + s * s).sqrt()  # 1 / alpha
        noise = ((y - self.world.denoised(y, s * s)) / s).to(sample)
        return Noise(noise) if return_dict else (noise,)


@dataclass(frozen=True, eq=False)
class Noise:
    """A denoiser's output, under diffusers' name for it."""

    sample: torch.Tensor = field(repr=False)


class ExactPipeline(DiffusionPipeline):
    """A pipeline of unconditional sampling in pixels, with any scheduler."""

    def __init__(self, unet: ExactDenoiser, scheduler: Any):
        super().__init__()
        pipeline: Any = self
        pipeline.register_modules(unet=unet, scheduler=scheduler)
        pipeline.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int = 50,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        """Make pictures; `output_type` is "pil", "np" or "pt"."""
        scheduler = self.scheduler
        scheduler.set_timesteps(num_inference_steps)
        noise = torch.randn(batch_size, *self.unet.world.shape, generator=generator)
        x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
        options = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
        for t in scheduler.timesteps:
            output = self.unet(scheduler.scale_model_input(x, t), t).sample
            x = scheduler.step(output, t, x, **options).prev_sample
        tensors: Any = (x / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return ImagePipelineOutput(images=tensors)
        images = tensors.permute(0, 2, 3, 1).numpy()
        if output_type != "np":
            to_pil: Any = self.numpy_to_pil
            images = to_pil(images)
        return ImagePipelineOutput(images=images)
