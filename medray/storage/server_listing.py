"""The listing of an archive on a DICOMweb server, against the last one: which instances came, went or changed.

A server tells no times. So a study is looked into again when its numbers of series and instances differ from those of the last
listing, when an Orthanc says that one of its instances was written, and every study when the last full check is too long ago.
The listing begins with a row of the server itself, which remembers: its size is the number of Orthanc's last change, its time
that of the last full check.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from medray.errors import ArchiveGone
from medray.storage import dicomweb, http
from medray.storage.dicomweb import Counts, Place
from medray.storage.orthanc import Orthanc, Stored, is_same_file

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa

Row = tuple[str, int, int]
"""uri, size, modified_ns"""
DAY_NS = 86_400 * 10**9
_PARTS = r"^(?P<study>.*/studies/[^/]+)/series/(?P<series>[^/]+)/instances/"


def listed(
    root: str, earlier: Callable[[], Iterable[pa.RecordBatch]] | None, full_check_days: float
) -> Iterator[tuple[pa.RecordBatch, bool]]:
    """(files, whether they may be of other content although size and time are as they were) of an archive on a server.

    Raises ArchiveError where the server does not answer: nothing is taken for gone then.
    """
    place = dicomweb.place_of(root)
    try:
        yield from _Listing(place, earlier or tuple, full_check_days).pieces()
    except OSError as error:
        raise ArchiveGone(
            "the DICOMweb server does not give its list",
            where=place.uri,
            found=error.strerror or str(error),
            expected="answers to QIDO-RS searches",
            do=f"see whether it runs; for a user and password set {http.USER} and {http.PASSWORD}, or {http.TOKEN}",
        ) from None


@dataclass
class _Before:
    """What the last listing has of the server."""

    change: int = 0
    full_check_ns: int = 0
    known: bool = False
    studies: dict[str, Counts] = field(default_factory=dict[str, Counts])


class _Listing:
    """One listing; `pieces` gives it."""

    def __init__(self, place: Place, earlier: Callable[[], Iterable[pa.RecordBatch]], full_check_days: float) -> None:
        self.place, self.earlier = place, earlier
        self.now_ns = time.time_ns()
        self.before = self._remembered()
        self.orthanc = Orthanc.beside(place.url)
        self.change = self.orthanc.last_change() if self.orthanc else 0  # asked first: what comes now is seen next time
        self.studies = self._studies_now()
        self.full = (
            not self.before.known
            or self.now_ns - self.before.full_check_ns >= full_check_days * DAY_NS
            or self.change < self.before.change
        )
        touched = self.orthanc.touched_studies(self.before.change) if self.orthanc and not self.full else set[str]()
        self.full = self.full or touched is None
        known = self.before.studies
        self.same = {
            study
            for study, counts in self.studies.items()
            if not self.full and study not in (touched or ()) and known.get(study) == counts
        }

    def pieces(self) -> Iterator[tuple[pa.RecordBatch, bool]]:
        checked_ns = self.now_ns if self.full else self.before.full_check_ns
        yield _batch([(self.place.uri, self.change, checked_ns)]), False
        for rows, _ in self._earlier_rows(self.same):
            yield rows, False
        waiting = iter(sorted(self.studies.keys() - self.same))
        with ThreadPoolExecutor(http.CONNECTIONS) as asking:
            while some := list(islice(waiting, 16 * http.CONNECTIONS)):
                old: dict[str, dict[str, Row]] = {study: {} for study in some}
                for rows, studies in self._earlier_rows(set(some)):
                    for study, row in zip(studies, _rows(rows), strict=True):
                        old[study][row[0]] = row
                for rows in asking.map(self._of_study, some, old.values()):
                    yield _batch(rows), self.full and self.orthanc is None

    def _of_study(self, study: str, old: dict[str, Row]) -> list[Row]:
        """The instances of a study: those of the last listing as they were there, unless another file is stored now."""
        try:
            uris = list(dicomweb.instances(self.place, study))
        except FileNotFoundError:  # removed since the studies were listed
            uris = []
        uris += [uri for uri in old.keys() - set(uris) if dicomweb.is_there(uri)]  # a page that moved hides some
        files = self.orthanc.stored(study, self.now_ns) if self.orthanc and uris else dict[str, Stored]()
        rows = [self._row(uri, old.get(uri), files.get(uri.rpartition("/")[2])) for uri in sorted(uris)]
        return rows if len(rows) >= self._counted(study, len(rows)) else [*rows, (self._study_uri(study), 0, 0)]

    def _counted(self, study: str, found: int) -> int:
        """How many instances the server counts in a study; asked again where fewer were found, which may just have gone."""
        counted = self.studies[study].instances or 0
        if found < counted:
            counted = dict(dicomweb.studies(self.place, study)).get(study, Counts(0, 0)).instances or 0
        return counted

    def _study_uri(self, study: str) -> str:
        """Stands for the instances of a study that the server counts and does not list: an entry that fails."""
        return f"{self.place.uri}/studies/{study}"

    def _row(self, uri: str, old: Row | None, stored: Stored | None) -> Row:
        if stored is None:
            return old or (uri, 0, self.now_ns // 10**9 * 10**9)
        if old is not None and old[1] == stored.size and is_same_file(old[2], stored.modified_ns):
            return old
        return uri, stored.size, stored.modified_ns

    def _studies_now(self) -> dict[str, Counts]:
        """Studies of the archive. One of the last listing that no page has is asked for by itself before it is taken for gone."""
        studies = dict(dicomweb.studies(self.place))
        for study in self.before.studies.keys() - studies.keys():
            studies |= dict(dicomweb.studies(self.place, study))
        return studies

    # --- the last listing

    def _remembered(self) -> _Before:
        before, instances, series = _Before(), dict[str, int](), dict[str, set[str]]()
        for batch in self.earlier():
            for uri, size, modified_ns in _rows(_equal(batch, self.place.uri)):
                before.change, before.full_check_ns, before.known = size, modified_ns, uri == self.place.uri
        for _, studies, of_series in self._parsed():
            for study, one_series in zip(studies, of_series, strict=True):
                instances[study] = instances.get(study, 0) + 1
                series.setdefault(study, set()).add(one_series)
        before.studies = {study: Counts(len(series[study]), count) for study, count in instances.items()}
        return before

    def _earlier_rows(self, studies: set[str]) -> Iterator[tuple[pa.RecordBatch, list[str]]]:
        """(rows, the study of each) of these studies in the last listing."""
        for rows, of_study, _ in self._parsed() if studies else ():
            mask = [study in studies for study in of_study]
            if any(mask):
                import pyarrow as pa

                yield rows.filter(pa.array(mask)), [study for study in of_study if study in studies]

    def _parsed(self) -> Iterator[tuple[pa.RecordBatch, list[str], list[str]]]:
        """(rows, study UID, series UID of each) of the instances in the last listing."""
        import pyarrow.compute as pc

        start = f"{self.place.uri}/studies/"
        for batch in self.earlier():
            rows = batch.select(["uri", "size", "modified_ns"])
            here = pc.and_(
                pc.starts_with(rows.column("uri"), start), pc.match_substring(rows.column("uri"), "/instances/")
            )
            rows = rows.filter(here)
            parts = pc.extract_regex(rows.column("uri"), pattern=_PARTS)
            studies = pc.utf8_slice_codeunits(pc.struct_field(parts, "study"), len(start), 2**31 - 1)
            yield rows, studies.to_pylist(), pc.struct_field(parts, "series").to_pylist()


def _equal(batch: pa.RecordBatch, uri: str) -> pa.RecordBatch:
    import pyarrow.compute as pc

    return batch.select(["uri", "size", "modified_ns"]).filter(pc.equal(batch.column("uri"), uri))


def _rows(batch: pa.RecordBatch) -> Iterator[Row]:
    yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _batch(rows: list[Row]) -> pa.RecordBatch:
    import pyarrow as pa

    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    kinds = (("uri", pa.string()), ("size", pa.int64()), ("modified_ns", pa.int64()))
    return pa.record_batch(
        [pa.array(column, kind) for column, (_, kind) in zip(columns, kinds, strict=True)], [name for name, _ in kinds]
    )
