"""The report of finished, unfinished and several runs; all text is escaped."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

pytest.importorskip("plotly", reason="plotly is not installed: pip install 'fastdraft[report]'")

from fastdraft.config import TargetPart
from fastdraft.config.resolve import resolve
from fastdraft.evaluation.marked_tokens import read_acceptances
from fastdraft.models.pretrained import digest
from fastdraft.models.run_context import RunContext
from fastdraft.pipeline.stages import STAGES
from fastdraft.report import comparison, figures, page
from fastdraft.report.costs import costs
from fastdraft.report.formatting import in_line, visible
from fastdraft.report.run_data import read_run
from fastdraft.report.verdict import verdict
from fastdraft.results.bench import BenchResult
from fastdraft.system.errors import RunError

NAMES = [stage.name for stage in STAGES]
HOSTILE = "<script>document.title='taken'</script><img src=x onerror=alert(1)>\x07\x1b[31m\u202eabc"


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A finished run that the test may change."""
    shutil.copytree(finished / "runs" / "tiny", tmp_path / "tiny")
    return tmp_path / "tiny"


def edit(path, change):
    """Change a JSON file by a function of its content."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def without_scripts(html):
    """The page without plotly and report.js."""
    return re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)


# One run.


def test_a_finished_run_is_reported_whole(run):
    html = page.one(read_run(run))
    assert len(html.encode()) < page.MAX_BYTES
    body = without_scripts(html)
    assert "not finished" not in body
    assert "Not measured yet" not in body
    for text in (
        "it pays on",
        "text, greedy",
        "rows, T = 1",
        "Phi-3-mini, 50M",
        "gamma: drafted tokens per block",
        "resolved.yaml",
    ):
        assert text in body
    for part in ("evaluate.verify_gamma", "pretrain.train_tokens", "target.path"):
        assert f">{part}<" in body
    assert re.findall(r'data-figure="([^"]+)"', body) == [figure.name for figure in figures.of_run(read_run(run))]


def test_a_page_makes_no_request(run):
    body = without_scripts(page.one(read_run(run)))
    assert "default-src &#39;none&#39;" in body
    places = re.findall(r'(?:src|href|action|data)="([^"]*)"', body)
    assert len(places) >= 10
    assert [place for place in places if not place.startswith("#")] == []
    assert not re.search(r"@import|url\(", body)


def test_figures_show_the_numbers_of_the_cards(run):
    data = read_run(run)
    drawn = {figure.name: figure for figure in figures.of_run(data)}
    assert {"block-efficiency", "position", "mbsu", "loss", "efficiency", "throughput"} <= drawn.keys()
    for line, result in zip(
        drawn["block-efficiency"].lines, sorted(data.last_results, key=lambda r: r.task), strict=True
    ):
        assert list(line.x) == [at.gamma for at in result.gammas]
        assert list(line.y) == [at.block_efficiency.value for at in result.gammas]
        assert list(line.low) == [at.block_efficiency.low for at in result.gammas]
    last = next(line for line in drawn["loss"].lines if line.name == "align, training")
    total = sum(draft.trained_tokens for draft in data.drafts.values())
    assert last.x[-1] == pytest.approx(total / 1e6)
    assert data.metrics["align"][-1]["loss_nats"] == last.y[-1]


def test_a_long_line_is_thinned_to_its_means():
    numbers = [float(number) for number in range(figures.MAX_POINTS * 7)]
    x, y = figures._thinned(numbers, [number % 7 for number in numbers])
    assert len(x) == len(y) == figures.MAX_POINTS
    assert x[0] == 3
    assert y == [3.0] * figures.MAX_POINTS


def test_the_verdict_is_at_one_gamma(run):
    data = read_run(run)
    summary = verdict(data)
    assert len(summary.tasks) == len(data.last_results) == 4
    for row, result in zip(
        summary.tasks, sorted(data.last_results, key=lambda r: (r.task, r.temperature)), strict=True
    ):
        at = next(at for at in result.gammas if at.gamma == summary.gamma)
        assert row.mbsu == at.mbsu
        assert row.answer == ("yes" if at.mbsu.low > 1 else "no" if at.mbsu.high < 1 else "open")
    assert summary.expected.startswith(f"{min(row.mbsu.value for row in summary.tasks):.2f}")


def test_costs_are_those_of_the_cards(run):
    data = read_run(run)
    stage_costs = costs(data)
    assert [cost.stage for cost in stage_costs] == NAMES
    assert [cost.seconds for cost in stage_costs] == [stage.card.cost.seconds for stage in data.stages]
    trained = [cost.stage for cost in stage_costs if cost.flops]
    assert trained == ["pretrain", "continue", "align"]


def with_joules(run, joules):
    """The run with this energy in its cards; the energy of other stages was not measured."""
    for name in NAMES:
        edit(run / name / "card.json", lambda card, name=name: card["cost"].update(joules=joules.get(name)))
    return read_run(run)


def cells(html, section):
    """The cells of the first table of a section, by line; markup becomes |."""
    part = html.split(f'<section id="{section}">')[1].partition("</table>")[0]
    lines = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line, flags=re.DOTALL) for line in part.split("<tr")[1:]]
    return [[re.sub(r"<[^>]+>", "|", cell) for cell in line] for line in lines]


def test_energy_is_shown_for_the_stages_that_measured_it(run):
    joules = {"pretrain": {"cpu": 40_000.0, "cuda": 32_000.0}, "align": {"cpu": None, "cuda": 7.5e6}}
    data = with_joules(run, joules)
    html = page.one(data)
    heads, *lines = cells(html, "cost")
    column = heads.index("energy")
    assert {line[0]: line[column] for line in lines} == {
        **dict.fromkeys(NAMES, "–||"),
        **{"pretrain": "20.0 Wh|cpu, cuda|", "align": "2.1 kWh|cuda, not cpu|"},
        "all": "2.1 kWh|cpu in 1 of 8 stages, cuda in 2 of 8 stages|",
    }
    assert all(len(line) == len(heads) for line in lines)
    assert "Energy is read from the machine’s counters" in html
    assert "Energy: unknown" not in html


@pytest.mark.parametrize(
    ("joules", "why"),
    [
        ({}, "Energy: unknown, it was not recorded."),
        ({"align": {"cpu": None}}, "Energy: unknown, the machine’s energy counters could not be read."),
    ],
)
def test_the_report_gives_the_reason_if_no_energy_is_known(run, joules, why):
    data = with_joules(run, joules)
    for html, section in ((page.one(data), "cost"), (page.several([data, data], compact=True), "verdict")):
        assert why in html
        assert "energy" not in cells(html, section)[0]
        assert "Energy is read" not in html


def test_energy_of_several_runs(run, tmp_path):
    shutil.copytree(run, tmp_path / "measured")
    joules = {name: {"cpu": 1000.0} for name in NAMES}
    runs = [with_joules(run, {}), with_joules(tmp_path / "measured", joules)]
    for compact in (False, True):
        html = page.several(runs, compact)
        heads, *lines = cells(html, "verdict")
        assert [line[heads.index("energy")] for line in lines] == ["–||", "2.2 Wh|cpu|"]
        assert [len(line) for line in lines] == [len(heads)] * 2
        assert "Energy is read" in html


@pytest.mark.parametrize("stage", NAMES)
def test_an_unfinished_run_is_reported_up_to_its_last_stage(run, stage):
    begun = NAMES[NAMES.index(stage) :]
    for name in begun[1:]:
        shutil.rmtree(run / name)
    (run / stage / "card.json").unlink()
    html = page.one(read_run(run))
    assert f"{stage} is begun" in html
    assert all(f"{name} is not begun" in html for name in begun[1:])
    assert "fastdraft run" in html


def test_cards_of_another_version_become_notes(run):
    edit(run / "evaluate" / "card.json", lambda card: card.update(version=1))
    data = read_run(run)
    assert data.evaluation is None
    assert any("evaluation` of version 1, wanted" in note for note in data.notes)
    html = page.one(data)
    assert "of version 1" in html
    assert "evaluate is unreadable" in html


@pytest.mark.parametrize("prompts", [0, 11])
def test_a_disagreement_of_the_verification_is_shown_in_red(run, prompts):
    def disagree(card):
        (task, (first, *more)), *others = card["verified"].items()
        wrong = first | {"disagreements": ["31 <target> forwards"]}
        card["verified"] = {task: [wrong, *more], **dict(others)} if prompts else {}

    assert 'class="wrong"' not in page.one(read_run(run))
    edit(run / "evaluate" / "card.json", disagree)
    html = page.one(read_run(run))
    assert html.count('class="wrong"') == (2 if prompts else 0)
    assert ("greedy: 31 &lt;target&gt; forwards" in html) == ("<h3>Verification" in html) == bool(prompts)


def test_a_run_without_marked_texts(run):
    for name in ("marked.json", "acceptances.npz"):
        (run / "evaluate" / name).unlink()
    html = page.one(read_run(run))
    assert "Not recorded in this run" in html
    assert "evaluate/card.json" in html


def test_metrics_are_read_up_to_an_incomplete_line(run):
    path = run / "pretrain" / "metrics.jsonl"
    whole = read_run(run).metrics["pretrain"]
    path.write_text(
        path.read_text() + 'nonsense\n{"step": 9, "tokens": 9, "loss_nats": NaN, "name": "x"}\n{"step": 7, "tok'
    )
    assert read_run(run).metrics["pretrain"] == [*whole, {"step": 9, "tokens": 9}]


def test_hostile_text_is_escaped(run):
    def poison(content):
        for task in content["tasks"]:
            task["task"] = f"code{HOSTILE}"
            for text in task["best"]:
                text["prompt"], text["tokens"][0], text["proposed"][1] = HOSTILE, HOSTILE, HOSTILE
            task["rejected_tokens"][0]["text"] = HOSTILE

    edit(run / "evaluate" / "marked.json", poison)
    edit(run / "manifest.json", lambda content: content["commands"][0].update(command=HOSTILE, notes=[HOSTILE]))
    edit(run / "evaluate" / "card.json", lambda card: [result.update(task=HOSTILE) for result in card["results"]])
    yaml = (run / "resolved.yaml").read_text()
    (run / "resolved.yaml").write_text(yaml.replace("name: tiny ", f"name: '{HOSTILE}' "))
    html = page.one(read_run(run))
    assert "<script>document" not in html
    assert "<img" not in html
    assert not set(html) & {"\x07", "\x1b", "\u202e"}
    assert html.count("&lt;script&gt;document.title=&#39;taken&#39;&lt;/script&gt;") >= 10
    assert "␇␛[31m⟨U+202E⟩abc" in html


def test_invisible_characters_become_visible():
    assert visible("a\n\tb\x00\r\x7f\ud800\u2028\u200b é東🙂") == "a⏎\n⇥\tb␀␍⟨U+007F⟩⟨U+D800⟩⟨U+2028⟩⟨U+200B⟩ é東🙂"
    assert [in_line(text) for text in ("  a b ", " ", "", "\n a")] == ["␣␣a b␣", "␣", "", "⏎ a"]


# Benches.


def bench(run, draft=None):
    """A bench result of the run's last draft, or of the draft with this digest."""
    spread = {"value": 1.31, "low": 1.2, "high": 1.4}
    arm = {
        **{"arm": "draft", "gamma": 2, "milliseconds_a_token": spread, "first_token_milliseconds": spread},
        **{"speedup": spread, "tokens": 97, "drafted": 60, "block_efficiency": 1.6, "position_acceptance": [0.5, 0.2]},
        **{"predicted": {"block_efficiency": 1.6, "position_acceptance": [0.5, 0.2], "speedup": 1.33}},
        **{"equal_fraction": 1.0, "widest_gap": None},
    }
    none = arm | {"arm": "none", "gamma": 0, "predicted": None}
    model = {"path": "x", "parameters": 7, "weights": "fp32", "stand_in": None}
    last_draft = digest(TargetPart(path=str((run / "align" / "model").resolve())))
    return BenchResult.model_validate(
        {
            **{"engine": "transformers", "device": "cpu", "hardware": "a machine", "versions": {}, "command": "bench"},
            **{
                "target": model | {"digest": "t"},
                "draft": model | {"digest": draft or last_draft},
                "prompts": {"text": 3},
            },
            **{"max_new_tokens": 7, "repeats": 3, "keeps_distribution": True, "steps": [], "equality": None},
            "cells": [{"setting": "plain", "task": "text", "temperature": 0.0, "arms": [none, arm]}],
            "advice": {
                **{"pays": True, "setting": "plain", "gamma": 2, "speedup": 1.31, "option": "gamma=2"},
                "lines": ["Set gamma to 2."],
            },
        }
    ).model_dump_json()


