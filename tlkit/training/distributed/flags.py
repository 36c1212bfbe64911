"""Flags that the processes of a run exchange after every batch, without waiting for their devices."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed

from tlkit.training.distributed.launch import COLLECTIVE_TIMEOUT


class SharedFlags:
    """Numbers whose maximum all processes get, one call later.

    They go over the CPU, and each call takes up what the call before it has sent: neither a device that works behind Python nor
    another process is waited for.
    """

    def __init__(self) -> None:
        self._group: Any = distributed.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
        self._sent: tuple[Tensor, Any] | None = None

    def exchange(self, mine: Sequence[int]) -> list[int]:
        """Return the largest numbers of the call before; zeros at the first. All processes call it equally often."""
        found = [0] * len(mine)
        if self._sent is not None:
            numbers, work = self._sent
            work.wait()
            found = numbers.tolist()
        numbers = torch.tensor(mine, dtype=torch.int32)
        self._sent = numbers, distributed.all_reduce(numbers, distributed.ReduceOp.MAX, group=self._group, async_op=True)
        return found
