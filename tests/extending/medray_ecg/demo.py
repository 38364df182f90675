"""`medray demo ecg`: recordings with the axis of the heart to the left or not, from archive to re-scoring."""

import numpy as np

from medray.demos.base import Demo
from medray_ecg import LEADS

HEAD = 'archive = "{out}/archive"\nbundle = "{out}/bundle"\nengine = {{ kind = "ray", workers = 2 }}\n'
TRAIN = f"""name = "demo-ecg"
{HEAD}work = "{{out}}/work"
modality = {{{{ kind = "ecg" }}}}
model = {{{{ kind = "ecg_leads" }}}}
objective = {{{{ kind = "binary", positive = "left" }}}}
labels = {{{{ table = "{{out}}/labels.csv", key = "id", match = "entry", columns = ["axis"], split_column = "split" }}}}
training = {{{{ epochs = 4, batch_size = 8, learning_rate = 0.1 }}}}
evaluation = {{{{ resamples = 20 }}}}
"""
SCORE = f'name = "demo-ecg-score"\n{HEAD}work = "{{out}}/work-score"\nstore = "{{out}}/scores"\n'


def write_recording(folder, number, left):
    """Two seconds and a bit at 100 Hz, 1,000 units per mV; the limb leads are the stronger ones where it is to the left."""
    random = np.random.default_rng(number)
    beats = np.sin(np.arange(220)[:, None] * 0.075 + random.uniform(0, 6))
    units = beats * np.where((np.arange(LEADS) < 6) == left, 900, 300) + random.normal(0, 60, (220, LEADS))
    (folder / f"{number:03}.dat").write_bytes(units.round().astype("<i2").tobytes())
    signals = "".join(f"{number:03}.dat 16 1000/mV 16 0 0 0 0 {lead}\n" for lead in range(LEADS))
    (folder / f"{number:03}.hea").write_text(f"{number:03} {LEADS} 100 220\n{signals}")


def write(out):
    (out / "archive").mkdir()
    rows = ["id,split,axis"]
    for number in range(40):
        left = number % 2 == 1
        write_recording(out / "archive", number, left)
        split = ("train", "train", "train", "validation", "test")[number // 2 % 5]
        rows.append(f"{number:03},{split},{'left' if left else 'normal'}")
    (out / "labels.csv").write_text("\n".join(rows) + "\n")


def change(out):
    write_recording(out / "archive", 900, True)


DEMO = Demo("ecg", "recordings", TRAIN, SCORE, write, change, "1 recording was added")
