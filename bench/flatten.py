"""Our flatten compared with other ways to turn nested JSON into tables.

Every variant reads the same lake (days of responses and submissions) and writes the same four Parquet tables
with zstd and the same pseudonyms. Ours also keeps what the others lose: number literals, unknown fields,
wrong types, the comparison of the echo with what was sent, and `contract_drift`. `--odd` is the share of
responses with something to report: an unknown field, a missing field, a null, an unknown status (a wrong type
would fail the day for the strict variants). Each run has its own process; the variants take turns. Slow
variants run once, the slowest on a tenth of the days; only the column per response is scaled. The target for
dlt refers to one process, its default; dlt with two processes is shown too.
Run: `python -m bench.flatten [--rows N] [--days N] [--rounds N] [--odd SHARE]`; the defaults take 15
minutes.
"""

import argparse
import functools
import importlib
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
import pyarrow.parquet as pq

from bench.peak_memory import peak_bytes
from kyc_pipeline.flatten.partition import flatten_partition
from kyc_pipeline.lake.storage import DICTIONARY_BYTES, ROW_GROUP_ROWS, Lake
from kyc_pipeline.lake.tables import SUBMISSIONS, VERIFICATION_RESPONSES
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer

PSEUDONYMS = Pseudonymizer("the key of the benchmark")
CLEAR = frozenset({"submissionId", "companyId", "companyName"})
ALLOCATOR = "ARROW_DEFAULT_MEMORY_POOL"
TYPES = ("FACE_MATCH", "LIVENESS", "ID_QUALITY")


def days_of(count: int) -> list[str]:
    return [(date(2024, 9, 1) + timedelta(days=n)).isoformat() for n in range(count)]


def response(chance: random.Random, number: int, tags: dict[str, str], odd: float) -> dict[str, Any]:
    """A response with the fields of the API's example."""
    seconds = 1725148800 + number
    iso = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")[:26]
    checks = []
    for kind in TYPES:
        score = round(chance.betavariate(20, 2), 4)
        verdict = "PASS" if score > 0.7 else "FAIL"
        checks.append(
            {"type": kind, "status": verdict, "confidence": score, "details": f"{kind}: {score:.0%}"}
        )
    name = {"id": "passport.jpg", "face": "live_selfie.jpg"}
    result = {
        "verificationId": 1000 + number,
        "idFileType": "jpeg",
        "idFileName": name["id"],
        "idFileSize": 234567,
        "selfieFileType": "jpeg",
        "selfieFileName": name["face"],
        "selfieFileSize": 112233,
        "model": "verification",
        "verified": all(check["status"] == "PASS" for check in checks),
        "modelResults": {"technicalChecks": checks},
        "timestamp": seconds,
        "timestampISO": iso,
        "tags": [{"name": key, "value": value} for key, value in tags.items()],
        "files": [
            {
                "category": category,
                "fileName": name[category],
                "fileSize": size,
                "contentType": "image/jpeg",
                "timestamp": seconds,
                "timestampISO": iso,
                "url": f"https://api.deepxl.ai/v1/files/v_{category}_{number}_{name[category]}",
            }
            for category, size in (("id", 234567), ("face", 112233))
        ],
    }
    if chance.random() < odd:
        variation = number % 4
        if variation == 0:
            result["risk"] = {"score": 3}
        elif variation == 1:
            del checks[0]["confidence"]
        elif variation == 2:
            checks[1]["details"] = None
        else:
            checks[2]["status"] = "SEE_DETAILS"
    return {"result": result}


