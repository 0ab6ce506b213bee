"""A ledger keeps what is finished, whole or not at all, and refuses what would mix."""

import numpy as np
import pytest
from small import refusal

from denoscope.errors import InputError
from denoscope.results.folders import write_whole
from denoscope.results.resumable import Ledger


def test_a_trial_is_read_as_it_was_written(tmp_path):
    ledger = Ledger.opened(tmp_path / "work", {"steps": 4})
    assert ledger.read("first") is None
    ledger.write("first", {"scores": [0.1, 0.2]}, {"map": np.eye(2, dtype=np.float32)})
    again = Ledger.opened(tmp_path / "work", {"steps": 4})
    assert again.read("first") == {"scores": [0.1, 0.2]}
    np.testing.assert_array_equal(again.arrays("first")["map"], np.eye(2))


def test_a_trial_without_its_last_file_is_not_finished(tmp_path):
    ledger = Ledger.opened(tmp_path / "work", {})
    ledger.write("first", {}, {"map": np.zeros(2)})
    (ledger.folder / "trials" / "first.json").unlink()
    assert ledger.read("first") is None


def test_a_file_that_was_cut_off_is_not_finished(tmp_path):
    ledger = Ledger.opened(tmp_path / "work", {})
    (ledger.folder / "trials" / "first.json").write_text('{"scores": [0.1')
    assert ledger.read("first") is None


def test_other_settings_are_refused_by_name(tmp_path):
    Ledger.opened(tmp_path / "work", {"steps": 4, "methods": ("words",)}).write("first", {}, {})
    message = refusal(Ledger.opened, tmp_path / "work", {"steps": 8, "methods": ("words",)})
    assert "steps was 4 and is now 8" in message and "methods" not in message and "--overwrite" in message


def test_tuples_are_the_lists_that_they_are_kept_as(tmp_path):
    Ledger.opened(tmp_path / "work", {"at": (1, 2)})
    Ledger.opened(tmp_path / "work", {"at": (1, 2)})


def test_overwriting_begins_anew(tmp_path):
    Ledger.opened(tmp_path / "work", {"steps": 4}).write("first", {}, {})
    again = Ledger.opened(tmp_path / "work", {"steps": 8}, overwrite=True)
    assert again.read("first") is None and again.settings == {"steps": 8}


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_no_evaluation_wrote_is_left_alone(tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("important")
    assert "thesis.tex" in refusal(Ledger.opened, tmp_path, {}, overwrite)
    Ledger.opened(tmp_path / "work", {})
    (tmp_path / "work" / "notes.txt").write_text("important")
    assert "notes.txt" in refusal(Ledger.opened, tmp_path / "work", {}, overwrite)
    assert (tmp_path / "thesis.tex").exists() and (tmp_path / "work" / "notes.txt").exists()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "work").write_text("")
    assert "it is a file" in refusal(Ledger.opened, tmp_path / "work", {}, kind=InputError)


def test_writing_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_whole(path, b"old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a.json"]
