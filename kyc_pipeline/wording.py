"""Amounts, counts and commands as text."""

import re
from dataclasses import dataclass
from decimal import Decimal


@dataclass(frozen=True, slots=True)
class Money:
    """An amount in a currency (ISO 4217), such as `30.00 EUR`."""

    amount: Decimal
    currency: str

    @property
    def text(self) -> str:
        """The amount with at least two decimals, without its currency."""
        exponent = self.amount.as_tuple().exponent
        decimals = -exponent if isinstance(exponent, int) else 0
        return f"{self.amount:.{max(decimals, 2)}f}"

    def __str__(self) -> str:
        return f"{self.text} {self.currency}"

    def __float__(self) -> float:
        return float(self.amount)


def run_again(first: str, last: str | None = None) -> str:
    """The command that runs a day, or a range of days, again, as part of a message."""
    return f"`kyc-pipeline backfill --from {first} --to {last or first}`"


def run_day_again(day: str) -> str:
    """What to do with a day that must run again, as the end of a message."""
    return f"run the day again, with {run_again(day)}"


def counted(count: int, nouns: str) -> str:
    """`1 anomaly`, `2 anomalies`: :func:`plural` for nouns that are known in the plural."""
    singular = re.sub(r"s\b", "", re.sub(r"ies\b", "y", nouns))
    return f"{count} {singular if count == 1 else nouns}"


def plural(count: int, noun: str, nouns: str | None = None) -> str:
    """`1 row`, `2 rows`; `nouns` is the plural if it does not just end in s."""
    return f"{count} {noun if count == 1 else nouns or noun + 's'}"


def invisible(text: str) -> str:
    """What is unprintable in `text`, such as a zero-width blank; empty if nothing is."""
    found = next((character for character in text if not character.isprintable()), "")
    return f"an invisible character (U+{ord(found):04X})" if found else ""
