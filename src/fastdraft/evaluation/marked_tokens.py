"""Completions with every token marked as accepted, corrected or bonus, and what the draft proposed instead.

The stage `evaluate` writes two files next to its card. `marked.json` holds some texts of each task and the tokens that
are rejected most. `acceptances.npz` holds the acceptance of every token of every text, for later comparisons.

Dimensions: B completions, N tokens of one, V vocabulary.
"""

from __future__ import annotations

import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from fastdraft.evaluation.one_pass import Acceptances, token_acceptance
from fastdraft.maths import acceptance
from fastdraft.maths.sampling import warp
from fastdraft.results.evaluation import Result, TaskResult
from fastdraft.synthesize.completions import Completion
from fastdraft.synthesize.rescore import completion_logits
from fastdraft.system.errors import CardError
from fastdraft.system.files import atomic_write, write_json
from fastdraft.system.validation import read_json

TEXTS, ACCEPTANCES = "marked.json", "acceptances.npz"
ACCEPTED, CORRECTED, BONUS = "a", "c", "b"
TEXTS_PER_KIND = 3  # best, typical and worst texts
PROMPT_TOKENS = 32  # tokens of a prompt that are kept: its last ones
MOST_REJECTED = 12  # rows of each table of rejected tokens and contexts
CONTEXT_TOKENS = 3


class MarkedText(Result):
    """A completion, with one entry per token in each column; `key` is the completion's.

    `marks`: one letter per token. `accept`: the probability of acceptance if the token is drafted. `confidence`: the
    probability that the draft gives its most likely token under the sampling parameters. `proposed`: that token, empty
    if it is the token of the text. `block_efficiency`: expected, at the task's gamma.
    """

    key: str
    prompt: str
    block_efficiency: float
    marks: str
    tokens: tuple[str, ...]
    accept: tuple[float, ...]
    confidence: tuple[float, ...]
    proposed: tuple[str, ...]


class Rejected(Result):
    """A token, or the tokens before one, over all texts of a task.

    It occurs `times`, and `rejected` is the expected number of rejections there. `wrote` and `proposed`: the most
    frequent tokens of the target and of the draft at these places.
    """

    text: str
    times: int
    rejected: float
    wrote: str
    proposed: str


class MarkedTask(Result):
    """Texts of one task under one set of sampling parameters, by block efficiency; `worst` begins with the worst."""

    task: str
    temperature: float
    gamma: int
    best: tuple[MarkedText, ...]
    typical: tuple[MarkedText, ...]
    worst: tuple[MarkedText, ...]
    rejected_tokens: tuple[Rejected, ...]
    rejected_contexts: tuple[Rejected, ...]


class Marked(Result):
    """All tasks with the draft of one phase; `seed` decides the marks of sampled texts."""

    version: Literal[1] = 1
    stage: str
    seed: int
    tasks: tuple[MarkedTask, ...]


class TokenScores(NamedTuple):
    """For each token of a completion: its acceptance, the draft's most likely token there, and its probability."""

    accept_N: npt.NDArray[np.float64]
    choice_N: npt.NDArray[np.int64]
    confidence_N: npt.NDArray[np.float64]


def mark_tokens(accept_N: Sequence[float], gamma: int, uniform_N: Sequence[float]) -> str:
    """A mark for each token of a text, as speculative decoding with blocks of gamma drafted tokens would emit them.

    A drafted token is accepted if its number in `uniform_N`, uniform on [0, 1), is below its acceptance. In greedy
    texts acceptances are 0 or 1, so the numbers have no effect. A corrected token ends its block, and so does the bonus
    token after a fully accepted one.
    """
    marks, drafted = "", 0
    for accept, uniform in zip(accept_N, uniform_N, strict=True):
        mark = BONUS if drafted == gamma else ACCEPTED if uniform < accept else CORRECTED
        marks += mark
        drafted = drafted + 1 if mark == ACCEPTED else 0
    return marks


