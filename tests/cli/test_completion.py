"""Shell completion, and that help and completion import no heavy packages."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from fastdraft.benchmark.engines import ENGINES
from fastdraft.cli import choices, completion
from fastdraft.evaluation.tasks import DEFAULT_TASKS, TASKS
from fastdraft.exporters.formats import FORMATS
from fastdraft.pipeline import stages
from fastdraft.pipeline.step_timers import TIMERS
from fastdraft.planning.devices import DEVICES
from fastdraft.planning.model_size import BITS
from fastdraft.play.open_pair import ENGINES as PLAYERS
from fastdraft.system.precision import PrecisionChoice

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "pydantic", "numpy", "huggingface_hub", "datasets")
SEEN = f"print([name for name in {HEAVY} if name in sys.modules])"
# The environment in which the script of each shell asks to complete the last word of a line.
SHELLS = {
    "bash": lambda line: {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))},
    "zsh": lambda line: {"_TYPER_COMPLETE_ARGS": line},
    "fish": lambda line: {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
}


def offered(shell: str, line: str) -> str:
    """The completions that the installed command offers to a shell."""
    program = Path(sys.executable).with_name("fastdraft")
    request = {"_FASTDRAFT_COMPLETE": f"complete_{shell}", **SHELLS[shell](line)}
    return subprocess.run(
        [program], cwd=ROOT, env=os.environ | request, capture_output=True, text=True, check=True
    ).stdout


def imported(code: str) -> str:
    """The heavy packages that a new Python has imported after running this code."""
    code = f"import sys\n{code}\n{SEEN}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_defining_the_commands_imports_no_heavy_package():
    assert imported("import fastdraft.cli") == "[]"


def test_the_guard_sees_a_heavy_package():
    assert imported("import fastdraft.config.schema") == "['pydantic']"


def test_keys_are_completed_without_torch():
    assert "torch" not in imported("from fastdraft.cli.completion import overrides; overrides('draft.init=')")


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "runs/tiny"],
        *(["recipe", "schema"], ["recipe", "validate", "recipe.yaml"], ["recipe", "show", "recipe.yaml"]),
        *(["--version"], ["run", "--help"], ["report", "nowhere"]),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_commands_that_only_read_cards_and_recipes_import_no_torch(finished, arguments):
    code = f"""
import os
os.chdir({str(finished)!r})
sys.argv = ["fastdraft", *{arguments!r}]
import fastdraft.cli, io, contextlib
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as out:
    fastdraft.cli.main()
assert out.getvalue() or "nowhere" in sys.argv
"""
    assert not {"torch", "transformers", "datasets"} & set(ast.literal_eval(imported(code)))


def test_the_copied_names_are_those_of_the_tables():
    tables = {
        "STAGES": tuple(stage.name for stage in stages.STAGES),
        "DEVICES": tuple(DEVICES),
        "BITS": tuple(BITS),
        "TIMERS": tuple(TIMERS),
        "FORMATS": {name: tuple(format_.agreement) for name, format_ in FORMATS.items()},
        "ENGINES": {name: tuple(engine.weights) for name, engine in ENGINES.items()},
        "PLAYERS": tuple(PLAYERS),
        "TASKS": tuple(task.name for task in TASKS),
        "DEFAULT_TASKS": DEFAULT_TASKS,
        "PRECISIONS": get_args(PrecisionChoice),
    }
    copied = {name: value for name, value in vars(choices).items() if name.isupper() and name != "KINDS"}
    assert copied == tables


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
def test_bash_completion(line, word, other):
    words = offered("bash", line).split()
    assert word in words
    assert other not in words


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_zsh_and_fish_completion(shell):
    words = offered(shell, "fastdraft plan demo --device arc")
    assert "arc-140v" in words
    assert "h200" not in words


def test_values_are_completed_in_a_shell_that_does_not_split_at_equals():
    assert "draft.init=transplant:" in offered("fish", "fastdraft run recipes/demo.yaml draft.init=")


@pytest.mark.parametrize(
    ("incomplete", "expected"),
    [
        ("draft.la", ["draft.layers="]),
        ("draft.init=", [f"draft.init={init}" for init in ("random", "target_embedding", "prune:", "transplant:")]),
        ("parallel=f", ["parallel=fsdp"]),
        ("synthesize.engine=o", ["synthesize.engine=openvino"]),
        ("target.allow_pickle=", ["target.allow_pickle=true", "target.allow_pickle=false"]),
        ("continue.precision=b", ["continue.precision=bf16"]),
        ("pretrain.train_tokens=", []),
        ("nothing.of.the.kind=", []),
    ],
)
def test_keys_and_their_values(incomplete, expected):
    assert completion.overrides(incomplete) == expected


def test_files_and_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    for name in ("a.yaml", "b.yml", "c.txt", "d.gguf", ".hidden.yaml", "runs/d.yaml"):
        (tmp_path / name).touch()
    assert list(completion.recipes("")) == ["a.yaml", "b.yml", "runs/"]
    assert list(completion.recipes("runs/")) == ["runs/d.yaml", "runs/mine/"]
    assert list(completion.models("r")) == ["runs/"]
    assert list(completion.models("")) == ["demo", "smollm2", "d.gguf", "runs/"]
    assert list(completion.recipes("nowhere/")) == []
