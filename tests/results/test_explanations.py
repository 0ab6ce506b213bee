"""The labelled result: what is saved is what is loaded, and a folder appears whole or not at all."""

import errno
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from clips import clip_method, clip_trace, clip_words
from pictures import disc_method, disc_trace
from PIL import Image

from denoscope.errors import InputError, OutputError
from denoscope.report import run
from denoscope.results import explanations, folders
from denoscope.results.explanations import Explanation
from denoscope.results.folders import check_output

RUN = {
    "command": "denoscope explain 'a red disc'",
    "model": "shapes",
    "prompt": "a red disc",
    "seed": 0,
    "methods": {"second": {"num_masks": 500}, "first": {"num_masks": 500}},
    "interrupted": False,
}


@pytest.fixture(scope="module")
def explanation() -> Explanation:
    return Explanation.of(disc_trace(), {"second": disc_method(), "first": disc_method(steps=(2,))}, RUN)


@pytest.fixture(scope="module")
def written(explanation: Explanation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return explanation.save(tmp_path_factory.mktemp("written") / "out")


@pytest.fixture
def saved(written: Path, tmp_path: Path) -> Path:
    """A copy of what was written, for each test to do with as it likes."""
    return Path(shutil.copytree(written, tmp_path / "out"))


def test_what_is_saved_is_what_is_loaded(explanation: Explanation, saved: Path):
    assert Explanation.load(saved).tree.identical(explanation.tree)
    assert Explanation.load(saved).run == RUN


def test_loaded_results_can_be_saved_again(explanation: Explanation, saved: Path, tmp_path: Path):
    again = Explanation.load(saved).save(tmp_path / "again")
    assert Explanation.load(again).tree.identical(explanation.tree)


def test_xarray_alone_reads_the_arrays(explanation: Explanation, saved: Path):
    with xr.open_datatree(saved / "explanation.zarr") as tree:
        np.testing.assert_array_equal(tree["second/saliency"], explanation.methods()["second"]["saliency"])


def test_the_folder_holds_what_is_promised(explanation: Explanation, saved: Path):
    assert {path.name for path in saved.iterdir()} == folders.WRITTEN
    assert {path.name for path in (saved / "figures").iterdir()} == {"first.png", "second.png"}
    assert json.loads((saved / "run.json").read_text(encoding="utf-8")) == RUN
    assert (saved / "report.html").read_text(encoding="utf-8") == run.render_run(explanation)
    with Image.open(saved / "image.png") as image:
        np.testing.assert_array_equal(image, explanation.pictures["image"])


def test_nothing_else_is_left_beside_it(written: Path):
    assert list(written.parent.iterdir()) == [written]


def test_methods_come_in_the_order_of_the_run(saved: Path):
    assert list(Explanation.load(saved).methods()) == ["second", "first"]


def test_options_become_what_json_can_hold(tmp_path: Path):
    method = disc_method(seed=np.int64(3), share=np.float32(0.5), at=(1, 2), until=float("nan"), path=Path("a"))
    explanation = Explanation.of(disc_trace(), {"bump": method}, {**RUN, "size": np.array([64, 64])})
    loaded = Explanation.load(explanation.save(tmp_path / "out"))
    options = {"seed": 3, "share": 0.5, "at": [1, 2], "until": None, "path": "a"}
    assert loaded.methods()["bump"].attrs.items() >= options.items()
    assert loaded.run["size"] == [64, 64]


@pytest.mark.parametrize("methods", [{}, {"bump": disc_method().where(disc_method().step < 4)}])
def test_partial_results_are_kept(methods: dict[str, xr.Dataset], tmp_path: Path):
    explanation = Explanation.of(disc_trace(), methods, {**RUN, "interrupted": True})
    loaded = Explanation.load(explanation.save(tmp_path / "out"))
    assert loaded.tree.identical(explanation.tree) and loaded.run["interrupted"] is True


def test_pictures_and_grids_need_not_be_square(tmp_path: Path):
    explanation = Explanation.of(disc_trace(24, 40), {"bump": disc_method(height=3, width=5)}, RUN)
    assert Explanation.load(explanation.save(tmp_path / "out")).tree.identical(explanation.tree)


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), PermissionError(13, "denied")])
@pytest.mark.parametrize("where", ["methods.plot_method", "timeline.timeline_gif"])
def test_a_failure_in_the_middle_leaves_nothing(
    explanation: Explanation, where: str, fault: OSError, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def fails(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr(f"denoscope.figures.{where}", fails)
    with pytest.raises(OutputError, match=str(fault.strerror)) as caught:
        explanation.save(tmp_path / "new" / "out")
    assert list(tmp_path.iterdir()) == [] and "\n" not in str(caught.value)


def test_an_interruption_in_the_middle_leaves_nothing(
    explanation: Explanation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def interrupted(_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "render_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        explanation.save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_keeps_the_earlier_run(
    explanation: Explanation, saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    rename = os.rename

    def fails_at_the_new_one(source: Path, goal: Path) -> None:
        if Path(source).suffix == ".partial":
            raise OSError(errno.EIO, "broken")
        rename(source, goal)

    monkeypatch.setattr(explanations.os, "rename", fails_at_the_new_one)
    with pytest.raises(OutputError, match="broken"):
        Explanation.of(disc_trace(), {}, {}).save(saved, overwrite=True)
    assert list(tmp_path.iterdir()) == [saved]
    assert Explanation.load(saved).tree.identical(explanation.tree)


def test_an_earlier_run_is_replaced_when_asked(saved: Path, tmp_path: Path):
    other = Explanation.of(disc_trace(), {}, {"prompt": "another"})
    other.save(saved, overwrite=True)
    assert Explanation.load(saved).tree.identical(other.tree)
    assert list(tmp_path.iterdir()) == [saved] and list((saved / "figures").iterdir()) == []


def test_an_earlier_run_is_not_replaced_unasked(explanation: Explanation, saved: Path):
    with pytest.raises(InputError, match="an earlier run is there"):
        explanation.save(saved)


def test_a_place_taken_in_the_meantime_is_left_alone(
    explanation: Explanation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    render, theirs = run.render_run, tmp_path / "out" / "theirs.txt"

    def slow(given: Explanation) -> str:
        theirs.parent.mkdir()
        theirs.write_text("precious")
        return render(given)

    monkeypatch.setattr(run, "render_run", slow)
    with pytest.raises(InputError, match="not empty"):
        explanation.save(tmp_path / "out")
    assert theirs.read_text() == "precious" and list(tmp_path.iterdir()) == [theirs.parent]


def test_an_empty_folder_and_missing_parents_are_fine(tmp_path: Path):
    explanation = Explanation.of(disc_trace(), {}, {})
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "a" / "b" / "out"):
        assert explanation.save(place) == place
        assert (place / "run.json").is_file()


def test_checking_creates_nothing(tmp_path: Path):
    assert check_output(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_somebody_else_is_refused(overwrite: bool, tmp_path: Path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"thesis\.tex.*no run\.json.*another folder"):
        check_output(tmp_path, overwrite)


def test_somebody_elses_file_in_an_earlier_run_is_refused(saved: Path):
    (saved / "notes.txt").touch()
    with pytest.raises(InputError, match=r"no run wrote \(notes\.txt\)"):
        check_output(saved, overwrite=True)


def test_what_a_file_manager_leaves_does_not_matter(saved: Path):
    (saved / ".DS_Store").touch()
    assert check_output(saved, overwrite=True) == saved


@pytest.mark.parametrize("place, reason", [("file", "it is a file"), ("file/out", "is a file, so no folder")])
def test_a_file_is_not_a_place(place: str, reason: str, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=reason):
        check_output(tmp_path / place, overwrite=True)


def test_a_parent_without_permission_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(explanations.os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(InputError, match="you may not write in"):
        check_output(tmp_path / "a" / "b")


def test_a_mount_point_is_refused():
    with pytest.raises(InputError, match="mount point"):
        check_output("/", overwrite=True)


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000])
def test_an_impossible_path_is_refused(path: str, tmp_path: Path):
    with pytest.raises(InputError, match="cannot be used"):
        check_output(tmp_path / path)


def test_loading_says_what_is_missing(tmp_path: Path):
    with pytest.raises(InputError, match=r"no folder explanation\.zarr"):
        Explanation.load(tmp_path)


@pytest.mark.parametrize(
    "methods, reason",
    [
        ({"bump": disc_method(steps=(3, 77))}, "steps that the run does not have: 77"),
        ({"bump": disc_method()[["reliability"]]}, "must be saliency with the dimensions step, y, x"),
    ],
)
def test_a_result_that_does_not_fit_is_refused(methods: dict[str, xr.Dataset], reason: str):
    with pytest.raises(InputError, match=reason):
        Explanation.of(disc_trace(), methods, RUN)


def test_a_tree_without_pictures_is_refused():
    with pytest.raises(InputError, match="must be trace or frames"):
        Explanation(xr.DataTree.from_dict({"bump": disc_method()}))


def test_a_notebook_shows_the_picture_and_each_finished_step(explanation: Explanation):
    page = explanation._repr_html_()
    assert page.count("data:image/png;base64,") == 1 + 3 + 1
    assert "a red disc" in page and page.count("A bump") >= 2


# Clips


def test_a_clip_is_saved_with_all_its_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    clip = Explanation.of(clip_trace(), {"square": clip_method(), "words": clip_words()}, RUN)
    folder = clip.save(tmp_path / "out")
    assert Explanation.load(folder).tree.identical(clip.tree)
    with xr.open_datatree(folder / "explanation.zarr") as tree:
        assert tree["trace/sample"].dims == ("step", "frame", "row", "column", "channel")
        assert tree["square/saliency"].dims == ("step", "frame", "y", "x") and tree["square"].sizes["frame"] == 3
        assert tree["words/saliency"].dims == ("step", "token", "frame", "y", "x") and tree["trace"].sizes["frame"] == 9
    assert {path.name for path in folder.iterdir()} == folders.WRITTEN | {"clip.gif"}
    with Image.open(folder / "image.png") as image:
        np.testing.assert_array_equal(image, clip.pictures["image"][4])
    with Image.open(folder / "clip.gif") as gif:
        assert gif.n_frames == 9
    assert check_output(folder, overwrite=True) == folder
    assert clip.rows().rows[0] == ("A square", "reliability at step 1 (t 666) 0.90, step 3 (t 0) 0.95")


def test_a_video_is_written_where_its_encoder_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("denoscope.figures.clip_files.clip_mp4", lambda _: b"video")
    folder = Explanation.of(clip_trace(), {}, RUN).save(tmp_path / "out")
    assert (folder / "clip.mp4").read_bytes() == b"video"
    assert check_output(folder, overwrite=True) == folder
