"""Schema of synthesis: prompts, engine and sampling of the target's completions."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, NonNegativeFloat, PositiveFloat, field_validator, model_validator

from fastdraft.config.part import BatchSize, Count, Mark, Name, Parallel, Part, SampleSize, Seconds, SequenceTokens
from fastdraft.system import limits


class ServerPart(Part):
    """OpenAI-compatible servers of the target: vLLM, SGLang, llama-server, OpenVINO Model Server."""

    urls: tuple[str, ...] = Field(
        min_length=1, description="Base URLs, each with its `/v1`. All servers work on one queue."
    )
    model: str = Field(description="Name of the model on the servers; if a server reports another name, the run stops.")
    concurrent_requests: Parallel = Field(32, description="Concurrent requests per server.")
    timeout_seconds: Seconds = Field(600.0, description="Timeout of a request.")
    attempts: Count = Field(8, description="Times that a request is sent before its prompt is given up.")
    backoff_seconds: Seconds = Field(
        0.5, description="Wait after the first failure; it doubles with each further one, up to 30 s."
    )
    key_variable: str | None = Field(None, description="Environment variable with the API key of the servers.")
    text_only: bool = Field(
        False,
        description="Accept responses without token ids. Their text is tokenized again; completions whose ids do not "
        "decode to the same text are dropped and counted. Only `rescore` gives log-probabilities then.",
    )

    @field_validator("urls")
    @classmethod
    def _are_urls(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [url for url in urls if not _is_url(url)]:
            raise ValueError(f"found {wrong[0]!r}, wanted a URL like http://localhost:8000/v1")
        return urls


def _is_url(text: str) -> bool:
    """Whether the text is an HTTP URL with a host and, if it has a port, a valid one."""
    try:
        url = urlsplit(text)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # the port is no number, or above 65535
        return False


class RecordedPart(Part):
    """Existing completions of the target: production logs or published outputs."""

    path: str = Field(description="File, folder or glob: .jsonl, .jsonl.gz, .parquet, .txt or .txt.gz.")
    prompt_field: str = Field("prompt", description="Field with the prompt: text, chat messages or token ids.")
    answer_field: str = Field("answer", description="Field with the answer: text or token ids.")
    logp_field: str | None = Field(
        None, description="Field with the log-probabilities of the answer's tokens, if they were recorded."
    )
    start_marker: str = Field("<start>", min_length=1, description="Marks the end of the prompt in text files.")
    end_marker: str = Field("<end>", min_length=1, description="Marks the end of the answer in text files.")


# Limits of the default batch size. A larger batch is faster (256 instead of 64: 1.8 times, demo target in bf16,
# benchmarks/synthesis.py), but a killed run loses more completions.
CACHE_BYTES, MAX_BATCH_SIZE = 2**32, 256


class PromptSetPart(Part):
    """A named set of instructions; each prompt is a text or a list of chat messages."""

    source: Literal["jsonl", "parquet", "hub"] = Field(description="Local files, or a dataset on the hub.")
    path: str = Field(description="File, folder or glob of local files; hub id of a dataset.")
    subset: str | None = Field(None, description="Configuration name of a hub dataset.")
    split: str = Field("train", description="Split of a hub dataset.")
    field: str = Field("prompt", description="Field with the prompt: a text, or messages that end with a user's.")
    context_field: str | None = Field(None, description="Field with a text that is appended to the prompt.")
    system: str | None = Field(None, description="System message before each prompt.")
    chat: bool | None = Field(
        None, description="Apply the target's chat template; by default if the target has one and prompts are messages."
    )


class SynthesizePart(Part):
    """Synthesis of training data: the target completes prompts."""

    engine: Literal["transformers", "openvino", "vllm", "server", "recorded"] = Field(
        "transformers",
        description="What runs the target: transformers in this process, OpenVINO GenAI, vLLM offline, or servers. "
        "`recorded` reads existing completions instead. docs/synthesis.md lists what each engine records.",
    )
    server: ServerPart | None = Field(None, description="Required by `engine: server`.")
    recorded: RecordedPart | None = Field(None, description="Required by `engine: recorded`.")
    prompt_sets: dict[Name, PromptSetPart] = Field(default_factory=dict, description="Named sets of instructions.")
    mix: dict[str, PositiveFloat] = Field(
        min_length=1,
        description="Fraction of the prompts from each source: training documents of a corpus source, one of "
        "`prompt_sets`, `magpie` (the target also writes the instruction) or `recorded`.",
    )
    prompts: int = Field(gt=0, le=limits.PROMPTS, description="Number of prompts.")
    samples_per_prompt: SampleSize = Field(1, description="Completions per prompt; a greedy one is generated once.")
    max_instruction_tokens: SequenceTokens = Field(
        512, description="Longer instructions are dropped and counted. Prompts from corpus documents are not affected."
    )
    rescore: bool = Field(
        True,
        description="If the engine's log-probabilities are missing, or are not those of the distribution sampled from, "
        "compute them by one forward of the target over each completion. Recorded completions are not rescored.",
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto",
        description="Precision of the target in this process and in vLLM. auto: bf16 if the weights are stored in "
        "16 bits and the device multiplies matrices faster in bf16, else fp32; always fp32 with engine openvino.",
    )
    ray_workers: Annotated[Parallel | None, Mark.NO_RESULT] = Field(
        None,
        description="Number of Ray workers that generate (on the cluster at RAY_ADDRESS; without it, on a cluster "
        "started on this machine). Only for engine transformers.",
    )
    top_logprobs: int = Field(
        0,
        ge=0,
        le=limits.TOP_LOGPROBS,
        description="Number of most likely tokens to store for each token, for `teacher_logits: offline`. Their "
        "log-probabilities are at temperature 1, before top-k and top-p. Each takes 2 bytes, its id 2 or 4.",
    )
    top_logprobs_from: Literal["target", "server"] = Field(
        "target",
        description="Source of `top_logprobs` with engine server: a forward of the target in this process, or the "
        "servers. They must return token ids, and log-probabilities at temperature 1 before top-k and top-p, as "
        "llama-server and vLLM with its default --logprobs-mode do. See docs/synthesis.md.",
    )
    drop_loops: bool = Field(False, description="Drop completions that loop; by default they are only counted.")
    leak_tokens: Count = Field(
        13, description="n of the token n-grams: a prompt is a leak if one evaluation prompt has half of its n-grams."
    )
    leak_tasks: tuple[str, ...] = Field(
        (),
        description="Further evaluation tasks to search for leaks, written as for `fastdraft evaluate --tasks`: "
        "`humaneval=FILE`, or `gsm8k` (on the hub). Prompts from corpus sources are then searched too.",
    )
    max_prompt_tokens: SequenceTokens = Field(32, description="Length of a prompt from a corpus source.")
    max_new_tokens: SequenceTokens = Field(128, description="Maximum length of a completion.")
    temperatures: dict[NonNegativeFloat, PositiveFloat] = Field(
        min_length=1,
        default_factory=lambda: {0.0: 1.0, 0.6: 1.0, 0.8: 1.0, 1.0: 1.0},
        description="Weight of each sampling temperature; 0 is greedy.",
    )
    top_k: int = Field(0, ge=0, le=limits.COUNT, description="Sample from the k most likely tokens; 0 means all.")
    top_p: float = Field(
        1.0, gt=0.0, le=1.0, description="Sample from the smallest set of tokens with this probability."
    )
    batch_size: BatchSize | None = Field(
        None,
        description=f"Prompts per batch; by default as many as fit a KV cache of {CACHE_BYTES >> 30} GiB, up to "
        f"{MAX_BATCH_SIZE}.",
    )

    @property
    def own_sources(self) -> set[str]:
        """The names that `mix` may contain in addition to the sources of the corpus."""
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
            raise ValueError("engine recorded runs no target; remove top_logprobs")
        has_ids = self.engine == "server" and self.server is not None and not self.server.text_only
        if self.top_logprobs_from == "server" and not (has_ids and self.top_logprobs):
            raise ValueError("top_logprobs_from is server; give engine server, without text_only, and top_logprobs")
        return self
