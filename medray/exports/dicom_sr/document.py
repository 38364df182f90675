"""One report: a Measurement Report (PS3.16 TID 1500) as an Enhanced SR object (PS3.3 A.35.2), from images and scores.

What stands in it follows from the row of the score store, the images, the bundle and the settings alone: the same score gives
the same bytes, and all its UIDs are made of digests (PS3.5 B.2).
"""

# pydicom and highdicom give some of their values no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import io
import json
import uuid
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo

from highdicom import sr
from pydicom.charset import convert_encodings, default_encoding
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.sr.codedict import codes
from pydicom.uid import UID, EnhancedSRStorage, ExplicitVRLittleEndian

from medray.exports.base import Algorithm
from medray.exports.dicom_sr.headers import Instance, Source, quiet
from medray.exports.sr_settings import CERTAINTY, NO_UNITS, PERCENT, Code, ReportedOutput, SrSettings
from medray.modalities.imaging.formats.dicom.writer import uid

FORMAT = 1
"""Number of the way in which a score is written: another number, another object."""
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_OID, "medray dicom-sr")
MAKER = "medray"
PROCEDURES: Mapping[str, Code] = {
    "CT": ("25045-6", "LN", "CT unspecified body region"),
    "MR": ("25056-3", "LN", "MRI unspecified body region"),
    "PT": ("44136-0", "LN", "PET unspecified body region"),
    "NM": ("49118-3", "LN", "NM unspecified body region"),
    **dict.fromkeys(("CR", "DX", "MG", "RG"), ("43468-8", "LN", "XR unspecified body region")),
}
"""The procedure reported, by Modality of the images; PS3.16 CID 100."""
ANY_PROCEDURE: Code = ("363679005", "SCT", "Imaging procedure")


@dataclass(frozen=True)
class Scored:
    """The current scores of an entry, as the store has them."""

    entry_id: str
    fingerprint: bytes
    values: Mapping[str, float]
    """Scores by output; float32 values."""
    scored_at: datetime


def names(scored: Scored, algorithm: Algorithm, settings: SrSettings) -> str:
    """All that decides what a report says, beside the images that the fingerprint stands for: what its UID is made of."""
    decisive = [FORMAT, algorithm.bundle_id, scored.entry_id, scored.fingerprint.hex(), scored.scored_at.isoformat()]
    return json.dumps([*decisive, sorted(scored.values.items()), _settings(settings, algorithm)])


def instance_uid(name: str) -> str:
    """SOP Instance UID of the report."""
    return _uid("instance", name)


def _settings(settings: SrSettings, algorithm: Algorithm) -> str:
    """Those that a report of this bundle says anything of."""
    outputs = {name: output for name, output in settings.outputs.items() if name in algorithm.outputs}
    return settings.model_copy(update={"outputs": outputs}).model_dump_json()


def _uid(*parts: str) -> str:
    return f"2.25.{uuid.uuid5(NAMESPACE, json.dumps(parts)).int}"


def report(source: Source, scored: Scored, algorithm: Algorithm, settings: SrSettings, zone: tzinfo) -> bytes:
    """The DICOM file of an entry's scores. `zone`: of its times where the images do not state theirs."""
    name = names(scored, algorithm, settings)
    moment = scored.scored_at.astimezone(source.offset or zone)
    title = settings.algorithm or algorithm.name
    document = Dataset()
    document.file_meta = _meta(instance_uid(name))
    source.copy_into(document)
    # SOP Common and General Equipment
    document.SOPClassUID, document.SOPInstanceUID = EnhancedSRStorage, instance_uid(name)
    document.InstanceCreationDate, document.InstanceCreationTime = _date(moment), _time(moment)
    document.Manufacturer, document.ManufacturerModelName = MAKER, title
    document.SoftwareVersions = algorithm.bundle_id
    document.DeviceSerialNumber = algorithm.bundle_id
    # SR Document Series and General
    document.Modality = "SR"
    document.SeriesInstanceUID = _uid("series", source.study, algorithm.bundle_id, _settings(settings, algorithm))
    document.SeriesNumber, document.InstanceNumber = settings.series_number, source.number
    document.SeriesDescription = title
    document.ReferencedPerformedProcedureStepSequence = []
    document.ContentDate, document.ContentTime = _date(moment), _time(moment)
    document.CompletionFlag, document.VerificationFlag = "COMPLETE", "UNVERIFIED"
    document.PreliminaryFlag = "PRELIMINARY"
    document.PerformedProcedureCodeSequence = []
    document.CurrentRequestedProcedureEvidenceSequence = [_evidence(source)]
    for element in _content(source, scored, algorithm, settings, name):
        document[element.tag] = element
    stream = io.BytesIO()
    with quiet():
        # so that pydicom writes what was taken over as it stands, and does not decode and encode it
        character_set = convert_encodings(document.get("SpecificCharacterSet"))
        stated = "SpecificCharacterSet" in document
        document.set_original_encoding(False, True, character_set if stated else default_encoding)
        dcmwrite(stream, document, enforce_file_format=True)
    return stream.getvalue()


