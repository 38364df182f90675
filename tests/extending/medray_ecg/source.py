"""What headers of recordings say of their subjects (`# age: 61`), as static events of a MEDS dataset."""

from typing import Literal

from medray.modalities.ehr.convert.events import FILES, IGNORED, READ, Event, Subjects, Writer
from medray.modalities.ehr.convert.members import members
from medray.modalities.ehr.convert.settings import SourceBase, SourceKind


class HeaderSource(SourceBase):
    kind: Literal["ecg-headers"] = "ecg-headers"
    keep_ids: Literal[False] = False
    """Names of recordings are text, so they always become hashes."""


class HeaderParser:
    def __init__(self, source: HeaderSource, key: bytes) -> None:
        self.subjects = Subjects(key)

    def __call__(self, unit):
        writer = Writer(unit.unit)
        for member in members(unit.uri):
            if not member.name.endswith(".hea"):
                writer.count("", IGNORED)
                continue
            writer.count("", FILES)
            lines = member.stream.read().decode("ascii", "replace").splitlines()
            facts = [line[1:].split(":", 1) for line in lines if line.startswith("#") and ":" in line]
            events = [
                Event(None, code, float(value)) if value.isdigit() else Event(None, f"{code}//{value}")
                for code, value in ((name.strip().upper(), text.strip()) for name, text in facts)
            ]
            writer.count("header", READ)
            if events:
                name = member.name.rsplit("/", 1)[-1].removesuffix(".hea")
                writer.events("header", self.subjects(name), events)
            else:
                writer.count("header", "nothing_known")
        writer.finish()
        yield from writer.take()


HEADERS = SourceKind(HeaderSource, HeaderParser)
