"""The way in: the `medray` command."""

from __future__ import annotations

import sys
from typing import NoReturn

from medray.cli.quick import answer


def main() -> NoReturn:
    """Answer at once what is wrong with a run file on its own; else run the command."""
    answer(sys.argv[1:])
    from medray.cli.app import app
    from medray.cli.shared import call

    call(app)
