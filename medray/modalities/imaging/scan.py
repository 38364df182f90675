"""Scan: the format of one file of the archive, by its content, and the parts of entries that it holds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache

from medray.archive.eligibility import Fact
from medray.archive.entries import Part, digest
from medray.errors import NOT_ELIGIBLE, SampleError
from medray.modalities.imaging import descriptors, facts
from medray.modalities.imaging.formats import arrays, nifti
from medray.modalities.imaging.formats.decode import SUFFIXES, content_of, sniff
from medray.modalities.imaging.formats.dicom.frames import Frame, described, frames, has_groups, stated
from medray.modalities.imaging.formats.dicom.header import MEDIA_DIRECTORY, Header, parse, uid_name
from medray.modalities.imaging.formats.dicom.keywords import asked
from medray.modalities.imaging.formats.dicom.objects import is_mosaic, refuse_other_objects
from medray.modalities.imaging.formats.dicom.pixel_description import check
from medray.modalities.imaging.formats.dicom.slices import count_slices
from medray.modalities.imaging.formats.films import VOLUME
from medray.modalities.imaging.frames_text import SELECTION, frames_text
from medray.modalities.imaging.spec import STUDY, ImagingSpec
from medray.modalities.patterns import matches_glob
from medray.storage.files import File, exists, read_bytes, relative

STUDY_UID = "StudyInstanceUID"
SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def expected(name: str) -> str:
    """The format that a file name promises, or ""."""
    lower = name.lower()
    return next((kind for suffix, kind in SUFFIXES.items() if lower.endswith(suffix)), "")


def scan(spec: ImagingSpec, file: File, root: str) -> Iterator[Part]:
    """The parts of one file; a file that cannot be understood is one Part with a reason."""
    path = relative(file.uri, root)
    if matches_glob(path, spec.ignore):
        return
    whole = Part(path, file.uri, size=file.size, modified_ns=file.modified_ns, subject=_subject(spec, path))
    try:
        raw = content_of(read_bytes(file.uri))
    except SampleError as error:
        content = f"{file.size}:{file.modified_ns}".encode()  # a repaired file is a new one
        yield replace(whole, digest=digest(content), reason=error.reason, detail=error.detail)
        return
    except FileNotFoundError:
        yield replace(whole, reason="missing_file", detail="the file was removed between listing and reading")
        return
    except OSError as error:
        yield replace(whole, reason="unreadable", detail=type(error).__name__)
        return
    whole = replace(whole, digest=digest(raw), size=len(raw))
    try:
        yield from _parts(spec, whole, raw)
    except SampleError as error:
        yield replace(whole, reason=error.reason, detail=error.detail)
    except OSError as error:  # from the labels file beside an idx file
        yield replace(whole, reason="unreadable", detail=type(error).__name__)


def _parts(spec: ImagingSpec, whole: Part, raw: bytes) -> Iterator[Part]:
    if not raw:
        raise SampleError("empty_file")
    kind, promised = sniff(raw), expected(whole.uri)
    if not kind:
        content = "text" if _is_text(raw) else "unknown binary content"
        raise SampleError("unrecognised_format", content)
    if promised and promised != kind:
        raise SampleError("format_mismatch", f"the name says {promised}, the content is {kind}")
    if kind == "dicom":
        yield from _dicom_parts(spec, whole, raw)
        return
    if kind == "nifti":
        yield from _nifti_parts(spec, whole, raw)
        return
    whole = replace(whole, facts={"format": kind})
    if kind == "npz":
        yield from _npz_parts(spec, whole, raw)
    elif kind == "idx":
        yield from _idx_parts(spec, whole, raw)
    else:
        yield _in_folder(whole, spec.label_from in ("folder", "auto"))


def _in_folder(whole: Part, labelled: bool) -> Part:
    """The file with the label and split of its folders, where they are labels."""
    label, split = _folders(whole.entry_id) if labelled else ((), None)
    return replace(whole, label=label, split=split)


def _nifti_parts(spec: ImagingSpec, whole: Part, raw: bytes) -> Iterator[Part]:
    """A file, or each of its volumes where the spec takes them, by its header alone. What is wrong with it, reading says."""
    whole = _in_folder(replace(whole, facts=facts.of_nifti(raw, spec.volumetric)), spec.label_from == "folder")
    try:
        points = nifti.count_volumes(raw)
    except SampleError as error:
        if error.reason in NOT_ELIGIBLE or error.reason == "truncated":
            raise
        points = 1
    if points == 1 or spec.volumes in ("refuse", "channels"):
        yield whole
    elif spec.volumes == "first":
        yield replace(whole, locator=SELECTION + frames_text([0]))
    else:
        for number in range(1, points + 1):
            yield replace(whole, entry_id=f"{whole.entry_id}#t={number:04d}", locator=f"{VOLUME}{number}")


def _is_text(raw: bytes) -> bool:
    return b"\0" not in raw[:4096]


def _subject(spec: ImagingSpec, path: str) -> str | None:
    match = re.search(spec.subject_pattern, path) if spec.subject_pattern else None
    return match.group(1) or None if match else None


def _folders(path: str) -> tuple[tuple[str, ...], str | None]:
    """(label, split) of root/[split/]class/…/file: the first folder below the root, or below the split's folder."""
    folders = path.split("/")[:-1]
    split = SPLIT_FOLDERS.get(folders[0].lower()) if folders else None
    classes = folders[1:] if split else folders
    return tuple(classes[:1]), split


