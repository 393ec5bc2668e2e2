"""The command line: mistakes exit 2 with a `do:` line and lose nothing; only results go to stdout."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fastdraft.system.files import locked

RUN = "runs/tiny"
STAGES = ["target", "tokenize", "validation", "pretrain", "continue", "synthesize", "align", "evaluate"]


def check_refused(ended, *parts, code=2):
    """An error of FastDraft: exit code, these parts, a `do:` line, no traceback, and nothing on stdout."""
    assert (ended.code, ended.out) == (code, ""), ended.err
    assert "Traceback" not in ended.err
    error = ended.err[re.search(r"^(error|[A-Z]\w+): ", ended.err, re.MULTILINE).start() :]
    assert re.search(r"^  do: \S", error, re.MULTILINE), error
    for part in parts:
        assert part in error


def check_all_done(ended, folder):
    assert ended.code == 0, ended.err
    assert set(folder.iterdir()) >= {folder / name for name in STAGES}
    assert all((folder / name / "card.json").is_file() for name in STAGES)


def cards(folder):
    """The cards of the stages, without their costs."""
    contents = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/card.json")}
    return {name: {key: value for key, value in card.items() if key != "cost"} for name, card in contents.items()}


# Recipes.


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("pretrain.trian_tokens=500", ["pretrain.trian_tokens: no such key", "pretrain.train_tokens", "command line"]),
        ("pretrain.train_tokens=many", ["pretrain.train_tokens: found many, wanted a whole number"]),
        ("train_tokens", ["found `train_tokens`, wanted key=value"]),
        ("align.mix={nothing: 1.0}", ["align.mix names nothing", "rows, synthetic, text"]),
        ("evaluate.tasks=[]", ["evaluate.tasks", "at least one entry"]),
        ("evaluate.temperatures=[-1.0]", ["evaluate.temperatures", "-1.0"]),
        ("synthesize.temperatures={-1.0: 1.0}", ["synthesize.temperatures", "-1.0"]),
        ("corpus.rows.held_out_fraction=0", ["evaluate.tasks names rows, but held_out_fraction 0"]),
        ("device=warp", ["device: found warp", "device=auto"]),
        ("device=hpu", ["device: found hpu", "device=auto"]),
    ],
)
def test_a_bad_key_stops_before_anything_is_made(tiny, fastdraft, override, parts):
    check_refused(fastdraft("run", "recipe.yaml", override), *parts)
    assert not (tiny / "runs").exists()


def test_a_recipe_with_nothing_to_evaluate(tiny, fastdraft):
    ended = fastdraft("recipe", "validate", "recipe.yaml", "pretrain=null", "continue=null", "align=null")
    check_refused(ended, "evaluate has no draft to measure")


def test_a_missing_recipe(tiny, fastdraft):
    check_refused(fastdraft("run", "recipes.yaml"), "recipes.yaml: no such file", "recipe.yaml")


# Targets.


def without_tokenizer(target):
    for path in target.glob("tokenizer*"):
        path.unlink()


def with_pickled_weights_alone(target):
    (target / "model.safetensors").rename(target / "pytorch_model.bin")


def with_too_few_rows(target):
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))


def empty(target):
    for path in target.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (empty, ["no config.json in target"]),
        (without_tokenizer, ["tokenizer", " in target", "tokenizer.json"]),
        (with_pickled_weights_alone, ["pytorch_model.bin", "pickled", "allow_pickle"]),
        (with_too_few_rows, ["307 tokens", "300 rows"]),
    ],
)
def test_a_target_that_cannot_be_used(tiny, fastdraft, spoil, parts):
    spoil(tiny / "target")
    check_refused(fastdraft("run", "recipe.yaml"), *parts)
    assert json.loads((tiny / RUN / "manifest.json").read_text())["commands"][0]["outcome"] != "finished"


def test_a_missing_target(tiny, fastdraft):
    check_refused(fastdraft("run", "recipe.yaml", "target.path=./nowhere"), "no config.json in nowhere")


# Corpora.


def test_an_empty_corpus(tiny, fastdraft):
    (tiny / "empty").mkdir()
    check_refused(fastdraft("run", "recipe.yaml", "corpus.text.path=empty"), "/empty", "`path`")
    (tiny / "empty" / "blank.txt").write_text("\n\n")
    check_refused(fastdraft("run", "recipe.yaml", "corpus.text.path=empty"), "/empty) ")


def test_broken_rows(tiny, fastdraft):
    with (tiny / "rows.jsonl").open("a") as file:
        file.write('{"text": "cut\n{"text": "short\n')
    check_refused(fastdraft("run", "recipe.yaml"), "3.2% of the 62 rows", "rows.jsonl:61", "at most 1 %")


# Run folders.


def test_a_truncated_shard(tiny, fastdraft):
    assert fastdraft("run", "recipe.yaml", "--until", "tokenize").code == 0
    (shard,) = (tiny / RUN / "tokenize/text/train/shards").glob("*.ds")
    shard.write_bytes(shard.read_bytes()[:-2])
    check_refused(fastdraft("run", "recipe.yaml", "--until", "pretrain"), shard.name, "its card says")
    assert not (tiny / RUN / "pretrain/card.json").exists()
    (tiny / RUN / "tokenize").rename(tiny / "damaged")  # as the error advises
    assert fastdraft("run", "recipe.yaml", "--until", "pretrain").code == 0


def test_a_card_of_another_version_is_ignored(tiny, fastdraft):
    assert fastdraft("run", "recipe.yaml", "--until", "pretrain").code == 0
    before, card = cards(tiny / RUN), tiny / RUN / "tokenize" / "card.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"version": 99}))
    check_refused(fastdraft("pretrain", "recipe.yaml"), "pretrain needs tokenize", "--until tokenize")
    assert '"tokenize": "begun"' in fastdraft("status", RUN, "--json").out
    ended = fastdraft("run", "recipe.yaml", "--until", "pretrain")
    assert (ended.code, cards(tiny / RUN)) == (0, before)
    assert re.findall(r"^\w+: done", ended.err, re.MULTILINE) == ["tokenize: done"]


def test_a_card_with_an_unknown_key(tiny, fastdraft):
    assert fastdraft("run", "recipe.yaml", "--until", "tokenize").code == 0
    card = tiny / RUN / "target" / "card.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"horns": 2}))
    check_refused(fastdraft("run", "recipe.yaml", "--until", "tokenize"), f"{RUN}/target/card.json", "horns")


def test_two_commands_in_one_folder(tiny, fastdraft):
    with locked(tiny / RUN):
        check_refused(fastdraft("run", "recipe.yaml"), f"{RUN} is in use by process", "--folder")
        assert fastdraft("run", "recipe.yaml", "--until", "target", "--folder", "runs/other").code == 0
    assert fastdraft("run", "recipe.yaml", "--until", "target").code == 0


def test_a_run_folder_that_is_a_file(tiny, fastdraft):
    (tiny / "file").write_text("kept")
    for folder in ("file", "file/below"):
        check_refused(fastdraft("run", "recipe.yaml", "--folder", folder), f"{folder} is not a writable folder")
    assert (tiny / "file").read_text() == "kept"


def test_a_nonfinite_loss(tiny, fastdraft):
    keys = ["continue.learning_rate=1e30", "continue.muon_learning_rate=1e30"]
    ended = fastdraft("run", "recipe.yaml", *keys)
    check_refused(ended, "NonFiniteLoss: continue: ", "lower the learning rates", code=1)
    assert json.loads(fastdraft("status", RUN, "--json").out) == dict.fromkeys(STAGES, "not begun") | {
        "target": "done",
        "tokenize": "done",
        "validation": "done",
        "pretrain": "done",
        "continue": "begun",
    }
    outcome = json.loads((tiny / RUN / "manifest.json").read_text())["commands"][0]["outcome"]
    assert outcome.startswith("NonFiniteLoss: continue: ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kilobytes", "after", "where"),
    [
        (1, None, "resolved.yaml"),
        (7, None, "tokenize"),
        (12, None, "pretrain/checkpoint-00000011"),
        (45, None, "pretrain/checkpoint-00000011"),
        (12, "align", "evaluate/marked.json"),
    ],
)
def test_a_full_disk(tiny, fastdraft, kilobytes, after, where):
    command = ["run", "recipe.yaml", "evaluate.verify_prompts=0"]  # nothing is written while the verification decodes
    if after:
        assert fastdraft(*command, "--until", after).code == 0
    ended = fastdraft(*command, file_bytes=kilobytes * 1000)
    check_refused(ended, "no space left while writing ", f"{RUN}/{where}", "then run the same command again")
    before = {name: path.stat().st_mtime_ns for name in STAGES if (path := tiny / RUN / name / "card.json").exists()}
    check_all_done(fastdraft(*command), tiny / RUN)
    assert before == {name: (tiny / RUN / name / "card.json").stat().st_mtime_ns for name in before}
    assert list((tiny / RUN).rglob("*.fastdraft-part")) == []


@pytest.mark.slow
def test_a_truncated_checkpoint(tiny, fastdraft):
    keys = ["pretrain.train_tokens=40_000", "pretrain.checkpoint_seconds=0.2"]
    folder = tiny / RUN / "pretrain"
    running = fastdraft.start("run", "recipe.yaml", *keys, "--until", "pretrain")
    while len(found := sorted(folder.glob("checkpoint-*[0-9]"))) < 2:
        assert running.process.exitcode is None, "the phase ended before its second checkpoint"
        running.process.join(0.01)
    running.process.kill()
    assert running.end().code == -9
    weights = found[-1] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    ended = fastdraft("run", "recipe.yaml", *keys, "--until", "pretrain")
    assert ended.code == 0, ended.err
    message = f"{found[-1].relative_to(tiny)} is damaged"
    assert message in ended.err
    assert message in str(json.loads((tiny / RUN / "manifest.json").read_text())["commands"][-1]["notes"])
    assert list(folder.glob("checkpoint-*")) == []

    running = fastdraft.start("run", "recipe.yaml", *keys, "--until", "pretrain", "--folder", "runs/plain")
    assert running.end().code == 0
    assert cards(tiny / "runs/plain") == cards(tiny / RUN)


# What is printed where.


def test_the_version(fastdraft):
    ended = fastdraft("--version")
    assert (ended.code, ended.err) == (0, "")
    assert re.fullmatch(r"fastdraft \d+\.\d+\.\d+\n", ended.out)


def test_the_recipe_commands(tiny, fastdraft):
    shown = fastdraft("recipe", "show", "recipe.yaml", "seed=23")
    assert (shown.code, shown.err) == (0, "")
    assert yaml.safe_load(shown.out)["seed"] == 23
    assert "seed: 23  # command line\n" in shown.out
    valid = fastdraft("recipe", "validate", "recipe.yaml")
    assert re.fullmatch(r"recipe\.yaml: valid, [0-9a-f]{16}\n", valid.out)
    assert "pretrain" in json.loads(fastdraft("recipe", "schema").out)["properties"]
    assert fastdraft("recipe", "schema", "--markdown").out.startswith("# Every key of a recipe\n")


def test_the_status_of_a_missing_run(tiny, fastdraft):
    check_refused(fastdraft("status", RUN), f"no run at {RUN}")


def test_stages_in_json_and_their_status(tiny, fastdraft):
    part_way = fastdraft("run", "recipe.yaml", "--until", "tokenize", "--json")
    assert part_way.code == 0, part_way.err
    assert list(json.loads(part_way.out)) == STAGES[:2]
    assert "\x1b" not in part_way.err
    assert re.search(r"^tokenize: done in [0-9.]+ s$", part_way.err, re.MULTILINE)
    plain = fastdraft("status", RUN).out.splitlines()
    assert plain == [f"{name:12} {'done' if name in STAGES[:2] else 'not begun'}" for name in STAGES]
    check_refused(fastdraft("align", "recipe.yaml"), "align needs validation, pretrain,", RUN, "--until synthesize")
    assert fastdraft("validation", "recipe.yaml").code == 0
    alone = fastdraft("pretrain", "recipe.yaml", "--json")
    assert list(json.loads(alone.out)) == STAGES[:4]
    # The progress bar prints plain lines, the last one at the end.
    assert re.search(r"^pretrain: [\d,]+ of 1,500 tokens, [\d,]+ tokens/s, \d+ s left$", alone.err, re.MULTILINE)
    assert "\x1b" not in alone.err
    assert fastdraft("status", RUN, "--json").out.count('"done"') == 4


@pytest.mark.parametrize(
    "arguments", [["run", "recipe.yaml", "--until", "bench"], ["align", "recipe.yaml", "align=null"]]
)
def test_a_stage_that_the_recipe_does_not_have(tiny, fastdraft, arguments):
    check_refused(fastdraft(*arguments), "no stage `", "target, tokenize")


@pytest.mark.parametrize("arguments", [["walk"], ["run"], ["run", "recipe.yaml", "--untill", "align"]])
def test_an_unknown_command_or_option(tiny, fastdraft, arguments):
    ended = fastdraft(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert "Traceback" not in ended.err


def test_the_tables_are_printed_as_plain_text(finished_run, fastdraft):
    ended = fastdraft("run", "recipe.yaml")
    assert (ended.code, ended.err) == (0, "")
    for part in (
        "Acceptance rate at gamma 3",
        "The draft after align",
        "Verification",
        "Cost",
        f"{RUN}/align/model",
    ):
        assert part in ended.out
    assert "\x1b" not in ended.out


def test_the_installed_command(tiny):
    """The exit code and the streams of the installed program."""
    command = Path(sys.executable).with_name("fastdraft")
    assert command.is_file(), "do: make setup-dev"
    ended = subprocess.run([command, "recipe", "validate", "gone.yaml"], cwd=tiny, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: gone.yaml: no such file")
    assert ended.stderr.splitlines()[-1].startswith("  do: ")


def test_check_refused_sees_a_traceback():
    class Bad:
        code, out, err = 2, "", "Traceback (most recent call last):\nValueError: 3\n  do: nothing"

    with pytest.raises(AssertionError):
        check_refused(Bad)
    Bad.err = "error: what, and no more"
    with pytest.raises(AssertionError):
        check_refused(Bad)
