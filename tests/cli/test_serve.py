"""`unmask serve` as a user starts it: a real process on loopback, a real browser, real and hostile requests."""

from __future__ import annotations

import io
import json
import re
import signal
import socket
import struct
import subprocess
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import unmask
from browser import Watched, browser, until
from runs import TINY_MODEL, start
from unmask.cli import main
from unmask.data.sources import open_source

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("starlette", reason="Starlette is not installed")

SHORT = ["train.batch_size=20", "optimizer.warmup_epochs=0", "train.log_every=5", "train.epochs=2"]
GUIDES = Path(__file__).parents[2] / "docs"
TRAIN, VAL = "bundled:mnist5k/train", "bundled:mnist5k/val"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    common = [*TINY_MODEL, *SHORT, f"data.train={TRAIN}", "data.labels_per_class=10"]
    assert main(["pretrain", "mae-vit-tiny", *common, f"output={root}/mae"]) == 0
    assert (
        main(
            [
                "finetune",
                "finetune-vit-tiny",
                *common,
                f"init={root}/mae",
                "objective.head=drawn",
                f"output={root}/classifier",
            ]
        )
        == 0
    )
    return root


def served(*arguments: str | Path, cwd: Path) -> tuple[subprocess.Popen[str], str]:
    """The process, once it answers, and its address."""
    process = start("serve", *arguments, "--device", "cpu", "--port", "0", cwd=cwd)
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"http://[\d.:]+", line):
            return process, found[0]
    raise AssertionError(process.communicate()[1])


@pytest.fixture(scope="module")
def classifier(runs: Path) -> Generator[str]:
    process, url = served("classifier", "--images", VAL, "--most", "50", cwd=runs)
    yield url
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)


@pytest.fixture(scope="module")
def mae(runs: Path) -> Generator[str]:
    process, url = served("mae", cwd=runs)
    yield url
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)


def digit(number: int = 0) -> np.ndarray:
    pixels = open_source(VAL, key="data", labels=False).read(number)
    assert isinstance(pixels, np.ndarray)
    return pixels[:, :, 0]


def png(pixels: np.ndarray) -> bytes:
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "PNG")
    return held.getvalue()


