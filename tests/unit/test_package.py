"""What the package does as soon as it is loaded."""

import os
import platform
import subprocess
import sys

import pytest

ALLOCATOR = "ARROW_DEFAULT_MEMORY_POOL"
SHOW = "import kyc_pipeline, pyarrow; print(pyarrow.default_memory_pool().backend_name)"


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="Arrow's wheels for it have no jemalloc"
)
@pytest.mark.parametrize(("chosen", "used"), [(None, "jemalloc"), ("system", "system")])
def test_arrow_allocates_by_jemalloc_unless_another_is_chosen(chosen: str | None, used: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != ALLOCATOR}
    if chosen:
        environment[ALLOCATOR] = chosen
    shown = subprocess.run(
        [sys.executable, "-c", SHOW], env=environment, check=True, capture_output=True, text=True
    )
    assert (shown.stdout.strip(), shown.stderr) == (used, "")
