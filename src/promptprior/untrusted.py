"""Files that anybody may have written: what they are, their text, and their JSON, each within bounds.

Whatever is wrong becomes one error, a DataError unless another class is given, that names the file, the line where
there is one, and what was expected. Nothing here waits for a pipe, reads a device, or recurses without end.
"""

import errno
import json
import os
import re
import stat
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from promptprior.errors import DataError, PromptpriorError

MOST_BYTES = 2**30  # of a file that is read whole; larger data are read from Parquet splits or the Hub
MOST_DIGITS = 300  # of a whole number: what float can hold
MOST_NESTED = 100  # lists and objects in one another

Failure = type[PromptpriorError]

# strings are stepped over: brackets inside them open nothing
BRACKETS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|([\[{])|([\]}])', re.DOTALL)
ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


def path_kind(path: Path, failure: Failure = DataError) -> Literal["file", "folder", "other"] | None:
    """What stands at a path, links followed; None for nothing. Raises `failure` where that cannot be found out."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # a name that is too long or holds NUL, links in a circle, no permission
        raise failure(f"{path}: cannot be read: {_reason(error)}; check the path") from None
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "other"


def check_regular(path: Path, failure: Failure = DataError, most: int = MOST_BYTES) -> None:
    """Raise `failure` unless a path is a regular file of at most `most` bytes."""
    kind = path_kind(path, failure)
    if kind is None:
        raise failure(f"{path}: cannot be read: {os.strerror(errno.ENOENT)}; check the path")
    if kind != "file":
        named = "a folder" if kind == "folder" else "no regular file but a pipe, socket or device"
        raise failure(f"{path}: this is {named}; expected a file")
    if (size := path.stat().st_size) > most:
        raise failure(f"{path}: {size:,} bytes; expected at most {most:,}")


def check_memory(needed: float, what: str, change: str, failure: Failure = DataError) -> None:
    """Raise `failure` where `what` needs more bytes than this machine, or this process, may have at all.

    `change` says what to do. It is an estimate before anything is allocated: what fits may still fail.
    """
    if not hasattr(os, "sysconf"):  # Windows
        return
    have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(ImportError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        have = have if limit == resource.RLIM_INFINITY else min(have, limit)
    if needed > have:
        sizes = f"about {needed / 1e9:,.1f} GB of memory, and there are {have / 1e9:,.1f} GB"
        raise failure(f"{what} would need {sizes}; {change}")


def read_utf8(path: Path, failure: Failure = DataError, most: int = MOST_BYTES) -> str:
    """The text of a UTF-8 file, without a byte order mark. Raises `failure` with line and offset where it is not, and
    for what is no regular file of at most `most` bytes."""
    check_regular(path, failure, most)
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise failure(f"{path}: cannot be read: {_reason(error)}; check the path") from None
    if len(data) > most:  # files of /proc say that they have no bytes
        raise failure(f"{path}: more than {most:,} bytes; expected at most that")
    try:
        text = data.decode()
        bad = text.find("\0")
        if bad < 0:
            return text.removeprefix("\ufeff")
        line, reason = text.count("\n", 0, bad) + 1, "a NUL character; this is UTF-16 or no text at all"
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        utf16 = "; it looks like UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        byte = f"byte 0x{data[error.start]:02x} at offset {error.start}: {error.reason}"
        reason = f"not UTF-8 ({byte}{utf16})"
    raise failure(f"{path} line {line}: {reason}; save the file as UTF-8")


def parse_json(
    text: str, where: str, failure: Failure = DataError, line: int | None = None, *, infinity: bool = False
) -> Any:
    """The value of a JSON text, strictly: keys once, numbers within float's range (or NaN), text without surrogates.

    `where` names the file and `line` the one that the text is, if it is one line of many. With `infinity` a number may
    be infinite, as in the settings of some models. Raises `failure`.
    """

    def at(position: int) -> str:
        return f"{where} line {line or text.count(chr(10), 0, position) + 1}"

    depth = 0
    if text.count("[") + text.count("{") > MOST_NESTED:  # for hardly any line
        for bracket in BRACKETS.finditer(text):
            depth += (bracket[1] is not None) - (bracket[2] is not None)
            if depth > MOST_NESTED:
                raise failure(f"{at(bracket.start())}: lists or objects are nested more than {MOST_NESTED} deep")
    try:
        value = (INFINITE if infinity else STRICT).decode(text)
        if surrogate := ESCAPED_SURROGATE.search(text):  # a pair is a character, one alone has no UTF-8
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise failure(f"{at(error.pos)}: not JSON ({error.msg} at column {error.colno})") from None
    except UnicodeEncodeError:
        assert surrogate is not None
        reason = f"{surrogate[0]} is half of a surrogate pair, which no text can hold; write the character itself"
        raise failure(f"{at(surrogate.start())}: {reason}") from None
    except _RefusedValue as error:
        reason, literal = error.args
        place = at(max(text.find(literal), 0)) if literal or line else where
        raise failure(f"{place}: {reason}") from None
    return value


class _RefusedValue(Exception):
    # a value that JSON's grammar allows and we do not: the reason, and how the text writes it ("" for not known)
    pass


def _whole_number(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        reason = f"a number of {len(digits.lstrip('-')):,} digits; expected at most {MOST_DIGITS}, or text in quotes"
        raise _RefusedValue(reason, digits)
    return int(digits)


def _finite_number(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise _RefusedValue(f"{text[:50]} is no finite number; put it in quotes if it is meant as text", text)
    return number


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise _RefusedValue(f"key {twice[:100]!r} is given twice; keep one", "")
    return mapping


STRICT = json.JSONDecoder(
    parse_int=_whole_number,
    parse_float=_finite_number,
    # NaN stays: pandas writes it for what is missing, and rows that need the value are refused by name
    parse_constant=lambda name: float("nan") if name == "NaN" else _finite_number(name),
    object_pairs_hook=_unique_keys,
)


INFINITE = json.JSONDecoder(parse_int=_whole_number, object_pairs_hook=_unique_keys)


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)
