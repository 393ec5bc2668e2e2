"""Training on several processes: DDP replicates the draft in each, FSDP2 shards it.

In both the gradient of a step is the sum over the tokens of all processes; the loop divides it once by their number.
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


def parallelize(learner: Learner, method: str, device: torch.device) -> nn.Module:
    """Move the learner to `device` and wrap it for `ddp` or `fsdp`. A single process gets it back unwrapped."""
    learner.to(device)
    if processes.world_size() == 1:
        return learner
    return _shard(learner, device) if method == "fsdp" else _replicate(learner)


def _replicate(learner: Learner) -> DistributedDataParallel:
    module = DistributedDataParallel(learner, gradient_as_bucket_view=True)
    module.broadcast_buffers = False  # rotary embeddings, equal in all processes
    # DDP averages by default. A lambda, because DDP rejects a hook whose annotations are strings, as they are here.
    module.register_comm_hook(None, lambda _, bucket: _all_reduce_sum(bucket.buffer()))
    return module


def _all_reduce_sum(tensor: Tensor) -> torch.futures.Future[Tensor]:
    work: Any = dist.all_reduce(tensor, async_op=True)
    future: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
    return future


def _shard(learner: Learner, device: torch.device) -> nn.Module:
    """One FSDP group per layer, and one for the rest: embedding, last norm and output layer."""
    mesh = init_device_mesh(device.type, (processes.world_size(),))
    for weight in learner.parameters():
        dist.broadcast(weight.data, src=0)  # as DDP does: machines may differ in the last bits of initial weights
    layers: Any = learner.model.base_model.layers
    for module in (*layers, learner):
        group: FSDPModule = fully_shard(module, mesh=mesh)
        group.set_gradient_divide_factor(1.0)
        group.set_force_sum_reduction_for_comms(True)  # gloo supports neither a mean nor a factor
    return learner


@contextmanager
def sync_gradients_if(last: bool, module: nn.Module) -> Iterator[None]:
    """Add gradients over the processes only in the `last` backward pass of a step."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
    elif isinstance(module, DistributedDataParallel) and not last:
        with module.no_sync():
            yield
        return
    yield


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """() the global gradient norm before the gradients are scaled down to `max_norm`."""
    return full_tensor(nn.utils.clip_grad_norm_(parameters, max_norm))


def sum_over_processes(total: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if processes.world_size() > 1:
        dist.all_reduce(total)
    return total


def gather_model(model: PreTrainedModel) -> PreTrainedModel:
    """The model with full weights in every process; the model itself if it is not sharded.

    It is a new model, because a sharded module returns shards even while its weights are full.
    """
    if not any(isinstance(weight, DTensor) for weight in model.parameters()):
        return model
    weights = {name: full_tensor(weight.detach()) for name, weight in model.named_parameters()}
    gathered = type(model)(model.config)
    gathered.load_state_dict(weights, strict=False)  # a tied output layer is the embedding
    return gathered


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor in every process. All processes must call it for a sharded tensor."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, reference: Tensor) -> Tensor:
    """This process's shard of a full tensor, if `reference` is sharded; else the tensor."""
    if not isinstance(reference, DTensor):
        return tensor
    return distribute_tensor(
        tensor.to(reference.device), reference.device_mesh, reference.placements, src_data_rank=None
    )


def gather_matrices(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Pre-hook of Muon's step: replicate sharded gradients and momenta in every process.

    Muon orthogonalises whole matrices. On shards torch does so in pieces, in bf16, which rounds differently (loss off
    by 7e-5 after ten steps) and takes three times as long (docs/decisions/0004-processes.md).
    """
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if isinstance(weight.grad, DTensor):
                weight.grad = _replicated(weight.grad)
                state = optimizer.state[weight]
                state |= {name: _replicated(value) for name, value in state.items() if isinstance(value, DTensor)}


def _replicated(tensor: DTensor) -> DTensor:
    return tensor.redistribute(placements=[Replicate()] * tensor.device_mesh.ndim)
