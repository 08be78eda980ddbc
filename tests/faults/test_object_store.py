"""Two processes whose run is kept in an object store, on loopback: stopped, killed, and gone on with elsewhere."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from object_store import store
from ranks import ENGINES, launch
from runs import ENVIRONMENT, TINY_MODEL

__all__ = ["store"]

STEPS = 40
RUN = ["pretrain", "mae-vit-tiny", *TINY_MODEL, "model.depth=1", "data.train=bundled:mnist5k/train"]
RUN += ["train.batch_size=48", f"train.epochs={STEPS * 48 / 4000}", f"train.checkpoint_every={4 * 48 / 4000}"]
RUN += ["train.log_every=1", "output=s3://bucket/jobs/run"]


def steps_here(cwd: Path) -> int:
    logs = list(cwd.glob("runs/*/run/metrics.jsonl"))
    return len(logs[0].read_text().splitlines()) if logs else 0


def steps_there(store: Any) -> list[int]:
    """Of the whole checkpoints in the store."""
    found = store.list_objects_v2(Bucket="bucket", Prefix="jobs/run/checkpoints/").get("Contents", ())
    return sorted(int(key.split("/")[3][5:]) for key in (one["Key"] for one in found) if key.endswith("checksums.json"))


@pytest.mark.campaign
@pytest.mark.parametrize("engine", ENGINES)
def test_another_machine_goes_on_after_sigterm_and_after_sigkill(
    engine: str, tmp_path: Path, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "ranks.ENVIRONMENT", ENVIRONMENT | {k: v for k, v in os.environ.items() if k.startswith("AWS_")}
    )
    for number, name in ((signal.SIGTERM, "first"), (signal.SIGKILL, "second"), (None, "third")):
        cwd = tmp_path / engine / name
        cwd.mkdir(parents=True)
        before = steps_there(store)
        ranks = launch(engine, *RUN, f"engine={engine}", cwd=cwd)
        if number is not None:
            ranks.until(lambda cwd=cwd, before=before: steps_here(cwd) >= max(before, default=0) + 10)
            ranks.send(number, 0 if number == signal.SIGKILL else 1)
        said = ranks.end()
        if before:
            assert f"resumed after step {max(before)}" in said, said
        if number == signal.SIGTERM:
            assert steps_there(store)[-1] == steps_here(cwd), said
    assert steps_there(store)[-1] == STEPS, said
    assert "sent to s3://bucket/jobs/run" in said
    body = store.get_object(Bucket="bucket", Key="jobs/run/metrics.jsonl")["Body"].read().decode()
    assert [json.loads(line)["step"] for line in body.splitlines()] == list(range(1, STEPS + 1))
    for key in [one["Key"] for one in store.list_objects_v2(Bucket="bucket")["Contents"]]:
        store.delete_object(Bucket="bucket", Key=key)
