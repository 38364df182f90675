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
    csv_head.py, csv_times.py, csv_values.py   the names of its columns; its cells to times, numbers and texts
    datasets/labels.py           a CSV of outcomes to a label table
    flow.py             the stages and sinks of the flows, over files of buckets.py
    versions.py         which version of a resource is the newest, and what was deleted
    links.py            ids of several servers, linked patient records
    lookups.py          codes that only a reference says
    days.py             dates without a time among the times of their day
    dataset.py          what lies beside the events: codes, splits, labels, the report; the dataset appears whole

Rules that decide a number

- A resource (or CSV row) is converted, or dropped for one of `events.DROPS`: read = converted + dropped, per type.
- Subjects are keyed 63-bit integers: HMAC-SHA256 of the source's identifier, to the letter but for blanks around it; 64
  other bits of it tell two identifiers of one number apart, which stops the run. No table of them is written. Kept ids
  (`keep_ids`) are those that are written as a 64-bit integer is; 007 and 1_23 are none.
- Versions of a FHIR resource are one, the newest; a deletion and a retraction (entered-in-error) take it away.
- Times are UTC. A FHIR time says its zone; one that says none is dropped, unless `time_zone` is given. An event stands
  where it was known (recorded, issued); a date, a month or a year at the end of its last day: nothing is known early
  (`time = "onset"`, `dates = "start"`: where it happened, at the start of its first day). A birth is always the start.
- Something that happened at a time nobody says is dropped, because as a static fact it would tell of the future
  (`untimed = "static"` keeps it). Facts of a patient (gender, race, ethnicity) are static.
- A CSV's cell is a time or a number only where it can be read as nothing else: 30 February, the year 20 under %Y and 7,4
  without `decimal = ","` are faults and counted.
- A label stands neither at or after a death, nor before the first event; first and last leave out birth and death.
- No free text: text values are left out, and so is the display of a coding without a system. Their number is told.
"""
