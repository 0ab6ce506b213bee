"""The labelled result of a run: a tree of arrays, and the folder it leaves behind.

    OUT/report.html         self-contained: one step control moves every panel
        image.png           the generated picture, or the photograph
        timeline.gif        the clean prediction over time, with the first method's map, and a map for each word
        figures/*.png       one per method
        explanation.zarr/   this tree: `xarray.open_datatree("OUT/explanation.zarr")`
        run.json            what was asked for and with which versions

Several photographs, or several variants of a run, have such a folder each, inside one that compares them:

    OUT/report.html         photographs: their likelihoods side by side; variants: their steps; and the way to each
        comparison.png      the same as a still picture
        cat/, tiger/, ...   one for each photograph or variant, as above
        run.json            what was asked for, and when each label was recognised, or how the variants differ

The folder appears whole or not at all: it is written beside its place and then renamed."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..errors import InputError
from .folders import check_output, listed, whole_folder

SEQUENCES = ("trace", "frames")
ALONG = ("likelihood", "timing")


@dataclass(frozen=True, eq=False)
class Explanation:
    """A `trace` (or `frames`) group, a group per method, and the run that made them in `tree.attrs["run"]`.

    Where a classifier looked on, there are the groups `likelihood` and `timing` too. A method may have only some of
    the steps, or NaN where it was interrupted; there may be no method at all. Raises `InputError` when the tree lacks a
    sequence, or a method its saliency or a step the sequence does not have.
    """

    tree: xr.DataTree

    def __post_init__(self) -> None:
        if not any(name in self.tree.children for name in SEQUENCES):
            raise InputError(
                f"A tree cannot be an explanation without a group of pictures. It has {listed(self.tree.children)}; "
                f"one group must be {' or '.join(SEQUENCES)}. Build it with Explanation.of(trace, methods, run)."
            )
        known = set(self.pictures["step"].values.tolist())
        for name, method in self.methods().items():
            _validate(name, method, known)

    @classmethod
    def of(
        cls,
        sequence: xr.Dataset,
        methods: Mapping[str, xr.Dataset],
        run: Mapping[str, Any],
        likelihood: xr.DataArray | None = None,
        timing: xr.Dataset | None = None,
    ) -> "Explanation":
        """From the pictures of a run, the result of each method by its id, and the JSON-able record of the run.

        `likelihood` (step, draw, label) is what `timing.likelihood` gives, `timing` what `timing.over_draws` gives.
        """
        name = "trace" if "pred_original_sample" in sequence else "frames"
        along = {} if likelihood is None else {"likelihood": likelihood.to_dataset(name="likelihood")}
        along |= {} if timing is None else {"timing": timing}
        root = xr.Dataset(attrs={"run": dict(run)})
        return cls(xr.DataTree.from_dict({"/": root, name: sequence, **along, **methods}))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Explanation":
        """Read what `save` wrote. Raises `InputError` where there is no explanation."""
        store = Path(folder).expanduser() / "explanation.zarr"
        if not store.is_dir():
            raise InputError(
                f'No explanation could be read from "{folder}": there is no folder explanation.zarr in it. '
                "Give the output folder of a run."
            )
        with xr.open_datatree(store, engine="zarr", chunks=None) as tree:
            return cls(tree.load())

    @property
    def run(self) -> dict[str, Any]:
        """What is in run.json."""
        return self.tree.attrs.get("run", {})

    @property
    def pictures(self) -> xr.Dataset:
        """The pictures of the sequence that was explained, over all of its steps."""
        name = next(name for name in SEQUENCES if name in self.tree.children)
        return self.tree[name].to_dataset()

    @property
    def likelihood(self) -> xr.DataArray | None:
        """Softmax of each label at each step and draw, (step, draw, label), where a classifier looked on."""
        group = self.tree.children.get("likelihood")
        return None if group is None else group.to_dataset()["likelihood"]

    @property
    def timing(self) -> xr.Dataset | None:
        """When each label was recognised: quantiles over draws of `crossing`, `steepest`, `window` and `final`."""
        group = self.tree.children.get("timing")
        return None if group is None else group.to_dataset()

    def methods(self) -> dict[str, xr.Dataset]:
        """The result of each method by its id, in the order in which they were run."""
        others = {*SEQUENCES, *ALONG}
        groups = {name: group.to_dataset() for name, group in self.tree.children.items() if name not in others}
        order = [*self.run.get("methods", {}), *groups]
        return {name: groups[name] for name in sorted(groups, key=order.index)}

    def save(self, folder: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Write the whole output folder and return its absolute path.

        Raises `InputError` as `check_output` does, `OutputError` when writing fails; then nothing is left behind.
        """
        place = check_output(folder, overwrite)
        with whole_folder(place) as temporary:
            self._write(temporary)
            check_output(folder, overwrite)  # somebody else may have taken the place while this run was working
        return place

    def _write(self, folder: Path) -> None:
        from PIL import Image

        from ..figures.overlays import rgb
        from ..figures.results import is_layered
        from ..figures.timeline import timeline_gif
        from ..report.run import render

        pictures, methods = self.pictures, self.methods()
        (folder / "figures").mkdir()
        _storable(self.tree).to_zarr(folder / "explanation.zarr", zarr_format=2)  # xarray opens it without a warning
        (folder / "run.json").write_text(_json(self.run), encoding="utf-8")
        Image.fromarray(rgb(pictures["image"].values)).save(folder / "image.png")
        for name, figure in self._figures():
            figure.savefig(folder / "figures" / f"{name}.png")
        moving = [method for i, method in enumerate(methods.values()) if i == 0 or is_layered(method)]
        timeline_gif(folder / "timeline.gif", pictures, *moving)
        (folder / "report.html").write_text(render(self), encoding="utf-8")

    def _figures(self) -> Iterator[tuple[str, Any]]:
        """File names and pictures, one at a time."""
        from ..figures.methods import plot_method
        from ..figures.recognition import drawn
        from ..figures.words import has_words, plot_curves

        pictures, methods, likelihood, timing = self.pictures, self.methods(), self.likelihood, self.timing
        if likelihood is None or timing is None:
            yield from ((name, plot_method(pictures, method)) for name, method in methods.items())
            worded = {name: method for name, method in methods.items() if has_words(method)}
            yield from ((f"{name}_curves", plot_curves(method).figure) for name, method in worded.items())
        else:
            yield from drawn(pictures, methods, likelihood, timing, self.run["label"])

    def _repr_html_(self) -> str:

        from ..report.run import summary

        return summary(self)


