"""Two runs cannot write to one place; a killed run leaves no claim, and its unfinished folder is removed."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from denoscope.errors import InputError, OutputError
from denoscope.files.claims import claimed
from denoscope.files.whole import whole_folder

HOLD = """
import sys, time
from denoscope.files.whole import whole_folder
from denoscope.results.folders import check_output
with whole_folder(check_output(sys.argv[1])) as folder:
    (folder / "run.json").write_text("{}")
    print("claimed", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that is writing to `out`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "claimed\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_the_second_of_two_runs_is_refused_at_once(holder, tmp_path):
    with pytest.raises(InputError, match="another run is writing there"), claimed(tmp_path / "out"):
        pytest.fail("both runs have the folder")
    with claimed(tmp_path / "other"):
        pass


def test_what_a_killed_run_left_is_removed_by_the_next(holder, tmp_path):
    (tmp_path / "out-2.partial").mkdir()
    (tmp_path / ".other-0123abcd.partial").mkdir()
    partial = [path.name for path in tmp_path.iterdir() if path.name.startswith(".out-")]
    assert len(partial) == 1, "it is there while its process lives"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with claimed(tmp_path / "out") as place:
        assert not (tmp_path / partial[0]).exists() and place == tmp_path / "out"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other-0123abcd.partial", "out-2.partial"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_a_claim_ends_with_its_block(stop, tmp_path):
    with pytest.raises(stop), claimed(tmp_path / "new" / "out"):
        raise stop
    assert list(tmp_path.iterdir()) == []
    with claimed(tmp_path / "out"), whole_folder(tmp_path / "out") as folder:
        (folder / "a").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_another_thread_is_another_run(tmp_path):
    refused = []

    def claim():
        try:
            with claimed(tmp_path / "out"):
                pass
        except InputError as error:
            refused.append(str(error))

    with claimed(tmp_path / "out"):
        thread = threading.Thread(target=claim)
        thread.start()
        thread.join()
    assert len(refused) == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_that_may_not_be_written_to(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="may write to"), claimed(tmp_path / "locked" / "out"):
        pass


def test_earlier_results_that_a_killed_run_had_moved_aside_come_back(tmp_path):
    (tmp_path / ".out-0123abcd.old").mkdir()
    (tmp_path / ".out-0123abcd.old" / "run.json").write_text("{}")
    (tmp_path / ".out-0123abcd.partial").mkdir()
    with claimed(tmp_path / "out"):
        assert (tmp_path / "out" / "run.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_root_is_refused():
    with pytest.raises(InputError, match="root of a file system"), claimed("/"):
        pass
