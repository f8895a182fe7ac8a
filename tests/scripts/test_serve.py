"""The page to try a classifier: what it says, refuses and keeps to itself; a browser drops a file on it."""

import asyncio
import base64
import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import numpy as np
import pytest
import serve
import torch
from cxr.errors import UserError
from cxr.inference import radiographs
from cxr.inference.classifier import Classifier
from cxr.inference.classifier import load_classifier
from cxr.models import configs
from cxr.models.pretrained import load_image_processor
from cxr.models.scratch import new_classifier
from PIL import Image
from refused import refused
from tiny_runs import TINY_VIT

from mimic_cxr_dataset.radiographs import Reading

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FIGURES = "![loss](loss.png) ![remote](https://example.org/x.png)"
CARD = f"---\nlicense: other\n---\n\n# A tiny model\n\n{FIGURES}\n"

HAS_GRADIO = importlib.util.find_spec("gradio") is not None
needs_gradio = pytest.mark.skipif(not HAS_GRADIO, reason="no gradio: no page is served")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    """An untrained classifier with a card and a figure, as a run saves them."""
    folder = tmp_path_factory.mktemp("runs") / "model"
    overrides = TINY_VIT[1].removeprefix("--config_overrides=")
    torch.manual_seed(0)
    config = configs.make_config("vit-mae-tiny", overrides=overrides, image_size=32)
    model = new_classifier(config, ["No Finding", "Finding"])
    model.config.decision_threshold = 0.25
    model.save_pretrained(folder)
    processor = load_image_processor(None, hub_dir=None, revision="main", image_size=32)
    processor.save_pretrained(folder)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    Image.fromarray(np.full((8, 8), 99, dtype=np.uint8)).save(folder / "loss.png")
    return folder


@pytest.fixture(scope="module")
def classifier(model_dir) -> Classifier:
    return load_classifier(str(model_dir), device="cpu")


@pytest.fixture(scope="module")
def radiograph(sample_root) -> Path:
    return radiographs.find_radiographs([str(sample_root)])[0][0]


def probability_of(classifier: Classifier, path: Path) -> float:
    pixels = radiographs.read_radiograph(path, shortest_side=classifier.shortest_side).pixels
    return float(classifier.probabilities(classifier.prepare(pixels)[None])[0, 0])


def pictures(html: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(content))) for content in found]


# What the page says -----------------------------------------------------------------------------------------


def test_answer_has_probability_threshold_decision_and_both_pictures(classifier, radiograph):
    html = serve.answer_html(classifier, radiograph, Reading())
    probability = probability_of(classifier, radiograph)
    assert f"Probability of Finding: <b>{probability:.3f}</b>" in html
    assert "<b>0.250</b>, chosen on validation images" in html
    assert f'<p class="decision">{classifier.decide([probability])}</p>' in html
    assert serve.DISCLAIMER in html
    of_studies = dataclasses.replace(classifier, threshold_level="study")
    assert "chosen on validation studies" in serve.answer_html(of_studies, radiograph, Reading())
    plain, heat = pictures(html)
    assert (plain.mode, heat.mode) == ("L", "RGB") and plain.size == heat.size


def test_names_of_files_and_labels_put_no_markup_into_the_page(classifier, radiograph, tmp_path):
    labels = ("<script>no()</script>", "<script>yes()</script>")
    hostile = dataclasses.replace(classifier, name="<i>/<b>", labels=labels)
    path = tmp_path / "<img src=x onerror=alert()>.jpg"
    shutil.copyfile(radiograph, path)
    html = serve.answer_html(hostile, path, Reading()) + serve.head_html(hostile, is_local=True)
    assert "<script" not in html and "<img src=x" not in html and "<b>/" not in html
    assert "&lt;script&gt;yes()" in html and "&lt;img src=x" in html


def test_page_says_so_when_others_can_reach_it(classifier):
    assert "does not leave this computer" in serve.head_html(classifier, is_local=True)
    assert "does not leave this computer" not in serve.head_html(classifier, is_local=False)


def test_card_is_shown_with_its_figures_and_without_its_metadata(classifier, model_dir):
    card = serve.read_card(model_dir / "README.md", classifier)
    assert card.startswith("\n# A tiny model") and "license" not in card
    content = base64.b64encode((model_dir / "loss.png").read_bytes()).decode()
    assert f"![loss](data:image/png;base64,{content})" in card


