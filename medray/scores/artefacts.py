"""Artefacts: scores that are files beside the table, such as a mask, a saliency map or a timeline.

A worker writes them to a folder of its own below `<store>/_medray/artefacts`, before the rows that name them; the
leading underscore hides the folder from Delta's readers and from their vacuum. The commit that makes the rows visible
makes the artefacts so: a file that no row names is of a run at work, or of one that was killed.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple, Self, TypedDict, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medray.errors import MachineError, StoreError
from medray.scores.table import ARTEFACT_CONTENT, OF_ARTEFACT, Claim, entry_keys
from medray.storage import delta, files

FOLDER = "_medray/artefacts"
_MEDIA_TYPE = re.compile(r"[a-z]+/[a-z0-9][a-z0-9.+-]{0,100}")
_ENDINGS = {
    "application/dicom": ".dcm",
    "application/gzip": ".gz",
    "application/json": ".json",
    "application/pdf": ".pdf",
    "application/x-npy": ".npy",
    "image/jpeg": ".jpg",
    "image/png": ".png",
    "image/svg+xml": ".svg",
    "image/tiff": ".tif",
    "text/csv": ".csv",
    "text/html": ".html",
    "text/plain": ".txt",
}


class Artefact(NamedTuple):
    """A file that a model or a modality makes of one sample, beside its scores."""

    sample: int
    """Number of the sample in its batch."""
    output: str
    """Which score it is: a name of the model's outputs, to lie beside its value, or another one, without a value."""
    media_type: str
    """Such as "image/png"; "application/x-npy" for a NumPy array."""
    content: bytes


class ArtefactReference(TypedDict):
    """What a row of the score table says of its artefact."""

    artefact: str
    """Path below the store."""
    artefact_type: str
    artefact_digest: str
    """SHA-256 of the content, 64 hex digits."""


class ShardArtefacts(TypedDict):
    """What a shard's receipt says of the artefacts that belong to its rows; JSON-ready."""

    folder: str
    """Below the store; no other shard writes there."""
    files: int
    bytes: int


# --- written, in a worker -------------------------------------------------------------------------------------


class ArtefactWriter:
    """Writes the artefacts of one shard, and puts references in their place. When its block raises, they are removed."""

    def __init__(self, store: str, claim: Claim) -> None:
        self.store, self.folder = store, f"{FOLDER}/{claim.bundle_id}/{claim.tag}-{uuid.uuid4()}"
        self._sizes: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            with suppress(OSError):  # the storage that has just failed: a vacuum removes them
                remove(self.store, self._sizes)

    def referenced(self, rows: pa.RecordBatch) -> dict[str, pa.Array]:
        """The columns OF_ARTEFACT, (N,): where the column `artefact` (ARTEFACT_CONTENT) of these rows was written. They have
        the columns entry_id, subject_id and fingerprint, too. Raises ValueError for a media type that is none; MachineError
        where the storage cannot be written."""
        given = rows.column("artefact")
        if given.null_count == len(rows):
            return {}
        numbers = np.flatnonzero(given.is_valid().to_numpy(zero_copy_only=False))
        keys = entry_keys(rows)[:, 0]
        references: list[ArtefactReference | None] = [None] * len(rows)
        for number in numbers.tolist():
            subject_id, artefact = rows.column("subject_id")[number].as_py(), given[number].as_py()
            references[number] = self._write(subject_id, int(keys[number]), **artefact)
        return {
            name: pa.array([reference and reference[name] for reference in references], pa.string())
            for name in OF_ARTEFACT
        }

    def _write(self, subject_id: str, key_hi: int, media_type: str, content: bytes) -> ArtefactReference:
        if not _MEDIA_TYPE.fullmatch(media_type):
            raise ValueError(f"media type {media_type!r}: expected one such as image/png")
        digest = hashlib.sha256(content).hexdigest()
        name = f"{subject_tag(subject_id)}-{key_hi % 2**64:016x}-{digest[:16]}{_ENDINGS.get(media_type, '')}"
        uri = f"{self.folder}/{name}"
        if uri not in self._sizes:  # two outputs of an entry may be the same picture
            with delta.storing(self.store):
                files.write_bytes(files.join(self.store, uri), content)
                if not self._sizes and files.is_local(self.store):
                    _keep_folders(self.store, self.folder)
            self._sizes[uri] = len(content)
        return {"artefact": uri, "artefact_type": media_type, "artefact_digest": digest}

    def written(self) -> ShardArtefacts | None:
        """What the receipt says; None where nothing was written."""
        if not self._sizes:
            return None
        return {"folder": self.folder, "files": len(self._sizes), "bytes": sum(self._sizes.values())}


