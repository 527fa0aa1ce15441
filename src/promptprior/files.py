"""Files that are whole or absent: atomic writing, checked reading, logs that survive a crash.

What a killed process left half-written is removed by the next command that claims the folder. Of several processes that
work together (promptprior.processes) only the first writes; the others only read.
"""

import ctypes
import errno
import json
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptprior.errors import ArtifactError, DiskError
from promptprior.interruptions import unfinished
from promptprior.processes import is_first
from promptprior.untrusted import parse_json

if TYPE_CHECKING:  # imported where tensors are read and written: reports must not wait for torch
    from torch import Tensor

CLAIM = ".claim"  # locked while a command writes to its folder
MOST_BYTES = 2**33  # of a file that is read whole
MOST_OF_HEADER = 10**8  # bytes of a safetensors file's header
ABANDONED = 3600.0  # seconds after which, without a claim, a partial file counts as left by a killed process
PARTIAL = re.compile(r"\.(?P<name>.+)\.(partial-\d+-\d+|swapped-out)")  # names that _partial_sibling, make_folder give
DEPTH = 5  # of folders in a claimed one that are searched for them: priors/NAME/checkpoints/STAGE, work/KEY/episode0/…


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically and durably: it holds all of `data`, or what it held before.

    Missing parent folders are made. Raises ArtifactError naming the path, the bytes needed and the free
    space when the disk refuses.
    """
    if not is_first():
        return
    partial = _partial_sibling(path)
    with disk_errors(path, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_partials(path.parent, path.name, older_than=ABANDONED)
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        _sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode())


@contextmanager
def written_in_parts(path: Path, parts: Iterable[str]) -> Iterator[Path]:
    """UTF-8 text in a hidden file beside `path`, written part by part, in memory one at a time; inside, move it there.

    Every process makes the parts, the first writes them. What is not moved is removed. Raises DiskError.
    """
    partial = _partial_sibling(path)
    try:
        with ExitStack() as stack:
            file = None
            if is_first():
                with disk_errors(path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    _clear_partials(path.parent, path.name, older_than=ABANDONED)
                    file = stack.enter_context(partial.open("w", encoding="utf-8", newline=""))
            for part in parts:
                with disk_errors(path, len(part)):
                    if file is not None:
                        file.write(part)
            with disk_errors(path):
                if file is not None:
                    file.flush()
                    os.fsync(file.fileno())
        yield partial
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def write_together(writers: Mapping[Path, Callable[[Path], object]]) -> Iterator[Mapping[Path, Path]]:
    """Write several files, each by its writer at a hidden path beside it, and give these paths by file; at the end each
    takes its place. Where this is not the first process it writes nothing, and gives no paths."""
    if not is_first():
        yield {}
        return
    partials = {path: _partial_sibling(path) for path in writers}
    try:
        for path, write in writers.items():
            try:
                write(partials[path])
            except ArtifactError as error:  # name the file the user asked for
                raise type(error)(str(error).replace(str(partials[path]), str(path))) from error
        yield partials
        for path, partial in partials.items():
            with disk_errors(path):
                os.replace(partial, path)
                _sync(path.parent)
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """`write_text` of indented JSON in the order given. NaN and Inf raise ValueError: JSON has neither."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]") -> None:
    """`write_bytes` of a safetensors file: tensors of any shape, equal ones as equal bytes, from whatever device."""
    import torch
    from safetensors import torch as safetensors

    contiguous = torch.contiguous_format
    plain = {name: value.detach().cpu().clone(memory_format=contiguous) for name, value in tensors.items()}
    write_bytes(path, safetensors.save(plain, metadata={"format": "pt"}))


def replace_folder(path: Path, write: Callable[[Path], None], may_delete: Collection[str] = frozenset()) -> None:
    """`make_folder`, by the first process alone."""
    if is_first():
        make_folder(path, write, may_delete)


