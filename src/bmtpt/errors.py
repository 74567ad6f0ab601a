"""Errors that a user can fix: each is one sentence that names what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from typing import Any, ClassVar

LONGEST = 400
"""Most characters of an error."""


class BmtptError(Exception):
    """Base of every error caused by input. The command line prints it and exits with its code.

    What a sentence quotes may be of any length and hold any character. The middle of a long one is left out, since
    what is wrong is said at its start and the cure at its end; line ends and what a terminal cannot print are escaped.

    >>> len(str(BmtptError("key '" + "x" * 5000 + "' is unknown")))
    400
    >>> print(BmtptError("no task '" + chr(27) + chr(0xD800) + chr(10) + "'"))
    no task '\\x1b\\ud800\\n'
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, sentence: object = "") -> None:
        super().__init__(_on_one_line(str(sentence)))


def _on_one_line(text: str) -> str:
    line = text if text.isprintable() else "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
    return line if len(line) <= LONGEST else f"{line[: 2 * LONGEST // 3]} … {line[3 - LONGEST // 3 - 1 :]}"


class TaskError(BmtptError):
    """A task file or one of its rows is wrong."""


class DataError(BmtptError):
    """The rows of a task cannot be found or used."""


class SettingsError(BmtptError):
    """An option or a configuration file is wrong."""


class BackboneError(BmtptError):
    """The frozen language model cannot be loaded or used."""


class ArtifactError(BmtptError):
    """A posterior, a prompt or a results file cannot be read or written."""


class TrainingError(BmtptError):
    """Training cannot continue (for example, the loss is not a number)."""


class RankError(BmtptError):
    """The ranks of one run cannot go on together: one has ended, or they do not agree."""


OUT_OF_MEMORY = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""Messages of a RuntimeError that mean it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out.

    torch's CPU allocator, the CUDA driver, cuBLAS and cuDNN raise a plain RuntimeError, whose text is the only sign;
    torch's OutOfMemoryError is known by name because this module must not import torch.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(ValueError("memory"))
    (True, False)
    >>> is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    True
    >>> is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    True
    >>> is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    False
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return any(sign in str(error) for sign in OUT_OF_MEMORY)


CURES = {
    errno.ENOSPC: "free some space and try again",
    errno.EDQUOT: "free some space and try again",
    errno.ENOENT: "its folder has vanished: choose another one, or bring it back",
    errno.ESTALE: "its folder has vanished: choose another one, or bring it back",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "close other programs, which hold too many files open",
}
"""What to do when a file cannot be written."""


def cannot_write(path: object, error: OSError) -> str:
    """Say that a file or a folder cannot be written, why, and what to do.

    >>> cannot_write("out/a.json", OSError(errno.ENOSPC, "No space left on device"))
    'cannot write out/a.json: no space left on device; free some space and try again'
    """
    cure = CURES.get(error.errno or 0, "choose another folder")
    return f"cannot write {path}: {(error.strerror or str(error)).lower()}; {cure}"


def cannot_read(path: object, error: OSError) -> str:
    """Say that a file cannot be read, and why."""
    return f"cannot read {path}: {(error.strerror or str(error)).lower()}"


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return a hint with the nearest known names.

    >>> nearest("rbff", ["rbf", "imq"])
    "did you mean 'rbf'?"
    >>> nearest("zzz", ["rbf", "imq"])
    'choose from imq, rbf'
    """
    known = sorted(set(choices))
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(f"'{match}'" for match in close) + "?"
    return "choose from " + ", ".join(known)


def shortened(value: Any, most: int = 60) -> str:
    """Return a value as one short line for a message; what cannot be seen is escaped.

    >>> shortened("a b\\u200b"), shortened("a" * 9, most=5)
    ('a b\\\\u200b', 'aaaa…')
    """
    text = str(value)[: 4 * most]
    text = text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text if len(text) <= most else text[: most - 1] + "…"


def described(value: Any) -> str:
    """Name a value's type with its article.

    >>> described(3), described(None)
    ('an int', 'None')
    """
    name = type(value).__name__
    return "None" if value is None else f"an {name}" if name[0].lower() in "aeiou" else f"a {name}"
