"""The command `kyc-pipeline`, one module per command.

A command's module is imported only when the command runs, because `import dagster` takes a second and not
every command needs it.
"""

import importlib
import logging
import sys
import traceback

import click

from kyc_pipeline.errors import FAILED, FULL_ERRORS, KycError, UsageError, is_outside_fault, plain_line

COMMANDS = {
    "audit": "Show and verify the audit trail.",
    "backfill": "Ingest, verify, flatten and publish a range of days.",
    "code-server": "Serve the definitions to the webserver and the daemon of several hosts.",
    "daemon": "Run Dagster's daemon alone: schedules, sensors and the queue of runs.",
    "demo": "Run synthetic submissions through the whole pipeline.",
    "erase": "Remove one person from all stored data.",
    "export": "Export everything that is stored about one person.",
    "held": "List submissions with an uncertain outcome and decide about them.",
    "ledger": "Check, move or restore the ledger of paid calls.",
    "legal-hold": "Set, lift or list legal holds, which block erasures.",
    "limits": "Show the rate limits that all runs share, or reset them.",
    "mcp": "Let an assistant query the published warehouse, read-only.",
    "metrics": "Serve metrics for Prometheus.",
    "plan": "Show what a backfill would do and cost.",
    "publications": "List where warehouses are published, and which are from before the last erasure.",
    "publish": "Build and publish the warehouse and the report from the lake.",
    "query": "Query the published warehouse.",
    "rejected": "List rejected rows with file, row and reason.",
    "rekey": "Replace the key of the pseudonyms.",
    "reopen": "Let a refused or quarantined submission be sent again.",
    "report": "Write the regulator's pack from the published warehouse.",
    "retention": "Remove data whose retention period is over.",
    "sample": "Draw a random sample for manual review, with weights.",
    "security-check": "Check what you must do to protect the data: encryption, access, budget.",
    "simulator": "Run the bundled DeepXL-compatible server.",
    "ui": "Show the Dagster UI, and run schedules and sensors.",
    "vendor-deletions": "List what DeepXL must delete of erased people, and confirm that it did.",
}
"""The help line of each command. Its module, and the function in it, have the command's name, with `_`."""

EXIT_INTERRUPTED = 130


class LazyGroup(click.Group):
    """Imports a command's module when the command runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands, sorted."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command `cmd_name`, or None."""
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(importlib.import_module(f"{__name__}.{name}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands without importing their modules."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _show_version(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        from kyc_pipeline.analyze.sql_models import sql_folder
        from kyc_pipeline.code_identity import code_identity, commit

        built_from = commit()
        click.echo(
            f"kyc-pipeline {code_identity(sql_folder())}" + (f" (commit {built_from})" if built_from else "")
        )
        context.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the build.",
)
@click.option("--verbose", is_flag=True, help="Show tracebacks and Dagster's log.")
def cli(verbose: bool) -> None:
    """Verify people with DeepXL, one paid call per submission, and publish the analytics.

    Exit codes: 0 done; 1 failure; 2 wrong usage or settings; 3 done, but something is left for you, such as
    submissions that are held, failed or not attempted.
    """
    if _wants_json():
        from kyc_pipeline.json_logs import log_as_json

        log_as_json()


def _wants_json() -> bool:
    from kyc_pipeline.settings import load_settings

    try:
        return load_settings().kyc_log_format == "json"
    except UsageError:  # the command itself reports it, if it needs settings
        return False


def _report(line: str) -> None:
    """An error for the user: a line of text, or of the JSON log."""
    from kyc_pipeline.json_logs import logs_json

    if logs_json():
        logging.getLogger(__name__).error(line)
    else:
        click.echo(f"kyc-pipeline: {line}", err=True)


def main() -> None:
    """Runs the command line. Prints an error as one line on standard error."""
    verbose = "--verbose" in sys.argv
    if verbose:
        full_errors = logging.getLogger(FULL_ERRORS)
        full_errors.addHandler(logging.StreamHandler())
        full_errors.propagate = False
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        _report("interrupted")
        code = EXIT_INTERRUPTED
    except KycError as error:
        if verbose:
            traceback.print_exc()
        _report(str(error))
        code = error.exit_code
    # A fault outside, such as a full disk, or a bug. Its message may quote the data that caused it.
    except Exception as error:
        if verbose:
            traceback.print_exc()
        advice = "" if is_outside_fault(error) else ": please report it (--verbose shows more)"
        _report(f"{plain_line(error)}{advice}")
        code = FAILED
    sys.exit(code or 0)
