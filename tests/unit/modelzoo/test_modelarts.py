"""ModelArts: what its environment says, and its data and results in a store of the S3 protocol on loopback."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import unmask.api
import unmask.train
from fake_engine import FakeEngine
from unmask.data.sources import remote
from unmask.errors import ConfigError, DataError
from unmask.modelzoo.modelarts import MARKER, bring, join, torchrun
from unmask.modelzoo.translate import Translation, load_modelzoo

FILE = Path(__file__).parents[3] / "config" / "vit-base-p16.yaml"
ON = ["--engine=torch", "--use_parallel=True", "--device_target=CPU", "--enable_modelarts=True"]
SMALL = ["--encoder_layers=1", "--encoder_num_heads=2", "--encoder_dim=16", "--image_size=16", "--num_classes=3"]
SMALL += ["--num_workers=0", "--epoch=2", "--batch_size=6", "--warmup_epochs=0", "--auto_augment=", "--dropout=0"]
PLATFORM = ("RANK", "RANK_ID", "RANK_SIZE", "WORLD_SIZE", "MASTER_ADDR", "MS_ROLE", "TORCHELASTIC_RUN_ID")


@pytest.fixture(autouse=True)
def platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Any) -> Iterator[None]:
    for name in PLATFORM:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(unmask.train, "create_engine", FakeEngine)
    monkeypatch.setattr("unmask.report.pictures.curves", lambda folder: folder / "curves.png")
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield
    for name in names(store):
        store.delete_object(Bucket="bucket", Key=name)


def names(store: Any) -> list[str]:
    return [found["Key"] for found in store.list_objects_v2(Bucket="bucket").get("Contents", ())]


def png(number: int) -> bytes:
    file = BytesIO()
    Image.fromarray(np.full((16, 16, 3), number, np.uint8)).save(file, "PNG")
    return file.getvalue()


def images(store: Any, place: str, *, tar: bool = False) -> None:
    """12 images in three classes, as files or in one tar."""
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for number in range(12):
            name, data = f"{'abc'[number % 3]}/{number}.png", png(number)
            if tar:
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, BytesIO(data))
            else:
                store.put_object(Bucket="bucket", Key=f"{place}/{name}", Body=data)
    if tar:
        store.put_object(Bucket="bucket", Key=f"{place}.tar", Body=packed.getvalue())


def translate(*options: str) -> Translation:
    return load_modelzoo(FILE, [*ON, *SMALL, *options], "finetune")


@pytest.mark.parametrize("tar", [False, True])
@pytest.mark.parametrize("scheme", ["s3", "obs"])
def test_data_come_and_results_go(scheme: str, tar: bool, store: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("train", "val"):
        images(store, f"imagenet/{part}", tar=tar)
    options = [*ON, *SMALL, "--dataset_path=cache/data/train", "--eval_path=cache/data/val", "--num_gpus=1"]
    options += [
        f"--data_url={scheme}://bucket/imagenet/",
        f"--train_url={scheme}://bucket/out/",
        "--output_path=cache/out",
    ]
    run = unmask.api.run_modelzoo(FILE, options, command="finetune")
    assert run is not None
    assert run.folder == Path("cache/out/ViT-B-P16")
    assert run.metrics["loss"] > 0
    shown = capsys.readouterr().out
    assert "an argument of ModelArts" in shown
    sent = names(store)
    assert {"out/ViT-B-P16/checkpoints/step-00000004/checksums.json", "out/ViT-B-P16/metrics.jsonl"} <= set(sent)
    assert "out/ViT-B-P16-2_2.ckpt" in sent
    assert Path("cache/data/val.tar" if tar else "cache/data/val/a/0.png").exists()


def test_data_are_brought_once_by_one_process_and_what_is_there_stays(store: Any, monkeypatch: Any) -> None:
    images(store, "imagenet")
    fetched: list[str] = []

    def fetch(url: str, path: Path, fetch: Any = remote.fetch) -> None:
        fetched.append(url)
        fetch(url, path)

    monkeypatch.setattr(remote, "fetch", fetch)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: bring("s3://bucket/imagenet", Path("data")), range(4)))
    assert len(fetched) == len(set(fetched)) == 12
    assert json.loads((Path("data") / MARKER).read_text()) == "s3://bucket/imagenet"
    (Path("data") / MARKER).unlink()
    (Path("data") / "a" / "0.png").unlink()
    bring("s3://bucket/imagenet", Path("data"))
    assert fetched[12:] == ["s3://bucket/imagenet/a/0.png"]
    assert (Path("data") / "a" / "0.png").read_bytes() == png(0)
    with pytest.raises(DataError, match="s3://bucket/none"):
        bring("s3://bucket/none", Path("none"))


def test_a_checkpoint_is_brought_to_load_path(store: Any) -> None:
    store.put_object(Bucket="bucket", Key="weights/mae.ckpt", Body=b"x")
    translation = translate("--checkpoint_url=s3://bucket/weights", "--load_path=here", "--use_ckpt=here/mae.ckpt")
    assert translation.places is not None
    translation.places.bring(translation.config)
    assert Path("here/mae.ckpt").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data_url=s3://b/x", "--dataset_path="], "data_url: needs data_path"),
        (["--checkpoint_url=s3://b/x"], "checkpoint_url: needs load_path"),
        (["--train_url=out"], "train_url: must be a URL, such as obs://BUCKET/PATH, not 'out'"),
        (["--num_gpu=1"], "num_gpu: unknown key, did you mean num_gpus?"),
    ],
)
def test_a_mistake_is_said_before_anything_is_brought(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        translate(*options)
    assert message in str(error.value)


def test_switched_off_the_keys_have_no_meaning() -> None:
    options = ["--enable_modelarts=False", "--train_url=s3://b/x", "--data_url=s3://b/x", "--output_path=there"]
    translation = translate(*options)
    assert translation.places is None
    assert translation.config.output == "output/ViT-B-P16"
    assert translate("--output_path=there").config.output == "there/ViT-B-P16"
    assert translate("--save_dir=s3://b/x").config.output == "s3://b/x/ViT-B-P16"


def table(folder: Path) -> str:
    servers = [{"server_id": f"10.0.0.{n}", "device": [{"device_id": str(d)} for d in (4, 5)]} for n in (1, 2)]
    (folder / "table.json").write_text(json.dumps({"server_list": servers}))
    return str(folder / "table.json")


VC = {"VC_WORKER_NUM": "2", "VC_TASK_INDEX": "1", "VC_WORKER_HOSTS": "job-0.x,job-1.x"}
OLDER = {"DLS_TASK_NUMBER": "2", "DLS_TASK_INDEX": "1", "BATCH_CUSTOM0_HOSTS": "10.0.0.1:6666"}


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, ()),
        ({"VC_WORKER_NUM": "1", "VC_TASK_INDEX": "0"}, ()),
        (VC | {"TORCHELASTIC_RUN_ID": "x"}, ()),
        (VC, ("1", "2", "0", "job-0.x", "29500")),
        (VC | {"MASTER_PORT": "1234"}, ("1", "2", "0", "job-0.x", "1234")),
        (OLDER, ("1", "2", "0", "10.0.0.1", "29500")),
        ({"MA_NUM_HOSTS": "2", "VC_WORKER_HOSTS": "a,b"}, ("0", "2", "0", "a", "29500")),
        ({"RANK_ID": "3", "RANK_SIZE": "4"}, ("3", "4", "5", "10.0.0.1", "29500")),
        ({"RANK_ID": "0", "RANK_SIZE": "4", "ASCEND_DEVICE_ID": "7"}, ("0", "4", "7", "10.0.0.1", "29500")),
    ],
)
def test_what_the_environment_says(env: dict[str, str], expected: tuple[str, ...], tmp_path: Path) -> None:
    if "RANK_ID" in env:
        env = env | {"RANK_TABLE_FILE": table(tmp_path)}
    wanted = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    assert join(env, on_modelarts=True, engine="torch") == dict(zip(wanted, expected, strict=False))
    if "RANK_ID" not in env:  # other clusters set VC_ too
        assert join(env, on_modelarts=False, engine="torch") == {}


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"RANK_SIZE": "8"}, "RANK_SIZE=8 is set, but neither torchrun, msrun nor a rank table"),
        ({"RANK_ID": "4", "RANK_SIZE": "4", "RANK_TABLE_FILE": "TABLE"}, "does not go with the 4 devices"),
        ({"RANK_ID": "1", "RANK_SIZE": "8", "RANK_TABLE_FILE": "TABLE"}, "does not go with the 4 devices"),
        (VC | {"VC_TASK_INDEX": "2"}, "VC_TASK_INDEX=2, but VC_WORKER_NUM"),
        (VC | {"VC_WORKER_HOSTS": ""}, "neither VC_WORKER_HOSTS nor BATCH_CUSTOM0_HOSTS"),
        (VC | {"VC_WORKER_NUM": "two"}, "VC_WORKER_NUM=two is not a number"),
        (VC, "2 machines: MindSpore needs RANK_TABLE_FILE"),
    ],
)
def test_what_cannot_be_is_said(env: dict[str, str], message: str, tmp_path: Path) -> None:
    path = table(tmp_path)
    env = {name: path if value == "TABLE" else value for name, value in env.items()}
    engine = "mindspore" if "MindSpore" in message else "torch"
    with pytest.raises(ConfigError) as error:
        join(env, on_modelarts=True, engine=engine)
    assert message in str(error.value)


def test_one_process_on_a_machine_of_several_cards_starts_torchrun() -> None:
    command = torchrun(VC | {"MA_NUM_GPUS": "8"}, ["pretrain", "--config_path=f"])
    assert command is not None
    assert command[3:] == [
        *("--nnodes=2", "--node_rank=1", "--master_addr=job-0.x", "--master_port=29500", "--nproc_per_node=8"),
        *("-m", "unmask", "pretrain", "--config_path=f"),
    ]
    assert torchrun(VC, []) is None
    assert torchrun({"MA_NUM_GPUS": "8", "TORCHELASTIC_RUN_ID": "x"}, []) is None


@pytest.mark.parametrize(("engine", "device"), [("torch", "npu:5"), ("mindspore", "ascend:5")])
def test_without_a_launcher_a_process_takes_the_card_it_is_told(engine: str, device: str, monkeypatch: Any) -> None:
    for name, value in {"RANK_ID": "1", "RANK_SIZE": "4", "RANK_TABLE_FILE": "x", "DEVICE_ID": "5"}.items():
        monkeypatch.setenv(name, value)
    config = translate(f"--engine={engine}", "--device_target=Ascend").config
    assert (config.device, config.train.batch_size) == (device, 24)
