"""A process that has read with Arrow ends with its own exit code, however busy the machine is.

Arrow's threads may still hold what they read when the read returns. If that is Python's memory, they wait for
the interpreter's lock to release it, and a thread that waits while Python is finalizing aborts the process:
"terminate called without an active exception". The child here makes that likely: the main thread interrupts
Arrow's thread in its work, then keeps the lock until Python is finalizing.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import CONTRACT_DRIFT
from tests.effort import tries

DAY = "2024-09-01"
EXIT_CODE = 3
READ_LAKE = f"""
import sys
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import CONTRACT_DRIFT

lake = Lake(sys.argv[1])

def read():
    assert lake.read(CONTRACT_DRIFT, "{DAY}", ["path"]).num_rows == 3
"""
READ_CSV = """
import sys
from collections import Counter
from pathlib import Path
from kyc_pipeline.ingest.formats import read_manifest

def read():
    assert sum(chunk.num_rows for chunk in read_manifest(Path(sys.argv[1]), Counter())) == 3
"""
READ_AND_END = f"""
import ctypes, os, threading, time
import pyarrow as pa

def native_threads():
    return {{int(t) for t in os.listdir("/proc/self/task")}} - {{t.native_id for t in threading.enumerate()}}

class WhileFinalizing:
    def __del__(self, sleep=time.sleep):
        sleep(0.05)  # gives the lock away

last = WhileFinalizing()
os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
pa.set_cpu_count(1)
before = native_threads()
read()
workers = native_threads() - before
assert workers, "Arrow has read without a thread of its own"
for worker in workers:
    os.sched_setscheduler(worker, os.SCHED_IDLE, os.sched_param(0))
sys.setswitchinterval(1000)
read()
ctypes.PyDLL(None).usleep(100_000)  # keeps the lock
sys.exit({EXIT_CODE})
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's scheduling policies")


def require_own_exit_code(read: str, path: str) -> None:
    children = [
        subprocess.Popen([sys.executable, "-c", read + READ_AND_END, path], stderr=subprocess.PIPE, text=True)
        for _ in range(tries(8))
    ]
    try:
        ends = [(child.communicate(timeout=120)[1], child.returncode) for child in children]
    finally:
        for child in children:
            child.kill()
    assert ends == [("", EXIT_CODE)] * len(children)


@pytest.mark.parametrize("place", ["tmp_path", "s3_root"])
def test_a_process_that_read_the_lake_ends_with_its_own_exit_code(
    place: str, request: pytest.FixtureRequest
) -> None:
    root = f"{request.getfixturevalue(place)}/lake"
    rows = [
        {"path": str(n), "kind": "unknown_field", "occurrences": 1, "example_submission_id": "s"}
        for n in range(3)
    ]
    Lake(root).write(CONTRACT_DRIFT, DAY, rows)
    require_own_exit_code(READ_LAKE, root)


def test_a_process_that_read_a_csv_ends_with_its_own_exit_code(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("submission_id,id_file,selfie_file\na,b,c\nd,e,f\ng,h,i\n")
    require_own_exit_code(READ_CSV, str(path))
