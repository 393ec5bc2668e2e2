"""The report: everything of a finished run, what there is of another, several side by side; texts are never obeyed."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("plotly", reason="plotly is not installed: pip install 'fastdraft[report]'")

from fastdraft.config import TargetPart
from fastdraft.config.resolve import resolve
from fastdraft.evaluate.marked_tokens import read_acceptances
from fastdraft.models.run_context import RunContext
from fastdraft.models.target import digest
from fastdraft.pipeline.stages import STAGES
from fastdraft.report import comparison, figures, page
from fastdraft.report.costs import costs
from fastdraft.report.formatting import in_line, visible
from fastdraft.report.read import read
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
    """A page without the library and our own script: what was made of the run."""
    return re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)


# One run.


def test_a_finished_run_is_reported_whole(run):
    html = page.one(read(run))
    assert len(html.encode()) < page.MOST_BYTES
    body = without_scripts(html)
    assert "not finished" not in body
    assert "Not measured yet" not in body
    for text in (
        "it pays on",
        "text, greedy",
        "rows, T = 1",
        "Phi-3-mini, 50M",
        "gamma: drafted tokens",
        "resolved.yaml",
    ):
        assert text in body
    for part in ("evaluate.verify_gamma", "pretrain.train_tokens", "target.path"):
        assert f">{part}<" in body
    assert re.findall(r'data-figure="([^"]+)"', body) == [figure.name for figure in figures.of_run(read(run))]


def test_a_page_asks_for_nothing(run):
    body = without_scripts(page.one(read(run)))
    assert "default-src &#39;none&#39;" in body
    places = re.findall(r'(?:src|href|action|data)="([^"]*)"', body)
    assert len(places) >= 10
    assert [place for place in places if not place.startswith("#")] == []
    assert not re.search(r"@import|url\(", body)


def test_figures_are_of_the_cards(run):
    account = read(run)
    drawn = {figure.name: figure for figure in figures.of_run(account)}
    assert {"block-efficiency", "position", "mbsu", "loss", "efficiency", "throughput"} <= drawn.keys()
    for line, result in zip(drawn["block-efficiency"].lines, sorted(account.last, key=lambda r: r.task), strict=True):
        assert list(line.x) == [at.gamma for at in result.gammas]
        assert list(line.y) == [at.block_efficiency.value for at in result.gammas]
        assert list(line.low) == [at.block_efficiency.low for at in result.gammas]
    last = next(line for line in drawn["loss"].lines if line.name == "align, training")
    total = sum(draft.trained_tokens for draft in account.drafts.values())
    assert last.x[-1] == pytest.approx(total / 1e6)
    assert account.metrics["align"][-1]["loss_nats"] == last.y[-1]


def test_a_long_line_is_thinned_to_its_means():
    numbers = [float(number) for number in range(figures.POINTS * 7)]
    x, y = figures._thinned(numbers, [number % 7 for number in numbers])
    assert len(x) == len(y) == figures.POINTS
    assert x[0] == 3
    assert y == [3.0] * figures.POINTS


def test_the_verdict_is_of_one_gamma(run):
    account = read(run)
    told = verdict(account)
    assert len(told.rows) == len(account.last) == 4
    for row, result in zip(told.rows, sorted(account.last, key=lambda r: (r.task, r.temperature)), strict=True):
        at = next(at for at in result.gammas if at.gamma == told.gamma)
        assert row.mbsu == at.mbsu
        assert row.answer == ("yes" if at.mbsu.low > 1 else "no" if at.mbsu.high < 1 else "open")
    assert told.expected.startswith(f"{min(row.mbsu.value for row in told.rows):.2f}")


def test_costs_are_the_cards(run):
    account = read(run)
    found = costs(account)
    assert [cost.stage for cost in found] == NAMES
    assert [cost.seconds for cost in found] == [step.card.cost.seconds for step in account.steps]
    trained = [cost.stage for cost in found if cost.flops]
    assert trained == ["pretrain", "continue", "align"]


def with_joules(run, joules):
    """A run whose cards say what their stages took; stages that are not named were not measured."""
    for name in NAMES:
        edit(run / name / "card.json", lambda card, name=name: card["cost"].update(joules=joules.get(name)))
    return read(run)


def cells(html, section):
    """The texts of each line of a section's table."""
    part = html.split(f'<section id="{section}">')[1].partition("</table>")[0]
    lines = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line, flags=re.DOTALL) for line in part.split("<tr")[1:]]
    return [[re.sub(r"<[^>]+>", "|", cell) for cell in line] for line in lines]


