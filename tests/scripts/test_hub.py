"""Models by name in a local directory, read by plain transformers and huggingface_hub, without a network."""

import argparse
import multiprocessing
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from hashlib import sha1
from pathlib import Path

import hub
import pytest
from cxr.errors import UserError
from cxr.models.pretrained import load_config
from cxr.models.pretrained import load_image_processor
from cxr.models.pretrained import load_pretrained
from cxr.sharing import local_hub
from huggingface_hub import scan_cache_dir
from tiny_models import make_model
from transformers import ViTForImageClassification

NAME = "my-lab/mae-cxr"
NO_MODEL = ("predictions_test.csv", "samples.json", "notes.md", "weights.bin", "folder")
SHARED = ("config.json", "README.md")


def push(folder: Path, hub_dir: Path, *, model_id: str = NAME, tag: str | None = None) -> str:
    return local_hub.push(folder, hub_dir=hub_dir, model_id=model_id, message=f"from {folder.name}", tag=tag)


def load_bias(hub_dir: Path, revision: str = "main") -> float:
    model = ViTForImageClassification.from_pretrained(
        NAME, cache_dir=str(hub_dir), local_files_only=True, revision=revision
    )
    return model.classifier.bias[0].item()


@pytest.fixture(params=["links", "copies"])
def pushed(request, tmp_path, monkeypatch) -> tuple[Path, list[str]]:
    """A directory with two revisions, with and without the right to make links; and their commits."""
    if request.param == "copies":

        def not_allowed(self, target, target_is_directory=False):
            raise OSError(1314, "A required privilege is not held by the client")

        monkeypatch.setattr(Path, "symlink_to", not_allowed)
    hub_dir = tmp_path / "hub"
    return hub_dir, [push(make_model(tmp_path / f"model-{bias}", bias=bias), hub_dir) for bias in (1.0, 2.0)]


def repository(hub_dir: Path) -> Path:
    return hub_dir / "models--my-lab--mae-cxr"


def main_of(hub_dir: Path) -> str:
    return (repository(hub_dir) / "refs" / "main").read_text(encoding="utf-8")


def snapshots(hub_dir: Path) -> set[str]:
    return {path.name for path in (repository(hub_dir) / "snapshots").iterdir()}


def test_two_pushes_are_two_revisions_of_the_files_as_they_were_and_main_is_the_second(pushed):
    hub_dir, commits = pushed
    assert snapshots(hub_dir) == set(commits) and main_of(hub_dir) == commits[1]
    assert all(len(commit) == 40 and int(commit, 16) for commit in commits)
    for commit, source in zip(commits, ("model-1.0", "model-2.0")):
        snapshot = repository(hub_dir) / "snapshots" / commit
        expected = {path.name: path.read_bytes() for path in (hub_dir.parent / source).iterdir()}
        assert {path.name: path.read_bytes() for path in snapshot.iterdir()} == expected
    # What is the same is stored once: two weights, one configuration, one image processor, one card.
    assert len(list((repository(hub_dir) / "blobs").iterdir())) == 5
    scan = scan_cache_dir(hub_dir)  # Hugging Face's own
    (found,) = scan.repos
    assert not scan.warnings and (found.repo_id, found.repo_type) == (NAME, "model")
    refs = {revision.commit_hash: set(revision.refs) for revision in found.revisions}
    assert refs == {commits[0]: set(), commits[1]: {"main"}}


def test_plain_transformers_loads_by_name_and_commit_from_a_moved_directory_without_the_sources(pushed):
    hub_dir, commits = pushed
    moved = shutil.copytree(hub_dir, hub_dir.parent / "elsewhere" / "hub", symlinks=True)
    for folder in (hub_dir, hub_dir.parent / "model-1.0", hub_dir.parent / "model-2.0"):
        shutil.rmtree(folder)
    assert [load_bias(moved, revision) for revision in ("main", *commits)] == [2.0, 1.0, 2.0]


def test_our_loading_finds_the_name_and_both_commits(pushed):
    hub_dir, commits = pushed
    for revision, bias in (("main", 2.0), (commits[0], 1.0)):
        source = {"hub_dir": hub_dir, "revision": revision}
        config = load_config(NAME, expected=("vit",), **source)
        model = load_pretrained(ViTForImageClassification, NAME, config=config, **source)
        assert model.classifier.bias[0].item() == bias
        assert list(load_image_processor(NAME, image_size=16, **source).image_mean) == [0.4978] * 3
    with pytest.raises(ValueError, match=r"^model my-lab/mae-cxr: found no revision v9 in --hub_dir [^\n]*$"):
        load_config(NAME, expected=("vit",), hub_dir=hub_dir, revision="v9")


