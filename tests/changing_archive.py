"""An archive that changes under the hands of whoever reads it, and what is right for everything that it has ever held.

`Content` is one file's bytes with what is right for its entries: ids, fingerprints and scores, from the pixels that went
into it and the published rules (docs/score-table.md), without medray's readers. `Changer` does to files what people,
scanners, copying programs and storage do, and remembers each content under the digest of what was there.
"""

from __future__ import annotations

import gzip
import io
import itertools
import os
import random
import threading
import time
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import imagecodecs
import nibabel
import numpy as np
import pydicom
import toy
import xxhash
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from medray.learning.bundles import TrainedModel
from medray.modalities.imaging.formats.dicom.writer import uid, write_dicom

Fingerprint = bytes
Score = float | None
"""None: the entry fails."""
Modality = Literal["US", "CT", "MR"]


class Expected(NamedTuple):
    """What is right for an entry."""

    fingerprint: Fingerprint | None
    """xxh3_128 of its content; None: it fails before there is a content to digest."""
    score: Score
    reason: str | None = None
    """Of one that fails, where it is known."""
    modality: str | None = None
    """As the header says; None: it does not."""
    member: str = ""
    """Which member of a zip holds it, with / before."""


class Content(NamedTuple):
    """What a file holds."""

    data: bytes
    entries: Mapping[str, Expected]
    """By id; of an id that is the file's path, what stands behind the path."""
    number: int | None = None
    """Which image it is, of an array the first; None of a zip, and of what is broken."""

    @property
    def whole(self) -> bool:
        return all(right.score is not None for right in self.entries.values())

    def at(self, path: str) -> dict[str, Expected]:
        """The entries by their ids, of a file at this path below the archive."""
        return {each if each.startswith("2.25.") else path + each: right for each, right in self.entries.items()}

    def read_whole(self, path: str) -> set[str]:
        """This file and its members, where they can be read to their end."""
        return {path, *(path + right.member for right in self.entries.values())} if self.whole else set()


def digest(data: bytes) -> Fingerprint:
    return xxhash.xxh3_128_digest(data)


class Plain:
    """Scores of pixels by the bundle's network and its published normalisation alone: (p - mean) / std, logistic."""

    def __init__(self, bundle: TrainedModel) -> None:
        from medray.learning.predictor import build_network

        self.network = build_network(bundle.recipe, bundle.weights)
        self.mean, self.std = toy.MODALITY.mean[0], toy.MODALITY.std[0]  # type: ignore[index]
        self._known: dict[bytes, float] = {}

    def __call__(self, pixels: np.ndarray) -> float:
        """(16, 16) uint8 to the score of "lower"."""
        import torch

        key = pixels.tobytes()
        if key not in self._known:
            values = (pixels.astype(np.float32) - np.float32(self.mean)) / np.float32(self.std)
            with torch.inference_mode():
                logit = self.network(pixels=torch.from_numpy(values[None, None]))
                self._known[key] = float(torch.sigmoid(logit)[0, 0])
        return self._known[key]


@cache
def pixels(number: int) -> np.ndarray:
    return toy.pixels(number, number % 2)


# --- files of every kind ----------------------------------------------------------------------------------------


@cache
def dicom_bytes(name: str, number: int, syntax: str = "", modality: Modality = "US") -> bytes:
    """The image `number` under the SOPInstanceUID of `name`; `syntax`: how it is compressed, without loss."""
    plain = write_dicom(
        pixels(number),
        patient_id=f"P-{name}",
        study_uid=uid("changing", name, "study"),
        series_uid=uid("changing", name, "series"),
        instance_uid=uid("changing", name),
        modality=modality,
    )
    if not syntax:
        return plain
    dataset = pydicom.dcmread(io.BytesIO(plain))
    cells = np.ascontiguousarray(pixels(number))
    if syntax == "rle":
        facts: dict[str, Any] = {"rows": toy.SIZE, "columns": toy.SIZE, "samples_per_pixel": 1, "bits_allocated": 8}
        facts |= {
            "bits_stored": 8,
            "pixel_representation": 0,
            "photometric_interpretation": "MONOCHROME2",
            "number_of_frames": 1,
        }
        frame = RLELosslessEncoder.encode(cells, encoding_plugin="pydicom", **facts)
    elif syntax == "jpegls":
        frame = imagecodecs.jpegls_encode(cells, level=0)
    else:
        frame = imagecodecs.jpeg2k_encode(cells, level=0, codecformat="J2K", reversible=True)
    dataset.file_meta.TransferSyntaxUID = {"rle": RLELossless, "jpegls": JPEGLSLossless}.get(syntax, JPEG2000Lossless)
    dataset.PixelData = encapsulate([bytes(frame)])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