def test_card_embeds_no_file_from_elsewhere(classifier, model_dir, tmp_path):
    shutil.copyfile(model_dir / "loss.png", tmp_path / "private.png")
    (tmp_path / "model").mkdir()
    text = f"![a](../private.png) ![b]({tmp_path}/private.png) ![c](missing.png)"
    (tmp_path / "model" / "README.md").write_text(text, encoding="utf-8")
    assert serve.read_card(tmp_path / "model" / "README.md", classifier) == text


def test_model_without_a_card_gets_a_few_facts(classifier):
    assert "no card" in (card := serve.read_card(None, classifier))
    assert "32 x 32 pixels" in card and "0.250" in card


def test_what_is_no_image_is_refused_with_the_reason(classifier, tmp_path):
    bomb = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(bomb)  # 400 million pixels in 50 kB
    (tmp_path / "notes.txt").write_text("not an image", encoding="utf-8")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(UserError):
            serve.answer_html(classifier, path, Reading())


# Files of patients ------------------------------------------------------------------------------------------


def test_files_of_the_page_are_private_and_gone_at_its_end(monkeypatch):
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "before")
    before = tempfile.gettempdir()
    with pytest.raises(KeyboardInterrupt), serve.private_files():
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        descriptor, name = tempfile.mkstemp()  # as gradio's own code
        os.close(descriptor)
        assert Path(name).parent == folder and os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
        raise KeyboardInterrupt
    assert not folder.exists() and tempfile.gettempdir() == before


# The command line -------------------------------------------------------------------------------------------


