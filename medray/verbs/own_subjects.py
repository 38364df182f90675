"""Subjects' own ids, for those who have the archive and its key: read from the archive once more, never kept."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from medray.archive.manifest import Manifest, listing_of, parts_of
from medray.archive.pseudonyms import key_file, pseudonym, pseudonym_key
from medray.config.runs import ScoreRun
from medray.errors import ArchiveError, UserError
from medray.modalities.registry import ModalitySpec
from medray.storage.queries import database, query
from medray.verbs import stages

OWN_IDS = pa.schema([("subject_id", pa.string()), ("own_subject_id", pa.string())])


def own_ids(run: ScoreRun, spec: ModalitySpec, manifest: Manifest) -> pa.Table:
    """(subject_id, own_subject_id) of the persons whom the index of this run knows: one file of each is read again.

    A keyed id cannot be turned back; it is compared with what the archive's files say under the site's key. Raises
    ArchiveError where there is no such key, UserError where the archive names no subjects or none that fits.
    """
    place = key_file(run.pseudonym_key)
    if not place.is_file():
        raise ArchiveError(
            "there is no key here, so no subject can be told by its keyed id",
            where=str(place),
            do="run this at the site whose key the scores were made under, or name it: pseudonym_key in the run file",
        )
    if manifest.root != run.root:
        raise UserError(
            "the index is of another archive than the run file names",
            where=manifest.uri,
            do="score it first (medray score)",
        )
    key = pseudonym_key(str(place))
    scan = stages.Scan(spec, run.root, key)
    found: dict[str, str] = {}
    persons = 0
    for batch in _files(manifest):
        for part, _ in scan.parts(batch):
            if part.subject is not None and part.person:
                persons += 1
                found[pseudonym(part.subject, key)] = part.subject
    if not persons:
        raise UserError(
            "the files of the archive name no subjects, or cannot be read now: there are no own ids to write",
            where=run.root,
            do="leave out --with-ids; see modality.subject_pattern where paths name subjects",
        )
    return pa.table({"subject_id": list(found), "own_subject_id": list(found.values())}, schema=OWN_IDS)


def _files(manifest: Manifest) -> list[pa.RecordBatch]:
    """FILES of which all subjects of the index are: of each subject the first file by name."""
    sql = """with first_files as (select min(uri) as uri from parts where subject_id is not null and reason is null
                                  group by subject_id)
             select uri, size, modified_ns from listing semi join first_files using (uri) order by uri"""
    listing = listing_of(manifest.uri, manifest.state).scan(stages.FILES.names)
    parts = parts_of(manifest.uri, manifest.state).scan(["uri", "subject_id", "reason"])
    with database() as db, query(db, sql, listing=listing, parts=parts) as rows:
        return [batch for batch in rows if pc.count(batch.column("uri")).as_py()]
