"""The stage as users run it: its card and quality.json, with each kind of prompts and engines."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from fastdraft.config import TargetPart
from fastdraft.config.resolve import resolve
from fastdraft.models.pretrained import open_model, open_tokenizer
from fastdraft.models.run_context import RunContext
from fastdraft.pipeline.synthesize import make_completions
from fastdraft.report.terminal_quality import quality_table
from fastdraft.synthesize.completion_store import CompletionStore
from fastdraft.synthesize.completions_card import CompletionsCard
from fastdraft.synthesize.engines import ENGINES
from fastdraft.system.cards import read_card

RUN = "runs/tiny"
CHAT = "{% for m in messages %}river{{ m['content'] }}stone{% endfor %}{% if add_generation_prompt %} wolf{% endif %}"


@pytest.fixture
def synthesized(tiny: Path, fastdraft: Any):
    """Run the pipeline up to the stage with this part `synthesize`; its card and completions, or the error."""

    def run(part: dict[str, Any], code: int = 0) -> Any:
        override = f"synthesize={json.dumps(part)}"
        result = fastdraft(
            "run", "recipe.yaml", override, "align=null", "evaluate=null", "pretrain=null", "continue=null"
        )
        assert result.code == code, result.err
        folder = tiny / RUN / "synthesize"
        if code:
            return result.err
        card = json.loads((folder / "card.json").read_text())
        assert json.loads((folder / "quality.json").read_text()) == card["quality"]
        return card, CompletionStore(folder / "completions").read()

    return run


def test_the_report_of_the_pipeline(finished):
    card = json.loads((finished / RUN / "synthesize" / "card.json").read_text())
    report = json.loads((finished / RUN / "synthesize" / "quality.json").read_text())
    assert report == card["quality"]
    assert (report["asked"], report["written"], report["refused"]) == (24, 24, {})
    assert report["trained_fraction"] == card["tokens"] / (card["tokens"] + 24 * 7)
    assert (card["engine"], card["ids"]) == ("transformers", "as the engine produced them")
    assert sorted(report["entropy_nats"]) == ["0.6", "0.8", "1"]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """When the engine `transformers` was opened, and when it had returned everything."""
    events, open_engine = [], ENGINES["transformers"]

    def open_and_record(setup: Any) -> Any:
        engine = open_engine(setup)
        original = engine.shards

        def shards(*arguments: Any) -> Any:
            yield from original(*arguments)
            events.append("done")

        engine.shards = shards
        events.append("opened")
        return engine

    monkeypatch.setitem(ENGINES, "transformers", open_and_record)
    return events


@pytest.mark.slow
def test_prompt_sets_magpie_and_several_samples(tiny, synthesized, events, monkeypatch):
    (tiny / "target" / "chat_template.jinja").write_text(CHAT)
    rows = [{"prompt": f"{word} seven walks house"} for word in ("under", "never", "cloud", "song", "yellow")]
    held_out = (tiny / "text" / "0.txt").read_text().split("\n---\n")
    rows += [{"prompt": document[:120]} for document in held_out]
    (tiny / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    part = {
        "mix": {"text": 1, "questions": 2, "magpie": 1},
        "prompt_sets": {"questions": {"source": "jsonl", "path": "questions.jsonl", "chat": True}},
        "prompts": 40,
        "max_prompt_tokens": 7,
        "max_new_tokens": 11,
        "max_instruction_tokens": 80,
        "samples_per_prompt": 2,
        "temperatures": {0.0: 1, 1.0: 1},
        "leak_tokens": 5,
        "batch_size": 5,
    }
    card, completions = synthesized(part)
    monkeypatch.chdir(tiny)
    recipe = resolve(Path(RUN) / "resolved.yaml").recipe
    make_completions(RunContext(recipe, Path(RUN), torch.device("cpu")), tiny / "again")
    assert events == 2 * ["opened", "done"], "a device may not hold the target twice"
    report = card["quality"]
    assert report["written"] == report["asked"] == len(completions)
    assert {row.index for row in completions if row.sampling.greedy} == {0}
    sampled = [row for row in completions if not row.sampling.greedy]
    assert len({(row.prompt.tobytes(), row.index) for row in sampled}) == len(sampled)
    assert {row.index for row in sampled} == {0, 1}
    assert report["prompts_left_out"]["prompts that stand in evaluation texts"] >= 1
    assert 0 < report["trained_fraction"] < 1


@pytest.mark.slow
def test_the_progress_bar_counts_every_completion(tiny, fastdraft):
    part = {"mix": {"text": 1}, "prompts": 20, "max_prompt_tokens": 7, "max_new_tokens": 3, "samples_per_prompt": 3}
    part |= {"temperatures": {0.0: 1, 0.7: 2, 1.0: 1}, "top_logprobs": 11}
    rest = ("align=null", "evaluate=null", "pretrain=null", "continue=null")
    err = fastdraft("run", "recipe.yaml", f"synthesize={json.dumps(part)}", *rest).err
    assert "synthesize: 50 of 50 completions" in err, "5 greedy, 15 x 3"
    card = json.loads((tiny / RUN / "synthesize" / "card.json").read_text())
    assert card["completions"] == 50


@pytest.mark.slow
def test_recorded_answers_need_no_weights(tiny, synthesized):
    (tiny / "target" / "model.safetensors").unlink()
    (tiny / "logs.txt").write_text("".join(f"river {i}<start> stone {i} walks<end>\n" for i in range(31)))
    part = {"engine": "recorded", "recorded": {"path": "logs.txt"}, "mix": {"recorded": 1}, "prompts": 29}
    part |= {"max_prompt_tokens": 7, "max_new_tokens": 23}
    card, completions = synthesized(part | {"temperatures": {1.0: 1}})
    assert (card["completions"], len(completions)) == (29, 29)
    assert card["log_probabilities"] == "unknown for 29 rows"
    assert (card["quality"]["asked"], card["quality"]["written"]) == (29, 29)
    assert card["ids"] == "retokenized text, which decodes to the same text"


@pytest.mark.slow
def test_completions_of_a_server_are_rescored(tiny, synthesized, serving):
    with torch.random.fork_rng():
        model = open_model(TargetPart(path=str(tiny / "target")), torch.device("cpu"))
    server = serving.Serving(model)
    part = {
        "engine": "server",
        "server": {"urls": [server.url], "model": "tiny", "concurrent_requests": 4},
        **{"mix": {"text": 1}, "prompts": 23, "max_prompt_tokens": 7, "max_new_tokens": 11},
    }
    card, completions = synthesized(part)
    server.stop()
    assert len(completions) == 23
    assert all(len(row.logp) == len(row.tokens) for row in completions)
    assert "rescored" in card["log_probabilities"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"engine": "server"}, "engine is server; give synthesize.server"),
        ({"engine": "recorded"}, "engine is recorded; give synthesize.recorded"),
        ({"recorded": {"path": "x"}, "mix": {"recorded": 1}}, "engine recorded and mix"),
        ({"engine": "openvino", "ray_workers": 2}, "ray_workers is for engine transformers, not openvino"),
        ({"mix": {"news": 1}}, "synthesize.mix names news"),
        ({"mix": {"magpie": 1}, "max_instruction_tokens": 5, "max_new_tokens": 7}, "would have 2 tokens at most: a"),
        ({"top_k": 312, "max_prompt_tokens": 7, "max_new_tokens": 7}, "synthesize.top_k is 312, the vocabulary of"),
    ],
)
def test_contradicting_settings_are_errors_before_anything_runs(tiny, synthesized, part, message):
    (tiny / "target" / "chat_template.jinja").write_text(CHAT)
    assert message in synthesized({"mix": {"text": 1}, "prompts": 3} | part, code=2)


@pytest.mark.slow
def test_a_context_too_short_is_an_error_before_a_server_is_used(synthesized):
    """Also if the target's card was made earlier, by a recipe that needed less."""
    part = {"mix": {"text": 1}, "prompts": 3, "max_prompt_tokens": 7, "max_new_tokens": 3, "batch_size": 5}
    synthesized(part)
    nobody = {"engine": "server", "server": {"urls": ["http://127.0.0.1:9/v1"], "model": "tiny"}}
    err = synthesized(part | nobody | {"max_new_tokens": 91}, code=2)
    assert "max_new_tokens is 98, the context of target holds 97 tokens\n  do: lower" in err