def write_marked(
    folder: Path,
    draft: PreTrainedModel,
    measured: Iterable[tuple[TaskResult, Sequence[Completion]]],
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
) -> None:
    """Write both files for one draft on the completions of each task."""
    tasks, stage = [], ""
    arrays: dict[str, npt.NDArray[Any]] = {}
    for result, completions in measured:
        scores, stage = score_tokens(draft, completions), result.stage
        tasks.append(_marked_task(result, completions, scores, tokenizer, seed))
        prefix = _array_prefix(result)
        arrays[f"{prefix}/keys"] = np.array([row.key for row in completions])
        arrays[f"{prefix}/lengths"] = np.array([len(row.tokens) for row in completions], np.int64)
        arrays[f"{prefix}/accept"] = np.concatenate([each.accept_N for each in scores]).astype(np.float32)
    write_json(folder / TEXTS, Marked(stage=stage, seed=seed, tasks=tuple(tasks)).model_dump(mode="json"))
    with atomic_write(folder / ACCEPTANCES) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def read_marked(folder: Path) -> Marked | None:
    """The marked texts; None if there are none. CardError if they are damaged or of another version."""
    path = folder / TEXTS
    if not path.is_file():
        return None
    return read_json(path, Marked, "a file of marked texts", "evaluate again")


def read_acceptances(folder: Path, result: TaskResult) -> tuple[list[str], Acceptances] | None:
    """The keys of a result's completions, and their acceptances; None if they were not kept.

    CardError if the file is damaged.
    """
    path, prefix = folder / ACCEPTANCES, _array_prefix(result)
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if f"{prefix}/keys" not in arrays:
                return None
            keys, lengths_B = arrays[f"{prefix}/keys"].tolist(), arrays[f"{prefix}/lengths"].astype(np.int64)
            accept_X = arrays[f"{prefix}/accept"].astype(np.float64)
        if not len(keys) == len(lengths_B) == result.prompts or lengths_B.min() < 1 or lengths_B.sum() != len(accept_X):
            raise ValueError("its arrays do not fit together")
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise CardError(f"{path} is damaged: {error}\n  do: evaluate again") from error
    rows = np.split(accept_X, np.cumsum(lengths_B)[:-1])
    accept_BN = torch.zeros(len(rows), int(lengths_B.max()), dtype=torch.float64)
    for index, accept_N in enumerate(rows):
        accept_BN[index, : len(accept_N)] = torch.from_numpy(accept_N)
    return keys, Acceptances(accept_BN, torch.from_numpy(lengths_B))


def score_tokens(draft: PreTrainedModel, completions: Sequence[Completion]) -> list[TokenScores]:
    """The scores of all completions, with one forward of the draft over each."""
    scores: dict[int, TokenScores] = {}
    for index, logits_NV in completion_logits(draft, completions):
        row = completions[index]
        logq_NV = logits_NV.log_softmax(-1) if row.sampling.greedy else warp(logits_NV, *row.sampling)
        logq_N, choice_N = logq_NV.max(-1)
        scores[index] = TokenScores(
            accept_N=token_acceptance(row, logits_NV).double().cpu().numpy(),
            choice_N=choice_N.cpu().numpy(),
            confidence_N=logq_N.exp().double().cpu().numpy(),
        )
    return [scores[index] for index in range(len(completions))]


def _array_prefix(result: TaskResult) -> str:
    return f"{result.task}/{result.temperature:g}"


