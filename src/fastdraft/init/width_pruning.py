"""A donor made narrower: fewer MLP channels, heads and hidden channels, chosen by what passes through them.

MLP channels and heads are read and written by their own layer alone: those stay that add most to the residual stream,
by the mean square of their activation times that of the column that leads back. Heads stay with the key-value head that
they share, so a group that stays is whole, or loses the same number of heads as every other.

The residual stream is one space for all layers, so what is cut from it is cut everywhere alike. In families whose only
norms are RMSNorms in front of a layer's two halves and of the output layer, a norm's weight is folded into the matrices
that read it; what is left only measures length, which a rotation does not change. So the whole model can be turned to
the principal directions of what its norms see, and the last of them dropped (SliceGPT, Ashkboos et al. 2024,
arXiv:2401.15024; there each layer has directions of its own, which needs a matrix in every residual that no engine
knows). The last norm's weight cannot be folded where the output layer is the embedding: of the turned one the diagonal
is kept. What has norms behind its layers, or norms that subtract the mean, does not survive rotation: there whole
channels stay, by the same measure. Each norm is scaled so that it gives the length it gave, in the mean.

A demo target (17M tokens), 5 layers 256 wide to 2 layers 64 wide with 1 head and 192 MLP channels; nats on text at once
and after 300k tokens: channels 8.93, 5.66; directions 7.10, 5.17; a random start 9.02, 6.79. The directions of the
embedding alone 7.56, 5.37. Fitting what stays to what went, by least squares, gave .03 nats more: not worth its lines.
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
from fastdraft.init.layer_pruning import layer_stack, loss_with
from fastdraft.models.shape import FAMILIES, DraftShape
from fastdraft.system.errors import ShapeError

# Families whose norms are RMSNorms in front of what reads them: these can be turned.
TURNED = {
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
# Families that keep a norm's weight less one, and multiply the embedding by the root of the width.
OFFSET = SCALED = {"gemma", "gemma2", "gemma3_text"}
# Of each matrix the axes (out, in).
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
READ_BEHIND = {
    "input_layernorm": ("q_proj", "k_proj", "v_proj", "qkv_proj"),
    "post_attention_layernorm": ("gate_proj", "up_proj", "gate_up_proj"),
}
WRITE_BACK = {"o_proj": "heads", "down_proj": "mlp", "c_proj": "mlp"}


def narrowed(model: PreTrainedModel, own: DraftShape, shape: DraftShape, batch: Batch) -> dict[str, Tensor]:
    """The weights of a model of shape `own` for one of `shape`; its own where no width differs.

    ShapeError where the family keeps its heads in one matrix in an order of its own.
    """
    if _widths(own) == _widths(shape):
        return dict(model.state_dict())
    if FAMILIES[own.family].names.kv_heads is None:
        raise ShapeError(
            f"draft.init: of a `{own.family}` layers can be left out, its width cannot be cut\n"
            f"  do: leave out draft.hidden_size, draft.heads and draft.intermediate_size, and set draft.layers"
        )
    turn = own.family in TURNED and shape.hidden_size < own.hidden_size
    if turn:
        _fold(model, own.family)
    layers = list(layer_stack(model))
    seen = _Seen()
    with _hooked(model, seen.note):
        loss_with(model, range(len(layers)), batch)
    kept_EW = _directions(seen.moment_EE, shape.hidden_size, turn)
    lengths = _Lengths(kept_EW)
    with _hooked(model, lengths.note):
        loss_with(model, range(len(layers)), batch)
    stay = [_stay(layer, seen, own, shape) for layer in layers]
    return dict(_cut(model, own, kept_EW, lengths, stay))


def _widths(shape: DraftShape) -> tuple[int, ...]:
    return shape.hidden_size, shape.heads, shape.kv_heads, shape.intermediate_size


def _fold(model: PreTrainedModel, family: str) -> None:
    """Put the weight of every norm into the matrices that read it: the model computes the same."""
    offset = float(family in OFFSET)
    for layer in layer_stack(model):
        for norm, readers in READ_BEHIND.items():
            weight = getattr(layer, norm).weight
            for name, module in layer.named_modules():
                if name.rpartition(".")[2] in readers:
                    module.weight.data *= weight.data + offset
            weight.data.fill_(1.0 - offset)


# What passes through a model: modules are told apart by identity, since a layer's names are those of all others.


@dataclass
class _Seen:
    """Sums over a batch: second moments of what norms see, at length 1, and mean squares of what is written back."""

    moment_EE: Tensor = field(default_factory=lambda: torch.zeros(()))
    squares: dict[nn.Module, Tensor] = field(default_factory=dict)

    def note(self, module: nn.Module, name: str, input_NE: Tensor) -> None:
        if name in WRITE_BACK:
            self.squares[module] = self.squares.get(module, 0) + input_NE.square().mean(0)
        else:
            unit_NE = normalize(input_NE)
            self.moment_EE = self.moment_EE + unit_NE.T @ unit_NE


@dataclass
class _Lengths:
    """For each norm the mean share of its input's squared length that lies in the kept directions."""

    kept_EW: Tensor
    shares: dict[nn.Module, list[Tensor]] = field(default_factory=dict)

    def note(self, module: nn.Module, name: str, input_NE: Tensor) -> None:
        if name not in WRITE_BACK:
            unit_NE = normalize(input_NE)  # a token whose row is zero, as padding's may be, has no length to keep
            fraction = (unit_NE @ self.kept_EW).square().sum() / unit_NE.square().sum()
            self.shares.setdefault(module, []).append(fraction)

    def scale(self, norm: nn.Module) -> Tensor:
        """() what the norm's output must be multiplied by to have, in the mean, the length along the kept it had."""
        before, after = self.kept_EW.shape
        return (torch.stack(self.shares[norm]).mean() * before / after).sqrt()


