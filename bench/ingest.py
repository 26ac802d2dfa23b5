"""A day of 1,000,000 manifest rows: our ingest compared with vectorised checks after pandas.read_csv.

All rows share a few small images, which both variants examine once, so documents hardly count. Both read the
same CSV file (200 MB), apply the same rules, find duplicates and conflicts, and write two Parquet files.
Each run has its own process; the variants take turns. Ours also runs once on a tenth of the rows, to show
how little its memory grows. Run: `python -m bench.ingest [--rows N] [--rounds N]`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.peak_memory import peak_bytes

DAY = "2024-09-01"
IMAGES = 50


def make_landing(landing: Path, rows: int) -> None:
    """A CSV of `rows` rows: one in 50 breaks a rule, one in 100 is a duplicate."""
    from PIL import Image

    documents = landing / "documents" / "2024" / "09" / "01"
    documents.mkdir(parents=True)
    for n in range(IMAGES):
        Image.new("RGB", (64, 48), (n, 100, 100)).save(documents / f"document-of-a-person-{n:04}.jpg")
    folder = landing / "manifests" / DAY
    folder.mkdir(parents=True)
    with (folder / "a.csv").open("w") as file:
        file.write("submission_id,id_file,selfie_file,tags,submitted_at\n")
        for n in range(rows):
            key = f"{DAY}-{n - (n % 100 == 99):08}"
            when = "yesterday" if n % 50 == 7 else f"{DAY}T{n % 24:02}:{n % 60:02}:00+02:00"
            tags = (
                f'"{{""customerId"":""{n % 700_000}"",""companyId"":""{n % 5}"",""documentId"":""X{n:09}""}}"'
            )
            place = f"2024/09/01/document-of-a-person-{n % IMAGES:04}.jpg"
            other = f"2024/09/01/document-of-a-person-{(n + 1) % IMAGES:04}.jpg"
            file.write(f"{key},{place},{other},{tags},{when}\n")


def ours(landing: Path, out: Path) -> tuple[int, int]:
    """Accepted and rejected rows, by the pipeline's ingest."""
    from kyc_pipeline.ingest.manifests import ingest_partition
    from kyc_pipeline.lake.storage import Lake

    summary = ingest_partition(landing=landing, lake=Lake(str(out)), date=DAY)
    return summary.accepted, sum(summary.rejected.values())


def pandas_whole(landing: Path, out: Path) -> tuple[int, int]:
    """The same with pandas, the whole file in memory."""
    import hashlib

    import numpy as np
    import pandas as pd

    from kyc_pipeline.ingest.documents import Documents

    frame = pd.read_csv(landing / "manifests" / DAY / "a.csv", dtype="string[pyarrow]", keep_default_na=False)
    required = ["submission_id", "id_file", "selfie_file"]
    missing = (frame[required].apply(lambda column: column.str.strip()) == "").any(axis=1)
    bad_id = ~frame["submission_id"].str.fullmatch(r"[A-Za-z0-9._-]{1,64}")
    tags = frame["tags"].map(json.loads)
    bad_tags = ~tags.map(lambda t: isinstance(t, dict) and all(isinstance(v, str) for v in t.values()))
    reserved = tags.map(lambda t: "submissionId" in t)
    iso = frame["submitted_at"].str.fullmatch(
        r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)"
    )
    times = pd.to_datetime(frame["submitted_at"].where(iso), utc=True, format="ISO8601", errors="coerce")
    bad_time = (frame["submitted_at"] != "") & times.isna()
    from kyc_pipeline.document_store import DocumentFolder

    with Documents(DocumentFolder(landing / "documents")) as documents:
        found = documents.examine({*frame["id_file"].unique(), *frame["selfie_file"].unique()})
    for side in ("id", "selfie"):
        for field in ("sha256", "size", "content_type", "problem"):
            frame[f"{side}_{field}"] = frame[f"{side}_file"].map(
                {k: getattr(v, field) for k, v in found.items()}
            )
    bad_file = frame["id_problem"].notna() | frame["selfie_problem"].notna()
    canonical = tags.map(lambda t: json.dumps(t, sort_keys=True))
    content = frame["id_sha256"] + frame["selfie_sha256"] + canonical
    frame["content_sha256"] = content.map(lambda text: hashlib.sha256(text.encode()).hexdigest())
    frame["tags"] = tags.map(lambda t: sorted(t.items()))
    frame["submitted_at"] = times
    broken = missing | bad_id | bad_tags | reserved | bad_time | bad_file
    fine = frame[~broken]
    first = fine.groupby("submission_id")["content_sha256"].transform("first")
    again = fine["submission_id"].duplicated()
    reason = pd.Series(np.where(fine["content_sha256"] == first, "duplicate", "conflict"), fine.index)
    reasons = pd.concat(
        [
            pd.Series(np.select([missing, bad_id, bad_tags, reserved, bad_time], list("abcde"), "f"))[broken],
            reason[again],
        ]
    )
    accepted = fine[~again].sort_values("submission_id").drop(columns=["id_problem", "selfie_problem"])
    rejected = frame.loc[reasons.index, ["submission_id"]].assign(reason=reasons).sort_index()
    out.mkdir()
    accepted.to_parquet(out / "accepted.parquet", compression="zstd")
    rejected.to_parquet(out / "rejected.parquet", compression="zstd")
    return len(accepted), len(rejected)