def save_together(
    explanations: Mapping[str, Explanation],
    run: Mapping[str, Any],
    folder: str | os.PathLike[str],
    overwrite: bool = False,
) -> Path:
    """Write several recognition runs by their names, each into a folder of its own, and what compares them above.

    Returns the absolute path. Raises what `Explanation.save` raises, and leaves nothing half-written either.
    """
    return _save_together(explanations, run, folder, overwrite, _photographs)


def save_variants(
    explanations: Mapping[str, Explanation],
    run: Mapping[str, Any],
    folder: str | os.PathLike[str],
    overwrite: bool = False,
) -> Path:
    """Write the variants of a run as `save_together` writes photographs; `run` is what `variants.record` says."""
    return _save_together(explanations, run, folder, overwrite, _variants)


Compared = Callable[[Mapping[str, Explanation], Mapping[str, Any]], tuple[Any, str]]
"""The still picture and the page of several explanations."""


def _save_together(
    explanations: Mapping[str, Explanation],
    run: Mapping[str, Any],
    folder: str | os.PathLike[str],
    overwrite: bool,
    compared: Compared,
) -> Path:
    place = check_output(folder, overwrite)
    with whole_folder(place) as temporary:
        for name, explanation in explanations.items():
            (temporary / name).mkdir()
            explanation._write(temporary / name)
        whole = {**run, "folders": list(explanations)}
        figure, page = compared(explanations, whole)
        figure.savefig(temporary / "comparison.png")
        (temporary / "report.html").write_text(page, encoding="utf-8")
        (temporary / "run.json").write_text(_json(whole), encoding="utf-8")
        check_output(folder, overwrite)
    return place


def _photographs(explanations: Mapping[str, Explanation], run: Mapping[str, Any]) -> tuple[Any, str]:
    from ..figures.recognition import plot_comparison
    from ..report.photographs import render_comparison

    curves = {name: e.likelihood for name, e in explanations.items() if e.likelihood is not None}
    times = {name: e.timing for name, e in explanations.items() if e.timing is not None}
    labels = {name: str(e.run["label"]) for name, e in explanations.items()}
    return plot_comparison(curves, times, labels), render_comparison(explanations, run)


def _variants(explanations: Mapping[str, Explanation], run: Mapping[str, Any]) -> tuple[Any, str]:
    from ..figures.variants import plot_variants
    from ..report.variants import render_variants

    return plot_variants(explanations, run), render_variants(explanations, run)


def _validate(name: str, method: xr.Dataset, known: set[int]) -> None:
    dims = method["saliency"].dims if "saliency" in method else ()
    if not {"step", "y", "x"} <= set(dims):
        raise InputError(
            f'The result of "{name}" cannot be part of an explanation: its variables are {listed(method.data_vars)}, '
            "and one must be saliency with the dimensions step, y, x. Pass the dataset that the method returned."
        )
    if unknown := sorted(set(method["step"].values.tolist()) - known):
        raise InputError(
            f'The result of "{name}" explains steps that the run does not have: {listed(unknown)}. '
            f"The run has {len(known)} steps, {min(known)} to {max(known)}. Pass the trace that was explained."
        )


def _storable(tree: xr.DataTree) -> xr.DataTree:
    """The same tree with attributes that JSON can hold: a long run must not be lost over a NumPy number."""
    return xr.DataTree.from_dict(
        {group.path: group.to_dataset().assign_attrs(_plain(group.attrs)) for group in tree.subtree}
    )


def _json(run: Mapping[str, Any]) -> str:
    return json.dumps(_plain(run), indent=2, ensure_ascii=False)


def _plain(value: Any) -> Any:
    """JSON's own types for an option: NumPy numbers become Python's, tuples lists, NaN null, the rest its text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, np.ndarray)):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