def ask(url: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
    headers = {"Content-Type": "image/png", **{name.replace("_", "-"): value for name, value in headers.items()}}
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            content, status = response.read(), response.status
    except urllib.error.HTTPError as error:
        content, status = error.read(), error.code
    return status, json.loads(content)


def form(files: dict[str, bytes]) -> tuple[bytes, str]:
    lines = b"".join(
        b'--b\r\nContent-Disposition: form-data; name="image"; filename="%s"\r\n\r\n%s\r\n' % (name.encode(), content)
        for name, content in files.items()
    )
    return lines + b"--b--\r\n", "multipart/form-data; boundary=b"


def test_what_the_classifier_answers_is_what_the_model_says(classifier: str, runs: Path) -> None:
    status, found = ask(f"{classifier}/api/look?want=predictions,embedding,neighbours,attention&top=3", png(digit()))
    assert status == 200
    (one,) = found["images"]
    with unmask.load(runs / "classifier") as model:
        shares, features = model.predict([digit()])[0], model.embed([digit()])[0]
        attention = model.attention([digit()])[0].mean(0)
    assert [each["probability"] for each in one["predictions"]] == pytest.approx(np.sort(shares)[::-1][:3], abs=1e-5)
    assert one["predictions"][0]["class"] == str(shares.argmax())
    np.testing.assert_allclose(one["embedding"], features, rtol=1e-4, atol=1e-5)
    assert one["neighbours"][0]["similarity"] == pytest.approx(1, abs=1e-5)
    assert one["neighbours"][0]["class"] in "0123456789"
    np.testing.assert_allclose(one["attention"]["patches"], attention[0, 1:], atol=1e-5)
    with urllib.request.urlopen(f"{classifier}/api/images/{one['neighbours'][0]['image']}") as response:
        assert Image.open(io.BytesIO(response.read())).size == (28, 28)


def test_a_batch_with_an_image_that_cannot_be_read(classifier: str) -> None:
    body, kind = form({"a.png": png(digit(0)), "猫.png": b"no image at all", "c.png": png(digit(1))})
    status, found = ask(f"{classifier}/api/look?want=predictions", body, Content_Type=kind)
    assert status == 200
    assert [one["name"] for one in found["images"]] == ["a.png", "猫.png", "c.png"]
    assert ["error" in one for one in found["images"]] == [False, True, False]


def test_the_patches_that_are_named_are_hidden(mae: str) -> None:
    status, found = ask(f"{mae}/api/look?want=crop,reconstruction&hidden=0,5,15", png(digit()))
    assert status == 200
    (one,) = found["images"]
    assert one["reconstruction"]["hidden"] == [0, 5, 15]
    _, found = ask(f"{mae}/api/look?mask_ratio=0.5&seed=3", png(digit()))
    assert len(found["images"][0]["reconstruction"]["hidden"]) == 8
    assert ask(f"{mae}/api/look?mask_ratio=0.5&seed=3", png(digit()))[1] == found


def bomb() -> bytes:
    """A PNG of some kilobytes that claims, and has, 30,000 x 30,000 grey pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(30_001 * 300))) + chunk(b"IEND", b"")


def test_hostile_requests_get_json_and_the_server_lives(classifier: str, mae: str) -> None:
    look = f"{classifier}/api/look"
    for url, body, headers, status, said in (
        (look, b"", {}, 400, "empty"),
        (look, b"<svg onload=alert(1)>", {}, 200, "error"),
        (look, bomb(), {}, 200, "pixels"),
        (look, png(digit())[:100], {}, 200, "error"),
        (look, bytes(21 * 2**20), {}, 413, "more than"),
        (look, b"--b\r\nbroken", {"Content_Type": "multipart/form-data; boundary=b"}, 400, "form"),
        (look, b"x", {"Content_Type": "multipart/form-data"}, 400, "boundary"),
        (look, form({f"{i}": b"x" for i in range(65)})[0], {"Content_Type": form({})[1]}, 400, "64"),
        (f"{look}?want=soup", png(digit()), {}, 400, "predictions"),
        (f"{look}?want=reconstruction", png(digit()), {}, 400, "this model answers"),
        (f"{look}?mask_ratio=nan", png(digit()), {}, 400, "mask_ratio"),
        (f"{look}?top=0", png(digit()), {}, 400, "top"),
        (f"{look}?patch=99&want=attention", png(digit()), {}, 400, "0 to 15"),
        (f"{look}?block=7&want=attention", png(digit()), {}, 400, "blocks 0 to 1"),
        (f"{look}?taste=sweet", png(digit()), {}, 400, "no parameter"),
        (f"{mae}/api/look?hidden=", png(digit()), {}, 400, "hidden"),
        (f"{mae}/api/look?hidden=1,99", png(digit()), {}, 400, "0 to 15"),
        (f"{classifier}/api/look", None, {}, 405, "error"),
        (f"{classifier}/api/images/999", None, {}, 404, "no image"),
        (f"{classifier}/../../etc/passwd", None, {}, 404, "error"),
        (f"{classifier}/api/model", None, {"Host": "evil.example"}, 421, "name"),
    ):
        found = ask(url, body, **headers)
        assert found[0] == status, (url, found)
        assert said in json.dumps(found[1]), (url, found)
    # A request without an end, and one that breaks off.
    address = (classifier.removeprefix("http://").split(":")[0], int(classifier.rpartition(":")[2]))
    for rest in (b"", b"abc"):
        with socket.create_connection(address) as broken:
            broken.sendall(b"POST /api/look HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n" + rest)
    assert ask(look, png(digit()))[0] == 200


def test_many_at_once_are_answered_or_sent_away(classifier: str) -> None:
    expected = ask(f"{classifier}/api/look", png(digit()))[1]
    barrier = threading.Barrier(24)

    def one(number: int) -> tuple[int, Any]:
        barrier.wait()
        return ask(f"{classifier}/api/look", png(digit()))

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(one, range(24)))
    assert {status for status, _ in answers} <= {200, 503}
    good = [found for status, found in answers if status == 200]
    assert len(good) >= 8
    assert all(found == expected for found in good)
    assert all("busy" in found["error"] for status, found in answers if status == 503)


def test_the_page_in_a_browser(classifier: str, mae: str, tmp_path: Path) -> None:
    (tmp_path / "digit.png").write_bytes(png(digit()))
    (tmp_path / "note.txt").write_text("no image")
    with browser() as opened:
        watched = Watched(opened, viewport={"width": 390, "height": 800})
        page = watched.open(mae)
        page.set_input_files("input[type=file]", tmp_path / "digit.png")
        page.wait_for_selector("figure img[src^='data:image/webp']")
        until(page, "document.querySelector('[role=status]').textContent.includes('answered')")
        before = page.get_attribute("#reconstruction figure:nth-child(2) img", "src")
        page.locator("#ratio").fill("0.3")
        assert before.startswith("data:image/webp")
        until(page, f"document.querySelector('#reconstruction figure:nth-child(2) img').src !== '{before}'")
        assert page.inner_text("output") == "30 %"
        hidden = page.evaluate("state.now.length")
        page.locator("#reconstruction canvas").focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Space")
        until(page, f"state.now.length !== {hidden}")
        page.locator("#attention canvas").click(position={"x": 5, "y": 5})
        until(page, "look.values !== null && state.patch === 0")
        page.set_input_files("input[type=file]", tmp_path / "note.txt")
        page.wait_for_selector(".note")
        assert "note.txt: not a " in page.inner_text(".note")
        assert not page.is_visible("#reconstruction")  # of the image before
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert not watched.faults

        other = Watched(opened)
        page = other.open(classifier)
        assert not page.is_visible("#predictions")
        page.set_input_files("input[type=file]", tmp_path / "digit.png")
        page.wait_for_selector("#predictions tr")
        page.wait_for_selector("#neighbours img")
        assert page.is_visible("figure.seen img")
        assert page.locator("#neighbours figure").count() == 12
        assert not other.faults


def test_what_cannot_be_served_is_said_in_one_line(
    classifier: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = classifier.rpartition(":")[2]
    assert main(["serve", str(runs / "mae"), "--port", port]) == 2
    assert "in use" in capsys.readouterr().err


def test_the_guide_runs(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, translated = (GUIDES / name for name in ("serve.md", "serve.zh-CN.md"))
    code = [
        re.findall(r"^```\w+\n(.*?)^```$", path.read_text(encoding="utf-8"), re.M | re.S) for path in (text, translated)
    ]
    assert code[0] == code[1]
    command, _, program = code[0]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").symlink_to(runs)
    (tmp_path / "photos").mkdir()
    for number in range(3):
        Image.fromarray(digit(number)).save(tmp_path / "photos" / f"{number}.jpg")
    process, url = served(*command.split()[2:], cwd=tmp_path)
    try:
        names: dict[str, Any] = {"server": url}
        exec(program, names)
        assert len(names["embedding"]) == 32
    finally:
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) is not None
    assert process.returncode == 130
