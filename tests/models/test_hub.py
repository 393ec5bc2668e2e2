"""What the hub says to a name is told with what to do next: a hub of the test's own answers as the real one does."""

import json
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import close_session

from fastdraft.config import TargetPart
from fastdraft.models import target
from fastdraft.system.errors import TargetError

CONFIG = json.dumps({"model_type": "llama", "vocab_size": 131}).encode()
COMMIT = "1" * 40
FILES = ("config.json", "tokenizer.json", "model.safetensors", "README.md")
# status and headers by a word in the path, as https://huggingface.co gives them
REFUSALS: dict[str, tuple[int, dict[str, str]]] = {
    "missing": (404, {"X-Error-Code": "RepoNotFound"}),
    "hidden": (401, {}),
    "broken": (500, {}),
    "other-branch": (404, {"X-Error-Code": "RevisionNotFound"}),
}
GATED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this model is restricted."}


class Hub(BaseHTTPRequestHandler):
    """Lists every model's files; gives them but for a gated one's, and refuses as REFUSALS says."""

    fetched: list[str]

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        status, headers, body = self._answer()
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def _answer(self) -> tuple[int, dict[str, str], bytes]:
        for word, (status, headers) in REFUSALS.items():
            if word in self.path:
                return status, headers, b""
        if "/tree/" in self.path:
            rows = [{"type": "file", "path": name, "size": len(CONFIG), "oid": name} for name in FILES]
            return 200, {"Content-Type": "application/json"}, json.dumps(rows).encode()
        if self.path.startswith("/api/"):
            return 200, {"Content-Type": "application/json"}, json.dumps({"id": "a/b", "sha": COMMIT}).encode()
        if "gated" in self.path:
            return 403, GATED, b""
        self.fetched.append(self.path.rpartition("/")[2])
        return 200, {"ETag": '"1"', "X-Repo-Commit": COMMIT}, CONFIG


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The address of a hub that is asked in place of the real one; nothing is in its cache."""
    Hub.fetched = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    close_session()
    yield address
    close_session()
    server.shutdown()
    server.server_close()


def test_a_model_is_fetched_and_for_a_plan_without_its_weights(hub):
    assert target.open_config(TargetPart(path="some/model")).vocab_size == 131
    assert {"config.json", "tokenizer.json", "README.md"} == set(Hub.fetched)
    target.folder_of(TargetPart(path="some/model"))
    assert {"config.json", "tokenizer.json", "README.md", "model.safetensors"} == set(Hub.fetched)


SAID = {
    "some/gated": (
        r"some/gated is no local folder, and on the hub it is gated: .*\n  wanted: an account.*\n"
        r"  do: accept its licence at http://127\.0\.0\.1:\d+/some/gated, then `hf auth login`"
    ),
    "some/missing": r"the hub has no such model, or hides it from you\n  wanted: an id.*\n  do: check the name",
    "some/hidden": r"the hub wants to know who asks: .*401.*\n  do: `hf auth login`",
    "some/broken": r"the hub does not answer as it should: .*500.*\n  do: try again later",
    "neither an id": r"neither an id is no local folder, and no hub id either: .*\n  do: give a folder",
}


@pytest.mark.parametrize("name", SAID)
def test_what_the_hub_refuses(hub, name):
    with pytest.raises(TargetError, match=SAID[name]) as caught:
        target.card(TargetPart(path=name))
    assert caught.value.exit_code == 2
    assert Hub.fetched == []


def test_a_revision_that_the_hub_does_not_have(hub):
    with pytest.raises(TargetError, match="the hub has no revision `other-branch` of it\n  do: give a branch"):
        target.card(TargetPart(path="some/model", revision="other-branch"))


def test_no_network(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        TargetError, match="(?s)the hub at http://127.0.0.1:9 cannot be reached: .*\n  do: check the net"
    ):
        target.card(TargetPart(path="some/model"))


def test_offline_mode(hub, monkeypatch):
    """What was fetched before is still there; what was not is said to be out of reach."""
    target.open_config(TargetPart(path="some/model"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert target.open_config(TargetPart(path="some/model")).vocab_size == 131
    with pytest.raises(TargetError, match="(?s)cannot be reached: .*\n  do: check the network, HF_ENDPOINT and HF_HUB"):
        target.card(TargetPart(path="some/other"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["some/gated", "some/missing"])
def test_the_command_ends_with_the_users_mistake(hub, name, tiny, monkeypatch):
    """As a user meets it: HF_ENDPOINT in the environment, exit code 2, no traceback."""
    monkeypatch.setenv("HF_ENDPOINT", hub)
    monkeypatch.setenv("HF_HOME", str(tiny / "home"))
    command = [sys.executable, "-c", "from fastdraft.cli import main; main()", "run", "recipe.yaml"]
    ended = subprocess.run([*command, f"target.path={name}"], cwd=tiny, capture_output=True, text=True)
    assert ended.returncode == 2, ended.stderr
    assert "  do: " in ended.stderr
    assert "Traceback" not in ended.stderr
