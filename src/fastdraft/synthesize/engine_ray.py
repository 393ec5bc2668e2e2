"""The engine `transformers` on Ray: the same groups of rows, and so the same bits, answered by several workers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from fastdraft.config import TargetPart
from fastdraft.models import target
from fastdraft.synthesize.completions import Completion, Keys
from fastdraft.synthesize.engine_transformers import answered, groups
from fastdraft.synthesize.write import Decoding, Keyed, Logp, Shard
from fastdraft.system import ray_cluster

AHEAD = 2  # groups given to a worker at once, so that it never waits for the next


class OnRay:
    """Workers that each hold the target; on the cluster at RAY_ADDRESS, otherwise on one that is started here."""

    logp: Logp = "processed"

    def __init__(self, part: TargetPart, dtype: torch.dtype, workers: int, decoding: Decoding) -> None:
        self._part, self._dtype, self._workers, self._decoding = part, dtype, workers, decoding
        ray_cluster.load()  # what is missing is said before any work

    def shards(self, requests: Iterable[Keyed], stored: Keys) -> Iterator[Shard]:
        """One shard for each group of requests that is not stored whole, in the order in which they end."""
        with ray_cluster.connected(self._workers) as ray:
            yield from self._answered(ray, requests, stored)

    def _answered(self, ray: Any, requests: Iterable[Keyed], stored: Keys) -> Iterator[Shard]:
        actor = ray.remote(num_gpus=int(torch.cuda.is_available()))(_Worker)
        threads = torch.get_num_threads()
        workers = [actor.remote(self._part, self._dtype, threads, self._decoding) for _ in range(self._workers)]
        waiting = (group for group in groups(requests, self._decoding.shard_prompts))
        running: dict[Any, tuple[Any, set[str]]] = {}
        idle = workers * AHEAD
        while True:
            while idle and (group := next(waiting, None)) is not None:
                missing = {row.key for row in group if row.key not in stored}
                if missing:
                    worker = idle.pop(0)
                    running[worker.answer.remote(group)] = worker, missing
            if not running:
                return
            (done,), _ = ray.wait(list(running), num_returns=1)
            worker, missing = running.pop(done)
            idle.append(worker)
            yield Shard([row for row in ray.get(done) if row.key in missing])


class _Worker:
    """A process that holds the target."""

    def __init__(self, part: TargetPart, dtype: torch.dtype, threads: int, decoding: Decoding) -> None:
        torch.set_num_threads(threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._target, self._decoding = target.open_model(part, device, dtype), decoding

    def answer(self, group: list[Keyed]) -> list[Completion]:
        """The rows of one group."""
        return answered(self._target, group, self._decoding)
