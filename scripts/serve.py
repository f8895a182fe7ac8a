"""Serves a page on this computer to try a classifier: upload a radiograph, see the model's prediction.

    # In .venv-serve, an environment of its own: docs/using-a-model.md says how to make it, and why.
    .venv-serve/bin/python scripts/serve.py runs/demo/mae-vit/model --open_browser
    .venv-serve/bin/python scripts/serve.py my-lab/vit-cxr --hub_dir /data/hub --port 8000

The page shows the probability, the decision at the model's threshold, a heat map and the model card; of a
model of several findings, a bar and a heat map for each. Stop it with Ctrl-C. Uploaded images may be of
patients: without --host, only this computer can open the page; the page contacts no other server; and each
uploaded file is deleted once it has been read. For research only, not for diagnosis.
"""

from cxr.cli import using_a_model

if __name__ == "__main__":  # --help and a wrong flag are answered before the slow imports
    using_a_model.parse_serve_args(None, description=__doc__)

import argparse
import base64
import contextlib
import html
import io
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import numpy as np
from cxr.errors import UserError
from cxr.errors import run_script
from cxr.inference import heatmaps
from cxr.inference import radiographs
from cxr.inference.classifier import Classifier
from cxr.inference.classifier import load_classifier
from cxr.models.pretrained import find_file
from PIL import Image

from mimic_cxr_dataset.radiographs import Reading

if TYPE_CHECKING:
    import gradio

TEMPLATES = Path(__file__).parent / "cxr" / "inference" / "templates"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MOST_MAPS = 14  # heat maps of an image; each takes as long as the prediction, or longer
MAX_FILE_SIZE = 128 * 2**20  # bytes; an uncompressed DICOM file of 4000 x 4000 pixels has 32 MiB
EXPECTED = "Expected a chest radiograph as JPEG, PNG or DICOM file."
FAILED = "There is no answer, because of an error of this program: the terminal has its trace."
DISCLAIMER = "For research only. Not a medical device, and not for diagnosis."
# With this header, the browser blocks requests to other servers, whatever a model card links to.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "manifest-src 'self'; base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    return using_a_model.parse_serve_args(argv, description=__doc__)


# What the page says -----------------------------------------------------------------------------------------


def read_card(path: Path | None, classifier: Classifier) -> str:
    """Returns the model's README.md as Markdown with its images embedded; without one, a few facts."""
    if path is None:
        units = "studies" if classifier.has_threshold_of_studies else "images"
        chosen = f"chosen on validation {units}" if classifier.has_threshold else "the default"
        lowest, highest = min(classifier.thresholds), max(classifier.thresholds)
        several = f"its thresholds, from {lowest:.3f} to {highest:.3f}, are"
        thresholds = f"its threshold of {highest:.3f} is" if lowest == highest else several
        views = f"{classifier.trained_view} views" if classifier.trained_view else "images (views unknown)"
        return (
            f"This model has no card. It takes {views} of "
            f"{classifier.image_size} x {classifier.image_size} pixels; {thresholds} {chosen}."
        )
    text = path.read_text(encoding="utf-8", errors="replace")
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)  # the metadata for the Hub

    def embed(found: re.Match) -> str:
        image = path.parent / found[2]
        return f"{found[1]}{data_address(image.read_bytes(), 'png')})" if image.is_file() else found[0]

    return re.sub(r"(!\[[^\]]*\]\()([\w-]+\.png)\)", embed, text)


