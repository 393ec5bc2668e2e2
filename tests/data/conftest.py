"""A tokenizer of bytes, so that shards can be decoded to text; a source to tokenise; shards with known tokens."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from fastdraft.config import SourcePart
from fastdraft.data.shards import Shards, SplitCard, describe_shards
from fastdraft.data.tokenize import write_tokenizer

END = 256
MakeShards = Callable[..., Shards]


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    """256 bytes and an end-of-text token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)} | {"<end of text>": END}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path, byte_tokenizer: Tokenizer) -> Path:
    """The file of a tokenizer of bytes that appends the end-of-text token to each document."""
    write_tokenizer(byte_tokenizer, tmp_path / "tokenizer.json", None, END)
    return tmp_path / "tokenizer.json"


@pytest.fixture
def tales(tmp_path: Path) -> SourcePart:
    """A source of 101 documents, about 20 of them held out."""
    path = tmp_path / "tales.jsonl"
    path.write_text("".join(json.dumps({"text": f"tale {i}: " + f"{i} " * (i % 7)}) + "\n" for i in range(101)))
    return SourcePart(source="jsonl", path=str(path), held_out_fraction=0.2, sample_fraction=0.9)


@pytest.fixture
def make_shards(tmp_path: Path) -> MakeShards:
    """Shards of the given sizes with the tokens 0, 1, 2, ..., one document per shard, in the layout of a run."""

    def make(sizes: list[int], bytes_per_token: int = 2, run: str = "run") -> Shards:
        folder = tmp_path / run / "tokenize" / "tales" / "train" / "shards"
        folder.mkdir(parents=True)
        first = 0
        for number, size in enumerate(sizes):
            tokens = np.arange(first, first + size)
            (folder / f"{number:05d}.ds").write_bytes(tokens.astype(f"<u{bytes_per_token}").tobytes())
            (folder / f"{number:05d}.ds.index").write_bytes(np.array([size], "<u8").tobytes())
            first += size
        card: SplitCard = describe_shards(folder, bytes_per_token)
        return Shards(folder, card)

    return make
