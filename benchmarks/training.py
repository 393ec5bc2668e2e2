"""Compare the training speed of FastDraft, transformers' Trainer and a plain PyTorch loop.

    python benchmarks/training.py runs/training                         # three shapes, 10 minutes on two cores
    python benchmarks/training.py runs/training --shapes demo --quick   # a minute: does it run?
    python benchmarks/training.py runs/training --device cuda           # benchmarks/gpu.sh runs everything for a GPU
    python benchmarks/training.py runs/training --schedule              # the steps of the recipes, a minute each

All have the same model, batch, precision, optimizer (fused AdamW) and data. The data are random tokens, since speed
does not depend on them. `--precision bf16` is autocast over fp32 weights; `auto`, the default, is the precision in
which this device multiplies faster. FastDraft runs the steps of a phase. Each trainer runs in a process, so
that its peak memory can be measured. They take turns step by step, so that disturbances affect all of them, and a
figure is the median. If their memory does not fit together (a vocabulary of 128 256 on a CPU), only one of them runs
at a time. MFU is the FLOPs of forward and backward pass (planning/training_cost.py) over the rate of a matrix product
in that precision, which is measured in turn with the steps. `--clock process` measures CPU seconds divided by the
number of threads, for shared machines. A shape with figures in the folder is not measured again. `--schedule` runs the
steps of a recipe (its micro-batches, Muon) for `--seconds` and computes how long the paper's 12.5B tokens of PT and CP
would take.
Needs PYTHONPATH=src and: pip install torch transformers accelerate pydantic xxhash rich
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from fastdraft.config import TrainPart
from fastdraft.config.resolve import resolve
from fastdraft.data.order import Mixture
from fastdraft.data.prefetch import PrefetchedMixture
from fastdraft.models import draft, pretrained, shape
from fastdraft.planning.devices import DEVICES, Device
from fastdraft.planning.model_size import ModelSize
from fastdraft.planning.training_cost import training_flops
from fastdraft.system.precision import DTYPES, choose
from fastdraft.train import loop, objectives
from fastdraft.train.utilization import peak_memory_bytes

RECIPES = Path(__file__).parents[1] / "recipes"
SEED, LEARNING_RATE, CLIP = 7, 1e-3, 1.0
MATRIX_SIZE = {"cpu": 2048, "cuda": 8192}
# Instruction sets that determine the speed of a processor, as named in /proc/cpuinfo.
FLAGS = ("avx2", "f16c", "fma", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "asimd", "bf16", "sve")
# The parts of published target configurations that determine the shape of a draft.
PHI_3_MINI = {
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "sliding_window": 2047,
    "pad_token_id": 32000,
}
LLAMA_3_1_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}


@dataclass(frozen=True)
class Load:
    """The batch of a step, the number of rounds and the trainers. `together`: all trainers fit in memory at once."""

    sequences: int
    sequence_tokens: int
    head_chunk_tokens: int
    rounds: int
    arms: tuple[str, ...]
    together: bool = True
    micro_sequences: int | None = None

    @property
    def tokens(self) -> int:
        return self.sequences * self.sequence_tokens


@dataclass(frozen=True)
class Shape:
    """A draft by its recipe, and the configuration of its target if that is not packaged."""

    recipe: str
    target: tuple[str, dict[str, Any]] | None
    loads: dict[str, Load]

    def draft_shape(self) -> shape.DraftShape:
        """The shape of the recipe's draft."""
        recipe = resolve(RECIPES / f"{self.recipe}.yaml").recipe
        config = AutoConfig.for_model(self.target[0], **self.target[1]) if self.target else None
        return shape.derive(config or pretrained.open_config(recipe.target), recipe.draft)