def test_energy_stands_beside_the_stages_that_know_it(run):
    joules = {"pretrain": {"cpu": 40_000.0, "cuda": 32_000.0}, "align": {"cpu": None, "cuda": 7.5e6}}
    account = with_joules(run, joules)
    html = page.one(account)
    heads, *lines = cells(html, "cost")
    place = heads.index("energy")
    found = {line[0]: line[place] for line in lines}
    assert found == {
        **dict.fromkeys(NAMES, "–||"),
        **{"pretrain": "20.0 Wh|cpu, cuda|", "align": "2.1 kWh|cuda, not cpu|"},
        "all": "2.1 kWh|cpu in 1 of 7 stages, cuda in 2 of 7 stages|",
    }
    assert all(len(line) == len(heads) for line in lines)
    assert "Energy is what the machine’s counters told" in html
    assert "Energy: not known" not in html


@pytest.mark.parametrize(
    ("joules", "why"),
    [
        ({}, "Energy: not known, it was not recorded."),
        ({"align": {"cpu": None}}, "Energy: not known, the machine’s energy counters could not be read."),
    ],
)
def test_where_no_energy_is_known_the_report_reports_why(run, joules, why):
    account = with_joules(run, joules)
    for html, section in ((page.one(account), "cost"), (page.several([account, account], compact=True), "verdict")):
        assert why in html
        assert "energy" not in cells(html, section)[0]
        assert "counters told" not in html


def test_energy_of_several_runs(run, tmp_path):
    shutil.copytree(run, tmp_path / "dear")
    joules = {name: {"cpu": 1000.0} for name in NAMES}
    accounts = [with_joules(run, {}), with_joules(tmp_path / "dear", joules)]
    for compact in (False, True):
        html = page.several(accounts, compact)
        heads, *lines = cells(html, "verdict")
        assert [line[heads.index("energy")] for line in lines] == ["–||", "1.9 Wh|cpu|"]
        assert [len(line) for line in lines] == [len(heads)] * 2
        assert "counters told" in html


@pytest.mark.parametrize("stage", NAMES)
def test_an_unfinished_run_is_reported_as_far_as_it_is(run, stage):
    begun = NAMES[NAMES.index(stage) :]
    for name in begun[1:]:
        shutil.rmtree(run / name)
    (run / stage / "card.json").unlink()
    html = page.one(read(run))
    assert f"{stage} is begun" in html
    assert all(f"{name} is not begun" in html for name in begun[1:])
    assert "fastdraft run" in html


def test_cards_of_another_version_are_named(run):
    edit(run / "evaluate" / "card.json", lambda card: card.update(version=1))
    account = read(run)
    assert account.evaluation is None
    assert any("evaluation` of version 1, wanted" in note for note in account.notes)
    html = page.one(account)
    assert "of version 1" in html
    assert "evaluate is unreadable" in html


def test_a_run_from_before_texts_were_kept(run):
    for name in ("marked.json", "acceptances.npz"):
        (run / "evaluate" / name).unlink()
    html = page.one(read(run))
    assert "Not recorded in this run" in html
    assert "evaluate/card.json" in html


def test_metrics_that_a_kill_cut_are_read_to_there(run):
    path = run / "pretrain" / "metrics.jsonl"
    whole = read(run).metrics["pretrain"]
    path.write_text(
        path.read_text() + 'nonsense\n{"step": 9, "tokens": 9, "loss_nats": NaN, "name": "x"}\n{"step": 7, "tok'
    )
    assert read(run).metrics["pretrain"] == [*whole, {"step": 9, "tokens": 9}]


