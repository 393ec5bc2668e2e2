"""Make a donor narrower: fewer MLP channels, heads and hidden channels, chosen by their activations.

MLP channels and heads belong to one layer. Those that add most to the residual stream are kept, measured by the mean
square of their activation times the squared norm of their column in the output projection. Heads that share a key-value
head are kept or dropped as a group, or every group loses the same number of heads.

The residual stream is shared by all layers, so the same directions are cut from all of them. In families whose only
norms are RMSNorms before attention, MLP and output layer, the weight of a norm can be folded into the matrices that
read it. What is left of the norm depends only on the length of its input, which a rotation does not change. So the
residual stream can be rotated to the principal directions of the norms' inputs, and the last of them dropped: SliceGPT
(Ashkboos et al. 2024, arXiv:2401.15024). Unlike there, all layers share one rotation, because engines have no matrix in
the residual connection. If the output layer is tied to the embedding, the weight of the last norm cannot be folded; the
diagonal of its rotated matrix is used. Families with other norms cannot be rotated. There, whole channels are kept by
the same measure. Each norm is scaled so that its output keeps its mean length.

Measured on a demo target (17M tokens), from 5 layers 256 wide to 2 layers 64 wide with 1 head and 192 MLP channels, in
nats on text before training and after 300k tokens: channels 8.93 and 5.66; directions 7.10 and 5.17; directions of the
embedding alone 7.56 and 5.37; random init 9.02 and 6.79. Least-squares compensation of what was dropped was 0.03 nats
worse.

Dimensions: N tokens, E hidden size of the donor, W hidden size of the draft, K key-value heads, G heads per group.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from fastdraft.data.order import Batch
from fastdraft.init.layer_pruning import layer_stack, loss_with_layers
from fastdraft.models.shape import FAMILIES, DraftShape
from fastdraft.system.errors import ShapeError

# Families with RMSNorms only before the layers that read them.
ROTATABLE = {
    "llama",
    "mistral",
    "ministral",
    "ministral3",
    "qwen2",
    "qwen3",
    "phi3",
    "smollm3",
    "granite",
    "helium",
    "gemma",
}
# Families that store a norm's weight minus one, and multiply the embedding by the square root of the width.
GEMMA = {"gemma", "gemma2", "gemma3_text"}
# The axes (out, in) of each matrix.
AXES = {
    "q_proj": ("heads", "hidden"),
    **dict.fromkeys(("k_proj", "v_proj"), ("kv_heads", "hidden")),
    "qkv_proj": ("qkv", "hidden"),
    "o_proj": ("hidden", "heads"),
    **dict.fromkeys(("gate_proj", "up_proj", "c_fc"), ("mlp", "hidden")),
    "gate_up_proj": ("gate_up", "hidden"),
    **dict.fromkeys(("down_proj", "c_proj"), ("hidden", "mlp")),
    "q_norm": ("heads",),
    "k_norm": ("kv_heads",),
}
NORM_READERS = {
    "input_layernorm": ("q_proj", "k_proj", "v_proj", "qkv_proj"),
    "post_attention_layernorm": ("gate_proj", "up_proj", "gate_up_proj"),
}
# The matrices that write to the residual stream, and the axis that they read.
OUTPUT_PROJECTIONS = {"o_proj": "heads", "down_proj": "mlp", "c_proj": "mlp"}


def narrow(model: PreTrainedModel, whole: DraftShape, shape: DraftShape, batch: Batch) -> dict[str, Tensor]:
    """The weights of a model of shape `whole`, cut to `shape`; unchanged if no width differs.

    ShapeError for families that store their heads in one matrix in an order of their own.
    """
    if all(
        getattr(whole, size) == getattr(shape, size)
        for size in ("hidden_size", "heads", "kv_heads", "intermediate_size")
    ):
        return dict(model.state_dict())
    if FAMILIES[whole.family].names.kv_heads is None:
        raise ShapeError(
            f"draft.init: a `{whole.family}` can lose layers, but its width cannot be cut\n"
            f"  do: leave out draft.hidden_size, draft.heads and draft.intermediate_size, and set draft.layers"
        )
    rotate = whole.family in ROTATABLE and shape.hidden_size < whole.hidden_size
    if rotate:
        _fold_norms(model, whole.family)
    layers = list(layer_stack(model))
    statistics = _Statistics()
    with _observe(model, statistics.add):
        loss_with_layers(model, range(len(layers)), batch)
    kept_EW = _directions(statistics.moment_EE, shape.hidden_size, rotate)
    lengths = _KeptLengths(kept_EW)
    with _observe(model, lengths.add):
        loss_with_layers(model, range(len(layers)), batch)
    kept_indices = [_kept_indices(layer, statistics, whole, shape) for layer in layers]
    return dict(_cut_weights(model, whole, kept_EW, lengths, kept_indices))


def _fold_norms(model: PreTrainedModel, family: str) -> None:
    """Move the weight of every norm into the matrices that read it; the output of the model does not change."""
    offset = float(family in GEMMA)
    for layer in layer_stack(model):
        for norm, readers in NORM_READERS.items():
            weight = getattr(layer, norm).weight
            for name, module in layer.named_modules():
                if name.rpartition(".")[2] in readers:
                    module.weight.data *= weight.data + offset
            weight.data.fill_(1.0 - offset)


# Activations.


@dataclass
class _Statistics:
    """Sums over a batch: second moments of the norms' inputs at length 1, mean squares of the projections' inputs."""

    moment_EE: Tensor = field(default_factory=lambda: torch.zeros(()))
    squares: dict[nn.Module, Tensor] = field(default_factory=dict)

    def add(self, module: nn.Module, name: str, input_NE: Tensor) -> None:
        if name in OUTPUT_PROJECTIONS:
            self.squares[module] = self.squares.get(module, 0) + input_NE.square().mean(0)
        else:
            unit_NE = normalize(input_NE)
            self.moment_EE = self.moment_EE + unit_NE.T @ unit_NE


@dataclass
class _KeptLengths:
    """For each norm, the mean fraction of its input's squared length that is in the kept directions."""

    kept_EW: Tensor
    fractions: dict[nn.Module, list[Tensor]] = field(default_factory=dict)

    def add(self, module: nn.Module, name: str, input_NE: Tensor) -> None:
        if name not in OUTPUT_PROJECTIONS:
            unit_NE = normalize(input_NE)  # rows of zeros, as padding may have, stay zero and do not count
            fraction = (unit_NE @ self.kept_EW).square().sum() / unit_NE.square().sum()
            self.fractions.setdefault(module, []).append(fraction)

    def scale(self, norm: nn.Module) -> Tensor:
        """() the factor with which the norm's output keeps its mean length in the kept directions."""
        before, after = self.kept_EW.shape
        return (torch.stack(self.fractions[norm]).mean() * before / after).sqrt()


