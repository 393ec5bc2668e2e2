"""What a stage uses is checked before: its inputs before anything is moved, and the files of finished stages."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdraft.config.resolve import digest, resolve
from fastdraft.evaluation.recording import RecordingCard
from fastdraft.models.run_context import RunContext
from fastdraft.pipeline.run_stages import MAKERS, run_stages
from fastdraft.results.export import ExportCard
from fastdraft.system.cards import FILE, VERSION, Card, open_stage, read_card
from fastdraft.system.errors import CardError, UserError
from fastdraft.system.manifest import Manifest

RUN = Path("runs/tiny")
QUICK = settings(derandomize=True, deadline=None, database=None, max_examples=60)


def run(overrides: list[str], **which: str) -> dict[str, Card]:
    """Run the tiny recipe of the working directory in this process."""
    recipe = resolve(Path("recipe.yaml"), overrides).recipe
    manifest = Manifest(RUN, digest(recipe), recipe.seed, torch.device("cpu"))
    return run_stages(RunContext(recipe, RUN, torch.device("cpu")), manifest, **which)


def content(folder: Path) -> dict[str, bytes]:
    """The bytes of every file of a run except its manifest."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name != "manifest.json"}


MISTAKES = {
    "a target": ["target.path=nowhere"],
    "a source": ["corpus.text.path=nowhere"],
    "a second source": ["corpus.rows.path=nowhere.jsonl"],
    "a folder without texts": ["corpus.text.path=target"],
    "a field": ["corpus.rows.field=nothing"],
    "an allow-list": ["corpus.text.held_out_list=nowhere"],
    "a filter's package": ["corpus.text.quality=[gopher_quality]"],
    "a scheduler": ["tokenize.executor=slurm", "tokenize.slurm.partition=night", "tokenize.slurm.hours=1", "seed=12"],
    "a donor": ["draft.init=prune:nowhere", "draft.hidden_size=null", "draft.heads=null", "draft.kv_heads=null"],
    "a budget": ["draft={params_millions: 0.001}"],
    "a teacher": ["align.teacher=nowhere", "align.teacher_logits=online"],
    "a length": ["synthesize.max_new_tokens=95"],
    "a length of evaluation": ["evaluate.max_new_tokens=95"],
    "a top-k": ["synthesize.top_k=400"],
    "a prompt set": ["synthesize.prompt_sets.x={source: jsonl, path: nowhere.jsonl}", "synthesize.mix={x: 1}"],
    "a prompt set's field": ["synthesize.prompt_sets.x={source: jsonl, path: rows.jsonl}", "synthesize.mix={x: 1}"],
    "an engine's package": ["synthesize.engine=vllm"],
    "a chat template": ["synthesize.mix={magpie: 1}"],
    "a log": ["synthesize.engine=recorded", "synthesize.recorded.path=nowhere.jsonl", "synthesize.mix={recorded: 1}"],
    "a task": ["synthesize.leak_tasks=[humaneval=nowhere.jsonl]"],
}


@pytest.mark.parametrize("overrides", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_in_a_recipe_moves_and_makes_nothing(finished_run, monkeypatch, overrides):
    monkeypatch.chdir(finished_run)
    before = content(RUN)
    with pytest.raises(UserError, match="(?s)\n  do: "):
        run(overrides)
    assert content(RUN) == before


DAMAGES: tuple[Callable[[Path], Any], ...] = (
    lambda path: path.unlink(),
    lambda path: path.write_bytes(path.read_bytes()[:-1]),
    lambda path: path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes())),
)


def test_every_file_of_a_finished_run_is_checked_by_the_next_command(finished_run, monkeypatch):
    """Each file of each stage in turn; `open_stage` is what every command opens a stage with."""
    monkeypatch.chdir(finished_run)
    kinds = {name: maker.card for name, maker in MAKERS.items()}
    files = [(name, file) for name, kind in kinds.items() for file in read_card(RUN / name, kind).contents]
    recorded = {f"{name}/{file}" for name, file in files}
    left_out = {name for name in content(RUN) if name.count("/") and not name.startswith(("stale/", "lock"))} - recorded
    assert {Path(name).name for name in left_out} <= {FILE, "key", "metrics.jsonl"}
    assert len(files) >= 30
    for number, (name, file) in enumerate(files):
        path = RUN / name / file
        before, damage = path.read_bytes(), DAMAGES[number % 3 if path.stat().st_size else 0]
        damage(path)
        with pytest.raises(CardError, match=f"(?s)^{RUN / name} .*{file}.*\n  do: "):
            open_stage(RUN / name, kinds[name])
        path.write_bytes(before)
        open_stage(RUN / name, kinds[name])


WEIGHTS = "align/model/model.safetensors"
READERS = {
    "run": (["run", "recipe.yaml"], "pretrain/model/model.safetensors"),
    "continue": (["continue", "recipe.yaml", "continue.learning_rate=0.002"], "pretrain/model/model.safetensors"),
    "align": (["align", "recipe.yaml", "align.learning_rate=0.002"], "synthesize/completions/*.parquet"),
    "pretrain": (["pretrain", "recipe.yaml", "pretrain.learning_rate=0.002"], "tokenize/text/train/shards/*.ds"),
    "validation": (["pretrain", "recipe.yaml", "pretrain.learning_rate=0.002"], "validation/completions/*.parquet"),
    "evaluate": (["evaluate", RUN, "--tasks", "own.jsonl", "--keep", "kept"], WEIGHTS),
    "evaluate --data": (["evaluate", RUN, "--data", RUN / "evaluate"], "evaluate/completions/*.parquet"),
    "export": (["export", RUN, "--format", "huggingface"], "align/model/config.json"),
    "bench": (["bench", "target", RUN, "--engine", "transformers"], WEIGHTS),
    "play": (["play", "target", RUN, "--prompt", "a"], WEIGHTS),
    "status": (["status", RUN, "--verify"], WEIGHTS),
    "a donor": (["run", "recipe.yaml", "--folder", "new", f"draft={{init: 'prune:{RUN}/align/model'}}"], WEIGHTS),
}


