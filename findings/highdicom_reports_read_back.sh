#!/usr/bin/env bash
# A Measurement Report (TID 1500) written and read again by highdicom 0.28.2, about an image of a patient "Schmidt".
#
# Expected before the run: what was written is read: one qualitative evaluation, and a measurement with the time at which it
# was made; and nothing is printed, since a person's name of one component is a valid one.
# Seen: get_qualitative_evaluations gives two: the family of the algorithm (TID 4019, here Artificial Intelligence) is taken for
# something found in the image. get_measurements makes new items of name, value, unit and qualifier, so the Observation
# DateTime that stands in the file is gone. While the report is made the patient's name is printed to stderr, by a warning
# that quotes it, as of every name without a ^.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'numpy==2.4.6' 'pydicom==3.0.2' 'highdicom==0.28.2'
cat >"$folder/report.py" <<'PY'
import io

import highdicom
from highdicom import sr
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, generate_uid

image = Dataset()
image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, generate_uid()
image.StudyInstanceUID, image.SeriesInstanceUID = generate_uid(), generate_uid()
image.PatientID, image.PatientName, image.Modality = "1", "Schmidt", "CT"
for keyword in ("PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime"):
    setattr(image, keyword, "")
measurement = sr.Measurement(name=codes.DCM.CertaintyOfFinding, value=25.0, unit=codes.UCUM.Percent)
measurement[0].ObservationDateTime = "20260102030405+0000"
group = sr.MeasurementsAndQualitativeEvaluations(
    tracking_identifier=sr.TrackingIdentifier(uid=generate_uid(), identifier="1"),
    algorithm_id=sr.AlgorithmIdentification("a", "1", family=codes.DCM.ArtificialIntelligence),
    measurements=[measurement],
    qualitative_evaluations=[sr.QualitativeEvaluation(codes.DCM.PresenceOfProperty, codes.SCT.Present)],
    source_images=[sr.SourceImageForMeasurementGroup(image.SOPClassUID, image.SOPInstanceUID)],
)
device = sr.DeviceObserverIdentifyingAttributes(uid=generate_uid())
context = sr.ObservationContext(observer_device_context=sr.ObserverContext(codes.DCM.Device, device))
report = sr.MeasurementReport(context, codes.LN.CTUnspecifiedBodyRegion, [group])
made = sr.EnhancedSR(
    [image], report[0], generate_uid(), 1, generate_uid(), 1, manufacturer="m", is_complete=True
)  # fmt: skip
stream = io.BytesIO()
made.save_as(stream)
raw = stream.getvalue()

print("highdicom", highdicom.__version__)
[read] = sr.srread(io.BytesIO(raw)).content.get_image_measurement_groups()
evaluations = [str(each.value.meaning) for each in read.get_qualitative_evaluations()]
print("qualitative evaluations read:", evaluations)
[number] = read.get_measurements()
print("time in the file:", b"20260102030405+0000" in raw, "- in the measurement:", "ObservationDateTime" in number[0])
assert evaluations == ["Artificial Intelligence", "Present"]
assert b"20260102030405+0000" in raw and "ObservationDateTime" not in number[0]
assert dcmread(io.BytesIO(raw)).PatientName == "Schmidt"
PY
"$folder/venv/bin/python" "$folder/report.py" 2>"$folder/stderr"
grep -o 'The string "Schmidt" is unlikely' "$folder/stderr"
