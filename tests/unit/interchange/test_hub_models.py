"""Models of the Hugging Face hub: the real client, against a server on loopback that speaks its protocol."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_cases import objective_of
from hub_server import TOKEN, Hub, Repo, connect, environment, serving
from unmask.checkpoint import Checkpoint, CheckpointStore
from unmask.engines.base import EngineState
from unmask.errors import CheckpointError, ConfigError
from unmask.interchange import StoredModel, read_model, write_model
from unmask.interchange.hub import parse, pinned

huggingface_hub = pytest.importorskip("huggingface_hub", reason="hf:// needs unmask[hub]")
constants = pytest.importorskip("huggingface_hub.constants", reason="hf:// needs unmask[hub]")

MODEL: dict[str, Any] = {
    "image_size": (16, 16), "patch_size": 4, "channels": 3, "width": 64, "depth": 2, "heads": 2, "mlp_ratio": 4.0,
    "num_classes": 3, "pool": "cls",
}  # fmt: skip
NAMES = ("cat", "dog", "größe")


def stored(seed: int = 0) -> StoredModel:
    rng = np.random.default_rng(seed)
    shapes = objective_of("classify", **MODEL).shapes()
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return StoredModel(weights, MODEL, NAMES, "unmask")


def same(found: StoredModel, seed: int = 0) -> bool:
    weights = stored(seed).weights
    return found.weights.keys() == weights.keys() and all((found.weights[n] == weights[n]).all() for n in weights)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(tmp_path / "hub") as hub:
        connect(monkeypatch, hub, tmp_path / "cache")
        yield hub


@pytest.fixture
def repo(hub: Hub) -> Repo:
    """A transformers folder as it is on the hub: with copies of the weights in other formats, and a README."""
    repo = hub.create("someone/vit")
    write_model("transformers", repo.folder, stored())
    for other in ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "model.onnx"):
        (repo.folder / other).write_bytes(b"x" * 1_000_000)
    (repo.folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return repo


def downloads(hub: Hub) -> set[str]:
    return {
        request.rpartition("/")[2] for request in hub.requests if request.startswith("GET") and "/resolve/" in request
    }


@pytest.mark.parametrize(
    "name",
    [
        "hf://someone/vit",
        "hf://models/someone/vit",
        "hf-hub:someone/vit",
        "hf_hub:someone/vit",
        "hf://someone/vit@main/",
    ],
)
def test_a_model_is_read_by_its_name_and_nothing_else_is_downloaded(hub: Hub, repo: Repo, name: str):
    found = read_model(name)
    assert same(found)
    assert (found.format, found.class_names) == ("transformers", NAMES)
    assert downloads(hub) == {"config.json", "model.safetensors"}
    assert hub.sent == sum((repo.folder / file).stat().st_size for file in downloads(hub))


def test_what_is_in_the_cache_is_not_downloaded_again(hub: Hub, repo: Repo):
    read_model("hf://someone/vit")
    sent = hub.sent
    hub.requests.clear()
    assert same(read_model("hf://someone/vit"))
    assert hub.sent == sent
    assert len(hub.requests) == 1, "is it still the newest commit?"


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: Hub, repo: Repo):
    first = repo.branches["main"]
    for number, folder in enumerate((repo.commit("better"), repo.commit("other", branch="pr/7")), 1):
        shutil.rmtree(folder, ignore_errors=True)
        write_model("transformers", folder, stored(number))
    assert same(read_model("hf://someone/vit"), 1)
    assert same(read_model(f"hf://someone/vit@{first}"), 0)
    assert same(read_model("hf://someone/vit@pr%2F7"), 2)
    assert pinned("hf://someone/vit") == f"hf://someone/vit@{repo.branches['main']}"
    assert pinned("hf://someone/vit@pr%2F7") == f"hf://someone/vit@{repo.branches['pr/7']}"
    assert pinned("runs/a") == "runs/a"
    assert same(read_model(pinned("hf://someone/vit")), 1)


def test_a_file_or_a_folder_of_a_repository(hub: Hub, repo: Repo):
    write_model("transformers", repo.folder / "small", stored(1))
    (repo.folder / "old").mkdir()
    write_model("facebook", repo.folder / "old" / "vit.pth", stored(2))
    assert same(read_model("hf://someone/vit/small"), 1)
    assert same(read_model("hf://someone/vit@main/old/vit.pth"), 2)
    assert downloads(hub) == {"config.json", "model.safetensors", "vit.pth"}
    with pytest.raises(
        CheckpointError, match=r"hf://someone/vit/nothing: there is no such file or folder in hf://someone"
    ):
        read_model("hf://someone/vit/nothing")


@pytest.mark.parametrize(("stem", "suffix"), [("model", "safetensors"), ("pytorch_model", "bin")])
def test_sharded_weights_are_downloaded_with_their_index_alone(hub: Hub, repo: Repo, stem: str, suffix: str):
    (repo.folder / "model.safetensors").unlink()
    (repo.folder / "pytorch_model.bin").unlink()
    shards = [f"{stem}-0000{number}-of-00002.{suffix}" for number in (1, 2)]
    for name in (f"{stem}.{suffix}.index.json", *shards):
        (repo.folder / name).write_text(name)
    with pytest.raises(CheckpointError, match=r"^hf://someone/vit: .*snapshots"):  # whatever the reader says of these
        read_model("hf://someone/vit")
    assert downloads(hub) == {"config.json", f"{stem}.{suffix}.index.json", *shards}


def test_the_one_file_of_weights_in_a_repository_without_config(hub: Hub):
    repo = hub.create("someone/mae")
    write_model("facebook", repo.folder / "mae.pth", stored())
    (repo.folder / "training_args.bin").write_bytes(b"x")
    assert same(read_model("hf://someone/mae"))
    assert downloads(hub) == {"mae.pth"}


def test_a_checkpoint_folder_of_ours_without_its_optimizer(hub: Hub, tmp_path: Path):
    repo = hub.create("someone/run")
    config: dict[str, Any] = {"objective": {"name": "classify"}, "model": MODEL}
    with CheckpointStore(repo.folder / "checkpoints", keep=1) as store:
        state = EngineState(stored().weights, {"exp_avg.head.bias": np.zeros(3, np.float32)}, stored(1).weights)
        store.save(Checkpoint(7, state, {"config": config, "class_names": NAMES}))
    found = read_model("hf://someone/run/checkpoints/step-00000007")
    assert same(found, 1), "the moving average"
    assert found.format == "unmask"
    assert downloads(hub) == {"checksums.json", "state.json", "ema.safetensors"}
    with pytest.raises(
        CheckpointError, match=r"in its folders; name one of them, such as hf://.*/checkpoints/step-00000007"
    ):
        read_model("hf://someone/run")
    with pytest.raises(ConfigError, match=r"hf://someone/run is no run folder, in which checkpoint=best could be"):
        read_model("hf://someone/run", "best")


def test_several_files_of_weights_are_asked_for(hub: Hub):
    repo = hub.create("someone/many")
    for name in ("small.pth", "large.pth"):
        write_model("facebook", repo.folder / name, stored())
    message = (
        r"several files of weights; name one of them, such as hf://someone/many/large.pth, hf://someone/many/small"
    )
    with pytest.raises(CheckpointError, match=message):
        read_model("hf://someone/many")
    assert hub.sent == 0


def test_a_repository_without_weights_is_told_by_what_it_holds(hub: Hub):
    repo = hub.create("someone/text")
    with pytest.raises(CheckpointError, match=r"hf://someone/text holds no weights that can be read .*; it is empty"):
        read_model("hf://someone/text")
    for name in ("README.md", "tf_model.h5", "config.json"):
        (repo.folder / name).write_text("x")
    with pytest.raises(
        CheckpointError, match=r"no weights .*\.pth, .*; it holds README\.md, config\.json, tf_model\.h5"
    ):
        read_model("hf://someone/text")


@pytest.mark.parametrize(
    "name", ["hf://", "hf://vit", "hf://datasets/someone/photos", "hf://a/b@/x", "hf://a/b/../c", "hf-hub:a b/c"]
)
def test_a_name_of_another_form_is_refused(name: str):
    with pytest.raises(ConfigError, match=r"names no model of the hub; write hf://OWNER/NAME\[@REVISION\]"):
        parse(name)


def test_no_such_repository_and_no_such_revision(hub: Hub, repo: Repo):
    with pytest.raises(
        CheckpointError, match=r"hf://someone/else cannot be read: http.* no such model, or it is private: log"
    ):
        read_model("hf://someone/else")
    with pytest.raises(CheckpointError, match=r"^hf://someone/vit@v9 cannot be read: someone/vit has no revision v9$"):
        read_model("hf://someone/vit@v9")


def test_private_and_gated_models_are_read_by_whoever_may(hub: Hub, repo: Repo, monkeypatch: pytest.MonkeyPatch):
    repo.private = True
    with pytest.raises(CheckpointError, match=r"it is private: log in with `hf auth login` or set HF_TOKEN$"):
        read_model("hf://someone/vit")
    repo.private, repo.gated = False, True
    message = rf"asks to accept terms first: {hub.url}/someone/vit; then log in with `hf auth login` or set HF_TOKEN$"
    with pytest.raises(CheckpointError, match=message):
        read_model("hf://someone/vit")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert same(read_model("hf://someone/vit"))


def test_without_a_network_the_cache_is_read_and_that_is_said(
    hub: Hub, repo: Repo, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    read_model("hf://someone/vit")
    commit, nowhere = repo.branches["main"], "http://127.0.0.1:9"  # the port for discarding
    monkeypatch.setattr(constants, "ENDPOINT", nowhere)
    with caplog.at_level(logging.WARNING, "unmask"):
        assert same(read_model("hf://someone/vit"))
    assert f"the connection to {nowhere} failed" in caplog.text
    assert f"reading the copy in the cache, of commit {commit}" in caplog.text
    with pytest.raises(CheckpointError, match=r"the connection to .* failed .*refused.*, and it is not in the cache$"):
        read_model("hf://someone/else")


def test_offline_mode_reads_the_cache_without_a_word(
    hub: Hub, repo: Repo, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    (repo.folder / "model.safetensors").rename(repo.folder / "later")
    huggingface_hub.hf_hub_download("someone/vit", "config.json")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = (
        r"hf://someone/vit cannot be read: HF_HUB_OFFLINE is set, and the cache has not all of it: .*holds config.json$"
    )
    with pytest.raises(CheckpointError, match=message):
        read_model("hf://someone/vit")
    with pytest.raises(
        CheckpointError, match=r"someone/else cannot be read: HF_HUB_OFFLINE is set, and it is not in the"
    ):
        read_model("hf://someone/else")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    (repo.folder / "later").rename(repo.folder / "model.safetensors")
    read_model("hf://someone/vit")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert same(read_model("hf://someone/vit"))
    assert (hub.requests, caplog.text) == ([], "")


def test_a_connection_that_breaks_midway_goes_on_where_it_was(hub: Hub, repo: Repo, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 14)  # what is kept, in place of 10 MB
    hub.break_after = [6 << 14]
    assert same(read_model("hf://someone/vit"))
    files = [repo.folder / name for name in ("config.json", "model.safetensors")]
    assert hub.sent == sum(file.stat().st_size for file in files), "no byte twice"


def test_a_connection_that_breaks_for_good_is_one_line_and_the_next_call_goes_on(
    hub: Hub, repo: Repo, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's attempts
    hub.break_after = [0] * 100
    with pytest.raises(
        CheckpointError, match=r"hf://someone/vit cannot be downloaded: the connection to http.* failed"
    ):
        read_model("hf://someone/vit")
    hub.break_after = []
    hub.requests.clear()
    assert same(read_model("hf://someone/vit"))
    assert downloads(hub) == {"model.safetensors"}, "what was whole is not downloaded again"


def test_a_server_that_fails(hub: Hub, repo: Repo, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "ENDPOINT", f"{hub.url}/elsewhere")
    with pytest.raises(CheckpointError, match=r"hf://someone/vit cannot be read: http.*/elsewhere answered 404"):
        read_model("hf://someone/vit")


@pytest.mark.parametrize("left", [b"", b"x" * 1000])
def test_half_a_file_in_the_cache_is_downloaded_anew(hub: Hub, repo: Repo, left: bytes, tmp_path: Path):
    read_model("hf://someone/vit")
    (cached,) = (tmp_path / "cache").rglob("model.safetensors")
    cached.resolve().write_bytes(left)
    assert same(read_model("hf://someone/vit"))
    for blob in (tmp_path / "cache").rglob("blobs/*"):
        blob.with_name(f"{blob.name}.incomplete").write_bytes(left)  # of a process that was killed
        blob.unlink()
    assert same(read_model("hf://someone/vit"))


def test_pickles_are_read_by_our_own_reader_alone(hub: Hub, tmp_path: Path):
    repo = hub.create("someone/evil")
    fired = tmp_path / "fired"
    (repo.folder / "x.pth").write_bytes(b"cos\nsystem\n(S'touch " + os.fsencode(fired) + b"'\ntR.")
    with pytest.raises(CheckpointError, match=r"^hf://someone/evil: .*x\.pth is not a file of torch\.save$"):
        read_model("hf://someone/evil")
    assert not fired.exists()


READ = "import sys; from unmask.interchange import read_model; read_model(sys.argv[1])"


def test_of_several_processes_one_downloads(hub: Hub, repo: Repo, tmp_path: Path):
    command = [sys.executable, "-c", READ, "hf://someone/vit"]
    processes = [subprocess.Popen(command, env=environment(hub, tmp_path / "home")) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    assert hub.sent == sum((repo.folder / file).stat().st_size for file in ("config.json", "model.safetensors"))


def test_a_full_disk_is_one_line(hub: Hub, repo: Repo, tmp_path: Path):
    """A limit on the size of files stands in for the disk: writing fails in the same way."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    command = [sys.executable, "-m", "unmask", "convert", "hf://someone/vit", "x.pth", "--to", "facebook"]
    done = subprocess.run(
        command, env=environment(hub, tmp_path / "home"), cwd=tmp_path, capture_output=True, text=True, preexec_fn=limit
    )
    assert done.returncode == 4
    assert done.stderr.splitlines()[-1].startswith("unmask: hf://someone/vit cannot be downloaded: File too large: ")
    assert "Traceback" not in done.stderr


def test_the_command_line_says_how_to_install_the_client(tmp_path: Path):
    code = """
import sys
sys.modules["huggingface_hub"] = None
from unmask.cli import main
sys.exit(main(["convert", "hf://someone/vit", "x.pth", "--to", "facebook"]))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "unmask: hf://someone/vit needs huggingface_hub: pip install 'unmask[hub]'\n"


def test_nothing_is_shown_where_there_is_no_terminal(hub: Hub, repo: Repo, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", READ, "hf://someone/vit"],
        env=environment(hub, tmp_path / "home"),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