def test_the_table_shows_the_quality_report(finished):
    card = read_card(finished / RUN / "synthesize", CompletionsCard)
    assert card.quality is not None
    report = card.quality.model_copy(update={"refused": {"HTTP 400": 5}})
    screen = Console(width=150, file=io.StringIO())
    screen.print(quality_table(card.engine, card.log_probabilities, report))
    text = screen.file.getvalue()
    for part in (
        "24 of 24 requested",
        "rejected: HTTP 400",
        "under the distribution sampled from",
        "trained on",
        "at T = 0.6",
    ):
        assert part in text


def test_top_tokens_are_announced_stored_and_trained_on(tiny, fastdraft):
    keys = [
        "synthesize.top_logprobs=5",
        "align.teacher_logits=offline",
        "evaluate=null",
        "pretrain=null",
        "continue=null",
    ]
    result = fastdraft("run", "recipe.yaml", "align.objective={forward_kl: 0.5, total_variation: 0.5}", *keys)
    assert result.code == 0, result.err
    assert "synthesize: top_logprobs take 20 bytes per token, at most 1.1e-05 GB" in result.err
    for row in CompletionStore(tiny / RUN / "synthesize" / "completions").read():
        assert row.top is not None
        assert row.top.ids.shape == (len(row.tokens), 5)
    assert (tiny / RUN / "align" / "model" / "config.json").is_file()


