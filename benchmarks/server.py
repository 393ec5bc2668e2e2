"""How much of a server's throughput `engine: server` uses, compared with a minimal client that sends the same requests.

    .venv/bin/python benchmarks/server.py [--arms 2000 20000 demo] [--seconds 6] [--rounds 2] [--server-core C]

The server is another process on the loopback interface. `demo` serves the packaged target in batches of up to SLOTS
requests. A number serves prepared responses at that rate in tokens per second, so that only the client can be slower.
The minimal client only writes prepared requests to sockets and reads bytes, with several numbers of requests in flight;
its best rate is the server's saturated throughput. FastDraft's client has the default of
synthesize.server.concurrent_requests, checks each response and writes the completions, without rescoring. The clients
take turns. Their CPU seconds are printed too, since other processes disturb them less than wall-clock time.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers.utils.logging import disable_progress_bar

from fastdraft.config import ServerPart
from fastdraft.models import pretrained
from fastdraft.synthesize.completion_store import CompletionStore
from fastdraft.synthesize.completions import Request, SamplingParams
from fastdraft.synthesize.decoding_params import DecodingParams
from fastdraft.synthesize.engine_interface import with_keys
from fastdraft.synthesize.engine_server import ServerEngine
from fastdraft.synthesize.generate import generate
from fastdraft.synthesize.rescore import keep_as_is
from fastdraft.synthesize.write import write_completions
from fastdraft.system.progress import Bar
from synthesis import EOS, PART, prompts

MODEL, SLOTS, IN_FLIGHT, SAMPLING = "served", 16, (16, 32, 64), SamplingParams(1.0)
TOKENIZER = pretrained.open_tokenizer(PART)
HEAD = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n"
Respond = Callable[[bytes], Awaitable[bytes]]


# The server.


def response_body(tokens: Sequence[int], logp: Sequence[float]) -> bytes:
    """A response in vLLM's format with one top log-probability per token."""
    names = [f"token_id:{token}" for token in tokens]
    top = [{name: value} for name, value in zip(names, logp, strict=True)]
    logprobs = {"tokens": names, "token_logprobs": list(logp), "top_logprobs": top}
    end = "stop" if tokens[-1] == EOS else "length"
    choice = {"index": 0, "text": "", "token_ids": list(tokens), "logprobs": logprobs, "finish_reason": end}
    return json.dumps({"model": MODEL, "choices": [choice]}).encode()


class Paced:
    """Prepared responses from SLOTS slots, delayed so that all slots together give `tokens_per_second`."""

    def __init__(self, tokens_per_second: float, tokens: int) -> None:
        dice = np.random.default_rng(7)
        self._answer = response_body(dice.integers(1, 8000, tokens).tolist(), (-dice.exponential(size=tokens)).tolist())
        self._seconds = SLOTS * tokens / tokens_per_second
        self._free = [0.0] * SLOTS

    async def __call__(self, _: bytes) -> bytes:
        # A slot is busy from the time when it became free, not from the end of the last sleep, so delays do not add up.
        until = max(heapq.heappop(self._free), time.monotonic()) + self._seconds
        heapq.heappush(self._free, until)
        await asyncio.sleep(until - time.monotonic())
        return self._answer


class Batching:
    """The packaged target in a thread that answers up to SLOTS waiting requests in one batch."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        disable_progress_bar()
        self._model = pretrained.open_model(PART, torch.device("cpu"))
        self._waiting: queue.Queue[tuple[dict[str, Any], asyncio.Future[bytes]]] = queue.Queue()
        threading.Thread(target=self._work, daemon=True).start()

    async def __call__(self, body: bytes) -> bytes:
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.put((json.loads(body), future))
        return await future

    def _work(self) -> None:
        while True:
            batch = [self._waiting.get()]
            while len(batch) < SLOTS:
                try:
                    # Wait for more requests, since a small first batch would take as long as a full one.
                    batch.append(self._waiting.get(timeout=0.05))
                except queue.Empty:
                    break
            for (_, future), answer in zip(batch, self._answers([body for body, _ in batch]), strict=True):
                future.get_loop().call_soon_threadsafe(future.set_result, answer)

    def _answers(self, bodies: Sequence[dict[str, Any]]) -> list[bytes]:
        tokens = bodies[0]["max_tokens"]
        coins_RN = torch.from_numpy(np.stack([np.random.default_rng(body["seed"]).random(tokens) for body in bodies]))
        texts = [np.array(body["prompt"], np.int64) for body in bodies]
        written = generate(self._model, texts, SAMPLING, tokens, frozenset({EOS}), coins_RN)
        return [response_body(row.tokens.tolist(), row.logp.tolist()) for row in written]


async def _handle_connection(respond: Respond, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of a connection until it is closed."""
    models = json.dumps({"data": [{"id": MODEL}]}).encode()
    while True:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        except (asyncio.IncompleteReadError, ConnectionError):
            return writer.close()
        body = await reader.readexactly(_length(head))
        content = await respond(body) if head.startswith("post") else models
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content)


def _length(head: str) -> int:
    """The Content-Length of a header; 0 if it has none."""
    return next((int(line[15:]) for line in head.lower().split("\r\n") if line.startswith("content-length:")), 0)


