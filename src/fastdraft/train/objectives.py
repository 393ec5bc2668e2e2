"""What a token's loss is: on the token itself, against the target's law at its place, or on its recorded probability.

A phase's loss is a weighted sum of such terms; terms of one kind share the target's forward and the softmaxes. Where a
term wants a record that a token has not (text of a corpus, beside what the target wrote), cross entropy stands in for
it with the term's weight.

Dimensions: N tokens of a batch, of a chunk where a chunk's loss is taken; V vocabulary, K tokens of a stored law, C
outcomes of a law, E hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fastdraft.corpus.order import IGNORED, Batch, Record
from fastdraft.maths import divergence
from fastdraft.maths.coarse import coarse_draft, coarse_target
from fastdraft.maths.divergence import DISTRIBUTION_LOSSES
from fastdraft.maths.reduction import masked_sum
from fastdraft.recipe import OF_THE_SAMPLE, TrainPart
from fastdraft.train.blocks import Blocks, TwoPass
from fastdraft.train.head import ChunkLoss, CrossEntropy, finished
from fastdraft.train.laws import divergences

# The loss of one batch, ready to be asked chunk by chunk.
Objective = Callable[[Batch], ChunkLoss | TwoPass]
# (chunk's logits_NV, (N) positions of its tokens in the batch) -> (N) their losses
TokenLoss = Callable[[Tensor, Tensor], Tensor]


def objective(part: TrainPart, target: PreTrainedModel | None) -> Objective:
    """The objective of a phase; the target is there where `part.asks_target`."""
    if part.objectives == {"cross_entropy": 1.0}:
        return cross_entropy
    return partial(weighted, part, target)


def cross_entropy(batch: Batch) -> ChunkLoss:
    """-log q of the label; the paper's objective in every phase."""
    return CrossEntropy(batch.labels_BT.flatten())


def weighted(part: TrainPart, target: PreTrainedModel | None, batch: Batch) -> ChunkLoss | TwoPass:
    """The weighted sum of a phase's terms, at every trained place."""
    mask_N = batch.labels_BT.flatten() != IGNORED
    terms = list(_terms(part, target, batch))

    def loss_of(logits_NV: Tensor, place: Tensor) -> Tensor:
        losses = [term(logits_NV, place) for term in terms]
        return masked_sum(torch.stack(losses).sum(0), mask_N[place]).total

    weight = part.objectives.get("block_length")
    if weight is None:
        return loss_of
    return Blocks(batch, part.block_gamma, weight, part.block_decay).beside(loss_of)


def _terms(part: TrainPart, target: PreTrainedModel | None, batch: Batch) -> Iterator[TokenLoss]:
    """The terms of single tokens, those of one kind as one."""
    weights, text_N = part.objectives, torch.zeros(batch.labels_BT.numel(), device=batch.labels_BT.device)
    if of_law := {name: weight for name, weight in weights.items() if name in DISTRIBUTION_LOSSES}:
        if part.target_law == "live":
            assert target is not None, "the stage opens the target for objectives that need it"
            yield _live(of_law, part, target, batch)
        else:
            stored = Stored(batch)
            yield partial(stored.loss, of_law)
            text_N += sum(of_law.values()) * ~stored.known_N
    if sampled := weights.get("sampled_total_variation"):
        yield partial(_sampled, sampled, _record(batch), batch.labels_BT.flatten().clamp(min=0))
    text_N += weights.get("cross_entropy", 0.0)
    if unrecorded := sum(weights.get(name, 0.0) for name in OF_THE_SAMPLE):
        text_N += unrecorded * _record(batch).logp_BT.flatten().isnan()
    yield partial(_on_text, text_N.where(batch.labels_BT.flatten() != IGNORED, 0), batch)