def make_folder(path: Path, write: Callable[[Path], None], may_delete: Collection[str] = frozenset()) -> None:
    """Make or replace a folder in one step: `write` fills a temporary sibling, which then takes its place.

    Whatever goes wrong, and whenever the process dies, `path` is the whole old folder or the whole new one. Windows and
    some network disks have no atomic exchange: there a kill between two renames leaves the old folder as
    `.NAME.swapped-out`, which the next claim puts back. Raises DiskError when the disk refuses, and ArtifactError when
    the old folder holds files that the new one does not and that are not named in `may_delete`: saving never deletes
    what it did not write.
    """
    path = path.resolve()
    partial = _partial_sibling(path)
    with disk_errors(path, 0):
        _clear_partials(path.parent, path.name, older_than=ABANDONED)
        partial.mkdir(parents=True)
    try:
        with unfinished(), disk_errors(partial, 0):
            write(partial)
            check_replaceable(path, _names_in(partial) | set(may_delete))
            for part in [*partial.rglob("*"), partial]:
                _sync(part)
            # In one step where the system can; the old folder becomes `partial`
            if not path.exists():
                os.rename(partial, path)
            elif not exchange_names(partial, path):
                aside = path.with_name(f".{path.name}.swapped-out")
                shutil.rmtree(aside, ignore_errors=True)
                os.rename(path, aside)
                try:
                    os.rename(partial, path)
                except OSError:
                    os.rename(aside, path)
                    raise
                os.rename(aside, partial)
            _sync(path.parent)
    except ArtifactError as error:  # name the folder the user asked for, not the one that `write` was given
        raise type(error)(str(error).replace(str(partial), str(path))) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # after a swap this is the old folder


def remove_folder(path: Path) -> None:
    """Remove a folder, if it is there, in one step: whenever the process dies, it is whole or has gone.

    It is renamed first; the next command that claims the folder above it, or this one, removes what a kill leaves.
    """
    if not is_first():
        return
    doomed = _partial_sibling(path)
    try:
        os.rename(path, doomed)
    except FileNotFoundError:
        return
    except OSError:  # Windows renames no folder that holds an open lock
        doomed = path
    shutil.rmtree(doomed, ignore_errors=True)


