"""The labelled result of a run: a tree of arrays, and the folder it leaves behind.

    OUT/report.html         self-contained: one step control moves every panel
        image.png           the generated picture, the middle frame of a clip, or the photograph
        timeline.gif        the clean prediction over time, with the first method's map, and a map for each word
        clip.gif, clip.mp4  of a clip: all its frames; the second where `imageio-ffmpeg` is installed
        figures/*.png       one per method
        explanation.zarr/   this tree: `xarray.open_datatree("OUT/explanation.zarr")`
        run.json            settings and versions: enough to run it again

The folder appears whole or not at all: it is written beside its place and then renamed."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from ..errors import InputError
from ..files.whole import listed, whole_folder, write_whole
from .folders import check_output
from .records import json_of_record, plain
from .tables import Table

SEQUENCES = ("trace", "frames")
ALONG = ("likelihood", "timing")


@dataclass(frozen=True, eq=False)
class Explanation:
    """A `trace` (or `frames`) group, a group per method, and the record of the run in `tree.attrs["run"]`.

    With a classifier there are the groups `likelihood` and `timing` too. A method may have only some of the steps, or
    NaN where it was interrupted. There may be no method at all. Raises `InputError` if the tree has no sequence, a
    method has no saliency, or a method explains a step that the sequence does not have.

    Pictures of a clip have the dim `frame` before `row`, its maps have `frame` before `y`. The frames of pictures are
    those of the clip, the frames of maps those of the sample; `figures.clips.map_frame` says which belong together.
    """

    tree: xr.DataTree

    def __post_init__(self) -> None:
        if not any(name in self.tree.children for name in SEQUENCES):
            raise InputError(
                f"A tree cannot be an explanation without a group of pictures. It has {listed(self.tree.children)}; "
                f"one group must be {' or '.join(SEQUENCES)}. Build it with Explanation.of(trace, methods, run)."
            )
        steps = set(self.pictures["step"].values.tolist())
        for name, result in self.methods().items():
            _validate(name, result, steps)

    @classmethod
    def of(
        cls,
        sequence: xr.Dataset,
        methods: Mapping[str, xr.Dataset],
        run: Mapping[str, Any],
        likelihood: xr.DataArray | None = None,
        timing: xr.Dataset | None = None,
    ) -> "Explanation":
        """Build an explanation from the pictures of a run, the result of each method by its id, and the run's record.

        `likelihood` (step, draw, label) is that of `timing.likelihood`, and `timing` the result of
        `timing.over_draws`.
        """
        name = "trace" if "pred_original_sample" in sequence else "frames"
        along = {} if likelihood is None else {"likelihood": likelihood.to_dataset(name="likelihood")}
        along |= {} if timing is None else {"timing": timing}
        root = xr.Dataset(attrs={"run": dict(run)})
        return cls(xr.DataTree.from_dict({"/": root, name: sequence, **along, **methods}))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Explanation":
        """Read a saved explanation. Raises `InputError` if the folder has none."""
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
        """The content of run.json."""
        run: dict[str, Any] = self.tree.attrs.get("run", {})
        return run

    @property
    def interrupted(self) -> bool:
        """True if the run was stopped before it was finished."""
        return bool(self.run.get("interrupted"))

    @property
    def interruption(self) -> str | None:
        """The reason why the run stopped early; None if it did not."""
        return self.run.get("interruption")

    @property
    def failures(self) -> Mapping[str, str]:
        """Always empty: a run that fails before anything is finished raises."""
        return {}

    @property
    def pictures(self) -> xr.Dataset:
        """The pictures of the sequence that was explained, over all of its steps."""
        name = next(name for name in SEQUENCES if name in self.tree.children)
        return self.tree[name].to_dataset()

    @property
    def likelihood(self) -> xr.DataArray | None:
        """The softmax of each label, (step, draw, label), in [0, 1]; None without a classifier."""
        group = self.tree.children.get("likelihood")
        return None if group is None else group.to_dataset()["likelihood"]

    @property
    def timing(self) -> xr.Dataset | None:
        """Quantiles over draws of `crossing`, `steepest`, `window` and `final` by label; None without a classifier."""
        group = self.tree.children.get("timing")
        return None if group is None else group.to_dataset()

    def methods(self) -> dict[str, xr.Dataset]:
        """Return the result of each method by its id, in the order in which they were run."""
        others = {*SEQUENCES, *ALONG}
        groups = {name: group.to_dataset() for name, group in self.tree.children.items() if name not in others}
        order = [*self.run.get("methods", {}), *groups]
        return {name: groups[name] for name in sorted(groups, key=order.index)}

    def rows(self) -> Table:
        """Return a row for each method: its title, and its steps with the reliability of their maps."""
        rows = [(str(result.attrs.get("title", name)), _steps_of(result)) for name, result in self.methods().items()]
        return Table(rows=tuple(rows), notes=tuple(_notes_on_words(self.run)))

    def save(self, folder: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Write the whole output folder and return its absolute path.

        Raises `InputError` as `check_output` does, `OutputError` when writing fails; then nothing is left behind.
        """
        place = check_output(folder, overwrite)
        with whole_folder(place) as temporary:
            self.write(temporary)
            check_output(folder, overwrite)  # another program may have taken the place in the meantime
        return place

    def write(self, folder: Path) -> None:
        """Write the files of an output folder into a folder that exists and is empty."""
        from PIL import Image

        from ..figures.clips import still
        from ..figures.overlays import rgb
        from ..figures.timeline import timeline_gif
        from ..report.run import render_run

        (folder / "figures").mkdir()
        _storable(self.tree).to_zarr(folder / "explanation.zarr", zarr_format=2)  # xarray opens it without a warning
        (folder / "run.json").write_text(json_of_record(self.run), encoding="utf-8")
        Image.fromarray(rgb(still(self.pictures)["image"].values)).save(folder / "image.png")
        for name, figure in self._figures():
            figure.savefig(folder / "figures" / f"{name}.png")
        timeline_gif(folder / "timeline.gif", self.pictures, *self._moving())
        for name, content in self._clips():
            write_whole(folder / name, content)
        (folder / "report.html").write_text(render_run(self), encoding="utf-8")

    def _clips(self) -> Iterator[tuple[str, bytes]]:
        """Yield file names and contents of the finished clip; nothing for a picture."""
        from ..figures.clip_files import clip_gif, clip_mp4
        from ..figures.clips import is_clip

        if not is_clip(self.pictures):
            return
        yield "clip.gif", clip_gif(self.pictures)
        if (video := clip_mp4(self.pictures)) is not None:
            yield "clip.mp4", video

    def _moving(self) -> list[xr.Dataset]:
        """Return the results that the moving picture has: the first, and those with a map for each word or layer."""
        from ..figures.results import is_layered

        results = list(self.methods().values())
        return results[:1] + [result for result in results[1:] if is_layered(result)]

    def _figures(self) -> Iterator[tuple[str, Any]]:
        """Yield file names and figures, one at a time."""
        from ..figures.methods import plot_method
        from ..figures.recognition import drawn
        from ..figures.words import has_words, plot_curves

        pictures, results, likelihood, timing = self.pictures, self.methods(), self.likelihood, self.timing
        if likelihood is not None and timing is not None:
            yield from drawn(pictures, results, likelihood, timing, self.run["label"])
            return
        for name, result in results.items():
            yield name, plot_method(pictures, result)
        for name, result in results.items():
            if has_words(result):
                yield f"{name}_curves", plot_curves(result).figure

    def _repr_html_(self) -> str:
        from ..report.run import notebook_summary

        return notebook_summary(self)