def _live(weights: dict[str, float], part: TrainPart, target: PreTrainedModel, batch: Batch) -> TokenLoss:
    """Divergences from the target's law, by one forward of it over the batch, both laws at each token's temperature."""
    with torch.no_grad():
        hidden_NE = target.base_model(input_ids=batch.inputs_BT, use_cache=False).last_hidden_state.flatten(0, 1)
    if (
        part.precision == "bf16"
    ):  # as the draft's own head: .13 against .32 s of CPU for 3 840 tokens of the demo target
        hidden_NE = hidden_NE.to(torch.bfloat16)
    weight_VE, temperature_N = target.get_output_embeddings().weight.to(hidden_NE.dtype), _temperatures(part, batch)

    def warped(logits_NV: Tensor, place: Tensor) -> Tensor:
        return logits_NV if temperature_N is None else logits_NV / temperature_N[place, None]

    def loss(logits_NV: Tensor, place: Tensor) -> Tensor:
        def of_target(rows: slice) -> Tensor:
            inside = place[rows]
            logits = finished((hidden_NE[inside] @ weight_VE.T).float(), target.config.get_text_config())
            return warped(logits, inside)

        return divergences(warped(logits_NV, place), of_target, weights)

    return loss


def _on_text(weight_N: Tensor, batch: Batch, logits_NV: Tensor, place: Tensor) -> Tensor:
    """(N) cross entropy, each token with its own weight."""
    weight = weight_N[place]
    if not weight.any():
        return torch.zeros_like(weight)
    return weight * divergence.cross_entropy(logits_NV, batch.labels_BT.flatten()[place].clamp(min=0))


def _sampled(weight: float, record: Record, labels_N: Tensor, logits_NV: Tensor, place: Tensor) -> Tensor:
    """(N) -min(1, q/p) of the token that the target sampled; 0 where nobody knows p."""
    logp_N = record.logp_BT.flatten()[place]
    logq_N = -divergence.cross_entropy(logits_NV / served(record)[place, None], labels_N[place])
    loss_N = divergence.sampled_total_variation(logp_N.nan_to_num(), logq_N)
    return weight * loss_N.where(~logp_N.isnan(), 0)


def _temperatures(part: TrainPart, batch: Batch) -> Tensor | None:
    """(N) the temperature of both laws at each token; None where it is 1 throughout."""
    if part.temperature == "rows":
        return None if batch.record is None else served(batch.record)
    labels_N = batch.labels_BT.flatten()
    return None if part.temperature == 1 else torch.full(labels_N.shape, part.temperature, device=labels_N.device)


class Stored:
    """The law that was stored with what the target wrote: its K tokens one by one, all others as one."""

    def __init__(self, batch: Batch) -> None:
        record = _record(batch)
        self._ids_NK, self._logp_NK = record.top_ids_BTK.flatten(0, 1), record.top_logp_BTK.flatten(0, 1)
        self.known_N = ~self._logp_NK[:, 0].isnan()

    def loss(self, weights: dict[str, float], logits_NV: Tensor, place: Tensor) -> Tensor:
        """(N) a weighted sum of divergences; 0 where no law was stored."""
        known_N = self.known_N[place]
        logp_NC = coarse_target(self._logp_NK[place][known_N].float(), logits_NV.shape[-1])
        logq_NC = coarse_draft(logits_NV[known_N], self._ids_NK[place][known_N])
        losses = [weight * DISTRIBUTION_LOSSES[name](logp_NC, logq_NC) for name, weight in weights.items()]
        return logits_NV.new_zeros(len(logits_NV)).index_put((known_N,), torch.stack(losses).sum(0))


def served(record: Record) -> Tensor:
    """(N) the temperature that a draft's law is taken at: the row's; 1 where it is greedy, a law without a slope."""
    temperature_N = record.temperature_BT.flatten()
    return temperature_N.where(temperature_N > 0, 1.0)


def _record(batch: Batch) -> Record:
    assert batch.record is not None, "the recipe has rows with records where an objective wants them"
    return batch.record
