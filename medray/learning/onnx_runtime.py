"""onnxruntime, which tells nobody what it computes.

Wheels of onnxruntime 1.32 for Linux keep a record of their use: at import they make an id of the device and a database of events below
`~/.cache/Microsoft`, with messages of errors and names of tensors, and hold the address of a collector on the internet. The variable
`ORT_DISABLE_TELEMETRY` is read at import; `findings/onnxruntime_keeps_events.sh` shows what is written without it.
"""

from __future__ import annotations

import os
import sys
from typing import Any

SILENCE = "ORT_DISABLE_TELEMETRY"


def onnxruntime() -> Any:
    """The module. Imported here first, it writes and sends nothing; where a program imported it before, it is told to stop."""
    late = "onnxruntime" in sys.modules
    os.environ[SILENCE] = "1"
    import onnxruntime as module

    if late:
        module.disable_telemetry_events()
    return module