def check_replaceable(path: Path, ours: Collection[str]) -> None:
    """Raise ArtifactError when a folder holds files other than `ours`: call it before any long work."""
    if path.exists() and not path.is_dir():
        raise ArtifactError(f"cannot write {path}: a file of this name exists; choose another folder")
    strangers = sorted(_names_in(path) - set(ours))
    if strangers:
        raise ArtifactError(
            f"cannot write {path}: it holds {len(strangers)} other file(s) that saving would delete "
            f"({', '.join(strangers[:5])}); choose a new or empty folder, or move them"
        )


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """The bytes of a file. Raises ArtifactError when it is missing, no regular file, larger than `most` bytes or cannot
    be read."""
    try:
        status = path.stat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise ArtifactError(f"{path}: this is a pipe, socket or device; expected a file")
        if status.st_size > most and not stat.S_ISDIR(status.st_mode):
            raise ArtifactError(f"{path}: {status.st_size:,} bytes; expected at most {most:,}")
        return path.read_bytes()
    except FileNotFoundError as error:
        beside = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        there = f"its folder holds {', '.join(beside[:10]) or 'nothing'}" if beside else "nor its folder"
        raise ArtifactError(f"{path}: no such file ({there}); check the path") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ArtifactError(f"{path}: cannot be read: {reason}") from error


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises ArtifactError when it is missing, unreadable or not UTF-8, naming the line."""
    data = read_bytes(path)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ArtifactError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; save it as UTF-8"
        ) from error


def read_json(path: Path) -> Any:
    """The value of a JSON file. Raises ArtifactError naming the line where it is damaged (untrusted.parse_json)."""
    text = read_text(path)
    try:
        return parse_json(text, str(path), ArtifactError, infinity=True)
    except ArtifactError as error:
        raise ArtifactError(f"{error}; the file is cut off or was edited: copy it again") from error


def read_tensors(path: Path, *, finite: bool = True) -> "dict[str, Tensor]":
    """The tensors of a safetensors file, of the shapes they were written with, in memory of their own on the CPU.

    Raises ArtifactError when the file is missing or damaged and, unless `finite` is False, when a tensor
    holds NaN or Inf.
    """
    from safetensors import SafetensorError
    from safetensors import torch as safetensors

    odd = {d for d, _ in tensor_shapes(path).values()} - TENSOR_TYPES
    if odd:
        known = ", ".join(sorted(TENSOR_TYPES))
        raise ArtifactError(f"{path}: it holds numbers of the type {', '.join(sorted(odd))}; expected one of {known}")
    data = read_bytes(path)
    try:
        tensors = safetensors.load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise _cut_off(path, error, len(data)) from error
    if finite:
        check_finite(tensors, str(path))
    return {name: value.clone() for name, value in sorted(tensors.items())}


TENSOR_TYPES = frozenset(["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"])


def tensor_shapes(path: Path) -> dict[str, tuple[str, list[int]]]:
    """Type and shape of every tensor of a safetensors file, from its header alone, none larger than the file says.

    Raises ArtifactError when the file is not whole or says something impossible.
    """
    if not path.is_file():
        read_bytes(path)  # says what is there instead
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MOST_OF_HEADER):
                raise _cut_off(path, f"its header would have {length:,} bytes", size)
            header = parse_json(file.read(length).decode("utf-8", "replace"), str(path), ArtifactError)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not isinstance(header, dict):
        raise _cut_off(path, "its header is no JSON object", size)
    shapes = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            whole = all(type(n) is int and n >= 0 for n in [*shape, start, end])
        except (TypeError, KeyError, ValueError):
            whole = False
        if not whole or not isinstance(dtype, str) or not start <= end <= size - 8 - length:
            raise _cut_off(path, f"the entry of tensor {name[:100]!r} is {str(entry)[:200]}", size)
        shapes[name] = (dtype, shape)
    return shapes


def _cut_off(path: Path, reason: object, size: int) -> ArtifactError:
    return ArtifactError(
        f"{path}: not a whole safetensors file ({reason}; {size:,} bytes); it was cut off while being written or "
        "copied: copy it again, or fit again"
    )


def check_finite(tensors: "Mapping[str, Tensor]", where: str) -> None:
    """Raise ArtifactError naming the first tensor, of whatever shape, that holds NaN or Inf."""
    import torch

    for name, value in tensors.items():
        bad = int((~torch.isfinite(value)).sum())
        if bad:
            raise ArtifactError(
                f"{where}: tensor {name!r} has {bad:,} of {value.numel():,} entries that are NaN or Inf; the "
                "training that made it diverged: lower the learning rate and fit again"
            )


def append_lines(path: Path, records: Sequence[Mapping[str, object]]) -> None:
    """Append JSON objects as lines, durably and in one write; several processes may append to one file.

    A half-written last line that a crash left is cut off first. When the disk is full the file is as it was
    and DiskError is raised. NaN and Inf raise ValueError, for JSON has neither.
    """
    if not is_first():
        return
    lines = "".join(json.dumps(r, ensure_ascii=False, allow_nan=False) + "\n" for r in records).encode()
    with disk_errors(path, len(lines)):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_name(f".{path.name}.lock")), path.open("ab+", buffering=0) as file:
            end, tail = file.seek(0, os.SEEK_END), b""
            while len(tail) < end and b"\n" not in tail:  # backwards: logs are long and lines short
                start = file.seek(max(0, end - 2 * len(tail) - 4096))
                tail = file.read(end - start)
            tail = tail.rpartition(b"\n")[2]
            if _is_whole(tail):
                end += file.write(b"\n")
            else:  # cut off what is half-written
                end -= len(tail)
                file.truncate(end)
            try:
                while lines:  # once, unless the disk is filling up: then the second write says so
                    lines = lines[file.write(lines) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise


def read_lines(path: Path) -> list[Any]:
    """The objects of a JSONL file, a half-written last line left out (the next `append_lines` cuts it off).

    A missing file has no lines. Raises ArtifactError naming the number of a broken line before the last.
    """
    if not path.exists():
        return []
    *lines, tail = read_bytes(path).split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records += [parse_json(line.decode(), str(path), ArtifactError, number)] if line.strip() else []
        except (UnicodeDecodeError, ArtifactError) as error:
            where = f"{path} line {number}: " if isinstance(error, UnicodeDecodeError) else ""
            raise ArtifactError(f"{where}{error}; delete this line to go on without it") from error
    return [*records, json.loads(tail)] if _is_whole(tail) else records


@contextmanager
def claimed(folder: Path, *outputs: Path) -> Iterator[None]:
    """Keep other commands from writing to a folder, and to outputs elsewhere, until this one ends in whatever way.

    What killed commands left half-written or half-removed there is removed; at the end nothing stays of the claim, nor
    of the folder if it was made here and is empty. Raises ArtifactError when another command has the folder.
    """
    if not is_first():
        yield
        return
    from filelock import Timeout

    made = [path for path in (folder, *folder.parents) if not path.exists()]
    refused = f"{folder}: another command is writing there. Wait for it or stop it, or name another folder (--output)"
    with ExitStack() as stack:
        stack.enter_context(unfinished())

        @stack.callback
        def remove_empty() -> None:
            for path in made:
                with suppress(OSError):
                    path.rmdir()

        with disk_errors(folder / CLAIM, 0):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(_locked(folder / CLAIM, timeout=0))
            except Timeout as error:
                raise ArtifactError(refused) from error
        _clear_partials(folder, depth=DEPTH)
        for lock in folder.glob(".*.lock"):  # of an append that was killed: nobody else appends here now
            if lock.name != CLAIM:
                lock.unlink(missing_ok=True)
        for output in (folder, *outputs):
            _clear_partials(output.parent, output.name)
        yield


def check_room(folder: Path, needed: int) -> None:
    """Raise DiskError unless a folder's disk takes a file of so many bytes; writes one and removes it."""
    if not is_first() or not needed:
        return
    probe = _partial_sibling(folder / "room")
    with disk_errors(folder, needed):
        try:
            with probe.open("wb") as file:
                try:
                    os.posix_fallocate(file.fileno(), 0, needed)
                except (AttributeError, OSError) as error:  # macOS, Windows and some file systems have no such call
                    if getattr(error, "errno", errno.EINVAL) not in (errno.EINVAL, errno.EOPNOTSUPP):
                        raise
                    file.write(bytes(needed))
        finally:
            probe.unlink(missing_ok=True)


