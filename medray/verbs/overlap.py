"""Whom a bundle has seen: hashes of the pseudonyms of its train and validation subjects, in a file beside its weights.

subjects.u64: little-endian uint64. First the hash of a fixed text under the `pseudonym_key` of the training, which tells
whether two archives can be compared, then those of the subjects, ascending.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medray.archive.pseudonyms import own_subject, pseudonym
from medray.datasets.shards import ShardSet, read_samples
from medray.errors import BundleError
from medray.learning.bundles import SEEN
from medray.storage import files

_SPLITS = ("train", "validation")
_KEY_CHECK = "medray: which key"


def seen_by(folder: str, key: bytes) -> bytes:
    """The content of subjects.u64: subjects of the train and validation shards in `folder`."""
    subjects: set[str] = set()
    for split in _SPLITS:
        for shard in ShardSet.open(folder).split(split):
            subjects.update(_known(pa.Table.from_batches([read_samples(shard.uri, ["subject_id", "entry_id"])])))
    numbers = [_number(pseudonym(_KEY_CHECK, key)), *sorted(map(_number, subjects))]
    return np.array(numbers, "<u8").tobytes()


def seen(uri: str, rows: pa.Table, key: bytes) -> np.ndarray | None:
    """(N,) bool: rows of entries (subject_id, entry_id) whose subject the bundle at `uri` was trained or validated on.

    None: not known, because the bundle is from before this was kept, or its subjects were hashed under another key. Raises
    BundleError for a file that is cut short or spoilt: without some of its subjects, an evaluation would flatter the model.
    """
    where = files.join(uri, SEEN)
    try:
        content = files.read_bytes(where)
    except FileNotFoundError:
        return None
    hashes = np.frombuffer(content[: len(content) // 8 * 8], "<u8")
    if len(content) % 8 or not len(hashes) or (hashes[2:] <= hashes[1:-1]).any():
        raise BundleError(
            "the file that says whom the bundle has seen is spoilt",
            where=where,
            found=f"{len(content)} bytes, which are no numbers in ascending order",
            do="copy the bundle again from where it was trained, or remove the file: then nobody knows",
        )
    if hashes[0] != _number(pseudonym(_KEY_CHECK, key)):
        return None
    words = rows.column("subject_id").combine_chunks().dictionary_encode()
    known = _known(rows)
    hits = np.array([word in known and _number(word) in hashes[1:] for word in words.dictionary.to_pylist()], bool)
    return hits[words.indices.to_numpy()]


def _known(rows: pa.Table) -> set[str]:
    """Subjects of the rows but those that are their entry itself: an equal path elsewhere is another patient."""
    own = pa.array([own_subject(name) for name in rows.column("entry_id").to_pylist()])
    named = pc.not_equal(rows.column("subject_id").combine_chunks(), own)
    return set(rows.column("subject_id").filter(named).to_pylist())


def _number(subject: str) -> int:
    return int.from_bytes(hashlib.sha256(f"medray seen\0{subject}".encode()).digest()[:8], "little")
