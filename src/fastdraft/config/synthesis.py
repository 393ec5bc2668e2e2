"""What the target writes for training, and what runs it."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator

from fastdraft.config.part import Part


class ServerPart(Part):
    """OpenAI-compatible servers that all serve the target: vLLM, SGLang, llama-server, OpenVINO Model Server."""

    urls: tuple[str, ...] = Field(
        min_length=1, description="Base addresses, each with its `/v1`; they share one queue."
    )
    model: str = Field(description="The model's name on the servers; another answer stops the run.")
    concurrent_requests: PositiveInt = Field(32, description="Requests in flight to each server.")
    timeout_seconds: PositiveFloat = Field(600.0, description="Longest wait for one answer.")
    attempts: PositiveInt = Field(8, description="Times that a request is sent before its row is given up.")
    backoff_seconds: PositiveFloat = Field(0.5, description="Wait after a first failure; it doubles up to 30 s.")
    key_variable: str | None = Field(None, description="Environment variable that holds the servers' key.")
    text_only: bool = Field(
        False,
        description="Take answers that come without token ids: the text is tokenised again, rows that do not decode to "
        "it are dropped and counted, and there are no log-probabilities unless `rescore` finds them.",
    )

    @field_validator("urls")
    @classmethod
    def _are_addresses(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [url for url in urls if not _is_address(url)]:
            raise ValueError(f"found {wrong[0]!r}, wanted an address like http://localhost:8000/v1")
        return urls


def _is_address(url: str) -> bool:
    """Does it name a protocol, a host, and a port, if any, that there may be?"""
    try:
        address = urlsplit(url)
        return address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
    except ValueError:
        return False


class RecordedPart(Part):
    """Answers that exist already: production logs, published outputs of the target."""

    path: str = Field(description="File, folder or glob: .jsonl, .jsonl.gz, .parquet, .txt or .txt.gz.")
    prompt_field: str = Field("prompt", description="Field of the prompt: text, chat messages or token ids.")
    answer_field: str = Field("answer", description="Field of the answer: text or token ids.")
    logp_field: str | None = Field(
        None, description="Field of the log-probabilities of the answer's tokens, where they were kept."
    )
    start_marker: str = Field("<start>", min_length=1, description="In text files: ends the prompt.")
    end_marker: str = Field("<end>", min_length=1, description="In text files: ends the answer.")


# Prompts answered at once, where a recipe does not say it. More are faster (256 for 64: 1.8 times, demo target in bf16,
# benchmarks/synthesis.py), and a kill costs more.
CACHE_BYTES, MOST_PROMPTS = 2**32, 256


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
    samples_per_prompt: PositiveInt = Field(1, description="Answers to each prompt; greedy ones are never repeated.")
    max_instruction_tokens: PositiveInt = Field(
        512, description="Instructions of more tokens are left out and counted; windows of documents are not concerned."
    )
    rescore: bool = Field(
        True,
        description="Where the engine's log-probabilities are missing or not those of the distribution sampled "
        "from, the target "
        "reads each row once in this process to find them. Rows of `recorded` are not rescored.",
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto",
        description="What the target computes in, in this process and in vLLM: log-probabilities are those of that "
        "model. auto: bf16 where the weights are stored in 16 bits and the device multiplies matrices faster in bf16, "
        "else fp32; fp32 with engine openvino.",
    )
    ray_workers: PositiveInt | None = Field(
        None,
        description="Answer on Ray with so many workers (the cluster at RAY_ADDRESS, otherwise one started here); "
        "engine transformers.",
    )
    top_logprobs: int = Field(
        0,
        ge=0,
        description="Log-probabilities of so many most likely tokens that are kept for each token, at temperature 1 "
        "before top-k and top-p, for `teacher_logits: offline`: 2 bytes each, and 2 or 4 for the id.",
    )
    top_logprobs_from: Literal["target", "server"] = Field(
        "target",
        description="Who says the `top_logprobs` of engine server: the target in this process, which reads each row, "
        "or the servers, where they name tokens by ids and say log-probabilities at temperature 1 before top-k and "
        "top-p: vLLM (unless its --logprobs-mode is another) and llama-server do. docs/synthesis.md",
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
    max_prompt_tokens: PositiveInt = Field(32, description="Tokens of a prompt.")
    max_new_tokens: PositiveInt = Field(128, description="Longest completion.")
    temperatures: dict[NonNegativeFloat, PositiveFloat] = Field(
        min_length=1,
        default_factory=lambda: {0.0: 1.0, 0.6: 1.0, 0.8: 1.0, 1.0: 1.0},
        description="Weight of each sampling temperature; 0 is greedy.",
    )
    top_k: int = Field(0, ge=0, description="Sample from the k most likely tokens; 0 is all.")
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="Sample from the smallest set with this mass.")
    batch_size: PositiveInt | None = Field(
        None,
        description=f"Prompts answered at once; otherwise as many as {CACHE_BYTES >> 30} GiB hold the keys and values "
        f"of, {MOST_PROMPTS} at most.",
    )

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
        ids = self.engine == "server" and self.server is not None and not self.server.text_only
        if self.top_logprobs_from == "server" and not (ids and self.top_logprobs):
            raise ValueError("top_logprobs_from is server; give engine server, without text_only, and top_logprobs")
        return self
