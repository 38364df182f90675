"""matplotlib's SVG as a part of an HTML page: its colours become classes of page.css, so that a chart follows light and dark.

The page's content security policy takes no style attributes; what stands in them becomes attributes of the SVG.
"""

from __future__ import annotations

import hashlib
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping

SIZE = re.compile(r"([\d.]+)px")
REFERENCE = re.compile(r"#([\w.-]+)")
KEPT = (
    *(
        "fill",
        "fill-opacity",
        "fill-rule",
        "opacity",
        "stroke",
        "stroke-dasharray",
        "stroke-dashoffset",
        "stroke-linecap",
    ),
    *("stroke-linejoin", "stroke-miterlimit", "stroke-opacity", "stroke-width", "text-anchor"),
)
"""Properties of style attributes that are attributes of the same name. Others say what a browser does anyway."""


def inlined(svg: bytes, alt: str, colours: Mapping[str, str]) -> str:
    """SVG of matplotlib to an <svg> element for HTML, with `alt` as its label. Same input, same text.

    `colours`: lower-case "#rrggbb" to a name: `fill` and `stroke` of that colour become the classes f-NAME and s-NAME. Others stay
    as they are. Ids are those that something refers to, and differ from chart to chart.
    """
    root = ET.fromstring(svg)
    for parent in list(root.iter()):
        for child in [each for each in parent if _local(each.tag) in ("metadata", "style")]:
            parent.remove(child)
    wanted = {found for each in root.iter() for value in each.attrib.values() for found in REFERENCE.findall(value)} & {
        each.get("id", "") for each in root.iter()
    }
    of_chart = hashlib.sha256(svg).hexdigest()[:8]
    for each in root.iter():
        _restyle(each, colours)
        each.tag = _local(each.tag)
        given = {_local(name): value for name, value in each.attrib.items()}
        if given.get("id") not in wanted and not given.get("id", "").startswith("legend"):
            given.pop("id", None)
        elif given["id"].startswith("legend"):
            del given["id"]
            given["class"] = "legend"
        each.attrib.clear()
        for name, value in sorted(given.items()):
            renamed = value if name == "class" or value.startswith("data:") else _renamed(name, value, wanted, of_chart)
            each.set(name, renamed)
        each.text, each.tail = (each.text or "").strip() or None, None
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {
        "role": "img",
        "aria-label": alt,
        "stroke-linejoin": "round",
        "stroke-linecap": "butt",
        "xmlns": "http://www.w3.org/2000/svg",
    }
    return ET.tostring(root, encoding="unicode")


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _renamed(name: str, value: str, wanted: set[str], of_chart: str) -> str:
    """The value with ids as they are in the page."""
    if name == "id":
        return f"{value}-{of_chart}"
    return REFERENCE.sub(lambda found: f"#{found[1]}-{of_chart}" if found[1] in wanted else found[0], value)


def _restyle(element: ET.Element, colours: Mapping[str, str]) -> None:
    """A style attribute as attributes and classes."""
    declared = dict(pair.split(":", 1) for pair in element.attrib.pop("style", "").split(";") if ":" in pair)
    given = {name.strip(): value.strip() for name, value in declared.items()}
    if _local(element.tag) == "text" and "fill" not in given and "fill" not in element.attrib:
        given["fill"] = element.get("fill", "#000000")
    size = SIZE.search(given.get("font", "") or given.get("font-size", ""))
    if size:
        element.set("font-size", size[1])
    classes: list[str] = []
    for name, letter in (("fill", "f"), ("stroke", "s")):
        colour = given.get(name, element.get(name, "")).lower()
        if colour in colours:
            classes.append(f"{letter}-{colours[colour]}")
            given.pop(name, None)
            element.attrib.pop(name, None)
    for name, value in given.items():
        if name in KEPT:
            element.set(name, value)
    if classes:
        element.set("class", " ".join(classes))
