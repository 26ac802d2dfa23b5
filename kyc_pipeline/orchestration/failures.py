"""What a failing step tells Dagster: our own errors in their one line, any other by its class and place.

Dagster keeps an error's text and the texts of its causes in the event log, where they stay and are shown.
Only `KycError` promises to hold no personal data, so nothing else gets that far. The whole error goes to a
logger of its own, which only `kyc-pipeline --verbose` gives a place to go: its standard error.
"""

import contextlib
import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar, cast

import dagster as dg

from kyc_pipeline.errors import WHOLE_ERRORS, plain_line

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def told(error: Exception) -> str:
    """The line for Dagster."""
    logger = logging.getLogger(WHOLE_ERRORS)
    if logger.handlers:  # not those of loggers above it, which Dagster may listen to
        logger.error("the whole error:", exc_info=error)
    return plain_line(error)


def fails_plainly(step: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorates what Dagster runs, below Dagster's own decorator: every error becomes a plain Failure."""
    if inspect.isgeneratorfunction(step):

        @functools.wraps(step)
        def steps(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Iterator[Any]:
            with _plain():
                yield from cast(Iterator[Any], step(*args, **kwargs))

        return cast(Callable[Parameters, Result], steps)

    @functools.wraps(step)
    def one_step(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        with _plain():
            return step(*args, **kwargs)

    return one_step


@contextlib.contextmanager
def _plain() -> Iterator[None]:
    try:
        yield
    except dg.Failure:
        raise  # our own words already
    # Whatever it is: its text may hold what must not be kept.
    except Exception as error:
        raise dg.Failure(told(error), allow_retries=False) from None
