"""A recipe is a whole run: YAML plus `key=value` overrides, one strict and frozen `Recipe`.

The schema below is the one source of keys, types, defaults and descriptions: `fastdraft recipe schema` and
docs/recipe.md are printed from it, and a stage receives only its own part.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Part(BaseModel):
    """What every part of a recipe shares: unknown keys stop, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


def _positive(weight: Any) -> bool:
    return isinstance(weight, int | float) and not isinstance(weight, bool) and 0 < weight < float("inf")


class TargetPart(Part):
    """The model that the draft is for."""

    path: str = Field(description="Hub id, local folder, or `demo` for the packaged target.")
    revision: str | None = Field(None, description="Hub revision (commit, branch or tag).")
    trust_remote_code: bool = Field(False, description="Run model code that comes with the target. Off unless asked.")
    allow_pickle: bool = Field(False, description="Load pickled weights (they can run code). Off unless asked.")


# Where a draft's weights can start: by itself, or from a MODEL named behind a colon.
STARTS, STARTS_FROM_MODEL = ("random", "target_embedding"), ("prune", "transplant")


class DraftPart(Part):
    """The draft's size and first weights; what is not given follows from the target, or from the MODEL of `start`."""

    start: str = Field(
        "target_embedding",
        description="Where the weights start: `random`; `target_embedding` (the target's embedding along its principal "
        "directions); `prune:MODEL` (a smaller model of the same vocabulary loses layers, and width if asked); "
        "`transplant:MODEL` (a model with another tokenizer gets rows for the target's). MODEL is a hub id, a folder "
        "or `demo`; what is not given below is then its own.",
    )
    params_millions: PositiveFloat | None = Field(None, description="Budget, embeddings included.")
    hidden_size: PositiveInt | None = Field(None, description="Width; otherwise derived from the budget.")
    layers: PositiveInt | None = Field(None, description="Depth; otherwise derived from the budget.")
    head_size: PositiveInt | None = Field(None, description="Size of an attention head; otherwise the target's rule.")
    heads: PositiveInt | None = Field(None, description="Attention heads; otherwise hidden_size / head_size.")
    kv_heads: PositiveInt | None = Field(None, description="Key-value heads; otherwise the target's ratio.")
    intermediate_size: PositiveInt | None = Field(None, description="MLP width; otherwise the target's ratio.")
    context_tokens: PositiveInt | None = Field(None, description="Longest context; otherwise the target's.")

    @property
    def start_model(self) -> str | None:
        """The MODEL that the weights start from; None where they start without one."""
        return self.start.partition(":")[2] or None

    @field_validator("start")
    @classmethod
    def _known_start(cls, start: str) -> str:
        kind, _, model = start.partition(":")
        if start not in STARTS and not (kind in STARTS_FROM_MODEL and model.strip() == model != ""):
            wanted = [*STARTS, *(f"{kind}:MODEL" for kind in STARTS_FROM_MODEL)]
            raise ValueError(f"found `{start}`, wanted {', '.join(wanted[:-1])} or {wanted[-1]}")
        return start

    @model_validator(mode="after")
    def _budget_or_shape(self) -> DraftPart:
        sizes_of_model = self.start_model is not None
        if self.params_millions is None and not sizes_of_model and (self.hidden_size is None or self.layers is None):
            raise ValueError("give params_millions, or both hidden_size and layers")
        return self


class SourcePart(Part):
    """One named source of documents."""

    source: Literal["python_code", "python_docstrings", "text", "jsonl", "parquet", "hub"] = Field(
        description="Where documents come from: the Python sources on this machine (or their docstrings), "
        "local files, or a data set on the hub."
    )
    path: str | None = Field(None, description="File, folder or glob of a local source; hub id of a data set.")
    subset: str | None = Field(None, description="Configuration name of a hub data set.")
    folder: str | None = Field(None, description="Folder of a hub data set, where it is divided by folders.")
    revision: str | None = Field(None, description="Hub revision of a data set (commit, branch or tag).")
    split: str = Field("train", description="Split of a hub data set.")
    field: str = Field("text", description="Field that holds the text, in rows of jsonl, parquet and hub.")
    separator: str | None = Field(
        None, description="In text files: the line that ends a document; otherwise a file is one."
    )
    sample_share: Share = Field(
        1.0, description="Share of the training documents that is kept, chosen by content hash."
    )
    held_out_share: Share = Field(0.02, description="Share of the documents held out, chosen by content hash.")
    held_out_list: str | None = Field(
        None,
        description="Allow-list of content hashes (a file; `demo:code` and `demo:text` came with the packaged target): "
        "held-out documents outside it are dropped.",
    )
    documents_at_most: PositiveInt | None = Field(
        None, description="Stop reading after so many documents; each task reads its part of them."
    )
    quality: tuple[Literal["gopher_quality", "gopher_repetition", "fineweb", "c4", "c4_paragraphs"], ...] = Field(
        (), description="datatrove's filters for English text from the web, in this order; docs/corpus.md."
    )


