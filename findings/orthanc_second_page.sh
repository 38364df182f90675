#!/usr/bin/env bash
# Orthanc 1.10.1 with orthanc-dicomweb 1.7 (Debian 12): the second page of a QIDO-RS search by ModalitiesInStudy.
#
# Expected before the run: pages of four of ten CT studies hold 4, 4 and 2 of them (PS3.18 8.3.4.4: offset skips results).
# Seen: 4, 0, 0. A page with offset > 0 is empty, with status 200 and no warning, though the same search without a limit finds
# all ten. Searched by PatientID, or by nothing, the pages are right. A client that reads pages until one is empty, as the
# standard has it, loses every study behind its first page: of a thousand and more CT studies, all but a thousand.
#
# Debian's packages are unpacked, not installed: needs apt-get and dpkg. Server and client run in a network of their own
# (unshare), since this server listens on every interface.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get download -qq 'orthanc=1.10.1+dfsg-2+deb12u1' 'orthanc-dicomweb=1.7+dfsg-6+b2' libcivetweb1 libdcmtk17 \
  libboost-locale1.74.0 libboost-thread1.74.0 liblua5.3-0 libpugixml1v5 libwrap0 2>/dev/null
for package in *.deb; do dpkg -x "$package" root; done
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check 'pydicom==3.0.2'
cat >orthanc.json <<JSON
{"StorageDirectory": "$folder/db", "IndexDirectory": "$folder/db", "HttpPort": 8042, "DicomServerEnabled": false,
 "RemoteAccessAllowed": false, "AuthenticationEnabled": true, "RegisteredUsers": {"finding": "$$"},
 "Plugins": ["$(echo "$folder"/root/usr/lib/orthanc/libOrthancDicomWeb.so.*)"], "DicomWeb": {"Enable": true}}
JSON
cat >client.py <<'PY'
import base64
import io
import json
import sys
import time
import urllib.request

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

url, user = sys.argv[1:]


def ask(path, body=None):
    request = urllib.request.Request(url + path, body)
    request.add_header("Authorization", "Basic " + base64.b64encode(user.encode()).decode())
    with urllib.request.urlopen(request) as answer:
        return json.loads(answer.read() or b"[]")


for _ in range(100):
    try:
        system = ask("/system")
        break
    except OSError:
        time.sleep(0.1)
print("Orthanc", system["Version"], "DICOMweb plug-in", ask("/plugins/dicom-web")["Version"])
assert system["Version"] == "1.10.1"
for number in range(10):
    one = Dataset()
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = CTImageStorage
    one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}.3"
    one.StudyInstanceUID, one.SeriesInstanceUID = f"1.2.3.{number}.1", f"1.2.3.{number}.2"
    one.Modality, one.PatientID, one.PatientName = "CT", "finding", ""
    stream = io.BytesIO()
    dcmwrite(stream, one, enforce_file_format=True)
    ask("/instances", stream.getvalue())
pages = {}
for key in ("ModalitiesInStudy=CT", "PatientID=finding"):
    pages[key] = [len(ask(f"/dicom-web/studies?{key}&limit=4&offset={offset}")) for offset in (0, 4, 8)]
    print(f"{key}: pages of {pages[key]}; without a limit {len(ask(f'/dicom-web/studies?{key}'))}")
    assert len(ask(f"/dicom-web/studies?{key}")) == 10
assert pages == {"ModalitiesInStudy=CT": [4, 0, 0], "PatientID=finding": [4, 4, 2]}, "it behaves otherwise now"
PY
cat >inside.sh <<'SH'
ip link set lo up
root/usr/sbin/Orthanc orthanc.json >log 2>&1 &
server=$!
code=0
venv/bin/python client.py http://127.0.0.1:8042 "$1" || code=$?
kill "$server"
wait
exit "$code"
SH
LD_LIBRARY_PATH=$(echo root/usr/lib/*-linux-gnu):$(echo root/lib/*-linux-gnu):root/usr/lib \
  DCMDICTPATH=$(echo root/usr/share/libdcmtk17/dicom.dic) unshare --net --map-root-user bash inside.sh "finding:$$"
