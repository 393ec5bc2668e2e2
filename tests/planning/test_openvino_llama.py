"""The random Llama is what its sizes say, in the precision asked for, and the engine runs it."""

import math

import pytest

from fastdraft.planning.model_size import BITS, OUTER_BITS

openvino = pytest.importorskip("openvino", reason="openvino is not installed: pip install 'fastdraft[openvino]'")

from fastdraft.models.openvino import block_seconds, decode_seconds  # noqa: E402
from fastdraft.models.openvino_llama import Sizes, open_pipeline, random_llama  # noqa: E402

SIZES = Sizes(vocab_rows=131, hidden=128, layers=3, intermediate=320, heads=3, kv_heads=1)
# Scales and zero points are one row in a hundred of these matrices, and half a bit a weight in int4, which BITS counts.
WIDEST_SCALES = 0.06


def stored_bits(model) -> int:
    """Bits of all matrices of weights, scales and zero points aside."""
    kinds = {"u8": 8, "u4": 4, "f16": 16}
    found = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Constant" and (bits := kinds.get(node.get_element_type().get_type_name())):
            found += bits * math.prod(node.get_output_shape(0)) if node.get_output_shape(0)[-1] > 1 else 0
    return found


@pytest.mark.parametrize("weights", sorted(BITS))
def test_it_stores_its_parameters_in_the_precision_asked_for(weights):
    head = SIZES.vocab_rows * SIZES.hidden
    whole = {"bf16": 16, "int8": 8, "int4": 4}[weights] * (SIZES.read_parameters - head) + OUTER_BITS[weights] * head
    assert stored_bits(random_llama(SIZES, weights)) == whole


def test_the_sizes_count_the_parameters_of_a_real_llama():
    from transformers import AutoConfig

    from fastdraft.planning.model_size import ModelSize

    config = AutoConfig.for_model(
        "llama", vocab_size=131, hidden_size=128, num_hidden_layers=3, intermediate_size=320, head_dim=64
    )
    config.num_attention_heads, config.num_key_value_heads, config.tie_word_embeddings = 3, 1, True
    norms = (2 * 3 + 1) * 128
    assert ModelSize.of_config(config).parameters == SIZES.read_parameters + norms


def test_the_engine_runs_it_as_it_runs_an_export():
    """Norms and rotary positions, which fall into a dozen operations where their form is not the known one, are one."""
    compiled = openvino.Core().compile_model(random_llama(SIZES), "CPU", {"INFERENCE_NUM_THREADS": 1})
    run = [node.get_rt_info()["layerType"].astype(str) for node in compiled.get_runtime_model().get_ordered_ops()]
    layers = SIZES.layers
    assert {name: run.count(name) for name in ("RoPE", "RMS", "FullyConnected")} == {
        "RoPE": 2 * layers,
        "RMS": 2 * layers + 1,
        "FullyConnected": 7 * layers + 1,
    }
    assert not {"Split", "Power", "ReduceMean"} & set(run)


def test_the_same_seed_makes_the_same_model():
    def weights(seed):
        ops = random_llama(SIZES._replace(layers=1), "int8", seed).get_ordered_ops()
        return [op.data.tobytes() for op in ops if op.get_type_name() == "Constant" and op.data.size > 1000]

    assert weights(3) == weights(3) != weights(5)


@pytest.mark.slow
@pytest.mark.parametrize("weights", sorted(BITS))
def test_the_engine_runs_it(weights):
    pytest.importorskip("openvino_genai", reason="openvino_genai is not installed: pip install 'fastdraft[openvino]'")
    pipeline = open_pipeline(random_llama(SIZES, weights))
    assert 0 < decode_seconds(pipeline, 7) < 1
    assert 0 < block_seconds(pipeline, 5) < 1
