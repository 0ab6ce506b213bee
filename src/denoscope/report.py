"""One self-contained HTML page for an explanation: one step control moves every panel.

Python makes the numbers, the words and the pictures; `templates/report.js` draws the maps from the raw values that
the page carries, so that what a reader points at is what the array holds (to four significant digits).
"""

import base64
import io
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jinja2
import matplotlib
import numpy as np
import xarray as xr
from jinja2.utils import htmlsafe_json_dumps
from matplotlib.colors import to_hex
from matplotlib.ticker import MaxNLocator
from PIL import Image

from .figures import (
    ALPHA,
    DIVERGING,
    RELIABLE,
    SEQUENTIAL,
    Limits,
    clean_pictures,
    colour_limits,
    error_limits,
    explained_steps,
    is_flat,
    layers,
    overlay,
    readable,
    shrunk,
)

EXACT_SIDE, LARGEST_SIDE = 128, 512
# Okabe and Ito's colours: told apart with any colour vision, on light and on dark ground.
HUES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
TOLD_ELSEWHERE = {
    "command", "methods", "versions", "seconds", "steps", "timesteps", "interrupted", "prompt", "created"
}  # fmt: skip
SHOWN_WITH_THE_MAP = {"title", "reading"}


class Explained(Protocol):
    """What a page is made from, an `Explanation`: the run, its pictures over all steps, and the methods' results."""

    @property
    def run(self) -> dict[str, Any]: ...

    @property
    def trace(self) -> xr.Dataset: ...

    def methods(self) -> dict[str, xr.Dataset]: ...


def render(explanation: Explained) -> str:
    """The whole page as text; it needs no network and opens from a file."""
    trace, methods, run = explanation.trace, explanation.methods(), explanation.run
    return _template("report.html").render(
        title=_headline(run),
        about=_about(run, trace.sizes["step"]),
        picture=picture_uri(trace["image"].values),
        aspect="{1} / {0}".format(*trace["image"].shape),
        pixelated=max(trace["image"].shape[:2]) <= EXACT_SIDE,
        strip=_strip(trace, methods),
        methods=[
            _panel(name, method, hue) for (name, method), hue in zip(methods.items(), _hues(methods), strict=True)
        ],
        chart=_chart(trace, methods),
        warnings=warnings(explanation),
        facts=_facts({name: value for name, value in run.items() if name not in TOLD_ELSEWHERE}),
        seconds=_facts({_title(methods, name): value for name, value in (run.get("seconds") or {}).items()}),
        versions=_facts(run.get("versions") or {}),
        command=_command(run.get("command")),
        alpha=ALPHA,
        payload=payload(explanation),
    )


def summary(explanation: Explained) -> str:
    """A few lines of HTML for a notebook: the picture, and each method's maps over the clean prediction."""
    trace, run = explanation.trace, explanation.run
    rows = [
        {"title": method.attrs.get("title", name), "maps": list(_thumbnails(trace, method))}
        for name, method in explanation.methods().items()
    ]
    return _template("summary.html").render(
        title=_headline(run),
        about=_about(run, trace.sizes["step"]),
        picture=picture_uri(trace["image"].values, EXACT_SIDE),
        rows=rows,
    )


def payload(explanation: Explained) -> str:
    """What the page's script reads, as JSON that is safe inside HTML: samples, raw maps, colours, the first step."""
    trace, methods = explanation.trace, explanation.methods()
    content = {
        "start": _start(trace, methods),
        "steps": [_step(trace.sel(step=step)) for step in trace["step"].values],
        "methods": {name: _maps(method) for name, method in methods.items()},
        "colours": {name: _colours(name) for name in (SEQUENTIAL, DIVERGING)},
    }
    return htmlsafe_json_dumps(content, separators=(",", ":"), allow_nan=False)


def _headline(run: Mapping[str, Any]) -> str:
    return str(run.get("prompt") or run.get("model") or "A recorded run")


