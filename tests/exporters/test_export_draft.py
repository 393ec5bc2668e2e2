"""A finished draft handed over: with its proof, and a card in which every figure is one of its run's cards."""

import io
import json
import math
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from huggingface_hub import ModelCard
from rich.console import Console
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from fastdraft.cli import export as command
from fastdraft.config import PromptSetPart, TargetPart
from fastdraft.config.resolve import resolve, resolved_yaml
from fastdraft.exporters.collect_evidence import evidence, licence_of
from fastdraft.exporters.evidence import Speed
from fastdraft.exporters.export_draft import ExportOptions, at_commit, export
from fastdraft.exporters.formats import FORMATS
from fastdraft.exporters.model_card import model_card
from fastdraft.exporters.model_card_sections import best_gamma, training
from fastdraft.models.draft import DraftCard
from fastdraft.models.draft_origin import Origin, origin_of, target_card, target_of
from fastdraft.models.hub import is_hub_id, name_of
from fastdraft.models.pretrained import TOKENIZER_FILES
from fastdraft.models.target import TargetCard
from fastdraft.report import terminal_export
from fastdraft.results.evaluation import EvaluationCard
from fastdraft.results.export import ExportCard
from fastdraft.system.cards import Cost, read_card
from fastdraft.system.errors import (
    ExportError,
    MissingExtra,
    ProofError,
    RunError,
    TargetError,
    UserError,
    VocabularyMismatch,
)

RUN = Path("runs/tiny")
FIRST, SECOND = "1" * 40, "2" * 40  # commits


@pytest.fixture
def done(finished_run, monkeypatch, one_thread) -> Path:
    """The run's folder, from the place that its recipe's paths are relative to; its recipe has one thread."""
    monkeypatch.chdir(finished_run)
    (RUN / "resolved.yaml").write_text(resolved_yaml(resolve(Path("recipe.yaml"))))  # as `fastdraft run` leaves it
    return RUN


@pytest.fixture
def exported(done, make_once, monkeypatch) -> tuple[Path, ExportCard]:
    """The run as it was handed over, once for all tests that only read this."""

    def make(folder: Path) -> None:
        shutil.copytree(Path.cwd(), folder, dirs_exist_ok=True)
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            export(ExportOptions(RUN, "huggingface"))

    shutil.copytree(make_once("exported", make) / RUN / "export", done / "export")
    folder = done / "export" / "huggingface-bf16"
    return folder, read_card(folder, ExportCard)


