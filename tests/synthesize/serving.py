"""A real HTTP server on loopback that serves a small target through the OpenAI routes, with faults on a schedule."""

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

# What to do with the n-th completion that is asked for: None to answer it.
Faults = Callable[[int], str | None]


class Serving:
    """One server; `asked` counts completions asked for, `answered` those given."""

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
        self.asked = self.answered = 0
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
        """Listen; on the same port as before."""
        handler = type("Handler", (_Handler,), {"serving": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), handler)
        self._server.daemon_threads = False  # closing waits for what still computes
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Die: connections are cut."""
        if self._server is not None:
            self._server.shutdown()
            for connection in self._connections:
                with suppress(OSError):  # the client has left already
                    connection.shutdown(socket.SHUT_RDWR)
            self._server.server_close()
            self._server, self._connections = None, []

    def die_for(self, seconds: float) -> None:
        """Die, and come back."""

        def gone() -> None:
            self.stop()
            time.sleep(seconds)
            self.start()

        threading.Thread(target=gone, daemon=True).start()

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """What the target writes, as vLLM says it."""
        sampling = SamplingParams(body["temperature"], max(body["top_k"], 0), body["top_p"])
        with self._lock:
            row, raw_NV = _written(
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
                    _said(probs_V, int(token), body.get("logprobs", 1))
                    for probs_V, token in zip(raw_NV, row.tokens, strict=True)
                ],
            },
            "finish_reason": "stop" if int(row.tokens[-1]) in self.eos else "length",
        }
        return {"model": self.model, "choices": [choice]}


@cache
def _written(
    target: LlamaForCausalLM,
    prompt: tuple[int, ...],
    sampling: SamplingParams,
    tokens: int,
    eos: frozenset[int],
    seed: int,
) -> tuple[Completion, torch.Tensor]:
    """A completion and the raw log-probabilities of its places; computed once, as fifty tests ask for the same 41."""
    ids, coins = np.array(prompt, np.int64), torch.from_numpy(np.random.default_rng(seed).random((1, tokens)))
    (written,) = generate(target, [ids], sampling, tokens, eos, coins)
    row = Completion("0", ids, written.tokens, written.logp, sampling)
    ((_, logits_NV),) = completion_logits(target, [row])
    return row, logits_NV.log_softmax(-1)


def _said(probs_V: torch.Tensor, token: int, likeliest: int) -> dict[str, float]:
    """The sampled token, and behind it the most likely ones, the last first: one more where it is none of them."""
    best = probs_V.topk(likeliest).indices.flip(0).tolist()
    return {f"token_id:{i}": float(probs_V[i]) for i in [token, *best]}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    serving: Serving

    def setup(self) -> None:
        super().setup()
        self.serving._connections.append(self.connection)

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def handle(self) -> None:
        try:
            super().handle()
        except (OSError, ValueError):  # the connection was cut by us, or by the client
            self.close_connection = True

    def do_GET(self) -> None:
        self._say(200, {"data": [{"id": self.serving.model}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.serving._lock:
            number = self.serving.asked
            self.serving.asked += 1
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
            self._say(int(fault), {"error": self.serving.error}, {"Retry-After": "0"} if fault == "429" else {})
        elif fault == "garbage":
            self._send(200, b"<html>", {})
        else:
            self._say(200, self.serving.change(self.serving.answer(body)))
            self.serving.answered += 1

    def _say(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(content).encode(), headers or {})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
