"""Work in a thread of its own, which a caller may give up."""

import threading
from collections.abc import Callable
from concurrent.futures import Future


def background_thread(
    work: Callable[[], None], ended: "Future[None]", name: str | None = None
) -> threading.Thread:
    """A thread for `work`, not started yet; `ended` gets its end or its error.

    Unlike the threads of an executor, it does not keep the process alive.
    """

    def run() -> None:
        try:
            work()
        except BaseException as error:
            ended.set_exception(error)
        else:
            ended.set_result(None)

    return threading.Thread(target=run, name=name, daemon=True)