def _marked_task(
    result: TaskResult,
    completions: Sequence[Completion],
    scores: Sequence[TokenScores],
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
) -> MarkedTask:
    gamma = result.best_gamma
    tau = [_block_efficiency(each.accept_N, gamma) for each in scores]
    order = sorted(range(len(completions)), key=lambda index: tau[index])
    middle = max(0, (len(completions) - TEXTS_PER_KIND) // 2)

    def texts(chosen: Sequence[int]) -> tuple[MarkedText, ...]:
        return tuple(_marked_text(completions[i], scores[i], gamma, tau[i], tokenizer, seed) for i in chosen)

    return MarkedTask(
        task=result.task,
        temperature=result.temperature,
        gamma=gamma,
        best=texts(order[::-1][:TEXTS_PER_KIND]),
        typical=texts(order[middle : middle + TEXTS_PER_KIND]),
        worst=texts(order[:TEXTS_PER_KIND]),
        rejected_tokens=_most_rejected(completions, scores, lambda ids, place: (ids[place],), tokenizer),
        rejected_contexts=_most_rejected(
            completions, scores, lambda ids, place: tuple(ids[max(0, place - CONTEXT_TOKENS) : place]), tokenizer
        ),
    )


def _block_efficiency(accept_N: npt.NDArray[np.float64], gamma: int) -> float:
    chain = acceptance.chain(torch.from_numpy(accept_N)[None], torch.tensor([len(accept_N)]), gamma)
    return float(acceptance.block_efficiency(chain))


def _marked_text(
    row: Completion, scores: TokenScores, gamma: int, tau: float, tokenizer: PreTrainedTokenizerFast, seed: int
) -> MarkedText:
    uniform_N = np.random.default_rng([seed, int(row.key, 16)]).random(len(row.tokens))
    prompt, tokens = row.prompt.tolist()[-PROMPT_TOKENS:], row.tokens.tolist()
    pieces = list(_pieces(tokenizer, [*prompt, *tokens]))
    proposed = [
        "" if choice == token else str(tokenizer.decode([choice]))
        for choice, token in zip(scores.choice_N.tolist(), tokens, strict=True)
    ]
    return MarkedText(
        key=row.key,
        prompt="".join(pieces[: len(prompt)]),
        block_efficiency=round(tau, 4),
        marks=mark_tokens(scores.accept_N.tolist(), gamma, uniform_N.tolist()),
        tokens=tuple(pieces[len(prompt) :]),
        accept=tuple(scores.accept_N.round(3).tolist()),
        confidence=tuple(scores.confidence_N.round(3).tolist()),
        proposed=tuple(proposed),
    )


def _pieces(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> Iterator[str]:
    """The text that each token adds; a character made of several tokens belongs to the last of them."""
    stream = DecodeStream(skip_special_tokens=False)
    for token in ids:
        yield stream.step(tokenizer.backend_tokenizer, token) or ""


class _Counts:
    """Counts for one token or context."""

    def __init__(self) -> None:
        self.times, self.rejected = 0, 0.0
        self.wrote: Counter[int] = Counter()
        self.proposed: Counter[int] = Counter()


def _most_rejected(
    completions: Sequence[Completion],
    scores: Sequence[TokenScores],
    group: Callable[[Sequence[int], int], tuple[int, ...]],
    tokenizer: PreTrainedTokenizerFast,
) -> tuple[Rejected, ...]:
    """The groups with the most expected rejections, in falling order.

    `group` maps the ids of prompt and completion, and the place of a token in them, to the ids it is counted under.
    """
    counts_by_ids: defaultdict[tuple[int, ...], _Counts] = defaultdict(_Counts)
    for row, each in zip(completions, scores, strict=True):
        ids = [*row.prompt.tolist(), *row.tokens.tolist()]
        for place, (accept, choice) in enumerate(zip(each.accept_N, each.choice_N, strict=True), len(row.prompt)):
            counts = counts_by_ids[group(ids, place)]
            counts.times += 1
            counts.rejected += 1 - float(accept)
            counts.wrote[ids[place]] += 1
            counts.proposed[int(choice)] += choice != ids[place]

    def decode(ids: Iterable[int]) -> str:
        return str(tokenizer.decode(list(ids)))

    most = sorted(counts_by_ids.items(), key=lambda pair: -pair[1].rejected)[:MOST_REJECTED]
    return tuple(
        Rejected(
            text=decode(ids),
            times=counts.times,
            rejected=round(counts.rejected, 2),
            wrote=decode([counts.wrote.most_common(1)[0][0]]),
            proposed=decode([counts.proposed.most_common(1)[0][0]]) if counts.proposed.total() else "",
        )
        for ids, counts in most
        if counts.rejected > 0
    )