ALL = ("FastDraft", "FastDraft, Muon", "Trainer", "Trainer, compiled", "plain loop")
PLAIN = ("FastDraft", "Trainer", "plain loop")
SHAPES = {
    "demo": Shape("demo", None, {"cpu": Load(16, 256, 512, 15, ALL), "cuda": Load(128, 256, 8192, 10, ALL)}),
    "phi3-50m": Shape(
        "phi3-mini-50m",
        ("phi3", PHI_3_MINI),
        {"cpu": Load(4, 1024, 1024, 3, ALL), "cuda": Load(16, 2048, 4096, 10, ALL)},
    ),
    "phi3-120m": Shape(
        "phi3-mini-120m",
        ("phi3", PHI_3_MINI),
        {"cpu": Load(4, 1024, 1024, 2, PLAIN), "cuda": Load(16, 2048, 4096, 10, ALL)},
    ),
    "llama3.1-150m": Shape(
        "llama3.1-8b-150m",
        ("llama", LLAMA_3_1_8B),
        {"cpu": Load(4, 2048, 1024, 1, PLAIN, together=False), "cuda": Load(8, 2048, 4096, 10, ALL)},
    ),
}
DEFAULT_SHAPES = ("demo", "phi3-50m", "llama3.1-150m")
# The paper's PT and CP: 5B tokens, and 7.5B.
SCHEDULE_TOKENS = 12.5e9


class RandomSequences:
    """Sequences of random tokens, each generated from its index."""

    def __init__(self, vocabulary: int, sequence_tokens: int) -> None:
        self.labels = (1 << 20) * sequence_tokens
        self._vocabulary, self._tokens = vocabulary, sequence_tokens

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """inputs_T, labels_T"""
        generator = torch.Generator().manual_seed(SEED + index)
        window = torch.randint(self._vocabulary, (self._tokens + 1,), generator=generator)
        return window[:-1], window[1:]


Step = Callable[[], None]


def fastdraft_step(model: PreTrainedModel, load: Load, device: torch.device, optimizer: str, precision: str) -> Step:
    """A step of a phase as in the pipeline; compiled on accelerators, as in their recipes."""
    part = TrainPart(
        mix={"random": 1.0},
        train_tokens=load.tokens * 10**6,
        batch_size=load.sequences,
        micro_batch_size=load.micro_sequences,
        sequence_tokens=load.sequence_tokens,
        optimizer=optimizer,
        learning_rate=LEARNING_RATE,
        gradient_clip=CLIP,
        head_chunk_tokens=load.head_chunk_tokens,
        compile=device.type != "cpu",
    )
    sequences = RandomSequences(model.config.vocab_size, load.sequence_tokens)
    phase = loop.Phase(
        name="pretrain",
        model=model,
        part=part,
        mixture=PrefetchedMixture(Mixture({"random": sequences}, part.mix, SEED)),
        held_out={},
        objective=objectives.cross_entropy,
        folder=Path(),
        device=device,
        dtype=DTYPES[precision],
    )
    training = loop.begin(phase)

    def step() -> None:
        loop._step(training, 100)

    return step


