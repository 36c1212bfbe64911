"""Pictures so far, pictures a second, time left: a bar on a terminal, a line now and then elsewhere. On stderr: stdout is for answers."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread

LINE_EVERY_S = 10.0


@contextmanager
def progress(count: Callable[[], int] | None, *, rows: bool = False) -> Iterator[Callable[[int], None]]:
    """Gives what is to be called with the number of pictures after each batch.

    count: how many there are in all, found beside the work because a million files take a while to count; None where nobody can know.
    rows: answers are printed as they come; on a terminal these are progress enough.
    """
    from rich.console import Console
    from rich.progress import Progress

    from tlkit.data.progress import bar_columns

    console = Console(stderr=True)
    began = last_line = time.perf_counter()
    bar = console.is_terminal and not (rows and sys.stdout.isatty())
    with Progress(
        *bar_columns("predict"), console=console, transient=True, disable=not bar, redirect_stdout=False, redirect_stderr=False
    ) as live:
        task = live.add_task("predict", total=None, speed=0.0)
        if count is not None:
            Thread(target=lambda: live.update(task, total=count()), daemon=True).start()

        def advance(images: int) -> None:
            nonlocal last_line
            now = time.perf_counter()
            shown = live.tasks[task]
            rate = (shown.completed + images) / (now - began)
            live.update(task, advance=images, speed=rate)
            if not console.is_terminal and now - last_line > LINE_EVERY_S:
                last_line = now
                print(_line(int(shown.completed), shown.total, rate), file=sys.stderr)

        yield advance


def _line(done: int, total: float | None, rate: float) -> str:
    if total is None:
        return f"predict  {done}  {rate:.0f} pictures/s"
    return f"predict  {done}/{total:.0f}  {rate:.0f} pictures/s, {max(0.0, total - done) / rate:.0f} s left"
