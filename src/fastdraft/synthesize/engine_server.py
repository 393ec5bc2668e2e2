"""The engine `server`: OpenAI-compatible servers of the target, one or several, that share one queue.

A server takes the next request whenever it has room, so a fast one answers more. One that cannot be reached gets no
requests until it answers again, and what it held goes back to the queue: nothing is lost, and no attempt is counted.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, NamedTuple

import httpx
from transformers import PreTrainedTokenizerFast

from fastdraft.config import ServerPart
from fastdraft.synthesize.completions import Completion, Keys
from fastdraft.synthesize.server_responses import answer_of, text_of_prompt
from fastdraft.synthesize.write import Decoding, Keyed, Logp, Shard, Unusable
from fastdraft.system.errors import ServerError

LONGEST_WAIT_SECONDS = 30.0
# A server that answers so is asked again; any other refusal is meant for the request.
PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
# A server that answers so says it to every request.
CLOSED = frozenset({401, 403, 404, 405})


class Refused(NamedTuple):
    """A request without a row."""

    reason: str


Answer = Completion | Refused | BaseException | None


class Servers:
    """The target on servers, which are asked for `decoding.top_logprobs` most likely tokens too."""

    def __init__(self, part: ServerPart, decoding: Decoding, tokenizer: PreTrainedTokenizerFast) -> None:
        self.logp: Logp = "none" if part.text_only else "raw"
        self._part, self._decoding, self._tokenizer = part, decoding, tokenizer

    def shards(self, requests: Iterable[Keyed], stored: Keys) -> Iterator[Shard]:
        """Answers in the order in which they come, while a thread of its own keeps the servers busy."""
        wanted = (row for row in requests if row.key not in stored)
        answers: queue.Queue[Answer] = queue.Queue(maxsize=4 * self._decoding.shard_prompts)
        work = _Work(self._part, self._decoding, self._tokenizer, wanted, answers)
        thread = threading.Thread(target=work.run, daemon=True)
        thread.start()
        try:
            yield from _gathered(answers, self._decoding.shard_prompts)
        finally:
            work.stop()
            while thread.is_alive():
                with suppress(queue.Empty):
                    answers.get(timeout=0.05)


def _gathered(answers: queue.Queue[Answer], shard_rows: int) -> Iterator[Shard]:
    """Answers as shards; None ends them, an error is raised once what came before it is given out."""
    rows: list[Completion] = []
    refused: Counter[str] = Counter()
    while True:
        answer = answers.get()
        if isinstance(answer, Completion):
            rows.append(answer)
        elif isinstance(answer, Refused):
            refused[answer.reason] += 1
        ended = answer is None or isinstance(answer, BaseException)
        if len(rows) >= shard_rows or (ended and (rows or refused)):
            yield Shard(rows, refused)
            rows, refused = [], Counter()
        if isinstance(answer, BaseException):
            raise answer
        if answer is None:
            return


class _Task(NamedTuple):
    """A request, and how often it has been sent for nothing."""

    row: Keyed
    failures: int = 0


class _Server:
    """One server: whether it can be reached, and its connections."""

    def __init__(self, url: str, part: ServerPart) -> None:
        self.url = url.rstrip("/")
        self.reachable = asyncio.Event()
        self.down_since: float | None = None
        limits = httpx.Limits(max_connections=part.concurrent_requests + 1, max_keepalive_connections=None)
        key = os.environ.get(part.key_variable or "", "")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.client = httpx.AsyncClient(timeout=part.timeout_seconds, limits=limits, headers=headers, trust_env=False)


class _Work:
    """All requests to all servers, in an event loop of its own thread."""

    def __init__(
        self,
        part: ServerPart,
        decoding: Decoding,
        tokenizer: PreTrainedTokenizerFast,
        requests: Iterator[Keyed],
        answers: queue.Queue[Answer],
    ) -> None:
        self._part, self._decoding, self._tokenizer = part, decoding, tokenizer
        self._requests, self._answers = requests, answers
        self._again: deque[_Task] = deque()
        self._in_flight = 0
        self._stopped = threading.Event()
        self._done = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self) -> None:
        """Ask until there is nothing more to ask; then None, or the error that ended it, is the last answer."""
        _mark_absent("sniffio")
        try:
            asyncio.run(self._all())
        except BaseException as error:
            self._give(error)
        else:
            self._give(None)

    def stop(self) -> None:
        """Send nothing more."""
        self._stopped.set()
        if self._loop is not None and not self._loop.is_closed():
            with suppress(RuntimeError):  # it may close just now
                self._loop.call_soon_threadsafe(self._done.set)

    async def _all(self) -> None:
        self._loop = asyncio.get_running_loop()
        servers = [_Server(url, self._part) for url in self._part.urls]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._watch(server, servers)) for server in servers]
                for server in servers * self._part.concurrent_requests:
                    tasks.append(group.create_task(self._worker(server)))
                # Not the end of all workers: those of a server that is gone wait for it.
                await self._done.wait()
                for task in tasks:
                    task.cancel()
        except BaseExceptionGroup as group_error:
            raise _first(group_error) from None
        finally:
            await asyncio.gather(*(server.client.aclose() for server in servers))

    async def _watch(self, server: _Server, servers: list[_Server]) -> None:
        """Ask a server that cannot be reached for its models until it answers; ServerError where none does for long."""
        wait = self._part.backoff_seconds
        while True:
            if server.reachable.is_set():
                await asyncio.sleep(min(self._part.backoff_seconds, 0.05))
                wait = self._part.backoff_seconds
                continue
            fault = await self._fault(server)
            if fault is None:
                server.down_since = None
                server.reachable.set()
                continue
            server.down_since = server.down_since or time.monotonic()
            self._refuse_all_down(servers, fault)
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)

    async def _fault(self, server: _Server) -> str | None:
        """Why a server does not answer; ServerError where it serves another model."""
        try:
            answer = await server.client.get(f"{server.url}/models")
            answer.raise_for_status()
            names = [str(model["id"]) for model in answer.json()["data"]]
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
            return f"{server.url}: {type(error).__name__}: {error}"
        if self._part.model not in names:
            raise ServerError(
                f"{server.url} serves {', '.join(names) or 'no model'}, wanted {self._part.model}\n"
                f"  do: correct synthesize.server.model, or ask the server that serves the target"
            )
        return None

    def _refuse_all_down(self, servers: list[_Server], fault: str) -> None:
        patience = sum(min(self._part.backoff_seconds * 2**i, LONGEST_WAIT_SECONDS) for i in range(self._part.attempts))
        since = [server.down_since for server in servers]
        if all(start is not None and time.monotonic() - start > patience for start in since):
            raise ServerError(
                f"no server has answered for {patience:.0f} s; the last fault: {fault}\n"
                f"  kept: every row that was answered\n"
                f"  do: start a server, check synthesize.server.urls, then run the same command again"
            )

    async def _worker(self, server: _Server) -> None:
        """Send requests to one server as long as there are any."""
        while not self._done.is_set():
            await server.reachable.wait()
            task = self._next()
            if task is None and not self._in_flight:
                self._done.set()
                return
            if task is None:  # another worker's request may still come back
                await asyncio.sleep(0.01)
                continue
            self._in_flight += 1
            try:
                await self._send(server, task)
            finally:
                self._in_flight -= 1

    def _next(self) -> _Task | None:
        if self._again:
            return self._again.popleft()
        row = next(self._requests, None)
        return None if row is None else _Task(row)

    async def _send(self, server: _Server, task: _Task) -> None:
        try:
            answer = await server.client.post(f"{server.url}/completions", json=self._body(task.row))
        except Unusable as unusable:
            await self._give_async(Refused(str(unusable)))
            return
        except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError, httpx.CloseError):
            server.reachable.clear()
            self._again.append(task)
            return
        except httpx.TimeoutException:
            await self._failed(task, f"no answer within {self._part.timeout_seconds:g} s")
            return
        if answer.status_code in PASSING:
            await self._failed(task, f"HTTP {answer.status_code}", answer.headers.get("retry-after"))
        elif answer.status_code != httpx.codes.OK:
            self._refuse_limit(server, answer)
            self._refuse_closed(server, answer)
            await self._give_async(Refused(f"the server answered HTTP {answer.status_code}"))
        else:
            await self._read(server, task, answer)

    async def _read(self, server: _Server, task: _Task, answer: httpx.Response) -> None:
        try:
            content = answer.json()
        except ValueError:
            await self._failed(task, "an answer that is not JSON")
            return
        try:
            given = answer_of(content, task.row, self._part, self._decoding, self._tokenizer, server.url)
        except Unusable as unusable:
            await self._give_async(Refused(str(unusable)))
        else:
            await self._give_async(given)

    def _refuse_limit(self, server: _Server, answer: httpx.Response) -> None:
        """ServerError where a server says no so many log-probabilities: it would of every request."""
        if self._decoding.top_logprobs and "logprobs" in answer.text:
            raise ServerError(
                f"{server.url} gives no {self._decoding.top_logprobs} most likely tokens: {answer.text[:200]}\n"
                f"  do: raise the server's limit (vLLM: --max-logprobs), lower synthesize.top_logprobs, or set "
                f"synthesize.top_logprobs_from=target"
            )

    def _refuse_closed(self, server: _Server, answer: httpx.Response) -> None:
        """ServerError where a server wants another key, or has no such address."""
        if answer.status_code in CLOSED:
            raise ServerError(
                f"{server.url}/completions answered HTTP {answer.status_code}: {answer.text[:200]}\n"
                f"  do: check synthesize.server.urls, each with its /v1, and the key in synthesize.server.key_variable"
            )

    async def _failed(self, task: _Task, why: str, retry_after: str | None = None) -> None:
        """Wait, and put the request back; after the last attempt its row is given up."""
        failures = task.failures + 1
        if failures >= self._part.attempts:
            await self._give_async(Refused(f"{why}, {failures} times"))
            return
        wait = min(self._part.backoff_seconds * 2 ** (failures - 1), LONGEST_WAIT_SECONDS)
        if retry_after is not None and retry_after.isdecimal():
            wait = min(float(retry_after), LONGEST_WAIT_SECONDS)
        await asyncio.sleep(wait)
        self._again.append(task._replace(failures=failures))

    def _body(self, row: Keyed) -> dict[str, Any]:
        """What is asked. All that a server may have a default of its own for is said."""
        sampling = row.request.sampling
        prompt = row.request.prompt
        return {
            "model": self._part.model,
            "prompt": text_of_prompt(prompt, self._tokenizer) if self._part.text_only else prompt.tolist(),
            "add_special_tokens": False,  # to a text: a prompt has those that it wants
            "max_tokens": self._decoding.max_new_tokens,
            "stop_token_ids": sorted(self._decoding.eos),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "min_p": 0.0,
            # llama-server's own order cuts before it divides by the temperature.
            "samplers": ["temperature", "top_k", "top_p"],
            "repetition_penalty": 1.0,
            "seed": int(row.key, 16) % 2**31,
            "logprobs": self._decoding.top_logprobs or 1,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }

    def _give(self, answer: Answer) -> None:
        self._answers.put(answer)

    async def _give_async(self, answer: Answer) -> None:
        """Hand on; where the reader is behind, the servers wait and the others' answers are not held up."""
        while not self._stopped.is_set():
            try:
                self._answers.put_nowait(answer)
                return
            except queue.Full:
                await asyncio.sleep(0.01)


def _mark_absent(module: str) -> None:
    """A module that is not installed is not looked for again; to import it fails as before.

    httpcore 1.0.9 tries sniffio at each use of a lock (encode/httpcore#1103): 3.9 ms of CPU a request, 2.7 with this.
    """
    if find_spec(module) is None:
        sys.modules.setdefault(module, None)  # type: ignore[arg-type]


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a group, the innermost."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