def test_a_run_is_exported_over(done):
    folder, card = export(ExportOptions(done, "huggingface", "fp32"))
    assert folder == done / "export" / "huggingface-fp32"
    assert read_card(folder, ExportCard) == card
    assert card.notes == ()
    assert card.proof.equal_prompts == card.proof.prompts >= 8
    assert card.proof.agreement == 1.0
    assert [kept.temperature for kept in card.proof.kept] == [0.0, 1.0]
    assert all(kept.original == kept.exported for kept in card.proof.kept)
    assert [accepted.engine.split(",")[0] for accepted in card.accepted] == ["transformers", "vLLM", "SGLang"]
    assert card.target_digest == read_card(done / "align", DraftCard).target_digest
    assert card.files == {name: (folder / name).stat().st_size for name in card.files}
    assert {path.name for path in folder.iterdir()} == {*card.files, "README.md", "card.json", "recipe.yaml"}
    ours, theirs = (load_file(place / "model.safetensors") for place in (folder, done / "align" / "model"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    names = [name for name in TOKENIZER_FILES if (Path("target") / name).is_file()]
    assert names
    assert all((folder / name).read_bytes() == (Path("target") / name).read_bytes() for name in names)


def test_the_card_reports_what_the_runs_cards_say(done, exported):
    folder, _ = exported
    text = (folder / "README.md").read_text()
    card = ModelCard(text)
    assert (card.data.library_name, card.data.base_model) == ("transformers", None)
    measured = [r for r in read_card(done / "evaluate", EvaluationCard).results if r.stage == "align"]
    assert len(measured) == 4
    for result in measured:
        best = next(at for at in result.gammas if at.gamma == result.best_gamma)
        for value in (result.alpha.value, best.block_efficiency.low, best.acceptance_rate.high, best.mbsu.value):
            assert f"{value:.3f}" in text
    for phase in ("pretrain", "continue", "align"):
        trained = read_card(done / phase, DraftCard)
        assert f"| {phase} | {trained.trained_tokens:,} |" in text
        assert all(f"{nats:.3f}" in text for nats in trained.held_out_nats.values())
    for said in (
        "not recorded: see the source",
        "Not measured. It depends on engine",
        "Of the tasks above, the lowest",
    ):
        assert said in text
    assert str(Path.cwd()) not in text
    assert (folder / "recipe.yaml").read_text() == (done / "resolved.yaml").read_text()


def test_what_was_measured_elsewhere_is_reported_too(done, exported):
    """Speed-ups and advice, where a bench has left any."""
    _, card = exported
    origin = origin_of(done)
    part = target_of(origin)
    known = evidence(origin, part, target_card(origin, part))
    speed = Speed("OpenVINO GenAI 2026.4, 2 cores", "code", 0.0, 5, 1.84, 1.71, 1.99)
    text = model_card(replace(known, speeds=[speed], advice=["Use gamma 5 here."]), card)
    assert "| OpenVINO GenAI 2026.4, 2 cores | code | greedy | 5 | 1.84x [1.71, 1.99] |" in text
    assert "Use gamma 5 here." in text
    assert "Not measured. It depends" not in text
    assert "base_model: some/target" in model_card(replace(known, part=TargetPart(path="some/target")), card)


def test_the_card_reports_whose_words_were_learnt(done, exported):
    """The licence that the recipe names, and where prompts came from."""
    _, card = exported
    origin = origin_of(done)
    known = evidence(origin, target_of(origin), target_card(origin, target_of(origin)))
    (name, (part, source)), *_ = known.sources.items()
    text = model_card(replace(known, sources={name: (part.model_copy(update={"licence": "cc-by-4.0"}), source)}), card)
    assert f"| {name} | {part.source} {Path(part.path).name} | cc-by-4.0 | {source.train.documents:,} |" in text
    dolly = PromptSetPart(source="hub", path="databricks/databricks-dolly-15k")
    asked = known.written.part.model_copy(
        update={"prompt_sets": {"dolly": dolly}, "mix": {"text": 0.75, "dolly": 0.25}}
    )
    text = model_card(replace(known, written=known.written._replace(part=asked)), card)
    assert "after prompts from text 0.75, dolly (hub databricks/databricks-dolly-15k) 0.25." in text


def test_the_card_reports_what_energy_is_known(done, exported):
    _, card = exported
    origin = origin_of(done)
    part = target_of(origin)
    known = evidence(origin, part, target_card(origin, part))
    expected = {"align": Cost(seconds=1.0, joules={"cpu": 5e6, "cuda": 3.28e7}), "target": Cost(seconds=1.0)}
    said = (
        "Energy: 10.5 kWh by the machine's own counters (cpu in 1 of 2 stages, cuda in 1 of 2 stages), other programs"
    )
    assert said in model_card(replace(known, costs=expected), card)
    assert "Energy: not known." in model_card(replace(known, costs={"target": expected["target"]}), card)


def test_it_is_a_command(done, capsys):
    app = typer.Typer()
    app.command()(command.export)
    app.command()(command.push)
    place = str(done / "export" / "huggingface-fp32")
    made = CliRunner().invoke(app, ["export", str(done), "--format", "huggingface", "--weights", "fp32", "--json"])
    assert made.exit_code == 0
    assert json.loads(made.stdout)["folder"] == place
    said = CliRunner().invoke(app, ["push", place, "me/draft"])
    assert said.exit_code == 0
    assert "me/draft (private model repository)" in said.stdout
    assert "nothing was uploaded: add --yes" in said.stdout


def shown(folder: Path, card: ExportCard) -> str:
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(terminal_export.export_report(folder, card))
    return console.export_text()


def test_it_is_shown(exported):
    text = shown(*exported)
    for said in (
        "huggingface, weights bf16",
        "accepted by vLLM",
        "greedy texts equal",
        "the export",
        "vllm serve TARGET",
    ):
        assert said in text


def test_the_commands_name_what_the_engine_opens(done, exported):
    """llama.cpp a file; an id on the hub only where the engine reads what lies there."""
    folder, card = exported
    assert card.path_for_engine(folder) == folder
    with_vocabulary = card.model_copy(update={"files": {**card.files, "vocabulary.gguf": 5}})
    assert with_vocabulary.path_for_engine(folder) == folder
    gguf = card.model_copy(update={"format": "gguf", "files": {"NOTICE": 1, "draft-q8_0.gguf": 3}})
    assert f"llama-server -m TARGET -md {folder}/draft-q8_0.gguf " in shown(folder, gguf)
    origin = origin_of(done)
    known = evidence(origin, target_of(origin), target_card(origin, target_of(origin)))
    text = model_card(replace(known, part=TargetPart(path="some/target")), gguf)
    for said in ("llama.cpp (`draft-q8_0.gguf` in this folder)", "vllm serve some/target", "llama-server -m TARGET "):
        assert said in text
    assert 'LLMPipeline("TARGET"' in text


@pytest.mark.slow
def test_an_earlier_phase_claims_nothing_of_a_later_one(done):
    folder, _ = export(ExportOptions(done / "pretrain", "huggingface"))
    text = (folder / "README.md").read_text()
    assert "| pretrain |" in text
    assert "| align |" not in text
    assert "Real speculative decoding" not in text
    assert "the target itself wrote" not in text


@pytest.mark.slow
def test_a_bare_folder_is_described_by_its_files(done, tmp_path):
    bare = (done / "align" / "model").rename(tmp_path / "bare")
    with pytest.raises(ExportError, match="names the target of this draft\n  do: add --target"):
        export(ExportOptions(bare, "huggingface"))
    folder, card = export(ExportOptions(bare, "huggingface", target=TargetPart(path="target")))
    assert folder == tmp_path / "bare-huggingface-bf16"
    assert card.proof.kept == ()
    text = (folder / "README.md").read_text()
    assert text.count("Not recorded") >= 2
    assert text.count("Not measured") >= 3
    assert not (folder / "recipe.yaml").exists()


def test_a_target_that_has_changed_is_another_one(done):
    """What the old one wrote says nothing about a draft for the new one, nor does its run."""
    config = json.loads(Path("target/config.json").read_text())
    Path("target/config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-4}))
    folder, card = export(ExportOptions(done, "huggingface"))
    assert card.proof.kept == ()
    assert [note.partition(":")[0] for note in card.notes] == ["trained for another target, or another revision of it"]
    text = (folder / "README.md").read_text()
    assert "Not recorded" in text
    assert card.notes[0] in text


@pytest.mark.slow
def test_a_licence_that_binds_the_draft_goes_with_it(done):
    """The naming rule in the card, the line in NOTICE, the target's own text of it."""
    Path("target/README.md").write_text("---\nlicense: llama3.1\n---\n# A target\n")
    Path("target/LICENSE").write_text("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT")
    folder, card = export(ExportOptions(done, "huggingface"))
    assert card.target_licence == "llama3.1"
    assert (folder / "LICENSE").read_bytes() == Path("target/LICENSE").read_bytes()
    assert (
        (folder / "NOTICE").read_text().startswith("Llama 3.1 is licensed under the Llama 3.1 Community License, Cop")
    )
    assert {"LICENSE", "NOTICE"} <= card.files.keys()
    text = (folder / "README.md").read_text()
    assert ModelCard(text).data.license == "llama3.1"
    for said in (
        "\n# Llama draft for target\n",
        "**Built with Llama.**",
        'must begin with "Llama"',
        "`LICENSE`",
    ):
        assert said in text
    assert "llama3.1, which applies to the draft" in shown(folder, card)


def test_the_licence_is_that_of_the_target_which_the_draft_was_trained_for(done):
    """Whatever target it is exported for."""
    text = (done / "resolved.yaml").read_text()
    (done / "resolved.yaml").write_text(re.sub("(?m)^  licence: null.*$", "  licence: gemma", text))
    origin, other = origin_of(done), TargetPart(path="target", licence="mit")
    assert licence_of(origin, target_card(origin, other)) == "gemma"
    bare = Origin(origin.folder, None)
    assert licence_of(bare, target_card(bare, other)) == "mit"
    assert licence_of(bare, target_card(bare, TargetPart(path="target"))) is None


@pytest.mark.slow
def test_what_is_not_the_draft_is_not_finished(done, monkeypatch):
    def spoilt(model_folder, destination, weights):
        FORMATS["huggingface"].write(model_folder, destination, weights)
        weights = load_file(destination / "model.safetensors")
        save_file(
            {name: weight.flip(0) for name, weight in weights.items()},
            destination / "model.safetensors",
            {"format": "pt"},
        )
        return []

    monkeypatch.setitem(FORMATS, "spoilt", FORMATS["huggingface"]._replace(write=spoilt))
    with pytest.raises(ProofError, match="runs/tiny/align/model, weights bf16: of .* tokens"):
        export(ExportOptions(done, "spoilt"))
    assert not (done / "export" / "spoilt-bf16").exists()
    assert not list((done / "export").glob("*"))


def test_a_draft_that_does_not_fit(done):
    with pytest.raises(VocabularyMismatch, match=r"vocab_size: target 8,192[\s\S]*\n  do: fastdraft check demo .*--re"):
        export(ExportOptions(done, "huggingface", target=TargetPart(path="demo")))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (ExportOptions(RUN, "onnx"), "no format `onnx`\n  do: choose one of huggingface"),
        (ExportOptions(RUN, "huggingface", "int3"), "has no weights `int3`\n  do: choose one of bf16"),
        (ExportOptions(Path("target"), "huggingface"), "names the target of this draft"),
        (ExportOptions(Path("text"), "huggingface"), "no draft at text"),
        (ExportOptions(RUN, "huggingface", out=Path("text")), "text exists already\n  do: remove it"),
        (ExportOptions(RUN, "huggingface", out=Path("recipe.yaml/a/b")), "--out"),
        (ExportOptions(RUN, "huggingface", out=Path("/proc/x")), "/proc/x is not a writable folder"),
    ],
)
def test_bad_input(done, options, said):
    with pytest.raises((ExportError, RunError), match=said) as caught:
        export(options)
    assert caught.value.exit_code == 2


def spoil(folder: Path, name: str, change) -> None:
    stored = {key: value.clone() for key, value in load_file(folder / "model.safetensors").items()}
    save_file(stored | {name: change(stored[name])}, folder / "model.safetensors")


def edit(path: Path, **keys: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


NORM = "model.norm.weight"
DAMAGED_DRAFTS = {
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "weights in .* cannot be loaded"),
    "cut short": (lambda folder: os.truncate(folder / "model.safetensors", 999), "model.safetensors cannot be read"),
    "not finite": (lambda folder: spoil(folder, NORM, lambda w: w * math.nan), f"not finite, first {NORM}"),
    "whole numbers": (lambda folder: spoil(folder, NORM, lambda w: w.long()), f"stores {NORM} as I64"),
    "another shape": (lambda folder: spoil(folder, NORM, lambda w: w[:-1].clone()), f"another shape .* {NORM}"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer can be read"),
    "no layers": (lambda folder: edit(folder / "config.json", num_hidden_layers=0), "num_hidden_layers is 0"),
    "no context": (lambda folder: edit(folder / "config.json", max_position_embeddings=1), "context of 1 tokens"),
    "another family": (lambda folder: edit(folder / "config.json", model_type="riddle"), "of family `riddle`"),
    "generation": (lambda folder: (folder / "generation_config.json").write_text("["), "generation_config.json cannot"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGED_DRAFTS.values(), ids=DAMAGED_DRAFTS.keys())
def test_a_damaged_draft_is_refused_and_nothing_is_written(tiny, monkeypatch, damage, message):
    monkeypatch.chdir(tiny)
    shutil.copytree("target", "draft")
    damage(Path("draft"))
    with pytest.raises(UserError, match="(?s)draft.*\n  do: ") as caught:
        export(ExportOptions(Path("draft"), "huggingface", target="./target", out=Path("out")))
    assert re.search(message, str(caught.value))
    assert not list(Path().glob("out*"))


@pytest.mark.parametrize("damage", [lambda f: (f / "tokenizer.json").unlink(), lambda f: (f / "config.json").unlink()])
def test_a_damaged_target_is_refused(tiny, monkeypatch, damage):
    monkeypatch.chdir(tiny)
    shutil.copytree("target", "draft")
    damage(Path("target"))
    with pytest.raises(TargetError, match=r"(?s)(tokenizer|config.json).* target.*\n  do: "):
        export(ExportOptions(Path("draft"), "huggingface", target="./target", out=Path("out")))


def test_a_missing_extra_is_reported_before_any_work(done, monkeypatch):
    monkeypatch.setitem(FORMATS, "gguf", FORMATS["gguf"]._replace(modules=(("no_such_module", "llamacpp"),)))
    with pytest.raises(MissingExtra, match=r"no_such_module .*\n  do: pip install 'fastdraft\[llamacpp\]'"):
        export(ExportOptions(done, "gguf"))


def test_a_draft_is_found_by_its_run_its_phase_or_itself(done):
    wanted = done / "align" / "model"
    assert [origin_of(given).folder for given in (done, done / "align", wanted)] == [wanted] * 3
    assert origin_of(done / "pretrain").phase == "pretrain"
    assert origin_of(Path("target")).run is None


def test_a_hubs_target_is_known_by_the_runs_card(done, monkeypatch):
    """Nothing is fetched to describe it; of a folder the files are looked at again."""
    text = (done / "resolved.yaml").read_text().replace("path: target ", "path: some/target ")
    (done / "resolved.yaml").write_text(text)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    origin = origin_of(done)
    assert target_card(origin, TargetPart(path="some/target")) == read_card(done / "target", TargetCard)
    assert target_card(origin, TargetPart(path="target")).digest == read_card(done / "target", TargetCard).digest
    with pytest.raises(TargetError, match="other/target is not a local folder"):
        target_card(origin, TargetPart(path="other/target"))


@pytest.fixture
def on_the_hub(done, monkeypatch) -> TargetPart:
    """The target as the hub's cache holds it, at the tag v1; on its branch it has another vocabulary by now."""
    model = Path("hub/models--some--target")
    for name, commit in (("v1", FIRST), ("main", SECOND)):
        shutil.copytree("target", model / "snapshots" / commit)
        (model / "refs").mkdir(exist_ok=True)
        (model / "refs" / name).write_text(commit)
    config = json.loads(Path("target/config.json").read_text())
    later = json.dumps(config | {"vocab_size": config["vocab_size"] + 64})
    (model / "snapshots" / SECOND / "config.json").write_text(later)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(model.parent.absolute()))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return TargetPart(path="some/target")


@pytest.mark.slow
def test_a_draft_is_held_against_the_revision_that_is_named(done, on_the_hub):
    with pytest.raises(VocabularyMismatch, match="vLLM"):
        export(ExportOptions(done, "huggingface", target=on_the_hub))
    folder, card = export(ExportOptions(done, "huggingface", target=on_the_hub.model_copy(update={"revision": "v1"})))
    assert card.target_revision == FIRST
    assert f"- Target: `some/target`, revision `{FIRST}`" in (folder / "README.md").read_text()


def test_a_branch_that_has_moved_on_is_read_where_the_run_has_read_it(on_the_hub):
    assert at_commit(on_the_hub, FIRST).revision == FIRST
    assert at_commit(on_the_hub, SECOND) == on_the_hub
    assert at_commit(TargetPart(path="target"), None).revision is None


def test_the_best_gamma_is_best_in_the_mean(done):
    results = [r for r in read_card(done / "evaluate", EvaluationCard).results if r.stage == "align"]
    means = {gamma: sum(at.mbsu.value for r in results for at in r.gammas if at.gamma == gamma) for gamma in (1, 2, 3)}
    assert best_gamma(results) == max(means, key=means.get)
    assert best_gamma([]) == 4


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"objective": "forward_kl"}, "| forward_kl |"),
        ({"objective": {"forward_kl": 0.5, "total_variation": 0.25}}, "| forward_kl 0.5, total_variation 0.25 |"),
        ({"objective": "forward_kl", "teacher_fraction": 0.25}, "| forward_kl; of 25% of the rows |"),
        (
            {"objective": "forward_kl", "teacher": "/home/me/sibling", "teacher_fraction": 0.1},
            "| forward_kl; distribution of sibling; of 10% of the rows |",
        ),
    ],
)
def test_a_card_reports_what_was_learned(done, asked, said):
    """A teacher by a name that says nothing of the machine."""
    origin = origin_of(done)
    known = evidence(origin, target_of(origin), target_card(origin, target_of(origin)))
    phase = known.phases["align"]
    part = type(phase.part).model_validate(phase.part.model_dump() | asked)
    text = "\n".join(training(replace(known, phases={"align": phase._replace(part=part)})))
    assert said in text
    assert "/home" not in text


def test_names_that_mean_something_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some" / "model").mkdir(parents=True)
    assert is_hub_id("meta-llama/Llama-3.1-8B")
    assert [is_hub_id(name) for name in ("demo", "./a", "/a/b", "some/model", "a/b/c")] == [False] * 5
    assert name_of("some/model") == "model"
