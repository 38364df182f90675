"""What `submit` puts into the copy of the package that it sends, beside the code: the run file, and the code's commit."""

from __future__ import annotations

from pathlib import Path

import medray

FOLDER = "sent"
"""Folder in the package."""
OWN = "own"
"""Folder in it with the source of a model from a folder of the one who submitted."""
CODE = "medray.commit"
"""File with what `scores.audit.code` says of the one who submitted."""


def here() -> Path | None:
    """The folder of what came along with the package that runs; None: it was not sent."""
    folder = Path(medray.__file__).with_name(FOLDER)
    return folder if folder.is_dir() else None
