"""Training objectives: the loss of a token on its label, against the teacher's distribution, or on its recorded log p.

The loss of a phase is a weighted sum of terms. Terms against the teacher share its forward and the softmaxes. Where
data for a term is missing (a recorded log-probability, or a teacher's distribution), cross entropy of the label
replaces the term, with the term's weight.

Dimensions: N tokens of a batch or of a chunk, V vocabulary, K most likely tokens of a stored distribution, C outcomes
of a distribution, E hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from fastdraft.config import SAMPLE_OBJECTIVES, TrainPart
from fastdraft.data.order import IGNORED, Batch
from fastdraft.maths import divergence
from fastdraft.maths.bucketed import bucketed_draft, bucketed_target
from fastdraft.maths.divergence import DISTRIBUTION_LOSSES, masked_sum
from fastdraft.train.block_loss import BlockLengthLoss, sampling_temperature, teacher_logprobs
from fastdraft.train.divergence_kernels import bucketed_divergences, divergences
from fastdraft.train.head import ChunkLoss, ClosedFormLoss, CrossEntropy, loss_and_gradient, scale_logits
from fastdraft.train.sampling_rng import uniform_draws

# The loss of one batch, to be computed chunk by chunk.
Objective = Callable[[Batch], ChunkLoss | BlockLengthLoss]
# (logits_NV of a chunk, (N) positions of its tokens in the batch) -> (N) losses
TokenLoss = Callable[[Tensor, Tensor], Tensor]


def objective(part: TrainPart, teacher: PreTrainedModel | None) -> Objective:
    """The objective of a phase. `teacher`, usually the target itself, is required if `part.needs_teacher`."""
    if part.objectives == {"cross_entropy": 1.0}:
        return cross_entropy
    return partial(_weighted_sum, part, teacher)


def cross_entropy(batch: Batch) -> ChunkLoss:
    """-log q of the label: the objective of FastDraft (arXiv:2411.11055) in every phase."""
    return CrossEntropy(batch.labels_BT.flatten())


def _weighted_sum(part: TrainPart, teacher: PreTrainedModel | None, batch: Batch) -> ChunkLoss | BlockLengthLoss:
    """The weighted sum of the terms of a phase, over all trained tokens."""
    if part.teacher_logits == "offline" and part.objectives.keys() <= DISTRIBUTION_LOSSES.keys() | {"cross_entropy"}:
        return OfflineTeacherLoss(part, batch)
    mask_N = batch.labels_BT.flatten() != IGNORED
    terms = list(_token_losses(part, teacher, batch))

    def loss(logits_NV: Tensor, positions: Tensor) -> Tensor:
        losses = [term(logits_NV, positions) for term in terms]
        return masked_sum(torch.stack(losses).sum(0), mask_N[positions])

    weight = part.objectives.get("block_length")
    if weight is None:
        return loss
    return BlockLengthLoss(batch, loss, gamma=part.block_gamma, weight=weight, decay=part.block_decay)


def _token_losses(part: TrainPart, teacher: PreTrainedModel | None, batch: Batch) -> Iterator[TokenLoss]:
    """The terms that are losses of single tokens. All distribution losses are one term."""
    weights, labels_N = part.objectives, batch.labels_BT.flatten()
    cross_entropy_weight_N = torch.zeros(labels_N.shape, device=labels_N.device)
    if distribution_weights := {name: weight for name, weight in weights.items() if name in DISTRIBUTION_LOSSES}:
        distributions: OnlineTeacher | OfflineTeacher
        if part.teacher_logits == "offline":
            distributions = OfflineTeacher(batch)
        else:
            assert teacher is not None, "the stage opens the teacher for objectives that need it"
            distributions = OnlineTeacher(part, teacher, batch)
        yield partial(distributions.loss, distribution_weights)
        cross_entropy_weight_N += sum(distribution_weights.values()) * ~distributions.known_N
    if weight := weights.get("sampled_total_variation"):
        yield partial(_sampled_total_variation, weight, batch)
    cross_entropy_weight_N += weights.get("cross_entropy", 0.0)
    if sample_weight := sum(weights.get(name, 0.0) for name in SAMPLE_OBJECTIVES):
        cross_entropy_weight_N += sample_weight * teacher_logprobs(batch).logp_BT.flatten().isnan()
    yield partial(_weighted_cross_entropy, cross_entropy_weight_N.where(labels_N != IGNORED, 0), batch)


def _weighted_cross_entropy(weight_N: Tensor, batch: Batch, logits_NV: Tensor, positions: Tensor) -> Tensor:
    """(N) cross entropy, each token with its own weight."""
    weight = weight_N[positions]
    if not weight.any():
        return torch.zeros_like(weight)
    return weight * divergence.cross_entropy(logits_NV, batch.labels_BT.flatten()[positions].clamp(min=0))


def _sampled_total_variation(weight: float, batch: Batch, logits_NV: Tensor, positions: Tensor) -> Tensor:
    """(N) -min(1, q/p) of the label that the target sampled; 0 where p is unknown."""
    teacher, label = teacher_logprobs(batch), batch.labels_BT.flatten()[positions].clamp(min=0)
    logp_N = teacher.logp_BT.flatten()[positions]
    logq_N = -divergence.cross_entropy(logits_NV / sampling_temperature(teacher)[positions, None], label)
    loss_N = divergence.sampled_total_variation(logp_N.nan_to_num(), logq_N)
    return weight * loss_N.where(~logp_N.isnan(), 0)


class OnlineTeacher:
    """The distribution of a teacher, from one forward over the sequences of the batch that it reads.

    Both distributions are taken at the temperature of each token. The teacher may have more or fewer padding rows in
    its vocabulary than the draft: padding rows get probability 0.
    """

    def __init__(self, part: TrainPart, teacher: PreTrainedModel, batch: Batch) -> None:
        inputs_BT, labels_N = batch.inputs_BT, batch.labels_BT.flatten()
        self._reads_all = part.teacher_fraction == 1
        read_B = torch.ones(len(inputs_BT), dtype=torch.bool, device=inputs_BT.device)
        if not self._reads_all:
            read_B = uniform_draws(batch)[0] < part.teacher_fraction
        self.known_N = read_B.repeat_interleave(inputs_BT.shape[1])
        self._hidden_row_N = self.known_N.cumsum(0) - 1
        self._config, self._weight_VE = teacher.config.get_text_config(), teacher.get_output_embeddings().weight
        with torch.no_grad():
            self._hidden_NE = _hidden_states(teacher, inputs_BT[read_B]).to(self._weight_VE.dtype)
        self._temperature_N: Tensor | None = None  # 1 everywhere
        if part.temperature == "per_sequence":
            self._temperature_N = None if batch.teacher is None else sampling_temperature(batch.teacher)
        elif part.temperature != 1:
            self._temperature_N = torch.full(labels_N.shape, part.temperature, device=labels_N.device)

    def loss(self, weights: dict[str, float], logits_NV: Tensor, positions: Tensor) -> Tensor:
        """(N) the weighted sum of divergences; 0 in sequences that the teacher does not read."""
        if self._reads_all:
            return self._divergences(weights, logits_NV, positions)
        known_N = self.known_N[positions]
        losses = self._divergences(weights, logits_NV[known_N], positions[known_N])
        return logits_NV.new_zeros(len(logits_NV)).index_put((known_N,), losses)

    def _divergences(self, weights: dict[str, float], logits_NV: Tensor, positions: Tensor) -> Tensor:
        def teacher_logits(rows: slice) -> Tensor:
            raw_NV = (self._hidden_NE[self._hidden_row_N[positions[rows]]] @ self._weight_VE.T).float()
            padding = logits_NV.shape[1] - raw_NV.shape[1]  # negative: the teacher has more padding rows
            padded_NV = F.pad(scale_logits(raw_NV, self._config), (0, padding), value=-torch.inf)
            return self._at_temperature(padded_NV, positions[rows])

        return divergences(self._at_temperature(logits_NV, positions), teacher_logits, weights)

    def _at_temperature(self, logits_NV: Tensor, positions: Tensor) -> Tensor:
        return logits_NV if self._temperature_N is None else logits_NV / self._temperature_N[positions, None]


def _hidden_states(model: PreTrainedModel, inputs_BT: Tensor) -> Tensor:
    """(N,E) the inputs of the output layer. An empty batch is not passed to the model."""
    if not len(inputs_BT):
        return torch.zeros(0, model.get_output_embeddings().weight.shape[1], device=inputs_BT.device)
    hidden_BTE: Tensor = model.base_model(input_ids=inputs_BT, use_cache=False).last_hidden_state
    return hidden_BTE.flatten(0, 1)


class OfflineTeacher:
    """The distribution stored with each completion: the K most likely tokens one by one, all others as one bucket."""

    def __init__(self, batch: Batch) -> None:
        teacher = teacher_logprobs(batch)
        self.ids_NK, self.logp_NK = teacher.top_ids_BTK.flatten(0, 1), teacher.top_logp_BTK.flatten(0, 1)
        self.known_N = ~self.logp_NK[:, 0].isnan()

    def loss(self, weights: dict[str, float], logits_NV: Tensor, positions: Tensor) -> Tensor:
        """(N) the weighted sum of divergences; 0 where no distribution was stored."""
        known_N = self.known_N[positions]
        logp_NC = bucketed_target(self.logp_NK[positions][known_N].float(), logits_NV.shape[-1])
        logq_NC = bucketed_draft(logits_NV[known_N], self.ids_NK[positions][known_N])
        losses = [weight * DISTRIBUTION_LOSSES[name](logp_NC, logq_NC) for name, weight in weights.items()]
        return logits_NV.new_zeros(len(logits_NV)).index_put((known_N,), torch.stack(losses).sum(0))


class OfflineTeacherLoss(ClosedFormLoss):
    """Divergences from stored distributions plus cross entropy, with a closed-form gradient.

    By autograd a step took 1.6 times as long as with cross entropy alone (docs/decisions/0005-training-speed.md).
    """

    def __init__(self, part: TrainPart, batch: Batch) -> None:
        labels_N, self._teacher = batch.labels_BT.flatten(), OfflineTeacher(batch)
        self._labels_N, self._trained_N = labels_N.clamp(min=0), labels_N != IGNORED
        self._weights = {name: weight for name, weight in part.objectives.items() if name in DISTRIBUTION_LOSSES}
        replaced_N = sum(self._weights.values()) * ~self._teacher.known_N
        self._cross_entropy_weight_N = (part.objectives.get("cross_entropy", 0.0) + replaced_N) * self._trained_N
        self._cross_entropy = partial(_weighted_cross_entropy, self._cross_entropy_weight_N, batch)

    def __call__(self, logits_NV: Tensor, positions: Tensor) -> Tensor:
        losses_N = self._teacher.loss(self._weights, logits_NV, positions) + self._cross_entropy(logits_NV, positions)
        return masked_sum(losses_N, self._trained_N[positions])

    def gradient_in_place(self, logits_NV: Tensor, positions: Tensor, compiled: bool) -> Tensor:  # noqa: ARG002
        logp_NK, ids_NK = self._teacher.logp_NK[positions], self._teacher.ids_NK[positions]
        if ids_NK.shape[1] == logits_NV.shape[1]:  # all tokens are known: there is no bucket
            loss, gradient_NV = loss_and_gradient(self, logits_NV, positions)
            logits_NV.copy_(gradient_NV)
            return loss
        return bucketed_divergences(
            logits_NV,
            logp_NK.where(self._trained_N[positions, None], torch.nan),
            ids_NK,
            weights=self._weights,
            labels_N=self._labels_N[positions],
            cross_entropy_weight_N=self._cross_entropy_weight_N[positions],
        ).sum()
