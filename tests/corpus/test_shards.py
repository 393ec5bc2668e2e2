"""Shards are what their card says, or an error that says what to remove."""

import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastdraft.corpus.shards import Shards, survey
from fastdraft.errors import ShardError


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
    found = shards[start:stop]
    assert found.dtype == np.int64
    assert found.tolist() == list(range(54))[start:stop]


def test_tokens_of_four_bytes_keep_their_value(tmp_path):
    tokens = np.array([0, 65535, 65536, 151_935, 2**31], np.int64)
    (tmp_path / "0.ds").write_bytes(tokens.astype("<u4").tobytes())
    (tmp_path / "0.ds.index").write_bytes(np.array([5], "<u8").tobytes())
    assert Shards(tmp_path, survey(tmp_path, 4))[0:5].tolist() == tokens.tolist()


def test_documents_start_where_the_one_before_ends(folder):
    assert Shards(folder, survey(folder, 2)).document_starts().tolist() == [0, 11, 24, 26]


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda file: file.unlink(), "00001.ds is missing, its card says 26 bytes"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "00001.ds is 25 bytes, its card says 26 bytes"),
        (lambda file: file.write_bytes(file.read_bytes() + b"xx"), "00001.ds is 28 bytes, its card says 26 bytes"),
    ],
)
def test_a_shard_that_is_not_what_its_card_says(folder, damage, found):
    card = survey(folder, 2)
    damage(folder / "00001.ds")
    with pytest.raises(ShardError, match=found) as caught:
        Shards(folder, card)
    # Removing one source would not help: the card of all of them says that the stage is done.
    assert f"\n  do: remove {folder.parents[2]} and run again" in str(caught.value)
    assert folder.parents[2].name == "tokenize"


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda file: file.unlink(), "index is missing"),
        (lambda file: file.write_bytes(b""), "do not rise to its shard's 13 tokens"),
        (lambda file: file.write_bytes(np.array([3], "<u8").tobytes()), "do not rise to its shard's 13 tokens"),
        (lambda file: file.write_bytes(np.array([9, 4, 13], "<u8").tobytes()), "do not rise to its shard's 13 tokens"),
        (lambda file: file.write_bytes(np.array([4, 13], "<u8").tobytes()), "holds 4 documents, its card says 3"),
    ],
)
def test_an_index_that_is_not_what_its_card_says(folder, damage, found):
    shards = Shards(folder, survey(folder, 2))
    damage(folder / "00001.ds.index")
    with pytest.raises(ShardError, match=f"{found}(.|\n)*do: remove {folder.parents[2]} and run again"):
        shards.document_starts()


def test_a_shard_without_a_token_is_none(folder):
    before = survey(folder, 2)
    (folder / "00003.ds").touch()
    (folder / "00003.ds.index").touch()
    assert survey(folder, 2) == before