def plain(model: PreTrainedModel, load: Load, device: torch.device, precision: str) -> Step:
    """A step with all logits at once and torch's cross entropy."""
    torch.nn.Module.to(model, device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    sequences, indices = RandomSequences(model.config.vocab_size, load.sequence_tokens), iter(range(10**6))

    def step() -> None:
        batch = [sequences[next(indices)] for _ in range(load.sequences)]
        inputs_BT, labels_BT = (torch.stack(tensors).to(device) for tensors in zip(*batch, strict=True))
        autocast: AbstractContextManager[Any] = nullcontext()
        if precision == "bf16":
            autocast = torch.autocast(device.type, torch.bfloat16)
        with autocast:
            logits_BTV = model(input_ids=inputs_BT, use_cache=False).logits
        loss = cross_entropy(logits_BTV.float().flatten(0, 1), labels_BT.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


class StepOnRequest(TrainerCallback):
    """Makes transformers' Trainer wait before each step until one is requested, and times the step."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._begun = clock, 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        wait_for_request()
        self._begun = self._clock()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        log_line(seconds=self._clock() - self._begun)


def run_trainer(
    model: PreTrainedModel, load: Load, device: torch.device, clock: Clock, compiled: bool, precision: str
) -> None:
    """Train with transformers' Trainer and the fused optimizer until the end of input."""
    sequences = RandomSequences(model.config.vocab_size, load.sequence_tokens)

    class Data(torch.utils.data.Dataset[dict[str, Tensor]]):
        def __len__(self) -> int:
            return len(sequences)

        def __getitem__(self, index: int) -> dict[str, Tensor]:
            inputs_T, _ = sequences[index]
            return {"input_ids": inputs_T, "labels": inputs_T}

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=10**6,
            per_device_train_batch_size=load.sequences,
            learning_rate=LEARNING_RATE,
            max_grad_norm=CLIP,
            bf16=precision == "bf16",
            optim="adamw_torch_fused",
            torch_compile=compiled,
            use_cpu=device.type == "cpu",
            report_to=[],
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
        )
        Trainer(model, arguments, train_dataset=Data(), callbacks=[StepOnRequest(clock)]).train()


class Clock:
    """Wall-clock seconds, or CPU seconds of this process divided by its threads."""

    def __init__(self, of_process: bool, device: torch.device) -> None:
        self._of_process, self._device = of_process, device

    def __call__(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.process_time() / torch.get_num_threads() if self._of_process else time.perf_counter()


def wait_for_request() -> None:
    """Wait for a line of input. At the end of input, print the peak memory and end this process."""
    if not sys.stdin.readline():
        used = torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0
        log_line(peak_bytes=peak_memory_bytes(torch.device("cuda" if used else "cpu")))
        os._exit(0)


def log_line(**values: float) -> None:
    print(json.dumps(values), flush=True)


def serve(options: argparse.Namespace, load: Load, device: torch.device, clock: Clock) -> None:
    """The process of one trainer: run a step for each line of input, and print its seconds."""
    if device.type == "cpu":
        # If memory runs out, allocation fails here, and the system ends no other process.
        resource.setrlimit(resource.RLIMIT_DATA, (free_bytes(), resource.RLIM_INFINITY))
    arm, precision = options.serve, options.precision
    (shape_name,) = options.shapes
    model = draft.new(SHAPES[shape_name].draft_shape(), SEED)
    if arm.startswith("Trainer"):
        return run_trainer(model, load, device, clock, compiled="compiled" in arm, precision=precision)
    if arm == "plain loop":
        step = plain(model, load, device, precision)
    else:
        step = fastdraft_step(model, load, device, "muon" if "Muon" in arm else "adamw", precision)
    while True:
        wait_for_request()
        begun = clock()
        step()
        log_line(seconds=clock() - begun)


def free_bytes() -> int:
    """The memory that is available now."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


class TrainerProcess:
    """The process of one trainer; its methods return None if it has failed."""

    def __init__(self, command: list[str]) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, open as long as the process runs
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )

    def step(self) -> float | None:
        """Run a step; its seconds."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("step\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return None
        return self._read("seconds")

    def end(self) -> float | None:
        """End the process; its peak memory in bytes."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        peak = self._read("peak_bytes")
        self._process.wait()
        if peak is None:
            self._errors.seek(0)
            print(self._errors.read()[-1500:], file=sys.stderr)
        return peak

    def _read(self, key: str) -> float | None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return float(json.loads(line)[key])
        return None


def matrix_rate(device: torch.device, clock: Clock, precision: str) -> float:
    """FLOP/s of products of two large matrices, after a warm-up."""
    size = MATRIX_SIZE[device.type]
    # Not ones, because accelerators multiply matrices of equal numbers faster.
    left = torch.arange(size * size, device=device).sin().view(size, size).to(DTYPES[precision])
    left @ left
    begun = clock()
    for _ in range(4):
        left @ left
    return 8.0 * size**3 / (clock() - begun)


def processor(device: torch.device) -> str:
    """The name of the processor, the number of torch threads, and its relevant instruction sets."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = re.findall(r"^([^\t:]+?)\s*: (.*)$", info.read_text(), re.MULTILINE) if info.is_file() else []
    known = dict(reversed(lines))
    flags = [flag for flag in FLAGS if flag in (known.get("flags") or known.get("Features") or "").split()]
    name = known.get("model name") or platform.processor()
    family = f" family {known['cpu family']} model {known['model']}" if "cpu family" in known else ""
    return f"{name}{family}, {torch.get_num_threads()} threads, {' '.join(flags)}"


def measure(name: str, load: Load, options: argparse.Namespace, device: torch.device, clock: Clock) -> dict[str, Any]:
    """The figures of a shape: step times and peak memory of each trainer, and the matrix rate of the device."""
    arms = [arm for arm in load.arms if not options.arms or arm in options.arms]
    flags = ["--device", options.device, "--clock", options.clock, "--precision", options.precision]
    flags += [f"--{flag}" for flag in ("quick", "schedule") if getattr(options, flag)]
    commands = {
        arm: [sys.executable, __file__, str(options.folder), *flags, "--shapes", name, "--serve", arm] for arm in arms
    }
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    peaks: dict[str, float | None] = dict.fromkeys(arms, 0.0)
    rates = []
    for group in [arms] if load.together else [[arm] for arm in arms]:
        running = {arm: TrainerProcess(commands[arm]) for arm in group}
        if load.together:
            for arm in group:
                running[arm].step()  # warm-up; skipped for shapes whose steps take a minute
        while any(_needs_step(seconds[arm], load, options) for arm in running):
            for arm in list(running):
                if (step_seconds := running[arm].step()) is None:
                    peaks[arm] = running.pop(arm).end()
                else:
                    seconds[arm].append(step_seconds)
            # After the steps, because starting processes use the cores too.
            rates.append(matrix_rate(device, clock, options.precision))
        peaks |= {arm: process.end() for arm, process in running.items()}
    draft_shape = SHAPES[name].draft_shape()
    size = ModelSize.of_shape(draft_shape)
    return {
        "shape": name,
        "precision": options.precision,
        "processor": processor(device),
        "schedule": options.schedule,
        "parameters": size.parameters,
        "vocabulary": size.vocab_rows,
        "sequences": load.sequences,
        "sequence_tokens": load.sequence_tokens,
        "flops": training_flops(size, load.tokens, load.sequence_tokens),
        "matrix_rates": rates,
        "arms": {arm: {"seconds": seconds[arm], "peak_bytes": peaks[arm]} for arm in arms},
    }


def _needs_step(seconds: list[float], load: Load, options: argparse.Namespace) -> bool:
    """Whether a trainer runs another step."""
    return sum(seconds) < options.seconds if options.schedule else len(seconds) < (options.rounds or load.rounds)


HEAD = (
    *("draft, batch, rate of a matrix product", "trainer", "tokens/s", "MFU", "of the published rate", "memory"),
    *("speed to Trainer", "memory to it", "12.5B tokens"),
)


def table(results: list[dict[str, Any]]) -> str:
    """A Markdown table; ratios are relative to the fastest Trainer."""
    lines = [" | ".join(cells) for result in results for cells in table_rows(result)]
    lines = [f"| {line} |" for line in [" | ".join(HEAD), " | ".join(["---"] * len(HEAD)), *lines]]
    return "\n".join([*lines, "", *sorted({result["processor"] for result in results})])


def table_rows(result: dict[str, Any]) -> list[list[str]]:
    """The rows of a shape, one per trainer."""
    tokens, arms = result["sequences"] * result["sequence_tokens"], result["arms"]
    speeds = {arm: tokens / median(figures["seconds"]) for arm, figures in arms.items() if figures["seconds"]}
    best = max((arm for arm in speeds if arm.startswith("Trainer")), key=speeds.__getitem__, default=None)
    rate, published = median(result["matrix_rates"] or [1.0]), card()
    about = f"{result['shape']}, {result['parameters'] / 1e6:.1f}M, {result['vocabulary']} tokens, "
    about += f"{result['sequences']} x {result['sequence_tokens']}, {result['precision']}, {rate / 1e9:,.0f} GFLOP/s"
    rows: list[list[str]] = []
    for arm, figures in arms.items():
        cells = ["" if rows else about, arm]
        if arm in speeds:
            flops = result["flops"] / tokens * speeds[arm]
            of_published = f"{flops / published.rate(result['precision']):.0%}, {published.name}" if published else ""
            cells += [
                f"{speeds[arm]:,.0f}",
                f"{flops / rate:.0%}",
                of_published,
                f"{(figures['peak_bytes'] or 0) / 1e9:.2f} GB",
            ]
            cells += [f"{speeds[arm] / speeds[best]:.2f}", _memory_ratio(figures, arms[best])] if best else []
        else:
            cells.append("not enough memory, or it failed")
        if result["schedule"] and figures["seconds"]:
            total = sum(figures["seconds"])  # not the median: a run includes disturbances
            hours = SCHEDULE_TOKENS / (tokens * len(figures["seconds"]) / total) / 3600
            cells += ["", "", f"{hours:.1f} h, from {total:.0f} s"]
        rows.append(cells + [""] * (len(HEAD) - len(cells)))
    return rows


def _memory_ratio(figures: dict[str, Any], reference: dict[str, Any]) -> str:
    peak, reference_peak = figures["peak_bytes"], reference["peak_bytes"]
    return f"{peak / reference_peak:.2f}" if peak and reference_peak else ""


def card() -> Device | None:
    """The published figures of this machine's GPU, found by the first word of its name with a digit."""
    words = re.split(r"[ -]", torch.cuda.get_device_name().lower()) if torch.cuda.is_available() else []
    models = {
        next(word for word in key.split("-") if re.search(r"\d", word)): device for key, device in DEVICES.items()
    }
    return next((models[word] for word in words if word in models), None)


def quick_load(load: Load) -> Load:
    """A smaller load, to check in a minute that the benchmark runs."""
    micro = 1 if load.micro_sequences else None
    return Load(2, min(load.sequence_tokens, 256), 256, 2, load.arms, load.together, micro)


def recipe_load(name: str) -> Load:
    """The steps of a recipe's pretraining."""
    part = resolve(RECIPES / f"{SHAPES[name].recipe}.yaml").recipe.pretrain
    assert part is not None, "the recipes of these shapes have a pretraining phase"
    sizes = part.batch_size, part.sequence_tokens, part.head_chunk_tokens
    return Load(*sizes, 0, ("FastDraft, Muon",), micro_sequences=part.micro_batch_size)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the figures, one file per shape, and of the table")
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=list(DEFAULT_SHAPES))
    parser.add_argument("--arms", nargs="+", choices=ALL, help="default: all trainers of a shape")
    parser.add_argument("--device", choices=list(MATRIX_SIZE), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=["auto", *DTYPES], default="auto")
    parser.add_argument("--clock", choices=["wall", "process"], default="wall")
    parser.add_argument("--quick", action="store_true", help="two small steps of each trainer")
    parser.add_argument("--rounds", type=int, help="measured steps of each trainer; default: those of the shape")
    parser.add_argument(
        "--schedule",
        action="store_true",
        help="steps of the recipes; time of the paper's schedule",
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds of steps with --schedule")
    parser.add_argument("--json", action="store_true", help="print the figures, not the table")
    parser.add_argument("--serve", choices=ALL, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Make the missing measurements and print the table."""
    options = parsed()
    device = torch.device(options.device)
    clock = Clock(options.clock == "process", device)
    options.precision = choose(options.precision, device).name
    loads = {
        name: recipe_load(name) if options.schedule else SHAPES[name].loads[options.device] for name in options.shapes
    }
    loads = {name: quick_load(load) if options.quick else load for name, load in loads.items()}
    if options.serve:
        warnings.simplefilter("ignore")
        return serve(options, loads[options.shapes[0]], device, clock)
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, load in loads.items():
        file = options.folder / f"{name}{'-schedule' if options.schedule else ''}.json"
        if not file.exists():
            file.write_text(json.dumps(measure(name, load, options, device, clock), indent=1))
    results = [json.loads(file.read_text()) for file in sorted(options.folder.glob("*.json"))]
    (options.folder / "table.md").write_text(table(results) + "\n")
    print(json.dumps(results) if options.json else table(results))
    return None


if __name__ == "__main__":
    main()
