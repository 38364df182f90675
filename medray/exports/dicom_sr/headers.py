"""What a report takes over from the images that it is about: whose they are, of which study, and how to refer to them."""

# pydicom gives some of its values no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import io
import logging
import re
import struct
import warnings
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, timedelta, timezone, tzinfo

from pydicom import dcmread
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.tag import Tag

from medray.archive.entries import PartRef, unchanged
from medray.errors import SampleError
from medray.modalities.imaging.formats.decode import content_of, sniff
from medray.modalities.imaging.formats.dicom.inflated import inflated
from medray.modalities.imaging.frames_text import chosen_frames
from medray.storage.files import read_bytes
from medray.storage.pages import whole

PATIENT = (
    "PatientName", "PatientID", "IssuerOfPatientID", "TypeOfPatientID", "PatientBirthDate", "PatientBirthTime",
    "PatientSex", "QualityControlSubject", "OtherPatientNames", "EthnicGroup", "PatientSpeciesDescription",
    "PatientBreedDescription", "ResponsiblePerson", "ResponsiblePersonRole", "ResponsibleOrganization",
    "PatientIdentityRemoved", "DeidentificationMethod", "LongitudinalTemporalInformationModified",
)  # fmt: skip
"""Text of the Patient module (PS3.3 C.7.1.1)."""
STUDY = (
    "StudyInstanceUID", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber",
    "StudyDescription", "PhysiciansOfRecord", "PatientAge", "PatientSize", "PatientWeight", "PatientSexNeutered",
    "AdmissionID", "IssuerOfAdmissionID", "ServiceEpisodeID", "ClinicalTrialSponsorName", "ClinicalTrialProtocolID",
    "ClinicalTrialProtocolName", "ClinicalTrialSiteID", "ClinicalTrialSiteName", "ClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID", "ClinicalTrialTimePointID", "ClinicalTrialTimePointDescription",
)  # fmt: skip
"""Text of the General Study, Patient Study and Clinical Trial modules (PS3.3 C.7.2, C.7.1.3)."""
OF_ALL = ("SpecificCharacterSet", "TimezoneOffsetFromUTC")
"""What all text and all times of an object follow."""
ALWAYS = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "ReferringPhysicianName",
    "StudyID", "AccessionNumber",
)  # fmt: skip
"""Elements of type 2: empty where images lack them."""
OWN = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality", "SeriesNumber", "InstanceNumber",
    "NumberOfFrames",
)  # fmt: skip
_ASKED = [*PATIENT, *STUDY, *OF_ALL, *OWN]


@dataclass(frozen=True)
class Instance:
    """An image that a score is of."""

    sop_class: str
    sop_instance: str
    series: str
    frames: tuple[int, ...] = ()
    """Its frames that the score is of, from 1; none: all."""


@dataclass(frozen=True)
class Source:
    """The images of one entry, and what their headers say of patient and study."""

    instances: tuple[Instance, ...]
    study: str
    modality: str
    number: int
    """InstanceNumber of a single image, SeriesNumber of several; 1 where it is none or not stated."""
    text: Mapping[str, bytes]
    """Keyword to the bytes as the first image has them, in its character set."""
    offset: tzinfo | None
    """Offset of its dates and times from UTC; None: not stated."""

    def copy_into(self, report: Dataset) -> None:
        """Patient, study and character set, byte for byte."""
        # a report that says so has to say how, and images may say it in codes
        left_out = () if self.text.get("DeidentificationMethod", b"").strip() else ("PatientIdentityRemoved",)
        for keyword in (*OF_ALL, *PATIENT, *STUDY):
            value = self.text.get(keyword, b"")
            if keyword in ALWAYS or (value.strip(b"\0 ") and keyword not in left_out):
                tag = Tag(tag_for_keyword(keyword) or 0)
                report[tag] = RawDataElement(tag, dictionary_VR(tag), len(value), value, 0, False, True)


