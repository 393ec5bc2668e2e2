"""A Llama of random weights, made of OpenVINO's own operations, and the time of its steps in OpenVINO GenAI.

The probe measures the engine with it. It is made and compiled in a fraction of a second, where an export by way of
torch takes ten, and it is the same graph: of the packaged target's sizes, it steps as fast as that target exported.

Dimensions: B texts, T tokens, H width, N heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter_ns
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastdraft.config import TargetPart
from fastdraft.models.target import open_tokenizer
from fastdraft.system.optional_packages import need

EXTRA = "openvino"
HEAD_SIZE = 64
# Tokens before those that are timed.
PROMPT_TOKENS = 8
# Weights to a scale in int4; int8 has a scale for each output channel.
GROUP = 64
# An end beyond every dimension, as exports write it.
TO_THE_END = (1 << 31) - 1


class Sizes(NamedTuple):
    """Of a Llama with heads of HEAD_SIZE: rows of the vocabulary, width, layers, MLP width, heads, key-value heads."""

    vocab_rows: int
    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int

    @property
    def read_parameters(self) -> int:
        """Weights that a step multiplies with: the layers' and the head's."""
        attention = 2 * self.hidden * HEAD_SIZE * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate) + self.vocab_rows * self.hidden


def random_llama(sizes: Sizes, weights: str = "int8", seed: int = 0) -> Any:
    """An openvino.Model as optimum-intel exports it: stateful, tied, the embedding never in less than int8."""
    return _Builder(sizes, weights, seed).model()


def open_pipeline(model: Any, device: str = "CPU") -> Any:
    """A model made here in an LLMPipeline; the tokenizer, which it must have, is the packaged target's."""
    with TemporaryDirectory() as folder:
        need("openvino", EXTRA).save_model(model, Path(folder) / "openvino_model.xml", compress_to_fp16=False)
        return need("openvino_genai", EXTRA).LLMPipeline(folder, _tokenizer(), device, **SETTINGS)


@cache
def _tokenizer() -> Any:
    with TemporaryDirectory() as folder:
        write_tokenizer(open_tokenizer(TargetPart(path="demo")), Path(folder))
        return need("openvino_genai", EXTRA).Tokenizer(folder)


# Without the map weights are read into memory, and their folder may go.
SETTINGS = {"ENABLE_MMAP": False}
# Every model that is timed has at least so many tokens.
LOWEST_VOCABULARY = 128


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """A tokenizer of transformers as OpenVINO's models: text to tokens, and back."""
    pair = need("openvino_tokenizers", EXTRA).convert_tokenizer(tokenizer, with_detokenizer=True)
    for name, model in zip(("openvino_tokenizer", "openvino_detokenizer"), pair, strict=True):
        need("openvino", EXTRA).save_model(model, folder / f"{name}.xml")


def decode_seconds(pipeline: Any, tokens: int, prompt_tokens: int = PROMPT_TOKENS) -> float:
    """Seconds of a step on one token: the median over a greedy completion of so many tokens."""
    durations = _generated(pipeline, tokens, prompt_tokens).raw_metrics.m_durations
    return float(median(durations[1:])) * 1e-6


def block_seconds(pipeline: Any, tokens: int, repeats: int = 3) -> float:
    """Seconds of a forward over so many tokens at once, nothing before them: the median of repeats.

    One more comes first and does not count: a block of another length than the one before costs 0.2 ms a layer more,
    and in speculative decoding a target sees blocks of one length.
    """
    times = [float(_generated(pipeline, 1, tokens).get_ttft().mean) for _ in range(repeats + 1)]
    return median(times[1:]) * 1e-3


def _generated(pipeline: Any, tokens: int, prompt_tokens: int) -> Any:
    """What the engine says of one greedy completion, which no end-of-text token stops.

    The prompt, on which no time depends, is new by the clock: the engine keeps what it knows of old ones.
    """
    genai, openvino = need("openvino_genai", EXTRA), need("openvino", EXTRA)
    prompt = np.random.default_rng(perf_counter_ns()).integers(0, LOWEST_VOCABULARY, (1, prompt_tokens))
    inputs = genai.TokenizedInputs(openvino.Tensor(prompt), openvino.Tensor(np.ones_like(prompt)))
    config = genai.GenerationConfig(max_new_tokens=tokens, ignore_eos=True, do_sample=False)
    return pipeline.generate(inputs, config).perf_metrics