def data_address(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def as_jpeg(pixels: np.ndarray) -> str:
    """Returns pixels (H, W) or (H, W, 3) uint8 as a data URL, so that no file is written."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=90)
    return data_address(buffer.getvalue(), "jpeg")


def render(template: str, **content: object) -> str:
    """Fills in a template; all values are escaped."""
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template(template).render(disclaimer=DISCLAIMER, **content)


def head_html(classifier: Classifier, *, is_local: bool) -> str:
    name = "/".join(Path(classifier.name).parts[-2:])  # the end of a folder's path is enough
    return render("head.html.j2", classifier=classifier, name=name, is_local=is_local)


def answer_html(classifier: Classifier, path: Path, reading: Reading) -> str:
    """Returns the prediction for a radiograph as HTML. Raises UserError if the file cannot be used."""
    radiograph = radiographs.read_radiograph(path, shortest_side=classifier.shortest_side, reading=reading)
    shown = radiographs.read_radiograph(path, shortest_side=heatmaps.SHOWN_SIDE, reading=reading).pixels
    images = classifier.prepare(radiograph.pixels)[None]  # (1, 1, S, S)
    probabilities = classifier.probabilities(images)[0]
    # The findings by how far a bar passes its mark: those that are called come first.
    order = np.argsort(classifier.thresholds - probabilities, kind="stable")
    shown_maps = order[:MOST_MAPS] if heatmaps.has_method(classifier) else ()
    heats = {number: heatmaps.heat_maps(classifier, images, number)[0] for number in shown_maps}
    return render(
        "answer.html.j2",
        classifier=classifier,
        name=path.name,
        warnings=classifier.find_doubts(radiograph),
        decision=classifier.decide(probabilities),
        bars=[(classifier.findings[one], probabilities[one], classifier.thresholds[one]) for one in order],
        method=heatmaps.describe(classifier, heats[order[0]]) if heats else None,
        radiograph=as_jpeg(shown[0].numpy()),
        maps=[
            (classifier.findings[one], heat.any(), as_jpeg(heatmaps.overlay(shown, heat)))
            for one, heat in heats.items()
        ],
    )


# The page ---------------------------------------------------------------------------------------------------


def make_page(classifier: Classifier, reading: Reading, card: str, *, is_local: bool) -> "gradio.Blocks":
    import gradio as gr

    def answer(uploaded: str) -> Iterator[tuple[None, str]]:
        path = Path(uploaded)
        yield None, '<p class="note">One moment ...</p>'  # clears the upload and the previous answer
        try:
            yield None, answer_html(classifier, path, reading)
        except UserError as error:
            reason = f"{html.escape(path.name)} was not used: {html.escape(str(error))}. {EXPECTED}"
            yield None, f'<p class="warning">{reason}</p>'
            raise gr.Error(reason, print_exception=False) from None
        except Exception:  # gradio prints it in the terminal
            yield None, f'<p class="warning">{FAILED}</p>'
            raise
        finally:
            path.unlink(missing_ok=True)

    with gr.Blocks(title="Chest X-ray classifier", analytics_enabled=False) as page:
        gr.HTML(head_html(classifier, is_local=is_local), elem_id="head")
        upload = gr.File(label="Radiograph", height=150, elem_id="upload")
        result = gr.HTML(elem_id="answer")
        with gr.Accordion("Model card"):
            gr.Markdown(card, elem_id="card")
        upload.upload(answer, upload, [upload, result], api_visibility="private", show_progress="hidden")
    return page.queue(max_size=16, api_open=False)


class ContentSecurityPolicy:
    """Adds the policy to every response of the server."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def send_with_policy(message):
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", CONTENT_SECURITY_POLICY.encode())
                message = {**message, "headers": [*message["headers"], policy]}
            await send(message)

        await self.app(scope, receive, send_with_policy)


def launch(page: "gradio.Blocks", *, host: str, port: int | None, open_browser: bool) -> str:
    """Starts the server in background threads; returns the page's address."""
    import gradio as gr
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    middleware = [Middleware(ContentSecurityPolicy)]
    if host in LOOPBACK[:2]:  # refuses other host names that resolve to this address (DNS rebinding)
        middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK)))
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # no downloads
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            inbrowser=open_browser,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            run_history=False,  # otherwise the browser keeps all answers
            footer_links=[],
            enable_monitoring=False,
            mcp_server=False,
            pwa=False,
            ssr_mode=False,
            max_file_size=MAX_FILE_SIZE,
            app_kwargs={"middleware": middleware},
            theme=gr.themes.Default(**fonts),
            css=(TEMPLATES / "page.css").read_text(encoding="utf-8"),
        )
    except OSError as error:
        where = f"--host {host}" + (f" --port {port}" if port else "")
        raise UserError(f"{where}: cannot listen there; name another address or port") from error
    return address


@contextlib.contextmanager
def private_files() -> Iterator[None]:
    """Makes gradio write its files, such as uploads, to a folder that only this user can read; removes it.

    Must be entered before gradio is imported, because gradio reads these variables at import.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    for name in ("NO_PROXY", "no_proxy"):  # gradio checks by a request that its own server runs
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), *LOOPBACK)))
    with tempfile.TemporaryDirectory(prefix="chest-x-ray-page-") as folder:  # mode 0700
        before = tempfile.tempdir
        tempfile.tempdir = os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield
        finally:
            tempfile.tempdir = before


def end_by_signal(number: int, frame: object) -> None:
    sys.exit(128 + number)  # runs all finally blocks


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    signal.signal(signal.SIGTERM, end_by_signal)
    source = {"hub_dir": args.hub_dir, "revision": args.model_revision}
    classifier = load_classifier(args.model, device=args.device, **source)
    card = read_card(find_file(args.model, "README.md", **source), classifier)
    if doubt := classifier.doubt_equalize(args.equalize):
        print(doubt, file=sys.stderr)  # standard output begins with the page's address
    reading = classifier.choose_reading(args.equalize, dicom_window=args.dicom_window)
    is_local = args.host in LOOPBACK
    with private_files():
        page = make_page(classifier, reading, card, is_local=is_local)
        address = launch(page, host=args.host, port=args.port, open_browser=args.open_browser)
        if not is_local:
            print(f"--host {args.host}: anyone who reaches this computer can use the page without a password")
        print(f"{address} shows {args.model}; Ctrl-C stops it. {DISCLAIMER}", flush=True)
        try:
            threading.Event().wait()
        finally:
            page.close(verbose=False)


if __name__ == "__main__":
    run_script(main)
