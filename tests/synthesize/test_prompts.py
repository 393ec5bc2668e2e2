"""Prompts of documents: distinct, deterministic, each inside one document. Requests made of prompts."""

from pathlib import Path

import numpy as np
import pytest

from fastdraft.data.shards import Shards, Tokens, describe_shards
from fastdraft.synthesize.completions import SamplingParams
from fastdraft.synthesize.prompts import assign_sampling, document_prompts, repeat_samples
from fastdraft.system.errors import CorpusError


def shards_of(folder: Path, *files: list[Tokens]) -> Shards:
    """Shards as datatrove writes them; each file holds documents."""
    for i, documents in enumerate(files):
        np.concatenate(documents).astype("<u2").tofile(folder / f"{i}.ds")
        np.cumsum([len(document) for document in documents]).astype("<u8").tofile(folder / f"{i}.ds.index")
    return Shards(folder, describe_shards(folder, 2))


@pytest.fixture
def documents() -> list[Tokens]:
    return [np.arange(length) + 1000 * (i + 1) for i, length in enumerate([11, 3, 7, 13, 10])]


@pytest.fixture
def shards(tmp_path: Path, documents: list[Tokens]) -> Shards:
    return shards_of(tmp_path, documents[:2], documents[2:])


def draw(shards: Shards, count: int, seed: int = 7, bos: int | None = None) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [prompt.tolist() for prompt in document_prompts(shards, count, 5, 3, rng, bos=bos)]


def test_every_long_document_gives_one_prompt_before_any_gives_two(shards: Shards) -> None:
    # Three documents, of 11, 13 and 10 tokens, have room for a prompt of 5 followed by 3 more in several places.
    for seed in range(5):
        prompts = draw(shards, 3, seed)
        assert sorted(prompt[0] // 1000 for prompt in prompts) == [1, 4, 5]
        assert all(prompt == list(range(prompt[0], prompt[0] + 5)) for prompt in prompts)


def test_prompts_start_anywhere_in_a_document(shards: Shards) -> None:
    starts = {prompt[0] for seed in range(60) for prompt in draw(shards, 3, seed)}
    assert starts == {start + i for start, places in ((1000, 4), (4000, 6), (5000, 3)) for i in range(places)}


def test_all_windows_inside_documents_follow_each_once(shards: Shards) -> None:
    everything = [start + i for start, places in ((1000, 4), (4000, 6), (5000, 3)) for i in range(places)]
    assert sorted(draw(shards, 13)) == [list(range(start, start + 5)) for start in everything]


def test_each_prompt_begins_with_the_begin_of_text_token_that_the_target_adds(
    tmp_path: Path, documents: list[Tokens]
) -> None:
    """It is the first token of a document in the shards, and of no prompt in addition; the length counts it."""
    shards = shards_of(tmp_path, [np.concatenate([[1], document]) for document in documents])
    prompts = [prompt for seed in range(5) for prompt in draw(shards, 3, seed, bos=1)]
    assert {prompt[0] for prompt in prompts} == {1}
    everything = [start + i for start, places in ((1000, 5), (3000, 1), (4000, 7), (5000, 4)) for i in range(places)]
    assert sorted(draw(shards, 17, bos=1)) == [[1, *range(start, start + 4)] for start in everything]
    with pytest.raises(CorpusError, match="17 distinct prompts of 5 tokens"):
        draw(shards, 18, bos=1)


def test_the_same_generator_gives_the_same_prompts(shards: Shards) -> None:
    assert draw(shards, 9) == draw(shards, 9)
    assert draw(shards, 9) != draw(shards, 9, seed=8)


def test_too_few_prompts_raise_an_error_with_their_number(shards: Shards) -> None:
    with pytest.raises(CorpusError, match=r"13 distinct prompts of 5 tokens .* 3 .* 14\n  do: "):
        draw(shards, 14)


def test_documents_that_begin_alike_give_one_prompt(tmp_path: Path) -> None:
    licence = np.array([5, 4, 3, 2, 1])
    alike = [np.concatenate([licence, np.arange(3) + 10 * i]) for i in range(4)]
    assert draw(shards_of(tmp_path, alike), 1) == [licence.tolist()]
    with pytest.raises(CorpusError, match="1 distinct prompts"):
        draw(shards_of(tmp_path, alike), 2)


def test_prompts_are_split_over_sampling_parameters_by_weight_at_every_moment() -> None:
    weights = {SamplingParams(0): 1.0, SamplingParams(0.6): 2.0, SamplingParams(1.0, 0, 0.9): 4.0}
    requests = list(assign_sampling((np.array([i]) for i in range(70)), weights))
    assert [int(request.prompt[0]) for request in requests] == list(range(70))
    for count in (7, 35, 70):
        counts = [sum(request.sampling == sampling for request in requests[:count]) for sampling in weights]
        assert counts == [count // 7, 2 * count // 7, 4 * count // 7]


def test_samples_of_a_prompt_differ_in_index_and_greedy_ones_are_not_repeated() -> None:
    requests = list(
        assign_sampling((np.array([i]) for i in range(4)), {SamplingParams(0): 1.0, SamplingParams(1.0): 1.0})
    )
    samples = [(int(request.prompt[0]), request.sampling, request.index) for request in repeat_samples(requests, 3)]
    assert samples == [
        (0, SamplingParams(0), 0),
        *((1, SamplingParams(1.0), i) for i in range(3)),
        (2, SamplingParams(0), 0),
        *((3, SamplingParams(1.0), i) for i in range(3)),
    ]
