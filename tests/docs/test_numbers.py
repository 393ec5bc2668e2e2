"""Figures that a page quotes are those of the page, the recipe or the calculation that they come from."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastdraft import init
from fastdraft.cli import app
from fastdraft.config.resolve import resolve

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CONFIGS = ROOT.parent / "shared" / "data" / "configs"
STAGES = ("pretrain", "continue", "align")
NUMBER = re.compile(r"(?<![\w.])\d*\.\d+|(?<![\w.])\d+(?![\w])")


def page(name: str) -> str:
    """A page on one line, so that a sentence can be searched for."""
    path = (ROOT if name == "README.md" else DOCS) / name
    return " ".join(path.read_text(encoding="utf-8").split())


def section(text: str, heading: str) -> str:
    """The part of a page under a heading that begins with these words."""
    start = text.index(f"\n{heading}")
    level = heading.partition(" ")[0]
    end = re.search(rf"\n#{{1,{len(level)}}} ", text[start + 1 :])
    return text[start : start + 1 + end.start()] if end else text[start:]


def rows(text: str, first: str) -> list[list[str]]:
    """The cells of the table rows whose first cell is this."""
    lines = [line for line in text.splitlines() if re.match(rf"\| `?{re.escape(first)}`? \|", line)]
    return [[cell.strip().strip("*") for cell in line.strip("| ").split("|")] for line in lines]


def value(cell: str) -> float:
    found = NUMBER.search(cell)
    assert found, cell
    return float(found[0])


def bounds_of(cell: str) -> tuple[float, float]:
    """The interval in a cell like `2.1 [1.9, 2.3]`."""
    low, high = re.findall(r"\d+\.\d+", cell.partition("[")[2])
    return float(low), float(high)


RESULTS = (DOCS / "results.md").read_text(encoding="utf-8")
DEMO = section(RESULTS, "## The demo: 0.67M draft")
KINDS = ("defaults", "f32 inference", "f32 inference and cache")
RATES = {stage: [value(cell) for cell in rows(DEMO, stage)[0][1:]] for stage in STAGES}  # greedy and T = 0.6 in turn


def short(number: float) -> str:
    """.405 for 0.405, as running text writes it."""
    return f"{number:.3f}".lstrip("0")


def test_acceptance_after_each_stage():
    code, text = ([RATES[stage][place] for stage in STAGES] for place in (1, 3))  # T = 0.6
    assert code == sorted(code)
    assert text == sorted(text)
    assert "{}, {}, {} on code at T = 0.6".format(*map(short, code)) in page("README.md")
    summary = page("results.md")
    assert "from {} to {} to {}, on text from {} to {} to {}".format(*map(short, code), *map(short, text)) in summary
    raised = "from {} to {} on code and from {} to {} on text"
    assert raised.format(*map(short, (*code[1:], *text[1:]))) in page("questions.md")


def test_greedy_completions_that_loop():
    loops = re.search(r"Of the greedy completions (\d+) % of code and (\d+) % of text loop", page("results.md"))
    assert loops
    alphas = rows(DEMO, "code, greedy")[0]
    for name in ("README.md", "results.md"):
        assert f"{loops[1]} % of the greedy completions of code and {loops[2]} % of text" in page(name)
        for cell in alphas[1:3]:
            assert short(value(cell)) in page(name)


def test_sampled_verification():
    """Real block efficiency relative to the one-pass figure, in this run and in the run before."""
    this, before = DEMO.split("### The recipe before")
    differences = []
    for part in (this, before):
        for task in ("code, T = 0.6", "text, T = 0.6"):
            (row,) = (row for row in rows(part, task) if row[1] == "-")
            differences.append(round(100 * (value(row[3]) / value(row[4]) - 1), 1))
            lows, highs = zip(*map(bounds_of, row[3:5]), strict=True)
            assert max(lows) <= min(highs), "the intervals overlap"
    assert differences[0] == differences[1] == 4.3
    assert differences[2:] == [-6.1, -11.0]
    assert "4.3 % above the one-pass figure on both tasks" in page("results.md")
    assert "6.1 % (code) and 11.0 % (text) below" in page("results.md")
    assert "4.3 % more tokens per target forward" in page("README.md")
    assert "6 and 11 % fewer" in page("README.md")


def test_speed_up_on_the_stand_in():
    stand_in = section(RESULTS, "## The packaged draft on a stand-in")
    best = {task: value(rows(stand_in, f"{task}, f32 inference")[0][-1]) for task in ("code", "text")}
    defaults = {task: value(rows(stand_in, f"{task}, defaults")[0][-1]) for task in ("code", "text")}
    assert f"{best['code']} times on code and {best['text']} on text" in page("results.md")
    assert f"{best['code']} times on code and {best['text']} on text" in page("README.md")
    assert f"{defaults['code']} and {defaults['text']} in the engine's defaults" in page("results.md")
    lookup = [value(rows(stand_in, f"{task}, {kind}")[0][2]) for task in ("code", "text") for kind in KINDS]
    assert f"{min(lookup)} to {max(lookup)} times" in page("choose.md")


@pytest.mark.parametrize("minutes", re.findall(r"\d+ min \d+ s", DEMO)[:1])
def test_the_duration_of_the_demo(minutes):
    for name in ("README.md", "memory.md"):
        assert minutes in page(name)


def test_memory_of_training():
    memory = (DOCS / "memory.md").read_text(encoding="utf-8")
    training = section(RESULTS, "## Training on a CPU")
    found = re.findall(r"\| \*\*FastDraft\*\* \|[^|]*\|[^|]*\| (\d+\.\d+) GB", training)
    assert len(found) == 6
    quoted = re.findall(r"\| (\d+\.\d+) GB \| (\d+\.\d+) GB \|", memory)
    assert [*zip(found[:3], found[3:], strict=True)] == quoted
    assert "17.07 GB" in training
    assert "17.07 GB where FastDraft needs 5.81" in page("memory.md")


def test_the_demo_draft_has_three_layers_and_two_heads():
    recipe = resolve(ROOT / "recipes" / "demo.yaml").recipe
    shape = init.shape_of(recipe.target, recipe.draft)
    assert (shape.layers, shape.heads, shape.parameters) == (3, 2, 672_192)
    assert "`recipes/demo.yaml` therefore has three" in page("plan.md")
    assert "three layers of two heads" in page("decisions/0007-alignment.md")


STANDS_FOR = {"Llama-3.1-8B-Instruct": "Llama-3.1-8B"}
SHIPPED = section((DOCS / "memory.md").read_text(encoding="utf-8"), "## The shipped recipes")
HOURS = {
    line.split("|")[1].strip(" `"): [cell.strip() for cell in line.strip("| ").split("|")]
    for line in SHIPPED.splitlines()
    if re.match(r"\| `[\w.-]+-\d+m`", line)
}


@pytest.mark.parametrize("name", HOURS)
def test_hours_and_disk_of_a_recipe(name):
    """`fastdraft plan` gives the figures of docs/memory.md, and the README repeats them."""
    target = resolve(ROOT / "recipes" / f"{name}.yaml").recipe.target.path.rpartition("/")[2]
    folder = CONFIGS / STANDS_FOR.get(target, target)
    if not folder.is_dir():
        pytest.skip(f"no configuration of {target} at ../shared/data/configs, next to the repository")
    (size,) = re.findall(rf"\| `{re.escape(name)}` \|.*\| ([\d.]+M) \|", (DOCS / "shapes.md").read_text())
    asked = ["plan", str(folder), "--recipe", str(ROOT / "recipes" / f"{name}.yaml"), "--params", size]
    result = CliRunner().invoke(app, [*asked, "--device", "h200", "--weights", "bf16", "--json"])
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    cost = {stage["stage"]: stage for stage in plan["stages"]}
    hours = [
        cost["pretrain"]["hours"] + cost["continue"]["hours"],
        cost["synthesize"]["hours"],
        cost["align"]["hours"],
        sum(stage["hours"] for stage in plan["stages"]),
        sum(stage["paper_hours"] for stage in plan["stages"]),
    ]
    _, memory, *quoted, disk = HOURS[name]
    assert value(memory) == pytest.approx(plan["target"]["bytes_at"]["bf16"] / 1e9, abs=0.051)
    assert [value(cell) for cell in quoted] == pytest.approx(hours, abs=0.06)
    assert value(disk) == pytest.approx(sum(stage["disk_bytes"] for stage in plan["stages"]) / 1e9, abs=0.6)
    readme = rows((ROOT / "README.md").read_text(encoding="utf-8"), name)
    for row in readme:
        assert (row[2], row[3], row[4]) == (size, quoted[3], memory)
    assert len(rows((ROOT / "README.md").read_text(encoding="utf-8"), "llama3.1-8b-150m")) == 1
