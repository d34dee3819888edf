"""The error boundary: whatever leaves a command becomes two lines and an exit code."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from tokpipe.errors import TokpipeError
from tokpipe_cli.console import show_error
from tokpipe_cli.jsonl import emit, emit_error, summarise

INTERRUPTED = 130
_NO_SUMMARY = {"inspect", "doctor", "show"}


class UsageProblem(TokpipeError):
    """Options that do not go together, or inputs that do not resolve."""

    code = "usage"
    exit_code = 2


def unexpected(error: BaseException) -> TokpipeError:
    """Wrap what nobody foresaw: it asks for a report with versions."""
    import platform

    from tokpipe import __version__

    text = " ".join(str(error).split()) or "no message"
    return TokpipeError(
        f"unexpected {type(error).__name__}: {text}",
        hint="this is a bug: run again with --debug and report the traceback "
        f"(tokpipe {__version__}, Python {platform.python_version()}, {platform.system()})",
        code="unexpected",
    )


def os_problem(error: OSError) -> TokpipeError:
    """A file or folder that cannot be read or written, as one of our own errors."""
    from tokpipe.errors import ResourceError

    where = f" `{error.filename}`" if error.filename else ""
    return ResourceError(
        f"cannot use{where}: {error.strerror or error}",
        hint="check that the folder exists, is writable and has room, or choose another with -o",
        code="resource.file",
    )


class Boundary(TyperGroup):
    """The root command: turns every exception into two lines and an exit code."""

    def main(
        self, args: Sequence[str] | None = None, prog_name: str | None = None,
        complete_var: str | None = None, standalone_mode: bool = True,
        windows_expand_args: bool = True, **extra: Any,
    ) -> Any:  # fmt: skip
        """Run a command line and exit with its code."""
        words = list(sys.argv[1:] if args is None else args)
        if sys.stdout is None:
            # A closed stdout: results have nowhere to go, the work is still done.
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
        try:
            result = super().main(
                words, prog_name, complete_var, False, windows_expand_args, **extra
            )
            sys.stdout.flush()
            code = result if isinstance(result, int) else 0
        except BrokenPipeError:
            code = _close_pipe()
        except typer.TyperException as error:
            code = _report(_usage(error), words)
        except TokpipeError as error:
            code = _report(error, words)
        except (KeyboardInterrupt, typer.Abort):
            code = INTERRUPTED
        except OSError as error:
            code = _report(os_problem(error), words)
        except Exception as error:  # noqa: BLE001 - the boundary
            code = _report(unexpected(error), words)
        if standalone_mode:
            sys.exit(code)
        return code

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an interrupt that it does not report itself is reported here."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            hint = f"run the same line again: tokpipe {shlex.join(sys.argv[1:])}"
            show_error(TokpipeError("interrupted", hint=hint))
            raise typer.Exit(INTERRUPTED) from None


def _report(error: TokpipeError, words: list[str]) -> int:
    """Show an error in every form that was asked for; returns the exit code."""
    if "--debug" in words:
        traceback.print_exc()
    if "--json" in words:
        emit_error(error)
        if not _NO_SUMMARY & set(words):
            emit("summary", **summarise([]))
    show_error(error)
    return error.exit_code


def _usage(error: typer.TyperException) -> TokpipeError:
    """A wrong command line, in our two lines."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "tokpipe"
    hint = f"see `{path} --help`"
    text = error.format_message().strip()
    near = getattr(error, "possibilities", None)
    if near:
        text, hint = (
            error.message,
            "did you mean " + " or ".join(f"`{n}`" for n in sorted(near)) + "?",
        )
    elif "Did you mean" in text:
        text, _, rest = text.partition(" Did you mean ")
        hint = "did you mean " + rest.replace("'", "`").replace(", ", " or ")
    text = text.rstrip(".").replace("'", "`")
    return UsageProblem(text[:1].lower() + text[1:], hint=hint)


def _close_pipe() -> int:
    """The reader of our output went away: say nothing, also not at exit."""
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
