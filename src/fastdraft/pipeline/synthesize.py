"""`synthesize`: the completions that the target writes for training."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from fastdraft.config import Recipe, SynthesizePart
from fastdraft.data.corpus_card import CorpusCard
from fastdraft.data.record_files import UnusableRow
from fastdraft.data.shards import Tokens
from fastdraft.evaluation.tasks import tasks_of
from fastdraft.models import pretrained
from fastdraft.models.run_context import RunContext
from fastdraft.models.target import TargetCard
from fastdraft.pipeline.stage_result import StageResult
from fastdraft.planning.training_cost import top_bytes
from fastdraft.synthesize import magpie
from fastdraft.synthesize.completion_store import CompletionStore
from fastdraft.synthesize.completions import Completion, Request, SamplingParams
from fastdraft.synthesize.completions_card import LOGP
from fastdraft.synthesize.decoding_params import decoding_params
from fastdraft.synthesize.engine_interface import KeyedRequest, with_keys
from fastdraft.synthesize.engines import ENGINES, EngineSetup, batch_size
from fastdraft.synthesize.key_set import KeySet
from fastdraft.synthesize.leaks import LEAKED_PROMPT, Leaks
from fastdraft.synthesize.prompt_sets import chat_tokens, instruction_prompts
from fastdraft.synthesize.prompts import assign_sampling, distinct_prompts, document_prompts, repeat_samples
from fastdraft.synthesize.quality import measure_quality, without_loops
from fastdraft.synthesize.rescore import keep_as_is, rescorer
from fastdraft.synthesize.write import write_completions
from fastdraft.system.cards import open_stage
from fastdraft.system.errors import TargetError
from fastdraft.system.files import write_json
from fastdraft.system.precision import Precision
from fastdraft.system.progress import Bar, log_line

# Magpie instructions requested for each one that is needed: some do not end, and some are duplicates.
MAGPIE_OVERSAMPLING = 1.25


def make_completions(run_context: RunContext, folder: Path) -> StageResult:
    """Write completions/*.parquet and quality.json: the target's completions of training prompts."""
    part = run_context.recipe.synthesize
    assert part is not None, "a stage without a part is not in the pipeline"
    setup, left_out = _setup(run_context, part, folder), Counter[str]()
    store = CompletionStore(folder / "completions", logp="float16")
    # Before the engine for completions is opened: a device may not have room for the target twice.
    magpie_completions = _magpie_completions(setup)
    requests = _CountedRequests(_training_requests(run_context, setup, magpie_completions, left_out))
    engine = ENGINES[part.engine](setup)
    rescore = rescorer(engine.logprobs_mode, part.rescore, setup.open_target, part.top_logprobs)
    with Bar("synthesize", _expected_completions(part), "completions", len(store.stored_keys())) as bar:
        refused = write_completions(
            engine,
            with_keys(requests, setup.decoding),
            store,
            setup.decoding,
            bar,
            (lambda completions: without_loops(rescore(completions))) if part.drop_loops else rescore,
        )
    # The engine `recorded` reads completions instead of requesting them: count all that were read.
    requested = requests.count if part.engine != "recorded" else len(store.stored_keys()) + refused.total()
    tokenizer = pretrained.open_tokenizer(setup.target)
    quality = measure_quality(store.shards(), setup.decoding, tokenizer, requested, refused, left_out)
    write_json(folder / "quality.json", quality.model_dump(mode="json"))
    all_tokens = quality.tokens / quality.trained_fraction
    log_line(f"synthesize: {quality.trained_fraction:.1%} of {all_tokens:,.0f} tokens can be trained on")
    retokenized = part.engine == "recorded" or (part.server is not None and part.server.text_only)
    unknown = f"unknown for {quality.without_logp} rows"
    fields = {
        "completions": quality.written,
        "tokens": quality.tokens,
        "engine": part.engine,
        "precision": setup.precision,
        "log_probabilities": unknown if quality.without_logp else LOGP[engine.logprobs_mode],
        "ids": "retokenized text, which decodes to the same text" if retokenized else "as the engine produced them",
        "top_logprobs": part.top_logprobs,
        "quality": quality,
    }
    return StageResult(fields, quality.tokens)


class _CountedRequests:
    """An iterator over requests that counts them."""

    def __init__(self, requests: Iterable[Request]) -> None:
        self._requests, self.count = requests, 0

    def __iter__(self) -> Iterator[Request]:
        for request in self._requests:
            self.count += 1
            yield request


def check_lengths(recipe: Recipe, part: SynthesizePart, card: TargetCard) -> None:
    """TargetError if the recipe's lengths or top-k do not fit the target."""
    for key, value in (("top_k", part.top_k), ("top_logprobs", part.top_logprobs)):
        if value > card.vocab_rows:
            raise TargetError(
                f"synthesize.{key} is {value:,}, the vocabulary of {card.name} has {card.vocab_rows:,} rows\n"
                f"  do: lower it; 0 keeps {'all tokens' if key == 'top_k' else 'none'}"
            )
    from_documents = any(source in recipe.corpus for source in part.mix)
    tokens = (part.max_prompt_tokens if from_documents else 1) + part.max_new_tokens
    if part.engine != "recorded" and tokens > card.context_tokens:
        raise TargetError(
            f"a prompt and its completion take {tokens:,} tokens, the context of {card.name} holds "
            f"{card.context_tokens:,}\n"
            f"  do: lower synthesize.max_new_tokens{' or synthesize.max_prompt_tokens' if from_documents else ''}"
        )


def _setup(run_context: RunContext, part: SynthesizePart, folder: Path) -> EngineSetup:
    """What an engine needs."""
    card = run_context.target_card()
    if part.top_logprobs:
        bytes_per_token = top_bytes(part.top_logprobs, card.vocab_rows)
        gigabytes = bytes_per_token * _expected_completions(part) * part.max_new_tokens / 1e9
        log_line(f"synthesize: top_logprobs take {bytes_per_token:g} bytes per token, at most {gigabytes:.2g} GB")
    if part.engine == "openvino" and part.precision == "auto":
        precision = Precision(name="fp32", reason="OpenVINO computes the log-probabilities in fp32")
    else:
        precision = run_context.target_precision(folder, part.precision)
    size = batch_size(part, run_context.recipe.target, card.context_tokens, precision.dtype)
    return EngineSetup(
        target=run_context.recipe.target,
        part=part,
        decoding=decoding_params(run_context, part, size),
        device=run_context.device,
        precision=precision,
        context_tokens=card.context_tokens,
        scratch=folder / "engine",
    )


def _expected_completions(part: SynthesizePart) -> int:
    """The number of completions: one for each greedy prompt, `samples_per_prompt` for each sampled one."""
    greedy = part.temperatures.get(0.0, 0.0) / sum(part.temperatures.values())
    return round(part.prompts * (greedy + (1 - greedy) * part.samples_per_prompt))


def _prompt_count(part: SynthesizePart, source: str) -> int:
    """The number of prompts from a source."""
    return round(part.prompts * part.mix[source] / sum(part.mix.values()))


def _max_instruction_tokens(setup: EngineSetup) -> int:
    """The longest instruction that leaves room for its completion."""
    return min(setup.part.max_instruction_tokens, setup.context_tokens - setup.part.max_new_tokens)


# Prompts.
def _training_requests(
    run_context: RunContext, setup: EngineSetup, magpie_completions: Iterable[Completion], left_out: Counter[str]
) -> Iterator[Request]:
    """Prompts of each source by its weight, sampled at each temperature by its weight."""
    part, tokenizer = setup.part, pretrained.open_tokenizer(setup.target)
    sampling_settings = {
        SamplingParams(at, part.top_k, part.top_p) if at > 0 else SamplingParams(0.0): weight
        for at, weight in part.temperatures.items()
    }
    leaks: Leaks | None = None
    seen = KeySet()
    for number, source in enumerate(sorted(part.mix)):
        count = _prompt_count(part, source)
        prompts: Iterable[Tokens]
        if source in run_context.recipe.corpus:
            generator = np.random.default_rng([run_context.recipe.seed, number])
            shards, bos = run_context.shards(source, "train"), run_context.target_card().added_bos_id
            prompts = document_prompts(shards, count, part.max_prompt_tokens, 1, generator, bos=bos)
        elif source == "recorded" or not count:
            continue
        elif source in part.prompt_sets:
            longest = _max_instruction_tokens(setup)
            prompts = instruction_prompts(part.prompt_sets[source], tokenizer, count, longest, left_out)
        else:
            prompts = magpie.magpie_prompts(magpie.user_turn(tokenizer), magpie_completions, count, left_out)
        if source not in run_context.recipe.corpus or part.leak_tasks:
            if leaks is None:
                template: list[Tokens] = []
                with suppress(UnusableRow):  # if the template refuses a user's message, no prompt is under it
                    if tokenizer.chat_template:
                        template = [chat_tokens(tokenizer, [{"role": "user", "content": "?"}])]
                leaks = Leaks(_evaluation_texts(run_context, setup), part.leak_tokens, template)
            prompts = _unleaked(prompts, leaks, left_out)
        if len(part.mix) > 1:
            prompts = distinct_prompts(prompts, seen, left_out)
        requests = assign_sampling(_report_missing(prompts, source, count), sampling_settings)
        yield from repeat_samples(requests, part.samples_per_prompt)


def _magpie_completions(setup: EngineSetup) -> Iterable[Completion]:
    """Instructions that the target writes itself if the mix has `magpie`, in a store of their own.

    The engine is opened only if some are missing in the store.
    """
    if "magpie" not in setup.part.mix.keys() - setup.part.prompt_sets.keys():
        return []
    turn = magpie.user_turn(pretrained.open_tokenizer(setup.target))
    tokens = _max_instruction_tokens(setup) - len(turn.opening) - len(turn.closing)
    if tokens <= magpie.MIN_INSTRUCTION_TOKENS:
        raise TargetError(
            f"magpie's instructions would have {tokens} tokens at most: a prompt may take "
            f"{_max_instruction_tokens(setup)}, and the chat template takes {len(turn.opening) + len(turn.closing)}\n"
            f"  do: raise synthesize.max_instruction_tokens, or lower synthesize.max_new_tokens"
        )
    decoding = setup.decoding._replace(
        max_new_tokens=tokens, eos=setup.decoding.eos | {turn.end}, end=turn.end, top_logprobs=0
    )
    count = round(_prompt_count(setup.part, "magpie") * MAGPIE_OVERSAMPLING)

    def requests() -> Iterator[KeyedRequest]:
        return with_keys(magpie.instruction_requests(turn, count), decoding)

    store = CompletionStore(setup.scratch.parent / "instructions")
    stored = store.stored_keys()
    with Bar("magpie", count, "instructions", len(stored)) as bar:
        if any(request.key not in stored for request in requests()):
            engine = ENGINES[setup.part.engine](replace(setup, decoding=decoding))
            write_completions(engine, requests(), store, decoding, bar, keep_as_is)
    return (completion for shard in store.shards() for completion in shard)


def _evaluation_texts(run_context: RunContext, setup: EngineSetup) -> Iterator[Tokens]:
    """Texts that no training prompt may repeat: every held-out document, and every prompt of `leak_tasks`."""
    if run_context.recipe.corpus:
        for source, card in open_stage(run_context.folder / "tokenize", CorpusCard).sources.items():
            if card.held_out.tokens:
                shards = run_context.shards(source, "held_out")
                yield from (shards[first:end] for first, end in pairwise(shards.document_starts().tolist()))
    if setup.part.leak_tasks:
        tokenizer = pretrained.open_tokenizer(setup.target)
        for task in tasks_of(setup.part.leak_tasks, tokenizer, context_tokens=sys.maxsize, prompts=sys.maxsize):
            yield from task.prompts


def _unleaked(prompts: Iterable[Tokens], leaks: Leaks, left_out: Counter[str]) -> Iterator[Tokens]:
    for prompt in prompts:
        if prompt in leaks:
            left_out[LEAKED_PROMPT] += 1
        else:
            yield prompt


def _report_missing(prompts: Iterable[Tokens], source: str, count: int) -> Iterator[Tokens]:
    """The prompts; logs a line if the source has fewer than `count`."""
    given = 0
    for prompt in prompts:
        given += 1
        yield prompt
    if given < count:
        log_line(f"synthesize: {source} has {given:,} prompts, wanted {count:,}; quality.json says which were left out")
