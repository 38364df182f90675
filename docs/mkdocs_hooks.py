"""Hook of MkDocs: files outside docs/ that a page links to (README.md, cluster/README.md …) are pages of the site, too.

They stand below repository/, and links to and from them are written anew, so that the same link works on the site and in
a checkout.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
LINK = re.compile(r"(?P<label>!?\[[^\]]*\])\((?P<path>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")


def uri_of(file: Path) -> str:
    """Where a file of the repository stands on the site."""
    below = file.relative_to(DOCS if file.is_relative_to(DOCS) else ROOT).as_posix()
    return below if file.is_relative_to(DOCS) else f"repository/{below}"


def source_of(uri: str) -> Path:
    """The opposite of `uri_of`."""
    return ROOT / uri.removeprefix("repository/") if uri.startswith("repository/") else DOCS / uri


def on_files(files: Any, config: Any) -> Any:
    """Add the files outside docs/ that pages of docs/ link to."""
    from mkdocs.structure.files import File

    for page in sorted(DOCS.rglob("*.md")):
        for match in LINK.finditer(page.read_text(encoding="utf-8")):
            target = (page.parent / match["path"]).resolve()
            if target.is_file() and target.is_relative_to(ROOT) and files.get_file_from_path(uri_of(target)) is None:
                files.append(File.generated(config, uri_of(target), abs_src_path=str(target)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links as they are on the site; what the repository has and the site has not is a name without a link."""
    source = source_of(page.file.src_uri)

    def written(match: re.Match[str]) -> str:
        target = (source.parent / match["path"]).resolve()
        if not target.exists() or not target.is_relative_to(ROOT):
            return match[0]  # MkDocs says that it leads nowhere
        if files.get_file_from_path(uri_of(target)) is None:
            return match["label"].lstrip("!")[1:-1]
        path = posixpath.relpath(uri_of(target), posixpath.dirname(page.file.src_uri) or ".")
        return f"{match['label']}({path}{match['anchor'] or ''})"

    return LINK.sub(written, markdown)