class _Builder:
    """One model: its operations, sizes and random numbers."""

    def __init__(self, sizes: Sizes, weights: str, seed: int) -> None:
        self.openvino = need("openvino", EXTRA)
        self.op: Any = self.openvino.opset13
        self.sizes, self.layer_weights = sizes, WEIGHTS[weights]
        self.outer_weights = WEIGHTS["bf16" if weights == "bf16" else "int8"]
        self.numbers = np.random.default_rng(seed)
        self.stored: list[Any] = []

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
        return self.openvino.Model([op.result(logits)], self.stored, list(inputs.values()), "random_llama")

    def parameter(self, name: str) -> Any:
        kind = self.openvino.Type.i32 if name == "beam_idx" else self.openvino.Type.i64
        made = self.op.parameter([-1] if name == "beam_idx" else [-1, -1], kind, name=name)
        made.output(0).get_tensor().set_names({name})
        return made

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
        op, (hidden, wide) = self.op, (self.sizes.hidden, self.sizes.intermediate)
        gate = op.swish(self.linear(states_BTH, wide, hidden))
        return self.linear(op.multiply(gate, self.linear(states_BTH, wide, hidden)), hidden, wide)

    def positions(self, ids_BT: Any) -> tuple[Any, Any]:
        """Cosine and sine of rotary positions, (B,1,T,D)."""
        op = self.op
        turns = (10000.0 ** -(np.arange(0, HEAD_SIZE, 2) / HEAD_SIZE)).astype(np.float32)
        angles = op.multiply(op.convert(op.unsqueeze(ids_BT, self.integers(2)), "f32"), op.constant(turns[None, None]))
        angles = op.unsqueeze(op.concat([angles, angles], 2), self.integers(1))
        return op.cos(angles), op.sin(angles)

    def rotated(self, states_BNTD: Any) -> Any:
        """Rotary positions, in the very form that the engine knows and runs as one operation."""
        op, half, one, axis = self.op, self.integers(HEAD_SIZE // 2), self.integers(1), self.integers(3)
        first = op.slice(states_BNTD, self.integers(0), half, one, axis)
        second = op.slice(states_BNTD, half, self.integers(TO_THE_END), one, axis)
        turned = op.concat([op.multiply(second, op.constant(np.full((1, 1, 1, 1), -1, np.float32))), first], -1)
        return op.add(op.multiply(states_BNTD, self.cos), op.multiply(turned, self.sin))

    def attention(self, states_BTH: Any, layer: int) -> Any:
        op, (_, hidden, _, _, heads, kv_heads) = self.op, self.sizes
        query = self.rotated(self.heads(states_BTH, heads))
        key = self.kept(self.rotated(self.heads(states_BTH, kv_heads)), f"past.{layer}.key")
        value = self.kept(self.heads(states_BTH, kv_heads), f"past.{layer}.value")
        scale = self.number(HEAD_SIZE**-0.5)
        mixed = op.scaled_dot_product_attention(query, key, value, self.mask, scale, causal=False)
        joined = op.reshape(
            op.transpose(mixed, self.integers(0, 2, 1, 3)), self.integers(0, 0, heads * HEAD_SIZE), special_zero=True
        )
        return self.linear(joined, hidden, heads * HEAD_SIZE)

    def heads(self, states_BTH: Any, heads: int) -> Any:
        """A projection to heads, (B,N,T,D)."""
        projected = self.linear(states_BTH, heads * HEAD_SIZE, self.sizes.hidden)
        split = self.op.reshape(projected, self.integers(0, 0, heads, HEAD_SIZE), special_zero=True)
        return self.op.transpose(split, self.integers(0, 2, 1, 3))

    def kept(self, states_BNTD: Any, name: str) -> Any:
        """Keys or values after those of the tokens before, repeated for every head that shares them."""
        op, heads = self.op, self.sizes.kv_heads
        info = self.openvino.op.util.VariableInfo()
        info.data_shape = self.openvino.PartialShape([-1, heads, -1, HEAD_SIZE])
        info.data_type, info.variable_id = self.openvino.Type.f32, name
        variable = self.openvino.op.util.Variable(info)
        texts = op.gather(op.shape_of(states_BNTD), self.integers(0), op.constant(np.int64(0)))
        empty = op.broadcast(self.number(0), op.concat([texts, self.integers(heads, 0, HEAD_SIZE)], 0))
        past = op.gather(op.read_value(empty, variable), self.beam, op.constant(np.int64(0)))
        full = op.concat([past, states_BNTD], 2)
        self.stored.append(op.assign(full, variable))
        return self.repeated(full)

    def repeated(self, states_BNTD: Any) -> Any:
        op, (heads, kv_heads) = self.op, (self.sizes.heads, self.sizes.kv_heads)
        if heads == kv_heads:
            return states_BNTD
        apart = op.unsqueeze(states_BNTD, self.integers(2))
        spread = op.broadcast(apart, self.integers(1, 1, heads // kv_heads, 1, 1), broadcast_spec="BIDIRECTIONAL")
        return op.reshape(spread, self.integers(0, heads, -1, HEAD_SIZE), special_zero=True)


def _int8(builder: _Builder, rows: int, columns: int) -> Any:
    """With a scale and a zero point a row, as nncf's INT8_ASYM writes it."""
    return _scaled(builder, builder.op.constant(_bytes(builder, rows, columns)), 128, (rows, 1))


def _int4(builder: _Builder, rows: int, columns: int) -> Any:
    """With a scale and a zero point for every GROUP weights, as nncf's INT4_ASYM writes it."""
    shape, kind = [rows, columns // GROUP, GROUP], builder.openvino.Type.u4
    packed = builder.openvino.Tensor(_bytes(builder, rows, columns // 2), shape, kind)
    scaled = _scaled(builder, builder.op.constant(packed), 8, (rows, columns // GROUP, 1))
    return builder.op.reshape(scaled, builder.integers(rows, columns), special_zero=False)


def _bf16(builder: _Builder, rows: int, columns: int) -> Any:
    """Sixteen bits a weight; the engine turns half precision into the one that it computes in."""
    halves = (_bytes(builder, rows, 2 * columns).view(np.uint16) & 0x3BFF).view(np.float16)
    return builder.op.convert(builder.op.constant(halves), "f32")


def _scaled(builder: _Builder, stored: Any, zero: int, shape: tuple[int, ...]) -> Any:
    op = builder.op
    zeros = op.convert(op.constant(np.full(shape, zero, np.uint8)), "f16")
    scales = op.constant(np.full(shape, 0.001, np.float16))
    return op.convert(op.multiply(op.subtract(op.convert(stored, "f16"), zeros), scales), "f32")


def _bytes(builder: _Builder, rows: int, columns: int) -> npt.NDArray[np.uint8]:
    return np.frombuffer(builder.numbers.bytes(rows * columns), np.uint8).reshape(rows, columns)


WEIGHTS: dict[str, Callable[[_Builder, int, int], Any]] = {"int8": _int8, "int4": _int4, "bf16": _bf16}
