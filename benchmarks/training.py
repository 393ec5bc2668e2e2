"""How fast does a draft train? This trainer, transformers' Trainer and a plain loop, side by side.

    python benchmarks/training.py runs/training                         # three shapes, 10 minutes on two cores
    python benchmarks/training.py runs/training --shapes demo --quick   # a minute: does it run?
    python benchmarks/training.py runs/training --device cuda           # benchmarks/gpu.sh does all for a GPU
    python benchmarks/training.py runs/training --schedule              # the recipes' own steps, for a minute each

All have the same model, batch, precision, optimizer (AdamW, fused) and data: random tokens, which take as long as any.
`--precision bf16` is autocast over fp32 weights; `auto`, the default, is what this device multiplies faster. Ours runs
the very steps of a phase. Each is a process of its own, so that its peak memory is its own; they take turns step by
step, so that a disturbance meets all of them, and a figure is the median. Where their memory would not fit together
(128 256 tokens of vocabulary on a CPU), only one of them runs at a time. MFU: FLOPs of forward and backward pass
(planning/training_cost.py) over what a matrix product in that precision reaches, measured in turn with the steps.
`--clock process` counts the process's own CPU seconds over its threads: for a machine that is shared.
A shape whose figures are in the folder is not measured again. `--schedule` runs a recipe's own steps (its batch in
micro-batches, Muon) for `--seconds` and says by arithmetic how long the paper's 12.5B tokens of PT and CP take.
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
from fastdraft.data.prefetch import Ahead
from fastdraft.models import draft, shape, target
from fastdraft.planning.devices import DEVICES, Device
from fastdraft.planning.model_size import ModelSize
from fastdraft.planning.training_cost import training_flops
from fastdraft.system.precision import DTYPES, choose
from fastdraft.train import loop, objectives
from fastdraft.train.utilization import peak_memory_bytes

RECIPES = Path(__file__).parents[1] / "recipes"
SEED, LEARNING_RATE, CLIP = 7, 1e-3, 1.0
SIDE = {"cpu": 2048, "cuda": 8192}
# Instructions of a processor that decide its rates, by the names of /proc/cpuinfo.
FLAGS = ("avx2", "f16c", "fma", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "asimd", "bf16", "sve")
# What decides the shape of a draft in the published configurations of its target.
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
    """What is trained on in a step, how often, and by whom; `together`: do all fit the memory at once?"""

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
    """A draft by its recipe, and its target's configuration where that is not packaged."""

    recipe: str
    target: tuple[str, dict[str, Any]] | None
    loads: dict[str, Load]

    def form(self) -> shape.DraftShape:
        """The draft that the recipe makes."""
        recipe = resolve(RECIPES / f"{self.recipe}.yaml").recipe
        config = AutoConfig.for_model(self.target[0], **self.target[1]) if self.target else None
        return shape.derive(config or target.open_config(recipe.target), recipe.draft)


ALL = ("ours", "ours, Muon", "Trainer", "Trainer, compiled", "plain loop")
PLAIN = ("ours", "Trainer", "plain loop")
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
USUAL = ("demo", "phi3-50m", "llama3.1-150m")
# The paper's PT and CP: 5B tokens, and 7.5B.
SCHEDULE_TOKENS = 12.5e9


class RandomRows:
    """Rows of random tokens, each made from its number."""

    def __init__(self, vocabulary: int, sequence_tokens: int) -> None:
        self.rows, self.labels = 1 << 20, (1 << 20) * sequence_tokens
        self._vocabulary, self._tokens = vocabulary, sequence_tokens

    def row(self, index: int) -> tuple[Tensor, Tensor]:
        """inputs_T, labels_T"""
        generator = torch.Generator().manual_seed(SEED + index)
        window = torch.randint(self._vocabulary, (self._tokens + 1,), generator=generator)
        return window[:-1], window[1:]


Step = Callable[[], None]


