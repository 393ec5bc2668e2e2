"""Packages below their lower bound are reported before a command does anything."""

import os
import re
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path

import pytest

from fastdraft.system.dependencies import check_dependencies
from fastdraft.system.errors import DependencyError

BOUNDED = [line for line in requires("fastdraft") if ">=" in line and ";" not in line]


def package_of(line: str) -> str:
    return line.partition(">=")[0]


def write_old_metadata(folder: Path, package: str) -> None:
    """Write the metadata of an old release into a folder."""
    metadata = folder / f"{package.replace('-', '_')}-0.0.7.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.0.7\n")


def test_the_installed_packages_are_new_enough():
    check_dependencies()


@pytest.mark.parametrize("line", BOUNDED, ids=package_of)
def test_an_old_release_of_any_package_is_an_error(line, tmp_path, monkeypatch):
    write_old_metadata(tmp_path, package_of(line))
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(DependencyError) as error:
        check_dependencies()
    expected = f"found {package_of(line)} 0.0.7 in {tmp_path}, wanted {line}\n  do: pip install --upgrade '{line}'"
    assert str(error.value) == expected


def test_the_metadata_has_lower_bounds():
    assert {"torch", "transformers", "pydantic", "typer"} <= set(map(package_of, BOUNDED))


def test_old_and_missing_packages_are_reported_together(tmp_path, monkeypatch):
    write_old_metadata(tmp_path, "torch")
    metadata = tmp_path / "fastdraft-0.1.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    requirements = ["torch>=2.11", "no-such-package>=3", f"typer>={version('typer')}", 'gradio>=99; extra == "play"']
    lines = "".join(f"Requires-Dist: {line}\n" for line in requirements)
    metadata.write_text(f"Metadata-Version: 2.1\nName: fastdraft\nVersion: 0.1.0\n{lines}")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(DependencyError) as error:
        check_dependencies()
    text = str(error.value)
    assert "found torch 0.0.7" in text
    assert "no-such-package is not installed, wanted no-such-package>=3" in text
    assert text.endswith("\n  do: pip install --upgrade 'torch>=2.11' 'no-such-package>=3'")


@pytest.mark.parametrize("arguments", [["plan", "demo"], ["recipe", "list"]])
def test_a_command_exits_with_2_before_it_imports_torch(arguments, tmp_path):
    write_old_metadata(tmp_path, "transformers")
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2] / "src")])
    command = [sys.executable, "-X", "importtime", "-m", "fastdraft", *arguments]
    result = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr
    assert "error: found transformers 0.0.7" in result.stderr
    assert re.search(r"^  do: pip install --upgrade 'transformers>=", result.stderr, re.MULTILINE)
    assert not re.search(r"\| +(torch|transformers)$", result.stderr, re.MULTILINE)
