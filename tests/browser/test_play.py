"""The playground in a real browser: both sides are shown, and the page stays usable after errors."""

import pytest

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'fastdraft[play]'")

from gradio_client import Client

from fastdraft.config import TargetPart
from fastdraft.models import pretrained
from fastdraft.play.engine_transformers import Transformers
from fastdraft.play.page import LOOPBACK, MAX_PROMPT_CHARACTERS, Pair, serve
from fastdraft.system.errors import PlayError

# gradio uses options that pandas has deprecated.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*(no_silent_downcasting|copy keyword)")]

PROMPT = "def read_lines(path):\n"
CONTEXT = 512
HOSTILE = "<script>document.title='taken'</script><b>x</b>"
EQUAL = "The texts are equal, token for token."


class Fallible(Transformers):
    """Fails if the prompt contains `break`."""

    def blocks(self, request, side):
        if "break" in self.tokenizer.decode(request.prompt):
            raise RuntimeError("<b>the engine</b> is gone")
        yield from super().blocks(request, side)


@pytest.fixture(scope="module")
def player(tiny_llama, perturbed):
    model = tiny_llama(7, 8192, CONTEXT)
    tokenizer = pretrained.open_tokenizer(TargetPart(path="demo"))
    return Fallible(model, perturbed(model, 0.1, 3), tokenizer, frozenset(), CONTEXT)


@pytest.fixture(scope="module")
def address(player):
    """The address of the page."""
    page = serve(Pair(player, "target", "draft"), LOOPBACK, None, wait=False)
    yield page.local_url
    page.close()


@pytest.fixture(scope="module")
def tab(open_tab, address):
    opened = open_tab()
    opened.page.goto(address)
    opened.page.wait_for_selector("#run")
    return opened


def decode(tab, prompt, **controls):
    tab.page.fill("#prompt textarea", prompt)
    for label, value in controls.items():
        box = tab.page.get_by_label(f"number input for {label}")
        box.fill(str(value))
        box.press("Tab")
    tab.page.click("#run")


def await_equal(tab, prompt):
    """Wait until both texts of this prompt are shown, and equal."""
    condition = """([prompt, words]) => document.querySelector('#plain-text .prompt')?.innerText.startsWith(prompt)
        && document.querySelector('#verdict')?.innerText.includes(words)"""
    tab.page.wait_for_function(condition, arg=[prompt.strip(), EQUAL])


def test_a_prompt_is_answered_on_both_sides(tab, address):
    decode(tab, PROMPT)
    await_equal(tab, PROMPT)
    texts = [tab.page.inner_text(f"#{side}-text .fd-text") for side in ("plain", "drafted")]
    assert texts[0] == texts[1]
    assert texts[0].startswith("def read_lines(path):")
    marked = {mark: tab.page.locator(f"#drafted-text i.{mark}").count() for mark in "acbp"}
    assert marked["a"] > 5
    assert marked["c"] > 5
    assert tab.page.locator("#plain-text i.p").count() > 50
    assert "tokens per target forward" in tab.page.inner_text("#drafted-numbers")
    assert tab.errors == []
    assert [request for request in tab.requests if not request.startswith(address.rstrip("/"))] == []


def test_markup_in_a_prompt_is_escaped(tab):
    decode(tab, HOSTILE, Tokens=7)
    await_equal(tab, HOSTILE)
    assert tab.page.title() == "FastDraft"


def test_a_bad_prompt_is_refused_and_the_next_one_works(tab):
    decode(tab, "  ")
    tab.page.get_by_text("the prompt is empty").wait_for()
    decode(tab, "break", Tokens=7)
    tab.page.get_by_text("RuntimeError: <b>the engine</b> is gone").wait_for()
    decode(tab, "x = 1", Tokens=7)
    await_equal(tab, "x = 1")


@pytest.fixture
def chat(player, open_tab, monkeypatch):
    """A page for a target with a chat template."""
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    monkeypatch.setattr(player.tokenizer, "chat_template", template)
    page = serve(Pair(player, "target", "draft"), LOOPBACK, None, wait=False)
    opened = open_tab()
    opened.page.goto(page.local_url)
    opened.page.wait_for_selector("#new")
    yield opened
    page.close()


# gradio leaves the socket open with which it finds a free port; a second page makes that visible.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket")
def test_a_conversation_continues_until_a_new_one_is_begun(chat):
    decode(chat, "one", Tokens=7)
    await_equal(chat, "user: one")
    decode(chat, "two")
    chat.page.wait_for_function("document.querySelector('#plain-text .prompt').innerText.includes('user: two')")
    assert "assistant: " in chat.page.inner_text("#plain-text .prompt")
    await_equal(chat, "user: one")
    chat.page.click("#new")
    chat.page.wait_for_function("document.querySelector('#prompt textarea').value === ''")
    decode(chat, "three")
    await_equal(chat, "user: three")


def test_stop_stops(tab):
    decode(tab, "def long():", Tokens=480)
    tab.page.wait_for_function("document.querySelectorAll('#drafted-text i').length > 8")
    tab.page.click("#stop")
    tab.page.wait_for_timeout(1500)
    written = tab.page.locator("#drafted-text i").count()
    tab.page.wait_for_timeout(1500)
    assert tab.page.locator("#drafted-text i").count() == written < 480
    decode(tab, "x = 2", Tokens=7)
    await_equal(tab, "x = 2")


def test_ten_concurrent_prompts_are_decoded_one_by_one(address, monkeypatch):
    running, counts = [], []
    plain = Fallible.blocks

    def watched(self, request, side):
        running.append(side)
        counts.append(len(running))
        try:
            yield from plain(self, request, side)
        finally:
            running.remove(side)

    monkeypatch.setattr(Fallible, "blocks", watched)
    client = Client(address, verbose=False)
    jobs = [client.submit(f"x = {number}", False, 4, 0, 1, 31, api_name="/answer") for number in range(10)]
    for number, job in enumerate(jobs):
        text, *_, comparison = job.result(timeout=120)
        assert f"x = {number}</span>" in text
        assert EQUAL in comparison
    assert len(counts) == 20
    assert max(counts) == 2, "the two sides of one prompt"


def test_a_closed_tab_frees_the_page_for_the_next(open_tab, address, tab):
    gone = open_tab()
    gone.page.goto(address)
    gone.page.wait_for_selector("#run")
    decode(gone, "def gone():", Tokens=480)
    gone.page.wait_for_function("document.querySelectorAll('#drafted-text i').length > 8")
    gone.page.context.close()
    decode(tab, "x = 3", Tokens=7)
    await_equal(tab, "x = 3")


def test_on_a_phone_nothing_scrolls_sideways(open_tab, address):
    phone = open_tab(390, 800)
    phone.page.goto(address)
    phone.page.wait_for_selector("#run")
    decode(phone, PROMPT, Tokens=31)
    await_equal(phone, PROMPT)
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # gradio does not close the socket that it tried
def test_a_port_in_use_is_reported(player, address):
    port = int(address.rstrip("/").rpartition(":")[2])
    with pytest.raises(PlayError, match=f"port {port}"):
        serve(Pair(player, "target", "draft"), LOOPBACK, port, wait=False)


def test_the_box_limits_the_length_of_a_prompt(tab):
    tab.page.fill("#prompt textarea", "")
    assert tab.page.locator("#prompt textarea").get_attribute("maxlength") == str(MAX_PROMPT_CHARACTERS)