class SlurmPart(Part):
    """What the cluster is asked for; each datatrove task is one task of a job array."""

    partition: str = Field(description="Partition of the cluster.")
    hours: PositiveFloat = Field(24.0, description="Time limit of a task.")
    gigabytes: PositiveInt = Field(4, description="Memory of a task.")
    options: dict[str, str] = Field(
        default_factory=dict, description="Further options of sbatch by their long names, such as `account`."
    )


class TokenizePart(Part):
    """From documents to token shards."""

    tasks: PositiveInt = Field(1, description="datatrove tasks a source is split into; each writes its own shards.")
    workers: PositiveInt = Field(1, description="Tasks run at once.")
    executor: Literal["local", "slurm", "ray"] = Field(
        "local",
        description="Where tasks run: on this machine, on a Slurm cluster, or on Ray (the cluster at RAY_ADDRESS, "
        "otherwise one that is started on this machine). The shards are the same.",
    )
    slurm: SlurmPart | None = Field(None, description="For `executor: slurm`.")

    @model_validator(mode="after")
    def _slurm_knows_its_partition(self) -> TokenizePart:
        if self.executor == "slurm" and self.slurm is None:
            raise ValueError("executor is slurm; give slurm.partition")
        return self


ObjectiveName = Literal[
    "cross_entropy",
    "forward_kl",
    "reverse_kl",
    "jensen_shannon",
    "total_variation",
    "sampled_total_variation",
    "block_length",
]
OBJECTIVES: tuple[str, ...] = get_args(ObjectiveName)
# What each asks of the target: its law at every token, or the log-probability of the token that it sampled.
OF_THE_LAW = {"forward_kl", "reverse_kl", "jensen_shannon", "total_variation"}
OF_THE_SAMPLE = {"sampled_total_variation", "block_length"}


