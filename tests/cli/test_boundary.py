"""The command's boundary: bad arguments, standard output that cannot be written, and file systems that fail."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.models import OptionInfo
from typer.testing import CliRunner

from fastdraft.cli import app, boundary
from fastdraft.system.errors import FastDraftError

FASTDRAFT = (sys.executable, "-m", "fastdraft")
# One prints more than the buffer of a pipe and of standard output, the others less; one prints an error.
COMMANDS = {
    "schema": ["recipe", "schema"],
    "version": ["--version"],
    "help": ["--help"],
    "error": ["recipe", "validate"],
}


@contextmanager
def full() -> Iterator[int]:
    with Path("/dev/full").open("wb") as file:
        yield file.fileno()


@contextmanager
def closed_pipe() -> Iterator[int]:
    """The end of a pipe for writing; nobody reads it."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("output", [full, closed_pipe])
def test_output_that_cannot_be_written(output, command):
    """A full one is an error with exit code 2; a closed pipe ends the command quietly."""
    with output() as stream:
        ended = subprocess.run([*FASTDRAFT, *COMMANDS[command]], stdout=stream, stderr=subprocess.PIPE, text=True)
    assert "Traceback" not in ended.stderr
    assert "Exception" not in ended.stderr
    if command == "error":
        assert ended.returncode == 2
    elif output is full:
        assert ended.returncode == 2
        assert "No space left on device\n  do: " in ended.stderr
    else:
        assert (ended.returncode, ended.stderr) in [(141, ""), (1, "")]  # 1: typer prints the help


@pytest.mark.parametrize("output", [full, closed_pipe, None])
def test_standard_error_that_cannot_be_written(tmp_path, output):
    if output is None:
        command = f"{' '.join(FASTDRAFT)} recipe validate gone.yaml 2>&- >&-"
        ended = subprocess.run(command, shell=True, stdin=subprocess.DEVNULL, cwd=tmp_path)
    else:
        with output() as stream:
            ended = subprocess.run([*FASTDRAFT, "recipe", "validate", "gone.yaml"], stderr=stream, cwd=tmp_path)
    assert ended.returncode == 2


def test_text_that_the_locale_cannot_print(tmp_path):
    (tmp_path / "a.yaml").write_text("name: a\ntarget: {path: 狐}\ndraft: {}\n", encoding="utf-8")
    ended = subprocess.run(
        [*FASTDRAFT, "recipe", "show", "a.yaml"],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "path: \\u72d0" in ended.stdout


def run_raising(error: BaseException, *arguments: str) -> int:
    """The exit code of a command that fails with an error."""

    def command() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        boundary.run(command, arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize("number", sorted(boundary.MACHINE))
def test_an_error_of_the_machine_is_explained(capsys, number):
    assert run_raising(OSError(number, os.strerror(number), "runs/demo/card.json")) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: runs/demo/card.json: {os.strerror(number)}\n  do: ")


@pytest.mark.parametrize("error", [OSError(errno.ENOENT, "gone"), ValueError("a mistake of this program"), KeyError(1)])
def test_a_mistake_of_the_program_keeps_its_traceback(error):
    def command() -> None:
        raise error

    with pytest.raises(type(error)):
        boundary.run(command, ())


@pytest.mark.parametrize("argument", [b"\xff", b"prompt=\xe9t\xe9", b"a\xed\xa0\x80"])
def test_an_argument_that_is_not_utf_8_is_refused(capsys, argument):
    assert run_raising(AssertionError("not reached"), "play", os.fsdecode(argument)) == 2
    assert "argument 2 is not UTF-8: " in capsys.readouterr().err


def test_a_broken_pipe_to_another_process_is_not_silent(monkeypatch):
    """typer ends a command in silence then, as if its output had been closed."""

    def broken(*_: object, **__: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(boundary.TyperGroup, "invoke", broken)
    ended = CliRunner().invoke(app, ["recipe", "schema"])
    assert isinstance(ended.exception, FastDraftError)
    assert "broken pipe" in str(ended.exception)


WORDS = st.one_of(
    st.sampled_from(
        ["recipe", "show", "validate", "schema", "demo.yaml", "--json", "--help", "--", "name=x", "draft={}"]
    ),
    st.text(max_size=12),
    st.builds("{}={}".format, st.sampled_from(["name", "seed", "corpus.a", "draft.layers"]), st.text(max_size=12)),
)


@settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(WORDS, max_size=5))
def test_no_arguments_of_recipe_give_a_traceback(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo.yaml").write_text("name: a\ntarget: {path: demo}\ndraft: {}\n")
    ended = CliRunner().invoke(app, ["recipe", *words])
    assert ended.exception is None or isinstance(ended.exception, SystemExit | FastDraftError), ended.exception


def _options(application: typer.Typer, path: tuple[str, ...] = ()) -> Iterator[tuple[str, object, OptionInfo]]:
    """(its name, its type, what it states) of every option of the commands of an application and of those below it."""
    for group in application.registered_groups:
        yield from _options(group.typer_instance, (*path, group.name or ""))
    for command in application.registered_commands:
        for name, hint in get_type_hints(command.callback, include_extras=True).items():
            if get_origin(hint) is Annotated:
                kind, *stated = get_args(hint)
                yield from (
                    (f"{command.callback.__name__} {name}", kind, o) for o in stated if isinstance(o, OptionInfo)
                )


def test_every_whole_number_option_has_an_upper_limit():
    options = {name: option for name, kind, option in _options(app) if kind in (int, int | None)}
    assert len(options) >= 15
    assert [name for name, option in options.items() if option.max is None] == []
