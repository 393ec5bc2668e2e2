"""The playground in OpenVINO GenAI. A streamer receives the tokens of each block from the engine's own pipelines.

The engine does not report which tokens were drafted. The last token of a block is the target's own, the others were
accepted.
"""

from __future__ import annotations

from collections.abc import Iterator
from queue import Queue
from threading import Event, Thread
from time import perf_counter
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from fastdraft.benchmark.engine import Arm, BenchRequest
from fastdraft.benchmark.engine_openvino import OpenedOpenVino
from fastdraft.benchmark.engine_openvino import OpenVino as OpenVinoEngine
from fastdraft.models.openvino import EXTRA
from fastdraft.play.blocks import SIDES, Block, Request, Side
from fastdraft.synthesize.completions import SamplingParams
from fastdraft.system.optional_packages import need


class OpenVino:
    """A pair of exported models. The engine cannot pause a generation."""

    name, interleaves, keeps_distribution = "OpenVINO GenAI", False, OpenVinoEngine.keeps_distribution

    def __init__(self, opened: OpenedOpenVino, tokenizer: PreTrainedTokenizerFast, context_tokens: int) -> None:
        self._opened, self.tokenizer, self.context_tokens = opened, tokenizer, context_tokens
        warm_up = Request(np.zeros(1, np.int64), SamplingParams(0.0), gamma=1, max_new_tokens=2, seed=0)
        for side in SIDES:  # the first request opens the pipeline, which takes seconds
            list(self.blocks(warm_up, side))

    def blocks(self, request: Request, side: Side) -> Iterator[Block]:
        """Blocks as the engine streams them. If the caller stops early, the engine stops at its next block."""
        gamma = request.gamma if side == "drafted" else 0
        arm = Arm("draft", gamma) if gamma else Arm("none")
        bench_request = BenchRequest(request.prompt, request.sampling, request.max_new_tokens, request.seed)
        queue: Queue[list[int] | BaseException | None] = Queue()
        stop = Event()
        thread = Thread(target=_generate, args=(self._opened, bench_request, arm, queue, stop), daemon=True)
        started, drafted = perf_counter(), 0  # the forward over the prompt emits one token; nothing was drafted for it
        thread.start()
        try:
            while (item := queue.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield Block(tuple(item), len(item) - 1 if drafted else 0, drafted, perf_counter() - started)
                drafted = gamma
        finally:
            stop.set()
            thread.join()


def _generate(
    opened: OpenedOpenVino,
    request: BenchRequest,
    arm: Arm,
    queue: Queue[list[int] | BaseException | None],
    stop: Event,
) -> None:
    """Run in a thread: put the tokens of each block into the queue, then an error if one occurred, then None."""
    genai = need("openvino_genai", EXTRA)
    base: Any = genai.StreamerBase

    class Streamer(base):  # type: ignore[misc]
        """Passes tokens on to the queue."""

        def write(self, tokens: Any) -> Any:
            """Receive one token or a block."""
            queue.put([tokens] if isinstance(tokens, int) else list(tokens))
            return genai.StreamingStatus.STOP if stop.is_set() else genai.StreamingStatus.RUNNING

        def end(self) -> None:
            """Nothing is buffered."""

    try:
        opened.stream(request, arm, Streamer())
    except Exception as error:  # raised again in `blocks`
        queue.put(error)
    finally:
        queue.put(None)