def test_no_text_is_obeyed(run):
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
    html = page.one(read(run))
    assert "<script>document" not in html
    assert "<img" not in html
    assert not set(html) & {"\x07", "\x1b", "\u202e"}
    assert html.count("&lt;script&gt;document.title=&#39;taken&#39;&lt;/script&gt;") >= 10
    assert "␇␛[31m⟨U+202E⟩abc" in html


def test_unseen_letters_are_seen():
    assert visible("a\n\tb\x00\r\x7f\ud800\u2028\u200b é東🙂") == "a⏎\n⇥\tb␀␍⟨U+007F⟩⟨U+D800⟩⟨U+2028⟩⟨U+200B⟩ é東🙂"
    assert [in_line(text) for text in ("  a b ", " ", "", "\n a")] == ["␣␣a b␣", "␣", "", "⏎ a"]


# Benches.


def bench(run, draft=None):
    """A record of the kind that `bench` leaves, for the run's last draft."""
    spread = {"value": 1.31, "low": 1.2, "high": 1.4}
    arm = {
        **{"arm": "draft", "gamma": 2, "milliseconds_a_token": spread, "first_token_milliseconds": spread},
        **{"speedup": spread, "tokens": 97, "drafted": 60, "block_efficiency": 1.6, "position_acceptance": [0.5, 0.2]},
        **{"predicted": {"block_efficiency": 1.6, "position_acceptance": [0.5, 0.2], "speedup": 1.33}},
        **{"equal_fraction": 1.0, "widest_gap": None},
    }
    none = arm | {"arm": "none", "gamma": 0, "predicted": None}
    model = {"path": "x", "parameters": 7, "weights": "fp32", "stand_in": None}
    ours = digest(TargetPart(path=str((run / "align" / "model").resolve())))
    return BenchResult.model_validate(
        {
            **{"engine": "transformers", "device": "cpu", "hardware": "a machine", "versions": {}, "command": "bench"},
            **{"target": model | {"digest": "t"}, "draft": model | {"digest": draft or ours}, "prompts": {"text": 3}},
            **{"max_new_tokens": 7, "repeats": 3, "keeps_distribution": True, "steps": [], "equality": None},
            "cells": [{"setting": "plain", "task": "text", "temperature": 0.0, "arms": [none, arm]}],
            "advice": {
                **{"pays": True, "setting": "plain", "gamma": 2, "speedup": 1.31, "option": "gamma=2"},
                "lines": ["Set gamma to 2."],
            },
        }
    ).model_dump_json()


def test_what_was_timed_is_shown_and_another_draft_is_not(run):
    (run / "bench").mkdir()
    (run / "bench" / "transformers-cpu.json").write_text(bench(run))
    (run / "bench" / "other.json").write_text(bench(run, draft="another"))
    (run / "bench" / "broken.json").write_text("{}")
    account = read(run)
    assert len(account.benches) == 1
    assert len(account.notes) == 2
    html = page.one(account)
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


# Several runs.


def test_a_run_against_itself_differs_in_nothing(run, tmp_path):
    shutil.copytree(run, tmp_path / "again")
    accounts = [read(run), read(tmp_path / "again")]
    rows = comparison.against_first(accounts, comparison.labels(accounts))
    assert len(rows) == 4
    for row in rows:
        assert (row.comparison.alpha.value, row.comparison.alpha.low, row.comparison.alpha.high) == (0, 0, 0)
        assert not row.comparison.best_mbsu.more_than_noise
    html = page.several(accounts, compact=False)
    assert "no more than noise" in html
    assert "In nothing but their names" in html


