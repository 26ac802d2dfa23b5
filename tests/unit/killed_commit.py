"""A process that is killed while it writes to a SQLite file: its journal stays beside the file."""

import signal
import subprocess
import sys
from pathlib import Path

_CODE = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA journal_mode=TRUNCATE")
connection.execute("PRAGMA cache_size=5")  # so that it writes to the file before the commit
connection.execute("BEGIN IMMEDIATE")
connection.execute("UPDATE identity SET generation = generation + 1000")
connection.execute(
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) "
    "INSERT INTO rate_limits (name, arrival) SELECT hex(randomblob(20)) || i, i FROM n"
)
os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_in_commit(file: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _CODE, str(file)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert Path(f"{file}-journal").stat().st_size > 4096
