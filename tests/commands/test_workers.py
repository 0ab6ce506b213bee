"""Work runs in order, no further than needed, and side by side gives the same; a process that ends early is told."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Executor
from contextlib import closing

import pytest
from small import refusal

from denoscope.commands import workers
from denoscope.commands.evaluate import Evaluation
from denoscope.commands.job import check_workers
from denoscope.commands.workers import SerialExecutor, results_in_order
from denoscope.errors import Interrupted


def is_even(number: int) -> bool:
    return number % 2 == 0


def test_work_stops_when_enough_results_count():
    begun = []

    def work(number):
        begun.append(number)
        return number

    assert list(results_in_order(work, range(9), is_even, count=3)) == [0, 1, 2, 3, 4]
    assert begun == [0, 1, 2, 3, 4]


def test_nothing_is_begun_before_it_is_asked_for():
    begun = []
    results = results_in_order(begun.append, range(9), lambda _: True, count=9)
    next(results)
    assert begun == [0]


def test_the_items_may_end_before_enough_results_count():
    assert list(results_in_order(int, range(3), is_even, count=5)) == [0, 1, 2]


def test_the_error_of_the_work_is_raised():
    with pytest.raises(ZeroDivisionError):
        list(results_in_order(lambda number: 1 // number, [1, 0], is_even, count=2))


def test_too_few_workers_are_refused():
    assert refusal(check_workers, 0) == "workers is 0. Give at least 1; the default is one per CPU."


def test_the_serial_executor_is_an_executor():
    with SerialExecutor() as executor:
        assert isinstance(executor, Executor)
        assert list(executor.map(pow, [2, 3], [5, 2])) == [32, 9]


def test_only_the_processes_that_were_started_here_end_with_the_work():
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    before = set(multiprocessing.active_children())
    try:
        with (
            pytest.raises(KeyboardInterrupt),
            closing(results_in_order(time.sleep, [0, 600, 600], bool, 3, 2)) as results,
        ):
            for _ in results:
                started = set(multiprocessing.active_children()) - before
                raise KeyboardInterrupt
        assert len(started) == 2 and not any(process.is_alive() for process in started)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_side_by_side_gives_the_same_table_and_a_process_that_is_killed_is_told(own_model):
    (own_model / "prompts.txt").write_text("".join(f"first{i}\ta red circle\n" for i in range(6)))
    for i in range(6):
        (own_model / "masks" / f"first{i}.png").write_bytes((own_model / "masks" / "second.png").read_bytes())
    for name in ("first", "second"):
        (own_model / "masks" / f"{name}.png").unlink()
    paths = dict(model=str(own_model / "model"), prompts=str(own_model / "prompts.txt"), masks=str(own_model / "masks"))
    evaluation = Evaluation(**paths, steps=4, at=(1, 2), methods=("df-cam",), checks=("localisation",))
    beside, alone = own_model / "beside", own_model / "alone"

    def kill_one() -> None:
        until = time.monotonic() + 400
        while not list((beside / "trials").glob("*.json")) and time.monotonic() < until:
            time.sleep(0.01)
        with contextlib.suppress(IndexError):
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    with pytest.raises(Interrupted, match="ended from outside"):
        evaluation.run(folder=beside, workers=2)
    killer.join()
    finished = len(list((beside / "trials").glob("*.json")))
    assert 1 <= finished < 6
    places = [evaluation.run(folder=folder, workers=1).save(folder) for folder in (beside, alone)]
    tables = [(place / "leaderboard.json").read_bytes() for place in places]
    assert tables[0] == tables[1]


def test_one_worker_per_cpu_but_one_for_a_gpu(monkeypatch):
    assert workers.default_workers("cuda") == 1
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    assert workers.default_workers(None) == workers.default_workers("cpu") == 3
