from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unmask.config.load import load_config
from unmask.errors import ConfigError
from unmask.evaluate.maps import maps_of, principal_components
from unmask.overview.batches import augmented
from unmask.overview.runs import POINTS, read_runs
from unmask.preparation import open_sources
from unmask.report.log import RunLog
from unmask.report.page import Blobs

RUN = "command: [unmask, pretrain]\nversions: {python: '3'}\ndata: {images: 100}\nconfig: {}\n"


def run_in(folder: Path, steps: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(RUN, encoding="utf-8")
    log = RunLog(folder, resume_step=0)
    for step in range(1, steps + 1):
        log.train(step, {"loss": float("nan") if step == 3 else 1000.0 if step == 1200 else 1.0, "lr": 0.1})
    log.val(steps, {"loss": 0.5})
    log.close()
    return folder


def test_a_long_curve_keeps_its_peak_and_a_number_that_is_none(tmp_path: Path) -> None:
    (run,) = read_runs([run_in(tmp_path / "run", 2 * POINTS)])
    facts = run.facts()
    loss = facts["curves"]["train"]["loss"]
    assert len(loss["x"]) == len(loss["y"]) == len(loss["low"]) == POINTS
    assert max(value for value in loss["high"] if value is not None) == 1000
    assert loss["y"][1] is None
    assert facts["curves"]["val"]["loss"] == {"x": [2 * POINTS], "y": [0.5]}
    assert facts["steps"] == 2 * POINTS


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    runs = read_runs([run_in(tmp_path / part / "run", 5) for part in "ab"])
    assert [run.name for run in runs] == ["a/run", "b/run"]
    with pytest.raises(ConfigError, match="named twice"):
        read_runs([tmp_path / "a" / "run"] * 2)


def groups(count: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, width))
    return (centres[np.arange(count) % 3] + 0.05 * rng.normal(size=(count, width))).astype(np.float32)


def test_a_map_keeps_what_is_alike_together() -> None:
    features = groups(60, 24)
    for name, places in maps_of(features).items():
        distance = np.linalg.norm(places[:, None] - places[None], axis=-1)
        np.fill_diagonal(distance, np.inf)
        assert (distance.argmin(1) % 3 == np.arange(60) % 3).all(), name
        assert np.abs(places).max() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("shape", [(1, 8), (2, 8), (5, 1), (4, 8)])
def test_a_map_of_few_images_or_values(shape: tuple[int, int]) -> None:
    for features in (np.ones(shape, np.float32), np.zeros(shape, np.float32)):
        (places,) = maps_of(features).values()
        assert places.shape == (shape[0], 2)
        assert np.isfinite(places).all()


def test_components_are_those_of_the_singular_values() -> None:
    features = groups(40, 10)
    rows = features / np.linalg.norm(features, axis=1, keepdims=True)
    singular = np.linalg.svd(rows - rows.mean(0), compute_uv=False)
    found = np.linalg.norm(principal_components(features, 4), axis=0)
    np.testing.assert_allclose(found, singular[:4], rtol=1e-5)


@pytest.mark.parametrize(
    ("recipe", "settings", "kinds"),
    [
        ("mae-vit-tiny", {"augment.color_jitter": 0}, [""]),
        ("lejepa-vit-small", {"objective.views": 2, "augment.color_jitter": 0}, ["view 1", "view 2"]),
        (
            "cifar10-semi",
            {"objective.unlabelled_ratio": 1, "model.num_classes": 10},
            ["", "without label 1, augmented", "without label 1, cropped alone"],
        ),
    ],
)
def test_what_training_shows(recipe: str, settings: dict[str, object], kinds: list[str]) -> None:
    small = {"model.image_size": 28, "model.patch_size": 7, "model.channels": 1, "data.mean": [0.1], "data.std": [0.3]}
    data = {"data.train": "bundled:mnist5k/train", "data.labels_per_class": 3, "data.workers": 0}
    config = load_config(recipe, {**small, **data, **settings})
    source, _, unlabelled = open_sources(config)
    blobs = Blobs()
    found = augmented(config, source, unlabelled, blobs)
    assert found["kinds"] == kinds
    assert len(found["rows"]) == 16
    assert all(len(row["pictures"]) == len(kinds) for row in found["rows"])
    assert blobs.html().count("image/webp") == 16 * len(kinds)
