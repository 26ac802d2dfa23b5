"""Whose fault a denial or a final response is: the submission's, or the run's.

If every call is denied (401 to 405), the credential or the address is wrong: the run ends, and no submission
is refused. If one is denied while others succeed, the fault is its own: a firewall in front of the API may
dislike one document. Nor are submissions at fault for ten final responses of one kind in a row, without a
sound one between them.
"""

from dataclasses import dataclass, field
from typing import Final

from kyc_pipeline.deepxl.call_errors import ContractBroken, DeepXLError, Denied
from kyc_pipeline.verify.gate import AdaptiveConcurrency
from kyc_pipeline.verify.partition import Work

LIKE_RESPONSES: Final = 10
"""Final responses of one kind in a row that end the run."""
_DENIALS: Final = 3
"""Denials that end the run: the first, and then one call at a time."""
_AT_ONCE: Final = frozenset({401, 402})


@dataclass(slots=True)
class Blame:
    """The denials and final responses of one run.

    After the first denial, calls go one at a time until one succeeds.

    `is_trusted`: the history has responded to this address and credential. Without it, the first call goes
    alone, and its denial ends the run.
    """

    concurrency: AdaptiveConcurrency
    is_trusted: bool
    denials: list[tuple[Work, Denied]] = field(default_factory=list)
    """Judged at the end of a run that was not stopped."""
    has_responses: bool = False
    """Whether this run has had a sound response."""
    _probes: int = 0
    _suspected_at: float = float("inf")
    _like: tuple[type[DeepXLError], int | None] | None = None
    _like_count: int = 0

    def __post_init__(self) -> None:
        if not self.is_trusted:
            self.concurrency.narrow()

    def responded(self) -> None:
        """Notes a sound response."""
        self.has_responses = True
        self._like_count = self._probes = 0
        self.concurrency.widen()

    def denied(self, item: Work, error: Denied, started: float, ended: float) -> bool:
        """Notes a denial; returns whether it ends the run. Times are of the monotonic clock."""
        self.denials.append((item, error))
        self.concurrency.narrow()
        # Denials of calls already in flight then are no further evidence.
        if not self._probes:
            self._probes, self._suspected_at = 1, ended
        elif started >= self._suspected_at:
            self._probes += 1
        is_everybodys = not self.is_trusted or error.http_status in _AT_ONCE
        return (is_everybodys and not self.has_responses) or self._probes >= _DENIALS

    def final(self, error: DeepXLError) -> DeepXLError | None:
        """Notes a final response that is not sound; returns the error that ends the run, or None."""
        like = (type(error), error.http_status)
        self._like_count = self._like_count + 1 if like == self._like else 1
        self._like = like
        if self._like_count < LIKE_RESPONSES:
            return None
        what = "broke the contract" if isinstance(error, ContractBroken) else f"were {error.http_status}"
        return DeepXLError(
            f"{LIKE_RESPONSES} responses in a row {what}, none was sound: nothing more is sent. Check "
            "DEEPXL_BASE_URL and what responds there; `kyc-pipeline reopen` takes a submission back",
            http_status=error.http_status,
        )
