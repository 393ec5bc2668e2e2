"""The forms that a draft can take: how each is written, opened in its engine, and how alike it must be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from fastdraft.export.gguf import export_gguf, open_gguf
from fastdraft.export.huggingface import export_huggingface, open_huggingface
from fastdraft.export.openvino import export_openvino, open_openvino
from fastdraft.export.proof import Opened
from fastdraft.system.errors import ExportError
from fastdraft.system.optional_packages import need


class Format(NamedTuple):
    """`agreement`: for each kind of weights, first the usual one, the least share of tokens that must stay the same.

    `write(model folder, new folder, weights)` says what a reader must know, a line each; `engines` are the rules, by
    the beginning of their names, that a draft in this form must keep; `modules` are (module, extra) that it takes.
    """

    agreement: Mapping[str, float]
    write: Callable[[Path, Path, str], list[str]]
    open: Callable[[Path, int], Opened]
    engines: tuple[str, ...]
    modules: tuple[tuple[str, str], ...] = ()

    def ready(self) -> None:
        """MissingExtra where a package that it takes is not installed: said before any work."""
        for module, extra in self.modules:
            need(module, extra)

    def weights(self, asked: str | None, name: str) -> str:
        """The kind of weights; ExportError where this format has none of that name."""
        if asked is None:
            return next(iter(self.agreement))
        if asked not in self.agreement:
            raise ExportError(f"{name} has no weights `{asked}`\n  do: choose one of {', '.join(self.agreement)}")
        return asked


def format_named(name: str) -> Format:
    """ExportError where there is none of that name."""
    if name not in FORMATS:
        raise ExportError(f"no format `{name}`\n  do: choose one of {', '.join(FORMATS)}")
    return FORMATS[name]


# What must stay the same: 1 but for near ties, and well below what was measured on drafts of 0.6M (dev/LOG.md).
FORMATS: dict[str, Format] = {
    "huggingface": Format(
        {"bf16": 0.9, "fp16": 0.98, "fp32": 0.999},
        export_huggingface,
        open_huggingface,
        ("transformers, generate", "vLLM", "SGLang"),
    ),
    "openvino": Format(
        {"int8": 0.9, "int8_sym": 0.9, "int4": 0.5, "int4_sym": 0.5, "fp16": 0.98},
        export_openvino,
        open_openvino,
        ("OpenVINO GenAI",),
        tuple((module, "openvino") for module in ("optimum.intel", "nncf", "openvino_tokenizers", "openvino_genai")),
    ),
    "gguf": Format(
        {"q8_0": 0.9, "q4_0": 0.6, "f16": 0.98, "f32": 0.999},
        export_gguf,
        open_gguf,
        ("llama.cpp",),
        (("gguf", "llamacpp"), ("llama_cpp", "llamacpp")),
    ),
}