def subject_tag(subject_id: str) -> str:
    """How the names of a subject's artefacts begin: a digest of the pseudonym, so that all are found, committed or not."""
    return hashlib.blake2b(subject_id.encode(), digest_size=8, person=b"medray artefact").hexdigest()


def _keep_folders(store: str, folder: str) -> None:
    """Make the new folders on the way to `folder` survive a power cut."""
    path = files.local_path(files.join(store, folder))
    while path != files.local_path(store):
        path = path.parent
        files.sync_folder(path)


# --- committed and read ---------------------------------------------------------------------------------------


def refuse_absent(store: str, written: ShardArtefacts) -> None:
    """Raises MachineError where the artefacts that a worker wrote for a shard are not all there."""
    folder = files.join(store, written["folder"])
    with delta.storing(store):
        sizes = [file.size for file in files.list_files(folder)] if files.exists(folder) else []
    if (len(sizes), sum(sizes)) != (written["files"], written["bytes"]):
        raise MachineError(
            "artefacts that a worker wrote are not there, so the rows that name them are not committed",
            where=folder,
            found=f"{len(sizes)} files of {sum(sizes)} bytes",
            expected=f"{written['files']} files of {written['bytes']} bytes",
            do="put the store on storage that the driver and all workers share, then run again",
        )


def content(store: str, row: Mapping[str, object]) -> bytes:
    """The artefact of a row, which has the columns OF_ARTEFACT.

    Raises StoreError for a row that has none, or whose path leads elsewhere; MachineError where the file is missing, or
    another than the one that was written.
    """
    reference = cast(ArtefactReference, row)
    path = reference["artefact"] or ""
    if not path.startswith(f"{FOLDER}/") or ".." in path.split("/"):
        raise StoreError("this names no artefact of a score store", where=store, expected=f"a path below {FOLDER}")
    uri = files.join(store, path)
    again = "put it back from a backup, or score the entry again"
    try:
        read = files.read_bytes(uri)
    except FileNotFoundError:
        raise MachineError("an artefact is not there", where=uri, found="no file", do=again) from None
    except OSError as error:
        raise MachineError("an artefact cannot be read", where=uri, found=error.strerror or str(error)) from error
    digest = hashlib.sha256(read).hexdigest()
    if digest != reference["artefact_digest"]:
        raise MachineError(
            "an artefact is not what was written",
            where=uri,
            found=f"{len(read)} bytes with SHA-256 {digest}",
            expected=f"SHA-256 {reference['artefact_digest']}",
            do=again,
        )
    return read


# --- removed --------------------------------------------------------------------------------------------------


def listed(store: str) -> pa.Table:
    """All files in the folders of artefacts: path below the store, folder (of their shard), size, modified_ns."""
    schema = pa.schema(
        [("path", pa.string()), ("folder", pa.string()), ("size", pa.int64()), ("modified_ns", pa.int64())]
    )
    root = files.join(store, FOLDER)
    if not files.exists(root):
        return schema.empty_table()
    pieces: list[pa.RecordBatch] = []
    for piece in files.list_pieces(root):
        path = pc.utf8_slice_codeunits(piece.column("uri"), len(store.rstrip("/")) + 1)
        folder = pc.replace_substring_regex(path, "/[^/]*$", "")
        pieces.append(pa.record_batch([path, folder, piece.column("size"), piece.column("modified_ns")], schema=schema))
    return pa.Table.from_batches(pieces, schema=schema)