def _about(run: Mapping[str, Any], number_of_steps: int) -> list[str]:
    """The run in a few words; what it does not say, or left to the pipeline, is left out."""
    words = {
        "model": "{}",
        "seed": "seed {}",
        "guidance_scale": "guidance {:g}",
        "schedule": "{} schedule",
        "created": "{}",
    }
    said = [form.format(run[name]) for name, form in words.items() if run.get(name) is not None]
    return [*said[:1], f"{number_of_steps} steps", *said[1:]]


class Warn(NamedTuple):
    """Something a reader must know before reading a map: what, and what to do about it."""

    title: str
    text: str


def warnings(explanation: Explained) -> list[Warn]:
    """What is missing, flat or not reliable in these results; the page shows it above everything else."""
    found = []
    if explanation.run.get("interrupted"):
        found.append(Warn("This run was stopped before it was finished.", "What was finished is here. " + AGAIN))
    if not explanation.methods():
        found.append(Warn("Nothing was explained.", "The recorded steps are here, without any map. " + AGAIN))
    for name, method in explanation.methods().items():
        found += _doubts(method.attrs.get("title", name), method)
    return found


AGAIN = "Run the command below again for the rest."


def _doubts(title: str, method: xr.Dataset) -> Iterator[Warn]:
    finished = explained_steps(method)
    if missing := sorted(set(method["step"].values.tolist()) - set(finished)):
        yield Warn(f"{title} has no map for {_steps_named(missing)}.", "It was not finished there.")
    maps = {step: method["saliency"].sel(step=step).values for step in finished}
    if holes := [step for step, values in maps.items() if not np.isfinite(values).all()]:
        yield Warn(f"{title} has cells without a value at {_steps_named(holes)}.", "They are left without colour.")
    if flat := [step for step, values in maps.items() if is_flat(values)]:
        text = "Every cell has the same value, so the map says nothing about where. Try another step, target or method."
        yield Warn(f"{title} is flat at {_steps_named(flat)}.", text)
    yield from _unreliable(title, method)


def _unreliable(title: str, method: xr.Dataset) -> Iterator[Warn]:
    if "reliability" not in method or method["reliability"].dims != ("step",):
        return
    low = method["reliability"].where(method["reliability"] < RELIABLE).dropna("step")
    if not low.size:
        return
    values = [f"{step} ({readable(float(low.sel(step=step)), 2)})" for step in low["step"].values]
    text = (
        f"Two halves of the masks give maps whose ranks correlate below {RELIABLE}: read only their coarsest features. "
        f"{_more_masks(method.sel(step=low['step'][int(low.values.argmin())]))}"
    )
    yield Warn(f"{title} is not reliable at {_steps_named(values)}.", text)


def _more_masks(worst: xr.Dataset) -> str:
    """Spearman and Brown's prophecy: k times the masks turn a reliability r into k r / (1 + (k − 1) r)."""
    used = int(worst["masks_used"]) if "masks_used" in worst else worst.attrs.get("num_masks")
    r = float(worst["reliability"])
    if used is None or r < 0.05:
        return "Use many more masks."
    k = RELIABLE * (1 - r) / (r * (1 - RELIABLE))
    return f"Use more masks: there were {used}, and about {math.ceil(k * used / 100) * 100} would do at the worst."


def _steps_named(steps: Sequence[Any], most: int = 8) -> str:
    """
    >>> _steps_named([2]), _steps_named([2, 8, 16])
    ('step 2', 'steps 2, 8 and 16')
    """
    names = [str(step) for step in steps]
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} more"]
    if len(names) == 1:
        return f"step {names[0]}"
    return f"steps {', '.join(names[:-1])} and {names[-1]}"


def picture_uri(picture: np.ndarray, side: int = LARGEST_SIDE) -> str:
    """(row, column, channel) uint8 as a data URI: exact (PNG) up to 128 px; above that at most `side` px, as WebP."""
    image = Image.fromarray(shrunk(picture, side))
    exact = max(image.size) <= EXACT_SIDE
    file = io.BytesIO()
    if exact:
        image.save(file, "PNG", optimize=True)
    else:
        image.save(file, "WEBP", quality=80)
    return f"data:image/{'png' if exact else 'webp'};base64,{base64.b64encode(file.getvalue()).decode()}"