@pytest.fixture
def fail(capsys, monkeypatch):
    """Gives the one line in which `serve.py` ends, which must not set signals in this process."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return lambda *argv: refused(serve.main, argv, capsys)


def test_without_gradio_the_error_says_what_to_install(model_dir, fail, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "make the environment .venv-serve as in docs/using-a-model.md" in fail(model_dir)


def test_port_or_model_that_is_none_is_refused(model_dir, tmp_path, fail, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert "expected a port from 1 to 65535" in fail(model_dir, "--port=0")
    assert "found no such folder" in fail(tmp_path / "nowhere")


# The page in a browser --------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server(model_dir, tmp_path_factory) -> Iterator[tuple[str, Path, subprocess.Popen]]:
    """The script at work: the page's address, the folder of its temporary files, its process."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    flags = [f"--port={port}", "--device=cpu", "--equalize=no"]
    command = [sys.executable, str(Path(serve.__file__)), str(model_dir), *flags]
    environment = {**os.environ, "TMPDIR": str(folder)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        line = process.stdout.readline().decode()
        assert line.startswith(f"http://127.0.0.1:{port}/ shows "), process.stderr.read().decode()
        yield f"http://127.0.0.1:{port}/", folder, process
        process.kill()


class Tab:
    """A tab of a headless Chromium, by its DevTools protocol; `asked` are the addresses that it asked for."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse):
        self.socket, self.number, self.asked = socket, 0, []

    async def call(self, method: str, **parameters) -> dict:
        self.number += 1
        await self.socket.send_json({"id": self.number, "method": method, "params": parameters})
        while True:
            message = await self.socket.receive_json(timeout=30)
            if message.get("method") == "Network.requestWillBeSent":
                self.asked.append(message["params"]["request"]["url"])
            if message.get("id") == self.number:
                assert "error" not in message, message
                return message["result"]

    async def value(self, expression: str):
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer["result"].get("value")

    async def text_with(self, *expected: str) -> str:
        """Waits until the page has these texts; returns all of its text."""
        for _ in range(150):
            text = await self.value("document.body.innerText") or ""
            if all(one in text for one in expected):
                return text
            await asyncio.sleep(0.1)
        raise AssertionError(f"{expected} are not all in the page: {text}")

    async def drop(self, path: Path, *, selector: str) -> None:
        box = f"document.querySelector({selector!r}).getBoundingClientRect()"
        x, y = await self.value(f"(box => [box.x + box.width / 2, box.y + box.height / 2])({box})")
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            await self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)


@contextlib.asynccontextmanager
async def open_tab(profile: Path):
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command = [CHROMIUM, *flags, f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
        try:
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{await debugging_port(profile)}/json") as answer:
                    page = next(one for one in await answer.json() if one["type"] == "page")
                async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    yield Tab(socket)
        finally:
            browser.terminate()


async def debugging_port(profile: Path) -> str:
    """Waits until Chromium has written which port it chose."""
    file = profile / "DevToolsActivePort"
    for _ in range(300):
        if file.is_file() and "\n" in (text := file.read_text(encoding="utf-8")):
            return text.split()[0]
        await asyncio.sleep(0.1)
    raise AssertionError("Chromium did not start")


async def use_page(address: str, profile: Path, radiograph: Path, other: Path) -> dict:
    """Drops a radiograph and then a file that is none; returns what was seen."""
    async with open_tab(profile) as tab:
        for domain in ("Network", "Page"):
            await tab.call(f"{domain}.enable")
        await tab.call("Page.navigate", url=address)
        seen = {"start": await tab.text_with("Drop File Here", "A tiny model")}
        await tab.drop(radiograph, selector="#upload")
        seen["answer"] = await tab.text_with("Probability of")
        seen["widths"] = await tab.value(
            "[...document.querySelectorAll('#answer img')].map(one => one.naturalWidth)"
        )
        seen["figure"] = await tab.value("document.querySelector('#card img').naturalWidth")
        picture = await tab.call("Page.captureScreenshot")
        (profile.parent / "page.png").write_bytes(base64.b64decode(picture["data"]))
        await tab.drop(other, selector="#upload")
        seen["refusal"] = await tab.text_with("was not used")
        seen["asked"] = tab.asked
        return seen


@needs_gradio
@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: the page is not opened (Debian: chromium)")
def test_browser_drops_a_radiograph_and_reads_the_answer(server, classifier, radiograph, tmp_path):
    address, folder, _ = server
    other = tmp_path / "<b>notes.txt"
    other.write_text("not an image", encoding="utf-8")
    seen = asyncio.run(use_page(address, tmp_path / "profile", radiograph, other))
    assert serve.DISCLAIMER in seen["start"]
    probability = probability_of(classifier, radiograph)
    assert f"Probability of Finding: {probability:.3f}" in seen["answer"]
    assert "0.250, chosen on validation images" in seen["answer"]
    assert classifier.decide([probability]) in seen["answer"].split(radiograph.name)[1].splitlines()
    assert len(seen["widths"]) == 2 and min(seen["widths"]) >= 64 and seen["figure"] == 8
    assert "notes.txt was not used: neither JPEG, PNG nor DICOM" in seen["refusal"]
    assert "Probability of" not in seen["refusal"]  # of the file before
    asked = [one for one in seen["asked"] if not one.startswith((address, "data:", "blob:"))]
    assert asked == ["https://example.org/x.png"]  # of the card, which the page's policy blocks
    kept = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    assert kept == [] and all(stat.S_IMODE(one.stat().st_mode) == 0o700 for one in folder.iterdir())


@needs_gradio
@pytest.mark.slow
def test_server_refuses_other_hosts_and_lists_no_interface(server):
    address, _, _ = server

    def get(path: str, **headers) -> tuple[int, dict, str]:
        try:
            with urllib.request.urlopen(urllib.request.Request(address + path, headers=headers)) as answer:
                return answer.status, dict(answer.headers), answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read().decode()

    status, headers, _ = get("")
    assert status == 200 and "connect-src 'self'" in headers["content-security-policy"]
    assert get("", Host="evil.example")[0] == 400
    interface = json.loads(get("gradio_api/info")[2])
    assert interface == {"named_endpoints": {}, "unnamed_endpoints": {}}


@needs_gradio
@pytest.mark.slow
def test_port_in_use_ends_in_one_line(server, model_dir, fail):
    port = server[0].strip("/").rpartition(":")[2]
    assert f"--port {port}: cannot listen there" in fail(model_dir, f"--port={port}", "--equalize=no")


@needs_gradio
@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_interrupted_server_ends_without_a_trace_and_leaves_nothing(server):
    _, folder, process = server
    assert any(folder.iterdir())
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and b"Traceback" not in errors
    assert not any(folder.iterdir())