@pytest.mark.parametrize("stopped", ["_store_blob", "link_or_copy", "write_text"])
def test_interrupted_push_leaves_main_where_it_was_and_can_be_repeated(tmp_path, monkeypatch, stopped):
    hub_dir = tmp_path / "hub"
    first = push(make_model(tmp_path / "first", bias=1.0), hub_dir)
    second = make_model(tmp_path / "second", bias=2.0)
    whole, calls = getattr(local_hub, stopped), []

    def stop_at_the_last(*args):
        calls.append(args)
        if len(calls) == (1 if stopped == "write_text" else 3):
            raise KeyboardInterrupt
        return whole(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(local_hub, stopped, stop_at_the_last)
        push(second, hub_dir)
    assert main_of(hub_dir) == first
    assert load_bias(hub_dir) == 1.0
    assert not [path for path in repository(hub_dir).rglob("*") if path.name.endswith((".tmp", ".old"))]
    assert not scan_cache_dir(hub_dir).warnings
    push(second, hub_dir)
    assert load_bias(hub_dir) == 2.0


def test_names_of_blobs_are_on_the_disk_before_a_name_of_the_model_leads_to_them(tmp_path, monkeypatch):
    done = []
    for name in ("sync_file", "_write"):
        real = getattr(local_hub, name)
        noted = lambda path, *rest, real=real: (done.append(path.name), real(path, *rest))  # noqa: E731
        monkeypatch.setattr(local_hub, name, noted)
    push(make_model(tmp_path / "model", bias=1.0), tmp_path / "hub")
    assert done.index("blobs") < done.index("main")


def test_blob_whose_copy_was_interrupted_is_not_taken_for_whole(tmp_path, monkeypatch):
    hub_dir, model = tmp_path / "hub", make_model(tmp_path / "model", bias=1.0)

    def half(source, target):
        content = Path(source).read_bytes()
        Path(target).write_bytes(content[: len(content) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(local_hub.shutil, "copyfile", half)
        push(model, hub_dir)
    push(model, hub_dir)
    assert load_bias(hub_dir) == 1.0


IDS = ("a/b", "my-lab/mae_cxr.v2", "A1/B-2")
NO_IDS = ("a", "a/b/c", "../b", "a/..", "/a", "a/", "a b/c", "a/b\n", "a--b/c", "a/" + 97 * "b")
NO_TAGS = ("main", "", "../v1", "a/b", "v1\n", "-v", 40 * "a", 97 * "v")


@pytest.mark.parametrize(
    ("parse", "text", "said"),
    [
        *((local_hub.parse_model_id, text, "expected ORG/NAME") for text in NO_IDS),
        *((local_hub.parse_tag, text, "expected a name such as v1, other than main") for text in NO_TAGS),
        (local_hub.parse_model_id, "my-lab/vit-15112026", "looks like the id of a patient"),
        (local_hub.parse_tag, "p10000032", "looks like the id of a patient"),
        (local_hub.without_ids, "of study 50414267", "looks like the id of a patient"),
    ],
)
def test_other_names_and_those_that_look_like_ids_are_refused(parse, text, said):
    assert all(local_hub.parse_model_id(name) == name for name in IDS)
    with pytest.raises(argparse.ArgumentTypeError, match=said):
        parse(text)


def test_log_has_parent_time_message_and_files_and_the_hash_covers_them(pushed):
    hub_dir, commits = pushed
    log = local_hub.read_log(hub_dir, NAME)
    assert [commit.commit for commit in log] == commits[::-1]
    assert [commit.parent for commit in log] == [commits[0], None]
    assert [commit.message for commit in log] == ["from model-2.0", "from model-1.0"]
    assert log[0].time > log[1].time
    names = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert set(log[0].files) == names
    path = repository(hub_dir) / "commits" / f"{commits[0]}.json"
    assert sha1(path.read_bytes()).hexdigest() == commits[0]
    path.write_bytes(path.read_bytes().replace(b"from model-1.0", b"from model-9.0"))
    with pytest.raises(ValueError, match="its content has changed"):
        local_hub.read_log(hub_dir, NAME)


def test_same_files_again_are_no_new_revision(pushed):
    hub_dir, commits = pushed
    assert push(hub_dir.parent / "model-2.0", hub_dir) == commits[1]
    assert main_of(hub_dir) == commits[1] and snapshots(hub_dir) == set(commits)
    assert push(hub_dir.parent / "model-1.0", hub_dir) not in commits  # back to the first is a change


def test_tags_and_first_digits_name_revisions_in_transformers_and_here(pushed):
    hub_dir, commits = pushed
    for _ in range(2):
        assert local_hub.set_tag(hub_dir, NAME, "v1", commits[0][:6]) == commits[0]
    assert load_bias(hub_dir, "v1") == 1.0
    assert local_hub.resolve(hub_dir, NAME, "v1") == commits[0]
    with pytest.raises(
        ValueError, match=rf"found the tag v1 at revision {commits[0][:8]}.* which cannot be moved"
    ):
        local_hub.set_tag(hub_dir, NAME, "v1", "main")
    with pytest.raises(ValueError, match="found 0 revisions 'v9'; expected main or v1 or the first digits"):
        local_hub.resolve(hub_dir, NAME, "v9")
    with pytest.raises(ValueError, match="found no model a/b; expected one of its models: my-lab/mae-cxr"):
        local_hub.resolve(hub_dir, "a/b", "main")


def test_push_with_a_tag_can_be_repeated_but_does_not_move_it(tmp_path):
    hub_dir = tmp_path / "hub"
    first, second = (make_model(tmp_path / f"{bias}", bias=bias) for bias in (1.0, 2.0))
    commit = push(first, hub_dir, tag="v1")
    assert push(first, hub_dir, tag="v1") == commit
    with pytest.raises(ValueError, match="which cannot be moved"):
        push(second, hub_dir, tag="v1")
    assert main_of(hub_dir) == commit and snapshots(hub_dir) == {commit}


def test_tag_that_has_the_files_already_is_no_obstacle_though_another_push_was_between(pushed):
    """As where a run was killed after its push, and is resumed."""
    hub_dir, commits = pushed
    local_hub.set_tag(hub_dir, NAME, "v1", commits[0])
    assert push(hub_dir.parent / "model-1.0", hub_dir, tag="v1") == commits[0]
    assert main_of(hub_dir) == commits[1] and snapshots(hub_dir) == set(commits)


@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_verify_finds_and_a_push_mends_what_was_damaged(damage, pushed):
    hub_dir, commits = pushed
    path = repository(hub_dir) / "snapshots" / commits[1] / "model.safetensors"
    assert local_hub.find_problems(hub_dir, NAME) == []
    place, said = commits[1], "is missing"
    if damage == "missing":
        path.unlink()
    else:
        place, said = path.resolve().name if path.is_symlink() else place, "its content has changed"
        path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))  # a link: of the blob
    (problem,) = local_hub.find_problems(hub_dir, NAME)
    assert said in problem and place in problem
    assert push(hub_dir.parent / "model-2.0", hub_dir) == commits[1]
    assert local_hub.find_problems(hub_dir, NAME) == []
    assert load_bias(hub_dir) == 2.0


def test_verify_finds_what_is_missing_added_or_led_elsewhere(pushed):
    hub_dir, commits = pushed
    snapshot = repository(hub_dir) / "snapshots" / commits[1]
    (snapshot / "config.json").unlink()
    (snapshot / "extra.json").write_text("{}", encoding="utf-8")
    (repository(hub_dir) / "commits" / f"{commits[0]}.json").unlink()
    problems = "\n".join(local_hub.find_problems(hub_dir, NAME))
    assert "config.json: is missing" in problems and "extra.json: was not pushed" in problems
    assert f"its parent {commits[0]} is missing" in problems


def test_gc_removes_only_what_no_ref_leads_to(pushed):
    hub_dir, commits = pushed
    assert local_hub.collect_garbage(hub_dir, NAME) == (0, 0)
    local_hub.set_tag(hub_dir, NAME, "kept", "main")
    third = push(make_model(hub_dir.parent / "third", bias=3.0), hub_dir)
    (repository(hub_dir) / "refs" / "main").write_text(commits[0], encoding="utf-8")  # undone
    assert local_hub.collect_garbage(hub_dir, NAME) == (1, 1)
    assert snapshots(hub_dir) == set(commits) and third not in snapshots(hub_dir)
    assert [load_bias(hub_dir, revision) for revision in ("main", "kept")] == [1.0, 2.0]
    assert local_hub.find_problems(hub_dir, NAME) == []
    (repository(hub_dir) / "refs" / "kept").unlink()
    assert local_hub.collect_garbage(hub_dir, NAME) == (1, 1)
    assert snapshots(hub_dir) == {commits[0]} and load_bias(hub_dir) == 1.0


def test_first_push_that_was_killed_is_a_problem_of_its_model_only(pushed):
    hub_dir, commits = pushed
    other = local_hub.repository_dir(hub_dir, "my-lab/other")
    shutil.copytree(repository(hub_dir), other, symlinks=True)
    (other / "refs" / "main").unlink()
    assert any("refs/main: is missing" in line for line in local_hub.find_problems(hub_dir, "my-lab/other"))
    with pytest.raises(ValueError, match=r"my-lab/other: found no refs/main .*push the model again"):
        local_hub.collect_garbage(hub_dir, "my-lab/other")
    assert snapshots(hub_dir) == {path.name for path in (other / "snapshots").iterdir()}
    done = run_command("list", "--hub_dir", hub_dir)
    assert done.returncode == 1 and commits[1][:8] in done.stdout
    assert "found 0 revisions 'main'" in done.stdout
    assert push(hub_dir.parent / "model-2.0", hub_dir, model_id="my-lab/other") == commits[1]  # completed
    assert local_hub.find_problems(hub_dir, "my-lab/other") == []
    assert [commit.commit for commit in local_hub.read_log(hub_dir, "my-lab/other")] == commits[::-1]


def test_gc_keeps_a_download_that_a_name_in_a_folder_leads_to(pushed):
    hub_dir, commits = pushed
    foreign, blob = repository(hub_dir) / "snapshots" / (40 * "d"), repository(hub_dir) / "blobs" / (64 * "e")
    foreign.mkdir()
    blob.write_bytes(b"weights")
    local_hub.link_or_copy(Path("..") / ".." / "blobs" / blob.name, foreign / "model.safetensors")
    (repository(hub_dir) / "refs" / "refs" / "pr").mkdir(parents=True)
    (repository(hub_dir) / "refs" / "refs" / "pr" / "1").write_text(foreign.name, encoding="utf-8")
    local_hub.collect_garbage(hub_dir, NAME)
    assert (foreign / "model.safetensors").read_bytes() == b"weights"
    (repository(hub_dir) / "refs" / "refs" / "pr" / "1").unlink()
    local_hub.collect_garbage(hub_dir, NAME)
    assert snapshots(hub_dir) == set(commits) and not blob.exists()


def test_hub_dir_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    model = make_model(tmp_path / "model", bias=1.0)
    said = r"--hub_dir .*file: cannot be written to"
    with pytest.raises(ValueError, match=said):
        local_hub.check_push(hub_dir=tmp_path / "file", model_id=NAME, tag=None)
    with pytest.raises(ValueError, match=said):
        push(model, tmp_path / "file")


def test_download_that_moved_main_is_kept_and_nothing_is_built_on_it(pushed):
    """The directory is a cache, too: a download of the same name writes there what has no record."""
    hub_dir, commits = pushed
    foreign = 40 * "d"
    shutil.copytree(hub_dir.parent / "model-1.0", repository(hub_dir) / "snapshots" / foreign)
    (repository(hub_dir) / "blobs" / (40 * "e")).write_text("{}", encoding="utf-8")  # as the Hub names them
    (repository(hub_dir) / "refs" / "refs" / "pr").mkdir(parents=True)
    (repository(hub_dir) / "refs" / "refs" / "pr" / "1").write_text(foreign, encoding="utf-8")
    assert local_hub.find_problems(hub_dir, NAME) == []
    (repository(hub_dir) / "refs" / "main").write_text(foreign, encoding="utf-8")
    before = {path: path.read_bytes() for path in repository(hub_dir).rglob("*") if path.is_file()}
    for call in (
        lambda: push(hub_dir.parent / "model-2.0", hub_dir),
        lambda: local_hub.check_push(hub_dir=hub_dir, model_id=NAME, tag=None),
        lambda: local_hub.collect_garbage(hub_dir, NAME),
        lambda: local_hub.read_log(hub_dir, NAME),
    ):
        with pytest.raises(
            ValueError, match=r"dddddddd was downloaded from the Hub or its record was lost; name another"
        ):
            call()
    assert {path: path.read_bytes() for path in repository(hub_dir).rglob("*") if path.is_file()} == before
    assert [line for line in local_hub.find_problems(hub_dir, NAME) if f"refers to {foreign}" in line]
    assert [commit.commit for commit in local_hub.read_log(hub_dir, NAME, commits[1])] == commits[::-1]
    assert load_bias(hub_dir) == 1.0


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        *((name, "{}", "found in a folder to share, expected .*; move it elsewhere") for name in NO_MODEL),
        *((name, "patient_10000032", "found text that looks like the id of a patient") for name in SHARED),
        ("README.md", None, "found no README.md; expected the folder of a model with its card"),
    ],
)
def test_what_is_no_file_of_a_model_or_holds_an_id_is_not_pushed(name, text, said, tmp_path):
    path = make_model(tmp_path / "model", bias=1.0) / name
    if text is None:
        path.unlink()
    elif name == "folder":
        path.mkdir()
    else:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=said) as error:
        push(tmp_path / "model", tmp_path / "hub")
    assert name in str(error.value) and not list((tmp_path / "hub").rglob("blobs"))


