"""What `medray describe` tells of commands beside their options: how they are written, what they read, write and tell.

A template is a command line with names of THINGS in braces. Tests parse each as the command line does.
"""

from __future__ import annotations

from dataclasses import dataclass

THINGS = {
    "archive": "data: a folder, a file, a zip or tar, a DICOMDIR, a bucket or a DICOMweb server; never written to",
    "modality": "a kind of data: imaging, genomics, ehr, or one that a plug-in brings",
    "train_run": "a run file of type TrainRun",
    "evaluate_run": "a run file of type EvaluateRun",
    "score_run": "a run file of type ScoreRun",
    "nightly_run": "a run file of type NightlyRun",
    "convert_run": "a run file of type ConvertRun",
    "new_run_file": "the path of a new run file",
    "run_type": "a verb that takes a run file, as keys of run_files name them under `verbs`",
    "manifest": "the index of an archive, below the work folder of a run file",
    "shards": "decoded samples, below the work folder of a run file",
    "bundle": "a folder with a trained model; where a command writes it, the run file names it under `bundle`",
    "new_bundle": "the path of a new bundle",
    "report": "metrics, predictions and an HTML page of an evaluation, below the work folder of a run file",
    "store": "a score table (Delta Lake); where a command writes it, the run file names it under `store`",
    "summary": "the JSON and HTML summary of a night",
    "subject": "a subject as the archive names it, or its keyed id; - reads it from stdin, which keeps it out of the shell's history",
    "new_csv": "the path of a new file NAME.csv; NAME.failed.csv and NAME.about.csv stand beside it",
    "new_xlsx": "the path of a new Excel workbook NAME.xlsx",
    "new_onnx": "the path of a new model file NAME.onnx",
    "new_keras": "the path of a new model file NAME.keras",
    "vcf": "a VCF file that was scored",
    "new_vcf": "the path of a new VCF file",
    "new_reports": "a folder of new DICOM structured reports",
    "model_file": "a model of another library: .onnx, .keras, .h5, .safetensors, .pt, or the folder of a MONAI bundle",
    "new_png": "the path of a new picture NAME.png",
    "new_folder": "the path of a new folder",
    "new_store": "the place of a new store: a folder or a bucket",
    "meds": "a MEDS dataset; the run file names it under `out`",
    "data_file": "a file or folder of an archive",
    "job": "the id of a job on a cluster",
    "installation": "medray as it is installed here",
    "cluster": "a Ray cluster and its job server (--address)",
}
"""What commands read and write, and what stands in the braces of templates."""


@dataclass(frozen=True)
class Form:
    """One use of a command."""

    template: str
    what: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    tells: tuple[str, ...] = ()
    """Keys of the JSON answer to look at first."""


