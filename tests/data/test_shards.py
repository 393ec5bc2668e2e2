"""Shards match their card, or the error says what to remove."""

import resource
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastdraft.data.shards import Shards, SplitCard, describe_shards, sample_digest
from fastdraft.system.errors import ShardError


@pytest.fixture
def folder(make_shards, tmp_path):
    make_shards([11, 13, 2])
    return tmp_path / "run" / "tokenize" / "tales" / "train" / "shards"


@pytest.mark.parametrize("width", [2, 4])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, 60), stop=st.integers(0, 60))
def test_a_slice_crosses_shard_borders(make_shards, tmp_path, width, start, stop):
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    shards = make_shards([11, 2, 13, 1, 27], width)
    tokens = shards[start:stop]
    assert tokens.dtype == np.int64
    assert tokens.tolist() == list(range(54))[start:stop]


def test_tokens_of_four_bytes_keep_their_value(tmp_path):
    tokens = np.array([0, 65535, 65536, 151_935, 2**31], np.int64)
    (tmp_path / "0.ds").write_bytes(tokens.astype("<u4").tobytes())
    (tmp_path / "0.ds.index").write_bytes(np.array([5], "<u8").tobytes())
    assert Shards(tmp_path, describe_shards(tmp_path, 4))[0:5].tolist() == tokens.tolist()


def test_documents_start_at_the_end_of_the_previous_one(folder):
    assert Shards(folder, describe_shards(folder, 2)).document_starts().tolist() == [0, 11, 24, 26]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "00001.ds is missing, its card says 26 bytes"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "00001.ds is 25 bytes, its card says 26 bytes"),
        (lambda file: file.write_bytes(file.read_bytes() + b"xx"), "00001.ds is 28 bytes, its card says 26 bytes"),
    ],
)
def test_a_shard_whose_size_differs_from_its_card(folder, damage, message):
    card = describe_shards(folder, 2)
    damage(folder / "00001.ds")
    with pytest.raises(ShardError, match=message) as caught:
        Shards(folder, card)
    # Removing one source would not help: the card of the stage marks all of them as done.
    assert f"\n  do: remove {folder.parents[2]}" in str(caught.value)
    assert folder.parents[2].name == "tokenize"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "index is missing"),
        (lambda file: file.write_bytes(b""), "do not rise to its shard's 13 tokens"),
        (lambda file: file.write_bytes(np.array([3], "<u8").tobytes()), "do not rise to its shard's 13 tokens"),
        (lambda file: file.write_bytes(np.array([9, 4, 13], "<u8").tobytes()), "do not rise to its shard's 13 tokens"),
        (lambda file: file.write_bytes(np.array([4, 13], "<u8").tobytes()), "holds 4 documents, its card says 3"),
    ],
)
def test_an_index_that_does_not_match_its_card(folder, damage, message):
    shards = Shards(folder, describe_shards(folder, 2))
    damage(folder / "00001.ds.index")
    with pytest.raises(ShardError, match=f"{message}(.|\n)*do: remove {folder.parents[2]}"):
        shards.document_starts()


def test_an_empty_shard_is_ignored(folder):
    before = describe_shards(folder, 2)
    (folder / "00003.ds").touch()
    (folder / "00003.ds.index").touch()
    assert describe_shards(folder, 2) == before


# Changed content.


def flip_bit(path, start: int) -> None:
    content = bytearray(path.read_bytes())
    content[start] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("size", [1, 4096, 65_536, 65_537, 1_000_003])
def test_the_digest_covers_head_and_tail_and_all_of_a_short_file(tmp_path, size):
    path = tmp_path / "shard"
    path.write_bytes(np.random.default_rng(size).bytes(size))
    before = sample_digest(path)
    assert sample_digest(path) == before
    for place in {0, size - 1} | ({size // 3} if size <= 65_536 else set()):
        flip_bit(path, place)
        assert sample_digest(path) != before
        flip_bit(path, place)
    path.write_bytes(path.read_bytes() + b"x")
    assert sample_digest(path) != before


@given(fraction=st.floats(0, 15 / 16))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_digest_detects_any_changed_sixteenth_of_a_file(tmp_path, fraction):
    path, size = tmp_path / "shard", 1_000_003
    content = np.random.default_rng(3).bytes(size)
    path.write_bytes(content)
    before, start = sample_digest(path), int(fraction * size)
    path.write_bytes(content[:start] + bytes(size // 16) + content[start + size // 16 :])
    assert path.stat().st_size == size
    assert sample_digest(path) != before


def test_a_shard_of_the_same_size_with_different_content(folder):
    card = describe_shards(folder, 2)
    flip_bit(folder / "00001.ds", 5)
    with pytest.raises(ShardError, match=r"00001\.ds .* content has changed(.|\n)*do: remove"):
        Shards(folder, card)
    changed = describe_shards(folder, 2)
    assert changed.digest != card.digest == SplitCard.model_validate_json(card.model_dump_json()).digest


def test_more_shards_than_a_process_may_open_files(make_shards):
    """Each memory map keeps its file open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shards = make_shards([3] * 401)
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
    try:
        places = np.random.default_rng(5).integers(0, 1203 - 7, 500)
        assert all(shards[place : place + 7].tolist() == list(range(place, place + 7)) for place in places.tolist())
        assert shards[0:1203].tolist() == list(range(1203))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
