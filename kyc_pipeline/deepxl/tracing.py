"""OpenTelemetry spans of the calls to DeepXL.

There are none without the extra `traces`, or in a process without an OpenTelemetry SDK. A span names no
submission and no person, so it omits the URL of a look-up.
"""

import contextlib
from collections.abc import Iterator

from kyc_pipeline.deepxl.call_errors import DeepXLError

try:
    from opentelemetry import trace
except ModuleNotFoundError:
    _tracer = None
else:
    _tracer = trace.get_tracer("kyc_pipeline.deepxl")


@contextlib.contextmanager
def span_of(operation: str, method: str, host: str) -> Iterator[None]:
    """A span around one operation, such as `verify`, with the status and the class of a failure."""
    if _tracer is None:
        yield
        return
    with _tracer.start_as_current_span(
        f"deepxl.{operation}",
        kind=trace.SpanKind.CLIENT,
        attributes={"http.request.method": method, "server.address": host},
        # An exception's message may name the submission.
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield
        except DeepXLError as error:
            span.set_attributes({"error.type": type(error).__name__, "deepxl.sent": error.sent.value})
            if error.http_status is not None:
                span.set_attribute("http.response.status_code", error.http_status)
            span.set_status(trace.StatusCode.ERROR)
            raise
