"""Shards: the parts of a large day, each for one process of its run (`KYC_SHARDS`).

Nothing that is stored depends on them: the day's lease keeps other runs away, and the ledger says what is
left of the day. So the next run may have any other number of shards.
"""

import hashlib
from dataclasses import dataclass
from typing import Final

from kyc_pipeline.settings import Settings

SUBMISSIONS_WORTH_A_PROCESS: Final = 5000
"""So many take several times the second of CPU time that a process takes to start."""
CALLS_WORTH_A_PROCESS: Final = 64
"""Calls in flight. Each process commits on its own: with few calls in a commit, they wait for each other."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` parts of any set of submissions; `number` is from 1."""

    number: int = 1
    count: int = 1

    def has(self, submission_id: str) -> bool:
        """Whether the submission is in this shard. It is in exactly one, always the same."""
        if self.count == 1:
            return True
        digest = hashlib.blake2b(submission_id.encode(), digest_size=8).digest()
        return int.from_bytes(digest) % self.count == self.number - 1

    def share(self, total: int) -> int:
        """This shard's share of `total`. The shares differ by one at most."""
        return total // self.count + (self.number <= total % self.count)

    def __str__(self) -> str:
        return f"shard {self.number} of {self.count}"


WHOLE: Final = Shard()


def shards_of(to_settle: int, settings: Settings) -> list[Shard]:
    """The shards for so many submissions: `KYC_SHARDS`, or fewer if each would have too little to do."""
    most = min(
        settings.kyc_shards,
        settings.deepxl_max_concurrency // CALLS_WORTH_A_PROCESS,
        to_settle // SUBMISSIONS_WORTH_A_PROCESS,
    )
    return [Shard(number, most) for number in range(1, most + 1)] or [WHOLE]
