"""What `medray inspect` shows of images: format, geometry, values; never who the patient is."""

from __future__ import annotations

from collections import Counter

import numpy as np

from medray.errors import REASONS, SampleError
from medray.modalities.base import Inspection
from medray.modalities.imaging.facts import geometry
from medray.modalities.imaging.formats import arrays, nifti
from medray.modalities.imaging.formats.decode import content_of, decode, sniff
from medray.modalities.imaging.formats.dicom import pixels as dicom
from medray.modalities.imaging.formats.dicom import series, transform
from medray.modalities.imaging.formats.dicom.assembly import Piece, assemble
from medray.modalities.imaging.formats.dicom.elements import one_text
from medray.modalities.imaging.formats.dicom.header import MEDIA_DIRECTORY, Header, parse, uid_name
from medray.modalities.imaging.formats.dicom.objects import is_mosaic, kind
from medray.modalities.imaging.formats.dicom.pixel_description import check
from medray.modalities.imaging.formats.dicom.slices import slices
from medray.modalities.imaging.formats.image import Image
from medray.modalities.imaging.volumes import keys_of
from medray.storage.files import File, archive_files, read_bytes, relative


def inspect(uri: str) -> Inspection:
    """One file: what it holds. A folder: each DICOM series with its geometry, and a count of every other format.

    Raises SampleError where nothing can be seen, and ArchiveError where nothing is.
    """
    files = list(archive_files(uri))
    if len(files) == 1 and files[0].uri == uri:
        return _one_file(uri)
    if not files:
        raise SampleError("empty_file", "the folder holds no files")
    return _folder(uri, files)


def _one_file(uri: str) -> Inspection:
    raw = content_of(read_bytes(uri))
    if not raw:
        raise SampleError("empty_file")
    kind = sniff(raw)
    if not kind:
        raise SampleError("unrecognised_format")
    if kind == "npz":
        tables = {"arrays": [_rows_facts(name, rows) for name, rows in arrays.npz_rows(raw).items()]}
        return Inspection(title="npz archive of images", facts={"format": "npz"}, tables=tables)
    if kind == "idx":
        values = arrays.idx_array(raw)
        facts = {"format": "idx", "shape": list(values.shape), "dtype": str(values.dtype)}
        return Inspection(title="idx array", facts=facts | value_facts(values))
    if kind == "dicom":
        header = parse(raw)
        if header.sop_class == MEDIA_DIRECTORY:
            return Inspection(title="DICOMDIR", facts={"format": "dicom", "sop_class": uid_name(header.sop_class)})
        return Inspection(title="DICOM file", facts=_dicom_file(header))
    if kind == "nifti":
        return Inspection(title="NIfTI volume", facts={"format": kind} | nifti_facts(raw))
    image = decode([raw], volumes=True)
    facts = {"format": kind} | _image_facts(image)
    return Inspection(title="picture", facts=facts)


def nifti_facts(raw: bytes) -> dict[str, object]:
    """Geometry and values of a NIfTI file, of several volumes those of the first, and how many there are. Raises SampleError."""
    points = nifti.grid(raw).points
    image = nifti.read_nifti(raw, 0 if points > 1 else None)
    facts = _image_facts(image) | ({"volumes": points} if points > 1 else {})
    if image.affine_ras is not None:
        facts["affine_ras"] = image.affine_ras.tolist()
        facts["residual_mm"] = 0.0  # the affine is all that the file says
    sheared = image.slices_mm is not None and bool(np.abs(np.diff(image.slices_mm[:, 1:], axis=0)).max() > 1e-3)
    flags = [("sheared", sheared), ("several_volumes", points > 1), ("turn_unsure", bool(image.turn_unsure))]
    return facts | {"flags": [name for name, holds in flags if holds]}


def _rows_facts(name: str, rows: arrays.ImageArray) -> dict[str, object]:
    labels = () if rows.labels is None else map(rows.label, range(len(rows.images)))
    classes = Counter(labels)
    facts: dict[str, object] = {
        "array": f"{name}_images" if name else "images",
        "split": rows.split,
        "rows": len(rows.images),
        "shape": list(rows.images.shape[1:]),
        "dtype": str(rows.images.dtype),
        "labels": {" ".join(label): n for label, n in sorted(classes.items())[:20]},
    }
    return facts | value_facts(rows.images)


def value_facts(values: np.ndarray) -> dict[str, float]:
    """Minimum, maximum, mean, and how many numbers are NaN or infinite."""
    finite = values if values.dtype.kind != "f" else values[np.isfinite(values)]
    not_finite = int(values.size - finite.size)
    if finite.size == 0:
        return {"not_finite": not_finite}
    facts = {"min": float(finite.min()), "max": float(finite.max()), "mean": float(finite.mean(dtype=np.float64))}
    return facts | ({"not_finite": not_finite} if not_finite else {})


def _image_facts(image: Image) -> dict[str, object]:
    facts: dict[str, object] = {
        "shape": list(image.shape),
        "channels": 3 if image.color else 1,
        "dtype": str(image.values.dtype),
        "spacing_mm": None if image.spacing_mm is None else list(image.spacing_mm),
    }
    return facts | value_facts(image.values)


