"""What a token's loss is: on the token itself, against the target's distribution at its place, or on its recorded
probability.

A phase's loss is a weighted sum of such terms; terms of one kind share the target's forward and the softmaxes. Where a
term wants what a token has not (a record, of text of a corpus; a distribution, in rows that no teacher reads), cross
entropy stands in for it with the term's weight.

Dimensions: N tokens of a batch, of a chunk where a chunk's loss is taken; V vocabulary, K tokens of a offline
distribution, C outcomes of a distribution, E hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from fastdraft.config import SAMPLE_OBJECTIVES, TrainPart
from fastdraft.data.order import IGNORED, Batch, Record
from fastdraft.maths import divergence
from fastdraft.maths.bucketed import bucketed_draft, bucketed_target
from fastdraft.maths.divergence import DISTRIBUTION_LOSSES, masked_sum
from fastdraft.train.block_loss import Blocks, TwoPass
from fastdraft.train.divergence_kernels import bucketed_divergences, divergences
from fastdraft.train.head import ChunkLoss, CrossEntropy, KnownGradient, by_autograd, finished
from fastdraft.train.sampling_rng import coins

# The loss of one batch, ready to be asked chunk by chunk.
Objective = Callable[[Batch], ChunkLoss | TwoPass]
# (chunk's logits_NV, (N) positions of its tokens in the batch) -> (N) their losses
TokenLoss = Callable[[Tensor, Tensor], Tensor]


def objective(part: TrainPart, teacher: PreTrainedModel | None) -> Objective:
    """The objective of a phase; the teacher, most often the target itself, is there where `part.needs_teacher`."""
    if part.objectives == {"cross_entropy": 1.0}:
        return cross_entropy
    return partial(weighted, part, teacher)


def cross_entropy(batch: Batch) -> ChunkLoss:
    """-log q of the label; the paper's objective in every phase."""
    return CrossEntropy(batch.labels_BT.flatten())


def weighted(part: TrainPart, teacher: PreTrainedModel | None, batch: Batch) -> ChunkLoss | TwoPass:
    """The weighted sum of a phase's terms, at every trained place."""
    if part.teacher_logits == "offline" and part.objectives.keys() <= DISTRIBUTION_LOSSES.keys() | {"cross_entropy"}:
        return StoredLoss(part, batch)
    mask_N = batch.labels_BT.flatten() != IGNORED
    terms = list(_terms(part, teacher, batch))

    def loss_of(logits_NV: Tensor, place: Tensor) -> Tensor:
        losses = [term(logits_NV, place) for term in terms]
        return masked_sum(torch.stack(losses).sum(0), mask_N[place])

    weight = part.objectives.get("block_length")
    if weight is None:
        return loss_of
    return Blocks(batch, part.block_gamma, weight, part.block_decay).beside(loss_of)


def _terms(part: TrainPart, teacher: PreTrainedModel | None, batch: Batch) -> Iterator[TokenLoss]:
    """The terms of single tokens, those of one kind as one."""
    weights, text_N = part.objectives, torch.zeros(batch.labels_BT.numel(), device=batch.labels_BT.device)
    if distribution_weights := {name: weight for name, weight in weights.items() if name in DISTRIBUTION_LOSSES}:
        target_logits = _teacher(part, teacher, batch)
        yield partial(target_logits.loss, distribution_weights)
        text_N += sum(distribution_weights.values()) * ~target_logits.known_N
    if sampled := weights.get("sampled_total_variation"):
        yield partial(_sampled, sampled, _record(batch), batch.labels_BT.flatten().clamp(min=0))
    text_N += weights.get("cross_entropy", 0.0)
    if unrecorded := sum(weights.get(name, 0.0) for name in SAMPLE_OBJECTIVES):
        text_N += unrecorded * _record(batch).logp_BT.flatten().isnan()
    yield partial(_on_text, text_N.where(batch.labels_BT.flatten() != IGNORED, 0), batch)


def _teacher(part: TrainPart, teacher: PreTrainedModel | None, batch: Batch) -> Live | Stored:
    if part.teacher_logits == "offline":
        return Stored(batch)
    assert teacher is not None, "the stage opens the teacher for objectives that need it"
    return Live(part, teacher, batch)


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
    """(N) the temperature of both distributions at each token; None where it is 1 throughout."""
    if part.temperature == "per_sequence":
        return None if batch.record is None else served(batch.record)
    labels_N = batch.labels_BT.flatten()
    return None if part.temperature == 1 else torch.full(labels_N.shape, part.temperature, device=labels_N.device)


