"""Files that are whole or absent: atomic writing, checked reading, logs that survive a crash.

Of several processes that work together (promptprior.processes) only the first writes; the others only read.
"""

import ctypes
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors

from promptprior.errors import ArtifactError
from promptprior.notation import Tensor
from promptprior.processes import is_first

CLAIM = ".claim"  # locked while a command writes to its folder
ABANDONED = 3600.0  # seconds after which a partial folder can only belong to a killed process


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically and durably: it holds all of `data`, or what it held before.

    Missing parent folders are made. Raises ArtifactError naming the path, the bytes needed and the free
    space when the disk refuses.
    """
    if not is_first():
        return
    partial = partial_sibling(path)
    with disk_errors(path, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_abandoned(path)
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """`write_text` of indented JSON in the order given. NaN and Inf raise ValueError: JSON has neither."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """`write_bytes` of a safetensors file; equal tensors give equal bytes, whatever device they are on."""
    contiguous = torch.contiguous_format
    plain = {name: value.detach().cpu().clone(memory_format=contiguous) for name, value in tensors.items()}
    write_bytes(path, safetensors.save(plain, metadata={"format": "pt"}))


def replace_folder(path: Path, write: Callable[[Path], None], may_delete: Collection[str] = frozenset()) -> None:
    """`make_folder`, by the first process alone."""
    if is_first():
        make_folder(path, write, may_delete)


def make_folder(path: Path, write: Callable[[Path], None], may_delete: Collection[str] = frozenset()) -> None:
    """Make or replace a folder in one step: `write` fills a temporary sibling, which then takes its place.

    Whatever goes wrong, and whenever the process dies, `path` is the whole old folder or the whole new one
    (without an atomic exchange, as on Windows or some network disks, a kill between two renames leaves the
    old folder as `.NAME.old`). Raises ArtifactError when the disk refuses, and when the old folder holds
    files that the new one does not and that are not named in `may_delete`: saving never deletes what it
    did not write.
    """
    path = path.resolve()
    partial = partial_sibling(path)
    with disk_errors(path, 0):
        clear_abandoned(path)
        partial.mkdir(parents=True)
    try:
        with final_names(partial, path), disk_errors(partial, 0):
            write(partial)
            check_replaceable(path, names_in(partial) | set(may_delete))
            sync_tree(partial)
            swap_in(partial, path)
            sync_folder(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # after a swap this is the old folder


def check_replaceable(path: Path, ours: Collection[str]) -> None:
    """Raise ArtifactError when a folder holds files other than `ours`: call it before any long work."""
    if path.exists() and not path.is_dir():
        raise ArtifactError(f"cannot write {path}: a file of this name exists; choose another folder")
    strangers = sorted(names_in(path) - set(ours))
    if strangers:
        raise ArtifactError(
            f"cannot write {path}: it holds {len(strangers)} other file(s) that saving would delete "
            f"({', '.join(strangers[:5])}); choose a new or empty folder, or move them"
        )


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises ArtifactError when it is missing, unreadable or not UTF-8."""
    return decoded(read_bytes(path), path)


def read_json(path: Path) -> Any:
    """The value of a JSON file. Raises ArtifactError naming the line when it is not whole."""
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ArtifactError(
            f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg}); the file is cut off "
            "or was edited: copy it again or write it anew"
        ) from error


def read_tensors(path: Path, *, finite: bool = True) -> dict[str, Tensor]:
    """The tensors of a safetensors file, in memory of their own, on the CPU.

    Raises ArtifactError when the file is missing or damaged and, unless `finite` is False, when a tensor
    holds NaN or Inf.
    """
    data = read_bytes(path)
    try:
        tensors = safetensors.load(data)
    except (SafetensorError, ValueError) as error:
        raise ArtifactError(
            f"{path}: not a whole safetensors file ({error}; {len(data):,} bytes); it was cut off while "
            "being written or copied: copy it again, or fit again"
        ) from error
    if finite:
        check_finite(tensors, str(path))
    return {name: value.clone() for name, value in sorted(tensors.items())}


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise ArtifactError naming the first tensor that holds NaN or Inf."""
    for name, value in tensors.items():
        bad = int((~torch.isfinite(value)).sum())
        if bad:
            raise ArtifactError(
                f"{where}: tensor {name!r} has {bad:,} of {value.numel():,} entries that are NaN or Inf; the "
                "training that made it diverged: lower the learning rate and fit again"
            )


def append_line(path: Path, record: Mapping[str, object]) -> None:
    """Append one JSON object as a line, durably; several processes may append to one file.

    A half-written last line that a crash left is cut off first. When the disk is full the file is as it was
    and ArtifactError is raised. NaN and Inf raise ValueError, for JSON has neither.
    """
    if not is_first():
        return
    line = (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode()
    with disk_errors(path, len(line)):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            lock(descriptor)
            end = mend_tail(descriptor)
            append_whole(descriptor, line, end)
        finally:
            os.close(descriptor)


def read_lines(path: Path) -> list[Any]:
    """The objects of a JSONL file, a half-written last line left out (the next `append_line` cuts it off).

    A missing file has no lines. Raises ArtifactError naming the number of a broken line before the last.
    """
    if not path.exists():
        return []
    *lines, tail = read_bytes(path).split(b"\n")
    records = [parsed_line(line, path, number) for number, line in enumerate(lines, start=1) if line.strip()]
    return [*records, json.loads(tail)] if is_whole(tail) else records


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep other commands from writing to a folder until this one ends, in whatever way it ends.

    Raises ArtifactError when another has it. No claim is made on Windows.
    """
    if not is_first():
        yield
        return
    file = folder / CLAIM
    with disk_errors(file, 0):
        folder.mkdir(parents=True, exist_ok=True)
        claim = file.open("ab")
    with claim:
        try:
            lock(claim.fileno(), wait=False)
        except BlockingIOError as error:
            raise ArtifactError(
                f"{folder}: another command is writing there. Wait for it or stop it, or name another folder (--output)"
            ) from error
        yield


