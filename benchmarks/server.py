"""How much of a server's throughput `engine: server` uses: a bare client and ours ask the same, taking turns.

    .venv/bin/python benchmarks/server.py [--arms 2000 20000 demo] [--seconds 6] [--rounds 2] [--server-core C]

The server is a process of its own on loopback. `demo` serves the packaged target, as many requests in a batch as it has
places; a number serves ready-made answers at that many tokens a second and no more, so that what is missing is the
client's doing alone. The bare client writes ready-made requests to sockets and reads bytes, nothing else, with several
numbers of requests in flight: its best is the server's saturated throughput. Ours has the default of
synthesize.server.concurrent_requests, checks each answer and writes the rows; none is rescored. Both clients' own CPU
seconds are told too, which other processes on the machine disturb less than the clock's.
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
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch

from fastdraft.config import ServerPart
from fastdraft.models import target
from fastdraft.synthesize.completions import CompletionStore, Request, SamplingParams
from fastdraft.synthesize.decode import generate
from fastdraft.synthesize.engine_server import Servers
from fastdraft.synthesize.write import Decoding, as_given, keyed, write
from fastdraft.system.progress import Bar
from synthesis import EOS, PART, prompts

MODEL, PLACES, IN_FLIGHT, SAMPLING = "served", 16, (16, 32, 64), SamplingParams(1.0)
TOKENIZER = target.open_tokenizer(PART)
HEAD = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n"
Answer = Callable[[bytes], Awaitable[bytes]]


# The server.


def said(tokens: Sequence[int], logp: Sequence[float]) -> bytes:
    """An answer as vLLM says it, where one most likely token is asked for."""
    names = [f"token_id:{token}" for token in tokens]
    likeliest = [{name: value} for name, value in zip(names, logp, strict=True)]
    logprobs = {"tokens": names, "token_logprobs": list(logp), "top_logprobs": likeliest}
    end = "stop" if tokens[-1] == EOS else "length"
    choice = {"index": 0, "text": "", "token_ids": list(tokens), "logprobs": logprobs, "finish_reason": end}
    return json.dumps({"model": MODEL, "choices": [choice]}).encode()


class Paced:
    """Ready-made answers from PLACES places, so slow that all together give `tokens_per_second`."""

    def __init__(self, tokens_per_second: float, tokens: int) -> None:
        dice = np.random.default_rng(7)
        self._answer = said(dice.integers(1, 8000, tokens).tolist(), (-dice.exponential(size=tokens)).tolist())
        self._seconds = PLACES * tokens / tokens_per_second
        self._free = [0.0] * PLACES

    async def __call__(self, _: bytes) -> bytes:
        # A place is busy from when it was free, not from when the last sleep ended: lateness does not add up.
        until = max(heapq.heappop(self._free), time.monotonic()) + self._seconds
        heapq.heappush(self._free, until)
        await asyncio.sleep(until - time.monotonic())
        return self._answer


class Batching:
    """The packaged target in a thread of its own: it answers up to PLACES waiting requests together."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        target.quiet()
        self._model = target.open_model(PART, torch.device("cpu"))
        self._waiting: queue.Queue[tuple[dict[str, Any], asyncio.Future[bytes]]] = queue.Queue()
        threading.Thread(target=self._work, daemon=True).start()

    async def __call__(self, body: bytes) -> bytes:
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.put((json.loads(body), future))
        return await future

    def _work(self) -> None:
        while True:
            batch = [self._waiting.get()]
            while len(batch) < PLACES:
                try:
                    # A batch of a few at the beginning would cost as much as a full one.
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
        return [said(row.tokens.tolist(), row.logp.tolist()) for row in written]


async def _connected(answer: Answer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one connection's requests until it is closed."""
    models = json.dumps({"data": [{"id": MODEL}]}).encode()
    while True:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        except (asyncio.IncompleteReadError, ConnectionError):
            return writer.close()
        body = await reader.readexactly(_length(head))
        content = await answer(body) if head.startswith("post") else models
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content)


def _length(head: str) -> int:
    """Content-Length; 0 where there is none."""
    return next((int(line[15:]) for line in head.lower().split("\r\n") if line.startswith("content-length:")), 0)