def read_source(parts: Sequence[PartRef]) -> Source:
    """The images of an entry, from its files as they were indexed.

    Raises SampleError: `missing_file`, `unreadable`, `changed`, `unsupported` for what is no DICOM, `corrupt` without the UIDs
    that a reference needs or in two studies, `mixed_subjects` for images of two patients.
    """
    images: list[dict[str, bytes]] = []
    frames: dict[str, set[int]] = {}
    for image, chosen in _headers(parts):
        images.append(image)
        frames.setdefault(_text(image, "SOPInstanceUID"), set()).update(chosen)
    first = images[0]
    for keyword, reason in (("PatientID", "mixed_subjects"), ("StudyInstanceUID", "corrupt")):
        if len({_text(image, keyword) for image in images}) > 1:
            raise SampleError(reason, f"images with another {keyword}")
    image_of = {_text(image, "SOPInstanceUID"): image for image in images}  # copies of an image are one
    return Source(
        instances=tuple(
            Instance(
                _text(image, "SOPClassUID"),
                instance,
                _text(image, "SeriesInstanceUID"),
                _stated(frames[instance], _number(image, "NumberOfFrames")),
            )
            for instance, image in sorted(image_of.items(), key=lambda each: (_number(each[1]), each[0]))
        ),
        study=_text(first, "StudyInstanceUID"),
        modality=_text(first, "Modality"),
        number=_number(first, "InstanceNumber" if len(image_of) == 1 else "SeriesNumber"),
        text={name: first[name] for name in (*OF_ALL, *PATIENT, *STUDY) if name in first},
        offset=_offset(_text(first, "TimezoneOffsetFromUTC")),
    )


def _stated(chosen: set[int], count: int) -> tuple[int, ...]:
    """Frames to name of an image of so many: tiles of a mosaic are none, and all of them need not be named."""
    return tuple(sorted(chosen)) if count > 1 and len(chosen) < count else ()


def _headers(parts: Sequence[PartRef]) -> Iterator[tuple[dict[str, bytes], list[int]]]:
    """What is asked of each file, keyword to bytes, and the frames that are taken of it, from 1; none: all."""
    for part in sorted(parts, key=lambda part: (part.locator, part.uri)):
        try:
            raw = content_of(read_bytes(part.uri))
        except FileNotFoundError:
            raise SampleError("missing_file") from None
        except OSError as error:
            raise SampleError("unreadable", type(error).__name__) from error
        if sniff(raw) != "dicom":
            raise SampleError("unsupported", "a report is made of DICOM images alone")
        header = _header(whole(inflated(unchanged(raw, part))))
        lacking = [name for name in (*OWN[:3], "StudyInstanceUID") if not _UID.fullmatch(_text(header, name))]
        if lacking:
            raise SampleError("corrupt", f"no {lacking[0]}")
        yield header, [number + 1 for number in chosen_frames(part.locator) or ()]


_UID = re.compile(r"[!-~]{1,64}")
"""What a reference can hold; images that break rules of UIDs otherwise can be referred to."""
_BROKEN = (
    AttributeError, BytesLengthException, EOFError, InvalidDicomError, KeyError, NotImplementedError, OSError, TypeError,
    ValueError, struct.error, zlib.error,
)  # fmt: skip
"""What pydicom raises for damaged content."""


def _header(raw: bytes) -> dict[str, bytes]:
    with quiet():
        try:
            return _elements(dcmread(io.BytesIO(raw), stop_before_pixels=True, force=True, specific_tags=_ASKED))
        except _BROKEN as error:
            raise SampleError("corrupt", f"pydicom: {type(error).__name__}") from None


def _elements(dataset: Dataset) -> dict[str, bytes]:
    """Keyword to bytes."""
    value_of: dict[str, bytes] = {}
    for keyword in _ASKED:
        element = dataset.get_item(keyword) if keyword in dataset else None
        if isinstance(element, RawDataElement) and isinstance(element.value, bytes):
            value_of[keyword] = element.value
        elif element is not None and element.value:  # the character set is decoded while it is read
            values = element.value if isinstance(element.value, MultiValue) else [element.value]
            text = "\\".join(map(str, values))
            value_of[keyword] = (text + " " * (len(text) % 2)).encode("ascii", "replace")
    return value_of


@contextmanager
def quiet() -> Generator[None]:
    """Silence the warnings of pydicom and highdicom, which quote values of patients."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _text(header: Mapping[str, bytes], keyword: str) -> str:
    """A value of ASCII letters, as UIDs and numbers are."""
    return header.get(keyword, b"").decode("ascii", "replace").strip("\0 ")


def _number(header: Mapping[str, bytes], keyword: str = "InstanceNumber") -> int:
    text = _text(header, keyword)
    return int(text) if re.fullmatch(r"\+?0*[1-9]\d{0,8}", text) else 1


def _offset(text: str) -> tzinfo | None:
    """+0130 or -0500 (PS3.3 C.12.1.1.8)."""
    match = re.fullmatch(r"([+-])(\d\d)(\d\d)", text)
    if match is None or int(match[2]) > 14 or int(match[3]) > 59:
        return None
    minutes = int(match[2]) * 60 + int(match[3])
    return timezone(timedelta(minutes=-minutes if match[1] == "-" else minutes)) if minutes else UTC
