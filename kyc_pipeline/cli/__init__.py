"""The command `kyc-pipeline`, one module a command.

A command's module is imported only when it runs: `import dagster` takes a second that `plan` and `query`
need not wait for.
"""

import importlib
import sys
import traceback

import click

from kyc_pipeline import __version__
from kyc_pipeline.errors import KycError

COMMANDS = {
    "backfill": "kyc_pipeline.cli.backfill:backfill",
    "demo": "kyc_pipeline.cli.demo:demo",
    "held": "kyc_pipeline.cli.held:held",
    "plan": "kyc_pipeline.cli.plan:plan",
    "query": "kyc_pipeline.cli.query:query",
    "simulator": "kyc_pipeline.cli.simulator:simulator",
}

EXIT_USAGE = 2
EXIT_UNFINISHED = 3
EXIT_INTERRUPTED = 130


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands' names, in order."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command called `cmd_name`, or None."""
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name].split(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kyc-pipeline")
@click.option("--verbose", is_flag=True, help="Show the traceback of an error, and Dagster's own log.")
def cli(verbose: bool) -> None:
    """Verify people with DeepXL, one paid call a submission, and publish the analytics.

    Exit codes: 0 done; 1 a failure; 2 wrong usage or settings; 3 finished, but some submissions are held,
    failed or not attempted.
    """


def main() -> None:
    """Runs the command line; every error is one line on standard error."""
    verbose = "--verbose" in sys.argv
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("kyc-pipeline: interrupted", err=True)
        code = EXIT_INTERRUPTED
    except KycError as error:
        if verbose:
            traceback.print_exc()
        click.echo(f"kyc-pipeline: {error}", err=True)
        code = error.exit_code
    sys.exit(code or 0)
