"""README's table of pipelines has what benchmarks/families.py measures."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent.parent
QUICK = "sd-text", "flux", "wan"
BESIDE = "families_questions", "families_table"
"""Modules that benchmarks/families.py finds beside itself."""


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """The module benchmarks/families.py, under a name that is not that of tests/families."""
    folder = ROOT / "benchmarks"
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location("families_benchmark", folder / "families.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    return module


@pytest.fixture(scope="module")
def table(bench) -> ModuleType:
    """The module benchmarks/families_table.py."""
    return sys.modules["families_table"]


def lines_of_readme(table: ModuleType) -> list[str]:
    """The lines of README's table below its head."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    head = f"| {' | '.join(['pipeline', *table.README_COLUMNS.values()])} |"
    assert text.count(head) == 1
    lines = text[text.index(head) :].split("\n\n")[0].splitlines()
    return lines[2:]


def check_row(bench: ModuleType, table: ModuleType, name: str) -> None:
    row = bench.measured(name, list(table.README_COLUMNS))
    assert not row.fails, table.one_row(row)
    assert table.of_users([row]).splitlines()[2] in lines_of_readme(table)


def test_readme_names_each_pipeline_once(table):
    titles = [line.split(" | ")[0].removeprefix("| ") for line in lines_of_readme(table)]
    assert titles == list(table.README.values())


@pytest.mark.parametrize("name", QUICK)
def test_some_rows_of_readme_are_measured(bench, table, name):
    check_row(bench, table, name)


@pytest.mark.slow
def test_every_row_of_readme_is_measured(bench, table):
    for name in table.README:
        check_row(bench, table, name)


def test_a_wrong_answer_is_found(bench, monkeypatch):
    """A prediction that is 1 % too large fails its row, and is named in the summary."""
    from denoscope.recording.traces import Step

    predict = Step.predict
    monkeypatch.setattr(Step, "predict", lambda step, samples: 1.01 * predict(step, samples))
    row = bench.measured("sd-text", ["recorded", "predict"])
    assert row.fails and row.cells["predict"].kind == "wrong"
    assert "sd-text, predict" in bench.summary([row])
