"""What stands beside the tensors of the files we write."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unmask.errors import CheckpointError
from unmask.interchange.stored_model import StoredModel, extra_json, from_extra

DATA = {
    "mean": (0.5, 0.1), "std": (0.5, 2.0), "eval_crop": 0.75, "eval_fit": "squash", "interpolation": "lanczos",
    "dtype": "uint16",
}  # fmt: skip


def stored(**fields: Any) -> StoredModel:
    return StoredModel({"norm.bias": np.zeros(2, np.float32)}, {"width": 8, "image_size": (8, 16)}, **fields)


def test_what_a_model_needs_comes_back():
    model = stored(class_names=("größe", "b"), format="x", data=DATA, objective={"mask_ratio": 0.5}, seed=7)
    found = from_extra(Path("x"), extra_json(model))
    assert found == {
        "model": {"width": 8, "image_size": [8, 16]},
        "class_names": ("größe", "b"),
        "data": DATA,
        "objective": {"mask_ratio": 0.5},
        "seed": 7,
    }


def test_what_is_not_known_stays_unknown():
    found = from_extra(Path("x"), extra_json(stored(class_names=None, format="x")))
    assert (found["class_names"], found["data"], found["objective"], found["seed"]) == (None, {}, {}, None)


def test_where_the_images_of_a_run_were_stays_behind():
    data = DATA | {"train": "/home/me/photos", "workers": 8}
    text = extra_json(stored(class_names=None, format="x", data=data, objective={"name": "mae", "mask_ratio": 0.5}))
    assert "photos" not in text
    assert from_extra(Path("x"), text)["data"] == DATA


def test_files_of_earlier_versions_keep_what_is_now_the_objectives_with_the_model():
    text = json.dumps({"model": {"width": 8, "mask_ratio": 0.5, "norm_pix_loss": False}, "class_names": None})
    found = from_extra(Path("x"), text)
    assert found["model"] == {"width": 8}
    assert found["objective"] == {"mask_ratio": 0.5, "norm_pix_loss": False}


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        ([], "no JSON object"),
        ({"model": 1}, "model settings"),
        ({"class_names": [1]}, "class names"),
        ({"data": []}, "data settings"),
        ({"objective": "mae"}, "objective settings"),
        ({"data": {"train": "http://stranger"}}, "'train' among its settings"),
        ({"objective": {"name": "x"}}, "'name' among its settings"),
        ({"data": {"mean": [0.5], "std": [0.0]}}, "std must be positive"),
        ({"data": {"eval_crop": "x"}}, "eval_crop"),
        ({"seed": "x"}, "a seed that is none"),
        ({"seed": -1}, "a seed that is none"),
    ],
)
def test_what_we_would_not_have_written_is_refused(extra: Any, match: str):
    with pytest.raises(CheckpointError, match=match) as raised:
        from_extra(Path("x.pth"), json.dumps(extra).encode())
    assert "x.pth" in str(raised.value)
    assert "\n" not in str(raised.value)
