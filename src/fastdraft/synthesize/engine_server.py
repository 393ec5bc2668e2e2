"""The engine `server`: one or several OpenAI-compatible servers of the target, which share one queue.

A server takes the next request whenever it has room, so a fast one answers more. An unreachable server gets no requests
until it answers again, and its pending requests go back to the queue without counting as attempts.
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
from fastdraft.synthesize.completions import Completion
from fastdraft.synthesize.decoding_params import DecodingParams
from fastdraft.synthesize.engine_interface import KeyedRequest, LogprobsMode, Shard, UnusableAnswer
from fastdraft.synthesize.key_set import KeySet
from fastdraft.synthesize.server_responses import parse_completion, prompt_text
from fastdraft.system.errors import ServerError

MAX_WAIT_SECONDS = 30.0
# Responses after which a request is sent again; any other error is about the request itself.
TRANSIENT_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
# Responses that a server would give to every request: wrong key or address.
FATAL_STATUSES = frozenset({401, 403, 404, 405})


class Refused(NamedTuple):
    """A request without a completion."""

    reason: str


# What the client's thread puts into the queue; an error or None is the last element.
Answer = Completion | Refused | BaseException | None


class ServerEngine:
    """The target on servers; `decoding.top_logprobs` most likely tokens are requested from them too."""

    def __init__(self, part: ServerPart, decoding: DecodingParams, tokenizer: PreTrainedTokenizerFast) -> None:
        self.logprobs_mode: LogprobsMode = "none" if part.text_only else "raw"
        self._part, self._decoding, self._tokenizer = part, decoding, tokenizer

    def shards(self, requests: Iterable[KeyedRequest], stored: KeySet) -> Iterator[Shard]:
        """Completions in the order in which they arrive, while a separate thread keeps the servers busy."""
        missing = (row for row in requests if row.key not in stored)
        answers: queue.Queue[Answer] = queue.Queue(maxsize=4 * self._decoding.shard_prompts)
        client = _Client(self._part, self._decoding, self._tokenizer, missing, answers)
        thread = threading.Thread(target=client.run, daemon=True)
        thread.start()
        try:
            yield from _collect_shards(answers, self._decoding.shard_prompts)
        finally:
            client.stop()
            while thread.is_alive():
                with suppress(queue.Empty):
                    answers.get(timeout=0.05)


def _collect_shards(answers: queue.Queue[Answer], shard_rows: int) -> Iterator[Shard]:
    """Answers as shards. None ends them; an error is raised after everything before it has been yielded."""
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
    """A request, and the number of its failed attempts."""

    row: KeyedRequest
    failures: int = 0


class _Server:
    """One server: its connections, and whether it is reachable."""

    def __init__(self, url: str, part: ServerPart) -> None:
        self.url = url.rstrip("/")
        self.reachable = asyncio.Event()
        self.down_since: float | None = None
        limits = httpx.Limits(max_connections=part.concurrent_requests + 1, max_keepalive_connections=None)
        key = os.environ.get(part.key_variable or "", "")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.client = httpx.AsyncClient(timeout=part.timeout_seconds, limits=limits, headers=headers, trust_env=False)


class _Client:
    """Sends all requests to all servers, in the event loop of a separate thread."""

    def __init__(
        self,
        part: ServerPart,
        decoding: DecodingParams,
        tokenizer: PreTrainedTokenizerFast,
        requests: Iterator[KeyedRequest],
        answers: queue.Queue[Answer],
    ) -> None:
        self._part, self._decoding, self._tokenizer = part, decoding, tokenizer
        self._requests, self._answers = requests, answers
        self._retries: deque[_Task] = deque()
        self._in_flight = 0
        self._stopped = threading.Event()
        self._done = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self) -> None:
        """Send all requests; the last element of the queue is None, or the error that ended this."""
        _skip_import_search("sniffio")
        try:
            asyncio.run(self._send_all())
        except BaseException as error:
            self._answers.put(error)
        else:
            self._answers.put(None)

    def stop(self) -> None:
        """Send no more requests."""
        self._stopped.set()
        if self._loop is not None and not self._loop.is_closed():
            with suppress(RuntimeError):  # the loop may be closing
                self._loop.call_soon_threadsafe(self._done.set)

    async def _send_all(self) -> None:
        self._loop = asyncio.get_running_loop()
        servers = [_Server(url, self._part) for url in self._part.urls]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._watch(server, servers)) for server in servers]
                for server in servers * self._part.concurrent_requests:
                    tasks.append(group.create_task(self._worker(server)))
                # Waiting for all workers would not end: those of an unreachable server wait for it.
                await self._done.wait()
                for task in tasks:
                    task.cancel()
        except BaseExceptionGroup as group_error:
            raise _innermost(group_error) from None
        finally:
            await asyncio.gather(*(server.client.aclose() for server in servers))

    async def _watch(self, server: _Server, servers: list[_Server]) -> None:
        """Poll the models of an unreachable server until it answers; ServerError if all are unreachable for long."""
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
            self._check_any_reachable(servers, fault)
            await asyncio.sleep(wait)
            wait = min(2 * wait, MAX_WAIT_SECONDS)

    async def _fault(self, server: _Server) -> str | None:
        """Why a server is not reachable, None if it is; ServerError if it serves another model."""
        try:
            answer = await server.client.get(f"{server.url}/models")
            answer.raise_for_status()
            names = [str(model["id"]) for model in answer.json()["data"]]
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError, RecursionError) as error:
            return f"{server.url}: {type(error).__name__}: {error}"
        if self._part.model not in names:
            raise ServerError(
                f"{server.url} serves {', '.join(names) or 'no model'}, wanted {self._part.model}\n"
                f"  do: correct synthesize.server.model, or use the server of the target"
            )
        return None

    def _check_any_reachable(self, servers: list[_Server], fault: str) -> None:
        """ServerError once all servers have been unreachable for the sum of all waits of a request."""
        patience = sum(min(self._part.backoff_seconds * 2**i, MAX_WAIT_SECONDS) for i in range(self._part.attempts))
        since = [server.down_since for server in servers]
        if all(start is not None and time.monotonic() - start > patience for start in since):
            raise ServerError(
                f"no server has answered for {patience:.0f} s; the last fault: {fault}\n"
                f"  kept: all completions received so far\n"
                f"  do: start a server, check synthesize.server.urls, then run the same command again"
            )

    async def _worker(self, server: _Server) -> None:
        """Send one request after the other to one server, until all requests are answered."""
        while not self._done.is_set():
            await server.reachable.wait()
            if self._retries:
                task = self._retries.popleft()
            elif (row := next(self._requests, None)) is not None:
                task = _Task(row)
            elif self._in_flight:  # another worker's request may still come back
                await asyncio.sleep(0.01)
                continue
            else:
                self._done.set()
                return
            self._in_flight += 1
            try:
                await self._send(server, task)
            finally:
                self._in_flight -= 1

    async def _send(self, server: _Server, task: _Task) -> None:
        try:
            response = await server.client.post(f"{server.url}/completions", json=self._body(task.row))
        except UnusableAnswer as unusable:
            await self._put(Refused(str(unusable)))
            return
        except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError, httpx.CloseError):
            server.reachable.clear()
            self._retries.append(task)
            return
        except httpx.TimeoutException:
            await self._retry_later(task, f"no answer within {self._part.timeout_seconds:g} s")
            return
        except httpx.DecodingError:
            await self._retry_later(task, "an answer whose compression is damaged")
            return
        if response.status_code in TRANSIENT_STATUSES:
            await self._retry_later(task, f"HTTP {response.status_code}", response.headers.get("retry-after"))
        elif response.status_code != httpx.codes.OK:
            self._check_not_fatal(server, response)
            await self._put(Refused(f"the server answered HTTP {response.status_code}"))
        else:
            await self._receive(server, task, response)

    async def _receive(self, server: _Server, task: _Task, response: httpx.Response) -> None:
        try:
            content = response.json()
        except (ValueError, RecursionError):
            await self._retry_later(task, "an answer that is not JSON")
            return
        try:
            await self._put(
                parse_completion(content, task.row, self._part, self._decoding, self._tokenizer, server.url)
            )
        except UnusableAnswer as unusable:
            await self._put(Refused(str(unusable)))

    def _check_not_fatal(self, server: _Server, response: httpx.Response) -> None:
        """ServerError if the server would answer every request so."""
        if self._decoding.top_logprobs and "logprobs" in response.text:
            raise ServerError(
                f"{server.url} refuses logprobs={self._decoding.top_logprobs}: {response.text[:200]}\n"
                f"  do: raise the server's limit (vLLM: --max-logprobs), lower synthesize.top_logprobs, or set "
                f"synthesize.top_logprobs_from=target"
            )
        if response.status_code in FATAL_STATUSES:
            raise ServerError(
                f"{server.url}/completions answered HTTP {response.status_code}: {response.text[:200]}\n"
                f"  do: check synthesize.server.urls, each with its /v1, and the key in synthesize.server.key_variable"
            )

    async def _retry_later(self, task: _Task, reason: str, retry_after: str | None = None) -> None:
        """Wait, then put the request back into the queue; after the last attempt it is refused."""
        failures = task.failures + 1
        if failures >= self._part.attempts:
            await self._put(Refused(f"{reason}, {failures} times"))
            return
        wait = min(self._part.backoff_seconds * 2 ** (failures - 1), MAX_WAIT_SECONDS)
        if retry_after is not None and retry_after.isdecimal():
            wait = min(float(retry_after), MAX_WAIT_SECONDS)
        await asyncio.sleep(wait)
        self._retries.append(task._replace(failures=failures))

    def _body(self, row: KeyedRequest) -> dict[str, Any]:
        """The JSON of a request. It sets every option for which servers have defaults of their own."""
        sampling, prompt = row.request.sampling, row.request.prompt
        return {
            "model": self._part.model,
            "prompt": prompt_text(prompt, self._tokenizer) if self._part.text_only else prompt.tolist(),
            "add_special_tokens": False,  # the prompt already contains them
            "max_tokens": self._decoding.max_new_tokens,
            "stop_token_ids": sorted(self._decoding.eos),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "min_p": 0.0,
            # llama-server's default order applies top-k and top-p before the temperature.
            "samplers": ["temperature", "top_k", "top_p"],
            "repetition_penalty": 1.0,
            "seed": int(row.key, 16) % 2**31,
            "logprobs": self._decoding.top_logprobs or 1,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }

    async def _put(self, answer: Answer) -> None:
        """Put an answer into the queue; while that is full, wait without blocking the event loop."""
        while not self._stopped.is_set():
            try:
                self._answers.put_nowait(answer)
                return
            except queue.Full:
                await asyncio.sleep(0.01)


def _skip_import_search(module: str) -> None:
    """Make imports of a module that is not installed fail at once, without a search.

    httpcore 1.0.9 tries to import sniffio at each use of a lock (encode/httpcore#1103): 3.9 ms of CPU per request
    instead of 2.7.
    """
    if find_spec(module) is None:
        sys.modules.setdefault(module, None)  # type: ignore[arg-type]


def _innermost(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a group, which may be nested."""
    error = group.exceptions[0]
    return _innermost(error) if isinstance(error, BaseExceptionGroup) else error
