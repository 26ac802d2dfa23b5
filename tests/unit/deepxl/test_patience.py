"""The client's time limit, on a clock that jumps to the next timer."""

import asyncio
import selectors
from collections.abc import Callable
from typing import Any

import pytest

from kyc_pipeline.deepxl.patience import Patience


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose time stands still while it works, and passes at once while it would wait."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__(JumpingSelector(self.pass_time))

    def time(self) -> float:
        return self.now

    def pass_time(self, seconds: float) -> None:
        self.now += seconds


class JumpingSelector(selectors.DefaultSelector):
    """Passes time instead of waiting."""

    def __init__(self, pass_time: Callable[[float], None]) -> None:
        super().__init__()
        self._pass_time = pass_time

    def select(self, timeout: float | None = None) -> Any:
        self._pass_time(max(timeout or 0.0, 0.0))
        return super().select(0)


def run(block: Callable[[Patience, JumpingLoop], Any], seconds: float) -> float:
    """How long `block` may run, in seconds of the loop's clock. It never ends by itself."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, JumpingLoop)
        started = loop.time()
        with pytest.raises(TimeoutError):
            async with Patience(seconds) as patience:
                await block(patience, loop)
        return loop.time() - started

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(main())


async def wait(patience: Patience, loop: JumpingLoop) -> None:
    await asyncio.Event().wait()


async def restart_then_wait(patience: Patience, loop: JumpingLoop) -> None:
    await asyncio.sleep(2)
    patience.restart()
    await asyncio.Event().wait()


async def be_suspended_then_wait(patience: Patience, loop: JumpingLoop) -> None:
    loop.pass_time(3600)
    await asyncio.Event().wait()


@pytest.mark.parametrize("seconds", [0.3, 2.5, 60])
def test_time_is_up_after_the_given_seconds(seconds: float) -> None:
    assert run(wait, seconds) == pytest.approx(seconds)


def test_a_restart_gives_the_full_time() -> None:
    assert run(restart_then_wait, 2.5) == pytest.approx(4.5)


@pytest.mark.parametrize(("seconds", "left"), [(0.3, 1), (2.5, 1.5), (60, 59)])
def test_a_suspension_does_not_count_and_leaves_a_second_at_least(seconds: float, left: float) -> None:
    assert run(be_suspended_then_wait, seconds) == pytest.approx(3600 + left)
