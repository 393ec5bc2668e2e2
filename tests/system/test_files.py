"""Run folders: atomic writes, full disks, locks, and moving the results of another recipe."""

import ast
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fastdraft.system import files
from fastdraft.system.errors import DiskFull, RunError
from fastdraft.system.files import (
    atomic_write,
    cache_folder,
    claim,
    disk_full_explained,
    locked,
    recover,
    remove,
    restore,
    short_writes_explained,
    stored_key,
    write_json,
)


def write(part: Path, kind: str, content: str) -> None:
    if kind == "folder":
        part.mkdir()
        (part / "inner").mkdir()
        part = part / "inner" / "file"
    part.write_text(content)


def read(path: Path, kind: str) -> str:
    return (path / "inner" / "file" if kind == "folder" else path).read_text()


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("before", [None, "old"])
def test_a_file_or_folder_appears_complete_or_not_at_all(tmp_path, kind, before):
    path = tmp_path / "new folder" / "thing"
    if before:
        with atomic_write(path) as part:
            write(part, kind, before)

    def write_and_fail() -> None:
        with atomic_write(path) as part:
            write(part, kind, "new")
            assert path.exists() == bool(before)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_and_fail()
    assert [p.name for p in path.parent.iterdir()] == (["thing"] if before else [])
    if before:
        assert read(path, kind) == before
    with atomic_write(path) as part:
        write(part, kind, "new")
    assert read(path, kind) == "new"
    assert [p.name for p in path.parent.iterdir()] == ["thing"]


@pytest.mark.parametrize(("before", "kind"), [("folder", "file"), ("file", "folder")])
def test_a_file_does_not_replace_a_folder_nor_a_folder_a_file(tmp_path, before, kind):
    write(tmp_path / "thing", before, "precious")
    with pytest.raises(OSError, match="directory"), atomic_write(tmp_path / "thing") as part:
        write(part, kind, "new")
    assert read(tmp_path / "thing", before) == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["thing"]


def test_a_block_that_writes_nothing_keeps_the_old_version(tmp_path):
    write(tmp_path / "thing", "folder", "old")
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "thing"):
        pass
    assert read(tmp_path / "thing", "folder") == "old"


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    write(tmp_path / "thing.fastdraft-part", "folder", "half")
    with atomic_write(tmp_path / "thing") as part:
        assert not part.exists()
        part.mkdir()
    assert list((tmp_path / "thing").iterdir()) == []


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


KILLED_WRITING = """
import sys
from pathlib import Path
from fastdraft.system.files import atomic_write
with atomic_write(Path(sys.argv[1])) as part:
    part.mkdir()
    (part / "file").write_text("half")
    print("writing", flush=True)
    input()
"""

# Is killed at the n-th rename.
KILLED_AT_A_RENAME = """
import os, signal, sys
from pathlib import Path
from fastdraft.system.files import atomic_write
left = int(sys.argv[2])
def count(event, _arguments):
    global left
    if event == "os.rename":
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
with atomic_write(Path(sys.argv[1])) as part:
    part.mkdir()
    (part / "inner").mkdir()
    (part / "inner" / "file").write_text("new")
    sys.addaudithook(count)
"""


@pytest.mark.parametrize("before", [None, "old"])
def test_a_kill_while_writing_keeps_the_old_version(tmp_path, before):
    path = tmp_path / "thing"
    if before:
        write(path, "folder", before)
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_WRITING, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.kill()
    assert path.exists() == bool(before)
    if before:
        assert read(path, "folder") == before


@pytest.mark.parametrize("renames", [0, 1])
def test_a_kill_at_a_rename_keeps_the_old_version(tmp_path, renames):
    path = tmp_path / "thing"
    write(path, "folder", "old")
    with child(KILLED_AT_A_RENAME, path, renames) as process:
        assert process.wait() == -signal.SIGKILL
    assert path.exists() == (renames == 0)
    recover(path)
    assert read(path, "folder") == "old"
    with atomic_write(path) as part:
        write(part, "folder", "newest")
    assert read(path, "folder") == "newest"
    assert [p.name for p in tmp_path.iterdir()] == ["thing"]


def test_recovery_keeps_a_complete_new_version(tmp_path):
    write(tmp_path / "thing", "folder", "new")
    write(tmp_path / "thing.fastdraft-old", "folder", "old")
    recover(tmp_path / "thing")
    assert read(tmp_path / "thing", "folder") == "new"
    assert not (tmp_path / "thing.fastdraft-old").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_raises_disk_full(tmp_path, number):
    message = f"no space left while writing {tmp_path}.*\n.*kept.*\n  do: "
    with pytest.raises(DiskFull, match=message), disk_full_explained(tmp_path):
        raise OSError(number, "full")