def test_more_top_tokens_than_the_vocabulary_are_an_error(fastdraft, tiny):
    keys = ["synthesize.top_logprobs=312", "align=null", "evaluate=null", "pretrain=null", "continue=null"]
    result = fastdraft("run", "recipe.yaml", *keys)
    assert result.code == 2
    assert "synthesize.top_logprobs is 312, the vocabulary of target has 311 rows\n  do: lower it" in result.err


def test_prompts_of_evaluation_tasks_are_left_out_of_every_source(tiny, synthesized):
    """The task has half of the documents: windows of those are leaks, windows of the others are not."""
    documents = [text for file in sorted((tiny / "text").iterdir()) for text in file.read_text().split("\n---\n")]
    rows = [{"prompt": document} for document in documents[::2]]
    (tiny / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    part = {"mix": {"text": 1}, "prompts": 20, "max_prompt_tokens": 7, "max_new_tokens": 3, "batch_size": 5}
    card, completions = synthesized(part | {"leak_tokens": 6, "leak_tasks": ["humaneval=questions.jsonl"]})
    left_out = card["quality"]["prompts_left_out"]["prompts that stand in evaluation texts"]
    assert (left_out + len(completions), 2 < left_out < 18) == (20, True)
    tokenizer = open_tokenizer(TargetPart(path=str(tiny / "target")))
    questions = "\n".join(row["prompt"] for row in rows)
    assert not [
        text for row in completions if len(text := tokenizer.decode(row.prompt).strip()) > 30 and text in questions
    ]


def test_a_prompt_of_two_sets_is_used_once_and_a_short_set_is_reported(tiny, fastdraft):
    rows = [json.dumps({"prompt": f"river {number} walks"}) for number in range(11)]
    (tiny / "one.jsonl").write_text("\n".join(rows[:7]))
    (tiny / "two.jsonl").write_text("\n".join(rows[4:]))
    sets = {name: {"source": "jsonl", "path": f"{name}.jsonl"} for name in ("one", "two", "few")}
    sets["few"]["path"] = "one.jsonl"
    part = {"mix": {"one": 7, "two": 13, "few": 0.1}, "prompt_sets": sets, "prompts": 20, "max_new_tokens": 3}
    keys = ["align=null", "evaluate=null", "pretrain=null", "continue=null"]
    result = fastdraft("run", "recipe.yaml", f"synthesize={json.dumps(part | {'temperatures': {1.0: 1}})}", *keys)
    assert result.code == 0, result.err
    assert "synthesize: two has 4 prompts, wanted 13" in result.err
    report = json.loads((tiny / RUN / "synthesize" / "quality.json").read_text())
    assert (report["asked"], report["written"]) == (11, 11)
    assert report["prompts_left_out"] == {"prompts that were there before": 3}


@pytest.mark.slow
def test_instructions_from_a_server_end_with_the_users_turn(tiny, synthesized, serving):
    """Requests contain the end-of-turn token; what a server writes after it is cut."""
    (tiny / "target" / "chat_template.jinja").write_text(CHAT)
    with torch.random.fork_rng():
        model = open_model(TargetPart(path=str(tiny / "target")), torch.device("cpu"))
    end = int(open_tokenizer(TargetPart(path=str(tiny / "target")))("stone", add_special_tokens=False).input_ids[0])
    server = serving.Serving(model, eos=frozenset())
    answer = server.answer
    server.answer = lambda body: with_token(answer(body), end, 5)
    part = {
        "engine": "server",
        "server": {"urls": [server.url], "model": "tiny"},
        **{"mix": {"magpie": 1}, "prompts": 8, "max_new_tokens": 7, "temperatures": {1.0: 1}},
    }
    card, completions = synthesized(part | {"max_instruction_tokens": 80})
    server.stop()
    assert len(completions) == card["quality"]["asked"] == 8
    assert all(end in body["stop_token_ids"] for body in server.bodies[:10])


def with_token(answer: dict[str, Any], token: int, place: int) -> dict[str, Any]:
    """The same answer with another token at one position."""
    ids = answer["choices"][0]["token_ids"]
    ids[place] = token
    return answer


def test_if_all_prompts_are_left_out_the_error_says_why(tiny, synthesized):
    rows = [{"prompt": document} for document in (tiny / "text" / "0.txt").read_text().split("\n---\n")]
    (tiny / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    part = {
        "mix": {"questions": 1},
        "prompt_sets": {"questions": {"source": "jsonl", "path": "questions.jsonl"}},
        "prompts": 3,
    }
    part |= {"max_new_tokens": 3, "leak_tokens": 5, "leak_tasks": ["humaneval=questions.jsonl"]}
    assert " prompts that stand in evaluation texts\n" in synthesized(part, code=2)
