"""Manifests that change: rows move between days, appear on several, and are corrected.

Every submission stays in a manifest, so in the end each must be accepted on a day.
"""

import os
import random
from pathlib import Path

from tests.simulation.kernel import Kernel

DOCUMENTS = {"id": b"%PDF-1.7\n", "selfie": b"\0\0\0\x14ftypisom\0\0\0\0isom"}
"""How documents begin that ingest accepts without decoding them."""
_HEADER = "submission_id,id_file,selfie_file,tag.companyId"


class Deliveries:
    """The manifests of some days, which the seed changes."""

    def __init__(self, rng: random.Random, folder: Path, ids: list[str], days: tuple[str, ...]) -> None:
        self._rng, self._folder, self._days = rng, folder, days
        self.rows: dict[str, dict[str, int]] = {day: {} for day in days}
        """Of each day: the version of each submission's content."""
        for key in ids:
            for day in rng.sample(days, rng.choice([1, 2])):
                self.rows[day][key] = 0
        for day in days:
            (folder / day).mkdir(parents=True)
            self._deliver(day)

    def change(self) -> None:
        """Moves, copies or corrects some rows; each day's manifest is replaced at once."""
        for _ in range(self._rng.choice([1, 1, 2])):
            day = self._rng.choice([day for day in self._days if self.rows[day]])
            key = self._rng.choice(list(self.rows[day]))
            other = self._rng.choice([other for other in self._days if other != day])
            what = self._rng.choice(["move", "move", "copy", "correct"])
            if what == "correct":
                self.rows[day][key] += 1
            else:
                self.rows[other].setdefault(key, self.rows[day][key])
            if what == "move":
                del self.rows[day][key]
            Kernel.current_kernel.note(f"{what}: {key} of {day}")
        for day in self._rng.sample(self._days, len(self._days)):
            self._deliver(day)

    def versions(self) -> dict[str, set[int]]:
        """The versions of each submission's content that the manifests have now."""
        found: dict[str, set[int]] = {}
        for rows in self.rows.values():
            for key, version in rows.items():
                found.setdefault(key, set()).add(version)
        return found

    def _deliver(self, day: str) -> None:
        lines = [f"{key},id,selfie,COMP-{version}" for key, version in self.rows[day].items()]
        draft = self._folder / f".{day}"
        draft.write_text("\n".join([_HEADER, *lines, ""]))
        os.replace(draft, self._folder / day / "m.csv")