@pytest.mark.parametrize(("arguments", "file"), READERS.values(), ids=READERS.keys())
def test_no_command_uses_a_damaged_stage(finished_run, fastdraft, arguments, file):
    """64 bytes in the middle of one file are flipped. Nothing is moved, and the error names the file."""
    path = sorted((finished_run / RUN).glob(file))[0]
    damaged = bytearray(path.read_bytes())
    middle = len(damaged) // 2
    damaged[middle : middle + 64] = bytes(255 - byte for byte in damaged[middle : middle + 64])
    path.write_bytes(damaged)
    ended = fastdraft(*arguments)
    assert (ended.code, "Traceback" in ended.err) == (2, False), ended.err
    assert str(path.relative_to(finished_run / RUN / path.relative_to(finished_run / RUN).parts[0])) in ended.err
    assert not (finished_run / RUN / "stale").exists()
    assert not list(finished_run.glob("runs/tiny/export/*"))


def test_a_mistake_leaves_the_stages_in_stale_where_they_are(finished_run, fastdraft):
    """Also those that the recipe, without the mistake, would bring back."""
    (finished_run / RUN / "stale").mkdir()
    (finished_run / RUN / "target").rename(finished_run / RUN / "stale/target-0")
    ended = fastdraft("run", "recipe.yaml", "corpus.text.path=nowhere")
    assert (ended.code, "nowhere" in ended.err) == (2, True), ended.err
    assert (finished_run / RUN / "stale/target-0/card.json").is_file()
    assert not (finished_run / RUN / "target").exists()
    assert fastdraft("run", "recipe.yaml").code == 0
    assert (finished_run / RUN / "target/card.json").is_file()


def test_a_lost_shard_of_completions_is_made_again(finished_run, monkeypatch):
    """What the error says: after card and damaged file are removed, only the completions of that file are made."""
    monkeypatch.chdir(finished_run)
    stage = RUN / "synthesize"
    shards = sorted((stage / "completions").glob("*.parquet"))
    before = {path: path.stat().st_ino for path in shards[1:]}
    shutil.copytree(stage, "copy")
    shards[0].unlink()
    with pytest.raises(CardError, match=f"(?s){shards[0].name} is missing.*remove these files and {stage / FILE}"):
        run([])
    (stage / FILE).unlink()
    run([])
    assert {path: path.stat().st_ino for path in before} == before
    assert sorted(path.stat().st_size for path in (stage / "completions").iterdir()) == sorted(
        path.stat().st_size for path in Path("copy/completions").iterdir()
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KINDS = [*dict.fromkeys([*(maker.card for maker in MAKERS.values()), RecordingCard, ExportCard])]


def error_of(folder: Path, kind: type[Card]) -> str:
    """The message of the error with which a stage does not open; empty if it opens."""
    try:
        open_stage(folder, kind)
    except CardError as error:
        return str(error)
    return ""


@QUICK
@given(data=st.data())
def test_rubbish_in_a_card_is_an_error(finished, tmp_path_factory, data):
    """For every kind of card: fields removed, replaced or added at any depth, flipped bytes, rubbish, deep nesting."""
    folder, kind = tmp_path_factory.getbasetemp() / "rubbish", data.draw(st.sampled_from(KINDS))
    folder.mkdir(exist_ok=True)
    stage = next((name for name, maker in MAKERS.items() if maker.card is kind), None)
    card = {"kind": kind.kind, "version": VERSION, "key": "a", "cost": {"seconds": 1.0}, "contents": {}}
    card = json.loads((finished / RUN / stage / FILE).read_text()) if stage else card | {"files": {}, "written": []}
    for _ in range(data.draw(st.integers(0, 3))):
        place, key = card, data.draw(st.sampled_from(sorted(card)))
        while place[key] and isinstance(place[key], dict | list) and data.draw(st.booleans()):
            place = place[key]
            key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        place[key] = data.draw(JSON)
        if isinstance(place, dict) and data.draw(st.booleans()):
            place |= {data.draw(st.text(max_size=5)): data.draw(JSON)}
            del place[key]
        if not card:
            break
    text = bytearray(json.dumps(card).encode())
    for place in data.draw(st.lists(st.integers(0, len(text) - 1), max_size=2)):
        text[place] ^= data.draw(st.integers(1, 255))
    deep = data.draw(st.sampled_from([b"", b"[" * 100_000, b'{"kind":' * 50_000, bytes(9), b"\xff\xfe"]))
    (folder / FILE).write_bytes(deep or bytes(text))
    message = error_of(folder, kind)
    assert not message or ("\n  do: " in message and message.replace("\n", "").isprintable())
    assert not re.search("pydantic|Input should|String should|validation error", message)
