"""Write a copy of a draft that fits its target: rows padded or trimmed, the target's tokenizer files and special ids.

A repair changes how a draft is stored, not what it means. If ids stand for different text in the two tokenizers, there
is no repair: a copy with the target's tokenizer would pass every rule and draft noise.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fastdraft.compatibility.rule import RepairKind, compared
from fastdraft.models.model_files import ROLES, ModelFiles
from fastdraft.models.pretrained import TOKENIZER_FILES
from fastdraft.models.token_bytes import readable
from fastdraft.models.weight_files import INDEX, WHOLE, weight_files
from fastdraft.system.errors import RepairError
from fastdraft.system.files import atomic_write

CONFIG, GENERATION = "config.json", "generation_config.json"
# Model card, licence, remote code. Files made from the unrepaired draft, such as GGUF, are not copied.
COPIED_SUFFIXES = (".md", ".py", ".txt", "")


class Plan(NamedTuple):
    """What each repair would do, in words; `obstacle` says why there can be none."""

    phrases: dict[RepairKind, str]
    obstacle: str | None


def plan(target: ModelFiles, draft: ModelFiles) -> Plan:
    """The repairs of a draft."""
    rows = sorted({draft.embedding_rows, draft.output_rows, draft.vocab_size} - {target.output_rows})
    verb = "pad" if rows and rows[0] < target.output_rows else "trim"
    phrases: dict[RepairKind, str] = {
        "rows": f"{verb} {' and '.join(f'{n:,}' for n in rows)} rows to {target.output_rows:,}",
        "tokenizer": "copy the target's tokenizer files",
        "ids": "set the target's special ids in config.json and generation_config.json",
    }
    return Plan(phrases, _obstacle(target, draft))


def repair(target: ModelFiles, draft: ModelFiles, out: Path) -> list[str]:
    """Write the repaired draft to `out`, atomically; returns a line for each change.

    RepairError if the draft has no weights, or `out` exists or cannot be written; DiskFull if the disk is full.
    """
    check_free(out)
    if not draft.shapes:
        raise RepairError(
            f"{draft.folder} has no weights to repair\n  wanted: {WHOLE}, or {INDEX} and its files, of a family that "
            f"transformers knows\n  do: give the folder that has them"
        )
    try:
        with atomic_write(out) as part:
            part.mkdir()
            for file in sorted(draft.folder.iterdir()):
                if file.is_file() and file.suffix in COPIED_SUFFIXES and file.name not in TOKENIZER_FILES:
                    shutil.copyfile(file, part / file.name)
            return [
                *_write_weights(target, draft, part),
                *_copy_tokenizer(target, draft, part),
                *_write_config(target, draft, part),
                *_write_generation_config(target, draft, part),
            ]
    except OSError as error:
        raise RepairError(f"{out} cannot be written: {error}\n  do: choose another folder with --out") from error


def check_free(out: Path) -> None:
    """RepairError if `out` exists: a repair overwrites nothing."""
    if out.exists():
        raise RepairError(f"{out} exists already\n  wanted: a new folder\n  do: remove it, or name another with --out")


def default_folder(draft: ModelFiles) -> Path:
    """The default folder of a repaired draft: next to it, or in the working directory for a hub model."""
    local = Path(draft.name).expanduser()
    folder = local.resolve() if local.is_dir() else Path(draft.name.rpartition("/")[2])
    return folder.with_name(f"{folder.name}-repaired")


def _obstacle(target: ModelFiles, draft: ModelFiles) -> str | None:
    rows = target.output_rows
    if foreign := _foreign_ids(target, draft):
        texts = (readable(files.id_bytes.get(foreign[0])) for files in (target, draft))
        first = compared(str(foreign[0]), *texts)
        return (
            f"no repair: in the draft's tokenizer {len(foreign):,} ids are other text; {first}\n"
            f"  do: train a draft for this target; draft.init=transplant:{draft.name} keeps what this one has learned"
        )
    if lost := [number for number in draft.id_bytes if number >= rows]:
        return (
            f"no repair: {rows:,} rows are too few for {len(lost):,} of the draft's tokens, first id {min(lost)}\n"
            f"  do: train a draft for this target"
        )
    return None


def _foreign_ids(target: ModelFiles, draft: ModelFiles) -> list[int]:
    """Ids that stand for different text, or for text in only one of the two.

    Added tokens may differ: a text contains them only if somebody wrote them there.
    """
    all_ids = sorted(target.id_bytes.keys() | draft.id_bytes.keys())
    differing = [n for n in all_ids if target.id_bytes.get(n) != draft.id_bytes.get(n)]
    return [n for n in differing if not all(n in files.added_ids for files in (target, draft) if n in files.id_bytes)]


def _write_weights(target: ModelFiles, draft: ModelFiles, part: Path) -> list[str]:
    """Write the weight files, one at a time in memory; a file without a tensor to change is copied."""
    names, changes = _row_tensors(draft), []
    for file in weight_files(draft.folder):
        with safe_open(file, framework="pt") as handle:  # type: ignore[no-untyped-call]
            here = [name for name in handle.keys() if name in names]  # noqa: SIM118
            if all(draft.shapes[name][0] == target.output_rows for name in here):
                shutil.copyfile(file, part / file.name)
                continue
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
            metadata = handle.metadata()
        for name in here:
            tensors[name] = with_rows(tensors[name], target.output_rows, max(draft.id_bytes) + 1)
        save_file(tensors, part / file.name, metadata)
        changes += [f"{name}: {draft.shapes[name][0]:,} to {target.output_rows:,} rows" for name in here]
    _write_index(draft, part)
    return changes


def with_rows(weight: torch.Tensor, rows: int, known: int) -> torch.Tensor:
    """(rows, ...) a weight, trimmed, or padded with the mean of its first `known` rows.

    A padded id can then never win the argmax: its logit is the mean of the known ids' logits, which is never above the
    largest (biases are averaged like weights, and what models do to logits afterwards keeps their order). Rows of zeros
    are no alternative: their logit 0 wins wherever all other logits are negative, as in GPT-2.
    """
    if weight.element_size() < 2:
        raise RepairError(f"rows of {weight.dtype} cannot be averaged\n  do: use the draft before quantisation")
    if rows <= len(weight):
        return weight[:rows].clone()
    mean = weight[:known].mean(0, keepdim=True, dtype=torch.float32).to(weight.dtype)
    return torch.cat([weight, mean.expand(rows - len(weight), *mean.shape[1:])])


def _row_tensors(draft: ModelFiles) -> set[str]:
    """The names in the files of the tensors with one row per id: embedding, output layer and its bias."""
    embedding, output = draft.vocabulary_tensors
    biases = {name.removesuffix("weight") + "bias" for name in output}
    return {*embedding, *output, *(biases & draft.shapes.keys())}


def _write_index(draft: ModelFiles, part: Path) -> None:
    """Write the index of weight files, with the new total of bytes."""
    if (draft.folder / INDEX).is_file():
        index = json.loads((draft.folder / INDEX).read_text(encoding="utf-8"))
        total = sum(_tensor_bytes(part / file.name) for file in weight_files(draft.folder))
        metadata = index.get("metadata")
        index["metadata"] = (metadata if isinstance(metadata, dict) else {}) | {"total_size": total}
        _write(part / INDEX, index)


def _tensor_bytes(file: Path) -> int:
    """The bytes of a safetensors file's tensors: without its header, whose length is in the first eight bytes."""
    with file.open("rb") as handle:
        return file.stat().st_size - 8 - int.from_bytes(handle.read(8), "little")


