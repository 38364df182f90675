"""What the pages of all reports are made of: sections with tables and pictures, in one look. No files beside the page."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files as package_files

import numpy as np

from medray.modalities.pictures import Shares, Strip, Timeline
from medray.reports.drawing import NAMED, Figure
from medray.reports.inlined import inlined
from medray.reports.samples import drawn

THUMBNAIL = 256  # pixels, the longer side at most


@dataclass(frozen=True)
class Table:
    columns: Sequence[str]
    rows: Sequence[Mapping[str, str]]
    numbers: frozenset[str]
    """Columns that are set to the right."""
    caption: str = ""


@dataclass(frozen=True)
class Embedded:
    """A figure as the page holds it."""

    title: str
    caption: str
    wide: bool
    svg: str
    """An <svg> element with a label for those who cannot see it."""


@dataclass(frozen=True)
class Card:
    """A sample with what is to be said of it."""

    uri: str | None
    """data: address of its picture; None: there is none."""
    alt: str
    head: str
    small: bool
    """So few pixels that they are shown as they are."""
    body: str
    entry_id: str
    svg: str | None = None
    """An <svg> element instead of `uri`."""


@dataclass(frozen=True)
class Section:
    title: str
    lines: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Embedded] = ()
    thumbs: Sequence[Card] = ()


def rendered(name: str, **facts: object) -> str:
    """A page of medray's own templates; the look of all of them is in page.html.j2 and page.css.

    Its content security policy lets a browser load nothing, run nothing, and take no style but page.css, by its digest.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    style = template("page.css")
    pages = Environment(loader=FunctionLoader(template), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return pages.get_template(name).render(facts, style=Markup(style), policy=policy(style))


def template(name: str) -> str:
    """Text of a file of reports/templates."""
    return package_files("medray").joinpath("reports", "templates", name).read_text(encoding="utf-8")


def policy(style: str) -> str:
    """Content security policy (W3C CSP3) of a page whose one <style> element holds `style`."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"


def embedded(figure: Figure) -> Embedded:
    """The figure as a part of the page."""
    from markupsafe import Markup

    return Embedded(figure.title, figure.caption, figure.wide, Markup(inlined(figure.svg, figure.alt, NAMED)))


def sketch(picture: Strip | Shares | Timeline, alt: str) -> str:
    """A sample as an <svg> element; `alt` is what is said of it before its own words."""
    from markupsafe import Markup

    return Markup(inlined(drawn(picture), f"{alt}. {picture.alt}", NAMED))


def turned(table: Table, missing: str) -> Table:
    """Rows for columns: the first column's values become the heads; `missing` stands where there is no value."""
    first, *rest = table.columns
    heads = [row[first] for row in table.rows]
    rows = [{"": column} | {row[first]: row.get(column, missing) for row in table.rows} for column in rest]
    return Table(["", *heads], rows, frozenset(heads))


def data_uri(data: bytes, kind: str) -> str:
    """Bytes of an svg or png as a data: address."""
    media = {"svg": "image/svg+xml", "png": "image/png"}[kind]
    return f"data:{media};base64,{base64.b64encode(data).decode()}"


def thumbnail(image: np.ndarray) -> bytes:
    """uint8 (H, W) or (H, W, 3) to PNG bytes, at most 256 pixels on the longer side. Raises ValueError for others."""
    from PIL import Image

    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise ValueError(f"a thumbnail is uint8 (H, W) or (H, W, 3), found {image.dtype} {image.shape}")
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    picture.save(stream, format="png")
    return stream.getvalue()
