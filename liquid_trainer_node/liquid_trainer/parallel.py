"""
Processes that learn one policy together, started by torchrun on one machine or several.

A batch is made of shards. Every process takes its shards of each batch, gradients are averaged
over all of them, and all processes take the same step. How a batch is cut does not depend on how
many processes there are, so one process, two, and two machines give the same losses within
rounding.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

# A process that died is noticed at once, by its closed connection; this is for a network that
# went silent. Others wait this long while one decodes bags.
_PATIENCE = timedelta(hours=2)


def _leave_at_once() -> None:
    """End with 1 when all is said: gloo's threads sometimes abort an ordinary ending."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


class LostProcessError(ConnectionError):
    """Another process of the training has ended."""


class Group:
    """
    The processes of a training, and what they exchange; a single one needs no connection.

    :param rank: of this process; 0 leads, and is the only one that writes.
    :param size: how many processes there are.
    :param local_rank: of this process on its machine.
    :param local_size: how many processes this machine has.
    :param device: where exchanged numbers lie.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, local_size: int = 1,
                 device: torch.device | str = 'cpu'):
        self.rank, self.size = rank, size
        self.local_rank, self.local_size = local_rank, local_size
        self.device = torch.device(device)

    @classmethod
    def join(cls, device: str = 'cpu', meeting_point: str = 'env://') -> Group:
        """
        Meet the other processes, as the environment says that torchrun makes.

        :param device: `cpu` (exchanged by gloo) or `cuda` (by NCCL, one device per process).
        :param meeting_point: see `torch.distributed.init_process_group`.
        :return: a group of one where there is no such environment.
        :raises LostProcessError: if they do not meet.
        """
        if 'WORLD_SIZE' not in os.environ:
            return cls(device=device)
        rank, size, local_rank, local_size = (
            int(os.environ[name]) for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK',
                                               'LOCAL_WORLD_SIZE'))
        if device == 'cuda':
            torch.cuda.set_device(local_rank)
            device = f'cuda:{local_rank}'
        group = cls(rank, size, local_rank, local_size, device)
        if size > 1:
            with group._together('meet'):
                distributed.init_process_group(
                    'nccl' if group.device.type == 'cuda' else 'gloo', meeting_point, _PATIENCE,
                    rank=rank, world_size=size)
        return group

    def leave(self) -> None:
        """End the connections."""
        if self.size > 1 and distributed.is_initialized():
            distributed.destroy_process_group()

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes, scores and decides."""
        return self.rank == 0

    def own(self, shards: int) -> range:
        """
        Return the numbers of this process's shards.

        :raises ValueError: if the processes cannot share them out evenly.
        """
        if shards % self.size:
            raise ValueError(f'shards: expected a multiple of the {self.size} processes, came '
                             f'{shards}; give --shards, or start as many processes as before')
        each = shards // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def add(self, values: Tensor) -> Tensor:
        """Sum a tensor over the processes, in place; all get the same numbers."""
        if self.size > 1:
            with self._together('add'):
                distributed.all_reduce(values)
        return values

    def agree(self, *values: float) -> tuple[float, ...]:
        """Return the leading process's numbers: clocks differ, steps must not."""
        if self.size == 1:
            return values
        told = torch.tensor(values, dtype=torch.float64, device=self.device)
        self.hand_out([told])
        return tuple(told.tolist())

    def hand_out(self, tensors: Iterable[Tensor], source: int = 0) -> None:
        """Overwrite tensors with those of one process."""
        if self.size == 1:
            return
        with self._together('hand out'):
            for tensor in tensors:
                # Sent as numbers in a row; truth values as bytes.
                sent = tensor.to(torch.uint8 if tensor.dtype == torch.bool else tensor.dtype,
                                 copy=True, memory_format=torch.contiguous_format)
                distributed.broadcast(sent, source)
                tensor.copy_(sent)

    def hand_out_file(self, path: Path) -> None:
        """Give the leading process's file to machines that do not share its disk."""
        if self.size == 1:
            return
        content = [path.read_bytes() if self.leads and path.exists() else b'']
        with self._together('hand out'):
            distributed.broadcast_object_list(content, 0)
        if self.local_rank == 0 and content[0] and (
                not path.exists() or path.read_bytes() != content[0]):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content[0])
        self.wait()

    def wait(self) -> None:
        """Go on when all processes are here."""
        self.agree(0.0)
        self.add(torch.zeros(1, device=self.device))

    def check_same(self, what: str, content: str) -> None:
        """
        Make sure that all processes were given the same.

        :param what: for the message.
        :param content: compared by its digest.
        :raises ValueError: in every process, if one was given something else.
        """
        digest = hashlib.blake2b(content.encode(), digest_size=6).digest()
        number = float(int.from_bytes(digest, 'big'))       # 48 bits: exact in float64
        lead, = self.agree(number)
        different = torch.zeros(self.size, device=self.device)
        different[self.rank] = float(lead != number)
        others = self.add(different).nonzero().flatten().tolist()
        if others:
            raise ValueError(f'{what}: expected the same in all {self.size} processes, came '
                             f'something else in {others}; start all machines with the same '
                             'arguments, bags and versions')

    @contextmanager
    def _together(self, doing: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:       # what torch.distributed raises for any failure
            atexit.register(_leave_at_once)
            reason = str(error).partition('\n')[0]
            raise LostProcessError(
                f'process {self.rank} of {self.size}: expected all processes of the training to '
                f'{doing}, came: {reason}; another process has ended or cannot be reached, see '
                'its messages, then go on with --resume') from error


def average_gradient(group: Group, shards: int, trained: Sequence[nn.Parameter],
                     buffers: Sequence[Tensor], loss_of: Callable[[int], tuple[Tensor, dict]],
                     names: Sequence[str]) -> tuple[float, dict[str, float]]:
    """
    Leave the gradient of the mean of all shards' losses in the parameters.

    Every shard starts from the same buffers (batch norm's statistics, say); what each adds to
    them is averaged likewise. A parameter that no shard's loss depends on has no gradient.

    :param group: who takes which shards.
    :param shards: that a batch is made of.
    :param trained: parameters.
    :param buffers: what a loss may change besides.
    :param loss_of: returns the loss of a shard and its parts, scalars by name.
    :param names: of all parts there may be.
    :return: loss and parts, averaged over the shards that have them.
    """
    for parameter in trained:
        parameter.grad = None
    if shards == 1:         # then they are what they should be
        buffers = ()
    start = [buffer.clone() for buffer in buffers]
    grown = [torch.zeros_like(buffer, dtype=torch.float64) for buffer in buffers]
    told = torch.zeros(2, 1 + len(names), dtype=torch.float64)      # sums; how many
    for shard in group.own(shards):
        for buffer, value in zip(buffers, start, strict=True):
            buffer.copy_(value)
        loss, parts = loss_of(shard)
        (loss / shards).backward()
        for total, buffer, value in zip(grown, buffers, start, strict=True):
            total += buffer.double() - value.double()
        for name, value in (('', loss), *parts.items()):
            column = 0 if not name else 1 + names.index(name)
            told[0, column] += float(value.detach())
            told[1, column] += 1
    if group.size > 1:
        _add_gradients(group, trained)
        flat = torch.cat([told.flatten().to(group.device), *(g.flatten() for g in grown)])
        group.add(flat)
        told = flat[:told.numel()].view_as(told).cpu()
        sums = flat[told.numel():].split([buffer.numel() for buffer in buffers])
        grown = [total.view_as(buffer) for total, buffer in zip(sums, buffers, strict=True)]
    for buffer, value, total in zip(buffers, start, grown, strict=True):
        buffer.copy_(value.double() + total / shards)
    means = (told[0] / told[1]).tolist()
    return means[0], {name: mean for name, mean, count in
                      zip(names, means[1:], told[1, 1:], strict=True) if count}


def _add_gradients(group: Group, trained: Sequence[nn.Parameter]) -> None:
    """Sum gradients over the processes, in one message."""
    known = torch.tensor([float(p.grad is not None) for p in trained], device=group.device)
    flat = torch.cat([known, *(torch.zeros_like(p).flatten() if p.grad is None
                               else p.grad.flatten() for p in trained)])
    group.add(flat)
    known = flat[:len(trained)].cpu()
    sums = flat[len(trained):].split([p.numel() for p in trained])
    for parameter, count, total in zip(trained, known, sums, strict=True):
        # Laid out in memory as its weight: another order rounds differently.
        parameter.grad = (torch.empty_like(parameter).copy_(total.view_as(parameter))
                          if count else None)