@contextmanager
def _hooked(model: PreTrainedModel, note: Callable[[nn.Module, str, Tensor], None]) -> Iterator[None]:
    """`note` is told what enters each norm over the residual stream, and each matrix that writes back to it."""
    hooks = []
    for name, module in model.base_model.named_modules():
        last = name.rpartition(".")[2]
        if last in WRITE_BACK or ("norm" in last and last not in AXES):
            hook = module.register_forward_pre_hook(
                lambda module, inputs, last=last: note(module, last, inputs[0].flatten(0, -2).float())
            )
            hooks.append(hook)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# What stays of it.


def _directions(moment_EE: Tensor, width: int, turn: bool) -> Tensor:
    """(E,W) orthonormal columns: principal directions, or of whole channels those through which most passes."""
    every_EE = torch.eye(len(moment_EE), device=moment_EE.device)
    if turn:
        turned_EE: Tensor = torch.linalg.eigh(moment_EE.double()).eigenvectors.flip(1)
        return turned_EE[:, :width].to(moment_EE.dtype)
    return every_EE[:, _largest(moment_EE.diagonal(), width)]


def _stay(layer: nn.Module, seen: _Seen, own: DraftShape, shape: DraftShape) -> dict[str, Tensor]:
    """The indices that stay on each axis of a layer's matrices."""
    written = {
        WRITE_BACK[last]: seen.squares[module] * module.weight.square().sum(0)
        for name, module in layer.named_modules()
        if (last := name.rpartition(".")[2]) in WRITE_BACK
    }
    heads, kv_heads = _heads_that_stay(written["heads"].view(own.kv_heads, -1, own.head_size).sum(-1), shape)
    mlp = _largest(written["mlp"], shape.intermediate_size)
    places = torch.arange(own.head_size, device=heads.device)
    q, kv = ((some[:, None] * own.head_size + places).flatten() for some in (heads, kv_heads))
    values = own.heads * own.head_size, own.kv_heads * own.head_size
    return {
        "heads": q,
        "kv_heads": kv,
        "mlp": mlp,
        "qkv": torch.cat([q, values[0] + kv, sum(values) + kv]),
        "gate_up": torch.cat([mlp, own.intermediate_size + mlp]),
    }


def _heads_that_stay(written_KG: Tensor, shape: DraftShape) -> tuple[Tensor, Tensor]:
    """(heads), (key-value heads): the best groups, by the heads that each of them keeps."""
    group = written_KG.shape[1]
    best = written_KG.topk(shape.heads // shape.kv_heads, dim=1)
    kv_heads = _largest(best.values.sum(1), shape.kv_heads)
    inside = best.indices[kv_heads].sort(dim=1).values
    return (kv_heads[:, None] * group + inside).flatten(), kv_heads


def _largest(values_N: Tensor, count: int) -> Tensor:
    """(count) indices of the largest values, in order."""
    return values_N.topk(count).indices.sort().values


def _cut(
    model: PreTrainedModel, own: DraftShape, kept_EW: Tensor, lengths: _Lengths, stay: list[dict[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """Every weight of the model by name, cut on its axes."""
    offset = float(own.family in OFFSET)
    # The root of the width by which these families multiply what they read.
    read = (kept_EW.shape[0] / kept_EW.shape[1]) ** 0.5 if own.family in SCALED else 1.0
    norms = dict(model.named_modules())
    rows = {id(layer.weight) for layer in (model.get_input_embeddings(), model.get_output_embeddings())}
    for name, weight in model.state_dict(keep_vars=True).items():
        owner, _, kind = name.rpartition(".")
        last, layer = owner.rpartition(".")[2], re.search(r"\.layers\.(\d+)\.", name)
        if id(weight) in rows:
            yield name, weight @ kept_EW * read
        elif last in AXES and layer and not (last in ("q_norm", "k_norm") and len(weight) == own.head_size):
            yield name, _on_axes(weight, AXES[last][: weight.ndim], kept_EW, stay[int(layer[1])])
        elif "norm" in last and last not in AXES:
            scale = lengths.scale(norms[owner]) if kind == "weight" else 1.0
            scale = scale / read if layer is None else scale
            turned = kept_EW.square().T @ (weight + offset) if kind == "weight" else kept_EW.T @ weight
            yield name, turned * scale - (offset if kind == "weight" else 0.0)
        else:
            yield name, weight


def _on_axes(weight: Tensor, axes: tuple[str, ...], kept_EW: Tensor, stay: dict[str, Tensor]) -> Tensor:
    """A matrix or a bias with what stays of each axis."""
    for dim, axis in enumerate(axes):
        if axis == "hidden":
            weight = (weight.movedim(dim, -1) @ kept_EW).movedim(-1, dim)
        else:
            weight = weight.index_select(dim, stay[axis])
    return weight
