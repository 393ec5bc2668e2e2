"""The wheel that pip builds contains every module and data file under src/fastdraft."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_wheel_has_every_file_of_the_package_and_no_tests(tmp_path):
    pytest.importorskip("setuptools", minversion="77", reason="a wheel is built with setuptools>=77")
    listed = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = {path.removeprefix("src/") for path in listed.split()}
    assert {"fastdraft/py.typed", "fastdraft/demo/target/model.safetensors", "fastdraft/cli/__init__.py"} <= tracked
    # Build from a copy: a build leaves files next to the sources, which the next build would include.
    source = tmp_path / "source"
    for path in (*(f"src/{path}" for path in tracked), "pyproject.toml", "README.md"):
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes((ROOT / path).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    subprocess.run([*build, "-w", str(tmp_path), str(source)], check=True, timeout=240)
    (wheel,) = tmp_path.glob("fastdraft-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == tracked
