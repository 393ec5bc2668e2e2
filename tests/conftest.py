"""Fixtures for several packages: small models, a pipeline that takes seconds, and the `fastdraft` command."""

import json
import logging
import multiprocessing
import os
import random
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from fasteners import InterProcessLock
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import warning_once

from fastdraft.config.resolve import digest, resolve, resolved_yaml
from fastdraft.models.run_context import RunContext
from fastdraft.pipeline.run_stages import run_stages
from fastdraft.system.manifest import Manifest

# Modules of engines that are compiled from source or large, and the extra that installs each.
ENGINES = {"llama_cpp": "llamacpp", "vllm": "vllm"}
STORIES = Path(__file__).parents[2] / "shared" / "targets" / "stories260k"
TinyLlama = Callable[..., LlamaForCausalLM]


def pytest_addoption(parser: pytest.Parser) -> None:
    """--engines: `make test-engines` names the engines whose tests must run."""
    parser.addoption("--engines", default="", help="fail, instead of skip, if these modules are missing: a,b")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked `engine(module)` if the module is missing, or fail it if --engines names the module."""
    for mark in item.iter_markers("engine"):
        (module,) = mark.args
        if find_spec(module) is None:
            reason = f"{module} is not installed: pip install 'fastdraft[{ENGINES[module]}]'"
            if module in item.config.getoption("engines").split(","):
                pytest.fail(reason, pytrace=False)
            pytest.skip(reason)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each worker of pytest-xdist an equal block of slow tests, and then of fast ones.

    `--dist worksteal` begins with equal blocks of the list. Sorted by speed alone, one worker had all slow tests, and
    the others waited for them in the end. A block keeps the tests of a module together, which share fixtures.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    slow = [item for item in items if item.get_closest_marker("slow")]
    fast = [item for item in items if not item.get_closest_marker("slow")]
    items[:] = [
        item
        for worker in range(workers)
        for group in (slow, fast)
        for item in group[len(group) * worker // workers : len(group) * (worker + 1) // workers]
    ]


# Files that take seconds to make are made by one worker of pytest-xdist, for all workers.


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this test run share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def make_once(shared_folder: Path) -> Callable[[str, Callable[[Path], None]], Path]:
    """Make a named folder in the first worker that calls it; the other workers wait for it."""

    def get(name: str, make: Callable[[Path], None]) -> Path:
        folder, done = shared_folder / name, shared_folder / f"{name}.done"
        with InterProcessLock(shared_folder / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # left by a failed attempt
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return get


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One CPU thread. With more, rounding of a matrix product depends on the size of the matrix."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def stories260k() -> Path:
    """The folder of a small target trained on stories; skips the test if it is missing."""
    if not (STORIES / "model.safetensors").is_file():
        pytest.skip("the target stories260k is not at ../shared/targets/stories260k, next to the repository")
    return STORIES


@pytest.fixture(scope="session")
def tiny_llama() -> TinyLlama:
    """A random fp32 Llama of width 32 with 2 layers. Its weights are large, to avoid near ties of its best tokens."""

    def build(seed: int, vocabulary: int = 131, context: int = 97) -> LlamaForCausalLM:
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=61,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=context,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return LlamaForCausalLM(config).eval()

    return build


@pytest.fixture(scope="session")
def perturbed() -> Callable[[LlamaForCausalLM, float, int], LlamaForCausalLM]:
    """A copy of a model with noise on every weight, `fraction` of its deviation: a draft that partly agrees."""

    def build(model: LlamaForCausalLM, fraction: float, seed: int) -> LlamaForCausalLM:
        generator = torch.Generator().manual_seed(seed)
        copy = LlamaForCausalLM(model.config).eval()
        weights = {
            name: weight + fraction * weight.std() * torch.randn(weight.shape, generator=generator)
            for name, weight in model.state_dict().items()
            if name != "lm_head.weight" or not model.config.tie_word_embeddings
        }
        copy.load_state_dict(weights, strict=False)
        copy.tie_weights()
        return copy

    return build


@pytest.fixture
def transformers_log() -> Iterator[list[str]]:
    """The lines that transformers logs during the test, including those that it logs only once per process."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    warning_once.cache_clear()
    logging.getLogger("transformers").addHandler(handler)
    yield lines
    logging.getLogger("transformers").removeHandler(handler)