class TrainPart(Part):
    """One phase of training; every phase runs the same loop."""

    mix: dict[str, PositiveFloat] = Field(min_length=1, description="Weight of each source in the batches.")
    train_tokens: PositiveInt = Field(description="Tokens trained on in this phase.")
    batch_sequences: PositiveInt = Field(16, description="Sequences in one optimizer step.")
    micro_batch_sequences: PositiveInt | None = Field(
        None, description="Sequences in one forward of a process; otherwise all of its own."
    )
    sequence_tokens: PositiveInt = Field(512, description="Tokens of a sequence.")
    objective: ObjectiveName | dict[ObjectiveName, PositiveFloat] = Field(
        "cross_entropy",
        description="Loss of a token, or weights of several, like `{forward_kl: 0.5, total_variation: 0.5}`: on the "
        "text; against the target's law; or on the recorded log-probability of what the target wrote. docs/align.md",
    )
    target_law: Literal["live", "stored"] = Field(
        "live",
        description="The target's law: by a forward of the target on every batch, or as `synthesize.top_logprobs` "
        "stored it.",
    )
    temperature: PositiveFloat | Literal["rows"] = Field(
        1.0,
        description="Temperature of both laws in losses against the target's law; `rows`: that of each row of "
        "`synthetic`, 1 where it is greedy or text of a corpus.",
    )
    on_policy: Share = Field(
        0.0,
        description="Share of the rows that the draft itself goes on with, for losses against the live target's law.",
    )
    block_gamma: PositiveInt = Field(5, description="Drafted tokens of a block in the objective `block_length`.")
    optimizer: Literal["muon", "adamw"] = Field(
        "muon", description="Muon for matrices and AdamW for the rest, or AdamW."
    )
    muon_learning_rate: PositiveFloat = Field(0.02, description="Peak learning rate of the matrices under Muon.")
    learning_rate: PositiveFloat = Field(0.003, description="Peak learning rate of AdamW.")
    weight_decay: float = Field(0.0, ge=0.0, description="Decoupled weight decay of matrices.")
    gradient_clip: PositiveFloat = Field(1.0, description="Largest global gradient norm.")
    schedule: Literal["warmup_stable_decay", "cosine"] = Field(
        "warmup_stable_decay", description="Learning-rate shape."
    )
    warmup_steps: int = Field(50, ge=0, description="Steps of linear warm-up.")
    decay_share: Share = Field(0.4, description="Last share of the steps, over which the rate falls to zero.")
    precision: Literal["bf16", "fp32"] = Field("bf16", description="Autocast; master weights are always fp32.")
    compile: bool = Field(False, description="torch.compile the forward pass (needs a C++ compiler on CPU).")
    activation_checkpointing: bool = Field(
        False, description="Compute each layer again in the backward pass: less memory, a third more time."
    )
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop", description="A step whose loss is no number, or explodes: stop, or leave it out and count it."
    )
    head_chunk_tokens: PositiveInt = Field(1024, description="Tokens whose logits exist at one time.")
    checkpoint_seconds: PositiveInt = Field(60, description="Seconds between checkpoints.")
    held_out_every_tokens: PositiveInt = Field(
        250_000,
        description="Tokens between measures of held-out loss and block efficiency (`evaluate.measure_prompts`).",
    )
    held_out_sequences: PositiveInt = Field(32, description="Held-out sequences a source for the loss.")
    keep: Literal["last", "best"] = Field(
        "last", description="The draft that the phase leaves: the last, or the one of the highest block efficiency."
    )
    early_stop_measures: PositiveInt | None = Field(
        None,
        description="The phase ends where block efficiency has not risen for so many measures, once the rate has "
        "fallen: the decay of `decay_share` begins then.",
    )

    @property
    def objectives(self) -> dict[str, float]:
        """The weight of each objective."""
        return (
            {self.objective: 1.0} if isinstance(self.objective, str) else {str(n): w for n, w in self.objective.items()}
        )

    @property
    def asks_target(self) -> bool:
        """Does the target read every batch?"""
        return self.target_law == "live" and bool(OF_THE_LAW & self.objectives.keys())

    @property
    def reads_records(self) -> bool:
        """Is what was recorded with the target's answers part of the loss?"""
        return bool(self.recorded_keys) or self.temperature == "rows"

    @property
    def recorded_keys(self) -> list[str]:
        """The keys whose losses hang on what was recorded with the target's answers."""
        sampled = [f"objective {name}" for name in self.objectives if name in OF_THE_SAMPLE]
        return [*sampled, *(["target_law stored"] if self.target_law == "stored" else [])]

    @field_validator("objective", mode="before")
    @classmethod
    def _known_objectives(cls, found: Any) -> Any:
        """Names and positive weights; said here, because a union would name each of its types."""
        weights = found if isinstance(found, dict) else {str(found): 1.0}
        sound = [name in OBJECTIVES and _positive(weight) for name, weight in weights.items()]
        if not sound or not all(sound):
            raise ValueError(f"found {found}, wanted one of {', '.join(OBJECTIVES)}, or positive weights of some")
        return found

    @model_validator(mode="after")
    def _law_is_there(self) -> TrainPart:
        if self.target_law == "stored" and not OF_THE_LAW & self.objectives.keys():
            raise ValueError(f"target_law is stored; give an objective of the law: {', '.join(sorted(OF_THE_LAW))}")
        if self.on_policy and not (self.target_law == "live" and self.objectives.keys() <= OF_THE_LAW):
            raise ValueError(
                f"on_policy is for the live target's law alone, which judges any words; found target_law "
                f"{self.target_law}, objective {', '.join(self.objectives)}"
            )
        if self.target_law == "stored" and self.temperature != 1:
            raise ValueError(f"target_law is stored at temperature 1, temperature is {self.temperature}")
        return self


class ServerPart(Part):
    """OpenAI-compatible servers that all serve the target: vLLM, SGLang, llama-server, OpenVINO Model Server."""

    urls: tuple[str, ...] = Field(
        min_length=1, description="Base addresses, each with its `/v1`; they share one queue."
    )
    model: str = Field(description="The model's name on the servers; another answer stops the run.")
    requests_at_once: PositiveInt = Field(32, description="Requests in flight to each server.")
    timeout_seconds: PositiveFloat = Field(600.0, description="Longest wait for one answer.")
    attempts: PositiveInt = Field(8, description="Times that a request is sent before its row is given up.")
    backoff_seconds: PositiveFloat = Field(0.5, description="Wait after a first failure; it doubles up to 30 s.")
    key_variable: str | None = Field(None, description="Environment variable that holds the servers' key.")
    text_only: bool = Field(
        False,
        description="Take answers that come without token ids: the text is tokenised again, rows that do not decode to "
        "it are dropped and counted, and there are no log-probabilities unless `rescore` finds them.",
    )


