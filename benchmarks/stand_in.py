"""Make a stand-in for a large target: a small one grown to hundreds of millions of parameters with the same outputs.

Large models are not available on every machine. The stand-in has the decode cost of one because of dead weights: wider
blocks with new outputs of zero, new heads that nothing reads, new layers that add nothing. It generates the texts of
the small model. The README in its folder and its configuration (`fastdraft_stand_in`) say that it is a stand-in;
figures measured with it must say so too.

    python benchmarks/stand_in.py demo runs/stand-in-292m --width 1024 --layers 24

The residual stream of w0 dimensions is embedded in one of w1 = m w0 dimensions; the others are always zero:

- RMSNorm divides by the root of the mean square plus eps. The mean over w1 is the mean over w0 times w0/w1, so its
  weight is scaled by sqrt(w0/w1) and eps by w0/w1.
- A head of d0 dimensions in one of d1 = n d0: its rotary frequency theta^(-2j/d0) is that of pair j n of the wide head.
  There, scores are divided by sqrt(d1), so q is scaled by sqrt(d1/d0).
- The number of query heads per key-value head is kept and old heads come first, so they still use the same keys.
- New layers have output projections of zero: attention and MLP are computed, and add nothing.

Rows that nothing reads are random, so that no engine can skip a zero matrix. Columns that read dead dimensions are
zero, so that the scales of a quantiser do not change.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from fastdraft.config import TargetPart
from fastdraft.models import pretrained
from fastdraft.system.errors import RunError, ShapeError, UserError
from fastdraft.system.files import atomic_write

# A LlamaConfig, which declares some sizes as optional that every Llama has.
Config: TypeAlias = Any
KEY = "fastdraft_stand_in"
PROBE_ROWS, PROBE_TOKENS = 4, 128
# Sums of 1024 instead of 256 fp32 terms differ by rounding: typically by 1e-5 for logits up to 20.
MAX_DIFFERENCE = 1e-3
# Matrices whose new weights must be zero: they write to the residual stream, or use it as embedding.
WRITERS = ("embed_tokens", "lm_head", "o_proj", "down_proj")


class Growth(NamedTuple):
    """The sizes to grow to; width and head size are multiples of the small model's."""

    width: int
    layers: int
    head_size: int


def grow(small: LlamaForCausalLM, growth: Growth, seed: int = 0) -> LlamaForCausalLM:
    """A float32 model of the grown sizes with the outputs of the small one; ShapeError if it is impossible."""
    config = _config(small.config, growth)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        grown: LlamaForCausalLM = LlamaForCausalLM(config).float()
    old = small.state_dict()
    with torch.no_grad():
        for name, weight in grown.named_parameters():
            weight.copy_(weight.bfloat16())  # random weights must not prevent storing the model in bf16
            _fill(weight, name.removesuffix(".weight").rpartition(".")[2], old.get(name), small.config, config)
    grown.eval().requires_grad_(False)
    return grown


def _config(small: Config, growth: Growth) -> LlamaConfig:
    ratio, left = divmod(growth.width, small.hidden_size)
    if left or growth.head_size % small.head_dim or growth.layers < small.num_hidden_layers:
        raise ShapeError(
            f"{growth} cannot hold {small.num_hidden_layers} layers {small.hidden_size} wide with heads of "
            f"{small.head_dim}\n  wanted: multiples of width and head size, at least as many layers\n"
            f"  do: choose --width, --head-size and --layers accordingly"
        )
    rope = small.rope_parameters["rope_type"]
    if rope != "default" or small.attention_bias or small.mlp_bias:
        raise ShapeError(
            f"found rope_type {rope}, attention_bias {small.attention_bias}, mlp_bias {small.mlp_bias}\n"
            f"  wanted: default, False, False\n  do: choose another Llama"
        )
    grown = {
        "hidden_size": growth.width,
        "num_hidden_layers": growth.layers,
        "head_dim": growth.head_size,
        "num_attention_heads": small.num_attention_heads * ratio,
        "num_key_value_heads": small.num_key_value_heads * ratio,
        "intermediate_size": small.intermediate_size * ratio,
        "rms_norm_eps": small.rms_norm_eps / ratio,
        "dtype": "float32",
        KEY: f"a model {small.hidden_size} wide with {small.num_hidden_layers} layers, grown with dead weights: "
        "its outputs, the decode cost of a large one",
    }
    return LlamaConfig(**small.to_dict() | grown)


def _fill(weight: Tensor, part: str, old: Tensor | None, small: Config, big: Config) -> None:
    """Copy a small weight to its place in the grown one, and set to zero what must be zero."""
    if part.endswith("norm"):
        if old is not None:
            weight[: len(old)] = old * (small.hidden_size / big.hidden_size) ** 0.5
        return
    if part in WRITERS:
        weight.zero_()
    if old is not None:
        rows, columns = _places(part, small, big)
        weight[: _live_rows(part, small, big)] = 0.0
        weight[rows[:, None], columns] = old.float() * (
            (big.head_dim / small.head_dim) ** 0.5 if part == "q_proj" else 1.0
        )


