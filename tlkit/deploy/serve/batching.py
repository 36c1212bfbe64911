"""Images of different requests go through the network together: one thread runs it, and those that come meanwhile are the next batch."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Waiting = tuple[Pixels, "asyncio.Future[NDArray[np.float64]]"]


class Batches:
    """answer: [B, S, S, C] -> [B, K]. more_come: of the number in hand, whether further images are on their way.

    A batch goes off when it has `size` images, when none are on their way, or `wait_s` after its first.
    """

    def __init__(
        self,
        answer: Callable[[Pixels], NDArray[np.float64]],
        *,
        size: int,
        wait_s: float,
        more_come: Callable[[int], bool],
        on_batch: Callable[[int], None],
    ) -> None:
        self._answer = answer
        self._size, self._wait_s = size, wait_s
        self._more_come, self._on_batch = more_come, on_batch
        self._queue: asyncio.Queue[Waiting] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="network")
        self._task: asyncio.Task[Any] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._thread.shutdown(wait=True)

    @property
    def alive(self) -> bool:
        return self._task is not None and not self._task.done()

    async def ask(self, image: Pixels) -> NDArray[np.float64]:
        """Return the probabilities, [K], of an image [S, S, C]."""
        future: asyncio.Future[NDArray[np.float64]] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((image, future))  # Room has refused what would be too much
        return await future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [waiting for waiting in await self._next_batch() if not waiting[1].done()]  # done: given up meanwhile
            if not batch:
                continue
            self._on_batch(len(batch))
            try:
                answers = await loop.run_in_executor(self._thread, self._answer, np.stack([image for image, _ in batch]))
            except Exception as error:
                _give_up(batch, error)
                continue
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)

    async def _next_batch(self) -> list[Waiting]:
        batch = [await self._queue.get()]
        until = asyncio.get_running_loop().time() + self._wait_s
        while len(batch) < self._size:
            if not self._queue.empty():
                batch.append(self._queue.get_nowait())
                continue
            if not self._more_come(len(batch)):
                break
            try:
                async with asyncio.timeout_at(until):
                    batch.append(await self._queue.get())
            except TimeoutError:
                break
        return batch


def _give_up(batch: list[Waiting], error: Exception) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(error)
