"""Evaluation in full, k-NN, probe and the sweep over labels, as a user types them, on real digits."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import unmask
import unmask.sweep
from runs import TINY_MODEL, start
from runs import unmask as run_command
from unmask.cli import main
from unmask.data.sources import open_source
from unmask.evaluate.fast_probe import fit_probe
from unmask.evaluate.features import Features
from unmask.interchange.adapt import interpolate_position_embedding
from unmask.sweep import ARMS

pytest.importorskip("torch", reason="PyTorch is not installed")

SHORT = ["train.batch_size=20", "optimizer.warmup_epochs=0", "train.log_every=50"]


def write_digits(root: Path, part: str, step: int) -> Path:
    source = open_source(f"bundled:mnist5k/{part}", key="data", labels=True)
    assert source.labels is not None
    for index in range(0, len(source), step):
        digit = source.read(index)
        assert isinstance(digit, np.ndarray)
        folder = root / str(source.labels[index])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digit[:, :, 0]).save(folder / f"{index:05}.png")
    return root


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("data") / "train", "train", 20)


@pytest.fixture(scope="module")
def val(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("data") / "val", "val", 10)


@pytest.fixture(scope="module")
def mae(tmp_path_factory: pytest.TempPathFactory, train: Path) -> Path:
    folder = tmp_path_factory.mktemp("mae") / "run"
    arguments = [f"data.train={train}", "train.epochs=1", f"output={folder}"]
    assert main(["pretrain", "mae-vit-tiny", *TINY_MODEL, *SHORT, *arguments]) == 0
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, train: Path) -> Path:
    folder = tmp_path_factory.mktemp("classifier") / "run"
    arguments = [f"data.train={train}", "train.epochs=10", f"output={folder}"]
    assert main(["finetune", "finetune-vit-tiny", *TINY_MODEL, *SHORT, *arguments]) == 0
    return folder


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.splitlines()[-1]


def test_evaluate_writes_everything(
    classifier: Path, val: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(classifier), str(val), "--out", str(tmp_path)]) == 0
    numbers = json.loads((tmp_path / "metrics.json").read_text())
    assert last_line(capsys) == f"accuracy={numbers['top1']:.3f}"
    model = unmask.load(classifier)
    source = open_source(str(val), key="images", labels=True)
    predicted = model.predict(val).argmax(1)
    assert source.labels is not None
    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (source.labels, predicted), 1)
    rows = list(csv.reader((tmp_path / "confusion.csv").read_text().splitlines()))
    assert np.array([row[1:] for row in rows[1:]], int).tolist() == confusion.tolist()
    assert rows[0][1:] == [row[0] for row in rows[1:]] == list("0123456789")
    per_class = list(csv.DictReader((tmp_path / "per_class.csv").read_text().splitlines()))
    assert [int(row["images"]) for row in per_class] == confusion.sum(1).tolist()
    assert [float(row["recall"]) for row in per_class] == pytest.approx(np.diag(confusion) / confusion.sum(1), abs=1e-6)
    assert numbers["top1"] == pytest.approx((predicted == source.labels).mean())
    rows = list(csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines()))
    assert [row["file"] for row in rows] == [source.name(i) for i in range(len(source))]
    assert [int(row["true"]) for row in rows] == source.labels.tolist()
    assert [int(row["predicted"]) for row in rows] == predicted.tolist()
    shares = model.predict(val)
    assert [float(row["probability"]) for row in rows] == pytest.approx(shares.max(1), abs=1e-5)
    assert [float(row["loss"]) for row in rows] == pytest.approx(
        -np.log(shares[np.arange(len(rows)), source.labels]), abs=1e-4
    )
    for name in ("confusion.png", "worst.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 400, name


def test_folders_by_other_names_need_a_map(
    classifier: Path, val: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two classes under other names: refused with the difference, and the same figures by number and by name."""
    for number, name in ((3, "three"), (7, "seven")):
        shutil.copytree(val / str(number), tmp_path / "images" / name)
    images = str(tmp_path / "images")
    assert main(["evaluate", str(classifier), images]) == 3
    assert "only the images ['seven', 'three'], only the model ['0'" in capsys.readouterr().err
    (tmp_path / "map.json").write_text('{"three": 3, "seven": 7}')
    (tmp_path / "map.csv").write_text("folder,class\nseven,7\nthree,3\n")
    found = []
    for name in ("map.json", "map.csv"):
        out = tmp_path / name.replace(".", "-")
        assert main(["evaluate", str(classifier), images, "--class-map", str(tmp_path / name), "--out", str(out)]) == 0
        found.append(json.loads((out / "metrics.json").read_text()))
    assert found[0] == found[1]
    probabilities = unmask.load(classifier).predict(images)
    labels = np.array([7] * len(list((val / "7").iterdir())) + [3] * len(list((val / "3").iterdir())))
    assert found[0]["count"] == len(labels)
    assert found[0]["top1"] == pytest.approx((probabilities.argmax(1) == labels).mean())


