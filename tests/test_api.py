"""The Python API: the example and the page in the docs run as they stand; importing it costs nothing."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastdraft

ROOT = Path(__file__).parents[1]


def test_importing_it_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, fastdraft; print(sorted({'torch', 'transformers', 'pydantic'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_function_is_documented_in_the_page() -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    functions = {name for name in fastdraft.__all__ if name[0].islower()}
    assert set(re.findall(r"^\| `(\w+)\(", page, re.MULTILINE)) == functions
    assert all(getattr(fastdraft, name).__doc__ for name in functions)


def test_a_user_mistake_is_one_class_of_errors(tmp_path: Path) -> None:
    with pytest.raises(fastdraft.FastDraftError, match="missing.yaml"):
        fastdraft.load_recipe(tmp_path / "missing.yaml")
    with pytest.raises(fastdraft.FastDraftError, match="nowhere"):
        fastdraft.plan(str(tmp_path / "nowhere"), device="h200")


@pytest.mark.slow
def test_the_page_and_the_example_run(tmp_path: Path) -> None:
    """In one process, which imports torch and transformers once."""
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    example = ROOT / "examples" / "demo_pair.py"
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "both.py").write_text(f"{code}\nimport runpy\nrunpy.run_path({str(example)!r}, run_name='__main__')\n")
    command = [sys.executable, "both.py", "out"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "code 0.0 " in ended.stdout
    assert "fits" in ended.stdout.splitlines()
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"run", "aligned", "exported", "prompts.jsonl"}
