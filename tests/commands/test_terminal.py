"""Imports beside the work."""

import sys

from denoscope.commands import terminal


def test_imports_for_the_end_of_a_run_begin_with_its_first_part_and_once(monkeypatch):
    submitted, closed, told = [], [], []

    class Executor:
        def __init__(self, threads: int):
            assert threads == 1

        def submit(self, importing, module: str) -> None:
            importing(module)
            submitted.append(module)

        def shutdown(self, wait: bool) -> None:
            closed.append(wait)

    monkeypatch.setattr(terminal, "ThreadPoolExecutor", Executor)
    watch = terminal.importing_beside(lambda title, total: told.append((title, total)) or told.append)
    assert submitted == []
    watch("Generating the picture", 4)(2)
    watch("DF-RISE", 8)
    assert told == [("Generating the picture", 4), 2, ("DF-RISE", 8)]
    assert tuple(submitted) == terminal.NEEDED_LATER and closed == [False]
    assert all(module in sys.modules for module in terminal.NEEDED_LATER)
