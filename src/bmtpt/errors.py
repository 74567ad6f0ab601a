"""Errors that a user can fix: each is one sentence that names what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class BmtptError(Exception):
    """Base of every error caused by input. The command line prints it and exits with code 2."""


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


def described(value: Any) -> str:
    """Name a value's type with its article.

    >>> described(3), described(None)
    ('an int', 'None')
    """
    name = type(value).__name__
    return "None" if value is None else f"an {name}" if name[0].lower() in "aeiou" else f"a {name}"