def test_labels_from_a_list_and_images_from_an_array(classifier: Path, val: Path, tmp_path: Path) -> None:
    """Whatever training reads, the read-outs read."""
    files = sorted(val.glob("*/*.png"))
    rows = "".join(f"{path},{path.parent.name}\n" for path in reversed(files))
    (tmp_path / "val.csv").write_text(f"file,class\n{rows}")
    model = unmask.load(classifier)
    assert model.evaluate(tmp_path / "val.csv") == pytest.approx(model.evaluate(val))
    pixels = [np.asarray(Image.open(path)) for path in files[:3]]
    np.save(tmp_path / "images.npy", np.stack(pixels)[..., None])
    expected = model.embed(files[:3])
    np.testing.assert_array_equal(model.embed(tmp_path / "images.npy"), expected)
    np.testing.assert_allclose(model.embed(files[0]), expected[:1], rtol=1e-4, atol=1e-5)


def test_several_classes_an_image(classifier: Path, val: Path, tmp_path: Path) -> None:
    files = sorted(val.glob("*/*.png"))
    sets = [{path.parent.name, str(number % 10)} for number, path in enumerate(files)]
    rows = "".join(f"{path},{';'.join(sorted(s))}\n" for path, s in zip(files, sets, strict=True))
    (tmp_path / "val.csv").write_text(f"file,label\n{rows}")
    model = unmask.load(classifier)
    values = model.evaluate(tmp_path / "val.csv")
    best = model.predict(files).argmax(1)
    assert values["count"] == len(files)
    assert values["top1"] == pytest.approx(np.mean([str(c) in s for c, s in zip(best, sets, strict=True)]))
    assert 0 < values["rank_precision"] <= 1