CHAT = (
    "<s>{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<t>{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)


@pytest.fixture(scope="session")
def byte_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """A tokenizer with one token per byte, and special tokens for chats."""

    def build(template: str | None = CHAT) -> PreTrainedTokenizerFast:
        special = ["<end>", "<s>", "<t>", "<a>", "<user>", "<system>"]
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        raw = Tokenizer(models.BPE({name: i for i, name in enumerate([*special, *alphabet])}, []))
        raw.decoder, raw.pre_tokenizer = decoders.ByteLevel(), pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.add_special_tokens(special)
        return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", chat_template=template)

    return build


# The command. Its imports take seconds, so each run is forked from one process that has imported them. It has its own
# pid, signals, limits and exit code, as any process.

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        *("fastdraft.cli", "fastdraft.pipeline.run_stages", "fastdraft.pipeline.step_timers"),
        *(
            "fastdraft.evaluation.score",
            "fastdraft.exporters.export_draft",
            "fastdraft.compatibility.repair",
            "fastdraft.planning.plan",
        ),
    ]
)
COMMAND = """
import os, resource, signal, sys
os.chdir(folder)
os.environ.update(environment)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in background jobs, with all they start
for path, handle in ((out, 1), (err, 2)):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), handle)
if file_bytes:
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
sys.argv = ["fastdraft", *arguments]
from fastdraft.cli import main
from transformers.utils.logging import disable_progress_bar
disable_progress_bar()  # main does it by an environment variable, which has no effect after the import
main()
"""


@dataclass(frozen=True)
class CommandResult:
    """A command that has ended: its exit code (minus the signal that ended it), and its output."""

    code: int
    out: str
    err: str


@dataclass
class Running:
    """A running command."""

    process: BaseProcess
    out: Path
    err: Path

    def end(self, seconds: float = 240) -> CommandResult:
        """Wait until the command ends."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"still running after {seconds} s: {self.err.read_text()}"
        return CommandResult(self.process.exitcode, self.out.read_text(), self.err.read_text())


@dataclass
class FastDraft:
    """Runs `fastdraft ARGUMENTS` in a folder. `file_bytes` limits the size of files, as a full disk does."""

    folder: Path
    logs: Path
    started: list[Running] = field(default_factory=list)

    def __call__(self, *arguments: object, file_bytes: int = 0, seconds: float = 240) -> CommandResult:
        return self.start(*arguments, file_bytes=file_bytes).end(seconds)

    def start(self, *arguments: object, file_bytes: int = 0, environment: dict[str, str] | None = None) -> Running:
        """Start a command without waiting for it."""
        out, err = (self.logs / f"{len(self.started)}.{name}" for name in ("out", "err"))
        scope = {"folder": self.folder, "out": out, "err": err, "file_bytes": file_bytes}
        scope |= {"environment": environment or {}}
        process = PROCESSES.Process(target=exec, args=(COMMAND, scope | {"arguments": [str(a) for a in arguments]}))
        process.start()
        self.started.append(Running(process, out, err))
        return self.started[-1]

    def await_checkpoint(self, phase: str) -> None:
        """Wait for the first checkpoint of a phase."""
        for _ in range(10_000):
            if list(self.folder.glob(f"runs/tiny/{phase}/checkpoint-*[0-9]")):
                return
            time.sleep(0.01)
        raise AssertionError(f"no checkpoint in {phase} after 100 s: it ended before the first one, or never started")

    def start_several(self, count: int, *arguments: object) -> list[Running]:
        """Start the command in `count` processes, as a launcher does."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "OMP_NUM_THREADS": "1"}
        ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)} for rank in range(count)]
        return [self.start(*arguments, environment=master | rank) for rank in ranks]


@contextmanager
def _small_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.fixture
def full_disk() -> Callable[[], AbstractContextManager[None]]:
    """A context in which no file of this process can grow beyond 10,000 bytes."""
    return _small_files


@pytest.fixture
def fastdraft(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastDraft]:
    """The command, run in the test's own folder."""
    command = FastDraft(tmp_path, tmp_path_factory.mktemp("logs"))
    yield command
    for running in command.started:
        if running.process.exitcode is None:
            running.process.kill()
            running.process.join()


@pytest.fixture
def ray_processes(
    shared_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], dict[psutil.Process, str]]]:
    """All running processes of Ray on this machine with their command lines, including workers without a parent.

    Tests that use this fixture run one at a time: each would count the processes of the others.
    """
    # By default Ray's workers have niceness 15: next to three other workers of pytest they took ten times as long.
    monkeypatch.setenv("RAY_worker_niceness", "0")
    package = find_spec("ray")
    assert package is not None, "tests that use this fixture are skipped without Ray"
    folder = f"{Path(str(package.origin)).parent}/"

    def running() -> dict[psutil.Process, str]:
        commands = {}
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                arguments = process.cmdline()
                # The code of a forkserver, an argument too, contains the folder when its parent has imported Ray.
                of_ray = any(argument.startswith((folder, "ray::")) for argument in arguments)
                if of_ray and process.status() != psutil.STATUS_ZOMBIE:  # its parent may never collect it
                    commands[process] = " ".join(arguments)
        return commands

    with InterProcessLock(shared_folder / "ray.lock"):
        yield running


