"""Faults: what a decoder, numpy or a parser raises where nobody foresaw it, as the reason of a failed row.

The guards of scan, read and inspect use it, so that one odd file ends no run. Of an error its kind is kept and the place
in medray's code, never its text, which may quote the file.
"""

from __future__ import annotations

import re
import traceback
from pathlib import PurePath

from medray.errors import MedrayError, SampleError

_FAULT = re.compile(r"[A-Za-z_]\w* at \w+\.py:\d+")


def as_sample_error(error: Exception) -> SampleError:
    """`unsupported` for a NotImplementedError, else `corrupt`; what is a SampleError already, as it is.

    Raises the error again where it is no matter of one file: a refusal, or memory that was not given.
    """
    if isinstance(error, SampleError):
        return error
    if isinstance(error, MedrayError) or is_out_of_memory(error):
        raise error
    reason = "unsupported" if isinstance(error, NotImplementedError) else "corrupt"
    return SampleError(reason, f"{type(error).__name__} at {_place(error)}")


def is_fault(detail: str | None) -> bool:
    """Whether the detail of a row is of `as_sample_error`: a gap in medray, which its maintainers want to hear of."""
    return detail is not None and _FAULT.fullmatch(detail) is not None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was refused. Torch says so in words where its CPU allocator is refused."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "allocate memory" in str(error))


def _place(error: Exception) -> str:
    """FILE.py:LINE of the innermost frame that is of medray, or of a plug-in where none is."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "medray" in PurePath(frame.filename).parts] or frames
    if not own:
        return "unknown.py:0"
    return f"{PurePath(own[-1].filename).stem}.py:{own[-1].lineno}"
