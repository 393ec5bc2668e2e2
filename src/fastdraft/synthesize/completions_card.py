"""The card of the completions that the target wrote for training."""

from __future__ import annotations

from typing import ClassVar

from fastdraft.synthesize.quality import Quality
from fastdraft.system.cards import Card
from fastdraft.system.precision import Precision

LOGP = {
    "processed": "under the distribution sampled from, by the engine",
    "raw": "under the distribution sampled from: rescored by the target where the engine's were raw",
    "none": "under the distribution sampled from: rescored by the target, the engine gave none",
}


class CompletionsCard(Card):
    """What the target wrote for training; the rows lie in completions/ beside the card, and quality.json.

    `log_probabilities` says what they are, and `ids` where the token ids come from. `precision` is what the target
    computed in, in this process or in vLLM: the log-probabilities are those of that model.
    """

    kind: ClassVar[str] = "completions"
    completions: int
    tokens: int
    engine: str = "transformers"
    log_probabilities: str = LOGP["processed"]
    precision: Precision
    ids: str = "as the engine produced them"
    top_logprobs: int = 0
    quality: Quality | None = None