class RecordedPart(Part):
    """Answers that exist already: production logs, published outputs of the target."""

    path: str = Field(description="File, folder or glob: .jsonl, .jsonl.gz, .parquet, .txt or .txt.gz.")
    prompt_field: str = Field("prompt", description="Field of the prompt: text, chat messages or token ids.")
    answer_field: str = Field("answer", description="Field of the answer: text or token ids.")
    logp_field: str | None = Field(
        None, description="Field of the log-probabilities of the answer's tokens, where they were kept."
    )
    start_marker: str = Field("<start>", description="In text files: ends the prompt.")
    end_marker: str = Field("<end>", description="In text files: ends the answer.")


class PromptSetPart(Part):
    """A named set of instructions; a row's prompt is a text or a list of chat messages."""

    source: Literal["jsonl", "parquet", "hub"] = Field(description="Local files, or a data set on the hub.")
    path: str = Field(description="File, folder or glob; hub id of a data set.")
    subset: str | None = Field(None, description="Configuration name of a hub data set.")
    split: str = Field("train", description="Split of a hub data set.")
    field: str = Field("prompt", description="Field of the prompt: a text, or messages of which the last is a user's.")
    context_field: str | None = Field(None, description="Field of a text that is put behind the prompt.")
    system: str | None = Field(None, description="System message put in front of each prompt.")
    chat: bool | None = Field(
        None, description="Apply the target's chat template; otherwise where the target has one and rows are messages."
    )


class SynthesizePart(Part):
    """The target answers prompts; the draft learns from the answers."""

    engine: Literal["transformers", "openvino", "vllm", "server", "recorded"] = Field(
        "transformers",
        description="What runs the target: this process, OpenVINO GenAI, vLLM offline, servers, or nothing: answers "
        "that exist already. docs/synthesis.md says what each records.",
    )
    server: ServerPart | None = Field(None, description="For `engine: server`.")
    recorded: RecordedPart | None = Field(None, description="For `engine: recorded`.")
    prompt_sets: dict[str, PromptSetPart] = Field(default_factory=dict, description="Named sets of instructions.")
    mix: dict[str, PositiveFloat] = Field(
        min_length=1,
        description="Share of the prompts that each source gives, out of its training side; also names of "
        "`prompt_sets`, `magpie` (the target writes the instruction too) and `recorded`.",
    )
    prompts: PositiveInt = Field(description="Prompts to answer.")
    answers_per_prompt: PositiveInt = Field(1, description="Answers to each prompt; greedy ones are never repeated.")
    longest_prompt_tokens: PositiveInt = Field(
        512, description="Instructions of more tokens are left out and counted; windows of documents are not concerned."
    )
    rescore: bool = Field(
        True,
        description="Where the engine's log-probabilities are missing or not those of the law sampled from, the target "
        "reads each row once in this process to find them. Rows of `recorded` are not rescored.",
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="Weights of the target in this process; in bf16 p is the law of the bf16 model."
    )
    ray_workers: PositiveInt | None = Field(
        None,
        description="Answer on Ray with so many workers (the cluster at RAY_ADDRESS, otherwise one started here); "
        "engine transformers.",
    )
    top_logprobs: int = Field(
        0,
        ge=0,
        description="Log-probabilities of so many likeliest tokens that are kept for each token, at temperature 1 "
        "before top-k and top-p, for `target_law: stored`: 2 bytes each, and 2 or 4 for the id.",
    )
    drop_loops: bool = Field(False, description="Drop answers that loop; otherwise they are counted.")
    leak_tokens: PositiveInt = Field(
        13, description="A prompt is a leak where half of its runs of so many tokens stand in one evaluation prompt."
    )
    leak_tasks: tuple[str, ...] = Field(
        (),
        description="Evaluation tasks whose prompts are evaluation texts too, like `humaneval=FILE` or `gsm8k` (on the "
        "hub), as `fastdraft evaluate --tasks` takes them; then windows of corpus sources are searched as well.",
    )
    prompt_tokens: PositiveInt = Field(32, description="Tokens of a prompt.")
    completion_tokens: PositiveInt = Field(128, description="Longest completion.")
    temperatures: dict[NonNegativeFloat, PositiveFloat] = Field(
        min_length=1,
        default_factory=lambda: {0.0: 1.0, 0.6: 1.0, 0.8: 1.0, 1.0: 1.0},
        description="Weight of each sampling temperature; 0 is greedy.",
    )
    top_k: int = Field(0, ge=0, description="Sample from the k likeliest tokens; 0 is all.")
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="Sample from the smallest set with this mass.")
    batch_prompts: PositiveInt = Field(64, description="Prompts answered at once.")

    @property
    def own_sources(self) -> set[str]:
        """The names that `mix` may have beside those of the corpus."""
        return {*self.prompt_sets, "magpie", *(["recorded"] if self.recorded else [])}

    @model_validator(mode="after")
    def _engine_has_its_part(self) -> SynthesizePart:
        for name in ("server", "recorded"):
            if self.engine == name and getattr(self, name) is None:
                raise ValueError(f"engine is {name}; give synthesize.{name}")
        if (self.engine == "recorded") != (set(self.mix) == {"recorded"}):
            raise ValueError("engine recorded and mix {recorded: 1} go together; other names need another engine")
        if self.ray_workers and self.engine != "transformers":
            raise ValueError(f"ray_workers is for engine transformers, not {self.engine}")
        if self.top_logprobs and self.engine == "recorded":
            raise ValueError("engine recorded runs no target, which would give the top_logprobs; leave them out")
        return self


