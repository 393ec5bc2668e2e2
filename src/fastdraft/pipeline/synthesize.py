"""`synthesize`: the completions that the target writes for training."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from fastdraft.config import SynthesizePart
from fastdraft.data.corpus_card import CorpusCard
from fastdraft.data.shards import Tokens
from fastdraft.evaluate.tasks import tasks_of
from fastdraft.models import target
from fastdraft.models.run_context import RunContext
from fastdraft.models.target import TargetCard
from fastdraft.pipeline.stage_result import StageResult
from fastdraft.planning.training_cost import top_bytes
from fastdraft.synthesize import magpie
from fastdraft.synthesize.completions import Completion, CompletionStore, Keys, Request, SamplingParams
from fastdraft.synthesize.completions_card import LOGP
from fastdraft.synthesize.engines import ENGINES, Setup, batch_size
from fastdraft.synthesize.leaks import REASON, Leaks
from fastdraft.synthesize.prompt_sets import chat_tokens, instruction_prompts
from fastdraft.synthesize.prompts import distinct, document_prompts, over_sampling, repeated
from fastdraft.synthesize.quality import Quality, quality, without_loops
from fastdraft.synthesize.rescore import rescorer
from fastdraft.synthesize.run_decoding import decoding
from fastdraft.synthesize.write import Decoding, Engine, Keyed, Rescore, as_given, keyed, write
from fastdraft.system.cards import read_card
from fastdraft.system.errors import TargetError
from fastdraft.system.files import write_json
from fastdraft.system.precision import Precision
from fastdraft.system.progress import Bar, log_line

# Instructions that are asked for, for each that is wanted: some never end, some are alike.
MAGPIE_SPARE = 1.25


def make_completions(run_context: RunContext, folder: Path) -> StageResult:
    """completions/*.parquet and quality.json: what the target writes after prompts from the training side."""
    part = run_context.recipe.synthesize
    assert part is not None, "a stage without a part is not in the pipeline"
    setup, left_out = _setup(run_context, part, folder), Counter[str]()
    store = CompletionStore(folder / "completions", logp="float16")
    own = _own_instructions(setup)  # with an engine of their own: a device may not hold the target twice
    requests = _Counted(_training_requests(run_context, setup, own, left_out))
    engine = ENGINES[part.engine](setup)
    with Bar("synthesize", _answers(part), "completions", len(store.stored())) as bar:
        rows = keyed(requests, setup.decoding)
        refused = write(engine, rows, store, setup.decoding, bar, _rescore(setup, engine))
    # Rows that exist already are asked of nobody: all that were read.
    asked = requests.count if part.engine != "recorded" else len(store.stored()) + refused.total()
    found = _reported(setup, store, asked, refused, left_out, folder)
    return StageResult(_fields(part, setup.precision, engine, found), found.tokens)


class _Counted:
    """Requests, and how many there were."""

    def __init__(self, requests: Iterable[Request]) -> None:
        self._requests, self.count = requests, 0

    def __iter__(self) -> Iterator[Request]:
        for request in self._requests:
            self.count += 1
            yield request


def _setup(run_context: RunContext, part: SynthesizePart, folder: Path) -> Setup:
    card = run_context.target_card()
    if part.top_k > card.vocab_rows:
        raise TargetError(
            f"synthesize.top_k is {part.top_k:,}, the vocabulary of {card.name} has {card.vocab_rows:,} rows\n"
            f"  do: lower it; 0 keeps all tokens"
        )
    _refuse_too_long(part, card, any(source in run_context.recipe.corpus for source in part.mix))
    _report_top(part, card)
    if part.engine == "openvino" and part.precision == "auto":
        precision = Precision(name="fp32", reason="OpenVINO computes the log-probabilities in fp32")
    else:
        precision = run_context.target_precision(folder, part.precision)
    at_once = batch_size(part, run_context.recipe.target, card.context_tokens, precision.dtype)
    return Setup(
        target=run_context.recipe.target,
        part=part,
        decoding=decoding(run_context, part, at_once),
        device=run_context.device,
        precision=precision,
        context_tokens=card.context_tokens,
        scratch=folder / "engine",
    )


def _refuse_too_long(part: SynthesizePart, card: TargetCard, windows: bool) -> None:
    """TargetError where a window of a document, or any prompt, and its answer may exceed the target's context."""
    tokens = (part.max_prompt_tokens if windows else 1) + part.max_new_tokens
    if part.engine != "recorded" and tokens > card.context_tokens:
        raise TargetError(
            f"a prompt and its completion take {tokens:,} tokens, the context of {card.name} holds "
            f"{card.context_tokens:,}\n"
            f"  do: lower synthesize.max_new_tokens{' or synthesize.max_prompt_tokens' if windows else ''}"
        )


def _report_top(part: SynthesizePart, card: TargetCard) -> None:
    """What the most likely tokens will take; TargetError where more are asked for than there are."""
    if part.top_logprobs > card.vocab_rows:
        raise TargetError(
            f"synthesize.top_logprobs is {part.top_logprobs:,}, the vocabulary of {card.name} has "
            f"{card.vocab_rows:,} rows\n  do: lower it; 0 keeps none"
        )
    if part.top_logprobs:
        each = top_bytes(part.top_logprobs, card.vocab_rows)
        most = each * _answers(part) * part.max_new_tokens
        log_line(f"synthesize: top_logprobs take {each:g} bytes a token, {most / 1e9:.2g} GB at most")


def _rescore(setup: Setup, engine: Engine) -> Rescore:
    """What is done to an engine's rows before they are stored."""
    score = rescorer(engine.logp, setup.part.rescore, setup.open_target, setup.part.top_logprobs)
    return (lambda rows: without_loops(score(rows))) if setup.part.drop_loops else score


def _reported(
    setup: Setup, store: CompletionStore, asked: int, refused: Counter[str], left_out: Counter[str], folder: Path
) -> Quality:
    tokenizer = target.open_tokenizer(setup.target)
    found = quality(store.shards(), setup.decoding, tokenizer, asked, refused, left_out)
    write_json(folder / "quality.json", found.model_dump(mode="json"))
    log_line(
        f"synthesize: trained on {found.trained_fraction:.1%} of {found.tokens / found.trained_fraction:,.0f} tokens"
    )
    return found


def _fields(part: SynthesizePart, precision: Precision, engine: Engine, found: Quality) -> dict[str, object]:
    again = part.engine == "recorded" or (part.server is not None and part.server.text_only)
    known = found.without_logp == 0
    return {
        "completions": found.written,
        "tokens": found.tokens,
        "engine": part.engine,
        "precision": precision,
        "log_probabilities": LOGP[engine.logp] if known else f"unknown for {found.without_logp} rows",
        "ids": "texts tokenised again, each checked to decode to its text" if again else "as the engine produced them",
        "top_logprobs": part.top_logprobs,
        "quality": found,
    }


# Prompts.
def _training_requests(
    run_context: RunContext, setup: Setup, own: Iterable[Completion], left_out: Counter[str]
) -> Iterator[Request]:
    """Prompts of each source in its share, under each distribution in its share; `own` are instructions of the
    target.
    """
    part = setup.part
    sampling_settings = {_sampling(temperature, part): weight for temperature, weight in part.temperatures.items()}
    leaks: list[Leaks] = []
    seen = Keys()
    for number, source in enumerate(sorted(part.mix)):
        count = _count(part, source)
        if source in run_context.recipe.corpus:
            generator = np.random.default_rng([run_context.recipe.seed, number])
            shards = run_context.shards(source, "train")
            prompts: Iterable[Tokens] = document_prompts(shards, count, part.max_prompt_tokens, 1, generator)
        elif source != "recorded" and count:
            prompts = _instructions(source, setup, own, count, left_out)
        else:
            continue
        if source not in run_context.recipe.corpus or part.leak_tasks:
            leaks = leaks or [
                Leaks(_evaluation_texts(run_context, setup), part.leak_tokens, _chat_template_tokens(setup))
            ]
            prompts = _unleaked(prompts, leaks[0], left_out)
        if len(part.mix) > 1:
            prompts = distinct(prompts, seen, left_out)
        yield from repeated(
            over_sampling(_report_missing(prompts, source, count), sampling_settings), part.samples_per_prompt
        )


def _answers(part: SynthesizePart) -> int:
    """To all prompts, as `repeated` has it: one where it is greedy."""
    greedy = part.temperatures.get(0.0, 0.0) / sum(part.temperatures.values())
    return round(part.prompts * (greedy + (1 - greedy) * part.samples_per_prompt))


def _count(part: SynthesizePart, source: str) -> int:
    """Prompts of a source."""
    return round(part.prompts * part.mix[source] / sum(part.mix.values()))


def _instructions(
    source: str, setup: Setup, own: Iterable[Completion], count: int, left_out: Counter[str]
) -> Iterable[Tokens]:
    """Prompts of a named set, or those that the target has written itself."""
    tokenizer = target.open_tokenizer(setup.target)
    if source in setup.part.prompt_sets:
        named = setup.part.prompt_sets[source]
        return instruction_prompts(named, tokenizer, count, _max_instruction_tokens(setup), left_out)
    return magpie.magpie_prompts(magpie.turn_of(tokenizer), own, count, left_out)


def _max_instruction_tokens(setup: Setup) -> int:
    """In tokens."""
    return min(setup.part.max_instruction_tokens, setup.context_tokens - setup.part.max_new_tokens)


def _own_instructions(setup: Setup) -> Iterable[Completion]:
    """The instructions that the target writes itself where the mix has `magpie`, read a shard at a time.

    They have a store of their own; the engine is opened for what is missing alone.
    """
    if "magpie" not in setup.part.mix.keys() - setup.part.prompt_sets.keys():
        return []
    turn = magpie.turn_of(target.open_tokenizer(setup.target))
    count = round(_count(setup.part, "magpie") * MAGPIE_SPARE)
    setup = replace(setup, decoding=_of_instructions(setup, turn))
    store = CompletionStore(setup.scratch.parent / "instructions")

    def asked() -> Iterator[Keyed]:
        return keyed(magpie.instruction_requests(turn, count), setup.decoding)

    stored = store.stored()
    with Bar("magpie", count, "instructions", len(stored)) as bar:
        if any(row.key not in stored for row in asked()):
            write(ENGINES[setup.part.engine](setup), asked(), store, setup.decoding, bar, as_given)
    return (row for shard in store.shards() for row in shard)


def _of_instructions(setup: Setup, turn: magpie.Turn) -> Decoding:
    """How the target writes instructions: up to the end of a user's turn; TargetError where it has no room for any."""
    tokens = _max_instruction_tokens(setup) - len(turn.opening) - len(turn.closing)
    if tokens <= magpie.SHORTEST_TOKENS:
        raise TargetError(
            f"magpie's instructions would have {tokens} tokens at most: a prompt may take "
            f"{_max_instruction_tokens(setup)}, "
            f"the chat template takes {len(turn.opening) + len(turn.closing)} of them\n"
            f"  do: raise synthesize.max_instruction_tokens, or lower synthesize.max_new_tokens"
        )
    ends = setup.decoding.eos | {turn.end}
    return setup.decoding._replace(max_new_tokens=tokens, eos=ends, end=turn.end, top_logprobs=0)


def _evaluation_texts(run_context: RunContext, setup: Setup) -> Iterator[Tokens]:
    """What no prompt for training may repeat: held-out documents, and every prompt of `leak_tasks`, however long."""
    yield from _held_out(run_context)
    if setup.part.leak_tasks:
        tokenizer = target.open_tokenizer(setup.target)
        for task in tasks_of(setup.part.leak_tasks, tokenizer, context_tokens=sys.maxsize, prompts=sys.maxsize):
            yield from task.prompts


def _chat_template_tokens(setup: Setup) -> list[Tokens]:
    """What the target's chat template puts around a user's words, if it has one."""
    tokenizer = target.open_tokenizer(setup.target)
    return [chat_tokens(tokenizer, [{"role": "user", "content": "?"}])] if tokenizer.chat_template else []


def _held_out(run_context: RunContext) -> Iterator[Tokens]:
    """Every held-out document of the recipe's corpus: evaluation prompts are windows of them."""
    if not run_context.recipe.corpus:
        return
    for source, card in read_card(run_context.folder / "tokenize", CorpusCard).sources.items():
        if card.held_out.tokens:
            shards = run_context.shards(source, "held_out")
            starts = shards.document_starts()
            yield from (shards[first:end] for first, end in pairwise(starts.tolist()))


def _unleaked(prompts: Iterable[Tokens], leaks: Leaks, left_out: Counter[str]) -> Iterator[Tokens]:
    for prompt in prompts:
        if prompt in leaks:
            left_out[REASON] += 1
        else:
            yield prompt


def _report_missing(prompts: Iterable[Tokens], source: str, count: int) -> Iterator[Tokens]:
    """The prompts; where a source has not given so many, that is said."""
    given = 0
    for prompt in prompts:
        given += 1
        yield prompt
    if given < count:
        log_line(f"synthesize: {source} gives {given:,} prompts, wanted {count:,}; quality.json says what was left out")


def _sampling(temperature: float, part: SynthesizePart) -> SamplingParams:
    return SamplingParams(temperature, part.top_k, part.top_p) if temperature > 0 else SamplingParams(0.0)
