"""What a failing step tells Dagster: the message of a `KycError`, only class and place of any other error.

Dagster stores and shows the message of an error and of its causes. Only `KycError` promises that its message
holds no personal data. The complete error goes to the logger `WHOLE_ERRORS`, which has a handler only with
`kyc-pipeline --verbose`: standard error.
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


def safe_message(error: Exception) -> str:
    """The line that Dagster may store."""
    logger = logging.getLogger(WHOLE_ERRORS)
    if logger.handlers:  # its own: Dagster may listen to its parents
        logger.error("the whole error:", exc_info=error)
    return plain_line(error)


def safe_errors(step: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Turns every error of a step or tick into a `dg.Failure` with a safe message.

    It goes below Dagster's own decorator.
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