def make_day(root: str, index: int, day: str, first: int, size: int, odd: float) -> None:
    """One day of `size` responses, numbered from `first`, with what was sent for them."""
    lake, chance = Lake(root), random.Random(index)
    moment = datetime(2024, 9, 1, tzinfo=UTC)
    with (
        lake.writer(VERIFICATION_RESPONSES, day) as responses,
        lake.writer(SUBMISSIONS, day) as submissions,
    ):
        for start in range(0, size, 2_000):  # the row groups that the engine writes
            sent_rows, response_rows = [], []
            for place in range(start, min(start + 2_000, size)):
                number = first + place
                key, sha256 = f"{day}-{place:08}", f"{number:064x}"
                tags = {
                    "customerId": f"{chance.randrange(10**6)}",
                    "customerName": f"Person {chance.randrange(10**6)}",
                    "documentId": f"DOC-2024-{number:07}",
                    "companyName": f"Company {number % 20}",
                    "companyId": f"COMP-{number % 20:03}",
                }
                text = json.dumps(response(chance, number, {**tags, "submissionId": key}, odd))
                sent_rows.append(
                    {"submission_id": key, "submitted_at": None, "id_file": "a", "selfie_file": "b"}
                    | {"id_sha256": sha256, "selfie_sha256": sha256, "id_size": 234567}
                    | {"selfie_size": 112233, "id_content_type": "image/jpeg", "content_sha256": sha256}
                    | {"selfie_content_type": "image/jpeg", "tags": list(tags.items()), "manifest": "m"}
                    | {"manifest_row": place + 1}
                )
                response_rows.append(
                    {"submission_id": key, "outcome": "completed", "http_status": 200, "attempts": 1}
                    | {"requested_at": moment, "responded_at": moment, "latency_ms": 1.0, "error": None}
                    | {"response": text, "billable_calls": 1, "content_sha256": sha256}
                )
            submissions.write(sent_rows)
            responses.write(response_rows)


