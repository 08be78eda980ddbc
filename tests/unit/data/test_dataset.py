"""Map-style data sets of other libraries as sources."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from unmask.config.schema import AugmentConfig, DataConfig, ModelConfig
from unmask.data.batch import ClassTargets, Needs
from unmask.data.loader.pipeline import train_batches
from unmask.data.sources import Source, check_picklable, to_source
from unmask.data.sources.dataset import DatasetSource
from unmask.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 12, 10, 3), np.uint8)


class Pairs:
    """(image, label) as torchvision's data sets give them; attributes as keywords."""

    def __init__(self, given: Any, images: Any = IMAGES, /, **attributes: Any) -> None:
        self.images, self.given = images, given
        self.reads = 0
        self.__dict__ |= attributes

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        return self.images[index], self.given[index]


class Bare:
    """Images alone."""

    def __init__(self, images: Any = IMAGES) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        if isinstance(self.images[index], Exception):
            raise self.images[index]
        return self.images[index]


def opened(dataset: Any, *, labels: bool = True, dtype: str = "uint8") -> Source:
    source = to_source(dataset, key="data.train", labels=labels, dtype=dtype)
    assert isinstance(source, DatasetSource)
    return source


def labels_of(source: Source) -> list[int]:
    assert source.labels is not None
    assert source.labels.dtype == np.int64
    return source.labels.tolist()


def test_items_in_any_form(tmp_path: Path):
    Image.fromarray(IMAGES[0]).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    forms: list[Any] = [IMAGES[0], Image.fromarray(IMAGES[0]), data, tmp_path / "a.png", str(tmp_path / "a.png")]
    for dataset in (Bare(forms), Bare([(form,) for form in forms]), Pairs([3] * 5, forms)):
        source = opened(dataset, labels=False)
        assert (len(source), source.labels, source.class_names) == (5, None, None)
        assert_array_equal(source.read(0), IMAGES[0])
        assert_array_equal(source.read(1), IMAGES[0])
        assert [source.read(i) for i in (2, 3, 4)] == [data] * 3
        assert source.name(3) == f"{type(dataset).__name__}[3]"
        with pytest.raises(IndexError):
            source.read(5)


@pytest.mark.parametrize("attribute", ["targets", "labels"])
@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_labels_known_beforehand_are_not_read(attribute: str, kind: Any):
    dataset = Pairs([2, 0, 1, 2], **{attribute: kind([2, 0, 1, 2])})
    source = opened(dataset)
    assert labels_of(source) == [2, 0, 1, 2]
    assert source.class_names == ("0", "1", "2")
    assert dataset.reads == 0


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"targets": [0, 0]},
        {"targets": np.zeros((4, 40))},
        {"targets": [0.5] * 4},
        {"targets": None, "labels": 3},
        {"targets": [0] * 4, "target_transform": lambda label: label},  # pyright: ignore[reportUnknownLambdaType]
    ],
)
def test_labels_are_read_where_none_are_known(attributes: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    dataset = Pairs([2, 0, 1, 2], **attributes)
    assert labels_of(opened(dataset)) == [2, 0, 1, 2]
    assert dataset.reads == 4
    assert "labels  100%  4/4 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("labels", "numbers", "names"),
    [
        ([10, 9, 2], [2, 1, 0], ("2", "9", "10")),
        ([np.int64(1), np.uint8(0), np.array(2)], [1, 0, 2], ("0", "1", "2")),
        ([True, False, True], [1, 0, 1], ("0", "1")),
        (["b", "é", "B"], [1, 2, 0], ("B", "b", "é")),
        (["10", "9", "-2"], [2, 1, 0], ("-2", "9", "10")),
        ([np.str_("dog"), "cat", "dog"], [1, 0, 1], ("cat", "dog")),
    ],
)
def test_classes_are_numbered_as_everywhere(labels: list[Any], numbers: list[int], names: tuple[str, ...]):
    source = opened(Pairs(labels))
    assert (labels_of(source), source.class_names) == (numbers, names)


@pytest.mark.parametrize(
    ("labels", "classes", "numbers", "names"),
    [
        ([1, 0], ["cat", "dog", "fish"], [1, 0], ("cat", "dog", "fish")),
        ([1, 2], ["cat", "dog"], [0, 1], ("1", "2")),  # not enough
        (["fish", "cat"], ["fish", "dog", "cat"], [0, 2], ("fish", "dog", "cat")),
        (["fish", "owl"], ["fish", "dog", "cat"], [0, 1], ("fish", "owl")),
        ([1, 0], [("tench", "Tinca tinca"), ("goldfish",)], [1, 0], ("tench, Tinca tinca", "goldfish")),
        ([1, 0], 5, [1, 0], ("0", "1")),
    ],
)
def test_names_of_the_data_set(labels: list[Any], classes: Any, numbers: list[int], names: tuple[str, ...]):
    source = opened(Pairs(labels, classes=classes))
    assert (labels_of(source), source.class_names) == (numbers, names)


