"""The command's boundary to the system: arguments, standard output, and errors of files that no other code explains.

A mistake of the user, or a file system that cannot be used, is an error with exit code 2 and without a traceback. A
closed pipe (`fastdraft ... | head -1`) ends the command quietly, as SIGPIPE ends other tools.
"""

from __future__ import annotations

import errno
import io
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from typer.core import TyperGroup

from fastdraft.system.errors import FastDraftError, MainProcessFailed, RecipeError, RunError, UserError
from fastdraft.system.terminal import printable

# Errors of a machine, not of this program: permissions, full or broken disks, impossible paths, too many open files.
MACHINE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE, errno.ENFILE, errno.ENOTEMPTY),
}


class Commands(TyperGroup):
    """The commands. A broken pipe to another process is an error: typer would end the command in silence."""

    def invoke(self, context: Any) -> object:  # a Context of click, or of the copy inside typer from 0.29
        """Run the command."""
        try:
            return super().invoke(context)
        except BrokenPipeError as error:
            if _output_is_closed():
                _end_quietly()
            raise FastDraftError(
                "a process that this command had started is gone (broken pipe)\n"
                "  do: check whether the system ended it for its memory, then run the same command again"
            ) from error


def run(commands: Callable[[], object], arguments: Sequence[str]) -> None:
    """Run the command line; every failure that is not a mistake of this program becomes a message and an exit code."""
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by the shell: >&-
            setattr(sys, stream, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a locale may lack characters of a model's text
    try:
        check_utf_8(arguments)
        try:
            commands()
        finally:
            sys.stdout.flush()  # at the interpreter's end an error could not be reported
    except BrokenPipeError:
        _end_quietly()
    except OSError as error:
        if error.errno not in MACHINE:
            raise
        name = error.filename2 or error.filename  # a rename has two names
        where = "standard output or a file: " if name is None else f"{name}: "
        _fail(RunError(f"{where}{error.strerror}\n  do: check its path, its permissions and the space on its disk"))
    except FastDraftError as error:
        _fail(error)


def check_utf_8(arguments: Sequence[str]) -> None:
    """RecipeError if an argument is not UTF-8: Python passes other bytes on as surrogates, which no JSON file holds."""
    for number, argument in enumerate(arguments, 1):
        try:
            argument.encode("utf-8")
        except UnicodeEncodeError:
            shown = ascii(argument)[1:-1]
            raise RecipeError(
                f"argument {number} is not UTF-8: {shown[:100]}\n  do: write it in UTF-8, or rename the file"
            ) from None


def _fail(error: FastDraftError) -> NoReturn:
    """Print an error and exit with its code."""
    if not isinstance(error, MainProcessFailed):
        process = ""
        if "RANK" in os.environ:
            from fastdraft.system import processes

            process = "" if processes.is_main() else f"process {processes.rank()}: "
        kind = "error" if isinstance(error, UserError) else type(error).__name__
        with suppress(OSError):  # standard error may be full or closed as well
            print(printable(f"{process}{kind}: {error}"), file=sys.stderr, flush=True)
    _discard_output()
    sys.exit(error.exit_code)


def _end_quietly() -> NoReturn:
    _discard_output()
    sys.exit(128 + signal.SIGPIPE)


def _output_is_closed() -> bool:
    """Whether the reader of standard output or standard error is gone."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # no file of the system
            poll.register(stream.fileno(), 0)
    return bool(poll.poll(0))


def _discard_output() -> None:
    """Send what is still buffered nowhere, if it cannot be written: Python would report it again at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
