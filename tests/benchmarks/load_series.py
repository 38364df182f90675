"""How long a series of 140 slices takes to load, and how much memory, beside bare pydicom, by hand.

    python tests/benchmarks/load_series.py [ROUNDS]

Series are of 512² slices of 16 bits: `classic` files, an `enhanced` one, one `mosaic` of all slices, and `film`, 140 mosaics of
36 tiles of 64², one for each point of time. All are decoded, rescaled and stacked to float32 by their positions, the film to
channels. Each round loads by both, one after the other, each load in a process of its own that has loaded once before.
Printed are the medians of processor time, their ratio with that of the luckiest and the unluckiest round, and the peak of resident
memory above that before the load, in bytes of the stored volume (two of which are the result).
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "modalities" / "imaging")]
COUNT, SIZE = 140, 512
TILES, TILE = 36, 64
LOAD = """
import sys, threading, time
from pathlib import Path
sys.path[:0] = {path!r}
import load_series
kind, by, files = {kind!r}, {by!r}, {files!r}
load = getattr(load_series, f"{{by}}_{{kind}}")
load(files)
pages = lambda: int(Path("/proc/self/statm").read_text().split()[1])
before = peak = pages()
done = False
def watch():
    global peak
    while not done:
        peak = max(peak, pages())
        time.sleep(0.0005)
if {watched!r}:
    watcher = threading.Thread(target=watch)
    watcher.start()
began = time.process_time()
values = load(files)
seconds = time.process_time() - began
done = True
print(seconds, (peak - before) * 4096 / (values.size * 2))
"""


def write(folder: Path) -> dict[str, list[str]]:
    import numpy as np
    from dicom_build import dataset, encoded, enhanced, frame, mosaic_file, placed

    volume = np.random.default_rng(0).integers(0, 2000, (COUNT, SIZE, SIZE)).astype(np.int16)
    files: dict[str, list[str]] = {"classic": [], "enhanced": [str(folder / "enhanced")]}
    for k, pixels in enumerate(volume):
        made = placed(dataset(pixels, instance=k, SeriesNumber=1, FrameOfReferenceUID="1.2.3"), (0, 0, 1.0 * k))
        made.RescaleSlope, made.RescaleIntercept = 1, -1024
        path = folder / f"classic{k}"
        path.write_bytes(encoded(made))
        files["classic"].append(str(path))
    frames = [frame((0, 0, 1.0 * k), (1.0, -1024.0)) for k in range(COUNT)]
    Path(files["enhanced"][0]).write_bytes(encoded(enhanced(volume, frames)))
    files["mosaic"] = [str(folder / "mosaic")]
    Path(files["mosaic"][0]).write_bytes(mosaic_file(volume))
    files["film"] = [str(folder / f"film{t}") for t in range(COUNT)]
    for t, file in enumerate(files["film"]):
        Path(file).write_bytes(
            mosaic_file(np.random.default_rng(t).integers(0, 4096, (TILES, TILE, TILE)).astype("u2"), t + 1)
        )
    return files


def medray_classic(files: list[str], **settings: object):
    from medray.archive.entries import Entry, PartRef
    from medray.modalities.imaging.modality import Imaging
    from medray.modalities.imaging.spec import ImagingSpec

    entry = Entry("e", "s", bytes(16), tuple(PartRef(file, "") for file in files))
    return Imaging(ImagingSpec(size=(8, 8, 8), **settings)).image(entry).values


medray_enhanced = medray_mosaic = medray_classic


def medray_film(files: list[str]):
    return medray_classic(files, volumes="channels", channels=len(files))


def pydicom_classic(files: list[str]):
    import numpy as np
    import pydicom

    slices = sorted(map(pydicom.dcmread, files), key=lambda each: float(each.ImagePositionPatient[2]))
    rescaled = [
        each.pixel_array.astype(np.float32) * float(each.RescaleSlope) + float(each.RescaleIntercept) for each in slices
    ]
    return np.stack(rescaled)


def pydicom_enhanced(files: list[str]):
    import numpy as np
    import pydicom

    whole = pydicom.dcmread(files[0])
    frames = list(zip(whole.PerFrameFunctionalGroupsSequence, whole.pixel_array, strict=True))
    frames.sort(key=lambda each: float(each[0].PlanePositionSequence[0].ImagePositionPatient[2]))
    rescales = [groups.PixelValueTransformationSequence[0] for groups, _ in frames]
    rescaled = [
        pixels.astype(np.float32) * float(each.RescaleSlope) + float(each.RescaleIntercept)
        for each, (_, pixels) in zip(rescales, frames, strict=True)
    ]
    return np.stack(rescaled)


def pydicom_mosaic(files: list[str]):
    import numpy as np
    import pydicom

    slices = pydicom.dcmread(files[0])
    return unfolded(
        slices.pixel_array.astype(np.float32) * float(slices.RescaleSlope) + float(slices.RescaleIntercept), COUNT
    )


def pydicom_film(files: list[str]):
    import numpy as np
    import pydicom

    times = sorted(map(pydicom.dcmread, files), key=lambda each: int(each.AcquisitionNumber))
    return np.stack(
        [
            unfolded(
                each.pixel_array.astype(np.float32) * float(each.RescaleSlope) + float(each.RescaleIntercept), TILES
            )
            for each in times
        ]
    )


def unfolded(whole, count: int):
    """(N, H, W) tiles of a square of tiles."""
    import numpy as np

    across = int(np.ceil(np.sqrt(count)))
    size = len(whole) // across
    return np.ascontiguousarray(
        whole.reshape(across, size, across, size).swapaxes(1, 2).reshape(-1, size, size)[:count]
    )


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for kind, files in write(Path(folder)).items():
            refuse_difference(kind, files)
            seconds: dict[str, list[float]] = {"medray": [], "pydicom": []}
            peaks: dict[str, float] = {}
            path = [str(Path(__file__).parent), *sys.path]
            for number in range(rounds + 1):
                for by in seconds:
                    code = LOAD.format(path=path, kind=kind, by=by, files=files, watched=number == rounds)
                    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
                    took, peak = map(float, done.stdout.split())
                    if number < rounds:
                        seconds[by].append(took)
                    else:
                        peaks[by] = peak
            ours, theirs = (statistics.median(seconds[by]) for by in ("medray", "pydicom"))
            ratios = [mine / other for mine, other in zip(seconds["medray"], seconds["pydicom"], strict=True)]
            print(f"{kind}: medray {ours:.3f} s, pydicom {theirs:.3f} s, ratio {ours / theirs:.2f}", end=" ")
            print(f"({min(ratios):.2f} to {max(ratios):.2f});", end=" ")
            print(f"peak of memory {peaks['medray']:.2f} and {peaks['pydicom']:.2f} of the stored volume")


def refuse_difference(kind: str, files: list[str]) -> None:
    """Raises AssertionError where both do not load the same float32 values: a faster load of something else is none."""
    import numpy as np

    ours, theirs = (globals()[f"{by}_{kind}"](files) for by in ("medray", "pydicom"))
    assert ours.dtype == theirs.dtype == np.float32 and np.array_equal(ours, theirs), kind


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
