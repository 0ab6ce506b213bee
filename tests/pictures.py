"""Pictures and maps whose right look is known: a disc on a flat ground."""

import numpy as np
import xarray as xr

NUMBER_OF_STEPS = 6


def disc_trace(height: int = 32, width: int = 32, steps: int = NUMBER_OF_STEPS) -> xr.Dataset:
    """Noise that fades into a red disc on white."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    disc = np.hypot(rows - height / 2, columns - width / 2) < min(height, width) / 4
    picture = np.where(disc[..., None], (220, 30, 30), (255, 255, 255))
    noise = np.random.default_rng(0).uniform(0, 255, (height, width, 3))
    kept = np.linspace(0, 1, steps)[:, None, None, None]
    places = ("step", "row", "column", "channel")
    return xr.Dataset(
        {
            "image": (places[1:], picture.astype(np.uint8)),
            "sample": (places, (kept * picture + (1 - kept) * noise).astype(np.uint8)),
            "pred_original_sample": (places, (255 - (0.4 + 0.6 * kept) * (255 - picture)).astype(np.uint8)),
        },
        coords={
            "step": np.arange(steps),
            "timestep": ("step", np.linspace(999, 0, steps).astype(int)),
            "log_snr": ("step", np.linspace(-9.0, 6.0, steps)),
        },
    )


def disc_method(steps: tuple[int, ...] = (1, 3, 4), height: int = 8, width: int = 8, **attrs: object) -> xr.Dataset:
    """A bump on the disc that grows from step to step, below zero at the rim, with errors and a reliability."""
    rows, columns = np.mgrid[-1 : 1 : 1j * height, -1 : 1 : 1j * width]
    bump = np.exp(-4 * (rows**2 + columns**2)) - 0.1
    saliency = np.stack([(1 + step) * bump for step in steps])
    return xr.Dataset(
        {
            "saliency": (("step", "y", "x"), saliency),
            "standard_error": (("step", "y", "x"), 0.1 + 0.01 * np.abs(saliency)),
            "reliability": ("step", np.linspace(0.7, 0.95, len(steps))),
        },
        coords={
            "step": list(steps),
            "timestep": ("step", [999 - 100 * step for step in steps]),
            "log_snr": ("step", [step - 9.0 for step in steps]),
        },
        attrs={"title": "A bump", "reading": "High on the disc.", "num_masks": 500, **attrs},
    )
