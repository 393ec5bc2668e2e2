"""The cost of making a draft: FLOPs, hours on a device, generation by the target, disk."""

from __future__ import annotations

from fastdraft.planning.devices import Device
from fastdraft.planning.model_size import ModelSize, kv_bytes, weight_bytes
from fastdraft.planning.step_times import forward_flops, step_seconds

# The paper's server (section 4): eight of these.
PAPER_DEVICE, PAPER_DEVICES = "gaudi-2", 8
# Fraction of the dense rate that training reaches. Well-tuned training of models of 1B and more reaches 40 %; a draft's
# narrow matrices reach less.
UTILISATION = 0.4


def training_flops(size: ModelSize, tokens: float, sequence_tokens: int) -> float:
    """FLOPs of training: forward, and twice that backward. Attention counts the causal half of each sequence.

    6 N D for N parameters without the input embedding (Kaplan et al. 2020, arXiv:2001.08361, section 2.1), and
    attention.
    """
    return 3 * tokens * forward_flops(size, 1, sequence_tokens / 2)


def hours(flops: float, device: Device, utilisation: float = UTILISATION, devices: int = 1) -> float:
    """Hours of training on `devices`, at a fraction of their rate; multiply by `devices` for accelerator-hours.

    The rate is that of bf16, or of fp32 if the device has no faster bf16.
    """
    return flops / (device.rate("bf16") * utilisation * devices) / 3600


def generation_seconds(
    target: ModelSize,
    tokens: float,
    device: Device,
    weights: str = "bf16",
    sequences: int = 64,
    context_tokens: int = 512,
    devices: int = 1,
) -> float:
    """Seconds for a target to generate `tokens` in batches of `sequences`, each with a context of `context_tokens`."""
    step = step_seconds(target, device, weights, 1, context_tokens, sequences)
    return tokens / sequences * step / devices


def most_sequences(target: ModelSize, device: Device, weights: str, context_tokens: int, most: int = 256) -> int:
    """The number of sequences whose keys and values fit a device next to the weights; 0 if the weights do not fit."""
    free = device.memory_bytes - weight_bytes(target, weights)
    return max(0, min(most, int(free // kv_bytes(target, context_tokens))))


def shard_bytes(tokens: float, vocab_rows: int) -> float:
    """Disk of tokenised text: datatrove stores a token in 2 bytes if the vocabulary allows it, else in 4."""
    return tokens * (2 if vocab_rows <= 1 << 16 else 4)


def checkpoint_bytes(size: ModelSize, optimizer: str = "muon", kept: int = 2) -> float:
    """Disk of the checkpoints that training keeps plus one being written: float32 weights and optimizer states."""
    outer = size.parameters - size.body_parameters
    states = size.body_parameters * (1 if optimizer == "muon" else 2) + outer * 2
    return 4.0 * (size.parameters + states) * (kept + 1)


def top_bytes(known_tokens: int, vocab_rows: int) -> float:
    """Disk of the most likely tokens at one position: log-probabilities in float16, and token ids."""
    return 2 * known_tokens + shard_bytes(known_tokens, vocab_rows)


def completion_bytes(tokens: float) -> float:
    """Disk of completions in parquet: 2 bytes per log-probability, 2 to 3 per token, and the prompts."""
    return 6.0 * tokens
