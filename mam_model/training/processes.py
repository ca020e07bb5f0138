"""Training in one process or in several, as torchrun starts them, each with a part of every batch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .config import TrainingError

# While one process validates, the others wait, which PyTorch takes for a fault after 10 minutes on graphics cards. A
# process that ends is not waited for: torchrun then ends the others.
_LONGEST_WAIT = timedelta(hours=2)


@dataclass(frozen=True)
class Place:
    """Which process this is.

    Attributes:
        rank: from 0; process 0 writes files and speaks.
        world: how many there are.
        device: where this one computes.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def mean(self, *values: float) -> list[float]:
        """The mean of each value over all processes, the same in each of them."""
        if self.world == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        return (sums / self.world).tolist()

    def mean_weight(self, total: Tensor) -> Tensor:
        """The mean of a sum of weights over all processes, see `pyramid_loss`."""
        if self.world == 1:
            return total
        total = total.detach().clone()
        dist.all_reduce(total)
        return total / self.world

    def lost_others(self, error: RuntimeError) -> str | None:
        """A sentence where the error is that another process cannot be reached, most often because it has ended."""
        # Gloo has no class of its own for it.
        if self.world == 1 or not (isinstance(error, dist.DistBackendError) or "/gloo/" in str(error)):
            return None
        return (
            f"Process {self.rank} of {self.world} ends, because another one has ended or cannot be reached. The reason "
            f"is what that one said. ({str(error).splitlines()[0]})"
        )

    def wrapped(self, network: nn.Module) -> nn.Module:
        """The network as it is to be called in training: with gradients and batch statistics of all processes."""
        if self.world == 1:
            return network
        device_ids = [self.device] if self.device.type == "cuda" else None
        # The statistics that it would send around are the same everywhere already.
        return nn.parallel.DistributedDataParallel(network, device_ids=device_ids, broadcast_buffers=False)


@contextmanager
def joined(device: str) -> Iterator[Place]:
    """This process's place among those that torchrun started, or alone.

    Args:
        device: "auto", "cpu", "cuda" or "mps"; of several graphics cards each process takes its own.
    Raises:
        TrainingError: there is no such device here.
    """
    from ..cutout import chosen_device

    world = int(os.environ.get("WORLD_SIZE", "1"))
    try:
        chosen = chosen_device(device)
    except ValueError as error:
        raise TrainingError(str(error)) from error
    if world == 1:
        yield Place(0, 1, chosen)
        return
    if chosen.type == "mps":
        raise TrainingError('Several processes cannot share one mps device. Say device = "cpu", or start only one.')
    if chosen.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise TrainingError(
                f"There are more processes than the {torch.cuda.device_count()} graphics cards of this machine. "
                "Give torchrun --nproc-per-node as many as there are cards."
            )
        chosen = torch.device("cuda", local)
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=_LONGEST_WAIT)
    try:
        yield Place(dist.get_rank(), world, chosen)
    finally:
        dist.destroy_process_group()


def with_shared_statistics(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with batch normalisations whose statistics are those of all processes' samples together."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for name, child in network.named_children():
        if isinstance(child, nn.BatchNorm2d):
            shared = SharedBatchNorm2d(child.num_features, child.eps, child.momentum)
            shared.load_state_dict(child.state_dict())
            setattr(network, name, shared.to(device))
        else:
            with_shared_statistics(child, device)
    return network


class SharedBatchNorm2d(nn.BatchNorm2d):
    """nn.SyncBatchNorm for the CPU, for which PyTorch has none: normalises by the statistics of all processes."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        dims, dtype = (0, 2, 3), x.dtype
        x = x.float()
        per_process = x.numel() // x.shape[1]
        count = per_process * dist.get_world_size()
        mean = _SumOfProcesses.apply(x.sum(dims)) / count
        centered = x - mean[:, None, None]
        variance = _SumOfProcesses.apply(centered.square().sum(dims)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / max(1, count - 1)), self.momentum)
        gain = self.weight * torch.rsqrt(variance + self.eps)
        return (centered * gain[:, None, None] + self.bias[:, None, None]).to(dtype)


class _SumOfProcesses(torch.autograd.Function):
    """The sum over all processes; so is its gradient, because each process's answer counts in every process's loss."""

    @staticmethod
    def forward(context, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total