@contextmanager
def _observe(model: PreTrainedModel, observer: Callable[[nn.Module, str, Tensor], None]) -> Iterator[None]:
    """Call `observer` with the inputs of all norms of the residual stream and of all output projections."""
    hooks = []
    for name, module in model.base_model.named_modules():
        last = name.rpartition(".")[2]
        if last in OUTPUT_PROJECTIONS or ("norm" in last and last not in AXES):
            hook = module.register_forward_pre_hook(
                lambda module, inputs, last=last: observer(module, last, inputs[0].flatten(0, -2).float())
            )
            hooks.append(hook)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# What is kept.


def _directions(moment_EE: Tensor, width: int, rotate: bool) -> Tensor:
    """(E,W) orthonormal columns: principal directions, or else the channels with the largest second moments."""
    if rotate:
        principal_EE: Tensor = torch.linalg.eigh(moment_EE.double()).eigenvectors.flip(1)
        return principal_EE[:, :width].to(moment_EE.dtype)
    identity_EE = torch.eye(len(moment_EE), device=moment_EE.device)
    return identity_EE[:, _largest(moment_EE.diagonal(), width)]


def _kept_indices(layer: nn.Module, statistics: _Statistics, whole: DraftShape, shape: DraftShape) -> dict[str, Tensor]:
    """The indices to keep on each axis of a layer's matrices."""
    written = {
        OUTPUT_PROJECTIONS[last]: statistics.squares[module] * module.weight.square().sum(0)
        for name, module in layer.named_modules()
        if (last := name.rpartition(".")[2]) in OUTPUT_PROJECTIONS
    }
    heads, kv_heads = _kept_heads(written["heads"].view(whole.kv_heads, -1, whole.head_size).sum(-1), shape)
    mlp = _largest(written["mlp"], shape.intermediate_size)
    channels = torch.arange(whole.head_size, device=heads.device)
    q, kv = ((indices[:, None] * whole.head_size + channels).flatten() for indices in (heads, kv_heads))
    q_size, kv_size = whole.heads * whole.head_size, whole.kv_heads * whole.head_size
    return {
        "heads": q,
        "kv_heads": kv,
        "mlp": mlp,
        "qkv": torch.cat([q, q_size + kv, q_size + kv_size + kv]),
        "gate_up": torch.cat([mlp, whole.intermediate_size + mlp]),
    }


