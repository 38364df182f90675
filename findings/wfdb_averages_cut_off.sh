#!/usr/bin/env bash
# wfdb 4.3.1 (PhysioNet's reader of waveforms) on a record whose first signal has several samples in each frame.
#
# Expected before the run: rdrecord averages the samples of a frame, as it says, and gives the average in millivolts.
# Seen: the average is taken in whole steps of the converter and what is behind the point is cut off, before the gain is
# applied: 0 and 1 make 0, 3 and 4 make 3, 0 and -1 make 0. So a value is nearer to zero by up to one step, a small wave
# loses a part of its height (here 1.6 % of a sine of 4 steps), and slow noise of one step vanishes. smooth_frames=False gives all samples, exactly.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'numpy==2.4.6' 'pandas==2.3.3' 'wfdb==4.3.1'
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
from pathlib import Path

import numpy as np
import wfdb

print("wfdb", wfdb.__version__)


def read(samples, per_frame):
    """Frames of `per_frame` samples of one signal and one sample of another; gain 200 steps per mV."""
    frames = np.reshape(samples, (-1, per_frame))
    both = np.hstack([frames, np.zeros((len(frames), 1), int)]).astype("<i2")
    Path("r.hea").write_text(
        f"r 2 100 {len(frames)}\nr.dat 16x{per_frame} 200/mV 16 0 0 0 0 I\nr.dat 16 200/mV 16 0 0 0 0 II\n"
    )
    Path("r.dat").write_bytes(both.tobytes())
    smooth = wfdb.rdrecord("r").p_signal[:, 0] * 200
    exact = wfdb.rdrecord("r", smooth_frames=False).e_p_signal[0] * 200
    assert np.allclose(exact, samples)
    return smooth, frames.mean(1)


smooth, mean = read([0, 1, 3, 4, 0, -1], 2)
print("steps of the converter:", smooth.round(3).tolist(), "means of the frames:", mean.tolist())
assert np.allclose(smooth, np.trunc(mean)) and not np.allclose(smooth, mean)

sine = np.rint(4 * np.sin(np.arange(4000) / 50)).astype(int)
smooth, mean = read(sine, 4)
effective = [round(float(np.sqrt(np.square(values).mean())), 3) for values in (mean, smooth)]
print("effective height of a sine of 4 steps:", effective[0], "smoothed by wfdb:", effective[1])
assert np.allclose(smooth, np.trunc(mean)) and effective[1] < effective[0]
PY
echo "as described"
