"""A target and a draft that fit each other, small enough to be broken one key at a time."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fastdraft.compatibility.report import Report, check_pair
from fastdraft.models.model_files import read

from .published import Published

ROWS, TOKENS = 317, 307
SPECIAL = ["<end>", "<start>", "<fill>"]
TEXT = [
    "seven wolves walk under a yellow stone",
    "def river(song):\n    return never * 12",
    "über dem Fluß, ñandú 🙂",
] * 9
Pair = tuple[Path, Path]


def _tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS,
        special_tokens=SPECIAL,
        initial_alphabet=tokenizer.pre_tokenizer.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<start> $A", special_tokens=[("<start>", 1)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", bos_token="<start>", pad_token="<fill>", model_max_length=97
    )
    made.chat_template = "{% for m in messages %}<start>{{ m.content }}{% endfor %}"
    made.save_pretrained(folder)


def _model(folder: Path, width: int, tied: bool = True, seed: int = 3, **keys: object) -> None:
    values = {
        "vocab_size": ROWS,
        "hidden_size": width,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 97,
        "initializer_range": 0.3,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 0,
        "pad_token_id": 2,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(LlamaConfig(**values | keys)).save_pretrained(folder)


@pytest.fixture(scope="session")
def make_model() -> Callable[..., None]:
    """Write a small random Llama into a folder: width, tied or not, and any key of its configuration."""
    return _model


@pytest.fixture(scope="session")
def fitting(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A target and a draft that keep every rule; copy them to break one."""
    target, draft = (tmp_path_factory.mktemp("pair") / name for name in ("target", "draft"))
    _tokenizer(target)
    shutil.copytree(target, draft)
    _model(target, 24)
    _model(draft, 16, seed=5)
    return target, draft


@pytest.fixture
def pair(fitting: Pair, tmp_path: Path) -> Pair:
    """The same in the test's own folder."""
    for folder in fitting:
        shutil.copytree(folder, tmp_path / folder.name)
    return tmp_path / "target", tmp_path / "draft"


def edit(path: Path, **keys: object) -> None:
    """Set keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def held(target: Path, draft: Path) -> Report:
    """The report on two folders."""
    return check_pair(read(str(target)), read(str(draft)))


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """Folders of published models by name; the test is skipped where their files are absent."""
    return Published(tmp_path_factory.mktemp("published"))
