"""The example page runs a model in a real browser and says what the model says here."""

from __future__ import annotations

import functools
import http.server
import shutil
import subprocess
import threading
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runs import TINY_MODEL
from unmask.cli import main
from unmask.evaluate.inference import load

EXAMPLE = Path(__file__).parents[2] / "examples" / "browser"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def site(tmp_path: Path) -> Generator[tuple[Path, str]]:
    """A folder and the address at which it is served."""
    (tmp_path / "site").mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "site")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path / "site", f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.campaign  # onnxruntime-web comes from npm
@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_the_page_names_the_class_that_the_model_names(site: tuple[Path, str], tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    folder, address = site
    data = ["data.train=bundled:mnist5k/train", "data.labels_per_class=20", "train.epochs=3", "train.batch_size=20"]
    settings = [*TINY_MODEL, *data, "init=null", "optimizer.base_lr=0.02", "optimizer.warmup_epochs=0"]
    assert main(["finetune", "finetune-vit-tiny", *settings, f"output={tmp_path / 'run'}"]) == 0
    assert main(["export", str(tmp_path / "run"), str(folder / "model.onnx"), "--set", "data.eval_crop=1"]) == 0
    shutil.copy(EXAMPLE / "index.html", folder)
    subprocess.run(["npm", "install", "--prefix", tmp_path / "npm", "onnxruntime-web"], check=True, timeout=300)
    for file in (tmp_path / "npm" / "node_modules" / "onnxruntime-web" / "dist").iterdir():
        if file.name == "ort.wasm.min.mjs" or file.name.startswith("ort-wasm-simd-threaded."):
            shutil.copy(file, folder)

    image = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "picture.png")
    with load(tmp_path / "run", settings={"data.eval_crop": 1}) as model:
        probabilities = model.predict(image[None, :, :, None])[0]
        expected = [(model.class_names or ())[i] for i in np.argsort(-probabilities)[:5]]
    with playwright.sync_playwright() as runner:
        browser = runner.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page()
        failed: list[str] = []
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.goto(address)
        page.get_by_role("status").filter(has_text="Choose").wait_for()
        page.get_by_label("Picture").set_input_files(tmp_path / "picture.png")
        page.get_by_role("status").filter(has_text="ms").wait_for()
        rows = [row.split("\t") for row in page.locator("tr").all_inner_texts()]
        page.screenshot(path=tmp_path / "page.png")
        browser.close()
    assert not failed
    assert [name for name, _ in rows] == expected
    for (_, told), probability in zip(rows, np.sort(probabilities)[::-1], strict=False):
        assert abs(float(told.removesuffix(" %")) - 100 * probability) < 0.2
