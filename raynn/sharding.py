"""How several workers share one network, `resources.strategy`: each has all of it (`ddp`), or a part of every weight
(`fsdp`), of its gradient, its moments and its averages; and how what is cut is whole again.

Cut is along a weight's first axis: of n rows each of N workers has ceil(n / N), the last ones fewer or none (torch's
FSDP2; Rajbhandari et al. 2020, section 5, cut all three so). At rest everything is cut. A block is gathered before it
computes, forward and again backward, and let go after it; its gradient is summed over the workers into their parts at
once. What changes a weight component by component or row by row does so on the parts; what needs more than a row asks
here for sums over the parts, or for one whole weight at a time. Both strategies compute the same, to rounding.

What it takes. A device, beside activations: its part of all that is kept; two blocks whole, one that computes and the
next, and all that belongs to no block; with `optimization.accumulate` above 1 the whole gradient, as pieces before the
last are not summed over the workers; with `precision: bf16` a 16-bit copy of all weights from the forward to the
backward pass, as autocast keeps them. A node's CPU: for each of its workers the whole network until it is cut, and a
whole checkpoint while training resumes; for the first worker the whole state while a checkpoint is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.linalg import vector_norm

from raynn.collectives import Workers

T = TypeVar("T")
BUCKET_BYTES = 25 * 2**20  # as torch's DDP has it


def blocks(model: nn.Module) -> list[nn.Module]:
    """What is gathered as one: elements of the lists that a network is made of, the outermost, with a matrix or kernel
    of their own. What shares a weight with the rest is part of the rest, and so is a recurrent layer of torch's, whose
    weights zoneout reads.
    """
    found = list(_elements(model))
    owners: dict[int, set[int]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(id(module))

    def stands_alone(block: nn.Module) -> bool:
        inside = {id(module) for module in block.modules()}
        return all(owners[id(parameter)] <= inside for parameter in block.parameters())

    return [
        block
        for block in found
        if any(p.dim() > 1 for p in block.parameters()) and not isinstance(block, nn.RNNBase) and stands_alone(block)
    ]


def _elements(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(module, nn.ModuleList | nn.Sequential) and not isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _elements(child)


def uncuttable(model: nn.Module) -> str | None:
    """The name of a weight without an axis to cut, if there is one."""
    return next((name for name, parameter in model.named_parameters() if not parameter.dim()), None)


def weight_bytes(model: nn.Module, strategy: str, num_workers: int) -> tuple[int, int]:
    """What the largest part of the weights takes; and what is gathered beside it: two blocks, and what is in none."""

    def size(parameters: Iterable[nn.Parameter]) -> int:
        return sum(p.numel() * p.element_size() for p in parameters)

    if strategy == "ddp" or num_workers == 1:
        return size(model.parameters()), 0
    held = sum(-(-len(p) // num_workers) * p[:1].numel() * p.element_size() for p in model.parameters())
    of_blocks = sorted((size(block.parameters()) for block in blocks(model)), reverse=True)
    return held, size(model.parameters()) - sum(of_blocks) + sum(of_blocks[:2])


def place(model: nn.Module, strategy: str, workers: Workers) -> None:
    """To the worker's device: the whole model, or the worker's part of it.

    One worker has it whole, whatever the strategy: there is nothing to share, and a group of workers that may shrink
    can do so to one. A block is moved and cut before the next, so that a device need not hold the whole.
    """
    if strategy == "ddp" or workers.count == 1:
        model.to(workers.device)
        return
    from torch.distributed.device_mesh import init_device_mesh  # a second to load
    from torch.distributed.fsdp import fully_shard

    if workers.device.type == "cuda":
        torch.cuda.set_device(workers.device)  # where the parts go
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()  # rows one after the other
    mesh = init_device_mesh(workers.device.type, (workers.count,))
    for module in (*blocks(model), model):
        module.register_forward_hook(_no_views)
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def _no_views(module: nn.Module, inputs: object, outputs: Any) -> Any:
    """Outputs that are views as tensors of their own. A view that others change in place would forget that the weights
    behind it are to be gathered for the backward pass.
    """
    if isinstance(outputs, list | tuple):
        found = [_no_views(module, inputs, output) for output in outputs]
        return type(outputs)(*found) if hasattr(outputs, "_fields") else type(outputs)(found)
    is_view = isinstance(outputs, Tensor) and outputs.requires_grad and outputs._base is not None
    return outputs.clone() if is_view else outputs


def data_parallel(model: nn.Module, workers: Workers) -> nn.Module:
    """The model, averaging gradients over workers as they become ready; itself where there is one worker, or where its
    weights are cut, which do so. On CPUs itself, too, and `average_gradients` does it after the backward pass: there is
    nothing to overlap where the sums are the work of the same cores, and torch's DDP loads its compiler, which takes
    each worker 1.7 s.
    """
    if workers.count == 1 or is_cut(model) or workers.device.type != "cuda":
        return model
    network = nn.parallel.DistributedDataParallel(model, device_ids=[workers.device], gradient_as_bucket_view=True)
    # buffers agree on every worker by construction (GlobalBatchNorm); as an attribute the name outlives torch 2.13
    network.broadcast_buffers = False
    return network


def average_gradients(network: nn.Module, workers: Workers) -> None:
    """The mean over workers of each gradient, where the network does not see to that itself; a small network's in one
    sum. A weight without a gradient on this worker counts as one whose gradient is zero.
    """
    if workers.count == 1 or is_cut(network) or isinstance(network, nn.parallel.DistributedDataParallel):
        return
    for bucket in _buckets([parameter for parameter in network.parameters() if parameter.requires_grad]):
        gradients = [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in bucket]
        mean = workers.sum(torch.cat([gradient.flatten() for gradient in gradients])).div_(workers.count)
        for parameter, gradient, part in zip(
            bucket, gradients, mean.split([gradient.numel() for gradient in gradients]), strict=True
        ):
            shaped = part.view_as(gradient)
            # its layout stays the parameter's, which fused optimizers rely on
            parameter.grad = shaped if gradient.is_contiguous() else gradient.copy_(shaped)


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """One after the other, as many as there is room for in BUCKET_BYTES; a larger one alone."""
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if bucket and size + parameter.nbytes > BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.nbytes
    if bucket:
        yield bucket


def bare(network: nn.Module) -> nn.Module:
    """The model inside of what `data_parallel` gave."""
    inside: nn.Module = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
    return inside


@contextmanager
def unsummed(network: nn.Module) -> Iterator[None]:
    """Gradients stay each worker's own; the first backward pass outside sums these, too."""
    if isinstance(network, nn.parallel.DistributedDataParallel):
        with network.no_sync():
            yield
    elif is_cut(network):
        network.set_requires_gradient_sync(False)  # type: ignore[operator]
        yield
        network.set_requires_gradient_sync(True)  # type: ignore[operator]
    else:
        yield