def serve(arm: str, tokens: int, core: int | None, threads: int, port: Connection) -> None:
    """The server process: send the port, and answer requests until the process is ended."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    respond: Respond = Batching(threads) if arm == "demo" else Paced(float(arm), tokens)

    async def forever() -> None:
        server = await asyncio.start_server(
            lambda *streams: _handle_connection(respond, *streams), "127.0.0.1", 0, backlog=512
        )
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(forever())


# The clients.


class Throughput(NamedTuple):
    """The tokens that a client received, and its wall-clock and CPU time."""

    tokens: int
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


def timed(send_all: Callable[[], Callable[[], int]]) -> Throughput:
    """`send_all` sends all requests and returns a function that counts the received tokens, which is not timed."""
    clock, cpu = time.monotonic(), time.process_time()
    count = send_all()
    clock, cpu = time.monotonic() - clock, time.process_time() - cpu
    return Throughput(count(), clock, cpu)


def raw_requests(requests: Sequence[Request], decoding: DecodingParams) -> list[bytes]:
    """The HTTP requests of the minimal client, with the seeds of FastDraft's."""
    bodies = []
    for row in with_keys(requests, decoding):
        body = {"model": MODEL, "prompt": row.request.prompt.tolist(), "max_tokens": decoding.max_new_tokens}
        bodies.append(json.dumps(body | {"temperature": 1.0, "logprobs": 1, "seed": int(row.key, 16) % 2**31}).encode())
    return [HEAD.format(len(body)).encode() + body for body in bodies]


def minimal_client(port: int, bodies: Sequence[bytes], in_flight: int) -> Callable[[], int]:
    """Write the requests and read the responses."""
    answers: list[bytes] = []
    waiting = iter(bodies)

    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for body in waiting:
            writer.write(body)
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            answers.append(await reader.readexactly(_length(head)))
        writer.close()

    async def everything() -> None:
        await asyncio.gather(*(connection() for _ in range(in_flight)))

    with ThreadPoolExecutor(1) as thread:  # the thread of the caller may have a running event loop
        thread.submit(asyncio.run, everything()).result()
    return lambda: sum(len(json.loads(answer)["choices"][0]["token_ids"]) for answer in answers)


def fastdraft_client(
    port: int, requests: Sequence[Request], decoding: DecodingParams, folder: Path
) -> Callable[[], int]:
    """Generate with the engine, check the responses and store the completions."""
    part = ServerPart(urls=(f"http://127.0.0.1:{port}/v1",), model=MODEL)
    store = CompletionStore(folder)
    engine = ServerEngine(part, decoding, TOKENIZER)
    with Bar("FastDraft", len(requests), "completions") as bar:
        refused = write_completions(engine, with_keys(requests, decoding), store, decoding, bar, keep_as_is)
    assert not refused, refused
    return lambda: sum(len(row.tokens) for row in store.read())


def measure(
    arm: str, requests: Sequence[Request], decoding: DecodingParams, rounds: int, cores: tuple[int | None, int]
) -> dict[str, Throughput]:
    """The best wall-clock throughput of each client."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=serve, args=(arm, decoding.max_new_tokens, *cores, there), daemon=True)
    server.start()
    throughputs: dict[str, list[Throughput]] = {}
    try:
        if not here.poll(120):
            raise TimeoutError("the server did not start within 120 s")
        port, bodies = here.recv(), raw_requests(requests, decoding)
        minimal_client(port, bodies[:SLOTS], SLOTS)
        with TemporaryDirectory() as folder:  # imports at first use are not measured
            fastdraft_client(port, requests[:SLOTS], decoding, Path(folder))
        for _ in range(rounds):
            for in_flight in IN_FLIGHT:
                send_all = partial(minimal_client, port, bodies, in_flight)
                throughputs.setdefault(f"minimal, {in_flight}", []).append(timed(send_all))
            with TemporaryDirectory() as folder:
                generate_all = partial(fastdraft_client, port, requests, decoding, Path(folder))
                throughputs.setdefault("FastDraft", []).append(timed(generate_all))
    finally:
        server.terminate()
        server.join()
    return {name: max(rounds, key=lambda result: result.rate) for name, rounds in throughputs.items()}


def row(arm: str, throughputs: dict[str, Throughput]) -> str:
    """A table row: the saturated server, FastDraft's engine, their ratio, and CPU time per token of both clients."""
    minimal = {name: result for name, result in throughputs.items() if name != "FastDraft"}
    name, best = max(minimal.items(), key=lambda pair: pair[1].rate)
    own = throughputs["FastDraft"]
    costs = [f"{1e6 * result.cpu_seconds / result.tokens:,.0f}" for result in (best, own)]
    return (
        f"| {arm} | {best.rate:,.0f} ({name.removeprefix('minimal, ')}) | {own.rate:,.0f} | "
        f"{own.rate / best.rate:.3f} | {costs[0]} | {costs[1]} |"
    )


def make_requests(count: int) -> list[Request]:
    """`count` requests; there are at most 256 different prompts."""
    texts = prompts(min(count, 256))
    return [Request(texts[i % len(texts)], SAMPLING, i) for i in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--arms", nargs="+", default=["2000", "20000", "demo"])
    parser.add_argument("--seconds", type=float, default=6.0, help="length of a turn if the server's rate is given")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--prompts", type=int, default=128, help="prompts of a turn if the packaged target is served")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--server-core", type=int, help="core of the server; default: any of this process")
    parser.add_argument("--server-threads", type=int, default=1)
    options = parser.parse_args()
    tokens = options.max_new_tokens
    decoding = DecodingParams(tokens, frozenset({EOS}), 7, "benchmark", 64, vocab_rows=8192)
    print(
        "| server, tokens/s | saturated (in flight) | FastDraft | ratio | CPU us per token, minimal | FastDraft |",
        flush=True,
    )
    print("|---|---|---|---|---|---|")
    for arm in options.arms:
        count = options.prompts if arm == "demo" else max(round(float(arm) * options.seconds / tokens), 4 * SLOTS)
        cores = (options.server_core, options.server_threads)
        print(row(arm, measure(arm, make_requests(count), decoding, options.rounds, cores)), flush=True)


if __name__ == "__main__":
    main()
