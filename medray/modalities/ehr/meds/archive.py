"""MedsArchive: what a worker caches of MEDS datasets: codes it has met, open files, label tables, splits."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from medray.errors import SampleError
from medray.modalities.ehr.meds import task
from medray.modalities.ehr.meds.codes import CodeTable
from medray.modalities.ehr.meds.file import MedsFile
from medray.modalities.ehr.spec import EhrSpec
from medray.storage.files import FileStamp, stamp_of

CACHED_FILES = 4


class MedsArchive:
    """Caches of one worker: everything in it can be read again from the files."""

    def __init__(self, spec: EhrSpec) -> None:
        self.spec, self.codes = spec, CodeTable(spec)
        self._open: OrderedDict[tuple[str, FileStamp | None], MedsFile] = OrderedDict()
        self._predictions: dict[str, task.Predictions] = {}
        self._splits: dict[str, tuple[np.ndarray, list[str]] | None] = {}
        self._subjects: dict[str, np.ndarray] = {}

    def open(self, uri: str) -> MedsFile:
        """The file, kept open for the next entries; a local file that changed is opened anew. Raises SampleError,
        OSError."""
        key = (uri, stamp_of(uri))
        if key not in self._open:
            self._open[key] = MedsFile(uri, self.codes)
            if len(self._open) > CACHED_FILES:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(key)
        return self._open[key]

    def predictions(self, root: str) -> task.Predictions:
        """The label table. Raises LabelError."""
        if root not in self._predictions:
            self._predictions[root] = task.read_predictions(self.spec.task, root)
        return self._predictions[root]

    def splits(self, root: str) -> tuple[np.ndarray, list[str]] | None:
        if root not in self._splits:
            self._splits[root] = task.read_splits(root)
        return self._splits[root]

    def subjects(self, root: str) -> np.ndarray:
        """Every subject_id of the data files that can be read, ascending."""
        if root not in self._subjects:
            subjects = np.empty(0, np.int64)
            for file in task.data_files(root, self.spec.task):
                try:
                    for ids in self.open(file.uri).subjects():
                        subjects = np.union1d(subjects, ids)
                except (SampleError, OSError):  # that file is a failed row of its own scan
                    continue
            self._subjects[root] = subjects
        return self._subjects[root]