def _copy_tokenizer(target: ModelFiles, draft: ModelFiles, part: Path) -> list[str]:
    """Copy the target's tokenizer files; report how many of its tokens are new to the draft."""
    names = [name for name in TOKENIZER_FILES if (target.folder / name).is_file()]
    for name in names:
        shutil.copyfile(target.folder / name, part / name)
    changes = [f"{', '.join(names)}: the target's, byte for byte"]
    if new := [number for number, token in target.id_bytes.items() if draft.id_bytes.get(number) != token]:
        changes.append(f"{len(new)} tokens are new to the draft, first {min(new)}: it will hardly propose them")
    return changes


def _write_config(target: ModelFiles, draft: ModelFiles, part: Path) -> list[str]:
    """Set the padded vocabulary, and the special ids exactly as the target's config.json states them."""
    content = json.loads((draft.folder / CONFIG).read_text(encoding="utf-8"))
    values: dict[str, Any] = {"vocab_size": target.output_rows}
    values |= {f"{role}_token_id": getattr(target.text, f"{role}_token_id", None) for role in ROLES}
    changes = _update(content.get("text_config", content), values, CONFIG)
    _write(part / CONFIG, content)
    return changes


def _write_generation_config(target: ModelFiles, draft: ModelFiles, part: Path) -> list[str]:
    """Set the ids that begin, end and pad a text; the draft's other settings stay."""
    file = draft.folder / GENERATION
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    first = target.role_id("eos")
    eos_ids = sorted(target.eos_ids, key=lambda number: (number != first, number))
    pad = target.generation_id("pad")
    values = {
        "bos_token_id": target.generation_id("bos"),
        "eos_token_id": eos_ids[0] if len(eos_ids) == 1 else eos_ids,
        "pad_token_id": first if pad is None else pad,
    }
    changes = _update(content, values, GENERATION)
    _write(part / GENERATION, content)
    return changes


def _update(section: dict[str, Any], values: dict[str, Any], name: str) -> list[str]:
    """Set keys in a section of the file `name`; returns a line for each change."""
    new = {key: value for key, value in values.items() if section.get(key) != value}
    changes = [f"{name}: {key} {section.get(key)} to {value}" for key, value in new.items()]
    section.update(new)
    return changes


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