OURS, PEER = "kyc-pipeline", "pandas, whole file"
WAYS = {OURS: ours, PEER: pandas_whole}


def measure(way: str, landing: Path, out: Path) -> dict[str, float]:
    """One run in its own process: wall seconds, CPU seconds, peak MB and row counts."""
    command = [sys.executable, "-m", "bench.ingest", "--run", way]
    command += ["--landing", str(landing), "--out", str(out)]
    response = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(response.stdout))


def run(way: str, landing: Path, out: Path) -> None:
    started, started_cpu = time.perf_counter(), time.process_time()
    accepted, rejected = WAYS[way](landing, out)
    result = {
        "wall": time.perf_counter() - started,
        "cpu": time.process_time() - started_cpu,
        "mb": peak_bytes() / 2**20,
        "accepted": accepted,
        "rejected": rejected,
    }
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run", choices=list(WAYS))
    parser.add_argument("--landing", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.run:
        run(options.run, options.landing, options.out)
        return
    with tempfile.TemporaryDirectory(prefix="kyc-bench-") as folder:
        landing = Path(folder) / "landing"
        make_landing(landing, options.rows)
        size = os.path.getsize(landing / "manifests" / DAY / "a.csv") / 1e6
        found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for turn in range(options.rounds):
            for way in WAYS:
                found[way].append(measure(way, landing, Path(folder) / f"{WAYS[way].__name__}-{turn}"))
        make_landing(Path(folder) / "tenth", options.rows // 10)
        tenth = measure(OURS, Path(folder) / "tenth", Path(folder) / "tenth-out")
    print(f"{options.rows:,} manifest rows in one CSV of {size:.0f} MB, medians of {options.rounds} runs\n")
    print("| variant | wall s | CPU s | peak MB | accepted | rejected |")
    print("|---|---|---|---|---|---|")
    for way, results in found.items():
        wall, cpu, mb = (statistics.median(r[key] for r in results) for key in ("wall", "cpu", "mb"))
        last = results[-1]
        print(f"| {way} | {wall:.1f} | {cpu:.1f} | {mb:.0f} | {last['accepted']:,} | {last['rejected']:,} |")
    ratio = statistics.median(r["wall"] for r in found[OURS]) / statistics.median(
        r["wall"] for r in found[PEER]
    )
    peak = max(r["mb"] for r in found[OURS])
    same = all(found[OURS][0][key] == found[PEER][0][key] for key in ("accepted", "rejected"))
    print("\n| target | measured | |")
    print("|---|---|---|")
    for target, measured, is_met in (
        ("at most 2 × pandas", f"{ratio:.2f} ×", ratio <= 2),
        ("the same rows accepted and rejected", "identical" if same else "different", same),
        (
            "bounded memory: at most 1.5 × for ten times the rows",
            f"{tenth['mb']:.0f} MB for {options.rows // 10:,} rows, {peak:.0f} MB for {options.rows:,}",
            peak <= 1.5 * tenth["mb"],
        ),
    ):
        print(f"| {target} | {measured} | {'met' if is_met else '**missed**'} |")


if __name__ == "__main__":
    main()
