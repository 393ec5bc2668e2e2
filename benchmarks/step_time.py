"""Compare the step times that `plan` predicts with those of random Llamas in OpenVINO GenAI, int8.

    python benchmarks/step_time.py runs/step-time --make    # export the shapes once, a minute each
    python benchmarks/step_time.py runs/step-time           # probe the processor, predict, measure the shapes

The prediction uses only the probe of the processor (planning/probe.py) and the sizes of the shapes; nothing is fitted
to measured steps. Run it alone on the machine. The shapes take turns, so that disturbances affect all of them. A figure
is the median over rounds of the median step of a greedy completion. The spread is the interquartile range as a fraction
of the median.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from fastdraft.config import TargetPart
from fastdraft.exporters.openvino import export_openvino
from fastdraft.models.openvino import PROMPT_TOKENS, block_seconds, decode_seconds, open_pipeline
from fastdraft.models.openvino_llama import HEAD_SIZE, Sizes
from fastdraft.models.pretrained import TOKENIZER_FILES, folder_of
from fastdraft.planning.devices import Device
from fastdraft.planning.model_size import ModelSize
from fastdraft.planning.probe import probe_cpu
from fastdraft.planning.step_times import step_seconds

# Vocabulary rows, width, layers, MLP, heads, key-value heads. The two of 20M have equal parameters and differ in depth;
# the 17M are nearly all vocabulary.
SHAPES = {
    "demo draft 0.6M": Sizes(8192, 64, 2, 192, 1, 1),
    "demo target 5.8M": Sizes(8192, 256, 5, 704, 4, 2),
    "deep 20M": Sizes(8192, 256, 24, 704, 4, 2),
    "shallow 20M": Sizes(8192, 768, 2, 2176, 12, 6),
    "rows 17M": Sizes(128256, 128, 2, 384, 2, 1),
    "Phi-3 50M": Sizes(32064, 512, 10, 1344, 8, 8),
    "Phi-3 120M": Sizes(32064, 768, 13, 2048, 12, 12),
    "Llama-3 150M": Sizes(128256, 640, 12, 2240, 10, 2),
    "target 300M": Sizes(32064, 1024, 22, 2816, 16, 8),
}
BLOCKS = {"target 300M": (3, 5, 9)}
TOKENS, ROUNDS = 32, 9


class StepTime(NamedTuple):
    """The predicted and the measured time of a shape's step on `block_tokens` tokens."""

    shape: str
    parameters: int
    block_tokens: int
    predicted_seconds: float
    measured: list[float]

    @property
    def seconds(self) -> float:
        return median(self.measured)

    @property
    def ratio(self) -> float:
        return self.predicted_seconds / self.seconds

    @property
    def spread(self) -> float:
        low, _, high = quantiles(self.measured, n=4)
        return (high - low) / self.seconds


def config(sizes: Sizes) -> LlamaConfig:
    """The transformers configuration of a shape."""
    config: LlamaConfig = LlamaConfig.from_dict(
        {
            "vocab_size": sizes.vocab_rows,
            "hidden_size": sizes.hidden,
            "num_hidden_layers": sizes.layers,
            "intermediate_size": sizes.intermediate,
            "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.kv_heads,
            "head_dim": HEAD_SIZE,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": 0,
            "pad_token_id": 0,
        }
    )
    return config


def make(folder: Path) -> None:
    """Export the missing shapes, with the packaged target's tokenizer, which is not used."""
    tokenizer = folder_of(TargetPart(path="demo"))
    for name, sizes in SHAPES.items():
        destination, source = folder / _slug(name), folder / "source"
        if destination.exists():
            continue
        torch.manual_seed(0)
        LlamaForCausalLM(config(sizes)).save_pretrained(source)
        for file in TOKENIZER_FILES:
            if (tokenizer / file).is_file():
                shutil.copyfile(tokenizer / file, source / file)
        export_openvino(source, destination, "int8")
        shutil.rmtree(source)
        print(f"exported {name}", flush=True)


def measure(folder: Path) -> tuple[Device, list[StepTime]]:
    """The probed device, and the step times of each shape and block."""
    device = probe_cpu()
    pipelines = {name: open_pipeline(folder / _slug(name)) for name in SHAPES}
    steps = [(name, 1) for name in SHAPES] + [(name, n) for name, blocks in BLOCKS.items() for n in blocks]
    measured: dict[tuple[str, int], list[float]] = {step: [] for step in steps}
    for _ in range(ROUNDS):
        for (name, tokens), rounds in measured.items():
            pipeline = pipelines[name]
            rounds.append(decode_seconds(pipeline, TOKENS) if tokens == 1 else block_seconds(pipeline, tokens))
    return device, [_row(name, tokens, device, rounds) for (name, tokens), rounds in measured.items()]


def _row(name: str, tokens: int, device: Device, rounds: list[float]) -> StepTime:
    size = ModelSize.of_config(config(SHAPES[name]))
    context = PROMPT_TOKENS + TOKENS // 2 if tokens == 1 else 0
    return StepTime(name, size.parameters, tokens, step_seconds(size, device, "int8", tokens, context), rounds)


def table(rows: list[StepTime]) -> str:
    """A Markdown table."""
    lines = ["| shape | parameters | tokens | predicted | measured | ratio | spread |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        times = f"{row.predicted_seconds * 1e3:.2f} ms | {row.seconds * 1e3:.2f} ms"
        millions = f"{row.parameters / 1e6:.2f}M"
        lines.append(
            f"| {row.shape} | {millions} | {row.block_tokens} | {times} | {row.ratio:.2f} | {row.spread:.0%} |"
        )
    return "\n".join(lines)


def _slug(name: str) -> str:
    return name.lower().replace(" ", "-")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of the exported shapes")
    parser.add_argument("--make", action="store_true", help="only export the shapes")
    parser.add_argument("--json", type=Path, help="also write device and rounds to this file")
    options = parser.parse_args()
    disable_progress_bar()
    if options.make:
        return make(options.folder)
    device, rows = measure(options.folder)
    print(table(rows))
    if options.json:
        rounds = [row._asdict() | {"ratio": row.ratio} for row in rows]
        options.json.write_text(json.dumps({"device": device.model_dump(), "rows": rounds}, indent=1))
    return None


if __name__ == "__main__":
    main()
