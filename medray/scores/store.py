"""ScoreStore: the face of the score table. Its log is in `log.py`, what is read in `readings.py`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal, Unpack, overload

import pyarrow as pa

from medray.errors import UserError
from medray.scores import artefacts, audit, copying, history, upkeep
from medray.scores.log import ScoreLog
from medray.scores.readings import Readings
from medray.scores.sink import ScoreSink
from medray.scores.table import SCORES, Claim
from medray.storage import delta, files, modes

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs]
    import polars as pl


class ScoreStore(Readings, ScoreLog):
    """An opened table of scores. `open` is the way in."""

    @overload
    def current(self, bundle_id: str | None = None, to: Literal["arrow"] = "arrow") -> pa.Table: ...
    @overload
    def current(self, bundle_id: str | None = None, *, to: Literal["pandas"]) -> pd.DataFrame: ...
    @overload
    def current(self, bundle_id: str | None = None, *, to: Literal["polars"]) -> pl.DataFrame: ...

    def current(
        self, bundle_id: str | None = None, to: Literal["arrow", "pandas", "polars"] = "arrow"
    ) -> pa.Table | pd.DataFrame | pl.DataFrame:
        """The current rows (SCORES; docs/score-table.md) of one bundle, or of all, ordered by bundle, entry, sample and
        output: each entry's latest attempt, without entries that are retired.

        All of them in memory, as an Arrow table, or a DataFrame of pandas or polars. Raises UserError where polars is not
        installed.
        """
        bundles = sorted(self.summary()["bundles"]) if bundle_id is None else [bundle_id]
        table = pa.concat_tables([SCORES.empty_table(), *map(self.scores, bundles)])
        if to == "arrow":
            return table
        if to == "pandas":
            return table.to_pandas()
        try:
            import polars as pl
        except ModuleNotFoundError:
            raise UserError("polars is not installed", do='pip install polars, or take to="pandas"') from None
        return pl.DataFrame(table)

    def sink(self, claim: Claim) -> ScoreSink:
        """Where the flow of a claimed run writes. Its rows are later than all before it, by the order of claims."""
        if files.is_local(self.uri):
            folder = files.local_path(self.uri)
            with delta.storing(self.uri):
                modes.make_below(folder / f"bundle_id={claim.bundle_id}")
                files.sync_folder(folder)
        return ScoreSink(self.uri, claim, self, not_before=self.next_stamp(claim.bundle_id))

    def artefact(self, row: Mapping[str, object]) -> bytes:
        """The content of a row's artefact; of the row the columns `artefact` and `artefact_digest` are looked at.

        Raises MachineError where the file is missing, or is not what was written; StoreError where the row has none.
        """
        return artefacts.content(self.uri, row)

    # -- audit and upkeep

    def begin_run(self, what: str, run_id: str, bundle_id: str | None = None) -> audit.BegunRun:
        """Note who begins what, when and with which code. `end_run` completes it; a killed run stays "running"."""
        return audit.begin(self.uri, what, run_id, bundle_id)

    def end_run(self, run: audit.BegunRun, state: str = "done", **counts: Unpack[audit.RunCounts]) -> None:
        """Note how it ended: `state` "done", "stopped", "fenced" or "failed", and what it did."""
        audit.end(self.uri, run, state, counts)

    def runs(self) -> list[audit.RunRow]:
        """The audit table, newest first: one row per run."""
        return audit.read(self.uri)

    def keys(self) -> set[str]:
        """Marks of the keys of pseudonyms that runs scored under, as far as it was noted (`archive.pseudonyms.key_mark`)."""
        return {row["key"] for row in self.runs() if row["key"] is not None}

    def forget_runs(self, until: datetime) -> int:
        """Remove runs that began before `until` from the audit table, but scoring runs that may have written rows; how many."""
        return audit.remove_before(self.uri, until)

    def merge(self, claim: Claim) -> int:
        """Merge files of the claim's bundle where many are of like size: a commit costs what the number of live files
        is. Returns how many were merged. Raises Fenced or MachineError."""
        return upkeep.merge(self, claim)

    def compact(self) -> upkeep.Compacted:
        """Merge small files of each bundle, and those of the audit table, and write a checkpoint of the log.

        Scores do not change, and a run that is scoring goes on. Raises Fenced where other upkeep began meanwhile.
        """
        audit.merge(self.uri)
        return upkeep.compact(self)

    def vacuum(self, older_than: timedelta = upkeep.KEPT) -> upkeep.Vacuumed:
        """Remove files that the newest version does not name, artefacts too.

        Those that a commit replaced more than `older_than` ago, and those of killed runs, when they are older than
        `older_than` and than an hour: a run that is scoring loses nothing. Earlier versions can then not be read.
        """
        return upkeep.vacuum(self, older_than)

    def forget(self, subjects: Collection[str]) -> upkeep.Forgotten:
        """Remove every row of these pseudonyms from every file below the store, and their artefacts.

        A file that a kill cut short may hold anyone: it is removed, too (`unreadable` of the `files`).

        Runs that are scoring into the store are fenced: they could commit rows of the subject that they hold.
        """
        return upkeep.forget(self, subjects)

    def copy(self, to: str, readers: files.Readers = "owner") -> copying.Copied:
        """Copy the store as it is now to the new or empty place `to`; runs may score into it meanwhile.

        Earlier versions cannot be read there. Raises StoreError where something is at `to`, MachineError for a fault of storage.
        """
        return copying.copy(self, files.absolute(to), readers)

    def history(self) -> list[history.HistoryRow]:
        """Who wrote to the store and when, newest first."""
        self._table.update_incremental()
        return history.history(self._table.history(), self.runs())
