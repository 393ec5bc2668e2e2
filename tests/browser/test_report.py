"""The report in a real browser: no errors, no requests, drawn charts, working tabs and tooltips."""

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("plotly", reason="plotly is not installed: pip install 'fastdraft[report]'")

from fastdraft.report import page as pages
from fastdraft.report.run_data import read_run

pytestmark = pytest.mark.slow

HOSTILE = "</i><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">\x07"


@pytest.fixture(scope="module")
def report(finished, tmp_path_factory) -> Path:
    """The page of a finished run with hostile texts."""
    folder = tmp_path_factory.mktemp("report")
    run = shutil.copytree(finished / "runs" / "tiny", folder / "tiny")
    texts = json.loads((run / "evaluate" / "marked.json").read_text())
    first = texts["tasks"][0]["best"][0]
    first["prompt"] = first["tokens"][1] = first["proposed"][2] = HOSTILE
    (run / "evaluate" / "marked.json").write_text(json.dumps(texts))
    (folder / "report.html").write_text(pages.one(read_run(run)), encoding="utf-8")
    return folder / "report.html"


def opened(tab, report):
    """A tab with the report in it, all charts drawn."""
    tab.page.goto(report.as_uri())
    tab.page.wait_for_function("document.documentElement.dataset.drawn === 'yes'")
    return tab


@pytest.fixture(scope="module")
def desktop(open_tab, report):
    return opened(open_tab(1280), report)


def test_there_are_no_errors_and_no_requests(desktop, report):
    assert desktop.requests == [report.as_uri()]
    assert desktop.errors == []


def test_the_guard_sees_errors_and_requests(open_tab, report, tmp_path):
    """The content security policy blocks an injected script and an injected picture."""
    bad = tmp_path / "bad.html"
    injected = "<script>document.title='taken'</script><img src='http://127.0.0.1:9/x.png'><h1>"
    bad.write_text(report.read_text(encoding="utf-8").replace("<h1>", injected, 1), encoding="utf-8")
    tab = opened(open_tab(), bad)
    assert len(tab.errors) >= 2
    assert all("Content Security Policy" in error for error in tab.errors)
    assert tab.page.title() != "taken"


def test_hostile_text_is_escaped(desktop):
    assert desktop.page.title() == "tiny"
    shown = desktop.page.locator(".toks").first.text_content()
    assert shown.count("<script>document.title='taken'</script>") == 2
    assert "␇" in shown
    assert desktop.page.locator(".toks img, .toks script").count() == 0


def test_every_chart_is_drawn(desktop):
    names = desktop.page.eval_on_selector_all(".plot", "all => all.map(each => each.dataset.figure)")
    assert len(names) >= 5
    lines = desktop.page.eval_on_selector_all(
        ".plot", "all => all.map(each => each.querySelectorAll('.scatterlayer .trace path').length)"
    )
    assert all(lines), dict(zip(names, lines, strict=True))


def visible_texts(page):
    return page.locator("#texts .toks:visible")


def test_tabs_switch_the_shown_texts(desktop):
    page = desktop.page
    texts = page.locator("#texts")
    best = visible_texts(page).first.text_content()
    for kind in ("typical", "worst"):
        texts.get_by_role("tab", name=kind, exact=True).locator("visible=true").click()
        assert texts.locator(f"[role=tab][aria-selected=true]:visible >> text={kind}").count() == 1
    assert visible_texts(page).count() == 3
    assert visible_texts(page).first.text_content() != best
    tasks = texts.locator(".tabs").first.get_by_role("tab")
    assert tasks.count() == 4
    heading = texts.locator("h3:visible").text_content()
    tasks.nth(1).click()
    assert texts.locator("h3:visible").text_content() != heading
    tasks.nth(1).press("ArrowLeft")
    assert texts.locator("h3:visible").text_content() == heading
    texts.get_by_role("tab", name="best", exact=True).locator("visible=true").click()


def test_a_tooltip_shows_the_proposal_of_the_draft_by_pointer_and_by_key(desktop):
    page, tip = desktop.page, desktop.page.locator("#tip")
    text = visible_texts(page).nth(1)
    assert tip.is_hidden()
    text.locator("i").nth(3).hover()
    tip.wait_for(state="visible")
    assert "(probability " in tip.text_content()
    page.mouse.move(1, 1)
    tip.wait_for(state="hidden")
    text.focus()
    text.press("ArrowRight")
    first = tip.text_content()
    assert first.split(":")[0] in ("accepted", "corrected", "bonus")
    assert text.locator("i.on").count() == 1
    text.press("ArrowRight")
    assert text.locator("i").nth(1).get_attribute("class").split()[-1] == "on"
    text.press("Escape")
    assert tip.is_hidden()


def test_marks_differ_by_more_than_colour(desktop):
    style = "each => { const s = getComputedStyle(each); return [s.textDecorationLine, s.textDecorationStyle]; }"
    styles = {mark: desktop.page.locator(f".legend i.{mark}").evaluate(style) for mark in "acb"}
    assert len({tuple(each) for each in styles.values()}) == 3


def test_the_recipe_can_hide_defaults(desktop):
    page = desktop.page
    page.locator("#recipe summary").filter(has_text="target").click()
    rows = page.locator("#recipe tbody tr:visible")
    before = rows.count()
    page.locator("#only-set").check()
    assert 0 < page.locator("#recipe tbody tr.set:visible").count() == rows.count()
    page.locator("#only-set").uncheck()
    assert rows.count() > before


def test_a_chart_shows_its_values_under_the_pointer(desktop):
    page = desktop.page
    chart = page.locator(".plot").first
    chart.scroll_into_view_if_needed()
    chart.locator(".nsewdrag").first.hover()
    page.locator(".plot .hoverlayer text", has_text="[").first.wait_for()


@pytest.fixture(scope="module")
def phone(open_tab, report):
    return opened(open_tab(390, 844), report)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_has_no_sideways_scrolling(phone, scheme):
    page = phone.page
    page.emulate_media(color_scheme=scheme)
    wide, high = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
    assert wide == 390
    assert high > 3000
    outside = page.eval_on_selector_all(
        "section, figure, .toks, .tile, pre, p, .wide", "all => all.filter(e => e.getBoundingClientRect().right > 391)"
    )
    assert outside == []
    light = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(246, 247, 249)"
    assert light == (scheme == "light")
    assert phone.errors == []


def test_charts_take_the_colours_of_the_scheme(phone):
    page, colors = phone.page, {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        ink = page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--s0').trim()")
        drawn = "document.querySelector('.plot').data.find(trace => trace.showlegend !== false).line.color"
        page.wait_for_function(f"{drawn} === '{ink}'")
        colors[scheme] = ink
    assert colors["light"] != colors["dark"]


def test_print_shows_every_text_in_light_colours(phone):
    page = phone.page
    page.emulate_media(color_scheme="dark")
    texts = page.locator("#texts .toks")
    assert texts.locator("visible=true").count() < texts.count()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert texts.locator("visible=true").count() == texts.count()
    assert page.locator("nav").is_hidden()
    assert page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--ink')").strip() == "#1b2027"
    assert page.locator("details:not([open])").count() == 0