class EvaluatePart(Part):
    """One-pass evaluation on held-out prompts, after each phase, and its judge."""

    tasks: tuple[str, ...] = Field(
        min_length=1, description="Sources whose held-out part gives the prompts; one task each."
    )
    prompts: PositiveInt = Field(64, description="Prompts of a task.")
    prompt_tokens: PositiveInt = Field(64, description="Tokens of a prompt.")
    completion_tokens: PositiveInt = Field(128, description="Longest completion.")
    temperatures: tuple[NonNegativeFloat, ...] = Field(
        (0.0, 0.6), min_length=1, description="Sampling temperatures; 0 is greedy."
    )
    gammas: tuple[PositiveInt, ...] = Field((1, 2, 3, 4, 5, 6, 7, 8), min_length=1, description="Block lengths.")
    batch_prompts: PositiveInt = Field(64, description="Prompts answered at once.")
    measure_prompts: int = Field(
        16,
        ge=0,
        description="Prompts of a task, none of them among `prompts`, that the target answers for measures of block "
        "efficiency at `judge_gamma` while a draft trains, the temperatures in turn; 0: no such measures.",
    )
    bootstrap_resamples: PositiveInt = Field(1000, description="Resamples of the prompts behind an interval.")
    judge_prompts: int = Field(
        16,
        ge=0,
        description="Prompts of a task for real speculative decoding; 0 leaves it out. Below 16 a sound pair may fail "
        "where tokens are sampled: an interval over so few prompts is too narrow.",
    )
    judge_gamma: PositiveInt = Field(4, description="Block length of the judge.")