def _kept_heads(written_KG: Tensor, shape: DraftShape) -> tuple[Tensor, Tensor]:
    """(heads), (key-value heads): the groups that add most with their best heads."""
    group = written_KG.shape[1]
    best = written_KG.topk(shape.heads // shape.kv_heads, dim=1)
    kv_heads = _largest(best.values.sum(1), shape.kv_heads)
    in_group = best.indices[kv_heads].sort(dim=1).values
    return (kv_heads[:, None] * group + in_group).flatten(), kv_heads


def _largest(values_N: Tensor, count: int) -> Tensor:
    """(count) the indices of the largest values, ascending."""
    return values_N.topk(count).indices.sort().values


# The cut.


def _cut_weights(
    model: PreTrainedModel,
    whole: DraftShape,
    kept_EW: Tensor,
    lengths: _KeptLengths,
    kept_indices: list[dict[str, Tensor]],
) -> Iterator[tuple[str, Tensor]]:
    """(name, weight) of every weight of the model, cut on its axes; `kept_indices` of each layer."""
    offset = float(whole.family in GEMMA)
    # These families multiply the embedding by the root of the width, which becomes smaller.
    embedding_scale = (kept_EW.shape[0] / kept_EW.shape[1]) ** 0.5 if whole.family in GEMMA else 1.0
    modules = dict(model.named_modules())
    vocabulary = {id(layer.weight) for layer in (model.get_input_embeddings(), model.get_output_embeddings())}
    for name, weight in model.state_dict(keep_vars=True).items():
        owner, _, kind = name.rpartition(".")
        last, layer = owner.rpartition(".")[2], re.search(r"\.layers\.(\d+)\.", name)
        if id(weight) in vocabulary:
            yield name, weight @ kept_EW * embedding_scale
        elif last in AXES and layer and not (last in ("q_norm", "k_norm") and len(weight) == whole.head_size):
            cut = weight
            for dim, axis in enumerate(AXES[last][: weight.ndim]):
                if axis == "hidden":
                    cut = (cut.movedim(dim, -1) @ kept_EW).movedim(-1, dim)
                else:
                    cut = cut.index_select(dim, kept_indices[int(layer[1])][axis])
            yield name, cut
        elif "norm" in last and last not in AXES:
            is_weight = kind == "weight"
            scale = lengths.scale(modules[owner]) if is_weight else 1.0
            if layer is None:
                scale = scale / embedding_scale
            rotated = kept_EW.square().T @ (weight + offset) if is_weight else kept_EW.T @ weight
            yield name, rotated * scale - (offset if is_weight else 0.0)
        else:
            yield name, weight