def test_differences_are_those_of_the_acceptances(run, tmp_path):
    shutil.copytree(run, tmp_path / "other")
    result = next(result for result in read(run).last if result.temperature > 0)
    path = tmp_path / "other" / "evaluate" / "acceptances.npz"
    halved(path)
    rows = comparison.against_first([read(run), read(tmp_path / "other")], ["a", "b"])
    row = next(row for row in rows if (row.task, row.temperature) == (result.task, result.temperature))
    accept, lengths = read_acceptances(run / "evaluate", result)[1]
    assert row.comparison.alpha.value == pytest.approx(-float(accept.sum() / lengths.sum()) / 2, abs=1e-6)
    assert row.comparison.alpha.more_than_noise


def halved(path):
    """Another draft, that is accepted half as often."""
    import numpy as np

    with np.load(path) as arrays:
        kept = {name: values / 2 if name.endswith("accept") else values for name, values in arrays.items()}
    np.savez(path, **kept)


def test_runs_that_cannot_be_paired_say_why(run, tmp_path):
    for name in ("old", "foreign", "other-task"):
        shutil.copytree(run, tmp_path / name)
    (tmp_path / "old" / "evaluate" / "acceptances.npz").unlink()
    edit(tmp_path / "other-task" / "evaluate" / "card.json", lambda card: [r.update(task="x") for r in card["results"]])
    import numpy as np

    path = tmp_path / "foreign" / "evaluate" / "acceptances.npz"
    with np.load(path) as arrays:
        kept = {name: values[::-1] if name.endswith("keys") else values for name, values in arrays.items()}
    np.savez(path, **kept)
    for name, why in (("old", "kept no acceptances"), ("foreign", "other completions"), ("other-task", "not measured")):
        rows = comparison.against_first([read(run), read(tmp_path / name)], ["a", "b"])
        assert rows
        assert all(row.comparison is None and why in row.why for row in rows)


def test_recipes_that_differ(run, tmp_path):
    shutil.copytree(run, tmp_path / "other")
    yaml = (tmp_path / "other" / "resolved.yaml").read_text()
    (tmp_path / "other" / "resolved.yaml").write_text(yaml.replace("seed: 11 ", "seed: 13 "))
    accounts = [read(run), read(tmp_path / "other")]
    assert comparison.differing(accounts) == [("seed", ("11", "13"))]
    assert resolve(tmp_path / "other" / "resolved.yaml").recipe.seed == 13


def test_many_runs_are_a_line_each(run):
    html = page.several([read(run, whole=False)] * 7, compact=True)
    assert html.count("<tr><th>") >= 7
    assert "data-figure=" not in html
    assert len(html) < 100_000  # without the library


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(RunError, match=r"no run at .*\n  do: "):
        read(tmp_path)


# The command.


@pytest.mark.slow
def test_the_command_writes_page_and_pictures(finished_run, fastdraft):
    ended = fastdraft("report", "runs/tiny", "--png", "pictures")
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[0] == "runs/tiny/report.html"
    drawn = [figure.name for figure in figures.of_run(read(finished_run / "runs" / "tiny"))]
    assert ended.out.splitlines()[1:] == [f"pictures/{name}.png" for name in drawn]
    assert all((finished_run / "pictures" / f"{name}.png").stat().st_size > 10_000 for name in drawn)
    again = fastdraft("run", "recipe.yaml")
    assert again.code == 0, again.err  # a page in the folder does not disturb the run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["runs/none"], "no run at runs/none"),
        (["runs/tiny", "runs/./tiny"], "given twice"),
        (["runs/tiny", "--out", "runs"], "--out: runs is a folder"),
        (["runs/tiny", "--png", "recipe.yaml"], "--png: recipe.yaml is a file"),
        (["runs/tiny"] * 1001, "found 1,001 runs, wanted 1,000 at most"),
    ],
)
def test_what_cannot_be_reported(finished_run, fastdraft, arguments, said):
    ended = fastdraft("report", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err
    assert "  do: " in ended.err
    assert not (finished_run / "runs" / "tiny" / "report.html").exists()


def test_a_target_that_is_gone_does_not_matter(run):
    assert RunContext(resolve(run / "resolved.yaml").recipe, run, torch.device("cpu")).target_card() == read(run).target