def test_other_errors_are_not_changed(tmp_path):
    with pytest.raises(PermissionError), disk_full_explained(tmp_path):
        raise PermissionError(errno.EACCES, "denied")


def test_safetensors_on_a_full_disk_raises_disk_full(tmp_path, full_disk):
    """safetensors writes in Rust; its error is not an OSError."""
    with full_disk(), pytest.raises(DiskFull), atomic_write(tmp_path / "weights.safetensors") as part:
        save_file({"a": torch.zeros(100, 100)}, part)
    assert list(tmp_path.iterdir()) == []


def test_numpy_on_a_full_disk_raises_disk_full(tmp_path, full_disk):
    """numpy's error has no error number."""
    with full_disk(), pytest.raises(DiskFull), atomic_write(tmp_path / "numbers") as part, short_writes_explained():
        np.zeros((100, 100)).tofile(part)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "denied"), RuntimeError("no such operation")])
def test_errors_other_than_short_writes_are_not_changed(error):
    with pytest.raises(type(error)) as caught, short_writes_explained():
        raise error
    assert caught.value is error


def test_json_is_written_atomically_in_utf_8(tmp_path):
    write_json(tmp_path / "a.json", {"name": "狐"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "name": "狐"\n}\n'
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"name": object()})
    assert "狐" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_a_file_of_the_user_with_a_usual_ending_stays(tmp_path):
    """`.old` and `.part` are endings that users give to their own files, such as a backup of a recipe."""
    mine = [tmp_path / f"recipe.yaml{ending}" for ending in (".old", ".part", ".bak", "~")]
    for path in mine:
        path.write_text("mine")
    for _ in range(2):
        with atomic_write(tmp_path / "recipe.yaml") as part:
            part.write_text("new")
    assert [path.read_text() for path in mine] == ["mine"] * len(mine)