# The whole pipeline: a random target, a tokenizer trained on a random corpus, and a recipe with all stages.

WORDS = ["river", "stone", "morning", "yellow", "wolf", "under", "seven", "walks", "house", "never", "cloud", "song"]


def _document(rng: random.Random) -> str:
    return " ".join(" ".join(rng.choices(WORDS, k=7)) + "." for _ in range(9))


def _target(folder: Path, documents: list[str]) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=307, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=311,
        hidden_size=24,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=97,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        LlamaForCausalLM(config).save_pretrained(folder)
    # The target's digest covers all its files and seeds the sampling: the version of transformers must not
    # change it.
    for path in (folder / "config.json", folder / "generation_config.json"):
        values = json.loads(path.read_text()) | {"transformers_version": "5.5.4"}
        path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def _tiny_recipe() -> dict[str, Any]:
    phase = {
        "mix": {"text": 1.0},
        "train_tokens": 1500,
        "batch_size": 5,
        "sequence_tokens": 29,
        "precision": "fp32",
        "warmup_steps": 3,
        "head_chunk_tokens": 64,
        "checkpoint_seconds": 1,
        "held_out_every_tokens": 700,
        "held_out_sequences": 7,
    }
    return {
        "name": "tiny",
        "seed": 11,
        "threads": 1,
        "device": "cpu",
        "target": {"path": "target"},
        "draft": {"hidden_size": 16, "layers": 1, "heads": 2, "kv_heads": 1, "intermediate_size": 24},
        "corpus": {
            "text": {"source": "text", "path": "text", "separator": "---", "held_out_fraction": 0.2},
            "rows": {"source": "jsonl", "path": "rows.jsonl", "held_out_fraction": 0.2},
        },
        "pretrain": phase,
        "continue": phase | {"mix": {"text": 1.0, "rows": 2.0}},
        "synthesize": {
            "mix": {"text": 1.0, "rows": 1.0},
            "prompts": 24,
            "max_prompt_tokens": 7,
            "max_new_tokens": 23,
            "batch_size": 5,
        },
        "align": phase | {"mix": {"synthetic": 1.0}, "objective": "forward_kl"},
        "evaluate": {
            "tasks": ["text", "rows"],
            "prompts": 11,
            "max_prompt_tokens": 7,
            "max_new_tokens": 13,
            "temperatures": [0.0, 1.0],
            "gammas": [1, 2, 3],
            "batch_size": 4,
            "bootstrap_resamples": 100,
            "verify_prompts": 11,
            "verify_gamma": 2,
        },
    }


def _make_files(folder: Path) -> None:
    rng = random.Random(5)
    texts, rows = ([_document(rng) for _ in range(60)] for _ in range(2))
    (folder / "text").mkdir()
    for number in range(3):
        (folder / "text" / f"{number}.txt").write_text("\n---\n".join(texts[number::3]))
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    _target(folder / "target", [*texts, *rows])
    (folder / "recipe.yaml").write_text(yaml.safe_dump(_tiny_recipe(), sort_keys=False))


@pytest.fixture(scope="session")
def tiny_files(make_once: Callable[..., Path]) -> Path:
    """A folder with target/, text/, rows.jsonl and recipe.yaml, whose paths are relative to the folder."""
    return make_once("tiny", _make_files)


@pytest.fixture
def tiny(tiny_files: Path, tmp_path: Path) -> Path:
    """The test's own folder with the files of the tiny pipeline; `fastdraft` runs in it."""
    shutil.copytree(tiny_files, tmp_path, dirs_exist_ok=True)
    return tmp_path


def _run_stages(folder: Path) -> None:
    run, threads = Path("runs/tiny"), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.chdir(folder)
        run.mkdir(parents=True)
        torch.set_num_threads(1)
        resolved = resolve(Path("recipe.yaml"))
        (run / "resolved.yaml").write_text(resolved_yaml(resolved))
        recipe = resolved.recipe
        run_context = RunContext(recipe, run, torch.device("cpu"))
        run_stages(run_context, Manifest(run, digest(recipe), recipe.seed, run_context.device))
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def finished(tiny_files: Path, make_once: Callable[..., Path]) -> Path:
    """The files of a tiny pipeline that has finished in runs/tiny. Tests that change them must copy them."""

    def make(folder: Path) -> None:
        shutil.copytree(tiny_files, folder, dirs_exist_ok=True)
        _run_stages(folder)

    return make_once("finished", make)


@pytest.fixture
def finished_run(finished: Path, tmp_path: Path) -> Path:
    """A finished tiny pipeline in the test's own folder; `fastdraft` runs in it."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path