def make_lake(root: str, rows: int, days: int, odd: float) -> None:
    edges = [rows * index // days for index in range(days + 1)]
    with ProcessPoolExecutor() as pool:
        made = [
            pool.submit(make_day, root, index, day, edges[index], edges[index + 1] - edges[index], odd)
            for index, day in enumerate(days_of(days))
        ]
        for each in made:
            each.result()


def ours(lake: Lake, out: Path, days: list[str]) -> None:
    for day in days:
        flatten_partition(lake, day, PSEUDONYMS, CLEAR)


# The peers. Each writes, for every day, four tables with the columns that it can fill.


def texts_of(lake: Lake, day: str) -> pa.Table:
    return lake.read(VERIFICATION_RESPONSES, day, ["submission_id", "response"])


def with_pseudonyms(tags: pa.Table) -> pa.Table:
    """The tag table with our pseudonyms, and only clear values."""
    names, values = (tags[column].combine_chunks().cast(pa.string()) for column in ("name", "value"))
    is_clear = pc.is_in(names, value_set=pa.array(sorted(CLEAR)))
    shown = pc.if_else(is_clear, values, pa.scalar(None, pa.string()))
    keys = tags.drop_columns(["name", "value"])
    return (
        keys.append_column("name", names)
        .append_column("value", shown)
        .append_column("pseudonym", PSEUDONYMS.tags(names, values))
    )


def document_pseudonyms(lake: Lake, day: str) -> Any:
    return PSEUDONYMS.documents(lake.read(SUBMISSIONS, day, ["id_sha256"])["id_sha256"].combine_chunks())


def save(out: Path, day: str, **tables: pa.Table) -> None:
    for name, table in tables.items():
        folder = out / name / f"date={day}"
        folder.mkdir(parents=True)
        pq.write_table(
            table,
            folder / "part-0.parquet",
            compression="zstd",
            row_group_size=ROW_GROUP_ROWS,
            dictionary_pagesize_limit=DICTIONARY_BYTES,
        )


S, W, F = pa.string(), pa.int64(), pa.float64()
CHECK = pa.struct([("type", S), ("status", S), ("confidence", F), ("details", S)])
FILE = pa.struct([("category", S), ("contentType", S), ("fileSize", W), ("timestamp", W)])
SCALARS: list[tuple[str, Any]] = [
    ("verificationId", W),
    ("verified", pa.bool_()),
    ("model", S),
    ("modelVersion", S),
    ("timestamp", W),
]
SCALARS += [
    ("timestampISO", S),
    ("idFileType", S),
    ("idFileSize", W),
    ("selfieFileType", S),
    ("selfieFileSize", W),
]
RESULT = pa.struct(
    [
        *SCALARS,
        ("modelResults", pa.struct([("technicalChecks", pa.list_(CHECK))])),
        ("tags", pa.list_(pa.struct([("name", S), ("value", S)]))),
        ("files", pa.list_(FILE)),
    ]
)


def pyarrow_json(lake: Lake, out: Path, days: list[str]) -> None:
    """Lossy: unknown fields vanish, one wrong type fails the day."""
    for day in days:
        responses: Any = texts_of(lake, day)
        lines: Any = pc.binary_join_element_wise(responses["response"], "", "\n").combine_chunks()
        table = pj.read_json(
            cast(Any, pa.BufferReader(lines.buffers()[2])),
            parse_options=pj.ParseOptions(
                explicit_schema=pa.schema([("result", RESULT)]), unexpected_field_behavior="ignore"
            ),
        )
        del lines
        result: Any = table["result"].combine_chunks()
        keys = {
            "verification_id": result.field("verificationId"),
            "submission_id": responses["submission_id"],
        }

        def exploded(lists: Any, keys: dict[str, Any] = keys) -> pa.Table:
            parents = pc.list_parent_indices(lists)
            items = lists.flatten()
            columns = {name: column.take(parents) for name, column in keys.items()}
            return pa.table(columns | {field.name: items.field(field.name) for field in items.type})

        save(
            out,
            day,
            verifications=pa.table(
                keys
                | {name: result.field(name) for name, _ in SCALARS[1:]}
                | {"id_document_pseudonym": document_pseudonyms(lake, day)}
            ),
            model_checks=exploded(result.field("modelResults").field("technicalChecks")),
            verification_tags=with_pseudonyms(exploded(result.field("tags"))),
            verification_files=exploded(result.field("files")),
        )


def duckdb_from_json(lake: Lake, out: Path, days: list[str]) -> None:
    """Lossy: unknown fields vanish, texts that look like numbers become numbers."""
    import duckdb

    kind = {S: "VARCHAR", W: "BIGINT", F: "DOUBLE", pa.bool_(): "BOOLEAN"}

    def structure(type_: pa.DataType) -> Any:
        if pa.types.is_struct(type_):
            return {field.name: structure(field.type) for field in type_}
        return [structure(type_.value_type)] if pa.types.is_list(type_) else kind[type_]

    shape = json.dumps({"result": structure(RESULT)})
    for day in days:
        responses = texts_of(lake, day)  # noqa: F841 - DuckDB reads it by its name
        with duckdb.connect(config={"threads": 2}) as connection:
            connection.execute(
                "CREATE TABLE parsed AS SELECT submission_id, "
                f"unnest(from_json(response, '{shape}')) FROM responses"
            )
            key = "result.verificationId AS verification_id, submission_id"

            def rows(path: str, connection: Any = connection, key: str = key) -> pa.Table:
                query = f"SELECT {key}, unnest({path}, recursive := true) FROM parsed"
                table: pa.Table = connection.sql(query).to_arrow_table()
                return table

            scalars = ", ".join(f"result.{name}" for name, _ in SCALARS[1:])
            verifications = connection.sql(f"SELECT {key}, {scalars} FROM parsed").to_arrow_table()
            save(
                out,
                day,
                verifications=verifications.append_column(
                    "id_document_pseudonym", document_pseudonyms(lake, day)
                ),
                model_checks=rows("result.modelResults.technicalChecks"),
                verification_tags=with_pseudonyms(rows("result.tags")),
                verification_files=rows("result.files"),
            )


def plain_python(lake: Lake, out: Path, days: list[str]) -> None:
    """msgspec decodes each response into dicts, and Python collects rows, as many projects do."""
    import msgspec

    decoder = msgspec.json.Decoder()
    for day in days:
        responses = texts_of(lake, day).to_pylist()
        tables: dict[str, list[dict[str, Any]]] = {"v": [], "c": [], "t": [], "f": []}
        for row in responses:
            result = decoder.decode(row["response"])["result"]
            key = {"verification_id": result["verificationId"], "submission_id": row["submission_id"]}
            tables["v"].append(key | {name: result.get(name) for name, _ in SCALARS[1:]})
            for check in result["modelResults"]["technicalChecks"]:
                tables["c"].append(key | {field.name: check.get(field.name) for field in CHECK})
            tables["t"] += [key | tag for tag in result["tags"]]
            tables["f"] += [
                key | {field.name: file[field.name] for field in FILE} for file in result["files"]
            ]
        verifications, checks, tags, files = (pa.Table.from_pylist(rows) for rows in tables.values())
        save(
            out,
            day,
            verifications=verifications.append_column(
                "id_document_pseudonym", document_pseudonyms(lake, day)
            ),
            model_checks=checks,
            verification_tags=with_pseudonyms(tags),
            verification_files=files,
        )


def json_normalize(lake: Lake, out: Path, days: list[str]) -> None:
    import pandas as pd

    for day in days:
        responses = texts_of(lake, day).to_pylist()
        results = [json.loads(row["response"])["result"] | {"id": row["submission_id"]} for row in responses]
        meta: list[str | list[str]] = ["verificationId", "id"]
        nested = ["modelResults.technicalChecks", "tags", "files"]
        verifications = pd.json_normalize(results).drop(columns=nested)
        tags = pa.Table.from_pandas(pd.json_normalize(results, "tags", meta), preserve_index=False)
        save(
            out,
            day,
            verifications=pa.Table.from_pandas(verifications, preserve_index=False).append_column(
                "id_document_pseudonym", document_pseudonyms(lake, day)
            ),
            model_checks=pa.Table.from_pandas(
                pd.json_normalize(results, ["modelResults", "technicalChecks"], meta), preserve_index=False
            ),
            verification_tags=with_pseudonyms(tags),
            verification_files=pa.Table.from_pandas(
                pd.json_normalize(results, "files", meta), preserve_index=False
            ),
        )


def polars_struct(lake: Lake, out: Path, days: list[str]) -> None:
    import polars as pl

    schema = pl.from_arrow(pa.array([None], pa.struct([("result", RESULT)]))).dtype
    for day in days:
        responses = pl.from_arrow(texts_of(lake, day))
        parsed = responses.select("submission_id", pl.col("response").str.json_decode(schema)).unnest(
            "response"
        )
        wide = parsed.unnest("result").rename({"verificationId": "verification_id"})

        def rows(column: Any, wide: Any = wide) -> pa.Table:
            long = wide.select("verification_id", "submission_id", column.alias("item")).explode("item")
            table: pa.Table = long.unnest("item").to_arrow(compat_level=pl.CompatLevel.oldest())
            return table

        flat = wide.drop("modelResults", "tags", "files").to_arrow(compat_level=pl.CompatLevel.oldest())
        tags = rows(pl.col("tags"))
        save(
            out,
            day,
            verifications=flat.append_column("id_document_pseudonym", document_pseudonyms(lake, day)),
            model_checks=rows(pl.col("modelResults").struct.field("technicalChecks")),
            verification_tags=with_pseudonyms(tags),
            verification_files=rows(pl.col("files")),
        )


def dlt_parquet(lake: Lake, out: Path, days: list[str], workers: int = 1) -> None:
    """dlt's own normaliser makes the tables and propagates the keys to the child tables."""
    import dlt
    from dlt.common.json import json as fast_json
    from dlt.common.normalizers.json.relational import DataItemNormalizer

    settings = {"DATA_WRITER__COMPRESSION": "zstd", "RUNTIME__DLTHUB_TELEMETRY": "false"}
    if workers > 1:  # each normalises one extracted file
        settings |= {"NORMALIZE__WORKERS": str(workers), "DATA_WRITER__FILE_MAX_ITEMS": "10000"}
    os.environ |= settings
    keys = ("verification_id", "submission_id")
    schema = dlt.Schema("bench")
    DataItemNormalizer.update_normalizer_config(
        schema, {"propagation": {"root": {key: key for key in keys}, "tables": {}}}
    )
    pipeline = dlt.pipeline(
        "bench",
        destination=dlt.destinations.filesystem(str(out)),
        dataset_name="d",
        pipelines_dir=str(out / "dlt"),
    )
    pseudonym = functools.cache(PSEUDONYMS.tag)

    def shown(tag: dict[str, str]) -> dict[str, str | None]:
        name, value = tag["name"], tag["value"]
        return {
            "name": name,
            "value": value if name in CLEAR else None,
            "pseudonym": pseudonym(name, value),
        }

    def records(day: str) -> Iterator[dict[str, Any]]:
        documents: list[Any] = lake.read(SUBMISSIONS, day, ["id_sha256"])["id_sha256"].to_pylist()
        for row, document in zip(texts_of(lake, day).to_pylist(), documents, strict=True):
            result = fast_json.loads(row["response"])["result"]
            yield (
                dict(zip(keys, (result["verificationId"], row["submission_id"]), strict=True))
                | {name: result[name] for name, _ in SCALARS[1:] if name in result}
                | {
                    "id_document_pseudonym": PSEUDONYMS.document(document),
                    "checks": [
                        {field.name: check.get(field.name) for field in CHECK}
                        for check in result["modelResults"]["technicalChecks"]
                    ],
                    "tags": [shown(tag) for tag in result["tags"]],
                    "files": [{field.name: file[field.name] for field in FILE} for file in result["files"]],
                }
            )

    for day in days:
        pipeline.run(records(day), table_name="verifications", schema=schema, loader_file_format="parquet")


Way = Callable[[Lake, Path, list[str]], None]
OURS, PEER, DUCKDB = "kyc-pipeline", "pyarrow.json, a day at a time", "DuckDB from_json"
LOSSY = {PEER, DUCKDB}
WAYS: dict[str, tuple[Way, str | None, int, int]] = {
    OURS: (ours, None, 1, 3),
    PEER: (pyarrow_json, None, 1, 3),
    DUCKDB: (duckdb_from_json, "duckdb", 1, 3),
    "msgspec and dicts": (plain_python, "msgspec", 1, 1),
    "polars": (polars_struct, "polars", 1, 1),
    "pandas.json_normalize": (json_normalize, "pandas", 10, 1),
    "dlt": (dlt_parquet, "dlt", 10, 1),
    "dlt, two processes": (functools.partial(dlt_parquet, workers=2), "dlt", 10, 1),
}
"""The function, its package, one day in how many it gets, and its maximum of rounds."""


def measure(way: str, lake: Path, out: Path, days: int) -> dict[str, float]:
    """One run in its own process: wall seconds, CPU seconds, peak MB."""
    command = [
        sys.executable,
        "-m",
        "bench.flatten",
        "--run",
        way,
        "--lake",
        str(lake),
        "--out",
        str(out),
        "--days",
        str(days),
    ]
    # Here Arrow is imported first, so the package selects jemalloc too late: set it for our variant only.
    environment = {name: value for name, value in os.environ.items() if name != ALLOCATOR}
    if way == OURS:
        environment |= {ALLOCATOR: os.environ[ALLOCATOR]}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run(way: str, lake: Path, out: Path, days: int) -> None:
    function, package, *_ = WAYS[way]
    for name in filter(None, ("pandas", package)):  # Arrow loads pandas with the first array of Python values
        importlib.import_module(name)
    out.mkdir()
    started, started_cpu = time.perf_counter(), sum(os.times()[:4])
    function(Lake(str(lake)), out, days_of(days))
    wall, cpu = time.perf_counter() - started, sum(os.times()[:4]) - started_cpu
    peak = peak_bytes() / 2**20
    print(json.dumps({"wall": wall, "cpu": cpu, "mb": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--odd", type=float, default=0.01)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--run", choices=list(WAYS))
    parser.add_argument("--lake", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.run:
        run(options.run, options.lake, options.out, options.days)
        return
    ways = [
        way for way in options.ways if WAYS[way][1] is None or importlib.util.find_spec(str(WAYS[way][1]))
    ]
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    days = {way: max(1, options.days // WAYS[way][2]) for way in ways}
    growth = {}
    with tempfile.TemporaryDirectory(prefix="kyc-bench-") as folder:
        lake = Path(folder) / "lake"
        make_lake(str(lake), options.rows, options.days, options.odd)
        for turn in range(options.rounds):
            for number, way in enumerate(ways):
                if turn < WAYS[way][3]:
                    found[way].append(measure(way, lake, Path(folder) / f"{number}-{turn}", days[way]))
        for size in (options.rows // 30, options.rows // 10, options.rows):
            one_day = Path(folder) / f"day-of-{size}"
            make_lake(str(one_day), size, 1, options.odd)
            growth[size] = measure(OURS, one_day, Path(folder) / f"out-of-{size}", 1)["mb"]
    print(
        f"{options.rows:,} responses over {options.days} days, {options.odd:.1%} with something to report, "
        f"medians of interleaved rounds\n"
    )
    print("| variant | responses | rounds | wall s | CPU s | peak MB | µs per response |")
    print("|---|---|---|---|---|---|---|")
    cost: dict[str, float] = {}
    for way, results in found.items():
        wall, cpu, mb = (
            statistics.median(result[key] for result in results) for key in ("wall", "cpu", "mb")
        )
        count = options.rows * days[way] // options.days
        cost[way] = wall / count * 1e6
        print(f"| {way} | {count:,} | {len(results)} | {wall:.1f} | {cpu:.1f} | {mb:.0f} | {cost[way]:.1f} |")
    missing = [way for way in options.ways if way not in ways]
    if missing:
        print(f"\nNot installed here: {', '.join(missing)}")
    print(f"\n{verdict(cost, found, growth)}")


def verdict(
    cost: dict[str, float], found: dict[str, list[dict[str, float]]], growth: dict[int, float]
) -> str:
    """The figures beside their targets, as a table."""
    lines = ["| target | measured | |", "|---|---|---|"]

    def line(target: str, measured: str, is_met: bool) -> None:
        lines.append(f"| {target} | {measured} | {'met' if is_met else '**missed**'} |")

    if OURS in cost and LOSSY & cost.keys():
        fastest = min(LOSSY & cost.keys(), key=lambda way: cost[way])
        ratio = cost[OURS] / cost[fastest]
        line("at most 1.5 × the fastest lossy peer", f"{ratio:.2f} × {fastest}", ratio <= 1.5)
    if OURS in cost:
        others = {way: value for way, value in cost.items() if way not in (OURS, PEER)}
        if others:
            nearest = min(others, key=lambda way: others[way])
            gain = others[nearest] / cost[OURS]
            line("ahead of every other peer", f"the nearest, {nearest}, takes {gain:.2f} ×", gain > 1)
        if "dlt" in cost:
            gain = cost["dlt"] / cost[OURS]
            line("at least 20 × dlt", f"{gain:.1f} ×", gain >= 20)
        peak = max(result["mb"] for result in found[OURS])
        line("peak memory at most 500 MB", f"{peak:.0f} MB", peak <= 500)
    # The smallest day does not fill a row group, so it needs less memory: leave it out.
    _, before, after = growth.values()
    line(
        "flat as a day grows tenfold, and at most 500 MB",
        "; ".join(f"{size:,} responses {mb:.0f} MB" for size, mb in growth.items()),
        after <= min(500, before * 1.1),
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