def in_step(batches: Iterable[T], count: int, model: nn.Module, workers: Workers) -> Iterator[tuple[T, bool]]:
    """Each of `count` batches, at least one, and that it counts. Where weights are cut a pass over the network takes
    all workers: who has fewer batches shows it the last one again, and that does not count.
    """
    most = int(workers.max(count)) if is_cut(model) else count
    for batch in batches:
        yield batch, True
    for _ in range(most - count):
        yield batch, False


def is_cut(x: Tensor | nn.Module) -> bool:
    """Whether workers have parts of it."""
    return hasattr(x, "full_tensor" if isinstance(x, Tensor) else "set_requires_gradient_sync")


def own(x: Tensor) -> Tensor:
    """This worker's part, in place; all of what is not cut."""
    return x.detach().to_local() if is_cut(x) else x  # type: ignore[attr-defined]


def first_row(x: Tensor) -> int:
    """Of the whole, which row is the first of this worker's part."""
    if not is_cut(x):
        return 0
    mesh = x.device_mesh  # type: ignore[attr-defined]
    return min(mesh.get_local_rank() * -(-len(x) // mesh.size()), len(x))


def first_component(x: Tensor) -> int:
    """Of the whole, row after row, which component is the first of this worker's part."""
    return first_row(x) * (x.numel() // max(1, len(x))) if is_cut(x) else 0


def summed(x: Tensor, like: Tensor) -> Tensor:
    """The sum over the workers of what each found in its part of a weight like that one; `x`, which is overwritten,
    where weights are whole.
    """
    if is_cut(like):
        dist.all_reduce(x, group=like.device_mesh.get_group())  # type: ignore[attr-defined]
    return x


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """The Frobenius norm [N] of each of these weights or gradients, in float32."""
    own_N = torch.stack([vector_norm(own(x), dtype=torch.float32) for x in tensors])
    if not is_cut(tensors[0]):
        return own_N
    return summed(own_N.double().square(), tensors[0]).sqrt().float()  # whose squares do not overflow


def whole(x: Tensor) -> Tensor:
    """All of it, on every worker's device."""
    return x.full_tensor() if is_cut(x) else x  # type: ignore[attr-defined]


def gathered(tree: Any, workers: Workers) -> Any:
    """Nested values whose tensors are whole again, those that were cut in the memory of the first worker's CPU; the
    others, who take part, get None for them. A device holds one whole tensor at a time.
    """
    if isinstance(tree, dict):
        return {key: gathered(value, workers) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [gathered(value, workers) for value in tree]
    if not isinstance(tree, Tensor) or not is_cut(tree):
        return tree
    found = whole(tree)
    return found.cpu() if workers.rank == 0 else None


def cut(x: Tensor, like: Tensor) -> Tensor:
    """This worker's part of a whole tensor of the shape of `like`, where that is cut; else `x` as it is."""
    if is_cut(x) or not is_cut(like):
        return x
    part = torch.empty_like(like.detach(), dtype=x.dtype)
    first, mine = first_row(like), own(part)
    mine.copy_(x[first : first + len(mine)])
    return part


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Takes over weights and buffers, whole or cut."""
    now = model.state_dict()
    model.load_state_dict({name: cut(x, now[name]) if name in now else x for name, x in weights.items()})


@torch.no_grad()
def step_whole(optimizer: torch.optim.Optimizer) -> None:
    """A step of an optimizer that mixes rows of a matrix: each is whole for it, one after the other, on every worker
    alike, with its gradient and moments.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            one = nn.Parameter(whole(parameter.detach()))
            one.grad = whole(parameter.grad)
            alone = type(optimizer)([{**group, "params": [one]}])  # type: ignore[call-arg]
            alone.state[one] = {name: whole(value) for name, value in optimizer.state[parameter].items()}
            alone.step()
            own(parameter).copy_(own(cut(one.detach(), parameter)))
            optimizer.state[parameter] = {
                name: cut(value, parameter) if isinstance(value, Tensor) and value.shape == parameter.shape else value
                for name, value in alone.state[one].items()
            }