def _places(part: str, small: Config, big: Config) -> tuple[Tensor, Tensor]:
    """The rows and columns of a grown matrix that hold the small one."""
    width, mlp, tokens = (torch.arange(n) for n in (small.hidden_size, small.intermediate_size, small.vocab_size))
    queries, keys, values = small.num_attention_heads, small.num_key_value_heads, torch.arange(small.head_dim)
    # transformers rotates dimensions j and j + d/2 together, with the frequency theta^(-2j/d).
    pairs = torch.arange(small.head_dim // 2) * (big.head_dim // small.head_dim)
    rotated = torch.cat([pairs, pairs + big.head_dim // 2])
    places = {
        "embed_tokens": (tokens, width),
        "lm_head": (tokens, width),
        "q_proj": (_in_heads(queries, rotated, big), width),
        "k_proj": (_in_heads(keys, rotated, big), width),
        "v_proj": (_in_heads(keys, values, big), width),
        "o_proj": (width, _in_heads(queries, values, big)),
        "gate_proj": (mlp, width),
        "up_proj": (mlp, width),
        "down_proj": (width, mlp),
    }
    return places[part]


def _in_heads(heads: int, dimensions: Tensor, big: Config) -> Tensor:
    """The indices of these dimensions of each of the first `heads` heads."""
    indices: Tensor = torch.arange(heads)[:, None] * big.head_dim + dimensions
    return indices.flatten()


def _live_rows(part: str, small: Config, big: Config) -> int:
    """The number of first rows of a grown matrix that are read: whole heads, although a part of each is new."""
    heads = {"q_proj": small.num_attention_heads, "k_proj": small.num_key_value_heads}
    heads["v_proj"] = small.num_key_value_heads
    return heads[part] * big.head_dim if part in heads else len(_places(part, small, big)[0])


@torch.inference_mode()
def largest_difference(small: LlamaForCausalLM, grown: PreTrainedModel, seed: int = 0) -> float:
    """The largest difference of the two models' logits on random tokens."""
    generator = torch.Generator().manual_seed(seed)
    tokens = min(PROBE_TOKENS, small.config.max_position_embeddings)
    ids_BT = torch.randint(small.config.vocab_size, (PROBE_ROWS, tokens), generator=generator)
    return float((small(ids_BT).logits - grown(ids_BT).logits).abs().max())


def write(part: TargetPart, destination: Path, growth: Growth) -> str:
    """Write the grown target and the target's tokenizer files to a new folder; returns the README.

    RunError if the folder exists, ShapeError if the target cannot be grown.
    """
    if destination.exists():
        raise RunError(f"{destination} exists\n  do: remove it, or choose another folder")
    small = pretrained.open_model(part, torch.device("cpu"))
    if not isinstance(small, LlamaForCausalLM):
        raise ShapeError(
            f"{part.path} is a `{small.config.model_type}`\n  wanted: a Llama\n  do: choose another target"
        )
    with atomic_write(destination) as folder:
        grown = grow(small, growth)
        exact = all(torch.equal(weight, weight.bfloat16().float()) for weight in grown.parameters())
        (grown.bfloat16() if exact else grown).save_pretrained(folder)
        for name in (*pretrained.TOKENIZER_FILES, "generation_config.json"):
            if (pretrained.folder_of(part) / name).is_file():
                shutil.copyfile(pretrained.folder_of(part) / name, folder / name)
        written = pretrained.open_model(TargetPart(path=str(folder.resolve())), small.device)
        text = _readme(part, small, growth, written)
        (folder / "README.md").write_text(text, encoding="utf-8")
    return text


def _readme(part: TargetPart, small: LlamaForCausalLM, growth: Growth, grown: PreTrainedModel) -> str:
    """The README of the written model; AssertionError if its logits differ from those of the small one."""
    width, layers, head_size = growth
    difference = largest_difference(small, grown)
    if not difference <= MAX_DIFFERENCE:
        raise AssertionError(f"the logits differ by {difference:.2g}, wanted {MAX_DIFFERENCE:g} at most")
    return f"""# A stand-in, not a large model

`{part.path}` ({small.num_parameters():,} parameters) grown to {grown.num_parameters():,} by FastDraft's
`benchmarks/stand_in.py`: width {width}, {layers} layers, heads of {head_size}, most of it dead weights.
It has the outputs of `{part.path}` and the decode cost of a large model. Its only use is to measure speculative
decoding. Say so next to every figure measured with it.

Largest difference of its fp32 logits from those of `{part.path}` on {PROBE_ROWS} x {PROBE_TOKENS} random tokens:
{difference:.2g}.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", help="`demo`, a folder or a hub id of a Llama")
    parser.add_argument("destination", type=Path, help="a folder that does not exist yet")
    parser.add_argument("--width", type=int, default=1024, help="a multiple of the target's")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--head-size", type=int, default=64, help="a multiple of the target's")
    options = parser.parse_args()
    disable_progress_bar()
    try:
        growth = Growth(options.width, options.layers, options.head_size)
        print(write(TargetPart(path=options.target), options.destination, growth))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
