#!/usr/bin/env bash
# onnxruntime 1.32.0 on Linux: what a program that computes one valid model leaves in the home of its user.
#
# Expected before the run: nothing; telemetry of onnxruntime was known as a matter of Windows builds.
# Seen: the import alone makes ~/.cache/Microsoft/DeveloperTools/.onnxruntime with a random id of the device and an SQLite database whose
# table `events` holds `ProcessInfo`: a hash of the device, the system, the processor, the kind of container, the name of the program. The library
# holds the address of a collector on the internet (nothing was seen to be sent within some seconds, on a machine that reaches
# none). `disable_telemetry_events()` comes too late for that; the variable ORT_DISABLE_TELEMETRY=1, read at import, leaves nothing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'onnxruntime==1.32.0' 'onnx==1.23.2' 'numpy==2.4.6'
cat >"$folder/score.py" <<'PY'
import sys

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

if "late" in sys.argv:
    onnxruntime.disable_telemetry_events()
ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "xy"]
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", ports[:1], ports[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
assert session.run(None, {"x": np.array([[-1, 2]], np.float32)})[0].tolist() == [[0, 2]]
PY
for how in plain late silent; do
    mkdir "$folder/$how"
    silence=$([ "$how" = silent ] && echo ORT_DISABLE_TELEMETRY=1 || echo A=1)
    env -u ORT_DISABLE_TELEMETRY HOME="$folder/$how" "$silence" "$folder/venv/bin/python" "$folder/score.py" "$how"
done
"$folder/venv/bin/python" - "$folder" <<'PY'
import re
import sqlite3
import sys
from pathlib import Path

import onnxruntime.capi

place, left = Path(sys.argv[1]), {}
for how in ("plain", "late", "silent"):
    left[how] = sorted(path.name for path in (place / how).rglob("*") if path.is_file() and "-" not in path.name)
    print(f"{how}: {left[how]}")
assert left == {"plain": ["deviceid", "onnxruntime.db"], "late": ["deviceid", "onnxruntime.db"], "silent": []}
database = next((place / "plain").rglob("onnxruntime.db"))
payloads = [row[0] for row in sqlite3.connect(database).execute("select payload from events")]
words = {word.decode() for payload in payloads for word in re.findall(rb"[ -~]{4,}", payload)}
print("events:", len(payloads), "among their words:", sorted(w for w in words if w[0] in "Pcd" and w[-1] in "iq")[:8])
assert any("ProcessInfo" in word for word in words)
library = next(Path(onnxruntime.capi.__path__[0]).glob("onnxruntime_pybind11_state*.so")).read_bytes()
print("collector:", re.search(rb"https://[\w.]+/OneCollector[\w./]*", library)[0].decode())
print("as found")
PY