def of_subjects(store: str, subjects: Collection[str]) -> list[str]:
    """Paths of these subjects' artefacts, whether a row names them or not; also of files cut short by a kill.

    Raises MachineError where a folder cannot be listed.
    """
    tags = tuple(subject_tag(subject) for subject in subjects)
    there = listed(store)
    closed = there.filter(pc.equal(there.column("modified_ns"), 0)).column("path").to_pylist()
    for path in closed if files.is_local(store) else ():  # a folder that may not be opened, a link that leads nowhere
        raise MachineError(
            "not all artefacts of the store could be looked into, so nobody knows whether the subject has any there",
            where=files.join(store, path),
            do="let this user read what is there, or move it out of the store, and run this again",
        )
    return [path for path in there.column("path").to_pylist() if _name(path).startswith(tags)]


def _name(path: str) -> str:
    """The name of a file, also of the draft that it is while it is written."""
    return path.rsplit("/", 1)[-1].removeprefix(".")


def remove(store: str, paths: Iterable[str]) -> None:
    """Remove files for good (their names do not come back after a power cut), and the folders that are empty then."""
    folders: set[str] = set()
    for path in paths:
        files.remove_file(files.join(store, path))
        folders.add(path.rpartition("/")[0])
    if not files.is_local(store):
        return
    for folder in sorted(folders):
        path = files.local_path(files.join(store, folder))
        with suppress(FileNotFoundError):  # removed by another upkeep at the same moment
            files.sync_folder(path)
            if next(path.iterdir(), None) is None:
                path.rmdir()
                files.sync_folder(path.parent)


# --- from a stage to the sink ---------------------------------------------------------------------------------


def beside(
    rows: pa.RecordBatch, samples: pa.RecordBatch, outputs: Collection[str], made: Iterable[Artefact]
) -> pa.RecordBatch:
    """Score rows of samples, sample by sample and for each the outputs in their order, with the column `artefact`
    (ARTEFACT_CONTENT). An artefact of another name has a row of its own, after those of its sample.

    Raises ValueError for two of one name and sample, and for a sample that is not there.
    """
    order = {name: number for number, name in enumerate(outputs)}
    contents: dict[int, dict[str, object]] = {}
    further: dict[tuple[int, str], dict[str, object]] = {}
    for artefact in made:
        column: dict[str, object] = {"media_type": artefact.media_type, "content": artefact.content}
        if not 0 <= artefact.sample < len(samples):
            raise ValueError(f"an artefact {artefact.output!r} of sample {artefact.sample} of {len(samples)}")
        number = order.get(artefact.output)
        key = (artefact.sample, artefact.output)
        if key in further or (number is not None and artefact.sample * len(order) + number in contents):
            raise ValueError(f"two artefacts {artefact.output!r} of one sample")
        if number is None:
            further[key] = column
        else:
            contents[artefact.sample * len(order) + number] = column
    columns = [contents.get(number) for number in range(len(rows))]
    whole = rows.append_column("artefact", pa.array(columns, ARTEFACT_CONTENT))
    if not further:
        return whole
    numbers = pa.array([sample for sample, _ in further])
    values = {name: samples.column(name).take(numbers) for name in rows.schema.names if name in samples.schema.names}
    values |= {
        "output": pa.array([output for _, output in further]),
        "artefact": pa.array(further.values(), ARTEFACT_CONTENT),
    }
    without = {"reason", "detail", "value"}
    arrays = [
        values[field.name].cast(field.type)
        if field.name in values and field.name not in without
        else pa.nulls(len(further), field.type)
        for field in whole.schema
    ]
    extra = pa.RecordBatch.from_arrays(arrays, schema=whole.schema)
    of_sample = np.concatenate([np.repeat(np.arange(len(samples)), len(order)), numbers.to_numpy()])
    return pa.concat_batches([whole, extra]).take(pa.array(np.argsort(of_sample, kind="stable")))