def _meta(instance: str) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = EnhancedSRStorage, UID(instance)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID, meta.ImplementationVersionName = UID(uid("medray")), "MEDRAY"
    return meta


def _date(moment: datetime) -> str:
    return moment.strftime("%Y%m%d")


def _time(moment: datetime) -> str:
    return moment.strftime("%H%M%S.%f")


def _evidence(source: Source) -> Dataset:
    """The images by study and series (PS3.3 table 10-11, Hierarchical SOP Instance Reference)."""
    of_series: defaultdict[str, list[Instance]] = defaultdict(list)
    for instance in source.instances:
        of_series[instance.series].append(instance)
    study = Dataset()
    study.ReferencedSeriesSequence = []
    for series, instances in of_series.items():
        item = Dataset()
        item.ReferencedSOPSequence = [_reference(instance) for instance in instances]
        item.SeriesInstanceUID = series
        study.ReferencedSeriesSequence.append(item)
    study.StudyInstanceUID = source.study
    return study


def _reference(instance: Instance) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = instance.sop_class, instance.sop_instance
    return item


# --- content --------------------------------------------------------------------------------------------------


def _content(source: Source, scored: Scored, algorithm: Algorithm, settings: SrSettings, name: str) -> Dataset:
    """The root of the tree."""
    title = settings.algorithm or algorithm.name
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=_uid("device", algorithm.bundle_id),
        name=title,
        manufacturer_name=MAKER,
        model_name=title,
        serial_number=algorithm.bundle_id,
    )
    observer = sr.ObserverContext(codes.DCM.Device, device)
    groups = [
        _group(source, scored, algorithm, settings, output, f"{name}\0{output}")
        for output in algorithm.outputs
        if output in settings.outputs and output not in settings.leave_out
    ]
    tree = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=_concept(settings.procedure or PROCEDURES.get(source.modality, ANY_PROCEDURE)),
        imaging_measurements=groups,
    )
    return tree[0]


def _group(
    source: Source, scored: Scored, algorithm: Algorithm, settings: SrSettings, output: str, name: str
) -> sr.MeasurementsAndQualitativeEvaluations:
    """TID 1501 of one output: what was found, how sure, by which algorithm, from which images."""
    reported, value = settings.outputs[output], scored.values[output]
    thresholds = dict(zip(algorithm.outputs, algorithm.thresholds, strict=False))
    identity = sr.AlgorithmIdentification(
        name=settings.algorithm or algorithm.name,
        version=algorithm.bundle_id,
        manufacturer=MAKER,
        family=codes.DCM.ArtificialIntelligence,
        parameters=list(_parameters(algorithm, output, thresholds.get(output))),
    )
    what, unit, number = measured(reported, value, probability=algorithm.probabilities)
    measurement = sr.Measurement(name=_concept(what), value=number, unit=_concept(unit))
    measurement[0].ObservationDateTime = scored.scored_at.astimezone(UTC).strftime("%Y%m%d%H%M%S.%f+0000")
    evaluations = None
    if reported.presence:
        present = codes.SCT.Present if value >= thresholds[output] else codes.SCT.Absent
        evaluations = [sr.QualitativeEvaluation(codes.DCM.PresenceOfProperty, present)]
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=_uid("output", name), identifier=_ascii(output)),
        finding_type=_concept(reported.finding) if reported.finding else None,
        finding_sites=[sr.FindingSite(_concept(reported.site))] if reported.site else None,
        algorithm_id=identity,
        measurements=[measurement],
        qualitative_evaluations=evaluations,
        source_images=[
            sr.SourceImageForMeasurementGroup(each.sop_class, each.sop_instance, list(each.frames) or None)
            for each in source.instances
        ],
    )


def measured(reported: ReportedOutput, value: float, *, probability: bool) -> tuple[Code, Code, float]:
    """Name, unit and number of a score as it is written."""
    if not probability:
        assert reported.name is not None and reported.unit is not None  # `writing.checked`
        return reported.name, reported.unit, float(value)
    unit = reported.unit or PERCENT
    return reported.name or CERTAINTY, unit, float(value) if unit[0] == NO_UNITS else 100 * float(value)


def _parameters(algorithm: Algorithm, output: str, threshold: float | None) -> list[str]:
    """What a reader has to know of the number, in words."""
    sentences = [f"bundle {algorithm.bundle_id}", f"output {_ascii(output)}"]
    if algorithm.probabilities:
        sentences.append("calibrated on validation data" if algorithm.calibrated else "not calibrated")
    if threshold is not None:
        sentences.append(f"decision threshold {threshold:.9g} (of a probability of 0 to 1)")
    return sentences


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode()


def _concept(code: Code) -> sr.CodedConcept:
    value, scheme, meaning = code
    return sr.CodedConcept(value, scheme, meaning)
