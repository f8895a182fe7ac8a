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
from tiny_models import make_model

SCRIPTS = Path(__file__).parents[2] / "scripts"
NAME = "my-lab/mae-cxr"
COMMIT = 40 * "c"
OLD_COMMIT = 40 * "d"


class Hub(BaseHTTPRequestHandler):
    """The endpoints that a push calls; large files go by themselves, small ones inside the commit."""

    def do_GET(self):
        state, path = self.server.state, self.path.partition("?")[0]
        is_known = "Bearer hf_secret" in self.headers.get("authorization", "")
        refs = [
            {"name": name, "ref": f"refs/tags/{name}", "targetCommit": commit}
            for name, commit in state["tags"].items()
        ]
        files = [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in state["files"]]
        answers = {
            "/api/whoami-v2": {"name": "me"} if is_known else None,
            f"/api/models/{NAME}": {"id": NAME, "sha": state["main"], "private": state["is_private"]},
            f"/api/models/{NAME}/refs": {"branches": [], "converts": [], "tags": refs},
            f"/api/models/{NAME}/tree/main": files,
        }
        if path == f"/api/models/{NAME}" and not state["files"] and "created" not in state:
            return self.answer(404, {}, reason="RepoNotFound")
        if (content := answers.get(path)) is not None:
            return self.answer(200, content)
        return self.answer(404 if is_known else 401, {"error": f"no {path}, or invalid credentials"})

    def do_POST(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        state, path = self.server.state, self.path.partition("?")[0]
        if "Bearer hf_secret" not in self.headers.get("authorization", ""):
            return self.answer(401, {"error": "Invalid credentials"})
        if path == "/api/repos/create":
            state["created"] = json.loads(content)
            exists = bool(state["files"])
            return self.answer(409 if exists else 200, {"url": f"{self.server.url}/{NAME}", "name": NAME})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if path == f"/api/models/{NAME}/preupload/main":
            files = [file["path"] for file in json.loads(content)["files"]]
            modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in files}
            answers = [{"path": name, "uploadMode": modes[name], "shouldIgnore": False} for name in files]
            return self.answer(200, {"files": answers})
        if path == f"/{NAME}.git/info/lfs/objects/batch":
            objects = json.loads(content)["objects"]
            for one in objects:
                one["actions"] = {"upload": {"href": f"{self.server.url}/upload/{one['oid']}", "header": {}}}
            return self.answer(200, {"transfer": "basic", "objects": objects})
        if path == f"/api/models/{NAME}/commit/main":
            state["commit"] = [json.loads(line) for line in content.splitlines()]
            url = f"{self.server.url}/{NAME}/commit/{COMMIT}"
            return self.answer(200, {"commitOid": COMMIT, "commitUrl": url})
        if path == f"/api/models/{NAME}/tag/{COMMIT}":
            tag = json.loads(content)["tag"]
            is_new = state["tags"].setdefault(tag, COMMIT) == COMMIT
            return self.answer(200 if is_new else 409, {})
        return self.answer(404, {"error": f"no {path}"})

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.state["uploads"][self.path.rpartition("/")[2]] = content
        self.answer(200, {})

    def answer(self, status: int, content: object, *, reason: str = "") -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("X-Error-Code", reason)
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
        server.state = {"uploads": {}, "is_private": True, "tags": {}, "files": [], "main": OLD_COMMIT}
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def push(model: Path, url: str, *, token: str = "hf_secret") -> subprocess.CompletedProcess:
    words = [str(SCRIPTS / "hub.py"), "push", str(model), NAME, "--message", "the first", "--tag", "v1"]
    return run_python(words, url, token=token)


def run_python(words: list[str], url: str, *, token: str = "hf_secret") -> subprocess.CompletedProcess:
    environment = os.environ | {"HF_ENDPOINT": url, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1"}
    options = {"env": environment | {"HF_HUB_OFFLINE": "0"}, "cwd": SCRIPTS}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, **options)


