"""Health records of other formats to events: FHIR R4 and long CSV to MEDS 0.4.

    settings.py         what a run file says about the source
    members.py          files, gz, tar and zip as streams
    events.py           the rows that parsers give: events, counts, look-ups, failed files
    parsing.py          first flow: the source to rows, rows to buckets of subjects (buckets.py)
    fhir/               FHIR files to rows: parser.py, with
        resources.py        one resource to its events (pure)
        status.py           which statuses and modifiers give events
        reading.py          when an event is
        values.py           value[x] of an Observation
        times.py, codes.py  moments to UTC microseconds; codings to SYSTEM//CODE
        references.py       what a reference names, and on which server
        json.py             byte order marks, arrays, properties named twice
    long_csv/           long tables with a column map to rows: parser.py, with head.py (names of the columns),
                        times.py and values.py (cells to times, numbers and texts)
    versions.py         which version of a resource is the newest, and what was deleted
    links.py            ids of several servers, linked patient records
    arranging.py        last flow: buckets to the data files, with
        lookups.py          codes known by reference only
        days.py             dates without a time among the times of their day
        splits.py           the split of a subject
    labels.py           a CSV of outcomes to a label table
    dataset.py          what lies beside the events: codes, splits, the report; the dataset appears whole or not at all

Rules that decide a number

- A resource (or CSV row) is converted, or dropped for one of `events.DROPS`: read = converted + dropped, per type.
- Subjects are keyed 63-bit integers: HMAC-SHA256 of the source's identifier, exactly as written but for blanks around it;
  64 further bits reveal two identifiers with the same number, which stops the run. No table of them is written. With
  `keep_ids`, an identifier must be written exactly as a 64-bit integer is; 007 and 1_23 are not.
- Of the versions of a FHIR resource the newest counts; a deletion or a retraction (entered-in-error) removes it.
- Times are UTC. A FHIR time names its zone; one that names none is dropped, unless `time_zone` is given. An event is at
  the time it became known (recorded, issued); a date, a month or a year is the end of its last day, so that nothing is
  known early (`time = "onset"`, `dates = "start"`: when it happened, the start of its first day). A birth is always the
  start.
- Something that happened at an unknown time is dropped, because as a static fact it would reveal the future
  (`untimed = "static"` keeps it). Facts of a patient (gender, race, ethnicity) are static.
- A CSV cell is a time or a number only where it cannot be read in another way: 30 February, the year 20 under %Y and 7,4
  without `decimal = ","` are faults and counted.
- No label is at or after a death, or before the first event; first and last leave out birth and death.
- No free text: text values are left out, and so is the display of a coding without a system. They are counted.
"""