def _dicom_file(header: Header) -> dict[str, object]:
    facts: dict[str, object] = {
        "format": "dicom",
        "sop_class": uid_name(header.sop_class),
        "modality": str(header.get("Modality") or ""),
        "transfer_syntax": uid_name(header.syntax),
        "photometric": header.photometric,
        "bits_allocated": header.number("BitsAllocated", 0),
        "bits_stored": header.number("BitsStored", 0),
        "signed": header.signed,
        "frames": header.frames,
    }
    flags = _flags(header)
    if reason := kind(header.sop_class):
        facts |= {"reason": reason, "detail": REASONS[reason]}
    if header.start < 0 and reason:
        return facts | {"flags": flags}
    pixels = dicom.stored(header)
    facts["shape"] = list(pixels.shape[1:3] if header.frames == 1 else pixels.shape[:3])
    facts["dtype"] = str(pixels.dtype)
    spacing = dicom.plane_spacing(header)
    facts["spacing_mm"] = None if spacing is None else list(spacing)
    if header.frames == 1 and pixels.ndim == 3:
        pixels = transform.real_world(pixels[0], header)[0]
    return facts | value_facts(pixels) | {"flags": flags}


def _flags(header: Header) -> list[str]:
    flags = ["mosaic"] if is_mosaic(header) else []
    return [*flags, "multi_frame"] if header.frames > 1 else flags


def _folder(root: str, files: list[File]) -> Inspection:
    groups: dict[str, list[str]] = {}
    others: Counter[str] = Counter()
    problems: list[dict[str, object]] = []
    films: list[dict[str, object]] = []
    for file in files:
        try:
            raw = content_of(read_bytes(file.uri))
        except (OSError, SampleError):
            others["unreadable"] += 1
            continue
        kind = sniff(raw) if raw else ""
        if kind != "dicom":
            others[kind or "other"] += 1
            if kind == "nifti":
                films.append({"file": relative(file.uri, root)} | _header_facts(raw))
            continue
        try:
            header = parse(raw)
            if header.sop_class == MEDIA_DIRECTORY:
                others["DICOMDIR"] += 1
                continue
            check(header)
            groups.setdefault(one_text(header.get("SeriesInstanceUID")) or "", []).append(file.uri)
        except SampleError as error:
            problems.append({"file": relative(file.uri, root), "reason": error.reason, "detail": error.detail})
    if not groups and not problems and set(others) <= {"other", "unreadable"}:
        raise SampleError("unrecognised_format", f"{len(files)} files, none of them an image")
    rows: list[dict[str, object]] = []
    several: list[dict[str, object]] = []
    for uid, uris in sorted(groups.items()):
        raws = [content_of(read_bytes(each)) for each in uris]
        rows.append(series_facts(raws) | {"series": uid})
        if "reason" in rows[-1]:
            several += [row | {"series": uid} for row in volumes_of_series(raws)]
    facts: dict[str, object] = {"files": len(files), "series": len(rows), "other_files": dict(sorted(others.items()))}
    if len(rows) == 1:
        facts |= {"format": "dicom"} | rows[0]
    named = {"series": rows if len(rows) > 1 else [], "volumes": several, "nifti": films, "failed": problems}
    return Inspection(
        title="folder of images", facts=facts, tables={name: each for name, each in named.items() if each}
    )


def _header_facts(raw: bytes) -> dict[str, object]:
    """Shape, spacing and number of volumes of a NIfTI file, by its header; or the reason why it cannot be read."""
    try:
        grid = nifti.grid(raw)
    except SampleError as error:
        return {"reason": error.reason, "detail": error.detail}
    return {"shape": list(grid.shape), "spacing_mm": list(grid.spacing_mm), "volumes": grid.points}


def volumes_of_series(raws: list[bytes]) -> list[dict[str, object]]:
    """`series_facts` of each volume of a series that holds several, with what tells it from the others as `volume`; of any
    other series nothing."""
    try:
        slices_of = [slices(parse(raw)) for raw in raws]
        volumes = assemble(
            Piece(part, each.number, each.plane, each.values) for part, of in enumerate(slices_of) for each in of
        )
    except SampleError:
        return []
    if len(volumes) < 2:
        return []
    rows: list[dict[str, object]] = []
    for key, volume in zip(keys_of(volumes), volumes, strict=True):
        chosen: dict[int, list[int]] = {}
        for piece in volume.pieces:
            chosen.setdefault(piece.part, []).append(piece.number)
        rows.append({"volume": key} | series_facts([raws[part] for part in chosen], list(chosen.values())))
    return rows


def series_facts(raws: list[bytes], selections: list[list[int]] | None = None) -> dict[str, object]:
    """Geometry and values of the files of one series, or of the frames of them that are selected; where they are no volume,
    the reason and what can be said."""
    first = parse(raws[0])
    syntaxes = sorted({uid_name(parse(raw).syntax) for raw in raws})
    facts: dict[str, object] = {
        "modality": str(first.get("Modality") or ""),
        "slices": len(raws),
        "transfer_syntax": syntaxes[0] if len(syntaxes) == 1 else syntaxes,
    }
    try:
        frames, stack = series.volume(raws, selections)
        image = series.read_series(raws, selections, whole=selections is None)
    except SampleError as error:
        flags = _flags(first)
        if "positions" in error.detail:
            flags.append("repeated_positions")
        return facts | {"reason": error.reason, "detail": error.detail, "flags": flags}
    facts |= _image_facts(image)
    facts["affine_ras"] = stack.affine_ras.tolist()
    facts["residual_mm"] = stack.residual_mm
    volume_facts = geometry(stack, (frames[0].header.rows, frames[0].header.columns))
    facts |= {name: volume_facts[name] for name in ("extent_mm", "largest_hole_mm")}
    if len(stack.gaps_mm):
        facts["gap_mm"] = {"min": float(stack.gaps_mm.min()), "max": float(stack.gaps_mm.max())}
    return facts | {"tilt_degrees": stack.tilt_degrees, "flags": [*_flags(first), *stack.flags]}
