"""Instruction prompts: chat templates applied once, broken records counted, leaks found; Magpie's instructions."""

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
def tokenizer(byte_tokenizer):
    return byte_tokenizer()


@pytest.fixture
def read(tokenizer, tmp_path):
    """The prompts of records as texts, and the number of the others by reason."""

    def prompts(rows, count=99, max_tokens=50, tokenizer=tokenizer, **part):
        file = tmp_path / "a.jsonl"
        file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        refused: Counter[str] = Counter()
        prompt_set = PromptSetPart(source="jsonl", path=str(file), **part)
        found = list(instruction_prompts(prompt_set, tokenizer, count, max_tokens, refused))
        return [tokenizer.decode(prompt) for prompt in found], refused

    return prompts


CHAT = [{"role": "user", "content": "hi"}, {"role": "user", "content": "ho"}]


def test_texts_are_kept_and_messages_go_through_the_template_once(read):
    assert read([{"prompt": "hi"}])[0] == ["hi"]
    assert read([{"prompt": CHAT}])[0] == ["<s><user>hi<t><user>ho<t><a>"]
    assert read([{"prompt": "hi"}], chat=True, system="be")[0] == ["<s><system>be<t><user>hi<t><a>"]
    assert read([{"q": "hi", "c": "there"}, {"q": "ho"}], field="q", context_field="c")[0] == ["hi\n\nthere", "ho"]


def test_messages_without_a_template_are_an_error(read, byte_tokenizer):
    with pytest.raises(TargetError, match=r"no chat template[^\0]*\n  do: .*chat_template.jinja"):
        read([{"prompt": CHAT}], tokenizer=byte_tokenizer(None))


def test_records_without_a_prompt_are_counted(read):
    rows = [{"prompt": f"question {i}"} for i in range(307)]
    prompts, refused = read([*rows, "{", {"other": 1}, {"prompt": "long" * 20}, rows[0]], count=999)
    assert len(prompts) == 307
    assert refused == Counter(
        {
            "rows that are not JSON": 1,
            "rows without a prompt in `prompt`": 1,
            "prompts of more than 50 tokens": 1,
            "prompts that were there before": 1,
        }
    )


def test_more_than_one_percent_broken_is_an_error(read):
    left_out = r"1 of 8 rows give no prompt; left out are 1 rows that are not JSON[^\0]*\n  do: "
    with pytest.raises(CorpusError, match=left_out):
        read([*({"prompt": f"question {i}"} for i in range(7)), "{"])
    with pytest.raises(CorpusError, match=r"3 of 3 rows give no prompt"):
        read([{"prompt": 1}, {"prompt": []}, {"prompt": [{"role": "assistant", "content": "hi"}]}])


def test_a_prompt_from_an_evaluation_text_is_a_leak():
    rng = np.random.default_rng(3)
    text, unrelated = rng.integers(0, 999, 97), rng.integers(0, 999, 97)
    leaks = Leaks([text], 13)
    assert text[11:50] in leaks
    assert np.concatenate([unrelated[:10], text[:40]]) in leaks
    assert np.concatenate([unrelated[:60], text[:30]]) not in leaks, "a quarter"
    assert unrelated not in leaks
    assert text[:12] not in leaks, "too short to tell"
    assert text not in Leaks([], 13)


def test_a_leak_shares_half_of_its_ngrams():
    rng = np.random.default_rng(5)
    texts, common = [[rng.integers(0, 3, 29) for _ in range(7)] for _ in range(2)]
    leaks, n = Leaks(texts, 5, common), 5

    def ngrams(texts: list[np.ndarray]) -> set[tuple[int, ...]]:
        return {tuple(text[i : i + n].tolist()) for text in texts for i in range(len(text) - n + 1)}

    known, ignored, results = ngrams(texts), ngrams(common), Counter[bool]()
    for length in rng.integers(1, 23, 211):
        prompt = rng.integers(0, 3, length)
        counted = [ngram for i in range(length - n + 1) if (ngram := tuple(prompt[i : i + n].tolist())) not in ignored]
        leaked = bool(counted) and sum(ngram in known for ngram in counted) / len(counted) >= 0.5
        assert (prompt in leaks) == leaked
        results[leaked] += 1
    assert min(results.values()) > 50


def test_the_tokens_of_a_chat_template_make_no_leak():
    opening, first, second = np.arange(100, 130), np.arange(20), np.arange(40, 60)
    chats = [np.concatenate([opening, text]) for text in (first, second)]
    assert chats[1] in Leaks([chats[0]], 5), "most of a short prompt is the template"
    leaks = Leaks([chats[0]], 5, [opening])
    assert chats[0] in leaks
    assert chats[1] not in leaks
    assert chats[0] in Leaks([first], 5, [opening]), "half of its n-grams without the template"


def test_a_users_turn_is_what_the_template_adds(tokenizer):
    turn = user_turn(tokenizer)
    assert (tokenizer.decode(turn.opening), tokenizer.decode(turn.closing)) == ("<s><user>", "<t><a>")
    assert turn.end == tokenizer.convert_tokens_to_ids("<t>")
    requests = list(instruction_requests(turn, 3))
    assert [(request.index, request.sampling) for request in requests] == [(0, SAMPLING), (1, SAMPLING), (2, SAMPLING)]


@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m['content'] }}{% endfor %}"])
def test_a_template_without_a_turn_is_an_error(template, byte_tokenizer):
    with pytest.raises(TargetError, match=r"\n  do: leave `magpie` out of synthesize.mix"):
        user_turn(byte_tokenizer(template))


def test_instructions_become_distinct_prompts(tokenizer):
    turn, refused = user_turn(tokenizer), Counter()

    def row(text):
        tokens = np.array(tokenizer(text).input_ids)
        return Completion("0", turn.opening, tokens, np.zeros(len(tokens), np.float32), SAMPLING)

    instructions = [row(text) for text in ("why?<t>", "no end", "a<t>", "why?<t>", "how?<t>", "when?<t>")]
    prompts = [tokenizer.decode(prompt) for prompt in magpie_prompts(turn, instructions, 2, refused)]
    assert prompts == ["<s><user>why?<t><a>", "<s><user>how?<t><a>"]
    assert refused == Counter(
        {
            "instructions without an end": 1,
            "instructions of fewer than 3 tokens": 1,
            "instructions that were there before": 1,
        }
    )
