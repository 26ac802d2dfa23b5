"""Amounts and counts as text."""

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


def plural(count: int, noun: str, nouns: str | None = None) -> str:
    """`1 row`, `2 rows`; `nouns` is the plural if it does not just end in s."""
    return f"{count} {noun if count == 1 else nouns or noun + 's'}"
