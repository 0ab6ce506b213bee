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

The folder appears whole or not at all: it is written beside its place and then renamed.
"""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from .errors import InputError, OutputError

SEQUENCES = ("trace", "frames")
ALONG = ("likelihood", "timing")
WRITTEN = {"report.html", "image.png", "timeline.gif", "figures", "explanation.zarr", "run.json"}
WRITTEN_TOGETHER = {"report.html", "comparison.png", "run.json"}
DESKTOP = {".DS_Store", "Thumbs.db", "desktop.ini"}  # what file managers leave in any folder they show


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
                f"A tree cannot be an explanation without a group of pictures. It has {_listed(self.tree.children)}; "
                f"one group must be {' or '.join(SEQUENCES)}. Build it with Explanation.of(trace, methods, run)."
            )
        known = set(self.trace["step"].values.tolist())
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
    def trace(self) -> xr.Dataset:
        """The sequence that was explained, over all of its steps."""
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
        with _whole(place) as temporary:
            self._write(temporary)
            check_output(folder, overwrite)  # somebody else may have taken the place while this run was working
        return place

    def _write(self, folder: Path) -> None:
        from PIL import Image

        from . import figures, report

        trace, methods = self.trace, self.methods()
        (folder / "figures").mkdir()
        _storable(self.tree).to_zarr(folder / "explanation.zarr", zarr_format=2)  # xarray opens it without a warning
        (folder / "run.json").write_text(_json(self.run), encoding="utf-8")
        Image.fromarray(figures.rgb(trace["image"].values)).save(folder / "image.png")
        for name, figure in self._figures():
            figure.savefig(folder / "figures" / f"{name}.png")
        moving = [method for i, method in enumerate(methods.values()) if i == 0 or figures.is_layered(method)]
        figures.timeline_gif(folder / "timeline.gif", trace, *moving)
        (folder / "report.html").write_text(report.render(self), encoding="utf-8")

    def _figures(self) -> Iterator[tuple[str, Any]]:
        """File names and pictures, one at a time."""
        from . import concepts, figures, sheets

        trace, methods, likelihood, timing = self.trace, self.methods(), self.likelihood, self.timing
        if likelihood is None or timing is None:
            yield from ((name, figures.plot_method(trace, method)) for name, method in methods.items())
            worded = {name: method for name, method in methods.items() if concepts.has_words(method)}
            yield from ((f"{name}_curves", concepts.plot_curves(method).figure) for name, method in worded.items())
        else:
            yield from sheets.drawn(trace, methods, likelihood, timing, self.run["label"])

    def _repr_html_(self) -> str:
        from . import report

        return report.summary(self)


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
    with _whole(place) as temporary:
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
    from . import comparison, sheets

    curves = {name: e.likelihood for name, e in explanations.items() if e.likelihood is not None}
    times = {name: e.timing for name, e in explanations.items() if e.timing is not None}
    labels = {name: str(e.run["label"]) for name, e in explanations.items()}
    return sheets.plot_comparison(curves, times, labels), comparison.render_comparison(explanations, run)


def _variants(explanations: Mapping[str, Explanation], run: Mapping[str, Any]) -> tuple[Any, str]:
    from . import juxtaposition, strips

    return strips.plot_variants(explanations, run), juxtaposition.render_variants(explanations, run)


def folder_names(names: Sequence[str]) -> list[str]:
    """A folder for each name, numbered where that is taken, as some file systems see it without case.

    >>> folder_names(["cat", "Cat", "report.html"])
    ['cat', 'Cat-2', 'report.html-2']
    """
    made: list[str] = []
    taken = {name.casefold() for name in WRITTEN_TOGETHER}
    for stem in names:
        name, number = stem, 2
        while name.casefold() in taken:
            name, number = f"{stem}-{number}", number + 1
        made.append(name)
        taken.add(name.casefold())
    return made


def check_output(folder: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """The absolute path of a place that can be written to; call it before any work is done.

    Raises `InputError` for a file, a folder with something in it (unless `overwrite` and it holds nothing but an
    earlier run), a mount point, or a place where no folder can be made.
    """
    try:
        place = Path(folder).expanduser().resolve()
        _check_place(place, folder)
        if place.is_dir():
            _check_contents(place, folder, overwrite)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise _refusal(folder, f"its path cannot be used ({error})") from error
    return place


def _check_place(place: Path, given: object) -> None:
    if place.exists() and not place.is_dir():
        raise _refusal(given, "it is a file")
    if os.path.ismount(place):
        raise _refusal(
            given, "a drive or mount point cannot be replaced in one go", f'a folder inside it ("{given}/run")'
        )
    parent = next(parent for parent in place.parents if parent.exists())
    if not parent.is_dir():
        raise _refusal(given, f'"{parent}" is a file, so no folder can be made in it')
    if not os.access(parent, os.W_OK | os.X_OK):
        raise _refusal(given, f'you may not write in "{parent}"')


def _check_contents(place: Path, given: object, overwrite: bool) -> None:
    """An old run may be replaced when asked; anything that this program did not write may not."""
    found = {entry.name for entry in place.iterdir()} - DESKTOP
    if not found:
        return
    if "run.json" not in found:
        raise _refusal(given, f"it is not empty and not the output of a run (it holds {_listed(found)}, no run.json)")
    if not overwrite:
        raise _refusal(given, "an earlier run is there", "another folder, or allow replacing it (overwrite)")
    if foreign := found - WRITTEN - WRITTEN_TOGETHER - _folders(place / "run.json"):
        raise _refusal(
            given, f"it also holds what no run wrote ({_listed(foreign)})", "another folder, or move that away"
        )


def _folders(record: Path) -> set[str]:
    """The folders that a run of several photographs or variants says it wrote."""
    try:
        return set(json.loads(record.read_text(encoding="utf-8")).get("folders", []))
    except (ValueError, AttributeError, TypeError):  # not a record of ours
        return set()


def _refusal(given: object, reason: str, remedy: str = "another folder") -> InputError:
    return InputError(
        f'The results cannot be written to "{given}": {reason}. '
        f"Allowed is a folder that does not exist yet or is empty. Give {remedy}."
    )


@contextmanager
def _whole(place: Path) -> Iterator[Path]:
    """A folder beside `place` that takes its name at the end, or is gone when something, or someone, stops it."""
    temporary = place.with_name(f".{place.name}-{secrets.token_hex(4)}.partial")
    new_parents = [parent for parent in place.parents if not parent.exists()]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        _take_place(temporary, place)
    except OSError as error:
        raise OutputError(
            f'The results could not be written to "{place}": {error.strerror or error}. '
            f"{_free_space(place.parent)}Nothing was left half-written. Free some space or give another folder."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):  # those with something in them, the results at best, stay
            for parent in new_parents:
                parent.rmdir()


def _take_place(temporary: Path, place: Path) -> None:
    """Rename; what was there is moved aside first, comes back if that fails, and is removed when it is not needed."""
    if not place.exists():
        os.rename(temporary, place)
        return
    aside = temporary.with_suffix(".old")
    os.rename(place, aside)
    try:
        os.rename(temporary, place)
    except BaseException:
        os.rename(aside, place)
        raise
    try:
        shutil.rmtree(aside)
    except KeyboardInterrupt:  # the new results are in place; only the old ones are still to go
        shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise OutputError(
            f'The results are in "{place}", but the earlier ones could not be removed: {error}. '
            f'Delete "{aside}" yourself.'
        ) from error


def _free_space(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 2**20:.0f} MB are free there. "
    except OSError:
        return ""


def _validate(name: str, method: xr.Dataset, known: set[int]) -> None:
    dims = method["saliency"].dims if "saliency" in method else ()
    if not {"step", "y", "x"} <= set(dims):
        raise InputError(
            f'The result of "{name}" cannot be part of an explanation: its variables are {_listed(method.data_vars)}, '
            "and one must be saliency with the dimensions step, y, x. Pass the dataset that the method returned."
        )
    if unknown := sorted(set(method["step"].values.tolist()) - known):
        raise InputError(
            f'The result of "{name}" explains steps that the run does not have: {_listed(unknown)}. '
            f"The run has {len(known)} steps, {min(known)} to {max(known)}. Pass the trace that was explained."
        )


def _listed(names: Any, most: int = 5) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "") or "nothing"


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
