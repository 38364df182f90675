"""doctor: decoders are held against the pixels that were written, and measured beside medray's own reading."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from typer.testing import CliRunner

from medray.cli.app import app
from medray.errors import MachineError
from medray.modalities.imaging import decoders
from medray.verbs.doctor import doctor

CONTENTS = {"RLE", "JPEG lossless", "JPEG-LS", "JPEG 2000", "HTJ2K", "gzip (.nii.gz)"}


def test_every_decoder_of_every_content_gives_the_pixels_that_were_written():
    found = decoders.measured(rounds=1, size=64)
    assert {each.content for each in found} == CONTENTS
    assert all(each.right and each.least_ms <= each.ms <= each.most_ms for each in found)
    assert Counter(each.content for each in found if each.used) == dict.fromkeys(CONTENTS, 1)
    assert Counter(each.content for each in found if each.decoder == decoders.MEDRAY) == dict.fromkeys(CONTENTS, 1)


def test_the_command_gives_one_object_or_a_table(monkeypatch):
    small = decoders.measured
    monkeypatch.setattr("medray.verbs.doctor.measured", lambda rounds: small(rounds, size=32))
    told = CliRunner().invoke(app, ["doctor", "--rounds", "1", "--json"])
    assert told.exit_code == 0
    health = json.loads(told.stdout)
    assert {each["content"] for each in health["decoders"]} == CONTENTS and "imagecodecs" in health["versions"]
    table = CliRunner().invoke(app, ["doctor", "--rounds", "1"])
    assert table.exit_code == 0 and "JPEG-LS" in table.stdout and "imagecodecs" in table.stdout


def test_a_decoder_in_use_that_gives_other_pixels_is_a_fault_of_the_machine(monkeypatch):
    import imagecodecs

    right = imagecodecs.jpegls_decode
    monkeypatch.setattr(imagecodecs, "jpegls_decode", lambda frame: right(frame) ^ np.uint16(1))
    small = decoders.measured
    monkeypatch.setattr("medray.verbs.doctor.measured", lambda rounds: small(rounds, size=32))
    with pytest.raises(MachineError) as refusal:
        doctor(rounds=1)
    assert "JPEG-LS" in str(refusal.value)