# How it is done


@contextmanager
def disk_errors(path: Path, needed: int = 0) -> Iterator[None]:
    """An OSError inside becomes a DiskError that says what was wanted and what there is."""
    try:
        yield
    except OSError as error:
        wanted = f"{needed:,} bytes needed, " if needed else ""
        there = next(folder for folder in [path, *path.absolute().parents] if folder.exists())
        raise DiskError(
            f"cannot write {path}: {error.strerror or error}; {wanted}{shutil.disk_usage(there).free:,} bytes free "
            "there; what stood there before is unchanged; free some space or choose another folder"
        ) from error


@contextmanager
def _locked(path: Path, timeout: float = -1) -> Iterator[None]:
    # Hold a lock file that goes at the end. Its holder removes it, so whoever waited for a removed one tries again.
    # Raises filelock.Timeout.
    from filelock import FileLock

    def is_ours() -> bool:
        descriptor = lock._context.lock_file_fd  # filelock has no public name for it
        try:
            return descriptor is None or os.path.samestat(os.fstat(descriptor), path.stat())
        except FileNotFoundError:
            return False

    while True:
        lock = FileLock(path, timeout=timeout, poll_interval=0.01)
        lock.acquire()
        if is_ours():
            break
        lock.release()
    try:
        yield
    finally:
        if sys.platform != "win32" and is_ours():  # where open files cannot be removed, the system does it later
            path.unlink(missing_ok=True)
        lock.release()


def _is_whole(tail: bytes) -> bool:
    # Whether the text after the last newline is a finished object that only lacks its newline.
    # No strict beginning of a JSON object is itself JSON, so a cut-off record never passes.
    try:
        return isinstance(json.loads(tail), dict)
    except (ValueError, RecursionError):
        return False


def _partial_sibling(path: Path) -> Path:
    # A new hidden name beside `path`, where it is written before it takes its place.
    return path.with_name(f".{path.name}.partial-{os.getpid()}-{time.monotonic_ns()}")


def _clear_partials(folder: Path, name: str | None = None, depth: int = 1, older_than: float = 0.0) -> None:
    # Remove what killed processes left in a folder, of one name or any. An old folder comes back where the new one has
    # not taken its place: that can only be told where nobody else writes, so not where an age is asked for.
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        match = PARTIAL.fullmatch(path.name)
        if match is None or (name is not None and match["name"] != name):
            if match is None and depth > 1 and path.is_dir() and not path.is_symlink():
                _clear_partials(path, name, depth - 1, older_than)
            continue
        try:
            age, is_old_folder = time.time() - path.stat().st_mtime, match[2] == "swapped-out"
        except FileNotFoundError:  # it has just gone
            continue
        if older_than and (is_old_folder or age <= older_than):
            continue
        if is_old_folder and not path.with_name(match["name"]).exists():
            os.rename(path, path.with_name(match["name"]))
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _names_in(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir() or p.is_symlink()}


def exchange_names(a: Path, b: Path) -> bool:
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


def _sync(path: Path) -> None:
    # Make a file, or the names in a folder, durable; Windows has no such call for folders.
    if path.is_dir() and sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
