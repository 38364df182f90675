"""Codes known by reference only: of a MedicationRequest's Medication, wherever in the archive it is."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from medray.modalities.ehr.convert.buckets import read_all
from medray.modalities.ehr.convert.versions import without_lost

LOOKUPS = pa.schema(
    [
        ("ref", pa.string()),
        ("server", pa.int64()),
        ("code", pa.string()),
        ("unit", pa.int32()),
        ("resource", pa.int64()),
    ]
)


def looked_up(rows: pa.Table, lookups: Sequence[str], lost: Sequence[str]) -> pa.Table:
    """`rows` with `code` filled in where only `ref` (on the server `key_server`) names it.

    `lookups`: files of LOOKUPS; `lost`: files of versions.LOST. Where several servers have the same reference, it names
    what it names on its own server.
    """
    asked = rows.filter(rows.column("code").is_null())
    wanted = pc.unique(asked.column("ref"))
    if len(wanted) == 0 or not lookups:
        return rows
    described = pa.concat_tables(
        each.filter(pc.is_in(each.column("ref"), wanted)) for each in (read_all([uri], LOOKUPS) for uri in lookups)
    )
    described = without_lost(described, lost).sort_by([("unit", "ascending"), ("code", "ascending")])
    asked = asked.select(["ref", "key_server"]).rename_columns(["ref", "server"])
    several = _several(pa.concat_tables([described.select(["ref", "server"]), asked]))
    names = _name(described.column("ref"), described.column("server"), several)
    row = pc.index_in(_name(rows.column("ref"), rows.column("key_server"), several), names)
    codes = described.column("code").combine_chunks().take(row)
    return rows.set_column(rows.schema.get_field_index("code"), "code", pc.coalesce(rows.column("code"), codes))


def _several(named: pa.Table) -> pa.Array:
    """References that more than one server has. `named`: (ref, server), 0 where none is named."""
    pairs = named.filter(pc.not_equal(named.column("server").fill_null(0), 0)).group_by(["ref", "server"]).aggregate([])
    counts = pairs.group_by("ref").aggregate([([], "count_all")])
    return counts.filter(pc.greater(counts.column("count_all"), 1)).column("ref").combine_chunks()


def _name(ref: pa.ChunkedArray, server: pa.ChunkedArray, several: pa.Array) -> pa.Array:
    """Unique name of each reference: with its server where several servers have it."""
    whole = pc.binary_join_element_wise(ref, server.fill_null(0).cast(pa.string()), "@")
    return pc.if_else(pc.is_in(ref, several), whole, ref).combine_chunks()
