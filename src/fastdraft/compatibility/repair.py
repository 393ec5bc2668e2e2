"""A copy of a draft that fits its target: rows padded or trimmed, the target's tokenizer files, the target's ids.

A repair changes how a draft is stored, not what it means. Where ids mean different text in the two tokenizers nothing
is made: a copy with the target's tokenizer would pass every rule and draft noise.
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
from fastdraft.models.model_files import INDEX, ROLES, WHOLE, Side, weight_files
from fastdraft.models.target import TOKENIZER_FILES
from fastdraft.models.token_bytes import show
from fastdraft.system.errors import RepairError
from fastdraft.system.files import atomic_write

CONFIG, GENERATION = "config.json", "generation_config.json"
# Model card, licence, code of its own. Not what was made from the draft as it was, such as a GGUF file.
KEPT = (".md", ".py", ".txt", "")


class Plan(NamedTuple):
    """What each fix would do, in words; `obstacle` says why none can be made."""

    phrases: dict[RepairKind, str]
    obstacle: str | None


def plan(target: Side, draft: Side) -> Plan:
    """How a draft would be repaired."""
    rows = sorted({draft.embedding_rows, draft.output_rows, draft.vocab_size} - {target.output_rows})
    verb = "pad" if rows and rows[0] < target.output_rows else "trim"
    phrases: dict[RepairKind, str] = {
        "rows": f"{verb} {' and '.join(f'{n:,}' for n in rows)} rows to {target.output_rows:,}",
        "tokenizer": "copy the target's tokenizer files",
        "ids": "set the target's special ids in config.json and generation_config.json",
    }
    return Plan(phrases, _obstacle(target, draft))


def repair(target: Side, draft: Side, out: Path) -> list[str]:
    """Write the repaired draft to `out`, whole or not at all; what was done, line by line.

    RepairError where the draft has no weights, `out` exists or cannot be written; DiskFull where the space ends.
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
            _copy_rest(draft, part)
            done = [*_weights(target, draft, part), *_tokenizer(target, draft, part)]
            return [*done, *_config(target, draft, part), *_generation(target, draft, part)]
    except OSError as error:
        raise RepairError(f"{out} cannot be made: {error}\n  do: choose another folder with --out") from error


def check_free(out: Path) -> None:
    """RepairError where something is at `out`: a repair replaces nothing."""
    if out.exists():
        raise RepairError(f"{out} exists already\n  wanted: a new folder\n  do: remove it, or name another with --out")


def place(draft: Side) -> Path:
    """Where a repaired draft goes if nobody says: beside it, or here where it lies in a cache or in this package."""
    local = Path(draft.name).expanduser()
    folder = local.resolve() if local.is_dir() and draft.name != "demo" else Path(draft.name.rpartition("/")[2])
    return folder.with_name(f"{folder.name}-repaired")


def _obstacle(target: Side, draft: Side) -> str | None:
    wanted = target.output_rows
    if foreign := _foreign_ids(target, draft):
        first = compared(str(foreign[0]), show(target.spelled.get(foreign[0])), show(draft.spelled.get(foreign[0])))
        return (
            f"no repair: another tokenizer, in which {len(foreign):,} ids are other text; {first}\n"
            f"  do: train a draft for this target; draft.init=transplant:{draft.name} keeps what this one knows"
        )
    if lost := [number for number in draft.spelled if number >= wanted]:
        return (
            f"no repair: {wanted:,} rows have no place for {len(lost):,} of the draft's tokens, first id {min(lost)}\n"
            f"  do: train a draft for this target"
        )
    return None


def _foreign_ids(target: Side, draft: Side) -> list[int]:
    """Ids that mean other text, or text to one side alone.

    Tokens that were added by name may differ: a text has them only where somebody wrote them there.
    """
    every = sorted(target.spelled.keys() | draft.spelled.keys())
    unlike = [n for n in every if target.spelled.get(n) != draft.spelled.get(n)]
    return [n for n in unlike if not all(n in side.added for side in (target, draft) if n in side.spelled)]


def _copy_rest(draft: Side, part: Path) -> None:
    for file in sorted(draft.folder.iterdir()):
        if file.is_file() and file.suffix in KEPT and file.name not in TOKENIZER_FILES:
            shutil.copyfile(file, part / file.name)