def serve(arm: str, tokens: int, core: int | None, threads: int, port: Connection) -> None:
    """A server's process: say the port, and answer until it is ended."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    answer: Answer = Batching(threads) if arm == "demo" else Paced(float(arm), tokens)

    async def forever() -> None:
        server = await asyncio.start_server(lambda *streams: _connected(answer, *streams), "127.0.0.1", 0, backlog=512)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(forever())


# The clients.


class Found(NamedTuple):
    """What a client got, and what it took of the clock and of its own processor time."""

    tokens: int
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


def timed(way: Callable[[], Callable[[], int]]) -> Found:
    """`way` asks for everything and gives a function that counts the tokens, which is not timed."""
    clock, cpu = time.monotonic(), time.process_time()
    count = way()
    clock, cpu = time.monotonic() - clock, time.process_time() - cpu
    return Found(count(), clock, cpu)


def bodies_of(asked: Sequence[Request], decoding: Decoding) -> list[bytes]:
    """The requests of the bare client, with the seeds of ours."""
    bodies = []
    for row in keyed(asked, decoding):
        body = {"model": MODEL, "prompt": row.request.prompt.tolist(), "max_tokens": decoding.max_new_tokens}
        bodies.append(json.dumps(body | {"temperature": 1.0, "logprobs": 1, "seed": int(row.key, 16) % 2**31}).encode())
    return [HEAD.format(len(body)).encode() + body for body in bodies]


def bare(port: int, bodies: Sequence[bytes], in_flight: int) -> Callable[[], int]:
    """Requests written, answers read."""
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

    with ThreadPoolExecutor(1) as thread:  # a loop of its own, whatever runs in the caller's thread
        thread.submit(asyncio.run, everything()).result()
    return lambda: sum(len(json.loads(answer)["choices"][0]["token_ids"]) for answer in answers)


def ours(port: int, asked: Sequence[Request], decoding: Decoding, folder: Path) -> Callable[[], int]:
    """The engine, its checks, and the store."""
    part = ServerPart(urls=(f"http://127.0.0.1:{port}/v1",), model=MODEL)
    store = CompletionStore(folder)
    engine = Servers(part, decoding, TOKENIZER)
    with Bar("ours", len(asked), "rows") as bar:
        refused = write(engine, keyed(asked, decoding), store, decoding, bar, as_given)
    assert not refused, refused
    return lambda: sum(len(row.tokens) for row in store.read())


def measured(
    arm: str, asked: Sequence[Request], decoding: Decoding, rounds: int, cores: tuple[int | None, int]
) -> dict[str, Found]:
    """The best of each client by the clock; the clients take turns."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=serve, args=(arm, decoding.max_new_tokens, *cores, there), daemon=True)
    server.start()
    found: dict[str, list[Found]] = {}
    try:
        if not here.poll(120):
            raise TimeoutError("the server has not begun within 120 s")
        port, bodies = here.recv(), bodies_of(asked, decoding)
        bare(port, bodies[:PLACES], PLACES)
        with TemporaryDirectory() as folder:  # what is imported at first use is no part of a rate
            ours(port, asked[:PLACES], decoding, Path(folder))
        for _ in range(rounds):
            for in_flight in IN_FLIGHT:
                found.setdefault(f"bare, {in_flight}", []).append(timed(lambda n=in_flight: bare(port, bodies, n)))
            with TemporaryDirectory() as folder:
                found.setdefault("ours", []).append(timed(lambda to=folder: ours(port, asked, decoding, Path(to))))
    finally:
        server.terminate()
        server.join()
    return {name: max(each, key=lambda one: one.rate) for name, each in found.items()}


def row(arm: str, found: dict[str, Found]) -> str:
    """A line of the table: the saturated server, our engine, the ratio, what a token costs both clients."""
    name, best = max(((name, one) for name, one in found.items() if name != "ours"), key=lambda pair: pair[1].rate)
    mine = found["ours"]
    costs = [f"{1e6 * one.cpu_seconds / one.tokens:,.0f}" for one in (best, mine)]
    return (
        f"| {arm} | {best.rate:,.0f} ({name.removeprefix('bare, ')}) | {mine.rate:,.0f} | "
        f"{mine.rate / best.rate:.3f} | {costs[0]} | {costs[1]} |"
    )


def requests(count: int) -> list[Request]:
    """So many prompts, each once."""
    texts = prompts(min(count, 256))
    return [Request(texts[i % len(texts)], SAMPLING, i) for i in range(count)]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--arms", nargs="+", default=["2000", "20000", "demo"])
    parser.add_argument("--seconds", type=float, default=6.0, help="of a turn, where the server's rate is given")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--prompts", type=int, default=128, help="of a turn, where the packaged target is served")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--server-core", type=int, help="core for the server; otherwise any that this process has")
    parser.add_argument("--server-threads", type=int, default=1)
    options = parser.parse_args()
    tokens = options.max_new_tokens
    decoding = Decoding(tokens, frozenset({EOS}), 7, "benchmark", 64, vocab_rows=8192)
    print("| server, tokens/s | saturated (in flight) | ours | ratio | us of CPU a token, bare | ours |", flush=True)
    print("|---|---|---|---|---|---|")
    for arm in options.arms:
        count = options.prompts if arm == "demo" else max(round(float(arm) * options.seconds / tokens), 4 * PLACES)
        cores = (options.server_core, options.server_threads)
        print(row(arm, measured(arm, requests(count), decoding, options.rounds, cores)), flush=True)


if __name__ == "__main__":
    main()