class Recipe(Part):
    """A whole run."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Name of the run, in letters, digits, `.`, `_`, `-`; its folder is runs/NAME by default.",
    )
    seed: int = Field(7, ge=0, description="Every generator starts from it.")
    threads: PositiveInt | None = Field(None, description="CPU threads; otherwise all cores.")
    device: str = Field("auto", description="cpu, cuda, xpu, hpu, or `auto`: the first accelerator, else cpu.")
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp", description="Of several processes each holds the whole draft (DDP), or a shard of it (FSDP2)."
    )
    trackers: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = Field(
        (), description="Where the rows of metrics.jsonl go too, by accelerate's trackers; each is an extra."
    )
    target: TargetPart
    draft: DraftPart
    corpus: dict[str, SourcePart] = Field(default_factory=dict, description="Named sources.")
    tokenize: TokenizePart = Field(default_factory=TokenizePart)
    pretrain: TrainPart | None = Field(None, description="PT: from random weights, natural language.")
    continue_: TrainPart | None = Field(None, alias="continue", description="CP: code mixed with text.")
    synthesize: SynthesizePart | None = Field(None, description="The target writes data.")
    align: TrainPart | None = Field(None, description="FT: on what the target wrote.")
    evaluate: EvaluatePart | None = Field(None, description="Measure after every phase.")

    @model_validator(mode="after")
    def _one_split_of_one_file(self) -> Recipe:
        """Sources over the same files hold out the same ones, or what is held out in one is trained on in the other."""
        shares: dict[str, tuple[str, float]] = {}
        for name, part in self.corpus.items():
            files = "python" if part.source.startswith("python_") else f"{part.source}:{part.path}"
            other, share = shares.setdefault(files, (name, part.held_out_share))
            if share != part.held_out_share:
                raise ValueError(
                    f"corpus.{other} and corpus.{name} read the same files with held_out_share {share:g} and "
                    f"{part.held_out_share:g}; they must be equal"
                )
        return self

    @model_validator(mode="after")
    def _sources_exist(self) -> Recipe:
        """Every source that a part names is one of `corpus`, or `synthetic`: what the target wrote."""
        named = {
            "pretrain.mix": self.pretrain.mix if self.pretrain else {},
            "continue.mix": self.continue_.mix if self.continue_ else {},
            "synthesize.mix": self.synthesize.mix if self.synthesize else {},
            "align.mix": self.align.mix if self.align else {},
            "evaluate.tasks": self.evaluate.tasks if self.evaluate else (),
        }
        for where, names in named.items():
            known = {*self.corpus, *(["synthetic"] if where == "align.mix" and self.synthesize else [])}
            if where == "synthesize.mix" and self.synthesize:
                known |= self.synthesize.own_sources
            if unknown := sorted(set(names) - known):
                raise ValueError(f"{where} names {', '.join(unknown)}; this recipe has {', '.join(sorted(known))}")
        return self

    @model_validator(mode="after")
    def _records_exist(self) -> Recipe:
        """Losses on what was recorded with the target's answers have such rows."""
        phases = {"pretrain": self.pretrain, "continue": self.continue_, "align": self.align}
        for name, part in phases.items():
            if part is not None and part.on_policy and self.parallel == "fsdp":
                raise ValueError(f"{name}.on_policy needs the whole draft in each process; set parallel: ddp")
            if part is None or not part.recorded_keys:
                continue
            asked = f"{name} has {', '.join(part.recorded_keys)}"
            if "synthetic" not in part.mix or self.synthesize is None:
                raise ValueError(
                    f"{asked}, which texts of a corpus have no records for; it wants `synthetic` in its mix"
                )
            if part.target_law == "stored" and not self.synthesize.top_logprobs:
                raise ValueError(f"{asked}; give synthesize.top_logprobs, like 16")
            recorded = self.synthesize.recorded
            if recorded and not recorded.logp_field and OF_THE_SAMPLE & part.objectives.keys():
                raise ValueError(f"{asked}; give synthesize.recorded.logp_field")
        return self

    @model_validator(mode="after")
    def _completions_fit_their_rows(self) -> Recipe:
        if self.synthesize and self.align and "synthetic" in self.align.mix:
            prompt, row = self.synthesize.prompt_tokens, self.align.sequence_tokens
            if prompt > row:
                raise ValueError(f"align.sequence_tokens is {row}, shorter than synthesize.prompt_tokens, {prompt}")
        return self

    @model_validator(mode="after")
    def _can_be_evaluated(self) -> Recipe:
        """What evaluation would miss is said before anything is trained: a draft, and held-out documents."""
        if self.evaluate is None:
            return self
        if self.pretrain is self.continue_ is self.align is None:
            raise ValueError("evaluate has no draft to measure; give pretrain, continue or align")
        bare = [name for name in self.evaluate.tasks if not self.corpus[name].held_out_share]
        if bare:
            raise ValueError(f"evaluate.tasks names {', '.join(bare)}, of which held_out_share 0 leaves no document")
        return self

    @model_validator(mode="after")
    def _choice_is_measured(self) -> Recipe:
        """A phase that goes by block efficiency measures it."""
        for name, part in {"pretrain": self.pretrain, "continue": self.continue_, "align": self.align}.items():
            if part is None or (part.keep == "last" and part.early_stop_measures is None):
                continue
            if self.evaluate is None or not self.evaluate.measure_prompts:
                asked = "keep best" if part.keep == "best" else f"early_stop_measures {part.early_stop_measures}"
                raise ValueError(f"{name} has {asked}, and nothing measures it; give evaluate.measure_prompts, like 16")
        return self
