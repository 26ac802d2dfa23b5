"""The simulator over HTTP: the vendor's shapes, refusals, history, store and realistic scores."""

import asyncio
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from kyc_pipeline.deepxl.client import DeepXLClient, VerificationRequest
from kyc_pipeline.deepxl.contract import receive
from kyc_pipeline.deepxl.simulator import Simulator, running_simulator
from kyc_pipeline.deepxl.simulator.scores import THRESHOLD, invent_verdict, latency_seconds

SEED: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "fixtures" / "seed_response.json").read_bytes()
)
JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + b"x" * 5000
PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + b"x" * 5000
WEBP = b"RIFF\x00\x00\x00\x00WEBPVP8 " + b"x" * 100
PDF = b"%PDF-1.7\n" + b"x" * 100
MP4 = b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom" + b"x" * 100
HEADERS = {"Authorization": "Bearer any"}
TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # never used on loopback; loading one for each call is slow

MakeRequest = Callable[..., VerificationRequest]
Connect = Callable[..., DeepXLClient]


def post(
    server: Simulator,
    submission_id: str = "2024-09-03-0001",
    *,
    identity: bytes | None = JPEG,
    selfie: bytes | None = PNG,
    tags: str | None = None,
    headers: dict[str, str] = HEADERS,
) -> httpx.Response:
    names = {"idFile": ("id.jpg", identity), "selfieFile": ("selfie.png", selfie)}
    files = {name: (file, content) for name, (file, content) in names.items() if content is not None}
    text = json.dumps({"companyId": "COMP-001", "submissionId": submission_id}) if tags is None else tags
    return httpx.post(
        f"{server.url}/v1/verification",
        files=files,
        data={"tags": text},
        headers=headers,
        trust_env=False,
        verify=TLS,
    )


def get(server: Simulator, path: str, **params: str | int) -> httpx.Response:
    return httpx.get(f"{server.url}{path}", params=params, headers=HEADERS, trust_env=False, verify=TLS)


def shape(value: Any) -> Any:
    """The keys (in order) and types of a JSON value."""
    if isinstance(value, dict):
        return [(key, shape(inner)) for key, inner in value.items()]
    if isinstance(value, list):
        return [shape(inner) for inner in value[:1]]
    return type(value)


def test_a_response_has_exactly_the_fields_of_the_example() -> None:
    before = int(time.time())
    with running_simulator(odd_share=0) as server:
        response = post(server)
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("application/json")
    assert shape(response.json()) == shape(SEED)
    result = response.json()["result"]
    assert [check["type"] for check in result["modelResults"]["technicalChecks"]] == [
        "FACE_MATCH",
        "LIVENESS",
        "ID_QUALITY",
    ]
    assert (result["idFileType"], result["idFileName"], result["idFileSize"]) == ("jpeg", "id.jpg", len(JPEG))
    assert (result["selfieFileType"], result["selfieFileSize"]) == ("png", len(PNG))
    assert before <= result["timestamp"] <= time.time()
    assert datetime.fromisoformat(result["timestampISO"] + "Z").timestamp() == result["timestamp"]
    assert result["tags"] == [
        {"name": "companyId", "value": "COMP-001"},
        {"name": "submissionId", "value": "2024-09-03-0001"},
    ]
    assert [file["category"] for file in result["files"]] == ["id", "face"]
    assert result["files"][0]["url"].endswith(f"/v1/files/v_id_{result['verificationId']}_id.jpg")


def test_the_example_fits_the_contract() -> None:
    received = receive(json.dumps(SEED).encode())
    assert (received.verification_id, received.verified) == (457, True)


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic right"}, {"x-api-key": "wrong"}],
)
def test_a_wrong_credential(headers: dict[str, str]) -> None:
    with running_simulator(token="right") as server:
        response = post(server, headers=headers)
        assert response.status_code == 401
        assert response.json()["statusCode"] == 401
        assert (
            httpx.get(
                f"{server.url}/v1/verification", headers=headers, trust_env=False, verify=TLS
            ).status_code
            == 401
        )
        assert server.records == []