def _steps_of(result: xr.Dataset) -> str:
    """Return the steps of a result in words, with the reliability of each map or the presence of each concept."""
    steps = [f"step {int(step)} (t {float(time):g})" for step, time in zip(result.step, result.timestep, strict=True)]
    if "presence" in result:
        return "presence at " + "; ".join(map(_presence_of, steps, result.presence.transpose("step", "token")))
    if "reliability" not in result:
        return ", ".join(steps)
    values = [f"{float(value):.2f}" if value == value else "n/a (too few masks)" for value in result.reliability]
    return "reliability at " + ", ".join(f"{step} {value}" for step, value in zip(steps, values, strict=True))


def _notes_on_words(run: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note for the words of a prompt that the model cannot read."""
    words = [f'"{word}"' for word in run.get("unknown_words") or ()]
    if not words:
        return
    vocabulary = run.get("vocabulary")
    others = f" It reads: {', '.join(vocabulary)}." if vocabulary else ""
    yield f"The model cannot read {', '.join(words)}: what is explained of such a word means nothing.{others}"


def _validate(name: str, result: xr.Dataset, run_steps: set[int]) -> None:
    dims = result["saliency"].dims if "saliency" in result else ()
    if not {"step", "y", "x"} <= set(dims):
        raise InputError(
            f'The result of "{name}" cannot be part of an explanation: its variables are {listed(result.data_vars)}, '
            "and one must be saliency with the dimensions step, y, x. Pass the dataset that the method returned."
        )
    if unknown := sorted(set(result["step"].values.tolist()) - run_steps):
        raise InputError(
            f'The result of "{name}" explains steps that the run does not have: {listed(unknown)}. '
            f"The run has {len(run_steps)} steps, {min(run_steps)} to {max(run_steps)}. Pass the trace of that run."
        )


def _storable(tree: xr.DataTree) -> xr.DataTree:
    """Return the tree with attributes that JSON can hold: a long run must not be lost over a NumPy number."""
    return xr.DataTree.from_dict(
        {group.path: group.to_dataset().assign_attrs(plain(group.attrs)) for group in tree.subtree}
    )


def _presence_of(step: str, presence: xr.DataArray) -> str:
    """Return the presence of each concept at a step in words."""
    values = [f"{token} {float(value):.2f}" for token, value in zip(presence.token.values, presence, strict=True)]
    return f"{step}: {', '.join(values)}"