def test_list_of_pairs_is_a_data_set():
    source = opened([(IMAGES[0], "cat"), (IMAGES[1], "ant")])
    assert (labels_of(source), source.class_names) == ([1, 0], ("ant", "cat"))
    assert_array_equal(source.read(1), IMAGES[1])


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Bare(IMAGES[:0]), r"^data\.train: the Bare holds no images$"),
        (Bare(), r"^Bare\[0\] has no label; .*\.targets$"),
        (Pairs([0, 1.5]), r"^Pairs\[1\] has no label"),
        (Pairs([0, None]), r"^Pairs\[1\] has no label"),
        (Pairs([-1, -1]), r"^data\.train: Pairs: all labels are -1, which stands for none"),
        (Bare([(1, 2, 3)]), r"^Bare\[0\] is a tuple of 3; it must be an image or \(image, label\)$"),
    ],
)
def test_what_cannot_be_labelled(dataset: Any, message: str):
    with pytest.raises(DataError, match=message):
        opened(dataset)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (OSError(5, "broken\nstick"), r"^Bare\[1\] raised OSError: \[Errno 5\] broken stick$"),
        (KeyError("x"), r"^Bare\[1\] raised KeyError: 'x'$"),
        ({"image": 1}, r"^Bare\[1\] is a dict, which is no image; give a path"),
        (np.zeros((3, 9, 9), np.uint8), r"^Bare\[1\] is uint8 of shape \(3, 9, 9\), which is not clearly"),
    ],
)
def test_bad_item_is_a_bad_image(item: Any, message: str):
    source = opened(Bare([IMAGES[0], item]), labels=False)
    with pytest.raises(DataError, match=message):
        source.read(1)
    assert source.fingerprint()


def batches(source: Source, *, workers: int = 0) -> list[Any]:
    steps = train_batches(
        source,
        needs=Needs(targets=ClassTargets(4)),
        model=ModelConfig(image_size=(16, 16), patch_size=8, width=16, depth=1, heads=2, num_classes=4),
        data=DataConfig(workers=workers),
        augment=AugmentConfig(),
        seed=0,
        batch_size=8,
        accumulate=1,
        start_step=0,
        stop_step=5,
    )
    return [batch for (batch,) in steps]


def test_training_replaces_bad_items():
    images: list[Any] = [*IMAGES]
    images[7] = "no such file"
    made = batches(opened(Pairs([i % 4 for i in range(40)], images)))
    assert sorted(np.concatenate([batch.bad for batch in made]).tolist()) == [7]
    index = np.concatenate([batch.index for batch in made])
    assert 7 not in index
    assert_array_equal(np.concatenate([batch.labels for batch in made]), index % 4)


def test_loader_processes_make_the_same_batches():
    source = opened(Pairs([i % 4 for i in range(40)]))
    check_picklable(source, "data.train")
    for one, other in zip(batches(source), batches(source, workers=2), strict=True):
        assert_array_equal(one.images, other.images)
        assert_array_equal(one.labels, other.labels)


def test_data_set_that_cannot_be_sent_is_refused_before_the_start():
    source = opened(Pairs([0, 1], lock=threading.Lock()))
    message = r"^data\.train cannot be sent to loader processes: TypeError: .*lock.*; set data\.workers=0, which"
    with pytest.raises(DataError, match=message):
        check_picklable(source, "data.train")


def test_fingerprint_tells_what_differs():
    class Other(Pairs):
        pass

    labels = [i % 4 for i in range(40)]
    changed = IMAGES.copy()
    changed[39, 0, 0, 0] ^= 1
    found = [
        opened(dataset, labels=labelled).fingerprint()
        for dataset, labelled in [
            (Pairs(labels), True),
            (Pairs(labels), False),
            (Pairs(labels[::-1]), True),
            (Pairs(labels[:39]), True),
            (Pairs(labels, changed), True),
            (Other(labels), True),
        ]
    ]
    assert len(set(found)) == 6
    assert opened(Pairs(labels, IMAGES.copy())).fingerprint() == found[0]


def test_fingerprint_reads_sixteen_items():
    dataset = Pairs(list(range(40)), targets=list(range(40)))
    opened(dataset).fingerprint()
    assert dataset.reads == 16


def test_torch_data_sets():
    data: Any = pytest.importorskip("torch.utils.data", reason="PyTorch is not installed")
    torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
    tensors = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)
    labels = torch.arange(40) % 3
    whole = data.TensorDataset(tensors.float() / 255, labels)
    source = opened(whole)
    assert labels_of(source) == labels.tolist()
    assert_array_equal(source.read(5), IMAGES[5])
    part = opened(data.Subset(whole, [4, 2]))
    assert (labels_of(part), part.class_names) == ([0, 1], ("1", "2"))
    assert_array_equal(part.read(1), IMAGES[2])
    assert labels_of(opened(Pairs(labels, targets=labels))) == labels.tolist()
    assert_array_equal(opened(data.TensorDataset(tensors), labels=False).read(39), IMAGES[39])

    class Stream(data.IterableDataset):
        def __iter__(self) -> Any:
            return iter(IMAGES)

    with pytest.raises(DataError, match="is a Stream; give"):
        opened(Stream())