@pytest.mark.parametrize("headers", [{"Authorization": "Bearer right"}, {"x-api-key": "right"}])
def test_a_right_credential(headers: dict[str, str]) -> None:
    with running_simulator(token="right") as server:
        assert post(server, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("form", "status"),
    [
        ({"identity": None}, 422),
        ({"selfie": None}, 422),
        ({"tags": "[]"}, 400),
        ({"tags": "{"}, 400),
        ({"tags": '{"a": 1}'}, 400),
        ({"tags": '{"a": "' + "x" * 70_000 + '"}'}, 400),
        ({"identity": b"hello"}, 415),
        ({"identity": b""}, 415),
        ({"identity": MP4}, 415),
        ({"selfie": PDF}, 415),
        ({"identity": PDF, "selfie": MP4}, 200),
        ({"identity": WEBP, "selfie": WEBP}, 200),
        ({"tags": "{}"}, 200),
        ({"tags": ""}, 200),
        ({"identity": JPEG + b"x" * 50 * 1024 * 1024}, 413),
    ],
)
def test_forms(form: dict[str, Any], status: int) -> None:
    with running_simulator() as server:
        response = post(server, **form)
        assert response.status_code == status
        assert len(server.records) == (1 if status == 200 else 0)
        if status == 422:
            missing = "idFile" if "identity" in form else "selfieFile"
            assert response.json()["detail"][0]["loc"] == ["body", missing]


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b""),
        ("multipart/form-data; boundary=b", b"--b\r\n"),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="tags"\r\n\r\n{}'),
        ("multipart/form-data; boundary=b", b"no boundary"),
    ],
)
def test_bodies_that_are_no_form(content_type: str, body: bytes) -> None:
    with running_simulator() as server:
        response = httpx.post(
            f"{server.url}/v1/verification",
            content=body,
            headers={**HEADERS, "Content-Type": content_type},
            trust_env=False,
            verify=TLS,
        )
    assert response.status_code == 400


def test_the_history() -> None:
    with running_simulator() as server:
        posted = {f"2024-09-{day:02d}-x": 0 for day in range(1, 31)}
        for submission_id in posted:
            posted[submission_id] = post(server, submission_id).json()["result"]["verificationId"]

        first = get(server, "/v1/verification").json()
        assert (first["totalCount"], first["count"], len(first["data"])) == (30, 25, 25)
        stamps = [record["timestamp"] for record in first["data"]]
        assert stamps == sorted(stamps, reverse=True)

        rest = get(server, "/v1/verification", offset=25, limit=100).json()
        assert (rest["totalCount"], rest["count"]) == (30, 5)
        assert {record["verificationId"] for record in first["data"] + rest["data"]} == set(posted.values())

        by_id = get(server, "/v1/verification", sortBy="verificationId", direction="asc", limit=100).json()
        assert [record["verificationId"] for record in by_id["data"]] == sorted(posted.values())

        one = get(server, "/v1/verification", tagFilter="submissionId=2024-09-07-x").json()
        assert [record["verificationId"] for record in one["data"]] == [posted["2024-09-07-x"]]
        assert get(server, "/v1/verification", tagFilter="companyId=COMP-001").json()["totalCount"] == 30
        assert get(server, "/v1/verification", tagFilter="companyId=COMP-00").json()["totalCount"] == 0

        identifier = posted["2024-09-07-x"]
        single = get(server, f"/v1/verification/{identifier}").json()
        assert single == {"result": one["data"][0]}
        for missing in ("1", "x", "-1"):
            assert get(server, f"/v1/verification/{missing}").status_code == 404
        assert get(server, f"/v1/files/v_face_{identifier}_selfie.png").status_code == 200
        assert get(server, "/v1/files/v_face_1_selfie.png").status_code == 404


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("limit", "0"),
        ("limit", "101"),
        ("limit", "x"),
        ("offset", "-1"),
        ("sortBy", "x"),
        ("direction", "up"),
    ],
)
def test_wrong_questions_to_the_history(name: str, value: str) -> None:
    with running_simulator() as server:
        response = get(server, "/v1/verification", **{name: value})
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["query", name]


def without_host_and_time(response: httpx.Response) -> str:
    return re.sub(r'http://127\.0\.0\.1:\d+|"timestamp(ISO)?":[^,}]+', "", response.text)


def test_the_same_seed_gives_the_same_responses_in_any_order() -> None:
    ids = [f"2024-09-{day:02d}-0001" for day in range(1, 11)]
    with running_simulator(seed=7) as one, running_simulator(seed=7) as other, running_simulator() as third:
        forward = {name: without_host_and_time(post(one, name)) for name in ids}
        backward = {name: without_host_and_time(post(other, name)) for name in reversed(ids)}
        different = {name: without_host_and_time(post(third, name)) for name in ids}
    assert forward == backward
    assert forward != different