def test_benches_of_the_last_draft_are_shown_and_others_are_not(run):
    (run / "bench").mkdir()
    (run / "bench" / "transformers-cpu.json").write_text(bench(run))
    (run / "bench" / "other.json").write_text(bench(run, draft="another"))
    (run / "bench" / "broken.json").write_text("{}")
    data = read_run(run)
    assert len(data.benches) == 1
    assert len(data.notes) == 2
    html = page.one(data)
    for text in (
        "1.31×",
        "Measured in transformers (cpu): it pays.",
        "Set gamma to 2.",
        "measured-transformers-cpu",
        "no draft",
        "[1.20, 1.40]",
    ):
        assert text in html
    assert "Not measured in any engine" not in html


# Damaged files.

RUBBISH = (
    st.none()
    | st.booleans()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from([[], {}, [{}], "0" * 5000, HOSTILE, 0, -1])
)


def places(content, path=()):
    """The path of every value in a JSON document."""
    yield path
    children = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


def with_value(content, path, value):
    """The document with another value at a path."""
    if not path:
        return value
    copy = content.copy()
    copy[path[0]] = with_value(content[path[0]], path[1:], value)
    return copy


def test_a_damaged_file_never_stops_the_report(finished, tmp_path):
    run = tmp_path / "tiny"
    shutil.copytree(finished / "runs" / "tiny", run)
    (run / "bench").mkdir()
    (run / "bench" / "bench.json").write_text(bench(run))
    files = [
        *run.glob("*/card.json"),
        run / "manifest.json",
        run / "evaluate" / "marked.json",
        run / "bench/bench.json",
    ]
    documents = {file: json.loads(file.read_text()) for file in sorted(files)}
    assert len(files) == len(NAMES) + 3

    @settings(derandomize=True, deadline=None, database=None, max_examples=25, phases=[Phase.generate])
    @given(st.data())
    def any_damage_becomes_a_note(data):
        file = data.draw(st.sampled_from(sorted(documents)))
        document = documents[file]
        place = data.draw(st.sampled_from(sorted(places(document), key=repr)))
        damaged = json.dumps(with_value(document, place, data.draw(RUBBISH)))
        cut = data.draw(st.sampled_from([None, None, None, 0, len(damaged) // 2]))
        file.write_text(damaged[:cut])
        try:
            html = page.one(read_run(run))
        finally:
            file.write_text(json.dumps(document))
        assert "<img src=x" not in html

    any_damage_becomes_a_note()


# Several runs.


def test_a_run_against_itself_differs_in_nothing(run, tmp_path):
    shutil.copytree(run, tmp_path / "again")
    runs = [read_run(run), read_run(tmp_path / "again")]
    rows = comparison.differences(runs, comparison.labels(runs))
    assert len(rows) == 4
    for row in rows:
        assert (row.comparison.alpha.value, row.comparison.alpha.low, row.comparison.alpha.high) == (0, 0, 0)
        assert not row.comparison.best_mbsu.more_than_noise
    html = page.several(runs, compact=False)
    assert "no more than noise" in html
    assert "Only in their names" in html


def test_differences_come_from_the_acceptances(run, tmp_path):
    shutil.copytree(run, tmp_path / "other")
    result = next(result for result in read_run(run).last_results if result.temperature > 0)
    path = tmp_path / "other" / "evaluate" / "acceptances.npz"
    halve(path)
    rows = comparison.differences([read_run(run), read_run(tmp_path / "other")], ["a", "b"])
    row = next(row for row in rows if (row.task, row.temperature) == (result.task, result.temperature))
    accept, lengths = read_acceptances(run / "evaluate", result)[1]
    assert row.comparison.alpha.value == pytest.approx(-float(accept.sum() / lengths.sum()) / 2, abs=1e-6)
    assert row.comparison.alpha.more_than_noise


def halve(path):
    """Make it another draft, accepted half as often."""
    import numpy as np

    with np.load(path) as arrays:
        arrays_kept = {name: values / 2 if name.endswith("accept") else values for name, values in arrays.items()}
    np.savez(path, **arrays_kept)


def test_runs_that_cannot_be_paired_give_a_reason(run, tmp_path):
    for name in ("old", "foreign", "other-task"):
        shutil.copytree(run, tmp_path / name)
    (tmp_path / "old" / "evaluate" / "acceptances.npz").unlink()
    edit(tmp_path / "other-task" / "evaluate" / "card.json", lambda card: [r.update(task="x") for r in card["results"]])
    import numpy as np

    path = tmp_path / "foreign" / "evaluate" / "acceptances.npz"
    with np.load(path) as arrays:
        arrays_kept = {name: values[::-1] if name.endswith("keys") else values for name, values in arrays.items()}
    np.savez(path, **arrays_kept)
    for name, why in (("old", "kept no acceptances"), ("foreign", "other completions"), ("other-task", "not measured")):
        rows = comparison.differences([read_run(run), read_run(tmp_path / name)], ["a", "b"])
        assert rows
        assert all(row.comparison is None and why in row.why for row in rows)


def test_recipes_that_differ(run, tmp_path):
    shutil.copytree(run, tmp_path / "other")
    yaml = (tmp_path / "other" / "resolved.yaml").read_text()
    (tmp_path / "other" / "resolved.yaml").write_text(yaml.replace("seed: 11 ", "seed: 13 "))
    runs = [read_run(run), read_run(tmp_path / "other")]
    assert comparison.recipe_differences(runs) == [("seed", ("11", "13"))]
    assert resolve(tmp_path / "other" / "resolved.yaml").recipe.seed == 13


def test_many_runs_get_one_line_each(run):
    html = page.several([read_run(run, cards_only=True)] * 7, compact=True)
    assert html.count("<tr><th>") >= 7
    assert "data-figure=" not in html
    assert len(html) < 100_000  # without the library


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(RunError, match=r"no run at .*\n  do: "):
        read_run(tmp_path)


# The command.


@pytest.mark.slow
def test_the_command_writes_a_page_and_pictures(finished_run, fastdraft):
    ended = fastdraft("report", "runs/tiny", "--png", "pictures")
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[0] == "runs/tiny/report.html"
    drawn = [figure.name for figure in figures.of_run(read_run(finished_run / "runs" / "tiny"))]
    assert ended.out.splitlines()[1:] == [f"pictures/{name}.png" for name in drawn]
    assert all((finished_run / "pictures" / f"{name}.png").stat().st_size > 10_000 for name in drawn)
    again = fastdraft("run", "recipe.yaml")
    assert again.code == 0, again.err  # the page in the folder does not change the run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/none"], "no run at runs/none"),
        (["runs/tiny", "runs/./tiny"], "named twice"),
        (["runs/tiny", "--out", "runs"], "--out: runs is a folder"),
        (["runs/tiny", "--png", "recipe.yaml"], "--png: recipe.yaml is a file"),
        (["runs/tiny"] * 1001, "found 1,001 runs, wanted at most 1,000"),
    ],
)
def test_invalid_arguments_are_refused(finished_run, fastdraft, arguments, message):
    ended = fastdraft("report", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err
    assert "  do: " in ended.err
    assert not (finished_run / "runs" / "tiny" / "report.html").exists()


def test_the_target_card_is_read_from_the_run(run):
    assert (
        RunContext(resolve(run / "resolved.yaml").recipe, run, torch.device("cpu")).target_card()
        == read_run(run).target
    )
