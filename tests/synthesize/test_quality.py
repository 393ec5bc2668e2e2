"""The quality report: every share against rows that were made for it."""

from collections import Counter

import numpy as np
import pytest

from fastdraft.synthesize.completions import Completion, SamplingParams
from fastdraft.synthesize.quality import LOOP, UNTOLD, language, quality, without_loops
from fastdraft.synthesize.write import Shard
from fastdraft.system.errors import CorpusError


class Letters:
    def decode(self, ids, **_):
        return "".join(chr(int(i)) for i in ids)


PLAIN = SamplingParams(1.0)


def row(tokens, sampling=PLAIN, logp=None, prompt=4):
    nats = np.full(len(tokens), -0.5, np.float32) if logp is None else logp
    return Completion("0", np.arange(prompt), np.array(tokens), nats, sampling)


def report(rows, decoding, refused=None):
    return quality([rows[:2], rows[2:]], decoding, Letters(), 99, Counter(refused or {}), Counter({"b": 2}))


def test_every_fraction_is_counted(decoding):
    text = list(range(97, 108))
    loop = [97, 98] * 20 + [0]
    rows = [
        row(text),
        row(text),  # exactly the same
        row([*text[:-1], 0], SamplingParams(0.6)),  # half of it was there
        row(loop, SamplingParams(0)),
        row([0], SamplingParams(0.6)),  # empty
        row([1072, 1073, 0], logp=np.empty(0, np.float32)),
    ]
    found = report(rows, decoding, {"HTTP 400": 5})
    assert (found.asked, found.written, found.refused, found.prompts_left_out) == (99, 6, {"HTTP 400": 5}, {"b": 2})
    assert found.tokens == 11 + 11 + 11 + 41 + 1 + 3
    assert found.trained_fraction == found.tokens / (found.tokens + 24)
    assert found.lengths == {"<= 1": 1, "<= 4": 1, "<= 16": 3, "<= 64": 1}
    assert (found.truncated_fraction, found.empty_fraction) == (2 / 6, 1 / 6)
    assert (found.exact_duplicates, found.near_duplicates) == (1, 1)
    assert found.looping_fraction == 1 / 6
    assert found.entropy_nats == {"0.6": 0.5, "1": 0.5}
    assert found.without_logp == 1
    assert found.languages[UNTOLD] == 5 / 6
    assert sum(found.languages.values()) == pytest.approx(1)


def test_nothing_to_train_on_stops(decoding):
    with pytest.raises(CorpusError, match=r"0 rows with 0 tokens[^\0]*HTTP 400[^\0]*\n  do: check the prompts"):
        report([], decoding, {"HTTP 400": 5})


def test_answers_that_loop_can_be_dropped_and_are_counted():
    good, loop = row(range(97, 130)), row([97, 98] * 20)
    shard = without_loops(Shard([good, loop, good], Counter({"a": 1})))
    assert list(shard.rows) == [good, good]
    assert shard.refused == Counter({"a": 1, LOOP: 1})


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("The draft proposes tokens, and the target checks them.", "en"),
        ("Der Entwurf schlägt Wörter vor, und das Ziel prüft sie.", "de"),
        ("Le modèle propose des mots, et la cible les vérifie.", "fr"),
        ("Черновик предлагает слова, а цель их проверяет.", "ru"),
        ("草稿模型提出若干个词，目标模型一次检查它们，输出完全一致。", "zh"),
        ("Far too few letters.", UNTOLD),
        ("1 + 2 = 3; " * 13, UNTOLD),
    ],
)
def test_the_language_of_an_answer(text, code):
    assert language(text) == code
