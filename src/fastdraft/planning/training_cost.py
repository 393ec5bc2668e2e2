"""What making a draft costs: FLOPs, hours on a device, what the target must write, disk."""

from __future__ import annotations

from fastdraft.planning.devices import Device
from fastdraft.planning.model_size import ModelSize, kv_bytes, weight_bytes
from fastdraft.planning.step_times import forward_flops, step_seconds

# The paper's server: section 4 trained on eight of these.
PAPER_DEVICE, PAPER_DEVICES = "gaudi-2", 8
# Share of the dense rate that training reaches. 40 % is what well-kept training of models of 1B and more reaches; a
# draft's narrow matrices reach less.
UTILISATION = 0.4


def training_flops(size: ModelSize, tokens: float, sequence_tokens: int) -> float:
    """FLOPs of training: forward, and twice that backward. Attention counts the causal half of each sequence.

    6 N D for N parameters without the input embedding (Kaplan et al. 2020, arXiv:2001.08361, section 2.1), and
    attention.
    """
    return 3 * tokens * forward_flops(size, 1, sequence_tokens / 2)


def hours(flops: float, device: Device, utilisation: float = UTILISATION, devices: int = 1) -> float:
    """Hours of so many FLOPs on so many devices at a share of their rate; times devices: accelerator-hours.

    The rate is that of bf16, or of fp32 where the device has no faster bf16.
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
    """Seconds for a target to write so many tokens, so many sequences at a time, each with so many tokens behind it."""
    step = step_seconds(target, device, weights, 1, context_tokens, sequences)
    return tokens / sequences * step / devices


def most_sequences(target: ModelSize, device: Device, weights: str, context_tokens: int, at_most: int = 256) -> int:
    """Sequences whose keys and values fit a device beside the weights; 0 where the weights alone do not."""
    free = device.memory_bytes - weight_bytes(target, weights)
    return max(0, min(at_most, int(free // kv_bytes(target, context_tokens))))


def shard_bytes(tokens: float, vocab_rows: int) -> float:
    """Disk of tokenised text: datatrove writes a token in 2 bytes where the vocabulary allows it, else in 4."""
    return tokens * (2 if vocab_rows <= 1 << 16 else 4)


def checkpoint_bytes(size: ModelSize, optimizer: str = "muon", kept: int = 2) -> float:
    """Disk of the checkpoints that training keeps, and of one being written: float32 weights and optimizer states."""
    outer = size.parameters - size.body_parameters
    states = size.body_parameters * (1 if optimizer == "muon" else 2) + outer * 2
    return 4.0 * (size.parameters + states) * (kept + 1)


def top_bytes(known_tokens: int, vocab_rows: int) -> float:
    """Disk of the most likely tokens of one place: log-probabilities in float16, and their ids."""
    return 2 * known_tokens + shard_bytes(known_tokens, vocab_rows)


def completion_bytes(tokens: float) -> float:
    """Disk of what the target wrote, in parquet: 2 bytes a log-probability, 2 to 3 a token, and the prompts."""
    return 6.0 * tokens
