"""The wheel is complete: what users install has the weights, the templates and the licence, and works by itself."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from places import ROOT

SOURCE = ROOT / "src" / "denoscope"

LOAD = """
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

import denoscope

home = Path(sys.argv[1])
assert Path(denoscope.__file__).is_relative_to(home), denoscope.__file__
(weights,) = (home / "denoscope/bundled/shapes/unet").glob("*.safetensors")
stored, loaded = load_file(weights), denoscope.load("shapes").denoiser.state_dict()
assert stored.keys() == loaded.keys()
assert all(torch.equal(stored[name].float(), loaded[name].float()) for name in stored)
print("loaded", len(stored))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    ran = subprocess.run(build, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_it_has_every_file_of_the_package(names: set[str]):
    files = {path for path in SOURCE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    inside = {f"denoscope/{path.relative_to(SOURCE).as_posix()}" for path in files}
    assert {name for name in names if ".dist-info/" not in name} == inside


@pytest.mark.parametrize(
    "pattern",
    [
        "denoscope/py.typed",
        "denoscope/report/templates/*",
        "denoscope/bundled/shapes/model_index.json",
        "denoscope/bundled/shapes/scheduler/scheduler_config.json",
        "denoscope/bundled/shapes/text_encoder/*.safetensors",
        "denoscope/bundled/shapes/tokenizer/*.json",
        "denoscope/bundled/shapes/unet/*.safetensors",
        "denoscope/bundled/shapes/vae/*.safetensors",
        "denoscope/bundled/clip/config.json",
        "denoscope/bundled/clip/*.safetensors",
        "denoscope-*.dist-info/licenses/LICENSE",
    ],
)
def test_it_has(pattern: str, names: set[str]):
    assert any(Path(name).match(pattern) for name in names), f"nothing in the wheel matches {pattern}"


def test_its_weights_are_safetensors_only(names: set[str]):
    assert [name for name in names if Path(name).suffix in {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}] == []


def test_it_has_the_command(wheel: Path, names: set[str]):
    (entry_points,) = (name for name in names if name.endswith(".dist-info/entry_points.txt"))
    with zipfile.ZipFile(wheel) as archive:
        assert "denoscope = denoscope.cli:main" in archive.read(entry_points).decode()


def test_it_loads_the_bundled_model_from_anywhere_offline(wheel: Path, tmp_path: Path):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(home)
    ran = subprocess.run(
        [sys.executable, "-c", LOAD, str(home)],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(home), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    assert "loaded" in ran.stdout