def _weights(target: Side, draft: Side, part: Path) -> list[str]:
    """Every file of weights, one at a time in memory; those without a row for each id are copied as they are."""
    names, changed = _row_tensors(draft), []
    for file in weight_files(draft.folder):
        with safe_open(file, framework="pt") as handle:  # type: ignore[no-untyped-call]
            here = [name for name in handle.keys() if name in names]  # noqa: SIM118
            if all(draft.shapes[name][0] == target.output_rows for name in here):
                shutil.copyfile(file, part / file.name)
                continue
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
            metadata = handle.metadata()
        for name in here:
            tensors[name] = with_rows(tensors[name], target.output_rows, max(draft.spelled) + 1)
        save_file(tensors, part / file.name, metadata)
        changed += [f"{name}: {draft.shapes[name][0]:,} to {target.output_rows:,} rows" for name in here]
    _index(draft, part)
    return changed


def with_rows(weight: torch.Tensor, rows: int, known: int) -> torch.Tensor:
    """(rows, ...) a weight trimmed, or padded with the mean of its first `known` rows.

    A padded id can then never win the argmax: its logit is the mean of the known ids' logits, and a mean is nowhere
    above the largest (a bias is averaged with its weights, and what models do to logits afterwards keeps their order).
    Rows of zeros would not do: their logit 0 wins wherever a model's logits are all negative, as GPT-2's are.
    """
    if weight.element_size() < 2:
        raise RepairError(f"rows of {weight.dtype} cannot be averaged\n  do: give the draft as before it was quantised")
    if rows <= len(weight):
        return weight[:rows].clone()
    mean = weight[:known].mean(0, keepdim=True, dtype=torch.float32).to(weight.dtype)
    return torch.cat([weight, mean.expand(rows - len(weight), *mean.shape[1:])])


def _row_tensors(draft: Side) -> set[str]:
    """Names, in the files, of all that has a row for each id: embedding, output layer, its bias."""
    embedding, output = draft.vocabulary_tensors
    biases = {name.removesuffix("weight") + "bias" for name in output}
    return {*embedding, *output, *(biases & draft.shapes.keys())}


def _index(draft: Side, part: Path) -> None:
    """The list of shards, with the new total of bytes."""
    if (draft.folder / INDEX).is_file():
        index = json.loads((draft.folder / INDEX).read_text(encoding="utf-8"))
        index["metadata"] = index.get("metadata", {}) | {"total_size": _bytes(weight_files(draft.folder), part)}
        _write(part / INDEX, index)


def _bytes(files: list[Path], part: Path) -> int:
    """Of the tensors alone: a file's own length less its head, whose length stands in its first eight bytes."""
    sizes = 0
    for file in files:
        with (part / file.name).open("rb") as handle:
            sizes += (part / file.name).stat().st_size - 8 - int.from_bytes(handle.read(8), "little")
    return sizes


def _tokenizer(target: Side, draft: Side, part: Path) -> list[str]:
    """The target's very files; and how many of its tokens the draft has never seen."""
    names = [name for name in TOKENIZER_FILES if (target.folder / name).is_file()]
    for name in names:
        shutil.copyfile(target.folder / name, part / name)
    new = [number for number, text in target.spelled.items() if draft.spelled.get(number) != text]
    told = [f"{len(new)} tokens are new to the draft, first {min(new)}: it will hardly propose them"] if new else []
    return [f"{', '.join(names)}: the target's, byte for byte", *told]


def _config(target: Side, draft: Side, part: Path) -> list[str]:
    """The padded vocabulary, and the special ids exactly as the target's config.json has them."""
    content = json.loads((draft.folder / CONFIG).read_text(encoding="utf-8"))
    wanted: dict[str, Any] = {"vocab_size": target.output_rows}
    wanted |= {f"{role}_token_id": getattr(target.text, f"{role}_token_id", None) for role in ROLES}
    return _set(content.get("text_config", content), wanted, part / CONFIG, content)


def _generation(target: Side, draft: Side, part: Path) -> list[str]:
    """Where a text begins and ends, and what fills it up; the rest of the draft's own stays."""
    there = draft.folder / GENERATION
    content = json.loads(there.read_text(encoding="utf-8")) if there.is_file() else {}
    first = target.role_id("eos")
    ends = sorted(target.ends, key=lambda number: (number != first, number))
    pad = target.named("pad")
    wanted = {"bos_token_id": target.named("bos"), "eos_token_id": ends[0] if len(ends) == 1 else ends}
    return _set(content, wanted | {"pad_token_id": first if pad is None else pad}, part / GENERATION, content)


def _set(place: dict[str, Any], wanted: dict[str, Any], path: Path, content: dict[str, Any]) -> list[str]:
    """Set keys in a part of a file's content, write the file, and name what changed."""
    new = {key: value for key, value in wanted.items() if place.get(key) != value}
    changed = [f"{path.name}: {key} {place.get(key)} to {value}" for key, value in new.items()]
    place.update(new)
    _write(path, content)
    return changed


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
