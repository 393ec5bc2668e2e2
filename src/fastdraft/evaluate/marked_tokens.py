"""What the target wrote, token by token: accepted, corrected or bonus, and what the draft would have written instead.

Two files beside the evaluation's card, for people and for later comparisons: `marked.json` with some texts of each task
and what is rejected most, `acceptances.npz` with the acceptance of every token of every text.

Dimensions: B completions, N tokens of one, V vocabulary.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from fastdraft.evaluate.one_pass import Acceptances, token_acceptance
from fastdraft.maths import acceptance
from fastdraft.maths.sampling import warp
from fastdraft.results.evaluation import Result, TaskResult
from fastdraft.synthesize.completions import Completion
from fastdraft.synthesize.rescore import completion_logits
from fastdraft.system.errors import CardError
from fastdraft.system.files import atomic_write, write_json

VERSION = 1
TEXTS, ACCEPTANCES = "marked.json", "acceptances.npz"
ACCEPTED, CORRECTED, BONUS = "a", "c", "b"
# Texts of each kind, tokens of a prompt that are shown, rows of what is rejected most, tokens of a context.
KEPT, PROMPT_TOKENS, MOST, CONTEXT_TOKENS = 3, 32, 12, 3


class MarkedText(Result):
    """A completion, a column for each thing that is known of its tokens; `key` is its row's.

    `marks`: a letter for each token. `accept`: its chance of acceptance, had it been drafted. `confidence`: the chance
    that the draft gave to its own first choice under the distribution, which is `proposed`, empty where that is the
    token.
    `block_efficiency`: expected, at the task's gamma.
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
    """A token, or the tokens before one, over all texts: `times` it stood there, `rejected` of these are expected to be
    rejections; what the target wrote and what the draft put first there, most often.
    """

    text: str
    times: int
    rejected: float
    wrote: str
    proposed: str


class MarkedTask(Result):
    """Texts of one task under one distribution, each kind from its own end; `worst` begins with the worst."""

    task: str
    temperature: float
    gamma: int
    best: tuple[MarkedText, ...]
    typical: tuple[MarkedText, ...]
    worst: tuple[MarkedText, ...]
    rejected_tokens: tuple[Rejected, ...]
    rejected_contexts: tuple[Rejected, ...]


class Marked(Result):
    """All tasks and distributions with the draft of one phase; sampled texts are marked by coins of this seed."""

    version: int = VERSION
    stage: str
    seed: int
    tasks: tuple[MarkedTask, ...]


class Looked(NamedTuple):
    """What one pass of a draft says of each token of a completion, and of its own first choice there."""

    accept_N: npt.NDArray[np.float64]
    choice_N: npt.NDArray[np.int64]
    confidence_N: npt.NDArray[np.float64]


def walk(accept_N: Sequence[float], gamma: int, coin_N: Sequence[float]) -> str:
    """A mark for each token of a text that speculative decoding with blocks of gamma drafted tokens wrote.

    A drafted token is accepted where its coin, uniform on [0, 1), is below its acceptance; where that is 0 or 1, as in
    greedy texts, coins decide nothing. A corrected token ends its block, and so does the bonus token of a full one.
    """
    marks, drafted = "", 0
    for accept, coin in zip(accept_N, coin_N, strict=True):
        mark = BONUS if drafted == gamma else ACCEPTED if coin < accept else CORRECTED
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
    """Both files, for one draft on the completions of each task and distribution."""
    tasks, stage = [], ""
    arrays: dict[str, Any] = {}
    for result, rows in measured:
        looked, stage = look(draft, rows), result.stage
        tasks.append(_task(result, rows, looked, tokenizer, seed))
        arrays |= _arrays(_place(result), rows, looked)
    write_json(folder / TEXTS, Marked(stage=stage, seed=seed, tasks=tuple(tasks)).model_dump(mode="json"))
    with atomic_write(folder / ACCEPTANCES) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_marked(folder: Path) -> Marked | None:
    """The texts; None where they were not recorded. CardError where they are of another version, or broken."""
    path = folder / TEXTS
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            raise CardError(f"{path} is of version {content['version']}, wanted {VERSION}\n  do: evaluate again")
        return Marked.model_validate(content)
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise CardError(
            f"{path} does not read as marked texts ({type(error).__name__})\n  do: evaluate again"
        ) from error


def read_acceptances(folder: Path, result: TaskResult) -> tuple[list[str], Acceptances] | None:
    """The keys of the completions behind a result, and their acceptances; None where they were not recorded."""
    path, place = folder / ACCEPTANCES, _place(result)
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        if f"{place}/keys" not in arrays:
            return None
        keys, lengths_B = arrays[f"{place}/keys"].tolist(), arrays[f"{place}/lengths"]
        rows = np.split(arrays[f"{place}/accept"].astype(np.float64), np.cumsum(lengths_B)[:-1])
    accept_BN = torch.zeros(len(rows), int(lengths_B.max()), dtype=torch.float64)
    for row, accept_N in enumerate(rows):
        accept_BN[row, : len(accept_N)] = torch.from_numpy(accept_N)
    return keys, Acceptances(accept_BN, torch.from_numpy(lengths_B))


def look(draft: PreTrainedModel, completions: Sequence[Completion]) -> list[Looked]:
    """One forward of the draft over each completion."""
    found: dict[int, Looked] = {}
    for place, logits_NV in completion_logits(draft, completions):
        found[place] = _looked(completions[place], logits_NV)
    return [found[place] for place in range(len(completions))]


