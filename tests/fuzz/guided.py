"""`make fuzz-guided`: coverage of the pipeline's code chooses the next inputs. Requires atheris.

An input that breaks a rule ends the process with its traceback; `python -m tests.fuzz --replay` tries it
again.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import atheris
from hypothesis import HealthCheck, given, settings

with atheris.instrument_imports(include=["kyc_pipeline"]):
    from tests.fuzz.__main__ import Limits
    from tests.fuzz.examples import Example
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """The command line. Does not return: libFuzzer ends the process."""
    parser = argparse.ArgumentParser(prog="make fuzz-guided", description=__doc__)
    parser.add_argument("--target", choices=list(TARGETS), required=True)
    parser.add_argument("--seconds", type=int, default=600)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix=f"kyc-fuzz-{options.target}-"))
    print(f"{options.target}: the last input is kept in {folder}", flush=True)
    target, limits = TARGETS[options.target](folder), Limits(folder)

    def attempt(example: Example) -> None:
        with limits.around(example):
            target(example)

    test: Any = given(target.strategy)(attempt)
    test = settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))(test)
    # `Limits` bounds the memory; Hypothesis makes nothing of the few bytes with which libFuzzer begins.
    bounds = ["-rss_limit_mb=0", "-max_len=8192", "-len_control=0"]
    atheris.Setup(
        [sys.argv[0], f"-max_total_time={options.seconds}", *bounds],
        test.hypothesis.fuzz_one_input,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
