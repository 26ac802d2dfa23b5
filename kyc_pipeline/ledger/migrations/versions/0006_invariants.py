"""What no change may do, whoever makes it: the database refuses it."""

from typing import NamedTuple

from alembic import op

revision = "0006"
down_revision = "0005"


class _Refusal(NamedTuple):
    name: str
    change: str
    when: str
    message: str
    """`database.py` looks for its first word."""


_REFUSALS = (
    _Refusal(
        "completed_is_final",
        "UPDATE OF state ON submissions",
        "OLD.state = 'completed' AND NEW.state <> 'completed'",
        "invariant: a completed submission stays completed",
    ),
    _Refusal(
        "final_unless_reopened",
        "UPDATE OF state ON submissions",
        "OLD.state IN ('refused', 'quarantined') AND NOT (NEW.state IN (OLD.state, 'completed')"
        " OR (NEW.state = 'uncertain' AND coalesce(NEW.decision, '') = 'retry'))",
        "invariant: a final outcome changes only by a decision or a sound response",
    ),
    _Refusal(
        "one_open_claim",
        "UPDATE OF state, claim_token ON submissions",
        "OLD.state = 'claimed' AND NEW.state = 'claimed' AND OLD.claim_token <> NEW.claim_token",
        "invariant: a submission has one open claim",
    ),
    _Refusal(
        "attempts_stay", "DELETE ON attempts", "OLD.number > 0", "invariant: no attempt is ever removed"
    ),
)


def upgrade() -> None:
    """Creates the triggers."""
    if op.get_bind().dialect.name == "sqlite":
        for name, change, when, message in _REFUSALS:
            op.execute(
                f"CREATE TRIGGER {name} BEFORE {change} WHEN {when} "
                f"BEGIN SELECT RAISE(ABORT, '{message}'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "RAISE EXCEPTION '%', TG_ARGV[0] USING ERRCODE = 'check_violation'; END $$"
    )
    for name, change, when, message in _REFUSALS:
        op.execute(
            f"CREATE TRIGGER {name} BEFORE {change} FOR EACH ROW WHEN ({when}) "
            f"EXECUTE FUNCTION refuse_change('{message}')"
        )
