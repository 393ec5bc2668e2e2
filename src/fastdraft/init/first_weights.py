"""The ways in which a draft's weights can start, one function each, and the shape that a draft has by each of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from fastdraft.config import DraftPart, TargetPart
from fastdraft.data.order import Batch
from fastdraft.init import donor as donors
from fastdraft.init.layer_pruning import keep, layers_that_stay
from fastdraft.init.target_embedding import check_width, projected, target_rows
from fastdraft.init.vocabulary import give_rows, pieces_of_tokens, same_tokens
from fastdraft.init.width_pruning import narrowed
from fastdraft.models import draft, named_model, shape, target
from fastdraft.models.shape import DraftShape
from fastdraft.models.shape.derive import PER_LAYER
from fastdraft.models.shape.target_sizes import sizes
from fastdraft.system import processes
from fastdraft.system.errors import ShapeError, VocabularyMismatch
from fastdraft.system.files import write_json


@dataclass(frozen=True)
class InitInputs:
    """What a start is given: `sample` makes a batch of training rows to measure on, `note` is the file that keeps which
    layers of a donor stay, so that a phase that was stopped does not measure them again.
    """

    target: TargetPart
    part: DraftPart
    shape: DraftShape
    seed: int
    device: torch.device
    sample: Callable[[], Batch]
    note: Path


def shape_of(part: TargetPart, wanted: DraftPart) -> DraftShape:
    """The shape of a recipe's draft: derived from the target, or what is left of a donor.

    What `first_weights` cannot do is said here, before any work: ShapeError, TargetError, VocabularyMismatch.
    """
    config = target.open_config(part)
    if wanted.init_model is None:
        form = shape.derive(config, wanted)
        if wanted.init == "target_embedding":
            check_width(form.hidden_size, sizes(config).hidden_size)
        return form
    donor = named_model.read(wanted.init_model, donors.KEY)
    if wanted.init.startswith("prune:"):
        same_tokens(donor, target.open_tokenizer(part), sizes(config).vocab_rows)
    return donors.cut(donor, wanted, config)


def as_built(form: DraftShape, model: PreTrainedModel) -> DraftShape:
    """The shape with the kinds of layers that the model has: of a donor's, those that stay are known once measured."""
    kinds = {key: getattr(model.config, key) for key in PER_LAYER if form.config.get(key)}
    return form.model_copy(update={"config": form.config | kinds})


def first_weights(init_inputs: InitInputs) -> PreTrainedModel:
    """A draft as the recipe's `draft.init` says, float32; the same for the same seed, target, donor and sample."""
    return INITS[init_inputs.part.init.partition(":")[0]](init_inputs)


def _random(init_inputs: InitInputs) -> PreTrainedModel:
    return draft.new(init_inputs.shape, init_inputs.seed)


def _target_embedding(init_inputs: InitInputs) -> PreTrainedModel:
    model: Any = draft.new(init_inputs.shape, init_inputs.seed)
    rows_VW = projected(target_rows(init_inputs.target), init_inputs.shape.hidden_size)
    if len(rows_VW) != init_inputs.shape.vocab_rows:
        raise VocabularyMismatch(
            f"the weights of {init_inputs.target.path} embed {len(rows_VW)} ids, its config.json says "
            f"{init_inputs.shape.vocab_rows}\n  do: check that they belong together, or set draft.init=random"
        )
    model.get_input_embeddings().weight.data.copy_(rows_VW)
    embedded: PreTrainedModel = model
    return embedded


def _from_donor(init_inputs: InitInputs) -> PreTrainedModel:
    """Rows first, so that what is measured is the loss on the target's tokens; then layers; then width."""
    assert init_inputs.part.init_model is not None, "the schema asks for it"
    donor = named_model.read(init_inputs.part.init_model, donors.KEY)
    own, form, batch = donors.whole(donor), init_inputs.shape, init_inputs.sample()
    rows_of = same_tokens if init_inputs.part.init.startswith("prune:") else pieces_of_tokens
    pieces = rows_of(donor, target.open_tokenizer(init_inputs.target), form.vocab_rows)
    model = give_rows(named_model.open_model(donor.name, donors.KEY, init_inputs.device), pieces, sorted(donor.spelled))
    kept = processes.on_rank0(lambda: _layers_kept(init_inputs, model, batch))
    keep(model, kept)
    patterns = {key: [own.config[key][layer] for layer in kept] for key in PER_LAYER if own.config.get(key)}
    made = draft.new(form.model_copy(update={"config": form.config | patterns}), init_inputs.seed)
    weights = narrowed(model, own, form, batch)
    try:
        made.load_state_dict(weights)
    except RuntimeError as error:
        raise ShapeError(
            f"draft.init: no draft of this shape can be cut from {donor.name}, a `{own.family}`: {error}\n"
            f"  do: leave out draft.hidden_size, draft.heads and draft.intermediate_size, and set draft.layers"
        ) from error
    return made


def _layers_kept(init_inputs: InitInputs, model: PreTrainedModel, batch: Batch) -> tuple[int, ...]:
    """What the note says; measured, and noted, where there is none."""
    if init_inputs.note.is_file():
        return tuple(json.loads(init_inputs.note.read_text(encoding="utf-8"))["layers_kept"])
    kept = layers_that_stay(model, init_inputs.shape.layers, batch)
    write_json(init_inputs.note, {"init": init_inputs.part.init, "layers_kept": kept})
    return kept


INITS: dict[str, Callable[[InitInputs], PreTrainedModel]] = {
    "random": _random,
    "target_embedding": _target_embedding,
    "prune": _from_donor,
    "transplant": _from_donor,
}
