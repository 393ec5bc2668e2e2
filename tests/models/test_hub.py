"""Errors of the hub become errors with advice. A local server answers as the real hub does."""

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
from fastdraft.models import pretrained, target
from fastdraft.system.errors import TargetError

SIZES = {"vocab_size": 131, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIG = json.dumps({"model_type": "llama", **SIZES}).encode()
COMMIT = "1" * 40
FILES = ("config.json", "tokenizer.json", "model.safetensors", "README.md")
# Status and headers by a word in the path, as https://huggingface.co returns them.
REFUSALS: dict[str, tuple[int, dict[str, str]]] = {
    "missing": (404, {"X-Error-Code": "RepoNotFound"}),
    "hidden": (401, {}),
    "broken": (500, {}),
    "other-branch": (404, {"X-Error-Code": "RevisionNotFound"}),
}
GATED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this model is restricted."}


class Hub(BaseHTTPRequestHandler):
    """Lists every model's files and serves them, except those of a gated model and of REFUSALS."""

    downloaded: list[str]

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
        self.downloaded.append(self.path.rpartition("/")[2])
        return 200, {"ETag": '"1"', "X-Repo-Commit": COMMIT}, CONFIG


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The address of a local hub; its cache is empty."""
    Hub.downloaded = []
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


def test_weights_are_downloaded_only_if_needed(hub):
    assert pretrained.open_config("some/model").vocab_size == 131
    assert {"config.json", "tokenizer.json", "README.md"} == set(Hub.downloaded)
    pretrained.folder_of("some/model")
    assert {"config.json", "tokenizer.json", "README.md", "model.safetensors"} == set(Hub.downloaded)


ERRORS = {
    "some/gated": (
        r"some/gated is not a local folder, and on the hub it is gated: .*\n  wanted: an account.*\n"
        r"  do: accept its licence at http://127\.0\.0\.1:\d+/some/gated, then `hf auth login`"
    ),
    "some/missing": r"the hub has no such model, .*\n  wanted: an id.*\n  do: check the name",
    "some/hidden": r"authentication: .*401.*\n  do: `hf auth login`",
    "some/broken": r"returned an error: .*500.*\n  do: try again later",
    "neither an id": r"neither an id is not a local folder, and not a hub id either: .*\n  do: give a folder",
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_of_the_hub(hub, name):
    with pytest.raises(TargetError, match=ERRORS[name]) as caught:
        target.card(TargetPart(path=name))
    assert caught.value.exit_code == 2
    assert Hub.downloaded == []


def test_a_revision_that_the_hub_does_not_have(hub):
    with pytest.raises(TargetError, match="the hub has no revision `other-branch` of it\n  do: "):
        target.card(TargetPart(path="some/model", revision="other-branch"))


def test_no_network(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        TargetError, match="(?s)the hub at http://127.0.0.1:9 cannot be reached: .*\n  do: check the net"
    ):
        target.card(TargetPart(path="some/model"))


def test_offline_mode(hub, monkeypatch):
    """A cached model opens; any other cannot be reached."""
    pretrained.open_config("some/model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert pretrained.open_config("some/model").vocab_size == 131
    with pytest.raises(TargetError, match="(?s)cannot be reached: .*\n  do: check the network, HF_ENDPOINT and HF_HUB"):
        target.card(TargetPart(path="some/other"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["some/gated", "some/missing"])
def test_the_command_prints_the_error(hub, name, tiny, monkeypatch):
    """With HF_ENDPOINT in the environment the command exits with code 2 and prints no traceback."""
    monkeypatch.setenv("HF_ENDPOINT", hub)
    monkeypatch.setenv("HF_HOME", str(tiny / "home"))
    command = [sys.executable, "-c", "from fastdraft.cli import main; main()", "run", "recipe.yaml"]
    ended = subprocess.run([*command, f"target.path={name}"], cwd=tiny, capture_output=True, text=True)
    assert ended.returncode == 2, ended.stderr
    assert "  do: " in ended.stderr
    assert "Traceback" not in ended.stderr
