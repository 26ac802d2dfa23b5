"""Keeps personal data out of the errors that Dagster stores.

Dagster stores and shows the messages of an error and its causes, but only a `KycError` promises a message
without personal data. So a failing step reports the message of a `KycError`, and only the class and location
of any other error. `kyc-pipeline --verbose` prints the full error to standard error.
"""

import contextlib
import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar, cast

import dagster as dg

from kyc_pipeline.errors import FULL_ERRORS, plain_line

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def safe_message(error: Exception) -> str:
    """The line that Dagster may store. Logs the full error if `--verbose` has set up its logger."""
    logger = logging.getLogger(FULL_ERRORS)
    if logger.handlers:  # only its own: Dagster may have handlers on its parents
        logger.error("full error:", exc_info=error)
    return plain_line(error)


def safe_errors(step: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Turns every error of a step or tick into a `dg.Failure` with a safe message.

    Put it below Dagster's decorator.
    """
    if inspect.isgeneratorfunction(step):

        @functools.wraps(step)
        def generator(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Iterator[Any]:
            with _safe():
                yield from cast(Iterator[Any], step(*args, **kwargs))

        return cast(Callable[Parameters, Result], generator)

    @functools.wraps(step)
    def function(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        with _safe():
            return step(*args, **kwargs)

    return function


@contextlib.contextmanager
def _safe() -> Iterator[None]:
    try:
        yield
    except dg.Failure:
        raise  # our own message
    except Exception as error:
        raise dg.Failure(safe_message(error), allow_retries=False) from None
