"""One draft trained by several processes: DDP keeps it whole in each, FSDP2 a shard of it.

Either way a step's gradient is the sum over all processes' tokens, and the loop divides once by their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from fastdraft.system import processes
from fastdraft.train.learner import Learner


def spread(learner: Learner, how: str, device: torch.device) -> nn.Module:
    """The learner over all processes, `ddp` or `fsdp`; itself, where there is one. Its weights move to `device`."""
    learner.to(device)
    if processes.count() == 1:
        return learner
    return _sharded(learner, device) if how == "fsdp" else _replicated(learner)


def _replicated(learner: Learner) -> DistributedDataParallel:
    module = DistributedDataParallel(learner, gradient_as_bucket_view=True)
    module.broadcast_buffers = False  # they are positions' angles, the same everywhere
    # DDP's own reduction is a mean. A lambda: it refuses a hook whose annotations are text, as all are here.
    module.register_comm_hook(None, lambda _, bucket: _summed(bucket.buffer()))
    return module


def _summed(tensor: Tensor) -> torch.futures.Future[Tensor]:
    work: Any = dist.all_reduce(tensor, async_op=True)
    future: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
    return future


def _sharded(learner: Learner, device: torch.device) -> nn.Module:
    """A group of shards for each layer, and one for the rest: embedding, last norm and output layer."""
    mesh = init_device_mesh(device.type, (processes.count(),))
    for weight in learner.parameters():
        dist.broadcast(weight.data, src=0)  # as DDP does: shards of weights made on unlike machines would not fit
    layers: Any = learner.model.base_model.layers
    for module in (*layers, learner):
        part: FSDPModule = fully_shard(module, mesh=mesh)
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo knows neither a mean nor a factor
    return learner


@contextmanager
def summing(module: nn.Module, last: bool) -> Iterator[None]:
    """Gradients are added over the processes in the `last` backward pass of a step alone."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
    elif isinstance(module, DistributedDataParallel) and not last:
        with module.no_sync():
            yield
        return
    yield


def clipped(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """() the global norm of the gradients, before they are scaled down to `max_norm`."""
    return whole(nn.utils.clip_grad_norm_(parameters, max_norm))


def over_processes(total: Tensor) -> Tensor:
    """The sum over processes, in place."""
    if processes.count() > 1:
        dist.all_reduce(total)
    return total


def gathered(model: PreTrainedModel) -> PreTrainedModel:
    """The model with whole weights, in every process; itself, where they are.

    A new one: a sharded module gives away shards, whatever its weights are at the time.
    """
    if not any(isinstance(weight, DTensor) for weight in model.parameters()):
        return model
    weights = {name: whole(weight.detach()) for name, weight in model.named_parameters()}
    found = type(model)(model.config)
    found.load_state_dict(weights, strict=False)  # a tied output layer is the embedding
    return found


def whole(tensor: Tensor) -> Tensor:
    """A tensor whose shards lie in all processes, in each; they must all ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def laid_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor as `other` lies: this process's shard of it, where that is one of several."""
    if not isinstance(other, DTensor):
        return tensor
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)


def gather_matrices(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Before a step of Muon: gradients and momenta whole in every process, where weights are sharded.

    It orthogonalises whole matrices. On shards torch does so in pieces, in bf16: other rounding (loss off by 7e-5 after
    ten steps) and three times the time (docs/decisions/0004-processes.md).
    """
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if isinstance(weight.grad, DTensor):
                weight.grad = _everywhere(weight.grad)
                state = optimizer.state[weight]
                state |= {name: _everywhere(value) for name, value in state.items() if isinstance(value, DTensor)}


def _everywhere(tensor: DTensor) -> DTensor:
    return tensor.redistribute(placements=[Replicate()] * tensor.device_mesh.ndim)
