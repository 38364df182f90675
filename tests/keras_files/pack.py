"""Pack what make.py wrote into tests/keras_files/files.zip, of which HDF5's empty space takes nothing: python pack.py FOLDER…"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

WHEN = (2026, 1, 1, 0, 0, 0)


def main() -> None:
    paths = sorted({path.name: path for folder in sys.argv[1:] for path in Path(folder).iterdir()}.items())
    with zipfile.ZipFile(Path(__file__).with_name("files.zip"), "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, path in paths:
            archive.writestr(zipfile.ZipInfo(name, WHEN), path.read_bytes(), zipfile.ZIP_DEFLATED, 9)


if __name__ == "__main__":
    main()
