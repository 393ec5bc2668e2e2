"""Are the step times that `plan` predicts those of the engine? Random Llamas, exported, timed in OpenVINO GenAI, int8.

    python benchmarks/step_time.py runs/step-time --make    # exports the shapes once, a minute each
    python benchmarks/step_time.py runs/step-time           # measures the processor, predicts, measures the shapes

The prediction knows the probe of the processor (planning/probe.py) and the shapes' sizes; nothing is fitted to the
shapes' own times. Run it alone on the machine. Shapes take turns, so that a disturbance meets all of them; a figure is
the median of rounds, and of a round the median step of a greedy completion counts. The spread is from the first
quartile to the third, as a share of the median.
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

from fastdraft.config import TargetPart
from fastdraft.export.openvino import export_openvino
from fastdraft.models.openvino import open_folder
from fastdraft.models.openvino_llama import HEAD_SIZE, PROMPT_TOKENS, Sizes, block_seconds, decode_seconds
from fastdraft.models.target import TOKENIZER_FILES, folder_of, quiet
from fastdraft.planning.devices import Device
from fastdraft.planning.model_size import ModelSize
from fastdraft.planning.probe import probe_cpu
from fastdraft.planning.step_times import step_seconds

# Rows, width, layers, MLP, heads, key-value heads. The two of 20M have equal parameters and differ in depth; of
# the 17M nearly all is vocabulary.
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


class Row(NamedTuple):
    """A shape's step on so many tokens: predicted, the rounds that were measured, their median and spread."""

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
    """The shape as transformers knows it."""
    return LlamaConfig(
        vocab_size=sizes.vocab_rows,
        hidden_size=sizes.hidden,
        num_hidden_layers=sizes.layers,
        intermediate_size=sizes.intermediate,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        head_dim=HEAD_SIZE,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )


def make(folder: Path) -> None:
    """Export each shape that is not there yet; the tokenizer, of which nothing is used, is the packaged target's."""
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
        print(f"made {name}", flush=True)


def measure(folder: Path) -> tuple[Device, list[Row]]:
    """The device, and a row for each shape and block."""
    device = probe_cpu()
    pipelines = {name: open_folder(folder / _slug(name)) for name in SHAPES}
    wanted = [(name, 1) for name in SHAPES] + [(name, n) for name, blocks in BLOCKS.items() for n in blocks]
    measured: dict[tuple[str, int], list[float]] = {each: [] for each in wanted}
    for _ in range(ROUNDS):
        for (name, tokens), rounds in measured.items():
            pipeline = pipelines[name]
            rounds.append(decode_seconds(pipeline, TOKENS) if tokens == 1 else block_seconds(pipeline, tokens))
    return device, [_row(name, tokens, device, rounds) for (name, tokens), rounds in measured.items()]


def _row(name: str, tokens: int, device: Device, rounds: list[float]) -> Row:
    size = ModelSize.of_config(config(SHAPES[name]))
    context = PROMPT_TOKENS + TOKENS // 2 if tokens == 1 else 0
    return Row(name, size.parameters, tokens, step_seconds(size, device, "int8", tokens, context), rounds)


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = ["| shape | parameters | tokens | predicted | measured | ratio | spread |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        times = f"{row.predicted_seconds * 1e3:.2f} ms | {row.seconds * 1e3:.2f} ms"
        millions, of = f"{row.parameters / 1e6:.2f}M", row.block_tokens
        lines.append(f"| {row.shape} | {millions} | {of} | {times} | {row.ratio:.2f} | {row.spread:.0%} |")
    return "\n".join(lines)


def _slug(name: str) -> str:
    return name.lower().replace(" ", "-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the exported shapes lie")
    parser.add_argument("--make", action="store_true", help="export the shapes, measure nothing")
    parser.add_argument("--json", type=Path, help="write device and rounds here too")
    given = parser.parse_args()
    quiet()
    if given.make:
        return make(given.folder)
    device, rows = measure(given.folder)
    print(table(rows))
    if given.json:
        rounds = [row._asdict() | {"ratio": row.ratio} for row in rows]
        given.json.write_text(json.dumps({"device": device.model_dump(), "rows": rounds}, indent=1))
    return None


if __name__ == "__main__":
    main()
