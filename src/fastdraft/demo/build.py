"""Rebuild the packaged pair.

python -m fastdraft.demo.build tokenizer    # tokenizer and config.json, from the Python sources on this machine
fastdraft run recipes/demo-target.yaml      # the weights, trained like those of a draft
python -m fastdraft.demo.build package      # bf16 weights, held-out lists and model card, into the package

Its draft, for the playground and for timing with a stand-in (benchmarks/stand_in.py):
fastdraft run recipes/demo-draft.yaml
fastdraft export runs/demo-draft --format huggingface --weights bf16 --out src/fastdraft/demo/draft
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import torch
import typer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from fastdraft.config import SourcePart
from fastdraft.data.corpus_card import CorpusCard
from fastdraft.data.document import Rejected
from fastdraft.data.sources import documents
from fastdraft.data.split import split_of
from fastdraft.demo import model_card
from fastdraft.system.cards import read_card

TARGET = Path(__file__).parent / "target"
VOCABULARY = 8192
END_OF_TEXT = "<|endoftext|>"
# Qwen2's pattern: words, single digits, punctuation with its line end, runs of white space. Engines support it by name.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def tokenizer() -> None:
    """Train the byte-level BPE tokenizer and write it with the config of the target."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet)
    bpe.train_from_iterator(_sample(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )
    fast.save_pretrained(TARGET)
    _set_tokenizer_class(TARGET / "tokenizer_config.json")
    _config().save_pretrained(TARGET)


def _set_tokenizer_class(path: Path) -> None:
    """transformers 5 writes a class name that version 4, and engines that use it, do not have."""
    settings = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(settings, indent=2) + "\n")


@app.command()
def package(run: Path = Path("runs/demo-target")) -> None:
    """Write the weights, held-out lists and model card of a finished run into the package."""
    model = AutoModelForCausalLM.from_pretrained(run / model_card.PHASES[-1] / "model", dtype=torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.save_pretrained(TARGET)
    _set_tokenizer_class(TARGET / "tokenizer_config.json")
    corpus = read_card(run / "tokenize", CorpusCard)
    for name, source in corpus.sources.items():
        # Without a time stamp, equal lists are equal files.
        keys = gzip.compress("\n".join(source.held_out_keys).encode(), mtime=0)
        (TARGET.parent / f"held_out.{name}.txt.gz").write_bytes(keys)
    (TARGET / "README.md").write_text(model_card.model_card(TARGET, run), encoding="utf-8")


def _sample() -> list[str]:
    """A quarter of the training split of code and docstrings. It suffices for 8 192 tokens and takes seconds."""
    parts = [SourcePart(source=source, sample_fraction=0.25) for source in ("python_code", "python_docstrings")]
    return [d.text for part in parts for d in documents(part, Rejected()) if split_of(part, d.key) == "train"]


def _config() -> LlamaConfig:
    config: LlamaConfig = LlamaConfig.from_dict(
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 256,
            "intermediate_size": 704,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "tie_word_embeddings": True,
            "max_position_embeddings": 1024,
            "rms_norm_eps": 1e-5,
            "bos_token_id": None,
            "eos_token_id": 0,
            "pad_token_id": 0,
            "architectures": ["LlamaForCausalLM"],
            "dtype": "bfloat16",
        }
    )
    return config


if __name__ == "__main__":
    app()
