"""The engine `transformers` on Ray: several workers complete the same groups of requests, with the same bits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from fastdraft.config import TargetPart
from fastdraft.models import pretrained
from fastdraft.synthesize.completions import Completion
from fastdraft.synthesize.decoding_params import DecodingParams
from fastdraft.synthesize.engine_interface import KeyedRequest, LogprobsMode, Shard
from fastdraft.synthesize.engine_transformers import complete_group, sampling_groups
from fastdraft.synthesize.key_set import KeySet
from fastdraft.system import ray_cluster

GROUPS_PER_WORKER = 2  # one in progress and one queued, so that a worker never waits


class RayEngine:
    """Workers that each hold the target, on the cluster at RAY_ADDRESS, by default on one started here."""

    logprobs_mode: LogprobsMode = "processed"

    def __init__(self, target: TargetPart, dtype: torch.dtype, workers: int, decoding: DecodingParams) -> None:
        self._target, self._dtype, self._workers, self._decoding = target, dtype, workers, decoding
        ray_cluster.load()  # a missing package is reported before any work

    def shards(self, requests: Iterable[KeyedRequest], stored: KeySet) -> Iterator[Shard]:
        """One shard per group of requests that is not fully stored, in the order in which they end."""
        with ray_cluster.connected(self._workers) as ray:
            actor = ray.remote(num_gpus=int(torch.cuda.is_available()))(_Worker)
            threads = torch.get_num_threads()
            workers = [actor.remote(self._target, self._dtype, threads, self._decoding) for _ in range(self._workers)]
            waiting = sampling_groups(requests, self._decoding.shard_prompts)
            running: dict[Any, tuple[Any, set[str]]] = {}
            idle = workers * GROUPS_PER_WORKER
            while True:
                while idle and (group := next(waiting, None)) is not None:
                    missing = {row.key for row in group if row.key not in stored}
                    if missing:
                        worker = idle.pop(0)
                        running[worker.complete.remote(group)] = worker, missing
                if not running:
                    return
                (done,), _ = ray.wait(list(running), num_returns=1)
                worker, missing = running.pop(done)
                idle.append(worker)
                yield Shard([row for row in ray.get(done) if row.key in missing])


class _Worker:
    """A process that holds the target."""

    def __init__(self, part: TargetPart, dtype: torch.dtype, threads: int, decoding: DecodingParams) -> None:
        torch.set_num_threads(threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._target, self._decoding = pretrained.open_model(part, device, dtype), decoding

    def complete(self, group: list[KeyedRequest]) -> list[Completion]:
        return complete_group(self._target, group, self._decoding)
