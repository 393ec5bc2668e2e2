"""`bench` from its arguments to the model card; every mistake says what, where and what to do, and exits 2."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from fastdraft.benchmark.engines import ENGINES
from fastdraft.cli import choices
from fastdraft.config import TargetPart
from fastdraft.config.resolve import resolve, resolved_yaml
from fastdraft.exporters import collect_evidence, model_card_sections
from fastdraft.models import draft_origin
from fastdraft.results.bench import BenchResult
from fastdraft.system.errors import CardError

DRAFT = "runs/tiny/align/model"
QUICK = ("--engine", "transformers", "--gammas", "1,3", "--prompts", 2, "--tokens", 11, "--repeats", 2)


@pytest.fixture
def stages_of(finished_run, monkeypatch):
    """A finished tiny pipeline, as `fastdraft run` leaves it."""
    monkeypatch.chdir(finished_run)
    (finished_run / "runs/tiny/resolved.yaml").write_text(resolved_yaml(resolve(Path("recipe.yaml"))))
    return finished_run


def refused(ended, *said, code=2):
    assert (ended.code, ended.out) == (code, ""), ended.err
    assert "Traceback" not in ended.err
    assert "\n  do: " in ended.err
    for text in said:
        assert text in ended.err


def known(folder):
    origin = draft_origin.origin_of(folder / DRAFT)
    part = TargetPart(path=str(folder / "target"))
    return collect_evidence.evidence(origin, part, draft_origin.target_card(origin, part))


@pytest.mark.slow
def test_a_pair_from_the_command_to_its_model_card(stages_of, fastdraft):
    ended = fastdraft("bench", "target", DRAFT, *QUICK, "--save", "--json")
    assert ended.code == 0, ended.err
    result = BenchResult.model_validate_json(ended.out)
    assert f"saved in runs/tiny/bench/bench-transformers-cpu-{result.target.weights}.json" in ended.err
    assert list(result.prompts.items()) == [("text", 2), ("rows", 2)]
    assert result.equality.equal + len(result.equality.near_ties) == result.equality.texts == 2 * 2 * 3
    assert [(cell.task, cell.temperature) for cell in result.cells] == [
        (task, at) for at in (0.0, 0.6) for task in ("text", "rows")
    ]
    for cell in result.cells:
        assert cell.none.speedup.value == 1
        for arm in cell.drafts:
            assert arm.drafted > 0
            assert arm.predicted.block_efficiency >= 1
            if cell.temperature == 0:  # the end of a text cuts off what transformers proposes
                assert arm.block_efficiency == pytest.approx(arm.predicted.block_efficiency, rel=0.01)
    (file,) = (stages_of / "runs" / "tiny" / "bench").iterdir()
    assert json.loads(file.read_text()) == json.loads(result.model_dump_json())
    evidence = known(stages_of)
    assert len(evidence.speeds) == 4
    assert "transformers 5" in evidence.speeds[0].where
    card = "\n".join([*model_card_sections.speed(evidence), *model_card_sections.gamma(evidence)])
    assert "wall-clock speed-up" in card
    assert result.advice.lines[0] in card
    file.write_text("{}")
    with pytest.raises(CardError, match="is not a valid benchmark:(.|\n)*  do: "):
        known(stages_of)


@pytest.mark.slow
def test_a_bench_of_another_draft_is_left_out(stages_of, fastdraft):
    ended = fastdraft("bench", "target", "runs/tiny/pretrain/model", *QUICK, "--save", "--temperature", 0)
    assert ended.code == 0, ended.err
    assert "tokens per forward" in ended.out
    assert known(stages_of).speeds == []


@pytest.mark.slow
def test_prompts_of_a_file(stages_of, fastdraft):
    """A prompt that leaves no room in the context is left out and reported."""
    rows = ["river stone", "river stone walks " * 50, "yellow wolf walks"]
    (stages_of / "own.jsonl").write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows))
    shutil.copytree(stages_of / DRAFT, stages_of / "bare")
    refused(fastdraft("bench", "target", "bare", *QUICK), "bare does not belong to a run", "add --tasks")
    ended = fastdraft("bench", "target", "bare", *QUICK, "--tasks", "own.jsonl", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["prompts"] == {"own.jsonl": 2}
    assert "own.jsonl: 1 prompts of more than 86 tokens; left out, first own.jsonl:2" in ended.err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--engine", "vllm"], ["no engine `vllm`", "openvino, transformers, llama.cpp"]),
        (["--engine", "transformers", "--device", "warp"], ["transformers finds no device `warp` here", "cpu"]),
        (["--engine", "transformers", "--weights", "int8"], ["transformers has no weights `int8`", "fp32, bf16, fp16"]),
        (["--engine", "transformers", "--gammas", "0-3"], ["--gammas: found 0-3"]),
        (["--engine", "transformers", "--tokens", 91], ["exceed the context of 97 tokens", "lower --tokens"]),
        (["--engine", "transformers", "--tokens", 99, "--tasks", "own.jsonl"], ["of at most 0 tokens", "--tokens"]),
        (["--engine", "transformers", "--tasks", "humanevil"], ["no task `humanevil`; did you mean `humaneval`?"]),
    ],
)
def test_a_mistake_stops_before_any_work(stages_of, fastdraft, more, said):
    (stages_of / "own.jsonl").write_text('{"prompt": "river stone"}\n')
    refused(fastdraft("bench", "target", DRAFT, *more), *said)


def test_a_draft_that_does_not_fit(stages_of, fastdraft):
    folder = stages_of / "wide"
    shutil.copytree(stages_of / DRAFT, folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.resize_token_embeddings(320)
    model.save_pretrained(folder)
    refused(
        fastdraft("bench", "target", "wide", *QUICK, "--tasks", "own.jsonl"),
        "wide is not a draft for target",
        "fastdraft check target wide --repair",
    )


def test_the_command_knows_the_engines():
    assert {name: engine.weights for name, engine in ENGINES.items()} == choices.ENGINES