# How it is done


@contextmanager
def disk_errors(path: Path, needed: int) -> Iterator[None]:
    """Turn an OSError into an ArtifactError that says what was wanted and what there is."""
    try:
        yield
    except OSError as error:
        wanted = f"{needed:,} bytes needed, " if needed else ""
        raise ArtifactError(
            f"cannot write {path}: {error.strerror or error}; {wanted}{free_bytes(path):,} bytes free there; "
            "what stood there before is unchanged; free some space or choose another folder"
        ) from error


@contextmanager
def final_names(partial: Path, path: Path) -> Iterator[None]:
    """Let errors name the folder the user asked for, not the temporary one that `write` was given."""
    try:
        yield
    except ArtifactError as error:
        raise ArtifactError(str(error).replace(str(partial), str(path))) from error


def free_bytes(path: Path) -> int:
    """Bytes that can still be written where `path` is or would be."""
    there = next(folder for folder in [path, *path.absolute().parents] if folder.exists())
    return shutil.disk_usage(there).free


def read_bytes(path: Path) -> bytes:
    """The bytes of a file. Raises ArtifactError when there is none or it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        beside = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        there = f"its folder holds {', '.join(beside[:10]) or 'nothing'}" if beside else "nor its folder"
        raise ArtifactError(f"{path}: no such file ({there}); check the path") from error
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror or error}") from error


def decoded(data: bytes, path: Path) -> str:
    """UTF-8 bytes as text. Raises ArtifactError naming the line of the first broken byte."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ArtifactError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; save it as UTF-8"
        ) from error


def parsed_line(line: bytes, path: Path, number: int) -> Any:
    """One finished line of a JSONL file as a value."""
    try:
        return json.loads(line)
    except ValueError as error:
        raise ArtifactError(
            f"{path}, line {number}: not JSON ({error}); delete this line to go on without it"
        ) from error


def is_whole(tail: bytes) -> bool:
    """Whether the text after the last newline is a finished object that only lacks its newline.

    No strict beginning of a JSON object is itself JSON, so a cut-off record never passes.
    """
    try:
        return isinstance(json.loads(tail), dict)
    except ValueError:
        return False


def mend_tail(descriptor: int) -> int:
    """Cut off a half-written last line, or end a whole one. Returns the length of the file."""
    end = os.fstat(descriptor).st_size
    tail = last_line(descriptor, end)
    if is_whole(tail):
        os.write(descriptor, b"\n")
        return end + 1
    if tail:
        os.ftruncate(descriptor, end - len(tail))
    return end - len(tail)


def last_line(descriptor: int, end: int) -> bytes:
    """What stands after the last newline, read backwards."""
    tail = b""
    while len(tail) < end and b"\n" not in tail:
        start = max(0, end - 2 * len(tail) - 4096)
        os.lseek(descriptor, start, os.SEEK_SET)
        tail = os.read(descriptor, end - start)
    return tail.rpartition(b"\n")[2]


def append_whole(descriptor: int, line: bytes, end: int) -> None:
    """Append all of `line` and make it durable, or leave the file `end` bytes long."""
    try:
        while line:  # once, unless the disk is filling up: then the second write says so
            line = line[os.write(descriptor, line) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, end)
        raise


def lock(descriptor: int, wait: bool = True) -> None:
    """Wait until no other process has locked this file, or raise BlockingIOError. Closing it unlocks, and so does the
    end of the process."""
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def partial_sibling(path: Path) -> Path:
    """A new hidden name beside `path`, where it is written before it takes its place."""
    return path.with_name(f".{path.name}.partial-{os.getpid()}-{time.monotonic_ns()}")


def clear_abandoned(path: Path) -> None:
    """Remove what processes that were killed while they saved to `path` left beside it."""
    siblings = path.parent.iterdir() if path.parent.is_dir() else ()
    for partial in siblings:
        if partial.name.startswith(f".{path.name}.partial-") and age(partial) > ABANDONED:
            if partial.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
            else:
                partial.unlink(missing_ok=True)


def age(path: Path) -> float:
    """Seconds since something was last written there; 0 when it has just gone."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def names_in(folder: Path) -> set[str]:
    """Every file below a folder, as a relative name; none when there is no such folder."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir() or p.is_symlink()}


def swap_in(partial: Path, path: Path) -> None:
    """Give `partial` the name `path`, in one step where the system can; the old folder becomes `partial`."""
    if not path.exists():
        os.rename(partial, path)
    elif not exchanged(partial, path):
        aside = path.with_name(f".{path.name}.old")
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(path, aside)
        try:
            os.rename(partial, path)
        except OSError:
            os.rename(aside, path)
            raise
        os.rename(aside, partial)


def exchanged(a: Path, b: Path) -> bool:
    """Exchange two names atomically (Linux renameat2, macOS renamex_np); False where that does not exist."""
    if sys.platform == "win32":
        return False
    library, exchange, here = ctypes.CDLL(None), 2, -100  # RENAME_EXCHANGE and RENAME_SWAP; AT_FDCWD
    try:
        if sys.platform == "darwin":
            return library.renamex_np(os.fsencode(a), os.fsencode(b), exchange) == 0
        return library.renameat2(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0
    except AttributeError:
        return False


def sync_tree(folder: Path) -> None:
    """Make everything below a folder durable."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb+") as file:
                os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; Windows has no such call."""
    if sys.platform != "win32":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
