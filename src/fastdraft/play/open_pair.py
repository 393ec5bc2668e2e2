"""A pair opened to be played: the one that comes with the package, or any target and its draft."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import torch
from transformers import PreTrainedModel

from fastdraft.bench.bench_pair import context_of, in_form
from fastdraft.bench.engine import Files, Setting
from fastdraft.bench.engine_openvino import F32, OpenedOpenVino
from fastdraft.bench.engines import device_named, engine_named, weights_named
from fastdraft.config import TargetPart
from fastdraft.export.export_draft import accepted
from fastdraft.models import draft, draft_origin, target
from fastdraft.models.draft_origin import Origin
from fastdraft.play.blocks import Player
from fastdraft.play.engine_openvino import OpenVino
from fastdraft.play.engine_transformers import Transformers

DEMO = "demo"
ENGINES = {"transformers": "transformers", "openvino": "OpenVINO GenAI"}
# Of the settings of OpenVINO on a CPU the fastest one that was measured (docs/bench.md).
SETTING = Setting("f32 inference", F32)
LONGEST_TOKENS = 2048


def open_pair(target_name: str, draft_name: str, engine: str, device: str | None) -> Player:
    """Both models in an engine; VocabularyMismatch where the draft does not fit, MissingExtra, DeviceError."""
    part = TargetPart(path=target_name)
    origin = packaged() if draft_name == DEMO else draft_origin.origin_named(draft_name)
    accepted(part, origin.folder, (ENGINES[engine],))
    card = draft_origin.target_card(Origin(origin.folder, None), part)
    tokenizer, eos = target.open_tokenizer(part), frozenset(card.eos_ids)
    context = min(card.context_tokens, context_of(origin.folder))
    if engine == "transformers":
        place = torch.device(device or "cpu")
        models: list[PreTrainedModel] = [target.open_model(part, place), draft.open_draft(origin.folder, place)]
        return Transformers(models[0], models[1], tokenizer, eos, context)
    made = engine_named(engine)
    where = device_named(made, device)
    weights = weights_named(made, None, where)
    ours, theirs = (in_form(made, folder, weights)[0] for folder in (target.folder_of(part), origin.folder))
    files = Files(ours, theirs, weights, weights, where, LONGEST_TOKENS, eos)
    return OpenVino(OpenedOpenVino(files, SETTING.properties), tokenizer, context)


def packaged() -> Origin:
    """The demo's own draft."""
    return Origin(Path(str(resources.files("fastdraft.demo").joinpath("draft"))), None)
