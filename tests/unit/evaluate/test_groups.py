"""What is chosen by cross-validation is not chosen on images of a patient whose other images were learnt from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unmask.config.load import load_config
from unmask.data.sources import open_source
from unmask.data.sources.split import groups_of
from unmask.evaluate.attentive import fit_attentive
from unmask.evaluate.fast_probe import fit_head, folds_of, folds_to_hold_out
from unmask.evaluate.features import Features
from unmask.evaluate.handmade import Handmade
from unmask.evaluate.segment import Dense, fit_segmentation
from unmask.metrics import log_softmax

PATIENTS, EACH = 30, 8
NAMES = [
    ("p{patient:02}_{n}.png", "p[0-9]+"),
    ("{n}-of-{patient}.png", "of-([0-9]+)"),
    ("site{site}/p{patient}/scan {n}.png", r"site(\d)/p(\d+)"),
]


@pytest.fixture(params=NAMES, ids=[name for name, _ in NAMES])
def scans(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Pictures that are nearly the same for a patient, whose class nothing in them tells; the folder and the group."""
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    name, group = request.param
    rng = np.random.default_rng(0)
    for patient in range(PATIENTS):
        picture = rng.integers(0, 200, (16, 16))
        for n in range(EACH):
            path = tmp_path / "scans" / "ab"[patient % 2] / name.format(patient=patient, n=n, site=patient % 4)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((picture + rng.integers(0, 4, (16, 16))).astype(np.uint8)).save(path)
    return str(tmp_path / "scans"), group


def test_handmade_features_are_as_certain_as_other_patients_allow(scans: tuple[str, str], tmp_path: Path) -> None:
    """Nothing in pictures tells the class, though those of a patient give each other away."""
    folder, group = scans
    settings = ["model.image_size=16", "model.patch_size=8", "model.channels=1", "data.mean=[0.5]", "data.std=[0.5]"]
    source = open_source(folder, key="data.train", labels=True)
    rng = np.random.default_rng(1)
    for number in range(200):
        (tmp_path / "new" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        picture = rng.integers(0, 200, (16, 16), np.uint8)
        Image.fromarray(picture).save(tmp_path / "new" / "ab"[number % 2] / f"{number}.png")
    others = open_source(str(tmp_path / "new"), key="data.val", labels=True)
    sure = {}
    for key in (None, group):
        config = load_config("scratch-vit-tiny", [*settings, *([f"data.val_group={key}"] if key else [])])
        handmade = Handmade(source, config)
        head = handmade.fit(handmade.features(source, ""), 2)
        logits, _ = next(head.logits(handmade.features(others, ""), np.arange(200)))
        sure[key] = np.exp(log_softmax(logits)).max(1).mean()
    assert sure[None] > 0.9
    assert sure[group] < 0.8


def test_no_patient_is_on_both_sides(scans: tuple[str, str]) -> None:
    source = open_source(scans[0], key="data.train", labels=True)
    groups, labels = groups_of(source, scans[1]), np.asarray(source.labels)
    assert groups is not None
    assert len(np.unique(groups)) == PATIENTS
    labels[::17] = -1  # broken
    rows = np.flatnonzero(labels >= 0)
    held_out = folds_to_hold_out(Features(np.zeros((len(rows), 1), np.float32), labels, groups), rows, 0)
    assert len(held_out) == 10
    for held in held_out:
        rest = np.setdiff1d(rows, held)
        assert not {*groups[held]} & {*groups[rest]}
        assert {*labels[rest]} == {0, 1}
    assert {*np.concatenate(held_out).tolist()} == {*rows.tolist()}
    assert not np.array_equal(held_out[0], held_out[5]), "drawn anew"


def patients(width: int) -> Features:
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=(PATIENTS, width)), EACH, axis=0) + 0.01 * rng.normal(
        size=(PATIENTS * EACH, width)
    )
    labels = np.repeat(np.arange(PATIENTS) % 2, EACH)
    return Features(values.astype(np.float32), labels, np.repeat(np.arange(PATIENTS), EACH))


def test_nor_with_an_attentive_probe() -> None:
    tokens = patients(4 * 8)
    _, linear, tried = fit_attentive(tokens, 2, width=8, queries=2)
    assert max(one.accuracy for one in (linear, *tried)) < 0.75
    alone = Features(tokens.values, tokens.labels)
    assert max(one.accuracy for one in fit_attentive(alone, 2, width=8, queries=2)[2]) > 0.9


def test_nor_with_masks() -> None:
    """Patches of a patient look alike, and nothing in them tells what the mask says of them."""
    features = patients(2 * 2 * 160)
    masks = np.repeat(features.labels, 16).reshape(-1, 4, 4).astype(np.uint8)
    dense = Dense(features.values.reshape(-1, 2, 2, 160), masks, features.groups)
    together, alone = (fit_segmentation(each, each).tried for each in (dense, Dense(dense.features, masks)))
    assert max(one.miou for one in alone) > 0.9
    assert max(one.miou for one in together) < 0.6


def test_one_patient_leaves_nothing_to_choose_on() -> None:
    labels = np.arange(12) % 2
    values = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    assert fit_head(Features(values, labels, np.zeros(12, np.int64)), 2)[2] == ()
    masks = np.zeros((12, 2, 2), np.uint8)
    masks[:, 0] = 1
    dense = Dense(np.repeat(values, 4, 0).reshape(12, 2, 2, 3), masks, np.zeros(12, np.int64))
    assert fit_segmentation(dense, dense).tried == ()


def test_groups_of_one_are_none() -> None:
    labels = np.random.default_rng(0).integers(0, 3, 100)
    np.testing.assert_array_equal(folds_of(labels, 5, groups=np.arange(100)[::-1]), folds_of(labels, 5))