def _looked(row: Completion, logits_NV: Tensor) -> Looked:
    probs_NV = logits_NV.log_softmax(-1) if row.sampling.greedy else warp(logits_NV, *row.sampling)
    logq_N, choice_N = probs_NV.max(-1)
    accept_N = token_acceptance(row, logits_NV)
    return Looked(accept_N.double().cpu().numpy(), choice_N.cpu().numpy(), logq_N.exp().double().cpu().numpy())


def _place(result: TaskResult) -> str:
    return f"{result.task}/{result.temperature:g}"


def _arrays(place: str, rows: Sequence[Completion], looked: Sequence[Looked]) -> dict[str, npt.NDArray[Any]]:
    """What is kept of one task and distribution: float32, the tokens of all texts in a row."""
    return {
        f"{place}/keys": np.array([row.key for row in rows]),
        f"{place}/lengths": np.array([len(row.tokens) for row in rows], np.int64),
        f"{place}/accept": np.concatenate([each.accept_N for each in looked]).astype(np.float32),
    }


def _task(
    result: TaskResult,
    rows: Sequence[Completion],
    looked: Sequence[Looked],
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
) -> MarkedTask:
    gamma = result.best_gamma
    tau = [_efficiency(each.accept_N, gamma) for each in looked]
    order = sorted(range(len(rows)), key=lambda row: tau[row])
    middle = max(0, (len(rows) - KEPT) // 2)

    def texts(chosen: Sequence[int]) -> tuple[MarkedText, ...]:
        return tuple(_text(rows[row], looked[row], gamma, tau[row], tokenizer, seed) for row in chosen)

    return MarkedTask(
        task=result.task,
        temperature=result.temperature,
        gamma=gamma,
        best=texts(order[::-1][:KEPT]),
        typical=texts(order[middle : middle + KEPT]),
        worst=texts(order[:KEPT]),
        rejected_tokens=_most_rejected(rows, looked, _token, tokenizer),
        rejected_contexts=_most_rejected(rows, looked, _context, tokenizer),
    )


def _efficiency(accept_N: npt.NDArray[np.float64], gamma: int) -> float:
    counts = acceptance.chain(torch.from_numpy(accept_N)[None], torch.tensor([len(accept_N)]), gamma)
    return float(acceptance.block_efficiency(counts))


def _text(
    row: Completion, looked: Looked, gamma: int, tau: float, tokenizer: PreTrainedTokenizerFast, seed: int
) -> MarkedText:
    coin_N = np.random.default_rng([seed, int(row.key, 16)]).random(len(row.tokens))
    prompt, tokens = row.prompt.tolist()[-PROMPT_TOKENS:], row.tokens.tolist()
    pieces = list(_pieces(tokenizer, [*prompt, *tokens]))
    others = [
        "" if choice == token else str(tokenizer.decode([choice]))
        for choice, token in zip(looked.choice_N.tolist(), tokens, strict=True)
    ]
    return MarkedText(
        key=row.key,
        prompt="".join(pieces[: len(prompt)]),
        block_efficiency=round(tau, 4),
        marks=walk(looked.accept_N.tolist(), gamma, coin_N.tolist()),
        tokens=tuple(pieces[len(prompt) :]),
        accept=tuple(looked.accept_N.round(3).tolist()),
        confidence=tuple(looked.confidence_N.round(3).tolist()),
        proposed=tuple(others),
    )


def _pieces(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> Iterator[str]:
    """What each token adds to the text; a letter of several tokens stands at the last of them."""
    stream = DecodeStream(skip_special_tokens=False)
    for number in ids:
        yield stream.step(tokenizer.backend_tokenizer, number) or ""


# What is rejected most.

# (ids of prompt and completion, place of a token in them) -> what it is counted under
By = Callable[[Sequence[int], int], tuple[int, ...]]


def _token(ids: Sequence[int], place: int) -> tuple[int, ...]:
    return (ids[place],)


def _context(ids: Sequence[int], place: int) -> tuple[int, ...]:
    return tuple(ids[max(0, place - CONTEXT_TOKENS) : place])


class _Count:
    """Of one token or context."""

    def __init__(self) -> None:
        self.times, self.rejected = 0, 0.0
        self.wrote: Counter[int] = Counter()
        self.proposed: Counter[int] = Counter()


def _most_rejected(
    rows: Sequence[Completion], looked: Sequence[Looked], by: By, tokenizer: PreTrainedTokenizerFast
) -> tuple[Rejected, ...]:
    """With the most rejections expected, greatest first."""
    counts: defaultdict[tuple[int, ...], _Count] = defaultdict(_Count)
    for row, each in zip(rows, looked, strict=True):
        ids, first = [*row.prompt.tolist(), *row.tokens.tolist()], len(row.prompt)
        for place, (accept, choice) in enumerate(zip(each.accept_N, each.choice_N, strict=True), first):
            count = counts[by(ids, place)]
            count.times += 1
            count.rejected += 1 - float(accept)
            count.wrote[ids[place]] += 1
            count.proposed[int(choice)] += choice != ids[place]
    most = sorted(counts.items(), key=lambda pair: -pair[1].rejected)[:MOST]
    return tuple(_rejected(tokenizer, key, count) for key, count in most if count.rejected > 0)


def _rejected(tokenizer: PreTrainedTokenizerFast, key: tuple[int, ...], count: _Count) -> Rejected:
    def decoded(ids: Iterable[int]) -> str:
        return str(tokenizer.decode(list(ids)))

    return Rejected(
        text=decoded(key),
        times=count.times,
        rejected=round(count.rejected, 2),
        wrote=decoded([count.wrote.most_common(1)[0][0]]),
        proposed=decoded([count.proposed.most_common(1)[0][0]]) if count.proposed.total() else "",
    )
