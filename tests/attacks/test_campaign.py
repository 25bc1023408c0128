"""A little of `benchmarks/campaign.py`: damaged images and inputs, from fixed seeds. Nothing but one line of ours."""

import shutil
import time

import pytest
from campaign_parts import images, inputs, stored
from campaign_parts.material import Material, write_tables
from campaign_parts.running import Totals, run_cases

from configs import write_config

FOREVER = 1e9


@pytest.fixture(scope="module")
def made(tmp_path_factory, scenes, checkpoint, bundle):
    """The campaign's folder, with the tests' own model in it."""
    made = Material(tmp_path_factory.mktemp("campaign"))
    for name in ("annotations", "train"):
        shutil.copytree(scenes / name, made.folder / name)
    write_config(made.folder, made.folder)
    made.checkpoint.parent.mkdir()
    shutil.copy(checkpoint, made.checkpoint)
    shutil.copytree(bundle, made.bundle)
    write_tables(made)
    return made


def attack(number, make, one, cases):
    """The totals of the first cases, which run in a process of their own."""
    totals = Totals(most=cases)
    run_cases("part", number, 7, totals, time.monotonic() + FOREVER, make, one)
    assert totals.findings == []
    assert totals.cases == cases
    assert totals.refused > cases / 4
    assert totals.longest_line <= 400
    return totals


def test_damaged_images():
    attack(1, images.make_seeds, images.attack_case, 4000)


def test_damaged_inputs(made):
    attack(2, lambda: inputs.Shared(made), inputs.case, 300)


def test_damaged_parquet_word_vectors_and_weights():
    attack(12, stored.Stored, stored.case, 400)
