"""The card of the stage `synthesize`."""

from __future__ import annotations

from typing import ClassVar

from fastdraft.synthesize.quality import Quality
from fastdraft.system.cards import Card
from fastdraft.system.precision import Precision

# The card's `log_probabilities`, by the engine's `logprobs_mode`.
LOGP = {
    "processed": "under the distribution sampled from, by the engine",
    "raw": "under the distribution sampled from: rescored by the target where the engine's were raw",
    "none": "under the distribution sampled from: rescored by the target, the engine gave none",
}


class CompletionsCard(Card):
    """Completions for training. The store is the folder completions/ next to the card; so is quality.json.

    `log_probabilities` describes the log-probabilities, `ids` the origin of the token ids. `precision` is what the
    target computed in, in this process or in vLLM.
    """

    kind: ClassVar[str] = "completions"
    left_out: ClassVar[tuple[str, ...]] = ("engine/*",)  # the target in an engine's format
    refills: ClassVar[bool] = True
    completions: int
    tokens: int
    engine: str = "transformers"
    log_probabilities: str = LOGP["processed"]
    precision: Precision
    ids: str = "as the engine produced them"
    top_logprobs: int = 0
    quality: Quality | None = None
