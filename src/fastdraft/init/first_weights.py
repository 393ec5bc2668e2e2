"""The kinds of initial weights, one function each in `INITS`, and the shape of the draft for each kind."""

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
from fastdraft.init.donor import KEY, cut_shape, donor_shape
from fastdraft.init.layer_pruning import choose_layers, keep_layers
from fastdraft.init.target_embedding import check_width, project_rows, read_target_embedding
from fastdraft.init.vocabulary import rows_by_pieces, rows_of_same_vocabulary, set_vocabulary_rows
from fastdraft.init.width_pruning import narrow
from fastdraft.models import draft, named_model, pretrained
from fastdraft.models.shape import DraftShape, derive
from fastdraft.models.shape.derive import PER_LAYER
from fastdraft.models.shape.target_sizes import sizes
from fastdraft.system import processes
from fastdraft.system.errors import ShapeError, VocabularyMismatch
from fastdraft.system.files import write_json


@dataclass(frozen=True)
class InitInputs:
    """`sample` makes a batch of training sequences on which a donor is measured.

    `layers_file` stores which layers of a donor are kept, so that a resumed phase does not measure them again.
    """

    target: TargetPart
    part: DraftPart
    shape: DraftShape
    seed: int
    device: torch.device
    sample: Callable[[], Batch]
    layers_file: Path


def shape_of(target: TargetPart, part: DraftPart) -> DraftShape:
    """The shape of a recipe's draft: derived from the target, or cut from a donor.

    Raises the errors of impossible inits before any work: ShapeError, TargetError, VocabularyMismatch.
    """
    config = pretrained.open_config(target)
    if part.init_model is None:
        shape = derive(config, part)
        if part.init == "target_embedding":
            check_width(shape.hidden_size, sizes(config).hidden_size)
        return shape
    donor = named_model.read(part.init_model, KEY)
    if part.init.startswith("prune:"):
        rows_of_same_vocabulary(donor, pretrained.open_tokenizer(target), sizes(config).vocab_rows)
    return cut_shape(donor, part, config)


def as_built(shape: DraftShape, model: PreTrainedModel) -> DraftShape:
    """The shape with the layer types of the model, which depend on the layers of a donor that were kept."""
    per_layer = {key: getattr(model.config, key) for key in PER_LAYER if shape.config.get(key)}
    return shape.model_copy(update={"config": shape.config | per_layer})


def first_weights(inputs: InitInputs) -> PreTrainedModel:
    """The draft in float32; the same for the same seed, target, donor and sample."""
    return INITS[inputs.part.init.partition(":")[0]](inputs)


def _random(inputs: InitInputs) -> PreTrainedModel:
    return draft.new(inputs.shape, inputs.seed)


def _target_embedding(inputs: InitInputs) -> PreTrainedModel:
    model = draft.new(inputs.shape, inputs.seed)
    rows_VW = project_rows(read_target_embedding(inputs.target), inputs.shape.hidden_size)
    if len(rows_VW) != inputs.shape.vocab_rows:
        raise VocabularyMismatch(
            f"the weights of {inputs.target.path} embed {len(rows_VW)} ids, its config.json says "
            f"{inputs.shape.vocab_rows}\n  do: check that they belong together, or set draft.init=random"
        )
    embedding: Any = model.get_input_embeddings()
    embedding.weight.data.copy_(rows_VW)
    return model


def _from_donor(inputs: InitInputs) -> PreTrainedModel:
    """The donor with the target's vocabulary, then with fewer layers, then narrower.

    The vocabulary comes first, so that layers and widths are chosen by the loss on the target's tokens.
    """
    assert inputs.part.init_model is not None, "the schema requires it"
    donor = named_model.read(inputs.part.init_model, KEY)
    whole, shape, batch = donor_shape(donor), inputs.shape, inputs.sample()
    donor_rows = rows_of_same_vocabulary if inputs.part.init.startswith("prune:") else rows_by_pieces
    rows = donor_rows(donor, pretrained.open_tokenizer(inputs.target), shape.vocab_rows)
    model = set_vocabulary_rows(named_model.open_model(donor.name, KEY, inputs.device), rows, sorted(donor.id_bytes))
    layers = processes.on_rank0(lambda: _layers_to_keep(inputs, model, batch))
    keep_layers(model, layers)
    per_layer = {key: [whole.config[key][layer] for layer in layers] for key in PER_LAYER if whole.config.get(key)}
    new = draft.new(shape.model_copy(update={"config": shape.config | per_layer}), inputs.seed)
    weights = narrow(model, whole, shape, batch)
    try:
        new.load_state_dict(weights)
    except RuntimeError as error:
        raise ShapeError(
            f"draft.init: no draft of this shape can be cut from {donor.name}, a `{whole.family}`: {error}\n"
            f"  do: leave out draft.hidden_size, draft.heads and draft.intermediate_size, and set draft.layers"
        ) from error
    return new


def _layers_to_keep(inputs: InitInputs, model: PreTrainedModel, batch: Batch) -> tuple[int, ...]:
    if inputs.layers_file.is_file():
        return tuple(json.loads(inputs.layers_file.read_text(encoding="utf-8"))["layers_kept"])
    layers = choose_layers(model, inputs.shape.layers, batch)
    write_json(inputs.layers_file, {"init": inputs.part.init, "layers_kept": layers})
    return layers


INITS: dict[str, Callable[[InitInputs], PreTrainedModel]] = {
    "random": _random,
    "target_embedding": _target_embedding,
    "prune": _from_donor,
    "transplant": _from_donor,
}