def png_bytes(number: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels(number)).save(stream, "png")
    return stream.getvalue()


def nifti_bytes(number: int) -> bytes:
    """Columns from right to left and rows from the bottom, as NIfTI's axes run: read, it is the image `number`."""
    return nibabel.Nifti1Image(np.ascontiguousarray(pixels(number).T[::-1, ::-1]), np.eye(4)).to_bytes()


def npz_bytes(numbers: Sequence[int]) -> bytes:
    stream = io.BytesIO()
    labels = np.array([[number % 2] for number in numbers], np.uint8)
    np.savez(stream, test_images=np.stack([pixels(number) for number in numbers]), test_labels=labels)
    return stream.getvalue()


KINDS = ("dcm", "rle.dcm", "jpegls.dcm", "j2k.dcm", "png", "nii", "nii.gz", "npz", "zip")
"""What a file's name ends with."""


class Contents:
    """Makes contents of images; scores by `plain`."""

    kinds: tuple[str, ...] = KINDS

    def __init__(self, plain: Callable[[np.ndarray], float]) -> None:
        self.plain = plain

    def score(self, number: int) -> float:
        return self.plain(pixels(number))

    def of(self, kind: str, name: str, number: int, count: int = 3, modality: Modality = "US") -> Content:
        """A whole file of one of KINDS. `name` and `modality`: whose SOPInstanceUID an image of DICOM has, and what it says
        that it is; `count`: of images in a file of several, `number` and those after it."""
        if kind.endswith("dcm"):
            data = dicom_bytes(name, number, kind.removesuffix("dcm").removesuffix("."), modality)
            right = Expected(digest(data), self.score(number), modality=modality)
            return Content(data, {uid("changing", name): right}, number)
        if kind == "npz":
            return self._npz(range(number, number + count))
        if kind == "zip":
            return self._zip(name, number, count, modality)
        raw = png_bytes(number) if kind == "png" else nifti_bytes(number)
        data = gzip.compress(raw, mtime=number) if kind == "nii.gz" else raw
        return Content(data, {"": Expected(digest(data), self.score(number))}, number)

    def _npz(self, numbers: Sequence[int]) -> Content:
        rows = {
            f"#test/{row}": Expected(digest(pixels(number).tobytes() + bytes([number % 2])), self.score(number))
            for row, number in enumerate(numbers)
        }
        return Content(npz_bytes(numbers), rows, numbers[0])

    def _zip(self, name: str, number: int, count: int, modality: Modality) -> Content:
        """A picture, an image of DICOM, and an .npz, the picture only where `count` is odd."""
        kinds = ["dcm", "npz", *(["png"] if count % 2 else [])]
        members = {f"m/{kind}.{kind}": self.of(kind, f"{name} in zip", number, count, modality) for kind in kinds}
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed:
            for path, content in members.items():
                packed.writestr(zipfile.ZipInfo(path), content.data)
        entries = {
            id_: right._replace(member=f"/{path}")
            for path, content in members.items()
            for id_, right in content.at(f"/{path}").items()
        }
        return Content(stream.getvalue(), entries)

    def cut(self, kind: str, content: Content) -> Content:
        """The file without its last bytes, which are of pixels, or of the directory of a container."""
        data = content.data[: len(content.data) - 64]
        return self._broken(kind, data, "corrupt" if kind == "npz" else "truncated")

    def emptied(self, kind: str) -> Content:
        return self._broken(kind, b"", "empty_file")

    def garbage(self, kind: str, number: int) -> Content:
        data = b"\x01\xff\x02\x00" + random.Random(number).randbytes(300)
        return self._broken(kind, data, "corrupt" if kind == "zip" else "unrecognised_format")

    def half(self, kind: str, content: Content) -> Content:
        """The first half of a file; of what can be scored in it nothing is told."""
        return Content(content.data[: len(content.data) // 2], {})

    def _broken(self, kind: str, data: bytes, reason: str) -> Content:
        """One failed entry, under the path of the file. A zip that cannot be opened has no content to digest."""
        return Content(data, {"": Expected(None if kind == "zip" else digest(data), None, reason)})

    def half_overwritten(self, name: str, before: int, after: int) -> Content:
        """An uncompressed DICOM file into whose place another is being written, the upper half of the image done."""
        old, new = dicom_bytes(name, before), dicom_bytes(name, after)
        half = toy.SIZE // 2
        mixed = np.concatenate([pixels(after)[:half], pixels(before)[half:]])
        data = new[: len(new) - mixed.nbytes // 2] + old[len(new) - mixed.nbytes // 2 :]
        return Content(data, {uid("changing", name): Expected(digest(data), self.plain(mixed))})


class Letters(Contents):
    """Files of sequences of LENGTH letters or fewer, which are scored by one-hot letters and a mask."""

    kinds = ("fa", "fa.gz", "csv")
    LENGTH = 24

    def __init__(self, bundle: TrainedModel) -> None:
        from medray.learning.predictor import build_network

        self.network = build_network(bundle.recipe, bundle.weights)

    def of(self, kind: str, name: str, number: int, count: int = 3, modality: Modality = "US") -> Content:
        """`count` records of letters drawn by `number`; the names are the same in every file."""
        draw = random.Random(number)
        records = [(f"r{row}", "".join(draw.choices("ACGT", k=self.LENGTH))) for row in range(count)]
        if kind == "csv":
            return self._read(kind, "id,sequence\n" + "".join(f"{name},{text}\n" for name, text in records))
        return self._read(kind, "".join(f">{name}\n{text}\n" for name, text in records))

    def _read(self, kind: str, text: str) -> Content:
        if kind == "csv":
            rows = [line.partition(",") for line in text.splitlines()[1:]]
        else:
            rows = [record.partition("\n") for record in text.split(">")[1:]]
        records = {name: letters.strip() for name, _, letters in rows if letters.strip()}
        entries = {
            f"#{name}": Expected(digest(bytes(map("ACGT".index, letters))), self._score(letters))
            for name, letters in records.items()
        }
        return Content(gzip.compress(text.encode(), mtime=0) if kind == "fa.gz" else text.encode(), entries)

    def _score(self, letters: str) -> float:
        import torch

        sequence = np.zeros((1, self.LENGTH, 4), np.float32)
        sequence[0, np.arange(len(letters)), [*map("ACGT".index, letters)]] = 1
        mask = np.arange(self.LENGTH)[None] < len(letters)
        with torch.inference_mode():
            logits = self.network(sequence=torch.from_numpy(sequence), mask=torch.from_numpy(mask))
            return float(torch.sigmoid(logits)[0, 0])

    def cut(self, kind: str, content: Content) -> Content:
        """Without its last letters: another sequence, for the formats do not say where one ends."""
        return self.emptied(kind) if kind == "fa.gz" else self._read(kind, content.data[:-10].decode())

    def half(self, kind: str, content: Content) -> Content:
        half = content.data[: len(content.data) // 2]
        return Content(half, {}) if kind == "fa.gz" else self._read(kind, half.decode())

    def _broken(self, kind: str, data: bytes, reason: str) -> Content:
        return Content(data, {"": Expected(None, None, reason)})


# --- who changes it ---------------------------------------------------------------------------------------------


class Changer(threading.Thread):
    """Changes files below `root`, one after the other, at random from a seed: `changes` times, and on until `enough`.

    `known` has the score of every content that an entry has ever had, by (entry id, fingerprint): it is there before the
    content is.
    """

    def __init__(
        self, root: Path, contents: Contents, *, seed: int, changes: int, pause: float, files: int, outages: bool = True
    ) -> None:
        super().__init__(daemon=True)
        self.root, self.contents, self.changes, self.pause = root, contents, changes, pause
        self.random, self.outages = random.Random(seed), outages
        self.enough: Callable[[], bool] = lambda: True
        self.numbers, self.names = itertools.count(1), itertools.count(1)
        self.now: dict[str, tuple[str, str, Content]] = {}
        """Path to (kind, name, what lies there)."""
        self.earlier: dict[str, list[Content]] = defaultdict(list)
        self.known: dict[tuple[str, Fingerprint], float] = {}
        self.paths_of: dict[str, set[str]] = defaultdict(set)
        """Entry id to the paths where it has ever lain."""
        self.done: Counter[str] = Counter()
        self.fault: BaseException | None = None
        root.mkdir(parents=True)
        for number in range(files):
            self._add(contents.kinds[number % len(contents.kinds)])

    def run(self) -> None:
        try:
            while sum(self.done.values()) < self.changes or not self.enough():
                self.change()
                time.sleep(self.pause * self.random.uniform(0.2, 1.8))
        except BaseException as error:  # raised where the thread is waited for
            self.fault = error

    def finish(self) -> None:
        self.join()
        if self.fault is not None:
            raise self.fault

    def change(self) -> None:
        """One change."""
        ways: dict[Callable[[], str | None], int] = {
            self._replace: 30, self._revert: 14, self._swap: 6, self._write_slowly: 8, self._overwrite: 4, self._cut: 6,
            self._empty: 3, self._garbage: 3, self._touch: 6, self._rename: 6, self._delete: 5, self._add: 6,
        }  # fmt: skip
        if self.outages:
            ways |= {self._unmount: 2, self._unmount_folder: 2}
        (way,) = self.random.choices(list(ways), list(ways.values()))
        what = way()
        if what is not None:
            self.done[what] += 1

    # what is there

    def expected(self) -> dict[str, Expected]:
        """What is right for the archive as it is now."""
        return {id_: right for path, (_, _, content) in self.now.items() for id_, right in content.at(path).items()}

    def read_whole(self) -> set[str]:
        """Paths of the files, and members of files, that can be read to their end."""
        return {each for path, (_, _, content) in self.now.items() for each in content.read_whole(path)}

    def held_no_more(self) -> set[str]:
        """Entries that nothing holds, whose files, wherever they have lain, are there and whole: no row of them stands."""
        whole, present = self.read_whole(), self.expected()
        return {id_ for id_, paths in self.paths_of.items() if id_ not in present and paths <= whole}

    def _note(self, path: str, content: Content) -> None:
        for id_, right in content.at(path).items():
            self.paths_of[id_].add(path + right.member)
            if right.score is not None and right.fingerprint is not None:
                self.known[id_, right.fingerprint] = right.score

    def _put(self, path: str, content: Content, *, inplace: bool | None = None) -> None:
        """Other content at a path: by another file in its place, or written into it."""
        kind, name, before = self.now.get(path, ("", "", None))
        if before is not None and before.data != content.data:
            self.earlier[path].append(before)
        self._note(path, content)
        if inplace if inplace is not None else self.random.random() < 0.4:
            (self.root / path).write_bytes(content.data)
        else:
            draft = self.root.parent / "draft"
            draft.write_bytes(content.data)
            os.replace(draft, self.root / path)
        self.now[path] = (kind, name, content)

    def _any(self, *kinds: str) -> str | None:
        """A path, of one of these kinds."""
        paths = [path for path, (kind, _, _) in self.now.items() if not kinds or kind in kinds]
        return self.random.choice(paths) if paths else None

    def _fresh(self, path: str) -> Content:
        """Another whole content for this path, now and then of another entry."""
        kind, name, _ = self.now[path]
        if kind.endswith("dcm") and self.random.random() < 0.15:
            name = f"{name}'"
            self.now[path] = (kind, name, self.now[path][2])
        return self.contents.of(kind, name, next(self.numbers), self.random.randint(1, 4))

    # ways of changing; each gives its name, or None where nothing could be done

    def _add(self, kind: str | None = None) -> str:
        kind = kind or self.random.choice(self.contents.kinds)
        name = f"{next(self.names):04}"
        path = f"{self.random.randrange(3)}/{name}.{kind}"
        (self.root / path).parent.mkdir(exist_ok=True)
        content = self.contents.of(kind, name, next(self.numbers), self.random.randint(1, 4))
        self.now[path] = (kind, name, content)
        self._put(path, content, inplace=False)
        return "added"

    def _replace(self) -> str | None:
        path = self._any()
        if path is None:
            return None
        self._put(path, self._fresh(path))
        return "replaced"

    def _revert(self) -> str | None:
        path = self._any()
        if path is None or not self.earlier[path]:
            return None
        self._put(path, self.random.choice(self.earlier[path]))
        return "reverted"

    def _swap(self) -> str | None:
        """Another content for a moment; then the file itself is back, with the time that it had."""
        path = self._any()
        if path is None:
            return None
        kind, name, content = self.now[path]
        aside, other = self.root.parent / "aside", self.contents.of(kind, name, next(self.numbers))
        self._note(path, other)
        draft = self.root.parent / "draft"
        draft.write_bytes(other.data)
        os.replace(self.root / path, aside)
        os.replace(draft, self.root / path)
        time.sleep(self.random.uniform(0.0, 4 * self.pause))
        os.replace(aside, self.root / path)
        self.now[path] = (kind, name, content)
        return "swapped for a moment"

    def _write_slowly(self) -> str | None:
        """A copying program: the first half lies there for a while."""
        path = self._any()
        if path is None:
            return None
        content = self._fresh(path)
        kind, name, before = self.now[path]
        self.earlier[path].append(before)
        half = self.contents.half(kind, content)
        for each in (half, content):
            self._note(path, each)
        with open(self.root / path, "wb", buffering=0) as stream:
            stream.write(half.data)
            time.sleep(self.random.uniform(0.0, 4 * self.pause))
            stream.write(content.data[len(half.data) :])
        self.now[path] = (kind, name, content)
        return "half-written, then whole"

    def _overwrite(self) -> str | None:
        """Written over in its place: for a while the upper half of the image is new, and the lower one old."""
        path = self._any("dcm")
        if path is None:
            return None
        kind, name, before = self.now[path]
        old, new = before.number, next(self.numbers)
        if old is None or before.data != dicom_bytes(name, old):
            return None
        content, half = self.contents.of(kind, name, new), self.contents.half_overwritten(name, old, new)
        for each in (half, content):
            self._note(path, each)
        self.earlier[path].append(before)
        middle = len(content.data) - toy.SIZE * toy.SIZE // 2
        with open(self.root / path, "r+b", buffering=0) as stream:
            stream.write(half.data[:middle])
            time.sleep(self.random.uniform(0.0, 4 * self.pause))
            stream.write(content.data[middle:])
        self.now[path] = (kind, name, content)
        return "written over"

    def _cut(self) -> str | None:
        path = self._any()
        if path is None:
            return None
        kind, name, _ = self.now[path]
        whole = self.contents.of(kind, name, next(self.numbers))
        self._put(path, self.contents.cut(kind, whole))
        return "truncated"

    def _empty(self) -> str | None:
        path = self._any()
        if path is None:
            return None
        self._put(path, self.contents.emptied(self.now[path][0]))
        return "emptied"

    def _garbage(self) -> str | None:
        path = self._any()
        if path is None:
            return None
        self._put(path, self.contents.garbage(self.now[path][0], next(self.numbers)))
        return "spoilt"

    def _touch(self) -> str | None:
        path = self._any()
        if path is None:
            return None
        os.utime(self.root / path)
        return "touched"

    def _rename(self) -> str | None:
        path = self._any()
        if path is None:
            return None
        kind, name, content = self.now.pop(path)
        new = f"{self.random.randrange(3)}/{next(self.names):04}.{kind}"
        self._note(new, content)
        (self.root / new).parent.mkdir(exist_ok=True)
        os.replace(self.root / path, self.root / new)
        self.now[new] = (kind, name, content)
        return "renamed"

    def _delete(self) -> str | None:
        path = self._any()
        if path is None or len(self.now) < 12:
            return None
        (self.root / path).unlink()
        self.earlier[path].append(self.now.pop(path)[2])
        return "deleted"

    def _unmount(self) -> str:
        return self._away(self.root, "unmounted")

    def _unmount_folder(self) -> str | None:
        path = self._any()
        return None if path is None else self._away((self.root / path).parent, "a folder unmounted")

    def _away(self, folder: Path, what: str) -> str:
        """Gone for a while; for half of that an empty folder is in its place, as a mount leaves one."""
        aside = self.root.parent / "unmounted"
        empty = self.random.random() < 0.5
        os.replace(folder, aside)
        if empty:
            folder.mkdir()
        time.sleep(self.random.uniform(0.0, 8 * self.pause))
        if empty:
            folder.rmdir()
        os.replace(aside, folder)
        return what
