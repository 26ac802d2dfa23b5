"""Days as text (ISO 8601, such as `2024-09-01`): keys of partitions, names of manifests' folders."""

from datetime import date, datetime, timedelta


def is_day(text: str) -> bool:
    """Whether `text` is a day in exactly this form; `20240901` is not."""
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def day_range(first: date, last: date) -> list[str]:
    """The days from `first` to `last`, both included."""
    return [(first + timedelta(days=offset)).isoformat() for offset in range((last - first).days + 1)]


def start_of_day(moment: datetime) -> datetime:
    """The midnight with which the day of `moment` began, in its time zone."""
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)
