"""The processes of one run: this one alone, or those that `torchrun` started."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
from torch import distributed
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]  # PyTorch documents them
from torch.distributed.rendezvous import rendezvous

from sdpl.errors import UserError

STORE_S = 10  # to reach torchrun's store


@dataclass(frozen=True)
class Processes:
    """`world_size` processes with equal models; this one has number `rank`."""

    rank: int = 0
    world_size: int = 1
    store: Store | None = None  # of torchrun's agent, which outlives the processes

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def all_reduce(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each tensor by its sum over all processes; one message for all of them."""
        if self.world_size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        distributed.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def share(self, rows: np.ndarray, cuts: int) -> list[np.ndarray]:
        """This process's part of a batch, cut into `cuts` for accumulation; none of them empty, all nearly equal."""
        parts = np.array_split(rows, self.world_size * cuts)[self.rank * cuts : (self.rank + 1) * cuts]
        return [part for part in parts if len(part)]

    def barrier(self) -> None:
        """Until every process has come here."""
        if self.world_size > 1:
            distributed.barrier()

    def begin(self, run: str) -> None:
        """Remember, for processes that torchrun may start in place of these, that this run has begun."""
        if self.store is not None and self.is_first:
            self.store.set(f"sdpl began {run}", "")

    def began(self, run: str) -> bool:
        """Whether processes that torchrun started before these, and that it lost, had begun this run."""
        return self.store is not None and bool(self.store.check([f"sdpl began {run}"]))


@contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """The group that torchrun's environment describes; gloo on CPUs, NCCL on GPUs.

    torchrun's agent keeps its store when it starts lost processes again (`--max-restarts`), and the addresses of the
    lost ones in it: a process that reads them too early finds nobody there. So each attempt has keys of its own.
    """
    if world_size() == 1:
        yield Processes()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, rank, size = next(iter(rendezvous("env://")))
    attempt = PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=attempt, rank=rank, world_size=size)
    try:
        yield Processes(rank, size, store)
    except (Exception, KeyboardInterrupt):
        speaks()  # before the group ends: what the others see then is its consequence
        raise
    finally:
        distributed.destroy_process_group()


def speaks() -> bool:
    """Whether this process tells the user why it ends: alone always, of those that torchrun started together the first
    that asks. It is told the same as often as it asks."""
    if world_size() == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    rank, attempt = os.environ["RANK"], os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(*place, is_master=False, timeout=timedelta(seconds=STORE_S))
        return bool(store.compare_set(f"sdpl speaks {attempt}", "", rank) == rank.encode())
    except RuntimeError:  # torchrun is gone; twice is better than never
        return True


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def choose_device(name: str) -> torch.device:
    """ "auto" is the GPU (with torchrun: this process's own) or the CPU. Raises UserError for one that is not here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|(cuda|xpu)(:\d{1,3})?", name):
        raise UserError(f"train.device = {name!r}: expected auto, cpu, cuda, or one GPU such as cuda:1.")
    try:
        device = torch.device(name)
        if device.type == "cuda" and world_size() > 1:
            if device.index is not None:
                raise UserError(f"train.device = {name!r} is one GPU for {world_size()} processes: say 'cuda'.")
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"train.device = {name!r} cannot be used ({reason}); 'auto' takes what is there.") from None
    return device