def _dicom_parts(spec: ImagingSpec, whole: Part, raw: bytes) -> Iterator[Part]:
    """One entry per SOP instance in 2D; one part of its series in 3D.

    A damaged 2D image is an entry under its path, so that it cannot replace an intact copy of itself. A damaged slice
    stays with its series, which must not be stacked without it.
    """
    header = parse(raw, _also(spec.ruled))
    if header.sop_class == MEDIA_DIRECTORY:
        return
    subject = whole.subject or header.get("PatientID")
    instance, series = header.get("SOPInstanceUID") or "", header.get("SeriesInstanceUID") or ""
    framed = not spec.volumetric and spec.frames != "refuse"
    part = replace(whole, subject=subject, facts=facts.of_file(header, spec.ruled, spec.volumetric, framed, spec.dose))
    if spec.choose is not None and spec.choose.of == STUDY and (study := stated(header, STUDY_UID, header)):
        part = replace(part, units={STUDY: str(study)})
    if spec.label_from == "folder":
        label, split = _folders(whole.entry_id)
        part = replace(part, label=label, split=split)
    try:
        refuse_other_objects(header, spec.dose)
    except SampleError as error:  # may lie beside a series, but is never a slice of it
        yield replace(part, reason=error.reason, detail=error.detail)
        return
    try:
        check(header)
    except SampleError as error:
        slice_of = spec.volumetric and series and error.reason != "no_pixels"
        series_ids = {"entry_id": series, "locator": instance} if slice_of else {}
        yield replace(part, reason=error.reason, detail=error.detail, **series_ids)
        return
    if spec.volumetric and series:
        yield replace(part, entry_id=series, locator=instance or whole.entry_id)
    elif not spec.volumetric and instance:
        yield from _frame_parts(spec, replace(part, entry_id=instance), header)
    else:
        yield replace(part, reason="corrupt", detail=f"{uid_name(header.sop_class)} without its instance or series UID")


def _frame_parts(spec: ImagingSpec, part: Part, header: Header) -> Iterator[Part]:
    """The image of a file in 2D, or those of its frames (or tiles of a mosaic) that the spec takes."""
    try:
        count = 1 if spec.frames == "refuse" else count_slices(header)
    except SampleError:
        count = 1  # a mosaic whose tiles cannot be told apart: reading says so
    if count == 1:
        yield part
        return
    of_file = _frames(header)
    for number in [count // 2] if spec.frames == "middle" else range(count):
        entry_id = part.entry_id if spec.frames == "middle" else f"{part.entry_id}#frame={number + 1:04d}"
        own = _of_frame(part.facts or {}, of_file[number]) if of_file else part.facts
        yield replace(part, entry_id=entry_id, locator=SELECTION + frames_text([number]), facts=own)


def _frames(header: Header) -> list[Frame]:
    """The frames of a file whose frames may differ in what they state; none of any other."""
    try:
        return frames(header) if has_groups(header) and not is_mosaic(header) else []
    except SampleError:  # reading a frame says what is wrong
        return []


def _of_frame(whole: Mapping[str, Fact], frame: Frame) -> Mapping[str, Fact]:
    """The facts of a file as one frame of it has them."""
    own = facts.of_frames([frame], whole)
    return {name: value for name, value in {**whole, **own}.items() if value is not None} if own else whole


@lru_cache(maxsize=8)
def _also(ruled: tuple[str, ...]) -> frozenset[int]:
    """Tags of the keywords that rules ask for, of descriptors, and of the study."""
    return frozenset(described(keyword)[0] for keyword in (*asked(ruled), STUDY_UID)) | descriptors.tags(ruled)


def _npz_parts(spec: ImagingSpec, whole: Part, raw: bytes) -> Iterator[Part]:
    for name, rows in arrays.npz_rows(raw).items():
        yield from _row_parts(spec, whole, rows, f"{name}/" if name else "")


def _idx_parts(spec: ImagingSpec, whole: Part, raw: bytes) -> Iterator[Part]:
    images = arrays.idx_array(raw)
    if images.ndim < 3:
        partner = arrays.idx_images_uri(whole.uri)
        if images.ndim == 1 and partner and exists(partner):
            return
        raise SampleError("unrecognised_format", f"an idx array of {images.ndim} axes without its images file")
    yield from _row_parts(spec, whole, arrays.idx_rows(whole.uri, images), "")


def _row_parts(spec: ImagingSpec, whole: Part, rows: arrays.ImageArray, prefix: str) -> Iterator[Part]:
    labelled = spec.label_from != "none"
    size = rows.images[0].nbytes if len(rows.images) else 0
    for row in range(len(rows.images)):
        locator = f"{prefix}{row}"
        yield Part(
            entry_id=f"{whole.entry_id}#{locator}",
            uri=whole.uri,
            locator=locator,
            digest=digest(rows.content(row)),
            size=size,
            modified_ns=whole.modified_ns,
            subject=whole.subject,
            label=rows.label(row) if labelled else (),
            split=rows.split if labelled else None,
            facts=whole.facts,
        )
