"""The progress bar of a backfill, on standard error: days begun, and how far the current day is.

Without a terminal, it prints one line per day instead.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kyc_pipeline.verify.summary import Progress as CallProgress
from kyc_pipeline.wording import plural


@contextlib.contextmanager
def progress_bar(days: int) -> Iterator[Callable[[CallProgress], None]]:
    """Shows a bar over `days` days, and yields the function that updates it."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeRemainingColumn(),
    )
    # Updates come from the thread that runs Dagster.
    lock = threading.Lock()
    seen: set[str] = set()
    ended: set[str] = set()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        all_days = bar.add_task("days", total=days, detail="")
        calls = bar.add_task("verifications", total=None, detail="")

        def update(progress: CallProgress) -> None:
            with contextlib.suppress(OSError):  # output that cannot be written must not stop paid calls
                show(progress)

        def show(progress: CallProgress) -> None:
            detail = f"{progress.per_second:.0f}/s, {plural(progress.retries, 'retry', 'retries')}"
            if progress.estimated_cost is not None:
                detail += f", {progress.estimated_cost} spent"
            with lock:
                if progress.date not in seen:
                    seen.add(progress.date)
                    bar.update(all_days, completed=len(seen))
                    bar.reset(calls, total=progress.total, description=progress.date, detail=detail)
                bar.update(calls, completed=progress.done, total=progress.total, detail=detail)
                if not console.is_terminal and progress.done == progress.total and progress.date not in ended:
                    ended.add(progress.date)
                    line = str(progress) if progress.total else f"{progress.date}: nothing to send"
                    console.print(line, highlight=False, soft_wrap=True)

        yield update
