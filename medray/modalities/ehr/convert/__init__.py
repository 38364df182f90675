"""Health records of other formats to events: FHIR R4 and long CSV to MEDS 0.4.

    settings.py         what a run file says of the source
    members.py          files, gz, tar and zip as streams
    events.py           the rows that readers give: events, counts, look-ups, failed files
    times.py, codes.py  moments to UTC microseconds; codings to SYSTEM//CODE
    fhir_resources.py   one FHIR resource to its events (pure), with
        fhir_status.py      which statuses and modifiers give events
        fhir_reading.py     where events stand in time
        fhir_values.py      value[x] of an Observation
    fhir_references.py  what a reference names, and on which server
    fhir_json.py        byte order marks, arrays, properties named twice
    fhir.py             NDJSON and Bundles to rows
    long_csv.py         long tables with a column map to rows
    flow.py             the stages and sinks of the flows, over files of buckets.py
    versions.py         which version of a resource is the newest, and what was deleted
    links.py            ids of several servers, linked patient records
    lookups.py          codes that only a reference says
    days.py             dates without a time among the times of their day
    dataset.py          what lies beside the events: codes, splits, labels, the report; the dataset appears whole

Rules that decide a number

- A resource (or CSV row) is converted, or dropped for one of `events.DROPS`: read = converted + dropped, per type.
- Subjects are keyed 63-bit integers: HMAC-SHA256 of the source's identifier. No table of them is written.
- Versions of a FHIR resource are one, the newest; a deletion and a retraction (entered-in-error) take it away.
- Times are UTC. A FHIR time says its zone; one that says none is dropped, unless `time_zone` is given. An event stands
  where it was known (recorded, issued); a date, a month or a year at the end of its last day: nothing is known early
  (`time = "onset"`, `dates = "start"`: where it happened, at the start of its first day). A birth is always the start.
- Something that happened at a time nobody says is dropped, because as a static fact it would tell of the future
  (`untimed = "static"` keeps it). Facts of a patient (gender, race, ethnicity) are static.
- No free text: text values are left out, and so is the display of a coding without a system. Their number is told.
"""
