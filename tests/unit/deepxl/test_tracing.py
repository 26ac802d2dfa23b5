"""OpenTelemetry spans of calls: what they say, and that they name nobody."""

from collections.abc import Callable

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from kyc_pipeline.deepxl import tracing
from kyc_pipeline.deepxl.call_errors import MaybeProcessed
from kyc_pipeline.deepxl.client import DeepXLClient, VerificationRequest
from kyc_pipeline.deepxl.simulator import running_simulator
from kyc_pipeline.deepxl.simulator.faults import HTML_502

pytestmark = pytest.mark.anyio
MakeRequest = Callable[..., VerificationRequest]
Connect = Callable[..., DeepXLClient]


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """What a process with an SDK exports."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("test"))
    return exporter


def said(span: ReadableSpan) -> tuple[str, str, dict[str, object]]:
    return span.name, span.status.status_code.name, dict(span.attributes or {})


async def test_each_call_is_a_span_without_the_submission(
    exported: InMemorySpanExporter, connect: Connect, make_request: MakeRequest, token: str
) -> None:
    good, bad = make_request("Jane-Roe-1"), make_request("Jane-Roe-2")
    with running_simulator(token=token, faults={bad.submission_id: [HTML_502]}) as simulator:
        async with connect(simulator.url) as client:
            await client.verify(good)
            with pytest.raises(MaybeProcessed):
                await client.verify(bad)
            await client.find(bad.submission_id)
    spans = exported.get_finished_spans()
    where = {"server.address": "127.0.0.1"}
    post, get = ({"http.request.method": method, **where} for method in ("POST", "GET"))
    failed = {"error.type": "MaybeProcessed", "http.response.status_code": 502, "deepxl.sent": "whole"}
    assert [said(span) for span in spans] == [
        ("deepxl.verify", "UNSET", post),
        ("deepxl.verify", "ERROR", post | failed),
        ("deepxl.find", "UNSET", get),
    ]
    assert all(span.kind.name == "CLIENT" for span in spans)
    assert not [span for span in spans if "Jane-Roe" in span.to_json()]


async def test_without_the_extra_there_are_no_spans(
    monkeypatch: pytest.MonkeyPatch, connect: Connect, make_request: MakeRequest, token: str
) -> None:
    monkeypatch.setattr(tracing, "_tracer", None)
    with running_simulator(token=token) as simulator:
        async with connect(simulator.url) as client:
            assert (await client.verify(make_request())).http_status == 200
