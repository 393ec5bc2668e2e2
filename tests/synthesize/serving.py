"""An HTTP server on loopback that serves a small target through the OpenAI routes, with scheduled faults."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM

from fastdraft.synthesize.completions import Completion, SamplingParams
from fastdraft.synthesize.generate import generate
from fastdraft.synthesize.rescore import completion_logits

# The fault of the n-th request for a completion; None to answer it.
Faults = Callable[[int], str | None]


class Serving:
    """One server. `requested` counts requests for completions, `answered` the answers given."""

    def __init__(
        self,
        target: LlamaForCausalLM,
        faults: Faults = lambda _: None,
        model: str = "tiny",
        delay_seconds: float = 0.0,
        eos: frozenset[int] = frozenset({0}),
        places: int = 1 << 10,
        change: Callable[[dict[str, Any]], dict[str, Any]] = lambda answer: answer,
        error: str = "busy",
    ) -> None:
        self.target, self.faults, self.model, self.delay_seconds, self.eos = target, faults, model, delay_seconds, eos
        self.change, self.error = change, error
        self.requested = self.answered = 0
        self.bodies: list[dict[str, Any]] = []
        self._lock, self.places = threading.Lock(), threading.Semaphore(places)
        self._connections: list[Any] = []
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> None:
        """Listen, on the same port as before."""
        handler = type("Handler", (_Handler,), {"serving": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), handler)
        self._server.daemon_threads = False  # closing waits for running requests
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Stop abruptly: connections are cut."""
        if self._server is not None:
            self._server.shutdown()
            for connection in self._connections:
                with suppress(OSError):  # the client has left already
                    connection.shutdown(socket.SHUT_RDWR)
            self._server.server_close()
            self._server, self._connections = None, []

    def die_for(self, seconds: float) -> None:
        """Stop abruptly, and start again after some seconds."""

        def restart() -> None:
            self.stop()
            time.sleep(seconds)
            self.start()

        threading.Thread(target=restart, daemon=True).start()

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """The target's completion in vLLM's format."""
        sampling = SamplingParams(body["temperature"], max(body["top_k"], 0), body["top_p"])
        with self._lock:
            row, raw_NV = _completion(
                self.target, tuple(body["prompt"]), sampling, body["max_tokens"], self.eos, body["seed"]
            )
        raw = raw_NV.gather(1, torch.from_numpy(row.tokens)[:, None])[:, 0]
        choice = {
            "index": 0,
            "text": " ".join(map(str, row.tokens)),
            "token_ids": row.tokens.tolist(),
            "logprobs": {
                "token_logprobs": raw.tolist(),
                "top_logprobs": [
                    _top_logprobs(logp_V, int(token), body.get("logprobs", 1))
                    for logp_V, token in zip(raw_NV, row.tokens, strict=True)
                ],
            },
            "finish_reason": "stop" if int(row.tokens[-1]) in self.eos else "length",
        }
        return {"model": self.model, "choices": [choice]}


@cache
def _completion(
    target: LlamaForCausalLM,
    prompt: tuple[int, ...],
    sampling: SamplingParams,
    tokens: int,
    eos: frozenset[int],
    seed: int,
) -> tuple[Completion, torch.Tensor]:
    """A completion and the raw log-probabilities of its positions; cached, as fifty tests request the same 41."""
    ids, coins = np.array(prompt, np.int64), torch.from_numpy(np.random.default_rng(seed).random((1, tokens)))
    (written,) = generate(target, [ids], sampling, tokens, eos, coins)
    row = Completion("0", ids, written.tokens, written.logp, sampling)
    ((_, logits_NV),) = completion_logits(target, [row])
    return row, logits_NV.log_softmax(-1)


def _top_logprobs(logp_V: torch.Tensor, token: int, k: int) -> dict[str, float]:
    """The sampled token, then the k most likely ones in reversed order; k + 1 tokens if it is not among them."""
    best = logp_V.topk(k).indices.flip(0).tolist()
    return {f"token_id:{i}": float(logp_V[i]) for i in [token, *best]}


GARBAGE: dict[str | None, tuple[bytes, dict[str, str]]] = {
    "garbage": (b"<html>", {}),
    "nested": (b"[" * 99_999, {}),
    "no gzip": (b"{}", {"Content-Encoding": "gzip"}),
}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    serving: Serving

    def setup(self) -> None:
        super().setup()
        self.serving._connections.append(self.connection)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def handle(self) -> None:
        try:
            super().handle()
        except (OSError, ValueError):  # the connection was cut, by this server or by the client
            self.close_connection = True

    def do_GET(self) -> None:
        self._send_json(200, {"data": [{"id": self.serving.model}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.serving._lock:
            number = self.serving.requested
            self.serving.requested += 1
            self.serving.bodies.append(body)
        with self.serving.places:
            time.sleep(self.serving.delay_seconds)
        fault = self.serving.faults(number)
        if fault == "cut":
            self.connection.close()
            self.close_connection = True
        elif fault == "half":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n{")
            self.connection.close()
            self.close_connection = True
        elif fault == "silence":
            time.sleep(4)
        elif fault is not None and fault.isdecimal():
            self._send_json(int(fault), {"error": self.serving.error}, {"Retry-After": "0"} if fault == "429" else {})
        elif fault in GARBAGE:
            self._send(200, *GARBAGE[fault])
        else:
            self._send_json(200, self.serving.change(self.serving.answer(body)))
            self.serving.answered += 1

    def _send_json(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(content).encode(), headers or {})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
