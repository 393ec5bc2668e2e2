"""Tiny donors: random models of any family, with or without a tokenizer."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from fastdraft.data.order import IGNORED, Batch

ROWS = 311
TEXT = [
    "The river never walks under seven yellow stones; nobody knows why, and nobody asks.",
    "def walk(river, stones=7):\n    return [stone for stone in river if stone > stones]\n",
    "Grüße aus Köln: 3 Äpfel, 12 Birnen – naïve, isn't it?\n\n\tYes.",
] * 5


def random_model(family: str = "llama", seed: int = 3, **more: object) -> PreTrainedModel:
    """A random fp32 model: 3 layers, 24 wide, 4 heads of size 6, 2 key-value heads, and norms that are not constant."""
    sizes = {
        "vocab_size": ROWS,
        "hidden_size": 24,
        "intermediate_size": 37,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "max_position_embeddings": 97,
        "initializer_range": 0.3,
        "tie_word_embeddings": True,
        **{f"{role}_token_id": 0 for role in ("bos", "eos", "pad")},
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = AutoConfig.for_model(family, **(sizes | more))
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.add_(torch.rand(weight.shape) * (0.1 if name.endswith("bias") else 0.5))
    return model


def bpe(vocabulary: int, end: str = "<end>") -> PreTrainedTokenizerFast:
    """A byte-level tokenizer like those of GPT-2 and Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[end], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end)


def sentencepiece() -> PreTrainedTokenizerFast:
    """A tokenizer with space marks and byte fallback, like those of Llama 1 and 2."""
    special = ["<unk>", "<s>", "</s>"]
    learner = Tokenizer(models.BPE())
    learner.train_from_iterator(
        [text.replace(" ", "▁") for text in TEXT], trainers.BpeTrainer(vocab_size=71, show_progress=False)
    )
    learned = json.loads(learner.to_str())["model"]
    tokens = [
        *special,
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *sorted(learned["vocab"], key=learned["vocab"].get),
    ]
    vocabulary, merges = {token: i for i, token in enumerate(tokens)}, [tuple(pair) for pair in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="session")
def make_model() -> Callable[..., PreTrainedModel]:
    return random_model


@pytest.fixture(scope="session")
def make_tokenizer() -> dict[str, Callable[..., PreTrainedTokenizerFast]]:
    return {"bpe": bpe, "sentencepiece": sentencepiece}


@pytest.fixture(scope="session")
def save_donor(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saves a model and a tokenizer, and returns the folder."""

    def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Path:
        folder = tmp_path_factory.mktemp("donor")
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def batch() -> Batch:
    """Random tokens; some labels are not trained on."""
    tokens = torch.randint(300, (11, 18), generator=torch.Generator().manual_seed(1))
    labels_BT = tokens[:, 1:].clone()
    labels_BT[::3, :5] = IGNORED
    return Batch(tokens[:, :-1], labels_BT)
