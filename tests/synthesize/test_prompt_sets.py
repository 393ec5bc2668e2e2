"""Instructions: chat templates applied once, broken rows counted, leaks found; and instructions of the target's own."""

import json
from collections import Counter

import numpy as np
import pytest

from fastdraft.config import PromptSetPart
from fastdraft.synthesize.completions import Completion
from fastdraft.synthesize.leaks import Leaks
from fastdraft.synthesize.magpie import SAMPLING, instruction_requests, magpie_prompts, user_turn
from fastdraft.synthesize.prompt_sets import instruction_prompts
from fastdraft.system.errors import CorpusError, TargetError


@pytest.fixture(scope="module")
def tokenizer(speller):
    return speller()


@pytest.fixture
def read(tokenizer, tmp_path):
    """The prompts of rows as texts, and why others are none."""

    def prompts(rows, count=99, longest=50, spell=tokenizer, **part):
        file = tmp_path / "a.jsonl"
        file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        refused: Counter[str] = Counter()
        named = PromptSetPart(source="jsonl", path=str(file), **part)
        found = list(instruction_prompts(named, spell, count, longest, refused))
        return [spell.decode(prompt) for prompt in found], refused

    return prompts


CHATTED = [{"role": "user", "content": "hi"}, {"role": "user", "content": "ho"}]


def test_texts_are_prompts_as_they_are_and_messages_go_through_the_template_once(read):
    assert read([{"prompt": "hi"}])[0] == ["hi"]
    assert read([{"prompt": CHATTED}])[0] == ["<s><user>hi<t><user>ho<t><a>"]
    assert read([{"prompt": "hi"}], chat=True, system="be")[0] == ["<s><system>be<t><user>hi<t><a>"]
    assert read([{"q": "hi", "c": "there"}, {"q": "ho"}], field="q", context_field="c")[0] == ["hi\n\nthere", "ho"]


def test_messages_without_a_template_stop(read, speller):
    with pytest.raises(TargetError, match=r"no chat template[^\0]*\n  do: put chat_template.jinja"):
        read([{"prompt": CHATTED}], spell=speller(None))


def test_what_gives_no_prompt_is_counted(read):
    rows = [{"prompt": f"question {i}"} for i in range(307)]
    found, refused = read([*rows, "{", {"other": 1}, {"prompt": "long" * 20}, rows[0]], count=999)
    assert len(found) == 307
    assert refused == Counter(
        {
            "rows that are not JSON": 1,
            "rows without a prompt in `prompt`": 1,
            "prompts of more than 50 tokens": 1,
            "prompts that were there before": 1,
        }
    )


def test_more_than_one_in_a_hundred_broken_stops(read):
    left_out = r"1 of 8 rows give no prompt; left out are 1 rows that are not JSON[^\0]*\n  do: fix"
    with pytest.raises(CorpusError, match=left_out):
        read([*({"prompt": f"question {i}"} for i in range(7)), "{"])
    with pytest.raises(CorpusError, match=r"3 of 3 rows give no prompt"):
        read([{"prompt": 1}, {"prompt": []}, {"prompt": [{"role": "assistant", "content": "hi"}]}])


def test_a_prompt_that_stands_in_an_evaluation_text_is_a_leak():
    dice = np.random.default_rng(3)
    text, other = dice.integers(0, 999, 97), dice.integers(0, 999, 97)
    leaks = Leaks([text], 13)
    assert text[11:50] in leaks
    assert np.concatenate([other[:10], text[:40]]) in leaks
    assert np.concatenate([other[:60], text[:30]]) not in leaks, "a quarter"
    assert other not in leaks
    assert text[:12] not in leaks, "too short to say"
    assert text not in Leaks([], 13)


def test_a_leak_is_a_prompt_of_whose_runs_half_are_known():
    dice = np.random.default_rng(5)
    texts, common = [[dice.integers(0, 3, 29) for _ in range(7)] for _ in range(2)]
    leaks, n = Leaks(texts, 5, common), 5

    def runs(of: list[np.ndarray]) -> set[tuple[int, ...]]:
        return {tuple(text[i : i + n].tolist()) for text in of for i in range(len(text) - n + 1)}

    known, suppressed_logs, found = runs(texts), runs(common), Counter[bool]()
    for length in dice.integers(1, 23, 211):
        prompt = dice.integers(0, 3, length)
        own = [run for i in range(length - n + 1) if (run := tuple(prompt[i : i + n].tolist())) not in suppressed_logs]
        leaked = bool(own) and sum(run in known for run in own) / len(own) >= 0.5
        assert (prompt in leaks) == leaked
        found[leaked] += 1
    assert min(found.values()) > 50


def test_the_words_of_a_chat_template_make_no_leak():
    opening, asked, other = np.arange(100, 130), np.arange(20), np.arange(40, 60)
    chats = [np.concatenate([opening, words]) for words in (asked, other)]
    assert chats[1] in Leaks([chats[0]], 5), "what the template says is most of a short prompt"
    leaks = Leaks([chats[0]], 5, [opening])
    assert chats[0] in leaks
    assert chats[1] not in leaks
    assert chats[0] in Leaks([asked], 5, [opening]), "half of its own words stand there without the template"


def test_the_turn_of_a_user_is_what_the_template_puts_around(tokenizer):
    turn = user_turn(tokenizer)
    assert (tokenizer.decode(turn.opening), tokenizer.decode(turn.closing)) == ("<s><user>", "<t><a>")
    assert turn.end == tokenizer.convert_tokens_to_ids("<t>")
    requests = list(instruction_requests(turn, 3))
    assert [(request.index, request.sampling) for request in requests] == [(0, SAMPLING), (1, SAMPLING), (2, SAMPLING)]


@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m['content'] }}{% endfor %}"])
def test_a_template_that_cannot_be_taken_apart_stops(template, speller):
    with pytest.raises(TargetError, match=r"\n  do: leave `magpie` out of synthesize.mix"):
        user_turn(speller(template))


def test_instructions_become_prompts_each_once(tokenizer):
    turn, refused = user_turn(tokenizer), Counter()

    def row(text):
        tokens = np.array(tokenizer(text).input_ids)
        return Completion("0", turn.opening, tokens, np.zeros(len(tokens), np.float32), SAMPLING)

    written = [row(text) for text in ("why?<t>", "no end", "a<t>", "why?<t>", "how?<t>", "when?<t>")]
    found = [tokenizer.decode(prompt) for prompt in magpie_prompts(turn, written, 2, refused)]
    assert found == ["<s><user>why?<t><a>", "<s><user>how?<t><a>"]
    assert refused == Counter(
        {
            "instructions without an end": 1,
            "instructions of fewer than 3 tokens": 1,
            "instructions that were there before": 1,
        }
    )
