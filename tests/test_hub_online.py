"""A push to the Hugging Face Hub, against a small server on loopback that answers as the Hub does."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from test_hub import make_model

SCRIPTS = Path(__file__).parents[1] / "scripts"
NAME = "my-lab/mae-cxr"
COMMIT = 40 * "c"
PUSH = (
    "import sys; from pathlib import Path; from cxr import hub;"
    "model_dir, model_id, tag = sys.argv[1:];"
    "print(hub.push(Path(model_dir), hub_dir=None, model_id=model_id, message='the first', tag=tag))"
)


class Hub(BaseHTTPRequestHandler):
    """The endpoints that a push calls; large files go by themselves, small ones inside the commit."""

    def do_POST(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        state, path = self.server.state, self.path.partition("?")[0]
        if "Bearer hf_secret" not in self.headers.get("authorization", ""):
            return self.answer(401, {"error": "Invalid credentials"})
        if path == "/api/repos/create":
            state["created"] = json.loads(content)
            return self.answer(200, {"url": f"{self.server.url}/{NAME}", "name": NAME})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if path == f"/api/models/{NAME}/preupload/main":
            files = [file["path"] for file in json.loads(content)["files"]]
            modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in files}
            answers = [
                {"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()
            ]
            return self.answer(200, {"files": answers})
        if path == f"/{NAME}.git/info/lfs/objects/batch":
            objects = json.loads(content)["objects"]
            for one in objects:
                one["actions"] = {"upload": {"href": f"{self.server.url}/upload/{one['oid']}", "header": {}}}
            return self.answer(200, {"transfer": "basic", "objects": objects})
        if path == f"/api/models/{NAME}/commit/main":
            state["commit"] = [json.loads(line) for line in content.splitlines()]
            return self.answer(
                200, {"commitOid": COMMIT, "commitUrl": f"{self.server.url}/{NAME}/commit/{COMMIT}"}
            )
        if path == f"/api/models/{NAME}/tag/{COMMIT}":
            state["tag"] = json.loads(content)["tag"]
            return self.answer(200, {})
        return self.answer(404, {"error": f"no {path}"})

    def do_PUT(self):
        self.server.state["uploads"][self.path.rpartition("/")[2]] = self.rfile.read(
            int(self.headers["Content-Length"])
        )
        self.answer(200, {})

    def answer(self, status: int, content: dict) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.url = f"http://127.0.0.1:{server.server_port}"
        server.state = {"uploads": {}}
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def push(model: Path, url: str, *, token: str = "hf_secret") -> subprocess.CompletedProcess:
    environment = os.environ | {"HF_ENDPOINT": url, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1"}
    environment["HF_HUB_OFFLINE"] = "0"
    command = [sys.executable, "-c", PUSH, str(model), NAME, "v1"]
    return subprocess.run(command, env=environment, cwd=SCRIPTS, capture_output=True, text=True)


def test_push_makes_a_private_model_with_every_file_and_a_tag(server, tmp_path):
    model = make_model(tmp_path / "model", bias=1.0)
    (model / "README.md").write_text("---\nlicense: mit\n---\n# A model\n", encoding="utf-8")
    done = push(model, server.url)
    assert done.stdout.strip() == COMMIT, done.stderr[-2000:]
    state = server.state
    assert state["created"]["name"] == "mae-cxr" and state["created"]["organization"] == "my-lab"
    assert "private" in (state["created"].get("visibility"), "private" * state["created"].get("private", 0))
    assert state["tag"] == "v1"
    header, *parts = state["commit"]
    assert header["value"]["summary"] == "the first"
    found = {
        part["value"]["path"]: base64.b64decode(part["value"]["content"])
        if part["key"] == "file"
        else state["uploads"][part["value"]["oid"]]
        for part in parts
    }
    assert found == {path.name: path.read_bytes() for path in model.iterdir()}
    assert all(sha256(content).hexdigest() == oid for oid, content in state["uploads"].items())


@pytest.mark.parametrize("reason", ["wrong token", "nobody there"])
def test_push_that_the_hub_does_not_take_says_what_to_do(reason, server, tmp_path):
    model = make_model(tmp_path / "model", bias=1.0)
    url = "http://127.0.0.1:9" if reason == "nobody there" else server.url
    done = push(model, url, token="hf_wrong")
    assert "OSError: --push_to_hub: the Hugging Face Hub could not be asked" in done.stderr
    assert "log in with hf auth login, or name a --hub_dir" in done.stderr.splitlines()[-1]
