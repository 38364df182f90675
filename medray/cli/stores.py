"""Commands on a score store: what it holds, its upkeep, and its scores for others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medray.cli.shared import DryRun, Json, act, errors, print_model, print_planned, print_seen

if TYPE_CHECKING:
    from medray.verbs.results import TableExportResult


def status(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A score store.")],
    json_: Json = False,
) -> None:
    """What a score store holds: how much is scored by which bundle, and what failed and why."""
    with errors():
        from medray.verbs.inspect import inspect_store

        seen = inspect_store(store)
        if json_:
            typer.echo(json.dumps(seen.facts))
        else:
            print_seen(seen)


def history(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A score store.")],
    json_: Json = False,
) -> None:
    """Who wrote to a score store and when, newest first: one row per run."""
    with errors():
        from medray.verbs.inspect import inspect_history

        seen = inspect_history(store)
        if json_:
            typer.echo(json.dumps(seen.facts))
        else:
            print_seen(seen)


def vacuum(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A score store.")],
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="AGE", help="12h, 7d, 2w: how long replaced files stay for readers.")
    ] = "7d",
    audit_older_than: Annotated[
        str | None,
        typer.Option(
            "--audit-older-than", metavar="AGE", help="Remove rows of the audit table of runs before that, too."
        ),
    ] = None,
    json_: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Merge small files of a score store and remove those that nobody needs. Scoring may go on meanwhile."""
    with errors():
        from medray.verbs.upkeep import vacuum as verb

        act(
            "vacuum",
            lambda at: verb(at[store], older_than, audit_older_than),
            json_,
            dry_run,
            folders=[store],
        )


def copy(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A score store.")],
    to: Annotated[str, typer.Argument(metavar="TO", help="A new or empty place: a folder, s3://, gs:// …")],
    json_: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Copy a score store as it is now, to back it up, to move it, or to put a backup back. Scoring may go on meanwhile."""
    with errors():
        from medray.verbs.upkeep import copy as verb
        from medray.verbs.upkeep import files_to_copy

        if dry_run:
            from medray.verbs.dry_run import DryRun as Planned

            held, then = {"files": files_to_copy(store, to)}, (f"a copy of the store in {to}",)
            print_planned(Planned(verb="copy", reads=(store,), held_back=held, then=then), json_)
            return
        print_model(verb(store, to), json_)


def forget(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A score store.")],
    subject: Annotated[
        str, typer.Argument(metavar="SUBJECT", help="As the archive names it, or its pseudonym; - reads it from stdin.")
    ],
    key: Annotated[
        str | None,
        typer.Option(
            "--pseudonym-key", metavar="FILE", help="The key its scores were made under. ~/.medray by default."
        ),
    ] = None,
    json_: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Remove a subject from every file of a score store, for good, and stop runs that are scoring into it."""
    with errors():
        from medray.verbs.upkeep import forget as verb

        name = typer.get_text_stream("stdin").readline().strip() if subject == "-" else subject
        act("forget", lambda at: verb(at[store], name, key), json_, dry_run, folders=[store])


def export(
    format: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT", help="csv, xlsx, vcf, dicom-sr, or one that a plug-in brings; keras, onnx: of a bundle."
        ),
    ],
    store: Annotated[str, typer.Argument(metavar="STORE", help="A score store; of keras and onnx a bundle.")],
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="The file that was scored; of dicom-sr the run file that scored it; of csv, xlsx, keras and onnx the new file.",
        ),
    ],
    out: Annotated[
        str | None,
        typer.Argument(
            metavar="OUT", help="The new file, compressed where its name says so; of dicom-sr a folder of new files."
        ),
    ] = None,
    bundle: Annotated[str | None, typer.Option("--bundle", help="Id of the bundle, or how it begins.")] = None,
    run_file: Annotated[
        Path | None,
        typer.Option("--run", metavar="RUN.toml", help="Of csv and xlsx: what scored it; names models and thresholds."),
    ] = None,
    with_ids: Annotated[
        bool, typer.Option("--with-ids", help="Of csv and xlsx: subjects' own ids too, from the archive of --run.")
    ] = False,
    logits: Annotated[bool, typer.Option("--logits", help="Of keras and onnx: without the last activation.")] = False,
    samples: Annotated[
        Path | None,
        typer.Option(
            "--samples",
            metavar="RUN.toml",
            help="Of keras and onnx: a run file, on samples of whose archive the new file is compared with torch; else seeded inputs. Not in a dry run.",
        ),
    ] = None,
    json_: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Scores for others: as tables (export csv STORE OUT.csv, export xlsx STORE OUT.xlsx); of vcf the file that was scored,
    with INFO fields; of dicom-sr a structured report for each image or series. Or the network of a bundle: export onnx
    BUNDLE OUT.onnx, export keras BUNDLE OUT.keras."""
    with errors():
        if format not in ("keras", "onnx") and (logits or samples is not None):
            raise typer.BadParameter("--logits and --samples are of export keras and export onnx")
        if format in ("csv", "xlsx"):
            from medray.verbs.export_table import export_table

            if out is not None:
                raise typer.BadParameter(f"medray export {format} takes a store and the new file")
            from medray.verbs.export_table import uris_of

            of_run, outs = None if run_file is None else str(run_file), uris_of(format, source)

            def write_tables(at: Mapping[str, str]) -> TableExportResult:
                return export_table(format, store, at[outs[-1]], bundle, run_file=of_run, with_ids=with_ids)

            act("export", write_tables, json_, dry_run, new_files=outs, reads=[store])
            return
        if run_file is not None or with_ids:
            raise typer.BadParameter("--run and --with-ids are of csv and xlsx")
        if format in ("keras", "onnx"):
            from medray.verbs.export_model import export_model

            if out is not None or bundle is not None:
                raise typer.BadParameter(f"medray export {format} takes a bundle and the new file")
            compared_on = None if dry_run else samples  # what an archive holds is listed in its work folder
            act(
                "export",
                lambda at: export_model(format, store, at[source], logits=logits, samples=compared_on),
                json_,
                dry_run,
                new_files=[source],
                reads=[store],
            )
            return
        if out is None:
            raise typer.BadParameter("Missing argument 'OUT'.")
        from medray.exports import OF_RUNS
        from medray.verbs.export import export as verb

        result = act(
            "export",
            lambda at: verb(format, store, source, at[out], bundle),
            json_,
            dry_run,
            folders=[out] if format in OF_RUNS else [],
            new_files=[] if format in OF_RUNS else [out],
            reads=[store, source],
        )
        if result is not None and result.code:
            raise typer.Exit(result.code)
