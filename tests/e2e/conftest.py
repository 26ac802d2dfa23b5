"""Fixtures for every end-to-end test."""

import signal

import pytest


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Children take SIGINT, also where the tests were started in a shell's background, which ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
