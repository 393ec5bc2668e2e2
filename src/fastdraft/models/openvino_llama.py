"""A Llama with random weights, built from OpenVINO's own operations.

The probe times the engine with it. Building and compiling it takes a fraction of a second, an export through torch ten
seconds. The graph is the same: at the packaged target's sizes it steps as fast as the exported target.

Dimensions: B texts, T tokens, H width, N heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastdraft.models.openvino import EXTRA, MODEL_FILE, write_tokenizer
from fastdraft.models.pretrained import open_tokenizer
from fastdraft.system.optional_packages import need

HEAD_SIZE = 64
# int4: weights that share a scale. int8 has one scale per output channel.
GROUP = 64
# The end of a slice along any dimension, as exports write it.
TO_THE_END = (1 << 31) - 1


class Sizes(NamedTuple):
    """The sizes of a Llama whose heads have HEAD_SIZE dimensions."""

    vocab_rows: int
    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int

    @property
    def read_parameters(self) -> int:
        """Weights that a step reads: those of the layers and of the output layer."""
        attention = 2 * self.hidden * HEAD_SIZE * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate) + self.vocab_rows * self.hidden


def random_llama(sizes: Sizes, weights: str = "int8", seed: int = 0) -> Any:
    """An openvino.Model like those of optimum-intel: stateful, tied embeddings, which are stored in int8 at least."""
    return _Builder(sizes, weights, seed).model()


def open_pipeline(model: Any, device: str = "CPU") -> Any:
    """An openvino.Model in an LLMPipeline, which needs a tokenizer: the packaged target's."""
    with TemporaryDirectory() as folder:
        need("openvino", EXTRA).save_model(model, Path(folder) / MODEL_FILE, compress_to_fp16=False)
        # Without a memory map, weights are read into memory, and their folder can be deleted.
        return need("openvino_genai", EXTRA).LLMPipeline(folder, _tokenizer(), device, ENABLE_MMAP=False)


@cache
def _tokenizer() -> Any:
    with TemporaryDirectory() as folder:
        write_tokenizer(open_tokenizer("demo"), Path(folder))
        return need("openvino_genai", EXTRA).Tokenizer(folder)


