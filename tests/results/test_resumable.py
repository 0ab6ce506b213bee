"""A resumable folder keeps finished trials, whole or not at all, and refuses to mix settings."""

import numpy as np
import pytest
from small import refusal

from denoscope.errors import InputError, OutputError
from denoscope.files.whole import write_whole
from denoscope.results.resumable import ResumableFolder


def test_a_trial_is_read_as_it_was_written(tmp_path):
    work = ResumableFolder.opened(tmp_path / "work", {"steps": 4})
    assert work.read("first") is None
    work.write("first", {"scores": [0.1, 0.2]}, {"map": np.eye(2, dtype=np.float32)})
    again = ResumableFolder.opened(tmp_path / "work", {"steps": 4})
    assert again.read("first") == {"scores": [0.1, 0.2]}
    np.testing.assert_array_equal(again.arrays("first")["map"], np.eye(2))


def test_a_trial_without_its_last_file_is_not_finished(tmp_path):
    work = ResumableFolder.opened(tmp_path / "work", {})
    work.write("first", {}, {"map": np.zeros(2)})
    (work.folder / "trials" / "first.json").unlink()
    assert work.read("first") is None


def test_a_file_that_was_cut_off_is_not_finished(tmp_path):
    work = ResumableFolder.opened(tmp_path / "work", {})
    (work.folder / "trials" / "first.json").write_text('{"scores": [0.1')
    assert work.read("first") is None


def test_other_settings_are_refused_by_name(tmp_path):
    ResumableFolder.opened(tmp_path / "work", {"steps": 4, "methods": ("words",)}).write("first", {}, {})
    message = refusal(ResumableFolder.opened, tmp_path / "work", {"steps": 8, "methods": ("words",)})
    assert "steps was 4 and is now 8" in message and "methods" not in message and "overwrite=True" in message


def test_tuples_equal_the_lists_in_json(tmp_path):
    ResumableFolder.opened(tmp_path / "work", {"at": (1, 2)})
    ResumableFolder.opened(tmp_path / "work", {"at": (1, 2)})


def test_overwriting_starts_again(tmp_path):
    ResumableFolder.opened(tmp_path / "work", {"steps": 4}).write("first", {}, {})
    again = ResumableFolder.opened(tmp_path / "work", {"steps": 8}, overwrite=True)
    assert again.read("first") is None and again.settings == {"steps": 8}


def test_settings_without_a_finished_trial_may_change(tmp_path):
    ResumableFolder.opened(tmp_path / "work", {"a": 1})
    assert ResumableFolder.opened(tmp_path / "work", {"a": 2}).settings == {"a": 2}
    ResumableFolder(tmp_path / "work").write("one", {}, {})
    assert "a was 2 and is now 3" in refusal(ResumableFolder.opened, tmp_path / "work", {"a": 3})


@pytest.mark.parametrize("overwrite", [False, True])
def test_other_files_are_left_alone(tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("important")
    assert "thesis.tex" in refusal(ResumableFolder.opened, tmp_path, {}, overwrite)
    ResumableFolder.opened(tmp_path / "work", {})
    (tmp_path / "work" / "notes.txt").write_text("important")
    assert "notes.txt" in refusal(ResumableFolder.opened, tmp_path / "work", {}, overwrite)
    assert (tmp_path / "thesis.tex").exists() and (tmp_path / "work" / "notes.txt").exists()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "work").write_text("")
    assert "it is a file" in refusal(ResumableFolder.opened, tmp_path / "work", {}, kind=InputError)


def test_writing_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_whole(path, b"old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OutputError, match="full"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_write_that_was_killed_is_no_finished_trial(tmp_path):
    work = ResumableFolder.opened(tmp_path / "work", {"a": 1})
    (work.folder / "trials" / ".0123abcd-first.json").write_text("{")
    assert not work.begun
    ResumableFolder.opened(tmp_path / "work", {"a": 2})
    assert list((work.folder / "trials").iterdir()) == []


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    work = ResumableFolder.opened(tmp_path / "work", {"a": 1})

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fails)
    assert "No space left on device" in refusal(work.write, "first", {"b": 1}, kind=OutputError)
