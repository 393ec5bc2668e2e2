"""Small drafts for the packaged target, of each family that GGUF has; a sentencepiece-like tokenizer."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from fastdraft.config import TargetPart
from fastdraft.models import draft
from fastdraft.models.draft_origin import Origin, target_card
from fastdraft.models.pretrained import folder_of

DEMO = TargetPart(path="demo")
SIZES = {
    "vocab_size": 8192,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
    "sliding_window": None,
}
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3")
Build = Callable[..., Path]


def model_of(family: str, **more: object) -> PreTrainedModel:
    """A random fp32 model. Large weights, so that its best tokens are no near ties; norms that are not all one."""
    sizes = SIZES | ({} if family == "phi3" else {"head_dim": 16}) | more
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes), dtype=torch.float32).eval()
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                torch.nn.init.uniform_(weight, -0.5 if "bias" in name else 0.5, 1.5)
    return model


@pytest.fixture(scope="session")
def draft_of(tmp_path_factory) -> Build:
    """The folder of a random draft of a family, with the packaged target's tokenizer."""

    def build(family: str = "llama", **more: object) -> Path:
        folder = tmp_path_factory.mktemp("drafts") / "model"
        draft.save(model_of(family, **more), folder_of(DEMO), target_card(Origin(folder, None), DEMO), folder)
        return folder

    return build


def pieces(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """A BPE with byte fallback whose merges follow from the order of its tokens, as sentencepiece's do."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    )
    whole = json.loads(tokenizer.to_str())
    vocab = whole["model"]["vocab"]
    splits = ([token[:at], token[at:]] for token in sorted(vocab, key=vocab.get) for at in range(1, len(token)))
    whole["model"]["merges"] = [pair for pair in splits if set(pair) <= vocab.keys()]
    whole["added_tokens"] = [token for token in whole["added_tokens"] if not token["content"].startswith("<0x")]
    built = Tokenizer.from_str(json.dumps(whole))
    return PreTrainedTokenizerFast(tokenizer_object=built, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="session")
def spoken(tmp_path_factory) -> Path:
    """The folder of a random Llama with a sentencepiece-like tokenizer of 401 tokens in 409 rows."""
    folder = tmp_path_factory.mktemp("spoken") / "model"
    source = Path(__file__).parents[2] / "docs" / "pipeline.md"
    model_of("llama", vocab_size=409, bos_token_id=1, eos_token_id=2).save_pretrained(folder)
    pieces([source.read_text(encoding="utf-8")], 401).save_pretrained(folder)
    return folder
