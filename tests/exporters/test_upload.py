"""The upload: said first, done when asked, to a hub of the test's own on this machine."""

import base64
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import HfApi

from fastdraft.exporters.upload import planned, push
from fastdraft.results.export import ExportCard, Proof
from fastdraft.system.cards import Cost, write_card
from fastdraft.system.errors import CardError, ExportError


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload of small files needs; keeps what it was sent."""

    protocol_version = "HTTP/1.1"
    made: list[dict]
    kept: dict[str, bytes]
    refuses, private = False, True

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""

    def _answer(self, content: object, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self._answer(
            {"id": "me/draft", "sha": "0" * 40, "siblings": [], "private": self.private}, 403 if self.refuses else 200
        )

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.refuses:
            self._answer({"error": "not yours"}, 403)
        elif self.path == "/api/repos/create":
            self.made.append(json.loads(body))
            self._answer({"url": f"http://{self.headers['Host']}/me/draft"})
        elif self.path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.kept[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"http://{self.headers['Host']}/me/draft/commit/{'1' * 40}"
            self._answer({"success": True, "commitUrl": url, "commitOid": "1" * 40})
        else:
            self._answer({"errors": [], "warnings": []})


@pytest.fixture
def hub() -> Iterator[tuple[type[Hub], HfApi]]:
    handler = type("OneHub", (Hub,), {"made": [], "kept": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield handler, HfApi(endpoint=f"http://127.0.0.1:{server.server_port}", token="hf_of_the_test")
    server.shutdown()
    server.server_close()


@pytest.fixture
def exported(tmp_path) -> Path:
    folder = tmp_path / "export"
    (folder / "inner").mkdir(parents=True)
    (folder / "README.md").write_text("---\ntags:\n- draft-model\n---\n# A draft\n")
    (folder / "inner" / "weights.bin").write_bytes(bytes(range(101)))
    proof = Proof(
        engine="none",
        prompts=1,
        equal_prompts=1,
        tokens=1,
        agreeing_tokens=1,
        widest_gap=None,
        texts=0,
        unlike_texts=(),
        kept=(),
    )
    card = ExportCard(
        key="k",
        cost=Cost(seconds=1.0),
        format="gguf",
        weights="f16",
        draft="d",
        target="t",
        target_revision=None,
        target_digest="x",
        files={},
        notes=(),
        accepted=(),
        proof=proof,
    )
    write_card(folder, card)
    return folder


def test_it_reports_every_file_and_byte(exported):
    said = planned(exported, "me/draft", private=True).summary()
    sizes = {path: (exported / path).stat().st_size for path in ("README.md", "card.json", "inner/weights.bin")}
    for path, size in sizes.items():
        assert f"{size:,}  {path}" in said
    assert f"3 files, {sum(sizes.values()):,} bytes" in said
    assert "me/draft (private model repository)" in said
    assert "PUBLIC" in planned(exported, "me/draft", private=False).summary()


@pytest.mark.parametrize("private", [True, False])
def test_what_was_reported_is_uploaded(exported, hub, private):
    handler, api = hub
    plan = planned(exported, "me/draft", private)
    (exported / "late.txt").write_text("not part of the plan")
    assert push(plan, api).endswith(f"/me/draft/commit/{'1' * 40}")
    made = handler.made[0]
    # Newer clients send `visibility`, huggingface_hub 1.6 sends `private`.
    assert (made["name"], made.get("visibility") == "private" or made.get("private", False)) == ("draft", private)
    assert handler.kept == {name: (exported / name).read_bytes() for name in plan.files}


def licensed(exported: Path, licence: str | None) -> Path:
    """The export of a draft whose target has this licence."""
    card = json.loads((exported / "card.json").read_text())
    (exported / "card.json").write_text(json.dumps(card | {"target_licence": licence}))
    return exported


def test_a_name_that_the_targets_licence_forbids(exported):
    licensed(exported, "llama3.1")
    said = planned(exported, "me/draft", private=True).summary()
    assert "WARNING: the target is under the Llama 3.1 Community License: the name of a draft of it must begin" in said
    with pytest.raises(
        ExportError, match=r'me/draft is not an allowed name: .*must begin with "Llama"\n  do: choose'
    ) as expected:
        planned(exported, "me/draft", private=False)
    assert expected.value.exit_code == 2
    assert "WARNING" not in planned(exported, "me/Llama-draft", private=False).summary()


def test_it_reports_the_targets_licence(exported):
    for licence, expected in (
        (None, "licence: not known"),
        ("mit", "licence: mit"),
        ("gemma", "gemma, which applies to"),
    ):
        said = planned(licensed(exported, licence), "me/draft", private=False).summary()
        assert expected in said
        assert "WARNING" not in said


def test_an_export_from_before_licences_were_known(exported):
    card = json.loads((exported / "card.json").read_text())
    del card["target_licence"]
    (exported / "card.json").write_text(json.dumps(card))
    assert "licence: not known" in planned(exported, "me/draft", private=False).summary()


def test_a_hub_that_refuses(exported, hub):
    handler, api = hub
    handler.refuses = True
    with pytest.raises(ExportError, match="me/draft was not uploaded: .*\n  do: check the name"):
        push(planned(exported, "me/draft", True), api)
    assert handler.kept == {}


def test_a_public_repository_is_no_private_one(exported, hub):
    handler, api = hub
    handler.private = False
    with pytest.raises(ExportError, match="me/draft exists and is public\n  do: .*--public"):
        push(planned(exported, "me/draft", True), api)
    assert handler.kept == {}
    push(planned(exported, "me/draft", False), api)


def test_no_hub_at_all(exported):
    with pytest.raises(ExportError, match="me/draft was not uploaded"):
        push(planned(exported, "me/draft", True), HfApi(endpoint="http://127.0.0.1:9", token="hf_of_the_test"))


def test_only_an_export_is_uploaded(exported, tmp_path):
    with pytest.raises(ExportError, match="is not an export: it has no card.json\n  do: fastdraft export"):
        planned(tmp_path, "me/draft", True)
    (exported / "card.json").write_text("{}")
    with pytest.raises(CardError, match="is not a card"):
        planned(exported, "me/draft", True)
