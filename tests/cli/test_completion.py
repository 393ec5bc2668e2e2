"""Help, version and completion answer at once: nothing heavy is imported for them, and shells are told what fits."""

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from fastdraft.bench.engines import ENGINES
from fastdraft.cli import choices, completion
from fastdraft.evaluate.tasks import TASKS, USUAL
from fastdraft.export.formats import FORMATS
from fastdraft.pipeline import stages
from fastdraft.pipeline.step_timers import TIMERS
from fastdraft.planning.devices import DEVICES
from fastdraft.planning.model_size import BITS
from fastdraft.play.open_pair import ENGINES as PLAYERS
from fastdraft.system.precision import Asked

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "pydantic", "numpy", "huggingface_hub", "datasets")
SEEN = f"print([name for name in {HEAVY} if name in sys.modules])"
# How each shell's script asks: what has been typed, the last word of it to be completed.
SHELLS = {
    "bash": lambda line: {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))},
    "zsh": lambda line: {"_TYPER_COMPLETE_ARGS": line},
    "fish": lambda line: {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
}


def offered(shell: str, line: str) -> str:
    """What the installed command says to a shell."""
    program = Path(sys.executable).with_name("fastdraft")
    asked = {"_FASTDRAFT_COMPLETE": f"complete_{shell}", **SHELLS[shell](line)}
    return subprocess.run(
        [program], cwd=ROOT, env=os.environ | asked, capture_output=True, text=True, check=True
    ).stdout


def imported(code: str) -> str:
    """Which heavy packages a fresh Python has after some code."""
    code = f"import sys\n{code}\n{SEEN}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_the_commands_are_defined_without_what_they_work_with():
    assert imported("import fastdraft.cli") == "[]"


def test_the_guard_sees_what_is_imported():
    assert imported("import fastdraft.config.schema") == "['pydantic']"


def test_keys_are_completed_without_torch():
    assert "torch" not in imported("from fastdraft.cli.completion import overrides; overrides('draft.init=')")


def test_the_words_are_those_of_the_tables():
    tables = {
        "STAGES": tuple(stage.name for stage in stages.STAGES),
        "DEVICES": tuple(DEVICES),
        "BITS": tuple(BITS),
        "TIMERS": tuple(TIMERS),
        "FORMATS": {name: tuple(form.agreement) for name, form in FORMATS.items()},
        "ENGINES": {name: tuple(engine.weights) for name, engine in ENGINES.items()},
        "PLAYERS": tuple(PLAYERS),
        "TASKS": tuple(task.name for task in TASKS),
        "USUAL": USUAL,
        "PRECISIONS": get_args(Asked),
    }
    named = {name: words_ for name, words_ in vars(choices).items() if name.isupper() and name != "KINDS"}
    assert named == tables


@pytest.mark.parametrize(
    ("line", "word", "other"),
    [
        ("fastdraft pl", "plan", "push"),
        ("fastdraft recipe sch", "schema", "show"),
        ("fastdraft plan demo --train", "--train-device", "--device"),
        ("fastdraft plan demo --device arc", "arc-140v", "h200"),
        ("fastdraft export DRAFT --format g", "gguf", "openvino"),
        ("fastdraft run recipes/demo.yaml --until al", "align", "evaluate"),
        ("fastdraft run recipes/phi", "recipes/phi3-mini-50m.yaml", "recipes/demo.yaml"),
    ],
)
def test_bash_is_reported_what_fits(line, word, other):
    said = offered("bash", line).split()
    assert word in said
    assert other not in said


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_reported_too(shell):
    said = offered(shell, "fastdraft plan demo --device arc")
    assert "arc-140v" in said
    assert "h200" not in said


def test_a_shell_that_does_not_split_at_equals_is_reported_values():
    assert "draft.init=transplant:" in offered("fish", "fastdraft run recipes/demo.yaml draft.init=")


@pytest.mark.parametrize(
    ("begun", "offers"),
    [
        ("draft.la", ["draft.layers="]),
        ("draft.init=", [f"draft.init={way}" for way in ("random", "target_embedding", "prune:", "transplant:")]),
        ("parallel=f", ["parallel=fsdp"]),
        ("synthesize.engine=o", ["synthesize.engine=openvino"]),
        ("target.allow_pickle=", ["target.allow_pickle=true", "target.allow_pickle=false"]),
        ("continue.precision=b", ["continue.precision=bf16"]),
        ("pretrain.train_tokens=", []),
        ("nothing.of.the.kind=", []),
    ],
)
def test_keys_and_their_values(begun, offers):
    assert completion.overrides(begun) == offers


def test_files_and_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    for name in ("a.yaml", "b.yml", "c.txt", ".hidden.yaml", "runs/d.yaml"):
        (tmp_path / name).touch()
    assert list(completion.recipes("")) == ["a.yaml", "b.yml", "runs/"]
    assert list(completion.recipes("runs/")) == ["runs/d.yaml", "runs/mine/"]
    assert list(completion.models("r")) == ["runs/"]
    assert list(completion.models("")) == ["demo", "runs/"]
    assert list(completion.recipes("nowhere/")) == []
