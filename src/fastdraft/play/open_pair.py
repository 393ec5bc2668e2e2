"""Open a target and a draft for the playground, in one of its engines."""

from __future__ import annotations

from transformers import PreTrainedModel

from fastdraft.benchmark.bench_pair import context_tokens, engine_folder
from fastdraft.benchmark.engine import PairFiles, Setting
from fastdraft.benchmark.engine_openvino import OpenedOpenVino
from fastdraft.benchmark.engines import device_named, engine_named, weights_named
from fastdraft.config import TargetPart
from fastdraft.exporters.export_draft import accepted
from fastdraft.models import draft, draft_origin, pretrained
from fastdraft.models.draft_origin import Origin
from fastdraft.models.openvino import F32
from fastdraft.play.blocks import Player
from fastdraft.play.engine_openvino import OpenVino
from fastdraft.play.engine_transformers import Transformers
from fastdraft.system.torch_device import usable_device

# Engines of the playground, with their names in the compatibility rules.
ENGINES = {"transformers": "transformers", "openvino": "OpenVINO GenAI"}
# The fastest OpenVINO setting on a CPU (docs/bench.md).
SETTING = Setting("f32 inference", F32)
LONGEST_TOKENS = 2048


def open_pair(target_name: str, draft_name: str, engine: str, device: str | None) -> Player:
    """Open both models in an engine.

    VocabularyMismatch if the draft does not fit the target, MissingExtra if the engine is not installed, DeviceError or
    RecipeError if it does not have the device.
    """
    target = TargetPart(path=target_name)
    origin = draft_origin.origin_of(draft_name)
    accepted(target, origin.folder, (ENGINES[engine],))
    card = draft_origin.target_card(Origin(origin.folder, None), target)
    tokenizer, eos = pretrained.open_tokenizer(target), frozenset(card.eos_ids)
    context = min(card.context_tokens, context_tokens(origin.folder))
    if engine == "transformers":
        torch_device = usable_device(device or "cpu")
        target_model: PreTrainedModel = pretrained.open_model(target, torch_device)
        draft_model: PreTrainedModel = draft.open_draft(origin.folder, torch_device)
        return Transformers(target_model, draft_model, tokenizer, eos, context)
    bench_engine = engine_named(engine)
    engine_device = device_named(bench_engine, device)
    weights = weights_named(bench_engine, None, engine_device)
    files = PairFiles(
        target=engine_folder(bench_engine, pretrained.folder_of(target), weights)[0],
        draft=engine_folder(bench_engine, origin.folder, weights)[0],
        target_weights=weights,
        draft_weights=weights,
        device=engine_device,
        longest_tokens=LONGEST_TOKENS,
        eos=eos,
    )
    return OpenVino(OpenedOpenVino(files, SETTING.properties), tokenizer, context)