def test_push_makes_a_private_model_with_every_file_and_a_tag(server, tmp_path):
    model = make_model(tmp_path / "model", bias=1.0)
    done = push(model, server.url)
    assert done.stdout.startswith(f"{COMMIT}\n"), done.stderr[-2000:]
    line = f"model = ViTForImageClassification.from_pretrained('{NAME}', revision='v1')"
    assert done.stdout.splitlines()[1:] == ["from transformers import ViTForImageClassification", line]
    state = server.state
    assert state["created"]["name"] == "mae-cxr" and state["created"]["organization"] == "my-lab"
    assert "private" in (state["created"].get("visibility"), "private" * state["created"].get("private", 0))
    assert state["tags"] == {"v1": COMMIT}
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
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "the Hugging Face Hub gave an error" in done.stderr
    assert "log in with hf auth login, or name a --hub_dir" in done.stderr


def test_revision_has_no_file_of_an_earlier_one(server, tmp_path):
    server.state["files"] = [".gitattributes", "config.json", "pytorch_model.bin"]
    done = push(make_model(tmp_path / "model", bias=1.0), server.url)
    assert done.stdout.startswith(f"{COMMIT}\n"), done.stderr[-2000:]
    parts = server.state["commit"][1:]
    assert [part["value"]["path"] for part in parts if part["key"] == "deletedFile"] == ["pytorch_model.bin"]


def test_public_model_is_not_pushed_to(server, tmp_path):
    server.state |= {"is_private": False, "files": ["config.json"]}
    done = push(make_model(tmp_path / "model", bias=1.0), server.url)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "found a public model on the Hugging Face Hub, expected a private one" in done.stderr
    assert "commit" not in server.state and not server.state["uploads"]


@pytest.mark.parametrize("tagged", [COMMIT, 40 * "e"])
def test_tag_is_not_moved_but_a_push_can_be_repeated(tagged, server, tmp_path):
    server.state |= {"tags": {"v1": tagged}, "files": ["config.json"], "main": COMMIT}
    done = push(make_model(tmp_path / "model", bias=1.0), server.url)
    if tagged == COMMIT:
        assert done.stdout.startswith(f"{COMMIT}\n"), done.stderr[-2000:]
    else:
        assert done.returncode == 2 and "found the tag v1 at revision eeeeeeee" in done.stderr
        assert "commit" not in server.state and not server.state["uploads"]
    assert server.state["tags"] == {"v1": tagged}


CHECK = f"""
from cxr.errors import run_script
from cxr.sharing.online_hub import check_push
run_script(lambda: check_push(model_id={NAME!r}, tag="v1"))
"""


@pytest.mark.parametrize(
    ("state", "token", "said"),
    [
        ({}, "hf_secret", ""),
        ({"files": ["config.json"]}, "hf_secret", ""),
        ({}, "hf_wrong", "log in with hf auth login"),
        ({"files": ["config.json"], "is_private": False}, "hf_secret", "expected a private one"),
        ({"files": ["config.json"], "tags": {"v1": OLD_COMMIT}}, "hf_secret", "which cannot be moved"),
    ],
    ids=["no such model", "private model", "wrong token", "public model", "tag is taken"],
)
def test_check_before_a_training_finds_what_would_stop_the_push_and_makes_nothing(state, token, said, server):
    server.state |= state
    done = run_python(["-c", CHECK], server.url, token=token)
    assert done.returncode == (2 if said else 0) and said in done.stderr, done.stderr[-2000:]
    assert done.stderr.count("\n") == bool(said) and "created" not in server.state


@pytest.mark.slow
def test_training_that_could_not_be_pushed_ends_before_it_begins(server, sample_root, tmp_path):
    server.state |= {"tags": {"v1": OLD_COMMIT}, "files": ["config.json"]}
    words = [str(SCRIPTS / "run_mae_pretrain.py"), "--output_dir", str(tmp_path / "run")]
    words += ["--push_to_hub", "--hub_model_id", NAME, "--hub_revision", "v1", f"--data_dir={sample_root}"]
    done = run_python(words, server.url)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "which cannot be moved" in done.stderr and not (tmp_path / "run").exists()
