"""Pages read back as a browser would: their text, pictures, links and packed arrays."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import xarray as xr
from PIL import Image

from denoscope.evaluation.captions import CAPTIONS
from denoscope.results.explanations import Explanation
from denoscope.timing import likelihood as timing

PROMPT = 'a red disc </script><script>alert("1")</script> & <b>more</b>'


RUN = {
    "command": ["denoscope", "explain", "a red disc"],
    "model": "shapes",
    "prompt": PROMPT,
    "seed": 0,
    "seconds": None,
}


class Page(HTMLParser):
    """Every tag with its attributes, and the text inside each."""

    def __init__(self, source: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append((self.tags[-1][0] if self.tags else "", data))

    def said(self) -> str:
        return " ".join(" ".join(text for tag, text in self.texts if tag not in ("script", "style")).split())


def picture_of(uri: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        return np.asarray(image.convert("RGB"))


LABELS = ("tiger", "Persian <cat>")


def photograph(frames: int = 60, side: int = 32) -> xr.Dataset:
    """Noise that turns into a picture of two halves, as frames without a clean prediction."""
    picture = np.full((side, side, 3), 40, np.uint8)
    picture[:, side // 2 :] = (230, 160, 40)
    noise = np.random.default_rng(0).uniform(0, 255, picture.shape)
    kept = np.linspace(0, 1, frames)[:, None, None, None] if frames > 1 else np.ones((1, 1, 1, 1))
    places = ("step", "row", "column", "channel")
    with np.errstate(divide="ignore"):
        log_snr = 2 * np.log(kept.ravel() / (1 - kept.ravel()))
    return xr.Dataset(
        {"image": (places[1:], picture), "sample": (places, (kept * picture + (1 - kept) * noise).astype(np.uint8))},
        coords={
            "step": np.arange(frames),
            "timestep": ("step", np.arange(frames, 0.0, -1)),
            "log_snr": ("step", log_snr),
        },
    )


def rising(frames: int = 60, middle: float = 30.0, top: float = 0.98, draws: int = 5) -> xr.DataArray:
    """Logistic likelihoods of the first label, each draw a frame later than the one before; the second stays low."""
    places = np.arange(frames)[:, None] - middle - np.arange(draws)
    first = top / (1 + np.exp(-places / 2))
    return xr.DataArray(
        np.stack([first, 0.3 * (1 - first) / (1 + np.arange(draws))], axis=-1),
        {"step": np.arange(frames), "draw": np.arange(draws), "label": list(LABELS)},
        ("step", "draw", "label"),
        "likelihood",
    )


def attribution(steps: tuple[int, ...] = (20, 30, 59), side: int = 32, draws: int = 1, **attrs: object) -> xr.Dataset:
    """Signed grain with an outlier, a value for every pixel and draw."""
    rng = np.random.default_rng(1)
    maps = rng.normal(size=(len(steps), draws, side, side))
    maps[:, :, 9, 11] = 30
    return xr.Dataset(
        {"saliency": (("step", "draw", "y", "x"), maps)},
        {"step": list(steps), "draw": np.arange(draws)},
        {"title": "Gradients", "reading": "What speaks for it.", "signed": True, **attrs},
    )


def with_measures(result: xr.Dataset, **measures: object) -> xr.Dataset:
    """The result with measures (step, draw) of its maps, captioned as `stages` captions them."""
    size = (result.sizes["step"], result.sizes["draw"])
    arrays = {name: np.broadcast_to(np.asarray(values, dtype=float), size) for name, values in measures.items()}
    variables = {name: xr.Variable(("step", "draw"), values, CAPTIONS[name]) for name, values in arrays.items()}
    return result.assign(variables)


def recognised(method: xr.Dataset | None = None, likelihood: xr.DataArray | None = None, **run: object) -> Explanation:
    likelihood = rising() if likelihood is None else likelihood
    method = attribution() if method is None else method
    record = {"photograph": "cat.jpg", "classifier": "imagenet", "label": "tiger", "draws": 5, "kind": "blend", **run}
    moments = timing.over_draws(timing.moments(likelihood))
    return Explanation.of(photograph(), {"gradients": method}, record, likelihood, moments)


def unpacked(carried: dict, shape: list[int]) -> np.ndarray:
    words = np.frombuffer(base64.b64decode(carried["words"]), "<i2").astype(float)
    return np.where(words == -32768, np.nan, words * carried["unit"]).reshape(shape)


def data_of(page: str) -> dict:
    return json.loads(re.search(r'id="payload">(.*?)</script>', page, re.DOTALL)[1])