def push_in_process(folder: Path, hub_dir: Path, times: int) -> None:
    for number in range(times):
        (folder / "README.md").write_text(f"{folder.name} {number}", encoding="utf-8")
        push(folder, hub_dir)


@pytest.mark.slow
def test_pushers_at_once_lose_nothing(tmp_path):
    hub_dir = tmp_path / "hub"
    folders = [make_model(tmp_path / f"{number}", bias=number) for number in range(3)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(3, mp_context=context) as pool:
        list(pool.map(push_in_process, folders, [hub_dir] * 3, [4] * 3))
    assert len(local_hub.read_log(hub_dir, NAME)) == len(snapshots(hub_dir)) == 12
    assert local_hub.find_problems(hub_dir, NAME) == []


# The command line -------------------------------------------------------------------------------------------


def run_command(*words: object) -> subprocess.CompletedProcess:
    script = Path(local_hub.__file__).parents[2] / "hub.py"
    return subprocess.run([sys.executable, str(script), *map(str, words)], capture_output=True, text=True)


@pytest.mark.slow
def test_commands_push_list_log_tag_verify_and_gc(tmp_path):
    where = ["--hub_dir", tmp_path / "hub"]
    model = make_model(tmp_path / "model", bias=1.0)
    words = ["push", model, NAME, *where, "--message", "the first", "--tag", "v1"]
    commit = run_command(*words).stdout.splitlines()[0]
    assert commit == main_of(tmp_path / "hub")
    assert commit[:8] in run_command("list", *where).stdout
    assert run_command("log", NAME, *where).stdout.startswith(f"{commit} (main, v1)\n")
    assert run_command("tag", NAME, "v2", "--revision", "v1", *where).stdout.startswith(f"{commit}\n")
    assert "All files of 1 models are as they were pushed." in run_command("verify", *where).stdout
    assert run_command("gc", NAME, *where).stdout == f"{NAME}: removed 0 revisions and 0 files\n"
    (repository(tmp_path / "hub") / "snapshots" / commit / "config.json").unlink()
    done = run_command("verify", NAME, *where)
    assert done.returncode == 1 and "config.json: is missing" in done.stdout


def test_printed_lines_load_what_was_pushed_or_tagged_from_anywhere(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    codes = []
    for words in (
        f"push {make_model(tmp_path / 'first', bias=1.0)} {NAME}",
        f"push {make_model(tmp_path / 'second', bias=2.0)} {NAME} --tag v2",
        f"push {make_model(tmp_path / 'third', bias=3.0)} {NAME}",
        f"tag {NAME} v1 --revision {{first}}",
    ):
        hub.main([*words.format(first=codes and codes[0][0][:6]).split(), "--hub_dir", "hub"])
        commit, *code = capsys.readouterr().out.splitlines()
        codes.append((commit, "\n".join(code)))
    monkeypatch.chdir("/")
    for (commit, code), bias, revision in zip(codes, (1.0, 2.0, 3.0, 1.0), (None, "v2", None, "v1")):
        names = {}
        exec(code, names)
        assert names["model"].classifier.bias[0].item() == bias
        assert code.count("\n") == 1 and f"revision={revision or commit!r}, cache_dir=" in code


WRONG = [f"log {NAME}", f"tag {NAME} main", f"push no-such-folder {NAME}", "push . x", "verify a/b", "verify"]


@pytest.mark.parametrize("words", [*WRONG, f"push . {NAME} --message p10000032"])
def test_wrong_command_is_one_line_and_status_2(words, tmp_path):
    (tmp_path / "hub").mkdir()
    done = run_command(*words.split(), "--hub_dir", tmp_path / "hub")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "expected" in done.stderr