def _strip(trace: xr.Dataset, methods: Mapping[str, xr.Dataset]) -> list[dict[str, Any]]:
    """One thumbnail per step; the page's large clean prediction is the same data URI, so it is carried once."""
    explained = {name: set(explained_steps(method)) for name, method in methods.items()}
    hues = dict(zip(methods, _hues(methods), strict=True))
    return [
        {
            "step": step,
            "picture": picture_uri(clean_pictures(trace).sel(step=step).values),
            "marks": [hues[name] for name in methods if step in explained[name]],
            "titles": [_title(methods, name) for name in methods if step in explained[name]],
        }
        for step in map(int, trace["step"].values)
    ]


def _step(here: xr.Dataset) -> dict[str, Any]:
    """One step's numbers and its sample, which at 256 px still shows the noise of a large picture."""
    return {
        "index": int(here["step"]),
        "timestep": readable(float(here["timestep"]), 4),
        "log_snr": readable(float(here["log_snr"])),
        "sample": picture_uri(here["sample"].values, LARGEST_SIDE // 2),
    }


def _start(trace: xr.Dataset, methods: Mapping[str, xr.Dataset]) -> int:
    """Open on a step that has something to show: the middle one of those that the first method explained."""
    first = next(iter(methods.values()), None)
    steps = explained_steps(first) if first is not None else []
    return steps[len(steps) // 2] if steps else int(trace["step"].values[-1])


def _panel(name: str, method: xr.Dataset, hue: str) -> dict[str, Any]:
    """What the template says about a method; its maps are in the payload."""
    limits = colour_limits(method)
    return {
        "name": name,
        "hue": hue,
        "title": method.attrs.get("title", name),
        "reading": method.attrs.get("reading", ""),
        "layers": [label for label, _ in layers(method)],
        "gradient": _gradient(_colour_map(limits)),
        "has_error": "standard_error" in method,
        "signed": limits.signed,
        "grid": f"{method.sizes['y']} × {method.sizes['x']}",
        "facts": _facts({key: value for key, value in method.attrs.items() if key not in SHOWN_WITH_THE_MAP}),
    }


def _maps(method: xr.Dataset) -> dict[str, Any]:
    """The raw values of a method, row by row, rounded to four significant digits; null where there is none."""
    limits, steps, errors = colour_limits(method), explained_steps(method), "standard_error" in method
    return {
        "shape": [method.sizes["y"], method.sizes["x"]],
        "colours": _colour_map(limits),
        "signed": limits.signed,
        "limits": _rounded([limits.low, limits.high]),
        "errorLimits": _rounded(error_limits(method)[:2]) if errors else None,
        "numbers": {step: _numbers(method.sel(step=step)) for step in steps},
        "layers": [{step: _map(layer.sel(step=step)) for step in steps} for _, layer in layers(method)],
    }


def _map(here: xr.Dataset) -> dict[str, Any]:
    errors = _rounded(here["standard_error"].transpose("y", "x").values) if "standard_error" in here else None
    return {"values": _rounded(here["saliency"].transpose("y", "x").values), "errors": errors}


def _rounded(values: Any) -> list[float | None]:
    """
    >>> _rounded([0.123456, float("nan")])
    [0.1235, None]
    """
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in np.ravel(values).tolist()]


def _numbers(here: xr.Dataset) -> list[tuple[str, str]]:
    """Every number a method has for a step, with the reliability first."""
    names = sorted(
        (str(name) for name in here.data_vars if not here[name].dims), key=lambda name: name != "reliability"
    )
    return [(_label(name), readable(float(here[name]))) for name in names]


def _colour_map(limits: Limits) -> str:
    return DIVERGING if limits.signed else SEQUENTIAL


def _colours(name: str, number: int = 256) -> list[str]:
    return [to_hex(colour) for colour in matplotlib.colormaps[name](np.linspace(0, 1, number))]


def _gradient(name: str) -> str:
    return f"linear-gradient(to right, {', '.join(_colours(name, 17))})"


def _title(methods: Mapping[str, xr.Dataset], name: str) -> str:
    return str(methods[name].attrs.get("title", name)) if name in methods else name


def _hues(methods: Mapping[str, xr.Dataset]) -> list[str]:
    return [HUES[i % len(HUES)] for i in range(len(methods))]


def _chart(trace: xr.Dataset, methods: Mapping[str, xr.Dataset]) -> dict[str, Any]:
    """Lines in per cent of the chart's box, whose columns are the steps: x is the middle of a step's column."""
    position = {int(step): i for i, step in enumerate(trace["step"].values)}
    across = {step: 100 * (i + 0.5) / len(position) for step, i in position.items()}
    return {
        "steps": [(across[step], step) for step in position if step in _ticks(list(position), integer=True)],
        "snr": _line(trace["log_snr"], across, *_span(trace["log_snr"].values)),
        "reliability": [
            {"hue": hue, "title": method.attrs.get("title", name), **_line(method["reliability"], across, 0, 1)}
            for (name, method), hue in zip(methods.items(), _hues(methods), strict=True)
            if "reliability" in method and method["reliability"].dims == ("step",)
        ],
    }


def _line(series: xr.DataArray, across: Mapping[int, float], low: float, high: float) -> dict[str, Any]:
    """A path and its points from (step) values; those outside the range lie on its border, missing ones nowhere."""
    pairs = zip(series["step"].values.tolist(), series.values.tolist(), strict=True)
    points = [(across[step], 100 * (high - min(max(value, low), high)) / (high - low)) for step, value in pairs
              if math.isfinite(value)]  # fmt: skip
    ticks = [(100 * (high - tick) / (high - low), readable(tick)) for tick in _ticks([low, high])]
    return {
        "path": "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points) if points else "",
        "points": points,
        "ticks": ticks,
    }


def _span(values: np.ndarray) -> tuple[float, float]:
    """Round numbers around the finite values, with a little room for a single one."""
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    ticks = MaxNLocator(4).tick_values(low - 1e-6, high + 1e-6)
    return float(ticks[0]), float(ticks[-1])


def _ticks(values: Sequence[float], integer: bool = False) -> list[float]:
    ticks = MaxNLocator(8 if integer else 4, integer=integer).tick_values(min(values), max(values))
    return [float(tick) for tick in ticks if min(values) <= tick <= max(values)]


def _thumbnails(trace: xr.Dataset, method: xr.Dataset, most: int = 8) -> Iterator[tuple[int, str]]:
    """(step, overlay as a data URI) for at most so many steps, spread over all those explained."""
    limits, (_, layer) = colour_limits(method), layers(method)[0]
    steps = explained_steps(layer)
    for i in sorted({round(i) for i in np.linspace(0, len(steps) - 1, min(most, len(steps)))}):
        clean = clean_pictures(trace).sel(step=steps[i]).values
        yield steps[i], picture_uri(overlay(clean, layer["saliency"].sel(step=steps[i]).values, limits), EXACT_SIDE)


def _facts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Labels and texts for a table; lists and nested options on one line."""
    return [(_label(name), _text(value)) for name, value in values.items()]


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{_label(name)} {_text(entry)}" for name, entry in value.items())
    if isinstance(value, (list, tuple, np.ndarray)):
        return ", ".join(_text(entry) for entry in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return readable(value, 4)
    return "none" if value is None else str(value)


def _label(name: str) -> str:
    return str(name).replace("_", " ").replace("num ", "number of ")


def _command(command: Any) -> str:
    """A line for a shell, whether the run kept it as one or as a list of words."""
    return shlex.join(map(str, command)) if isinstance(command, (list, tuple)) else str(command or "")


def _template(name: str) -> jinja2.Template:
    """Everything that comes from a run is escaped: a prompt may contain markup."""
    folder = Path(__file__).parent / "templates"
    loader = jinja2.FileSystemLoader(folder)
    return jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template(name)
