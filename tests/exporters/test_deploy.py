"""docs/deploy.md: its snippets are those of the model cards, and those that can run here do."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastdraft.config import TargetPart
from fastdraft.exporters.formats import FORMATS
from fastdraft.exporters.gguf import export_gguf, file_name
from fastdraft.exporters.openvino import export_openvino
from fastdraft.exporters.proof import original_text
from fastdraft.exporters.usage import USAGE
from fastdraft.models.pretrained import load, open_tokenizer

PAGE = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
FENCED = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def snippets(section: str) -> list[tuple[str, str]]:
    """(language, text) of each fenced block."""
    return FENCED.findall(SECTIONS[section])


@pytest.mark.parametrize("engine", USAGE)
def test_the_page_reports_what_the_model_cards_say(engine):
    snippet = USAGE[engine]
    assert snippets(engine)[0] == (snippet.language, snippet.filled("TARGET", "DRAFT"))


def test_the_guard_sees_sections_and_blocks():
    assert set(USAGE) < set(SECTIONS)
    assert "OpenVINO Model Server" in SECTIONS
    assert [language for language, _ in snippets("llama.cpp")] == ["bash", "python"]


def test_the_table_is_that_of_the_formats():
    rows = re.findall(r"^\| (\w+) \| ([^|]+) \| [^|]+ \|$", PAGE, re.MULTILINE)
    assert {name: tuple(weights.split(", ")) for name, weights in rows if name != "format"} == {
        name: tuple(form.agreement) for name, form in FORMATS.items()
    }


def printed(text: str, target: Path, draft: Path) -> str:
    """What a snippet prints for a pair, run by itself as a user runs it."""
    code = text.replace("TARGET", str(target)).replace("DRAFT", str(draft))
    assert code.count(str(target)) >= 1
    assert code.count(str(draft)) >= 1
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.removesuffix("\n")


@pytest.fixture
def pair(draft_of) -> tuple[Path, Path]:
    """A target and another model as its draft: both speak the packaged target's vocabulary, and text of no sense."""
    return draft_of("llama", num_hidden_layers=3), draft_of("llama")


def greedy(target: Path) -> str:
    """What the target says by itself."""
    tokenizer = open_tokenizer(TargetPart(path=str(target)))
    prompt = tokenizer("def main(", return_tensors="np").input_ids[0]
    written = original_text(load(target, torch.float32).eval(), prompt, 64)
    return str(tokenizer.decode([*prompt, *written]))


@pytest.mark.slow
def test_transformers(pair):
    assert printed(snippets("transformers")[0][1], *pair) == greedy(pair[0])


@pytest.mark.engine("llama_cpp")
def test_llama_cpp(pair, tmp_path):
    for model, place in zip(pair, ("target", "draft"), strict=True):
        export_gguf(model, tmp_path / place, "f32")
    files = (tmp_path / place / file_name("f32") for place in ("target", "draft"))
    assert printed(snippets("llama.cpp")[1][1], *files).strip()


@pytest.mark.slow
def test_openvino_genai(pair, tmp_path):
    pytest.importorskip("openvino_genai", reason="OpenVINO is not installed: pip install 'fastdraft[openvino]'")
    for model, place in zip(pair, ("target", "draft"), strict=True):
        export_openvino(model, tmp_path / place, "int8")
    assert printed(snippets("OpenVINO GenAI")[0][1], tmp_path / "target", tmp_path / "draft").strip()
