"""The quality report: every number against rows made for it."""

from collections import Counter

import numpy as np
import pytest

from fastdraft.synthesize.completions import Completion, SamplingParams
from fastdraft.synthesize.engine_interface import Shard
from fastdraft.synthesize.quality import LOOPING, UNKNOWN_LANGUAGE, language, measure_quality, without_loops
from fastdraft.system.errors import CorpusError


class Letters:
    def decode(self, ids, **_):
        return "".join(chr(int(i)) for i in ids)


PLAIN = SamplingParams(1.0)


def row(tokens, sampling=PLAIN, logp=None, prompt=4):
    nats = np.full(len(tokens), -0.5, np.float32) if logp is None else logp
    return Completion("0", np.arange(prompt), np.array(tokens), nats, sampling)


def report(rows, decoding, refused=None):
    return measure_quality([rows[:2], rows[2:]], decoding, Letters(), 99, Counter(refused or {}), Counter({"b": 2}))


def test_every_fraction_is_counted(decoding):
    text = list(range(97, 108))
    loop = [97, 98] * 20 + [0]
    rows = [
        row(text),
        row(text),  # an exact duplicate
        row([*text[:-1], 0], SamplingParams(0.6)),  # a near duplicate
        row(loop, SamplingParams(0)),
        row([0], SamplingParams(0.6)),  # empty
        row([1072, 1073, 0], logp=np.empty(0, np.float32)),
    ]
    quality = report(rows, decoding, {"HTTP 400": 5})
    assert (quality.asked, quality.written) == (99, 6)
    assert (quality.refused, quality.prompts_left_out) == ({"HTTP 400": 5}, {"b": 2})
    assert quality.tokens == 11 + 11 + 11 + 41 + 1 + 3
    assert quality.trained_fraction == quality.tokens / (quality.tokens + 24)
    assert quality.lengths == {"<= 1": 1, "<= 4": 1, "<= 16": 3, "<= 64": 1}
    assert (quality.truncated_fraction, quality.empty_fraction) == (2 / 6, 1 / 6)
    assert (quality.exact_duplicates, quality.near_duplicates) == (1, 1)
    assert quality.looping_fraction == 1 / 6
    assert quality.entropy_nats == {"0.6": 0.5, "1": 0.5}
    assert quality.without_logp == 1
    assert quality.languages[UNKNOWN_LANGUAGE] == 5 / 6
    assert sum(quality.languages.values()) == pytest.approx(1)


def test_no_tokens_to_train_on_is_an_error(decoding):
    with pytest.raises(CorpusError, match=r"0 completions with 0 tokens[^\0]*5 HTTP 400; 2 b\n[^\0]*  do: "):
        report([], decoding, {"HTTP 400": 5})


def test_looping_answers_can_be_dropped_and_are_counted():
    good, loop = row(range(97, 130)), row([97, 98] * 20)
    shard = without_loops(Shard([good, loop, good], Counter({"a": 1})))
    assert list(shard.rows) == [good, good]
    assert shard.refused == Counter({"a": 1, LOOPING: 1})


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("The draft proposes tokens, and the target checks them.", "en"),
        ("Der Entwurf schlägt Wörter vor, und das Ziel prüft sie.", "de"),
        ("Le modèle propose des mots, et la cible les vérifie.", "fr"),
        ("Черновик предлагает слова, а цель их проверяет.", "ru"),
        ("草稿模型提出若干个词，目标模型一次检查它们，输出完全一致。", "zh"),
        ("Far too few letters.", UNKNOWN_LANGUAGE),
        ("1 + 2 = 3; " * 13, UNKNOWN_LANGUAGE),
    ],
)
def test_the_language_of_an_answer(text, code):
    assert language(text) == code
