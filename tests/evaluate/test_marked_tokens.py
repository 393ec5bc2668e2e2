"""Marks follow the rule of a block, and agree with the chain that counts blocks; what is written reads back."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fastdraft.evaluate import marked_tokens, one_pass
from fastdraft.evaluate.one_pass import Subject
from fastdraft.maths import acceptance
from fastdraft.synthesize.completions import SamplingParams
from fastdraft.system.errors import CardError

TOKENS, GAMMAS = 23, (1, 2, 3, 5)
WORDS = "naïve 東京 🙂 <script>alert(1)</script> \x07 def f(x):\n\treturn x "


def opens(marks):
    """How many blocks a walk has: one at the beginning, and one behind each token that is not a kept draft."""
    return 1 + sum(mark != marked_tokens.ACCEPTED for mark in marks[:-1])


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=31), st.integers(1, 7))
def test_a_greedy_walk_has_the_blocks_of_the_chain(accept, gamma):
    coins = [0.999] * len(accept)
    marks = marked_tokens.walk(accept, gamma, coins)
    counts = acceptance.chain(torch.tensor([accept]), torch.tensor([len(accept)]), gamma)
    assert marks == marked_tokens.walk(accept, gamma, [0.0] * len(accept))  # coins decide nothing
    assert opens(marks) == int(counts.forwards_B)
    assert marks.count(marked_tokens.ACCEPTED) == int(counts.accepted_B)


def test_sampled_walks_have_the_blocks_of_the_chain_in_the_mean():
    generator, walks, gamma = np.random.default_rng(3), 4000, 3
    accept = generator.random(TOKENS)
    counts = acceptance.chain(torch.from_numpy(accept)[None], torch.tensor([TOKENS]), gamma)
    found = np.array([opens(marked_tokens.walk(accept, gamma, generator.random(TOKENS))) for _ in range(walks)])
    assert abs(found.mean() - float(counts.forwards_B)) < 4 * found.std() / walks**0.5


@given(st.lists(st.floats(0, 1), min_size=1, max_size=31), st.integers(1, 5), st.integers(0, 99))
def test_a_bonus_token_follows_a_full_block_and_nothing_else_does(accept, gamma, seed):
    marks = marked_tokens.walk(accept, gamma, np.random.default_rng(seed).random(len(accept)))
    runs = (
        marks.replace(marked_tokens.CORRECTED, marked_tokens.CORRECTED + "|")
        .replace(marked_tokens.BONUS, marked_tokens.BONUS + "|")
        .split("|")
    )
    for block in runs[:-1]:
        drafted = block[:-1]
        assert set(drafted) <= {marked_tokens.ACCEPTED}
        assert (len(drafted) == gamma) == (block[-1] == marked_tokens.BONUS)
    assert len(runs[-1]) <= gamma


@pytest.fixture(scope="module")
def tokenizer():
    """Bytes alone, so that a letter is of several tokens."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        [WORDS], trainers.BpeTrainer(vocab_size=len(alphabet) + 7, initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def test_pieces_make_the_text(tokenizer):
    ids = tokenizer(WORDS).input_ids
    pieces = list(marked_tokens._pieces(tokenizer, ids))
    assert len(pieces) == len(ids) > len(WORDS) / 2
    assert "".join(pieces) == WORDS
    assert "東" in pieces


@pytest.fixture(scope="module")
def folder(tiny_llama, perturbed, completed, tokenizer, tmp_path_factory):
    """What a draft that half agrees leaves, greedy and sampled; and what it was made from."""
    place = tmp_path_factory.mktemp("marked")
    target = tiny_llama(3, vocabulary=len(tokenizer))
    draft = perturbed(target, 0.2, 5)
    prompts = [np.arange(7, dtype=np.int64) + number for number in range(11)]
    measured = []
    for sampling in (SamplingParams(0.0), SamplingParams(0.7)):
        rows = completed(target, prompts, sampling, TOKENS)
        measured.append((one_pass.evaluate(draft, rows, GAMMAS, Subject("align", "text", 0.1), 50, 7), rows))
    marked_tokens.write_marked(place, draft, measured, tokenizer, seed=7)
    return place, draft, measured


def test_what_is_written_is_what_one_pass_reports(folder):
    place, draft, measured = folder
    for result, rows in measured:
        keys, found = marked_tokens.read_acceptances(place, result)
        expected = one_pass.acceptances(draft, rows)
        assert keys == [row.key for row in rows]
        assert found.lengths_B.tolist() == expected.lengths_B.tolist()
        assert torch.allclose(found.accept_BN, expected.accept_BN, atol=1e-6)


def test_texts_are_sorted_and_their_marks_are_the_walk_of_their_acceptances(folder):
    place, _, measured = folder
    found = marked_tokens.read_marked(place)
    assert [task.temperature for task in found.tasks] == [0.0, 0.7]
    for task, (result, _) in zip(found.tasks, measured, strict=True):
        assert task.gamma == result.best_gamma
        tau = [text.block_efficiency for text in (*task.worst, *task.typical, *task.best[::-1])]
        assert len(tau) == 9
        assert tau == sorted(tau)
        for text in (*task.worst, *task.typical, *task.best):
            columns = text.tokens, text.marks, text.accept, text.confidence, text.proposed
            assert {len(column) for column in columns} == {TOKENS}
    greedy = found.tasks[0].worst[0]
    assert marked_tokens.walk(greedy.accept, found.tasks[0].gamma, [0.5] * TOKENS) == greedy.marks
    assert all((not other) == (accept == 1) for other, accept in zip(greedy.proposed, greedy.accept, strict=True))


def test_what_is_rejected_most_adds_up(folder):
    place, draft, measured = folder
    for task, (_, rows) in zip(marked_tokens.read_marked(place).tasks, measured, strict=True):
        accepted = one_pass.acceptances(draft, rows).accept_BN.sum()
        rejected = sum(len(row.tokens) for row in rows) - float(accepted)
        assert 0 < sum(each.rejected for each in task.rejected_tokens) <= rejected + 0.1
        counts = [each.rejected for each in task.rejected_contexts]
        assert counts == sorted(counts, reverse=True)
        assert all(each.rejected <= each.times for each in (*task.rejected_tokens, *task.rejected_contexts))


def test_a_folder_without_texts_reports_so_and_another_version_is_refused(folder, tmp_path):
    _, _, measured = folder
    assert marked_tokens.read_marked(tmp_path) is None
    assert marked_tokens.read_acceptances(tmp_path, measured[0][0]) is None
    for content in ('{"version": 2}', '{"version": 1}', "[]", "{"):
        (tmp_path / marked_tokens.TEXTS).write_text(content)
        with pytest.raises(CardError, match="do: evaluate again"):
            marked_tokens.read_marked(tmp_path)
