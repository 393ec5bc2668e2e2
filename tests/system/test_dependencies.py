"""Packages that are older than the lower bound: reported before a command begins, with what was found and wanted."""

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


def put_older(folder: Path, package: str) -> None:
    """The metadata of an old release, in a folder."""
    metadata = folder / f"{package.replace('-', '_')}-0.0.7.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.0.7\n")


def test_what_is_installed_here_is_new_enough():
    check_dependencies()


@pytest.mark.parametrize("line", BOUNDED, ids=package_of)
def test_an_older_release_of_any_package(line, tmp_path, monkeypatch):
    put_older(tmp_path, package_of(line))
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(DependencyError) as refused:
        check_dependencies()
    expected = f"found {package_of(line)} 0.0.7 in {tmp_path}, wanted {line}\n  do: pip install --upgrade '{line}'"
    assert str(refused.value) == expected


def test_there_are_bounds():
    assert {"torch", "transformers", "pydantic", "typer"} <= set(map(package_of, BOUNDED))


def test_several_at_once_and_one_that_is_not_installed(tmp_path, monkeypatch):
    put_older(tmp_path, "torch")
    metadata = tmp_path / "fastdraft-0.1.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    needs = ["torch>=2.11", "no-such-package>=3", f"typer>={version('typer')}", 'gradio>=99; extra == "play"']
    lines = "".join(f"Requires-Dist: {line}\n" for line in needs)
    metadata.write_text(f"Metadata-Version: 2.1\nName: fastdraft\nVersion: 0.1.0\n{lines}")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(DependencyError) as refused:
        check_dependencies()
    text = str(refused.value)
    assert "found torch 0.0.7" in text
    assert "no-such-package is not installed, wanted no-such-package>=3" in text
    assert text.endswith("\n  do: pip install --upgrade 'torch>=2.11' 'no-such-package>=3'")


@pytest.mark.parametrize("arguments", [["plan", "demo"], ["recipe", "list"]])
def test_the_command_ends_with_exit_code_2_before_it_does_anything(arguments, tmp_path):
    put_older(tmp_path, "transformers")
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2] / "src")])
    command = [sys.executable, "-X", "importtime", "-m", "fastdraft", *arguments]
    ended = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "Traceback" not in ended.stderr
    assert "error: found transformers 0.0.7" in ended.stderr
    assert re.search(r"^  do: pip install --upgrade 'transformers>=", ended.stderr, re.MULTILINE)
    assert not re.search(r"\| +(torch|transformers)$", ended.stderr, re.MULTILINE)
