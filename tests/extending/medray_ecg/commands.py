"""`medray ecg`, beside the verbs that every modality has; and `medray export ecg-csv`."""

import pyarrow.compute as pc
import pyarrow.csv
import typer

from medray_ecg import read_header

ecg = typer.Typer(help="12-lead ECGs.", callback=lambda: None)


@ecg.command()
def leads(header: typer.FileBinaryRead) -> None:
    """The names of the leads of a NAME.hea, one a line."""
    typer.echo("\n".join(read_header(header.read())[2]))


def export_csv(store, bundle_id, source, out):
    """The scores of one recording, NAME.hea, as a table: entry_id, output, value."""
    kept = store.scores(bundle_id).filter(pc.field("entry_id") == source.rpartition("/")[2].removesuffix(".hea"))
    pyarrow.csv.write_csv(kept.select(["entry_id", "output", "value"]), out)
    return {"out": out, "records": 1, "scored": len(kept), "failed": 0, "not_eligible": 0, "not_scored": 0}
