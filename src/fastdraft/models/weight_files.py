"""The safetensors files of a model: which they are, and what their headers say."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open

from fastdraft.models.file_errors import errors_explained, read_json
from fastdraft.system.errors import TargetError

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
FLOATS = ("F16", "BF16", "F32", "F64")
DO = "check that the download is complete"


class Header(NamedTuple):
    """Of a stored tensor: its safetensors type, such as BF16, and its shape."""

    dtype: str
    shape: tuple[int, ...]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the model in a folder; empty if it has no weights, TargetError if some are missing.

    Other safetensors files are ignored: some models come with a second copy of their weights for another library.
    """
    if not (folder / INDEX).is_file():
        return [folder / WHOLE] if (folder / WHOLE).is_file() else []
    weight_map = read_json(folder / INDEX, "copy the model's own file again").get("weight_map")
    names = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
    if not names or any(Path(name).name != name or len(name) > 255 for name in names):
        raise TargetError(
            f"{folder / INDEX} has no usable weight_map\n"
            f"  wanted: the name of a file in this folder for each tensor\n  do: copy the model's own file again"
        )
    present = [folder / name for name in names if (folder / name).is_file()]
    if present and len(present) < len(names):
        missing = sorted(set(names) - {path.name for path in present})
        raise TargetError(
            f"{folder} lacks {len(missing)} of the {len(names)} weight files that {INDEX} names, first {missing[0]}\n"
            f"  do: {DO}"
        )
    return present


def headers(file: Path) -> dict[str, Header]:
    """The header of every tensor in a file by its name; TargetError if it cannot be read."""
    with (
        errors_explained(f"the header of {file} cannot be read", DO),
        safe_open(file, framework="pt") as handle,  # type: ignore[no-untyped-call]
    ):
        slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118
        return {name: Header(stored.get_dtype(), tuple(stored.get_shape())) for name, stored in slices.items()}


def check_floats(folder: Path) -> None:
    """TargetError if a weight is stored as whole numbers: transformers would take them for the weights themselves.

    Only for models that state no quantisation. Other tensors, such as the masks of GPT-2, may hold whole numbers.
    """
    for file in weight_files(folder):
        for name, header in headers(file).items():
            if name.endswith(".weight") and header.dtype not in FLOATS:
                raise TargetError(
                    f"{file} stores {name} as {header.dtype}, and config.json states no quantization_config\n"
                    f"  wanted: {', '.join(FLOATS)}\n  do: copy the model's own files again"
                )