def ours(model: PreTrainedModel, load: Load, device: torch.device, optimizer: str, precision: str) -> Step:
    """A step of a phase, as the pipeline takes it; compiled on an accelerator, as the recipes for them say."""
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
    rows = RandomRows(model.config.vocab_size, load.sequence_tokens)
    phase = loop.Phase(
        name="pretrain",
        model=model,
        part=part,
        mixture=Ahead(Mixture({"random": rows}, part.mix, SEED)),
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
    """Autocast in bf16, whole logits, torch's cross entropy."""
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    rows, drawn = RandomRows(model.config.vocab_size, load.sequence_tokens), iter(range(10**6))

    def step() -> None:
        batch = [rows.row(next(drawn)) for _ in range(load.sequences)]
        inputs_BT, labels_BT = (torch.stack(side).to(device) for side in zip(*batch, strict=True))
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


class Asked(TrainerCallback):
    """Holds transformers' Trainer before each step until it is asked for one, and times it."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._begun = clock, 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        await_order()
        self._begun = self._clock()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        log_line(seconds=self._clock() - self._begun)


def run_trainer(
    model: PreTrainedModel, load: Load, device: torch.device, clock: Clock, compiled: bool, precision: str
) -> None:
    """transformers' Trainer with the fused optimizer, until the end of its input."""
    rows = RandomRows(model.config.vocab_size, load.sequence_tokens)

    class Data(torch.utils.data.Dataset[dict[str, Tensor]]):
        def __len__(self) -> int:
            return rows.rows

        def __getitem__(self, index: int) -> dict[str, Tensor]:
            inputs_T, _ = rows.row(index)
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
        Trainer(model, arguments, train_dataset=Data(), callbacks=[Asked(clock)]).train()


class Clock:
    """Seconds that have passed on the wall; or this process's own CPU seconds, over its threads."""

    def __init__(self, of_process: bool, device: torch.device) -> None:
        self._of_process, self._device = of_process, device

    def __call__(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.process_time() / torch.get_num_threads() if self._of_process else time.perf_counter()


def await_order() -> None:
    """Until a line comes; the end of them is the end of this process, which says its peak memory last."""
    if not sys.stdin.readline():
        used = torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0
        log_line(peak_bytes=peak_memory_bytes(torch.device("cuda" if used else "cpu")))
        os._exit(0)


def log_line(**found: float) -> None:
    print(json.dumps(found), flush=True)


def serve(given: argparse.Namespace, load: Load, device: torch.device, clock: Clock) -> None:
    """One arm's process: a step for each line that comes in, whose seconds go out."""
    if device.type == "cpu":
        # What does not fit is refused here, and no other process of the machine is ended for it.
        resource.setrlimit(resource.RLIMIT_DATA, (free_bytes(), resource.RLIM_INFINITY))
    arm, precision = given.serve, given.precision
    (shape_name,) = given.shapes
    model = draft.new(SHAPES[shape_name].form(), SEED)
    if arm.startswith("Trainer"):
        return run_trainer(model, load, device, clock, compiled="compiled" in arm, precision=precision)
    if arm == "plain loop":
        step = plain(model, load, device, precision)
    else:
        step = ours(model, load, device, "muon" if "Muon" in arm else "adamw", precision)
    while True:
        await_order()
        begun = clock()
        step()
        log_line(seconds=clock() - begun)


def free_bytes() -> int:
    """Memory that could be had now."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


class Arm:
    """An arm's process, as the one that asks it sees it; None for what it could not do."""

    def __init__(self, command: list[str]) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, it lives as long as the process
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )

    def step(self) -> float | None:
        """Seconds of a step."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("step\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return None
        return self._said("seconds")

    def end(self) -> float | None:
        """Peak memory in bytes."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        peak = self._said("peak_bytes")
        self._process.wait()
        if peak is None:
            self._errors.seek(0)
            print(self._errors.read()[-1500:], file=sys.stderr)
        return peak

    def _said(self, what: str) -> float | None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return float(json.loads(line)[what])
        return None


def matrix_rate(device: torch.device, clock: Clock, precision: str) -> float:
    """FLOP/s of a product of two large matrices, after one that is not counted."""
    side = SIDE[device.type]
    # Not of ones: accelerators multiply matrices of equal numbers faster.
    left = torch.arange(side * side, device=device).sin().view(side, side).to(DTYPES[precision])
    left @ left
    begun = clock()
    for _ in range(4):
        left @ left
    return 8.0 * side**3 / (clock() - begun)


def processor(device: torch.device) -> str:
    """Its name, how many threads torch has there, and the flags that decide its rates."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = re.findall(r"^([^\t:]+?)\s*: (.*)$", info.read_text(), re.MULTILINE) if info.is_file() else []
    known = dict(reversed(lines))
    flags = [flag for flag in FLAGS if flag in (known.get("flags") or known.get("Features") or "").split()]
    name = known.get("model name") or platform.processor()
    family = f" family {known['cpu family']} model {known['model']}" if "cpu family" in known else ""
    return f"{name}{family}, {torch.get_num_threads()} threads, {' '.join(flags)}"


def measure(name: str, load: Load, given: argparse.Namespace, device: torch.device, clock: Clock) -> dict[str, Any]:
    """A shape's figures: seconds of each arm's steps, peak memory, the rate of the machine meanwhile."""
    arms = [arm for arm in load.arms if not given.arms or arm in given.arms]
    own = ["--device", given.device, "--clock", given.clock, "--precision", given.precision]
    own += [f"--{word}" for word in ("quick", "schedule") if getattr(given, word)]
    commands = {
        arm: [sys.executable, __file__, str(given.folder), *own, "--shapes", name, "--serve", arm] for arm in arms
    }
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    peaks: dict[str, float | None] = dict.fromkeys(arms, 0.0)
    rates = []
    for group in [arms] if load.together else [[arm] for arm in arms]:
        running = {arm: Arm(commands[arm]) for arm in group}
        if load.together:
            for arm in group:
                running[arm].step()  # the first pays for what is made once; where a step takes a minute it counts
        while any(_goes_on(seconds[arm], load, given) for arm in running):
            for arm in list(running):
                if (taken := running[arm].step()) is None:
                    peaks[arm] = running.pop(arm).end()
                else:
                    seconds[arm].append(taken)
            rates.append(
                matrix_rate(device, clock, given.precision)
            )  # behind the steps: a process that starts takes the cores too
        peaks |= {arm: process.end() for arm, process in running.items()}
    form = SHAPES[name].form()
    size = ModelSize.of_shape(form)
    return {
        "shape": name,
        "precision": given.precision,
        "processor": processor(device),
        "schedule": given.schedule,
        "parameters": size.parameters,
        "vocabulary": size.vocab_rows,
        "sequences": load.sequences,
        "sequence_tokens": load.sequence_tokens,
        "flops": training_flops(size, load.tokens, load.sequence_tokens),
        "matrix_rates": rates,
        "arms": {arm: {"seconds": seconds[arm], "peak_bytes": peaks[arm]} for arm in arms},
    }


def _goes_on(seconds: list[float], load: Load, given: argparse.Namespace) -> bool:
    """Does an arm take another step?"""
    return sum(seconds) < given.seconds if given.schedule else len(seconds) < (given.rounds or load.rounds)


HEAD = (
    *("draft, batch, rate of a matrix product", "trainer", "tokens/s", "MFU", "of the published rate", "memory"),
    *("speed to Trainer", "memory to it", "12.5B tokens"),
)


def table(results: list[dict[str, Any]]) -> str:
    """Markdown; the ratios are to the fastest Trainer."""
    lines = [" | ".join(cells) for found in results for cells in rows_of(found)]
    lines = [f"| {line} |" for line in [" | ".join(HEAD), " | ".join(["---"] * len(HEAD)), *lines]]
    return "\n".join([*lines, "", *sorted({found["processor"] for found in results})])


def rows_of(found: dict[str, Any]) -> list[list[str]]:
    """A shape's rows of the table."""
    tokens, arms = found["sequences"] * found["sequence_tokens"], found["arms"]
    speeds = {arm: tokens / median(each["seconds"]) for arm, each in arms.items() if each["seconds"]}
    best = max((arm for arm in speeds if arm.startswith("Trainer")), key=speeds.__getitem__, default=None)
    rate, published = median(found["matrix_rates"] or [1.0]), card()
    about = f"{found['shape']}, {found['parameters'] / 1e6:.1f}M, {found['vocabulary']} tokens, "
    about += f"{found['sequences']} x {found['sequence_tokens']}, {found['precision']}, {rate / 1e9:,.0f} GFLOP/s"
    rows = []
    for arm, each in arms.items():
        cells = ["" if rows else about, arm]
        if arm in speeds:
            flops = found["flops"] / tokens * speeds[arm]
            of_card = f"{flops / published.rate(found['precision']):.0%}, {published.name}" if published else ""
            cells += [
                f"{speeds[arm]:,.0f}",
                f"{flops / rate:.0%}",
                of_card,
                f"{(each['peak_bytes'] or 0) / 1e9:.2f} GB",
            ]
            cells += [f"{speeds[arm] / speeds[best]:.2f}", _ratio(each, arms[best])] if best else []
        else:
            cells.append("not enough memory, or it failed")
        if found["schedule"] and each["seconds"]:
            taken = sum(each["seconds"])  # all of them: what a run takes, disturbances included
            hours = SCHEDULE_TOKENS / (tokens * len(each["seconds"]) / taken) / 3600
            cells += ["", "", f"{hours:.1f} h, by {taken:.0f} s"]
        rows.append(cells + [""] * (len(HEAD) - len(cells)))
    return rows


def _ratio(each: dict[str, Any], other: dict[str, Any]) -> str:
    return f"{each['peak_bytes'] / other['peak_bytes']:.2f}" if each["peak_bytes"] and other["peak_bytes"] else ""


def card() -> Device | None:
    """The published figures of the card in this machine, by the first word of its name that has a digit."""
    words = re.split(r"[ -]", torch.cuda.get_device_name().lower()) if torch.cuda.is_available() else []
    models = {next(word for word in key.split("-") if re.search(r"\d", word)): each for key, each in DEVICES.items()}
    return next((models[word] for word in words if word in models), None)


def smaller(load: Load) -> Load:
    """The same in a minute: does it run?"""
    micro = 1 if load.micro_sequences else None
    return Load(2, min(load.sequence_tokens, 256), 256, 2, load.arms, load.together, micro)


def of_recipe(name: str) -> Load:
    """The steps of a recipe's pre-training."""
    part = resolve(RECIPES / f"{SHAPES[name].recipe}.yaml").recipe.pretrain
    assert part is not None, "the recipes of these shapes pre-train"
    sizes = part.batch_size, part.sequence_tokens, part.head_chunk_tokens
    return Load(*sizes, 0, ("ours, Muon",), micro_sequences=part.micro_batch_size)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the figures lie, a file for each shape, and the table")
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=list(USUAL))
    parser.add_argument("--arms", nargs="+", choices=ALL, help="otherwise all that a shape has")
    parser.add_argument("--device", choices=list(SIDE), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=["auto", *DTYPES], default="auto")
    parser.add_argument("--clock", choices=["wall", "process"], default="wall")
    parser.add_argument("--quick", action="store_true", help="two small steps of each")
    parser.add_argument("--rounds", type=int, help="steps of each that count, otherwise as the shape says")
    parser.add_argument("--schedule", action="store_true", help="the recipes' own steps, and the paper's schedule")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long a schedule's steps are measured")
    parser.add_argument("--json", action="store_true", help="print the figures, not the table")
    parser.add_argument("--serve", choices=ALL, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure what is not measured yet; print the table of all that is."""
    given = parsed()
    device = torch.device(given.device)
    clock = Clock(given.clock == "process", device)
    given.precision = choose(given.precision, device).name
    loads = {name: of_recipe(name) if given.schedule else SHAPES[name].loads[given.device] for name in given.shapes}
    loads = {name: smaller(load) if given.quick else load for name, load in loads.items()}
    if given.serve:
        warnings.simplefilter("ignore")
        return serve(given, loads[given.shapes[0]], device, clock)
    given.folder.mkdir(parents=True, exist_ok=True)
    for name, load in loads.items():
        file = given.folder / f"{name}{'-schedule' if given.schedule else ''}.json"
        if not file.exists():
            file.write_text(json.dumps(measure(name, load, given, device, clock), indent=1))
    results = [json.loads(file.read_text()) for file in sorted(given.folder.glob("*.json"))]
    (given.folder / "table.md").write_text(table(results) + "\n")
    print(json.dumps(results) if given.json else table(results))
    return None


if __name__ == "__main__":
    main()
