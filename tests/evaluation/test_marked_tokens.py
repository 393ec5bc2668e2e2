"""Marks of tokens agree with the block chain of docs/maths.md; written files read back equal."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fastdraft.evaluation import marked_tokens, one_pass
from fastdraft.maths import acceptance
from fastdraft.synthesize.completions import SamplingParams
from fastdraft.system.errors import CardError

TOKENS, GAMMAS = 23, (1, 2, 3, 5)
WORDS = "naïve 東京 🙂 <script>alert(1)</script> \x07 def f(x):\n\treturn x "


def blocks(marks):
    """The number of blocks: one at the start, and one after each token that is not an accepted one."""
    return 1 + sum(mark != marked_tokens.ACCEPTED for mark in marks[:-1])


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=31), st.integers(1, 7))
def test_greedy_marks_have_the_blocks_of_the_chain(accept, gamma):
    marks = marked_tokens.mark_tokens(accept, gamma, [0.999] * len(accept))
    counts = acceptance.chain(torch.tensor([accept]), torch.tensor([len(accept)]), gamma)
    assert marks == marked_tokens.mark_tokens(accept, gamma, [0.0] * len(accept))  # random numbers have no effect
    assert blocks(marks) == int(counts.forwards_B)
    assert marks.count(marked_tokens.ACCEPTED) == int(counts.accepted_B)


def test_sampled_marks_have_the_blocks_of_the_chain_on_average():
    rng, repeats, gamma = np.random.default_rng(3), 4000, 3
    accept = rng.random(TOKENS)
    counts = acceptance.chain(torch.from_numpy(accept)[None], torch.tensor([TOKENS]), gamma)
    counted = np.array([blocks(marked_tokens.mark_tokens(accept, gamma, rng.random(TOKENS))) for _ in range(repeats)])
    assert abs(counted.mean() - float(counts.forwards_B)) < 4 * counted.std() / repeats**0.5


@given(st.lists(st.floats(0, 1), min_size=1, max_size=31), st.integers(1, 5), st.integers(0, 99))
def test_only_a_bonus_token_follows_a_fully_accepted_block(accept, gamma, seed):
    marks = marked_tokens.mark_tokens(accept, gamma, np.random.default_rng(seed).random(len(accept)))
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
    """Byte tokens only, so that a character takes several of them."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        [WORDS], trainers.BpeTrainer(vocab_size=len(alphabet) + 7, initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def test_pieces_concatenate_to_the_text(tokenizer):
    ids = tokenizer(WORDS).input_ids
    pieces = list(marked_tokens._pieces(tokenizer, ids))
    assert len(pieces) == len(ids) > len(WORDS) / 2
    assert "".join(pieces) == WORDS
    assert "東" in pieces


@pytest.fixture(scope="module")
def folder(tiny_llama, perturbed, completed, tokenizer, tmp_path_factory):
    """The files of a draft that agrees half of the time, greedy and sampled; the draft, its results and completions."""
    path = tmp_path_factory.mktemp("marked")
    target = tiny_llama(3, vocabulary=len(tokenizer))
    draft = perturbed(target, 0.2, 5)
    prompts = [np.arange(7, dtype=np.int64) + number for number in range(11)]
    measured = []
    for sampling in (SamplingParams(0.0), SamplingParams(0.7)):
        rows = completed(target, prompts, sampling, TOKENS)
        result = one_pass.evaluate(draft, rows, GAMMAS, stage="align", task="text", c=0.1, resamples=50, seed=7)
        measured.append((result, rows))
    marked_tokens.write_marked(path, draft, measured, tokenizer, seed=7)
    return path, draft, measured


def test_written_acceptances_are_those_of_one_pass(folder):
    path, draft, measured = folder
    for result, rows in measured:
        keys, acceptances = marked_tokens.read_acceptances(path, result)
        expected = one_pass.acceptances(draft, rows)
        assert keys == [row.key for row in rows]
        assert acceptances.lengths_B.tolist() == expected.lengths_B.tolist()
        assert torch.allclose(acceptances.accept_BN, expected.accept_BN, atol=1e-6)


def test_texts_are_sorted_and_marked_by_their_acceptances(folder):
    path, _, measured = folder
    marked = marked_tokens.read_marked(path)
    assert [task.temperature for task in marked.tasks] == [0.0, 0.7]
    for task, (result, _) in zip(marked.tasks, measured, strict=True):
        assert task.gamma == result.best_gamma
        tau = [text.block_efficiency for text in (*task.worst, *task.typical, *task.best[::-1])]
        assert len(tau) == 9
        assert tau == sorted(tau)
        for text in (*task.worst, *task.typical, *task.best):
            columns = text.tokens, text.marks, text.accept, text.confidence, text.proposed
            assert {len(column) for column in columns} == {TOKENS}
    greedy = marked.tasks[0].worst[0]
    assert marked_tokens.mark_tokens(greedy.accept, marked.tasks[0].gamma, [0.5] * TOKENS) == greedy.marks
    pairs = zip(greedy.proposed, greedy.accept, strict=True)
    assert all((not proposed) == (accept == 1) for proposed, accept in pairs)


def test_expected_rejections_add_up(folder):
    path, draft, measured = folder
    for task, (_, rows) in zip(marked_tokens.read_marked(path).tasks, measured, strict=True):
        accepted = one_pass.acceptances(draft, rows).accept_BN.sum()
        rejected = sum(len(row.tokens) for row in rows) - float(accepted)
        assert 0 < sum(each.rejected for each in task.rejected_tokens) <= rejected + 0.1
        counts = [each.rejected for each in task.rejected_contexts]
        assert counts == sorted(counts, reverse=True)
        assert all(each.rejected <= each.times for each in (*task.rejected_tokens, *task.rejected_contexts))


def test_a_missing_file_gives_none_and_another_version_is_refused(folder, tmp_path):
    _, _, measured = folder
    assert marked_tokens.read_marked(tmp_path) is None
    assert marked_tokens.read_acceptances(tmp_path, measured[0][0]) is None
    for content in ('{"version": 2}', '{"version": 1}', "[]", "{"):
        (tmp_path / marked_tokens.TEXTS).write_text(content)
        with pytest.raises(CardError, match="do: evaluate again"):
            marked_tokens.read_marked(tmp_path)