class _Builder:
    """Builds one model."""

    def __init__(self, sizes: Sizes, weights: str, seed: int) -> None:
        self.openvino = need("openvino", EXTRA)
        self.op: Any = self.openvino.opset13
        self.sizes, self.layer_weights = sizes, WEIGHTS[weights]
        self.outer_weights = WEIGHTS["bf16" if weights == "bf16" else "int8"]
        self.rng = np.random.default_rng(seed)
        self.assigns: list[Any] = []

    def model(self) -> Any:
        """The whole decoder."""
        op, sizes = self.op, self.sizes
        inputs = {name: self.parameter(name) for name in ("input_ids", "attention_mask", "position_ids", "beam_idx")}
        embedding = self.outer_weights(self, sizes.vocab_rows, sizes.hidden)
        states = op.gather(embedding, inputs["input_ids"], op.constant(np.int64(0)))
        self.cos, self.sin = self.positions(inputs["position_ids"])
        mask = op.convert(op.unsqueeze(inputs["attention_mask"], self.integers(1, 2)), "f32")
        self.mask = op.multiply(op.subtract(mask, self.number(1)), self.number(65504))
        self.beam = inputs["beam_idx"]
        for layer in range(sizes.layers):
            states = op.add(states, self.attention(self.norm(states), layer))
            states = op.add(states, self.mlp(self.norm(states)))
        logits = op.matmul(self.norm(states), embedding, False, True)
        logits.output(0).get_tensor().set_names({"logits"})
        return self.openvino.Model([op.result(logits)], self.assigns, list(inputs.values()), "random_llama")

    def parameter(self, name: str) -> Any:
        kind = self.openvino.Type.i32 if name == "beam_idx" else self.openvino.Type.i64
        node = self.op.parameter([-1] if name == "beam_idx" else [-1, -1], kind, name=name)
        node.output(0).get_tensor().set_names({name})
        return node

    def integers(self, *values: int) -> Any:
        return self.op.constant(np.array(values, dtype=np.int64))

    def number(self, value: float) -> Any:
        return self.op.constant(np.float32(value))

    def linear(self, states: Any, rows: int, columns: int) -> Any:
        return self.op.matmul(states, self.layer_weights(self, rows, columns), False, True)

    def norm(self, states_BTH: Any) -> Any:
        """RMS norm."""
        op = self.op
        mean = op.reduce_mean(op.power(states_BTH, self.number(2)), self.integers(-1), keep_dims=True)
        scaled = op.multiply(states_BTH, op.divide(self.number(1), op.sqrt(op.add(mean, self.number(1e-5)))))
        return op.multiply(op.constant(np.ones((1, 1, self.sizes.hidden), np.float32)), scaled)

    def mlp(self, states_BTH: Any) -> Any:
        hidden, intermediate = self.sizes.hidden, self.sizes.intermediate
        gate = self.op.swish(self.linear(states_BTH, intermediate, hidden))
        gated = self.op.multiply(gate, self.linear(states_BTH, intermediate, hidden))
        return self.linear(gated, hidden, intermediate)

    def positions(self, ids_BT: Any) -> tuple[Any, Any]:
        """(B,1,T,D) cosine and sine of rotary positions."""
        op = self.op
        frequencies = (10000.0 ** -(np.arange(0, HEAD_SIZE, 2) / HEAD_SIZE)).astype(np.float32)
        positions = op.convert(op.unsqueeze(ids_BT, self.integers(2)), "f32")
        angles = op.multiply(positions, op.constant(frequencies[None, None]))
        angles = op.unsqueeze(op.concat([angles, angles], 2), self.integers(1))
        return op.cos(angles), op.sin(angles)

    def rotated(self, states_BNTD: Any) -> Any:
        """Rotary positions, written so that the engine recognises the pattern and runs it as one operation."""
        op, half, one, axis = self.op, self.integers(HEAD_SIZE // 2), self.integers(1), self.integers(3)
        first = op.slice(states_BNTD, self.integers(0), half, one, axis)
        second = op.slice(states_BNTD, half, self.integers(TO_THE_END), one, axis)
        turned = op.concat([op.multiply(second, op.constant(np.full((1, 1, 1, 1), -1, np.float32))), first], -1)
        return op.add(op.multiply(states_BNTD, self.cos), op.multiply(turned, self.sin))

    def attention(self, states_BTH: Any, layer: int) -> Any:
        op, (_, hidden, _, _, heads, kv_heads) = self.op, self.sizes
        query = self.rotated(self.heads(states_BTH, heads))
        key = self.cached(self.rotated(self.heads(states_BTH, kv_heads)), f"past.{layer}.key")
        value = self.cached(self.heads(states_BTH, kv_heads), f"past.{layer}.value")
        scale = self.number(HEAD_SIZE**-0.5)
        mixed = op.scaled_dot_product_attention(query, key, value, self.mask, scale, causal=False)
        joined = op.reshape(
            op.transpose(mixed, self.integers(0, 2, 1, 3)), self.integers(0, 0, heads * HEAD_SIZE), special_zero=True
        )
        return self.linear(joined, hidden, heads * HEAD_SIZE)

    def heads(self, states_BTH: Any, heads: int) -> Any:
        """(B,N,T,D) a projection, split into heads."""
        projected = self.linear(states_BTH, heads * HEAD_SIZE, self.sizes.hidden)
        split = self.op.reshape(projected, self.integers(0, 0, heads, HEAD_SIZE), special_zero=True)
        return self.op.transpose(split, self.integers(0, 2, 1, 3))

    def cached(self, states_BNTD: Any, name: str) -> Any:
        """Keys or values of all tokens so far, from the KV cache, repeated for every head that shares them."""
        op, heads = self.op, self.sizes.kv_heads
        info = self.openvino.op.util.VariableInfo()
        info.data_shape = self.openvino.PartialShape([-1, heads, -1, HEAD_SIZE])
        info.data_type, info.variable_id = self.openvino.Type.f32, name
        variable = self.openvino.op.util.Variable(info)
        texts = op.gather(op.shape_of(states_BNTD), self.integers(0), op.constant(np.int64(0)))
        empty = op.broadcast(self.number(0), op.concat([texts, self.integers(heads, 0, HEAD_SIZE)], 0))
        past = op.gather(op.read_value(empty, variable), self.beam, op.constant(np.int64(0)))
        full = op.concat([past, states_BNTD], 2)
        self.assigns.append(op.assign(full, variable))
        return self.repeated(full)

    def repeated(self, states_BNTD: Any) -> Any:
        op, (heads, kv_heads) = self.op, (self.sizes.heads, self.sizes.kv_heads)
        if heads == kv_heads:
            return states_BNTD
        apart = op.unsqueeze(states_BNTD, self.integers(2))
        spread = op.broadcast(apart, self.integers(1, 1, heads // kv_heads, 1, 1), broadcast_spec="BIDIRECTIONAL")
        return op.reshape(spread, self.integers(0, heads, -1, HEAD_SIZE), special_zero=True)


def _int8(builder: _Builder, rows: int, columns: int) -> Any:
    """One scale and one zero point per row, as in nncf's INT8_ASYM."""
    return _scaled(builder, builder.op.constant(_bytes(builder, rows, columns)), 128, (rows, 1))


def _int4(builder: _Builder, rows: int, columns: int) -> Any:
    """One scale and one zero point per GROUP weights, as in nncf's INT4_ASYM."""
    shape, kind = [rows, columns // GROUP, GROUP], builder.openvino.Type.u4
    packed = builder.openvino.Tensor(_bytes(builder, rows, columns // 2), shape, kind)
    scaled = _scaled(builder, builder.op.constant(packed), 8, (rows, columns // GROUP, 1))
    return builder.op.reshape(scaled, builder.integers(rows, columns), special_zero=False)


def _bf16(builder: _Builder, rows: int, columns: int) -> Any:
    """Sixteen bits per weight; the engine converts them to the precision that it computes in."""
    halves = (_bytes(builder, rows, 2 * columns).view(np.uint16) & 0x3BFF).view(np.float16)
    return builder.op.convert(builder.op.constant(halves), "f32")


def _scaled(builder: _Builder, stored: Any, zero: int, shape: tuple[int, ...]) -> Any:
    op = builder.op
    zeros = op.convert(op.constant(np.full(shape, zero, np.uint8)), "f16")
    scales = op.constant(np.full(shape, 0.001, np.float16))
    return op.convert(op.multiply(op.subtract(op.convert(stored, "f16"), zeros), scales), "f32")


def _bytes(builder: _Builder, rows: int, columns: int) -> npt.NDArray[np.uint8]:
    return np.frombuffer(builder.rng.bytes(rows * columns), np.uint8).reshape(rows, columns)


WEIGHTS: dict[str, Callable[[_Builder, int, int], Any]] = {"int8": _int8, "int4": _int4, "bf16": _bf16}