FORMS: tuple[Form, ...] = (
    Form(
        "medray init {modality} {archive} --output {new_run_file}",
        "look at an archive and write a commented run file for it; what it cannot know is a TODO",
        ("archive",), ("new_run_file",), ("run_file", "undecided", "next"),
    ),
    Form("medray schema {run_type}", "JSON Schema of a run file", ("installation",), (), ("properties",)),
    Form(
        "medray inspect {data_file}", "what medray sees in a file or folder of data", ("archive",), (), ("facts", "tables")
    ),
    Form(
        "medray inspect {data_file} --montage {new_png}", "draw the images of a file or folder", ("archive",), ("new_png",),
        ("facts",),
    ),
    Form("medray inspect {bundle}", "what a trained model is: outputs, thresholds, metrics", ("bundle",), (), ("facts",)),
    Form(
        "medray index {train_run}", "list an archive: entries, subjects, what is new or cannot be read",
        ("archive", "train_run"), ("manifest",), ("entries", "failed", "by_reason", "new", "changed"),
    ),
    Form(
        "medray index {train_run} --failed", "list every file that cannot be read, and why", ("archive", "train_run"),
        ("manifest",), ("failed_entries",),
    ),
    Form(
        "medray prepare {train_run}", "decode an archive into shards, without training", ("archive", "train_run"),
        ("manifest", "shards"), ("samples", "splits"),
    ),
    Form(
        "medray train {train_run}", "train a model; the same command again goes on where a killed one stopped",
        ("archive", "train_run"), ("manifest", "shards", "bundle"), ("bundle_id", "metrics"),
    ),
    Form(
        "medray evaluate {train_run}", "metrics of a bundle on its own test split", ("archive", "train_run", "bundle"),
        ("manifest", "shards", "report"), ("metrics", "intervals", "report"),
    ),
    Form(
        "medray evaluate {evaluate_run}", "metrics of a bundle on another archive; nothing is fitted there",
        ("archive", "evaluate_run", "bundle"), ("manifest", "shards", "report"), ("metrics", "intervals", "report"),
    ),
    Form(
        "medray score {score_run}", "score what this bundle has not scored yet",
        ("archive", "score_run", "bundle"), ("manifest", "store"), ("pending", "scored", "failed", "left"),
    ),
    Form(
        "medray score {score_run} --retry all", "score, and try failed entries again",
        ("archive", "score_run", "bundle"), ("manifest", "store"), ("pending", "scored", "failed", "left"),
    ),
    Form(
        "medray nightly {nightly_run}", "index, score with all bundles, tidy the store, write the summary of the night",
        ("archive", "nightly_run", "bundle"), ("manifest", "store", "summary"), ("scored", "left", "level", "summary"),
    ),
    Form("medray alert test {nightly_run}", "send a trial alert to whom [alert] of a night names", ("nightly_run",), (),
         ("alerts",)),
    Form("medray alert check {nightly_run} --within 26h", "alert where there was no night of late; for another scheduler",
         ("nightly_run", "store"), (), ("missing", "ended", "alerts")),
    Form("medray status {store}", "what a store holds: counts by bundle, and by reason of failure", ("store",), (), ("bundles",)),
    Form("medray history {store}", "who wrote to a store and when", ("store",), (), ("runs",)),
    Form("medray copy {store} {new_store}", "copy a store as it is now: a backup, a move, or a backup put back", ("store",),
         ("new_store",), ("copy_of_it", "files", "bytes")),
    Form("medray vacuum {store}", "merge small files of a store, remove those that nobody needs", ("store",), ("store",),
         ("files_removed",)),
    Form("medray forget {store} {subject}", "remove a subject from a store for good", ("store", "subject"), ("store",), ("rows",)),
    Form("medray export csv {store} {new_csv}", "current scores as CSV", ("store",), ("new_csv",), ("files", "rows")),
    Form(
        "medray export csv {store} {new_csv} --run {score_run}", "the same with the models' names and thresholds",
        ("store", "score_run", "bundle"), ("new_csv",), ("files", "rows", "models"),
    ),
    Form("medray export xlsx {store} {new_xlsx}", "current scores as an Excel workbook", ("store",), ("new_xlsx",),
         ("files", "rows")),
    Form("medray export vcf {store} {vcf} {new_vcf}", "a scored VCF with the scores in INFO", ("store", "vcf"), ("new_vcf",),
         ("out", "records", "scored")),
    Form(
        "medray export dicom-sr {store} {score_run} {new_reports}", "a DICOM structured report for each scored image or series",
        ("store", "score_run", "bundle", "archive"), ("new_reports",), ("out", "records", "scored", "refused"),
    ),
    Form("medray export onnx {bundle} {new_onnx}", "the network of a bundle as an ONNX file", ("bundle",), ("new_onnx",),
         ("out", "inputs", "outputs")),
    Form("medray export keras {bundle} {new_keras}", "the network of a bundle that came from Keras as a Keras file",
         ("bundle",), ("new_keras",), ("out", "inputs", "outputs")),
    Form(
        "medray import {model_file} --like {train_run} --as {new_bundle}",
        "make a bundle of a model of another library, read by a run file's modality and objective",
        ("model_file", "train_run"), ("new_bundle",), ("bundle", "bundle_id", "compared"),
    ),
    Form("medray demo {modality} --out {new_folder}", "the whole way on data that comes with medray", ("installation",),
         ("new_folder",)),
    Form("medray ehr to-meds {convert_run}", "FHIR or CSV to a MEDS dataset", ("archive", "convert_run"), ("meds",),
         ("subjects", "events", "dropped")),
    Form("medray plugins", "kinds of data, models, objectives, exports and sources, and who brings them", ("installation",), (),
         ("plugins",)),
    Form("medray doctor", "whether decoders of images give the right pixels here", ("installation",), (), ("decoders",)),
    Form("medray describe", "what you are reading", ("installation",), (), ("verbs", "run_files")),
    Form("medray submit score {score_run}", "run a verb on a cluster, follow it, end with its exit code",
         ("archive", "score_run", "bundle", "cluster"), ("manifest", "store")),
    Form("medray jobs list", "jobs of a cluster", ("cluster",), (), ("jobs",)),
    Form("medray jobs status {job}", "one job: since when, how it ended", ("cluster", "job"), (), ("status", "exit_code")),
    Form("medray jobs logs {job}", "what a job has printed", ("cluster", "job"), ()),
    Form("medray jobs stop {job}", "stop a job: what it has scored is committed", ("cluster", "job"), ("cluster",), ("status",)),
)  # fmt: skip
"""Every command has one at least."""

FORMATS: tuple[tuple[str, str, str], ...] = (
    ("imaging", "DICOM", "by content; images, series as volumes, enhanced files, mosaics"),
    ("imaging", "NIfTI-1 and -2", ".nii, .nii.gz"),
    ("imaging", "PNG, JPEG, TIFF, BMP", "by content"),
    ("imaging", "MedMNIST .npz, MNIST idx", "each row an image"),
    ("genomics", "FASTA, FASTQ, GenBank", "plain, gzip, bgzip; each record a sequence"),
    ("genomics", "tables of sequences", ".csv, .tsv, .parquet; each row a sequence"),
    ("genomics", "VCF 4", "plain, gzip, bgzip, over a FASTA reference; each record an entry"),
    ("ehr", "MEDS 0.4", "Parquet; each subject at each prediction time an entry"),
    ("ehr", "FHIR R4, long CSV", "converted by medray ehr to-meds"),
    ("any", "zip, tar, tar.gz, DICOMDIR, DICOMweb", "what lies in it is read as its files are"),
)
"""(modality, format, how it is told and what becomes an entry)."""