def test_remove_removes_a_link_and_keeps_its_target(tmp_path):
    write(tmp_path / "kept", "folder", "old")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    remove(tmp_path / "link", tmp_path)
    remove(tmp_path / "never there", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize(
    "path",
    [
        *(
            "run/../victim",
            "run/stage/../../victim",
            "run/../../{}/victim",
            "victim",
            "/",
            "..",
            ".",
            "run/..",
            "run/.",
        ),
        *("run", "run/stage/..", "run/out/victim", "run/stage/up/victim", "run-2/victim", "out/victim"),
    ],
)
def test_nothing_outside_the_folder_is_removed(tmp_path, monkeypatch, path):
    """Neither through `..`, nor through a link, nor the folder itself, nor a sibling whose name begins like it."""
    for folder in ("run/stage", "run-2", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
        write(tmp_path / folder / "victim", "folder", "precious")
    write(tmp_path / "victim", "folder", "precious")
    (tmp_path / "run" / "stage" / "up").symlink_to("../..")
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "run" / "out").symlink_to("../elsewhere")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    for inside in (Path("run"), tmp_path / "run", Path("run/stage/..")):
        with pytest.raises(RunError, match=r"is not within .*run.*\n  do: "):
            remove(Path(path.format(tmp_path.name)), inside)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_on_another_disk_can_be_cleaned_through_its_link(tmp_path):
    """A user may move the folder of a large stage, and leave a link to it."""
    write(tmp_path / "disk", "folder", "old")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tokenize").symlink_to(tmp_path / "disk")
    remove(tmp_path / "run" / "tokenize" / "inner", inside=tmp_path / "run" / "tokenize")
    assert list((tmp_path / "disk").iterdir()) == []


REMOVERS = {"rmtree", "unlink", "rmdir", "removedirs"}


def test_only_one_module_removes_files():
    """Everything else calls its `remove`, which refuses what is outside."""
    sources = Path(files.__file__).parents[1]
    calls = [
        (path.relative_to(sources).as_posix(), node.func.attr)
        for path in sources.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and (node.func.attr in REMOVERS or ast.unparse(node.func) in ("os.remove", "os.replace", "shutil.move"))
    ]
    assert sorted(calls) == [("system/files.py", "rmtree"), ("system/files.py", "unlink")]


HOLD = """
import os, sys, time
from pathlib import Path
from fastdraft.system.files import locked
with locked(Path(sys.argv[1])):
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_locked_folder_is_refused_until_its_process_is_killed(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        message = f"{tmp_path} is in use by process {holder.pid}\n  do: "
        with pytest.raises(RunError, match=message), locked(tmp_path):
            pass
        holder.kill()
        holder.wait()
        with locked(tmp_path):  # although a child of the killed process still runs
            assert (tmp_path / "lock").read_text() == str(os.getpid())
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.stdout.close()


def test_the_lock_ends_with_its_block(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "new"):
        raise ZeroDivisionError
    code = (
        "import sys; from pathlib import Path; from fastdraft.system.files import locked\n"
        "with locked(Path(sys.argv[1])): pass"
    )
    with child(code, tmp_path / "new") as process:
        assert process.wait() == 0


def spoil_file(folder):
    folder.write_text("mine")


def spoil_dangling(folder):
    folder.symlink_to(folder.parent / "gone")


def spoil_loop(folder):
    folder.symlink_to(folder)


def spoil_lock_folder(folder):
    (folder / "lock").mkdir(parents=True)


def spoil_lock_link(folder):
    folder.mkdir()
    (folder / "lock").symlink_to(folder / "gone" / "lock")


def spoil_lock_of_others(folder):
    folder.mkdir()
    (folder / "lock").write_bytes(b"\xff\0 of another program")


@pytest.mark.parametrize(
    ("spoil", "below"),
    [
        *((spoil, below) for spoil in (spoil_file, spoil_dangling, spoil_loop) for below in ("thing", "thing/below")),
        *((spoil, "thing") for spoil in (spoil_lock_folder, spoil_lock_link, spoil_lock_of_others)),
        *((lambda _: None, name) for name in ("thing" * 60, f"{'thing' * 60}/below", "thing/" * 1000)),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(tmp_path, spoil, below):
    spoil(tmp_path / "thing")
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(RunError, match=r"thing.* is not .*\n  do: .*--keep"), locked(tmp_path / below, "--keep"):
        pass
    assert {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("home", ["file", "file/below", "gone"])
def test_a_cache_folder_that_cannot_be_made_is_refused(tmp_path, monkeypatch, home):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    monkeypatch.setenv("HOME", str(tmp_path / home))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(RunError, match=r"is not a writable folder(.|\n)*do: set XDG_CACHE_HOME"):
        cache_folder("completions", "0123")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder("completions", "0123") == tmp_path / "cache" / "fastdraft" / "completions" / "0123"
    assert list((tmp_path / "cache" / "fastdraft" / "completions").iterdir()) == []


def test_claim_moves_a_folder_with_another_key_to_stale(tmp_path):
    folder = tmp_path / "pretrain"
    assert claim(folder, "one") is None
    (folder / "work").write_text("of one")
    assert claim(folder, "one") is None
    assert (folder / "work").read_text() == "of one"
    assert claim(folder, "two") == "stale/pretrain-0"
    assert [p.name for p in folder.iterdir()] == ["key"]
    (folder / "work").write_text("of two")
    assert claim(folder, "one") == "stale/pretrain-1"
    remove(tmp_path / "stale" / "pretrain-0", tmp_path)
    assert claim(folder, "three") == "stale/pretrain-0", "the first free number"
    assert claim(folder, "four") == "stale/pretrain-2"
    assert (tmp_path / "stale" / "pretrain-1" / "work").read_text() == "of two"


def test_work_with_the_same_key_is_brought_back_from_stale(tmp_path):
    """The undone mistake moves to `stale/` in its turn; a folder in which nothing was made leaves no copy."""
    folder, keys = tmp_path / "pretrain", [f"{number:016x}" for number in range(5)]
    claim(folder, keys[0])
    (folder / "work").write_text("of 0")
    for key in keys[1:4]:
        assert restore(folder, key) is None
        claim(folder, key)
    assert [path.name for path in (tmp_path / "stale").iterdir()] == ["pretrain-0"]
    (folder / "work").write_text("of 3")
    assert restore(folder, keys[0]) == "stale/pretrain-0"
    assert (stored_key(folder), (folder / "work").read_text()) == (keys[0], "of 0")
    assert restore(folder, keys[0]) is None
    assert restore(folder, keys[3]) == "stale/pretrain-1"
    assert (folder / "work").read_text() == "of 3"
    folder.rename(tmp_path / "lost")  # as after a kill between the two renames
    assert restore(folder, keys[0]) is not None
    assert (folder / "work").read_text() == "of 0"


def test_a_users_file_named_key_is_not_removed(tmp_path):
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain" / "key").write_text("ssh-ed25519 AAAA")
    assert claim(tmp_path / "pretrain", "one") == "stale/pretrain-0"


def test_claim_moves_a_folder_without_a_key(tmp_path):
    write(tmp_path / "pretrain", "folder", "precious")
    assert claim(tmp_path / "pretrain", "one") == "stale/pretrain-0"
    assert read(tmp_path / "stale" / "pretrain-0", "folder") == "precious"


def test_claiming_with_the_same_key_does_not_write(tmp_path):
    """A kill or a full disk while writing the key would lose the work in the folder."""
    claim(tmp_path / "pretrain", "one")
    before = (tmp_path / "pretrain" / "key").stat().st_mtime_ns
    time.sleep(0.01)
    claim(tmp_path / "pretrain", "one")
    assert (tmp_path / "pretrain" / "key").stat().st_mtime_ns == before
