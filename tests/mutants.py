"""`make mutants`: changes the code in many small ways, and names the changes (mutants) that no test notices.

mutmut changes one thing at a time, such as a number, an operator or an argument, and runs the tests that call
the changed function. It changes no tables and no decorated functions. Each group of modules has few, fast
tests, and a folder in `build/mutants`: there, `mutmut run NAME` tests one change again.

CONTRIBUTING.md says which survivors are harmless.
"""

import json
import os
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parent.parent
FOLDER: Final = ROOT / "build/mutants"
LINKED: Final = ("kyc_pipeline", "tests", "sql")
UNNOTICED: Final = frozenset({"survived", "no tests", "suspicious"})


class Group(NamedTuple):
    """Modules to change, below `kyc_pipeline`, and tests that should notice, below `tests/unit`."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]


GROUPS: Final = {
    "pseudonyms": Group(("privacy/pseudonyms",), ("privacy",)),
    "documents": Group(
        ("document_store", "ingest/documents"),
        ("test_documents.py", "ingest/test_reasons.py", "ingest/test_file_types.py"),
    ),
    "sending": Group(("deepxl/multipart",), ("deepxl/test_transport_faults.py", "deepxl/test_client.py")),
    "errors": Group(("deepxl/call_errors",), ("deepxl/test_errors.py", "deepxl/test_client.py")),
    "client": Group(("deepxl/client",), ("deepxl/test_client.py", "deepxl/test_transport_faults.py")),
    "claims": Group(
        ("ledger/claims", "ledger/decisions", "ledger/queries"),
        ("ledger/test_decisions.py", "ledger/test_ledger.py", "ledger/test_ledger_states.py"),
    ),
    "leases": Group(
        ("ledger/leases", "ledger/process", "ledger/times"),
        ("ledger/test_leases.py", "ledger/test_ledger.py", "verify/test_fence.py"),
    ),
    "ledger": Group(
        (
            *("ledger/database", "ledger/identity", "ledger/rate_limits", "ledger/schema", "ledger/sqlite"),
            *("ledger/transfer", "ledger/upkeep", "ledger/writer"),
        ),
        ("ledger", "verify/test_verify_identity.py", "verify/test_ledger_command.py"),
    ),
    "dispatcher": Group(
        ("verify/dispatcher",),
        ("verify/test_verify_faults.py", "verify/test_verify_reconcile.py", "verify/test_verify_main_way.py"),
    ),
}


def prepare(folder: Path, group: Group) -> None:
    """Makes `folder`: links to the project, and its configuration with that of mutmut."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    tests = [f"tests/unit/{name}" for name in group.tests]
    options = {
        "source_paths": ["kyc_pipeline"],
        "only_mutate": [f"kyc_pipeline/{name}.py" for name in group.modules],
        "also_copy": ["sql"],
        "pytest_add_cli_args_test_selection": [*tests, "-m", "not e2e"],
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in options.items()]
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (folder / "pyproject.toml").write_text(text + "\n[tool.mutmut]\n" + "\n".join(lines) + "\n", "utf-8")


def mutmut(folder: Path, *arguments: str, capture: bool = False) -> str:
    """Runs mutmut in `folder`; returns its output if it is captured."""
    # The tests' children shall import the changed code, which is in their working directory.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    program = Path(sys.executable).with_name("mutmut")
    done = subprocess.run(
        [program, *arguments],
        cwd=folder,
        env=environment,
        check=True,
        stdout=subprocess.PIPE if capture else None,
        encoding="utf-8",
    )
    return done.stdout or ""


def survivors(folder: Path) -> Iterator[str]:
    """Names the mutants that no test noticed, and prints how many met which fate."""
    lines = mutmut(folder, "results", "--all", "true", capture=True).splitlines()
    fates = dict(line.strip().rsplit(": ", 1) for line in lines if line.strip())
    print(", ".join(f"{count} {fate}" for fate, count in Counter(fates.values()).most_common()), flush=True)
    yield from (name for name, fate in fates.items() if fate in UNNOTICED)


def main() -> int:
    """The command line. Exit code 1: no test noticed a change; 2: the tests failed without one."""
    parser = ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"{', '.join(GROUPS)}; default: all")
    parser.add_argument("--only", metavar="PATTERN", help="of the mutants' names: '*7' is a tenth of them")
    given = parser.parse_args()
    found = 0
    for name in given.groups or GROUPS:
        folder = FOLDER / name
        prepare(folder, GROUPS[name])
        print(f"== {name}", flush=True)
        try:
            mutmut(folder, "run", *([given.only] if given.only else []))
        except subprocess.CalledProcessError:
            print(f"{name}: the tests fail without any change", file=sys.stderr)
            return 2
        for mutant in survivors(folder):
            found += 1
            print(mutmut(folder, "show", mutant, capture=True), flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