class Live:
    """The distribution of a teacher that is asked now, by one forward of it over the rows that it reads.

    Both distributions are taken at each token's temperature. Rows of the draft for no token, of which the teacher may
    have fewer or more, have no chance in it.
    """

    def __init__(self, part: TrainPart, teacher: PreTrainedModel, batch: Batch) -> None:
        self._reads_all, inputs_BT = part.teacher_fraction == 1, batch.inputs_BT
        rows_B = (
            inputs_BT.new_ones(len(inputs_BT)).bool() if self._reads_all else coins(batch)[0] < part.teacher_fraction
        )
        self.known_N = rows_B.repeat_interleave(inputs_BT.shape[1])
        self._place_N = self.known_N.cumsum(0) - 1
        with torch.no_grad():
            self._hidden_NE = _hidden(teacher, inputs_BT[rows_B])
        self._weight_VE = teacher.get_output_embeddings().weight
        self._hidden_NE = self._hidden_NE.to(self._weight_VE.dtype)
        self._config, self._temperature_N = teacher.config.get_text_config(), _temperatures(part, batch)

    def loss(self, weights: dict[str, float], logits_NV: Tensor, place: Tensor) -> Tensor:
        """(N) a weighted sum of divergences; 0 in rows that the teacher does not read."""
        if self._reads_all:
            return self._divergences(weights, logits_NV, place)
        known_N = self.known_N[place]
        losses = self._divergences(weights, logits_NV[known_N], place[known_N])
        return logits_NV.new_zeros(len(logits_NV)).index_put((known_N,), losses)

    def _divergences(self, weights: dict[str, float], logits_NV: Tensor, place: Tensor) -> Tensor:
        def of_teacher(rows: slice) -> Tensor:
            logits = (self._hidden_NE[self._place_N[place[rows]]] @ self._weight_VE.T).float()
            fitted = F.pad(finished(logits, self._config), (0, logits_NV.shape[1] - logits.shape[1]), value=-torch.inf)
            return self._warped(fitted, place[rows])

        return divergences(self._warped(logits_NV, place), of_teacher, weights)

    def _warped(self, logits_NV: Tensor, place: Tensor) -> Tensor:
        return logits_NV if self._temperature_N is None else logits_NV / self._temperature_N[place, None]


def _hidden(model: PreTrainedModel, inputs_BT: Tensor) -> Tensor:
    """(N,E) what the head of a model is given; of no rows nothing."""
    if not len(inputs_BT):
        return torch.zeros(0, model.get_output_embeddings().weight.shape[1], device=inputs_BT.device)
    hidden_BTE: Tensor = model.base_model(input_ids=inputs_BT, use_cache=False).last_hidden_state
    return hidden_BTE.flatten(0, 1)


class Stored:
    """The distribution that was stored with what the target wrote: its K tokens one by one, all others as one."""

    def __init__(self, batch: Batch) -> None:
        record = _record(batch)
        self._ids_NK, self._logp_NK = record.top_ids_BTK.flatten(0, 1), record.top_logp_BTK.flatten(0, 1)
        self.known_N = ~self._logp_NK[:, 0].isnan()

    def tokens(self, place: Tensor) -> tuple[Tensor, Tensor]:
        """(N,K) log-probabilities, NaN where none were stored, and the ids of their tokens."""
        return self._logp_NK[place], self._ids_NK[place]

    def loss(self, weights: dict[str, float], logits_NV: Tensor, place: Tensor) -> Tensor:
        """(N) a weighted sum of divergences; 0 where no distribution was stored."""
        known_N = self.known_N[place]
        logp_NC = bucketed_target(self._logp_NK[place][known_N].float(), logits_NV.shape[-1])
        logq_NC = bucketed_draft(logits_NV[known_N], self._ids_NK[place][known_N])
        losses = [weight * DISTRIBUTION_LOSSES[name](logp_NC, logq_NC) for name, weight in weights.items()]
        return logits_NV.new_zeros(len(logits_NV)).index_put((known_N,), torch.stack(losses).sum(0))


class StoredLoss(KnownGradient):
    """Divergences from the stored distributions and cross entropy, with the gradient that is known in closed form.

    Through autograd a step took 1.6 times as long as with cross entropy (docs/decisions/0005-training-speed.md).
    """

    def __init__(self, part: TrainPart, batch: Batch) -> None:
        self._stored, trained_N = Stored(batch), batch.labels_BT.flatten() != IGNORED
        self._labels_N, self._trained_N = batch.labels_BT.flatten().clamp(min=0), trained_N
        self._weights = {name: weight for name, weight in part.objectives.items() if name in DISTRIBUTION_LOSSES}
        unknown_N = ~self._stored.known_N
        # The weight of cross entropy at each token.
        self._text_N = (part.objectives.get("cross_entropy", 0.0) + sum(self._weights.values()) * unknown_N) * trained_N
        self._on_text = partial(_on_text, self._text_N, batch)

    def __call__(self, logits_NV: Tensor, place: Tensor) -> Tensor:
        losses_N = self._stored.loss(self._weights, logits_NV, place) + self._on_text(logits_NV, place)
        return masked_sum(losses_N, self._trained_N[place])

    def graded(self, logits_NV: Tensor, place: Tensor, compiled: bool) -> Tensor:  # noqa: ARG002
        """() the same, and the logits are replaced by its gradient."""
        logp_NK, ids_NK = self._stored.tokens(place)
        if ids_NK.shape[1] == logits_NV.shape[1]:
            loss, gradient_NV = by_autograd(self, logits_NV, place)
            logits_NV.copy_(gradient_NV)
            return loss
        logp_NK = logp_NK.where(self._trained_N[place, None], torch.nan)
        labels_N, text_N = self._labels_N[place], self._text_N[place]
        return bucketed_divergences(logits_NV, logp_NK, ids_NK, self._weights, labels_N, text_N).sum()


def served(record: Record) -> Tensor:
    """(N) the temperature that a draft's distribution is taken at: the row's; 1 where it is greedy, a distribution
    without a slope.
    """
    temperature_N = record.temperature_BT.flatten()
    return temperature_N.where(temperature_N > 0, 1.0)


def _record(batch: Batch) -> Record:
    assert batch.record is not None, "the recipe has rows with records where an objective wants them"
    return batch.record
