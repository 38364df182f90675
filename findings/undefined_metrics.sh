#!/usr/bin/env bash
# torchmetrics 1.9.0 and scikit-learn 1.9.1 where a measure is not defined: a subgroup in which only one class occurs.
#
# Expected before the run: not a number, or both libraries agree.
# Seen: of four positive patients, all called positive, the Matthews correlation coefficient is 1 in torchmetrics and 0 in
# scikit-learn (its denominator is 0); all missed, -1 and 0. Cohen's kappa is NaN in both when all agree, and 0 when
# all are missed. The specificity of patients without a single negative is 0 in torchmetrics, the worst there is.
# A table of subgroups made with one of them therefore shows a perfect or a worst value where nothing can be said.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'torch==2.13.0' 'torchmetrics==1.9.0' 'scikit-learn==1.9.1'
"$folder/venv/bin/python" - <<'PY'
import math
import warnings

import numpy as np
import sklearn.metrics
import torch
import torchmetrics
import torchmetrics.functional as functional

warnings.simplefilter("ignore")  # scikit-learn warns of kappa
print("torchmetrics", torchmetrics.__version__, "scikit-learn", sklearn.__version__)
cases = {
    "positives, all called": ([1, 1, 1, 1], [1, 1, 1, 1], 1.0, math.nan),
    "positives, none called": ([1, 1, 1, 1], [0, 0, 0, 0], -1.0, 0.0),
    "negatives, none called": ([0, 0, 0], [0, 0, 0], 1.0, math.nan),
}
for name, (truth, called, mcc, kappa) in cases.items():
    tensors = torch.tensor(called), torch.tensor(truth)
    found = functional.matthews_corrcoef(*tensors, task="binary").item()
    other = sklearn.metrics.matthews_corrcoef(truth, called)
    kappas = functional.cohen_kappa(*tensors, task="binary").item(), sklearn.metrics.cohen_kappa_score(truth, called)
    print(f"{name}: MCC torchmetrics {found}, scikit-learn {other}; kappa {kappas}")
    assert (found, other) == (mcc, 0.0)
    assert all(np.isclose(each, kappa, equal_nan=True) for each in kappas)
specificity = functional.specificity(torch.tensor([1, 0]), torch.tensor([1, 1]), task="binary").item()
print("specificity without a negative:", specificity)
assert specificity == 0.0
print("as found")
PY
