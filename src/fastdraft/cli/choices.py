"""Names that help and completion list, copied from modules that take seconds to import; a test compares them."""

from __future__ import annotations

# pipeline.stages.STAGES, in order.
STAGES = ("target", "tokenize", "validation", "pretrain", "continue", "synthesize", "align", "evaluate")
# planning.devices.DEVICES: devices with published figures. `cpu` is measured instead.
DEVICES = (
    *("a100-80gb", "h100-sxm", "h200", "b200", "l4", "l40s", "rtx-4090", "rtx-5090", "mi300x", "gaudi-2", "gaudi-3"),
    *("arc-155h", "npu-155h", "arc-140v", "npu-258v", "m4-max", "m3-ultra", "ryzen-ai-max-395"),
)
# planning.model_size.BITS.
BITS = ("bf16", "int8", "int4")
# pipeline.step_timers.TIMERS.
TIMERS = ("openvino", "transformers")
# export.formats.FORMATS: each with its weight precisions, the usual one first.
FORMATS = {
    "huggingface": ("bf16", "fp16", "fp32"),
    "openvino": ("int8", "int8_sym", "int4", "int4_sym", "fp16"),
    "gguf": ("q8_0", "q4_0", "f16", "f32"),
}
# bench.engines.ENGINES: each with its weight precisions, the usual one first.
ENGINES = {
    "openvino": ("int8", "int8_sym", "int4", "int4_sym", "fp16"),
    "transformers": ("fp32", "bf16", "fp16"),
    "llama.cpp": ("q8_0", "q4_0", "f16", "f32"),
}
# play.open_pair.ENGINES.
PLAYERS = ("transformers", "openvino")
# evaluate.tasks.TASKS, and evaluate.tasks.DEFAULT_TASKS: the default tasks.
TASKS = (
    *("cnn_dailymail", "tinystories", "dolly", "mt-bench"),
    *("spec-bench:mt-bench", "spec-bench:translation", "spec-bench:summarization"),
    *("spec-bench:qa", "spec-bench:math_reasoning", "spec-bench:rag", "humaneval", "gsm8k"),
)
DEFAULT_TASKS = ("cnn_dailymail", "tinystories", "dolly", "humaneval")
# system.precision.PrecisionChoice.
PRECISIONS = ("auto", "bf16", "fp32")
# Device names that system.torch_device.usable_device accepts.
KINDS = ("auto", "cpu", "cuda", "xpu", "hpu")