@pytest.mark.parametrize("background", [False, True])
def test_a_head_with_a_background_class_is_evaluated_with_shifted_labels(
    classifier: Path, val: Path, tmp_path: Path, background: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the ImageNet heads of 1,001 classes: the same weights, with a class before the first or after the last."""
    from safetensors.numpy import load_file, save_file

    checkpoint = max((classifier / "checkpoints").glob("step-*"))
    weights = load_file(checkpoint / "weights.safetensors")
    for name in ("head.weight", "head.bias"):
        row = np.full_like(weights[name][:1], -1 if name == "head.bias" else 0)
        weights[name] = np.concatenate([row, weights[name]] if background else [weights[name], row])
    save_file(weights, tmp_path / "eleven.safetensors")
    settings = {"model.heads": 4, "model.image_size": 28, "data.mean": [0.1307], "data.std": [0.3081]}
    model = unmask.load(tmp_path / "eleven.safetensors", settings=settings)
    assert model.config.model.num_classes == 11
    with pytest.raises(unmask.errors.DataError, match="10 classes and the model's head has 11"):
        model.evaluate(val)
    expected = unmask.load(classifier).evaluate(val)
    shifted = model.evaluate(val, label_offset=int(background))
    assert shifted["top1"] == expected["top1"]
    assert shifted["loss"] != expected["loss"], "the eleventh class has its share of the probability"


def test_killed_in_the_middle_the_same_command_goes_on(classifier: Path, tmp_path: Path) -> None:
    """SIGKILL while it works: the files are those of a run in one go, byte for byte."""
    images = write_digits(tmp_path / "images", "train", 2)
    (images / "0" / "00001.png").write_bytes(b"not a picture")
    arguments = ["predict", str(classifier), str(images), "--batch-size", "8", "--device", "cpu"]
    whole = run_command(*arguments, "--out", "whole/p.parquet", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    part = tmp_path / "part" / "p.parquet.partial" / "000001.json"
    process = start(*arguments, "--out", "part/p.parquet", cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not part.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "part" / "p.parquet").exists()
    resumed = run_command(*arguments, "--out", "part/p.parquet", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "of 2001 images are done already" in resumed.stdout
    assert "1 of 2001 images cannot be decoded" in resumed.stdout
    found = {path.name: path.read_bytes() for path in (tmp_path / "part").iterdir()}
    assert found == {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert found["p.parquet.bad.txt"].startswith(b"0/00001.png\t")


def test_batches_from_the_middle_are_those_of_the_whole(classifier: Path, val: Path) -> None:
    model = unmask.load(classifier, batch_size=16)
    source = open_source(str(val), key="images", labels=False)
    for ask in (model.embed_batches, model.predict_batches):
        whole, some = list(ask(source)), list(ask(source, [range(16, 32), range(48, len(source))]))
        assert len(whole) == len(some) + 2
        for ours, theirs in zip(some, [whole[1], *whole[3:]], strict=True):
            np.testing.assert_array_equal(ours.index, theirs.index)
            np.testing.assert_array_equal(ours.values, theirs.values)


def test_predictions_as_parquet_are_those_of_the_model(classifier: Path, val: Path, tmp_path: Path) -> None:
    assert main(["predict", str(classifier), str(val), "--top", "2", "--out", str(tmp_path / "p.parquet")]) == 0
    table = pq.read_table(tmp_path / "p.parquet")
    assert table.column_names == ["file", "true", "class_1", "probability_1", "class_2", "probability_2"]
    assert table["true"].to_pylist() == [name.partition("/")[0] for name in table["file"].to_pylist()]
    assert main(["predict", str(classifier), str(next(val.glob("*/*.png"))), "--out", str(tmp_path / "one.jsonl")]) == 0
    assert json.loads((tmp_path / "one.jsonl").read_text()).keys() == {"file", "predictions"}, "no folder tells it"
    probabilities = unmask.load(classifier).predict(val)
    order = np.argsort(-probabilities, axis=1)
    assert table["class_1"].to_pylist() == [str(c) for c in order[:, 0]]
    np.testing.assert_allclose(table["probability_2"].to_numpy(), np.sort(probabilities, axis=1)[:, -2], rtol=1e-5)


def test_embeddings_have_a_map_neighbours_paths_and_classes(mae: Path, val: Path, tmp_path: Path) -> None:
    """What Embedding Atlas and Spotlight ask for; .npy has the same vectors."""
    for name in ("e.parquet", "e.npy", "patches.parquet"):
        pool = ["--pool", "patches"] if name == "patches.parquet" else []
        assert main(["embed", str(mae), str(val), *pool, "--out", str(tmp_path / name)]) == 0
    table = pq.read_table(tmp_path / "e.parquet")
    assert table.column_names == ["file", "path", "class", "x", "y", "neighbors", "embedding"]
    vectors = np.stack(table["embedding"].to_numpy(zero_copy_only=False))
    np.testing.assert_array_equal(vectors, np.load(tmp_path / "e.npy"))
    files = [str((val / file).resolve()) for file in table["file"].to_pylist()]
    assert table["path"].to_pylist() == files
    assert table["class"].to_pylist() == [file.partition("/")[0] for file in table["file"].to_pylist()]
    assert np.abs(np.stack([table["x"].to_numpy(), table["y"].to_numpy()])).max() == pytest.approx(1)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    distance = 1 - unit @ unit.T
    np.fill_diagonal(distance, np.inf)
    for row, near in enumerate(table["neighbors"].to_pylist()):
        np.testing.assert_allclose(near["distances"], np.sort(distance[row])[:12], atol=1e-5)
        np.testing.assert_allclose(distance[row][near["ids"]], near["distances"], atol=1e-5)
    assert pq.read_schema(tmp_path / "patches.parquet").names == ["file", "path", "class", "embedding"]


def test_another_result_is_not_gone_on_with(
    classifier: Path, mae: Path, val: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "e.npy"
    folder = tmp_path / "e.npy.partial"
    folder.mkdir()
    (folder / "job.json").write_text("{}")
    assert main(["embed", str(mae), str(val), "--out", str(out)]) == 2
    assert "another result" in capsys.readouterr().err


def test_knn_and_probe_share_the_features(
    mae: Path, train: Path, val: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = ["--cache", str(tmp_path)]
    assert main(["knn", str(mae), str(train), str(val), "--k", "5", *cache]) == 0
    accuracy = last_line(capsys)
    model = unmask.load(mae)
    database, queries = model.embed(train), model.embed(val)
    labels = [np.asarray(open_source(str(folder), key="x", labels=True).labels) for folder in (train, val)]
    similarity = (queries / np.linalg.norm(queries, axis=1)[:, None]) @ (
        database / np.linalg.norm(database, axis=1)[:, None]
    ).T
    best = np.argsort(-similarity, axis=1)[:, :5]
    weight = np.exp(np.take_along_axis(similarity, best, 1) / 0.07)
    scores = np.stack([(weight * (labels[0][best] == label)).sum(1) for label in range(10)], axis=1)
    assert accuracy == f"accuracy={(scores.argmax(1) == labels[1]).mean():.3f}"

    assert main(["probe", str(mae), str(train), str(val), *cache]) == 0
    out = capsys.readouterr().out
    assert "embed train: 200 of 200 images are done already" in out
    assert sum("chosen" in line for line in out.splitlines()) >= 1
    assert float(out.splitlines()[-1].removeprefix("accuracy=")) > 0.3, "ten classes, 20 images of each"


def test_the_classes_of_train_and_val_must_be_the_same(
    mae: Path, train: Path, val: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(val / "1", tmp_path / "eleven")
    for command in ("knn", "probe"):
        assert main([command, str(mae), str(train), str(tmp_path)]) == 3
        assert "only val ['eleven']" in capsys.readouterr().err


def test_the_sweep_over_labels(
    mae: Path,
    train: Path,
    val: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unmask.sweep, "CNN_STEPS", 3)
    output = tmp_path / "sweep"
    arguments = ["sweep-labels", "finetune-vit-tiny", *TINY_MODEL, *SHORT, f"init={mae}", f"output={output}"]
    arguments += ["objective.head=drawn"]  # without trials
    arguments += [f"data.train={train}", f"data.val={val}", "--labels", "2", "4", "--seeds", "7", "--steps", "3"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-4].split() == ["labels", "per", "class", *ARMS]
    rows = list(csv.DictReader((output / "few-labels.csv").read_text().splitlines()))
    assert len(rows) == len(ARMS) * 2
    assert {(row["arm"], row["labels_per_class"], row["seed"]) for row in rows} == {
        (arm, n, "7") for arm in ARMS for n in "24"
    }
    assert (output / "few-labels.png").stat().st_size > 5000
    assert out.count("images, 3 steps") == 6, "whatever the number of labels"
    assert "cnn-2-labels-seed-7: 20 images, 12 steps" in out, "its recipe's 40 epochs of 64 images a step"
    assert "cnn-4-labels-seed-7: 40 images, 25 steps" in out
    assert out.count("whose labels are not looked at, 3 steps") == 2
    for row in rows:
        if row["arm"] not in ("probe", "attentive", "handmade"):
            folder = output / f"{row['arm']}-{row['labels_per_class']}-labels-seed-{row['seed']}"
            log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            assert float(row["accuracy"]) == pytest.approx(log[-1]["top1"], abs=1e-6)
    expected = (output / "few-labels.csv").read_bytes()

    interrupted = output / "scratch-4-labels-seed-7" / "result.json"
    interrupted.unlink()
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert out.count("is finished: accuracy") == 15
    assert interrupted.exists()
    assert (output / "few-labels.csv").read_bytes() == expected


@pytest.fixture(scope="module")
def first_sweep(mae: Path, train: Path, val: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first-sweep")
    for images in (train, val):
        shutil.copytree(images, folder / "images" / images.name)
    assert main([*sweep_of(mae, folder), "--arms", "probe", "--labels", "2", "--seeds", "7"]) == 0
    return folder


def sweep_of(mae: Path, folder: Path) -> list[str]:
    """All but which arms, numbers of labels and seeds."""
    arguments = ["sweep-labels", "finetune-vit-tiny", *TINY_MODEL, *SHORT, f"output={folder / 'sweep'}"]
    arguments += [f"data.train={folder / 'images' / 'train'}", f"data.val={folder / 'images' / 'val'}"]
    return [*arguments, f"init={mae}", "train.epochs=1"]


@pytest.fixture
def swept(first_sweep: Path, mae: Path, tmp_path: Path) -> list[str]:
    """A sweep of which one arm, number of labels and seed are there: all but what asks for them."""
    shutil.copytree(first_sweep, tmp_path, dirs_exist_ok=True)
    return sweep_of(mae, tmp_path)


def table_of(folder: Path) -> list[tuple[str, ...]]:
    return [tuple(row) for row in csv.reader((folder / "few-labels.csv").read_text("utf-8-sig").splitlines())][1:]


@pytest.mark.parametrize(
    ("arm", "labels", "seeds"), [("handmade", "2", ["7"]), ("probe", "4", ["7"]), ("scratch", "2", ["8", "9"])]
)
def test_a_sweep_with_other_arms_labels_or_seeds_is_added(
    swept: list[str], tmp_path: Path, arm: str, labels: str, seeds: list[str]
) -> None:
    before = table_of(tmp_path / "sweep")
    assert main([*swept, "--arms", arm, "--labels", labels, "--seeds", *seeds]) == 0
    after = table_of(tmp_path / "sweep")
    assert len(after) == len(before) + len(seeds)
    assert {row[:3] for row in set(after) - set(before)} == {(arm, labels, seed) for seed in seeds}


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (["--steps", "4"], 2, "holds results of another sweep (--steps: None -> 4)"),
        (["optimizer.base_lr=0.5"], 2, "base_lr: "),
        (["init=OTHER"], 2, "init: other weights"),
        (["removed train"], 3, "data.train is not what the results in"),
        (["overwritten val"], 3, "data.val is not what the results in"),
    ],
)
def test_a_sweep_that_is_another_is_not_added(
    swept: list[str],
    mae: Path,
    tmp_path: Path,
    change: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = (tmp_path / "sweep" / "few-labels.csv").read_bytes()
    if change == ["init=OTHER"]:
        pretrain = ["pretrain", "mae-vit-tiny", *TINY_MODEL, *SHORT, f"data.train={tmp_path / 'images' / 'train'}"]
        assert main([*pretrain, "train.epochs=1", "seed=5", f"output={tmp_path / 'other'}"]) == 0
        change = [f"init={tmp_path / 'other'}"]
    elif change == ["removed train"]:
        next((tmp_path / "images" / "train" / "3").iterdir()).unlink()
        change = []
    elif change == ["overwritten val"]:
        image = next((tmp_path / "images" / "val" / "3").iterdir())
        image.write_bytes(image.read_bytes()[::-1])
        change = []
    settings = [each for each in change if "=" in each]
    keys = {each.partition("=")[0] for each in settings}
    swept = [each for each in swept if each.partition("=")[0] not in keys] + settings
    options = [each for each in change if "=" not in each]
    assert main([*swept, *options, "--arms", "probe", "--labels", "4", "--seeds", "7"]) == code
    assert message in capsys.readouterr().err
    assert (tmp_path / "sweep" / "few-labels.csv").read_bytes() == table
    assert not (tmp_path / "sweep" / "probe-4-labels-seed-7").exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "another arm", "another accuracy", "a list"])
def test_a_damaged_result_of_a_sweep_is_named_and_made_anew(
    swept: list[str], tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sweep" / "probe-2-labels-seed-7" / "result.json"
    table, text = table_of(tmp_path / "sweep"), path.read_text()
    accuracy = json.loads(text)["accuracy"]
    changed = {
        "cut": text[: len(text) // 2],
        "empty": "",
        "another arm": text.replace('"arm": "probe"', '"arm": "prone"'),
        "another accuracy": text.replace(f'"accuracy": {accuracy}', f'"accuracy": {accuracy + 0.25}'),
        "a list": f"[{text}]",
    }
    path.write_text(changed[damage])
    assert path.read_text() != text
    words = [*swept, "--arms", "probe", "--labels", "2", "--seeds", "7"]
    assert main(words) == 4
    assert f"{path} is damaged, or of an earlier version; remove it" in capsys.readouterr().err
    path.unlink()
    assert main(words) == 2, "the table would be lost"
    (tmp_path / "sweep" / "few-labels.csv").unlink()
    assert main(words) == 0
    assert table_of(tmp_path / "sweep") == table


def test_all_arms_of_a_sweep_leave_out_what_is_excluded(
    swept: list[str], train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With as many labels as are left, the images of an arm are known."""
    names = sorted(f"{path.parent.name}/{path.name}" for path in train.glob("*/*.png"))
    per_class = {label: [name for name in names if name.startswith(f"{label}/")] for label in "0123456789"}
    left_out = [name for members in per_class.values() for name in members[3:]]
    (tmp_path / "exclude.txt").write_text("".join(f"{name}\n" for name in left_out))
    arguments = [each for each in swept if not each.startswith("output=")]
    arguments += [f"data.exclude={tmp_path / 'exclude.txt'}", f"output={tmp_path / 'less'}", "--seeds", "7"]
    assert main([*arguments, "--arms", "handmade", "--labels", "3"]) == 0
    assert main([*arguments, "--arms", "handmade", "--labels", "4"]) == 3
    assert "3 images, fewer than" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--labels", "2"], 2, "sweep-labels needs init=…, data.train=…, data.val=…, output=…"),
        (["init=MAE", "data.train=TRAIN", "data.val=VAL", "output=x", "--labels", "2000"], 3, "fewer than"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_at_once(
    mae: Path,
    train: Path,
    val: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, path in (("MAE", mae), ("TRAIN", train), ("VAL", val)):
        arguments = [argument.replace(name, str(path)) for argument in arguments]
    assert main(["sweep-labels", "finetune-vit-tiny", *TINY_MODEL, *arguments]) == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_model_takes_images_of_another_size(mae: Path, val: Path) -> None:
    stated = unmask.load(mae)
    larger = unmask.load(mae, settings={"model.image_size": 42})
    assert stated.patch_features(val).shape[1:3] == (4, 4)
    assert larger.patch_features(val).shape[1:3] == (6, 6)
    positions = interpolate_position_embedding(stated.engine.state().weights["pos_embed"], (4, 4), (6, 6))
    np.testing.assert_array_equal(larger.engine.state().weights["pos_embed"], positions)


def test_fine_tuning_can_start_at_the_probe(
    mae: Path, train: Path, val: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a learning rate of zero it stays there: the accuracy is the probe's on the features of the classifier."""
    arguments = ["finetune", "finetune-vit-tiny", *TINY_MODEL, *SHORT, f"init={mae}", "objective.head=probe"]
    arguments += [f"data.train={train}", f"data.val={val}", "train.epochs=0.1", "optimizer.base_lr=0"]
    arguments += ["optimizer.min_lr=0", f"output={tmp_path / 'run'}"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "the head starts as the linear probe of" in out
    model = unmask.load(tmp_path / "run")
    sources = [open_source(str(folder), key="x", labels=True) for folder in (train, val)]
    features = [Features(model.embed(source), np.asarray(source.labels)) for source in sources]
    expected = fit_probe(*features, 10).accuracy
    assert expected > 0.3
    assert f"val top1 {expected:.4f}" in out
    assert main([*arguments[:-1], f"output={tmp_path / 'other'}", "model.num_classes=11"]) == 2
    assert "data.train has 10 classes of model.num_classes=11" in capsys.readouterr().err
