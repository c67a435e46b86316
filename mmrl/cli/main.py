"""`mmrl`: the command and how its errors look. A mistake is one line on stderr and exit code 2, never a traceback."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence

import typer

from mmrl import __version__
from mmrl.cli import check, data, doctor, evaluate, export, generate, quickstart, recipes, report, train
from mmrl.errors import UserError
from mmrl.launched import is_main
from mmrl.training.interrupt import LeftAtOnce  # loads no torch

BAD_INPUT = 2
INTERRUPTED = 130
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)

app = typer.Typer(
    name="mmrl",
    help="Fine-tune generative models with group-relative policy optimisation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("quickstart")(quickstart.quickstart)
app.command("train")(train.train)
app.command("eval")(evaluate.evaluate)
app.command("generate")(generate.generate)
app.command("export")(export.export)
app.command("report")(report.report)
app.command("recipes")(recipes.recipes)
app.command("doctor")(doctor.doctor)
app.command("check-data")(check.check_data)
app.command("check-reward")(check.check_reward)
app.add_typer(data.app, name="data")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mmrl {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    pass


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0, 2 for bad input, 130 when interrupted."""
    try:
        code = app(args=None if argv is None else list(argv), prog_name="mmrl", standalone_mode=False)
    except UserError as error:
        return BAD_INPUT if error.quiet else _fail(str(error))
    except OSError as error:
        if error.filename is None:  # no file that a person could look after
            if error.errno not in DISK:
                raise
            return _fail(f"a file could not be written whole ({error.strerror}); make room and try again")
        return _fail(f"{error.filename}: {error.strerror or error}; is the path right, and may it be written to?")
    except LeftAtOnce as error:
        if is_main():
            typer.echo(f"interrupted {error}", err=True)
        return 128 + error.signum
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        signum = getattr(error, "signum", None)
        if signum is not None:  # mmrl.training.interrupt.Interrupted, not imported here because it would load torch
            if is_main():
                typer.echo(f"interrupted: {error}", err=True)
            return 128 + int(signum)
        # Wrong options: typer's own exceptions, whose class moved between its versions, know how to say what is wrong.
        say = getattr(error, "format_message", None)
        if say is None:
            raise
        return _fail(f"{say()} (see mmrl --help)") if say() else 0
    if code == INTERRUPTED:  # some versions of typer make this of a KeyboardInterrupt
        typer.echo("interrupted", err=True)
    return code if isinstance(code, int) else 0


def _fail(message: str) -> int:
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(message.split()))
    typer.echo(f"error: {line}", err=True)  # text of a file must not steer the terminal
    return BAD_INPUT


def main() -> None:
    """Entry point of the `mmrl` command."""
    sys.exit(run())
