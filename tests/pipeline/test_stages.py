"""The pipeline on a random target: stages run once, run again only if a key changed, and survive kills."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from fastdraft.config import Recipe
from fastdraft.config.resolve import digest, resolve
from fastdraft.pipeline.stages import STAGES, key_of, stages_of

RUN = "runs/tiny"
NAMES = [stage.name for stage in STAGES]
# Phases several times as long as the interval between checkpoints.
LONG = ["pretrain.train_tokens=20_000", "continue.train_tokens=20_000", "align.train_tokens=10_000"]
LONG += [f"{phase}.checkpoint_seconds=0.2" for phase in ("pretrain", "continue", "align")]
# Real decoding takes four fifths of the time of a tiny pipeline.
NOT_VERIFIED = ["evaluate.verify_prompts=0"]
# Each kill comes at a random moment after a stage has begun. Some stages are killed twice.
KILLED = ["target", "tokenize", "pretrain", "pretrain", "continue", "continue", "synthesize", "align", "evaluate"]
TIMED = ("seconds", "tokens_per_second", "mfu", "memory_bytes")


def cards(folder: Path) -> dict[str, dict[str, object]]:
    """The cards of the stages, without their costs and shards of completions, which depend on where a run stopped."""
    cards = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/card.json")}
    for card in cards.values():
        del card["cost"]
        card["contents"] = {name: of for name, of in card["contents"].items() if not name.endswith(".parquet")}
    return cards


def metrics(folder: Path) -> dict[str, list[dict[str, float]]]:
    """The metrics of every phase, without timings."""
    return {
        path.parent.name: [
            {key: value for key, value in json.loads(line).items() if key not in TIMED}
            for line in path.read_text().splitlines()
        ]
        for path in folder.glob("*/metrics.jsonl")
    }


def commands(folder: Path) -> list[dict[str, object]]:
    return json.loads((folder / "manifest.json").read_text())["commands"]


def keys_of(recipe: Recipe) -> dict[str, str]:
    """The key of each stage of a recipe."""
    keys: dict[str, str] = {}
    for stage in stages_of(recipe):
        keys[stage.name] = key_of(stage, recipe, keys)
    return keys


def ran(entry: dict[str, object]) -> list[str]:
    """The stages that a command ran, rather than skipped."""
    return [name for name, outcome in entry["stages"].items() if outcome == "made"]


def test_a_recipe_has_the_stages_of_its_parts(tiny):
    path = tiny / "recipe.yaml"
    assert [stage.name for stage in stages_of(resolve(path, [f"target.path={tiny}/target"]).recipe)] == NAMES
    keys = [f"target.path={tiny}/target", "synthesize=null", "align=null", "continue=null", "evaluate=null"]
    assert [stage.name for stage in stages_of(resolve(path, keys).recipe)] == ["target", "tokenize", "pretrain"]


def test_each_stage_needs_only_stages_before_it():
    for place, stage in enumerate(STAGES):
        assert set(stage.needs) <= set(NAMES[:place])


def test_the_files_of_a_finished_run(finished_run, fastdraft):
    run = finished_run / RUN
    assert sorted(cards(run)) == sorted(NAMES)
    assert [
        *run.rglob("*.fastdraft-part"),
        *run.rglob("*.fastdraft-old"),
        *run.rglob("checkpoint-*"),
        *run.rglob("*.attempts"),
    ] == []
    assert (run / "align/model/tokenizer.json").read_bytes() == (finished_run / "target/tokenizer.json").read_bytes()
    steps = [[row["step"] for row in rows] for rows in metrics(run).values()]
    assert len(steps) == 3
    assert all(found == list(range(1, len(found) + 1)) for found in steps)


def test_a_second_command_skips_every_stage(finished_run, fastdraft):
    run = finished_run / RUN
    before = {path: path.stat().st_mtime_ns for path in run.glob("*/*")}
    assert len(before) >= 20
    ended = fastdraft("run", "recipe.yaml")
    assert ended.code == 0, ended.err
    assert commands(run)[-1]["stages"] == dict.fromkeys(NAMES, "already done")
    assert {path: path.stat().st_mtime_ns for path in run.glob("*/*")} == before
    # The resolved recipe is the recipe.
    assert resolve(run / "resolved.yaml").recipe == resolve(finished_run / "recipe.yaml").recipe


@pytest.mark.parametrize(
    ("override", "rerun"),
    [
        ("evaluate.gammas=[2,5]", ["evaluate"]),
        ("align.learning_rate=0.002", ["align", "evaluate"]),
        ("synthesize.max_prompt_tokens=6", ["synthesize", "align", "evaluate"]),
        ("continue.weight_decay=0.1", ["continue", "align", "evaluate"]),
        ("continue.keep=best", ["continue", "align", "evaluate"]),
        ("draft.layers=2", ["pretrain", "continue", "align", "evaluate"]),
        ("corpus.text.held_out_fraction=0.25", NAMES[1:]),
        ("seed=12", NAMES[1:]),
    ],
)
def test_a_changed_key_reruns_its_stage_and_the_stages_after_it(tiny, override, rerun):
    """Compares keys; nothing is run."""
    keys = [f"target.path={tiny}/target"]
    before, after = (keys_of(resolve(tiny / "recipe.yaml", [*keys, *more]).recipe) for more in ([], [override]))
    assert [name for name in NAMES if before[name] != after[name]] == rerun


def test_a_key_without_effect_on_results_reruns_nothing(tiny):
    keys = [f"target.path={tiny}/target"]
    other = [
        "threads=2",
        "device=auto",
        "name=other",
        "trackers=[wandb]",
        "tokenize.workers=3",
        "tokenize.executor=slurm",
    ]
    other += ["tokenize.slurm.partition=night", "tokenize.slurm.hours=3", "corpus.text.licence=mit"]
    before, after = (keys_of(resolve(tiny / "recipe.yaml", [*keys, *more]).recipe) for more in ([], other))
    assert before == after


@pytest.mark.parametrize("chosen", [[], ["continue.early_stopping_patience=5"], ["align.keep=best"]])
def test_validation_affects_a_phase_only_if_it_selects_the_draft(tiny, chosen):
    """A phase that keeps its last draft makes the same one, whatever it is measured on."""
    keys = [f"target.path={tiny}/target", *chosen]
    more = [[], ["evaluate.validation_prompts=7"], ["evaluate.verify_gamma=3", "evaluate.bootstrap_resamples=9"]]
    plain, fewer, other = (keys_of(resolve(tiny / "recipe.yaml", [*keys, *extra]).recipe) for extra in more)
    phase = {"c": "continue", "a": "align"}[chosen[0][0]] if chosen else None
    for changed, by_itself in ((fewer, {"validation"}), (other, {"evaluate"})):
        wanted = NAMES[NAMES.index(phase) :] if phase else []
        wanted = {"continue", "align", "evaluate"} & set(wanted) | set(by_itself)
        assert {name for name in NAMES if plain[name] != changed[name]} == wanted


def test_a_rerun_stage_moves_the_old_one_to_stale(finished_run, fastdraft):
    run = finished_run / RUN
    before, old = cards(run), (run / "align/model/model.safetensors").read_bytes()
    ended = fastdraft("run", "recipe.yaml", "align.learning_rate=0.002", *NOT_VERIFIED)
    assert ended.code == 0, ended.err
    assert ran(commands(run)[-1]) == ["align", "evaluate"]
    assert sorted(path.name for path in (run / "stale").iterdir()) == ["align-0", "evaluate-0"]
    assert (run / "stale/align-0/model/model.safetensors").read_bytes() == old
    assert (run / "align/model/model.safetensors").read_bytes() != old
    assert [name for name in NAMES if cards(run)[name] == before[name]] == NAMES[:-2]
    notes = commands(run)[-1]["notes"]
    assert [note.partition(":")[0] for note in notes] == ["align", "evaluate"]  # and no warning
    assert "stale/align-0" in notes[0]
    assert commands(run)[-1]["command"].endswith("run recipe.yaml align.learning_rate=0.002 evaluate.verify_prompts=0")
    ended = fastdraft("run", "recipe.yaml")  # the change is undone: both stages are found again
    assert ended.code == 0, ended.err
    assert (ran(commands(run)[-1]), cards(run)) == ([], before)
    assert sorted(path.name for path in (run / "stale").iterdir()) == ["align-1", "evaluate-1"]
    assert [note.partition(":")[0] for note in commands(run)[-1]["notes"]] == ["align", "evaluate"]


def test_the_manifest_records_commands_and_versions(finished_run, fastdraft):
    assert fastdraft("run", "recipe.yaml", "--until", "pretrain").code == 0
    first, second = commands(finished_run / RUN)
    assert ran(first) == NAMES
    assert (second["command"], second["outcome"]) == ("fastdraft run recipe.yaml --until pretrain", "finished")
    assert first["recipe"] == second["recipe"] == digest(resolve(finished_run / "recipe.yaml").recipe)
    assert (second["seed"], second["threads"], second["notes"]) == (11, 1, [])
    assert {"fastdraft", "torch", "transformers", "tokenizers", "datatrove"} <= second["versions"].keys()
    assert "cpu" in second["device"]
    assert second["started"] <= second["ended"]


def test_recipes_without_held_out_documents(tiny, fastdraft):
    keys = ["corpus.text.held_out_fraction=0", "corpus.rows.held_out_fraction=0", "evaluate=null"]
    ended = fastdraft("run", "recipe.yaml", *keys, "--until", "pretrain")
    assert ended.code == 0, ended.err
    assert cards(tiny / RUN)["pretrain"]["held_out_nats"] == {}


def stop(fastdraft, run: Path, keys: list[str], stage: str, seconds: float, signal_number: int):
    """Run the pipeline and send a signal some seconds after a stage has begun. Returns the ended command."""
    running = fastdraft.start("run", "recipe.yaml", *keys)
    while running.process.exitcode is None and not (run / stage / "key").exists():
        running.process.join(0.005)
    running.process.join(seconds)
    if running.process.exitcode is None:
        os.kill(running.process.pid, signal_number)
    return running.end()


@pytest.mark.slow
def test_kills_at_any_moment_change_nothing(tiny, fastdraft):
    started, keys = time.monotonic(), [*LONG, *NOT_VERIFIED]
    assert fastdraft("run", "recipe.yaml", *keys, "--folder", "runs/calm").code == 0
    fraction = (time.monotonic() - started) / len(KILLED)
    calm, killed, rng = tiny / "runs/calm", tiny / RUN, random.Random(29)
    codes = [stop(fastdraft, killed, keys, stage, rng.uniform(0, fraction), signal.SIGKILL).code for stage in KILLED]
    assert set(codes) <= {0, -signal.SIGKILL}, [running.err.read_text() for running in fastdraft.started]
    assert codes.count(-signal.SIGKILL) >= 6
    ended = fastdraft("run", "recipe.yaml", *keys)
    assert ended.code == 0, ended.err
    assert cards(killed) == cards(calm)
    assert metrics(killed) == metrics(calm)
    for phase in ("pretrain", "continue", "align"):
        weights = Path(phase) / "model/model.safetensors"
        assert (killed / weights).read_bytes() == (calm / weights).read_bytes()
    assert [*killed.rglob("*.fastdraft-part"), *killed.rglob("*.fastdraft-old")] == []
    assert not (killed / "stale").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "change"),
    [("tokenize", "corpus.text.held_out_fraction=0.25"), ("synthesize", "synthesize.max_prompt_tokens=6")],
)
def test_a_kill_and_a_changed_key_and_back_end_as_a_calm_run(finished, tiny, fastdraft, stage, change):
    keys = ["--until", stage]
    assert stop(fastdraft, tiny / RUN, keys, stage, 0.03, signal.SIGKILL).code in (0, -signal.SIGKILL)
    other = fastdraft("run", "recipe.yaml", change, *keys)
    assert other.code == 0, other.err
    ended = fastdraft("run", "recipe.yaml", *keys)
    assert ended.code == 0, ended.err
    calm = cards(finished / RUN)
    assert cards(tiny / RUN) == {name: calm[name] for name in NAMES[: NAMES.index(stage) + 1]}
    assert list((tiny / RUN / "stale").glob(f"{stage}-*"))
    assert [*(tiny / RUN).rglob("*.fastdraft-part"), *(tiny / RUN).glob("*/*.attempts")] == []


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["tokenize", "pretrain", "synthesize", "evaluate"])
def test_ctrl_c_stops_and_the_same_command_goes_on(tiny, fastdraft, stage):
    run, keys = tiny / RUN, [*LONG, *([] if stage == "evaluate" else NOT_VERIFIED)]
    ended = stop(fastdraft, run, keys, stage, 0.05, signal.SIGINT)
    assert (ended.code, ended.out) == (130, ""), ended.err
    assert ended.err.splitlines()[-1] == "stopped: the same command goes on from the last checkpoint"
    assert "Traceback" not in ended.err
    assert commands(run)[-1]["outcome"] == "interrupted"
    assert not (run / stage / "card.json").exists()
    ended = fastdraft("run", "recipe.yaml", *keys)
    assert ended.code == 0, ended.err
    assert ran(commands(run)[-1]) == NAMES[NAMES.index(stage) :]