def test_a_second_post_makes_a_second_record() -> None:
    with running_simulator() as server:
        ids = {post(server, "s-1").json()["result"]["verificationId"] for _ in range(3)}
        assert len(ids) == len(server.records) == server.received["s-1"] == 3


def test_the_store_keeps_the_records(tmp_path: Path) -> None:
    store = tmp_path / "simulator" / "records.jsonl"
    with running_simulator(store=store) as server:
        identifier = post(server, "s-1").json()["result"]["verificationId"]
    with store.open("ab") as file:
        file.write(b'{"verificationId": 9, "cut')  # as left by a kill during a write
    with running_simulator(store=store) as server:
        found = get(server, "/v1/verification", tagFilter="submissionId=s-1").json()
        assert [record["verificationId"] for record in found["data"]] == [identifier]
        post(server, "s-2")
    with running_simulator(store=store) as server:
        assert [record.tag("submissionId") for record in server.records] == ["s-1", "s-2"]


def test_scores_look_like_life() -> None:
    verdicts = [
        invent_verdict(1, f"2024-09-{1 + number % 28:02d}-{number:05d}", f"COMP-{number % 5}", odd_share=0.01)
        for number in range(4000)
    ]
    statuses = Counter((check.type, check.status) for verdict in verdicts for check in verdict.checks)
    for kind, low, high in (
        ("FACE_MATCH", 0.02, 0.08),
        ("LIVENESS", 0.015, 0.06),
        ("ID_QUALITY", 0.03, 0.12),
    ):
        assert low < statuses[kind, "FAIL"] / len(verdicts) < high
        assert 0 < statuses[kind, "REVIEW"] / len(verdicts) < 0.01
    for verdict in verdicts:
        for check in verdict.checks:
            if isinstance(check.confidence, float):
                assert 0 <= check.confidence <= 1
                if check.status != "REVIEW":
                    assert (check.confidence >= THRESHOLD) == (check.status == "PASS")
    unexplained = [
        verdict
        for verdict in verdicts
        if verdict.verified != all(check.status == "PASS" for check in verdict.checks)
    ]
    assert 0 < len(unexplained) < 0.03 * len(verdicts)
    assert any(verdict.verified for verdict in unexplained)
    assert not all(verdict.verified for verdict in unexplained)


def fail_rate(verdicts: list[Any]) -> float:
    failed: int = sum(verdict.checks[2].status == "FAIL" for verdict in verdicts)
    return failed / len(verdicts)


def test_scores_differ_between_companies_and_drift_over_the_days() -> None:
    companies = [
        fail_rate([invent_verdict(0, f"2024-09-03-{number}", f"COMP-{company}", 0) for number in range(1000)])
        for company in range(6)
    ]
    assert max(companies) > 1.5 * min(companies)
    days = [
        fail_rate([invent_verdict(0, f"2024-09-{day:02d}-{number}", "COMP-1", 0) for number in range(1000)])
        for day in range(1, 29, 7)
    ]
    assert max(days) > 1.5 * min(days)


def test_latency_is_spread_around_its_median() -> None:
    seconds = sorted(latency_seconds(0, f"s-{number}", 300) for number in range(2001))
    assert 0.27 < seconds[1000] < 0.33
    assert seconds[-1] > 0.6
    assert latency_seconds(0, "s-1", 0) == 0


def test_a_port_that_is_taken() -> None:
    with running_simulator() as server:
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"), running_simulator(port=port):
            pass


def test_it_listens_elsewhere_if_told_so() -> None:
    async def addresses() -> list[str]:
        urls = []
        for host in ("127.0.0.2", "::1"):
            server = Simulator()
            urls.append((await server.start(host=host)).rpartition(":")[0])
            await server.stop()
        return urls

    assert asyncio.run(addresses()) == ["http://127.0.0.2", "http://[::1]"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    code = "from kyc_pipeline.cli.simulator import simulator; simulator()"
    options = ["--port", "0", "--token", "right", "--store", str(tmp_path / "records.jsonl")]
    with subprocess.Popen(
        [sys.executable, "-c", code, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        url = process.stdout.readline().split()[-1]
        try:
            assert url.startswith("http://127.0.0.1:")
            response = httpx.get(
                f"{url}/v1/verification", headers={"x-api-key": "right"}, trust_env=False, verify=TLS
            )
            assert response.json() == {"totalCount": 0, "count": 0, "data": []}
        finally:
            process.send_signal(number)
        assert process.wait() == 0
        assert process.stderr.read() == ""
