"""Runs on the Hugging Face Hub: huggingface_hub itself, against a server on this machine."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tiny
import yaml
from hub import READ_TOKEN, TOKEN, Hub
from huggingface_hub import ModelCard, constants
from PIL import Image
from scored import fid, results, sampled_run

import udpm
from udpm.core.errors import UserError
from udpm.core.files import sha256

NAME = "owner/udpm-digits"


@pytest.fixture(scope="module")
def study(trained, digits, tmp_path_factory):
    """Results of one finished run, with samples and scores by two extractors, one value of which is missing."""
    folder = tmp_path_factory.mktemp("study")
    run = sampled_run(folder, trained, 70)
    of_run = {"selection": None, "classes": 10, "n": 70, "weights_sha256": sha256(run / "weights.safetensors")}
    score = fid(18.25, "digits", label="FD (digits features)", **of_run)
    score["metrics"]["frechet_distance"]["name"] = "fd_70"
    score["metrics"]["precision"] = {"value": 0.5, "label": "precision"}
    score["metrics"]["recall"] = {"value": None, "label": "recall", "reason": "too few images"}
    further = fid(7.5, "digits", label="FID-70", **of_run)
    further["metrics"]["frechet_distance"]["name"] = "fid_70"
    results(folder, seed0=score, **{"seed0@inception": further})
    return folder


@pytest.fixture
def run(study):
    return study / "runs/digits/seed0"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A server, and this process as if it had started with its address, a token and an empty cache."""
    with Hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        # Its storage server is not part of the Hub's documented calls; without it, files are uploaded by LFS.
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        for name in ("HF_HUB_OFFLINE", "UDPM_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        yield server


def push(run, *options, name=NAME):
    return tiny.call("push", run, name, *options)


def error_of(capsys, code):
    """Return the only line of a command that was refused, in which no token stands."""
    shown = capsys.readouterr()
    assert code == 2, shown
    assert len(shown.err.splitlines()) == 1, shown.err
    line = shown.err.strip()
    assert line.startswith("error: ")
    for token in (TOKEN, READ_TOKEN, "hf_secret"):
        assert token not in shown.out + line
    return line


def test_a_pushed_run_draws_the_same_first_sample(hub, run, tmp_path, capsys):
    assert push(run) == 0
    assert f"{hub.url}/{NAME}: " in capsys.readouterr().out
    assert hub.repositories[NAME].files["weights.safetensors"] == (run / "weights.safetensors").read_bytes()
    here = udpm.load(run, device="cpu").sample(1, seed=0)
    there = udpm.load(f"hf://{NAME}", device="cpu").sample(1, seed=0)
    assert there.tobytes() == here.tobytes()
    sample = ("--count", 1, "--device", "cpu", "--output")
    for address in (run, f"hf://{NAME}", f"hf://{NAME}@main", f"hf://{NAME}@{hub.repositories[NAME].sha}"):
        path = tmp_path / f"{len(str(address))}.npz"
        assert tiny.call("sample", address, *sample, path) == 0
        assert np.load(path)["images"].tobytes() == here.tobytes()
    capsys.readouterr()
    assert tiny.call("info", f"hf://{NAME}") == 0
    assert json.loads(capsys.readouterr().out)["experiment"] == "digits"
    swap = tmp_path / "swap.npz"
    assert tiny.call("latents", "swap", f"hf://{NAME}", "--labels", "3", "--output", swap) == 0
    resolved = [call for call in hub.calls if "/resolve/" in call]
    assert {call.rpartition("/")[2] for call in resolved} == {"weights.safetensors"}


def test_everything_arrives_in_one_commit(hub, run, tmp_path):
    assert push(run, "--private", "--license", "mit") == 0
    repository = hub.repositories[NAME]
    assert repository.private
    assert len(repository.commits) == 2
    assert push(run, "--license", "mit", "--dry-run", tmp_path / "bundle") == 0
    written = {str(name): data for name, data in tiny.snapshot(tmp_path / "bundle").items()}
    assert {name: data for name, data in repository.files.items() if name != ".gitattributes"} == written
    assert {"weights.safetensors", "config.json", "README.md", "samples.png", "bundle.json", "scores/seed0.json"} <= (
        written.keys()
    )


def test_a_dry_run_calls_nobody(hub, run, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    assert push(run, "--dry-run", tmp_path / "bundle") == 0
    assert "nothing was uploaded" in capsys.readouterr().out
    assert hub.calls == []
    assert udpm.load(tmp_path / "bundle", device="cpu").sample(1).shape == (1, 16, 16, 3)
    assert "picture" not in (tmp_path / "bundle/README.md").read_text()
    with Image.open(tmp_path / "bundle/samples.png") as picture:
        assert json.loads(picture.text["Record"])["count"] == 64


def test_the_card_is_one_that_the_hub_reads(hub, run, tmp_path):
    assert push(run, "--license", "cc-by-4.0", "--dry-run", tmp_path / "bundle") == 0
    text = (tmp_path / "bundle/README.md").read_text()
    data = ModelCard(text).data
    assert (data.library_name, data.pipeline_tag, data.license) == (
        "udpm",
        "unconditional-image-generation",
        "cc-by-4.0",
    )
    assert data.datasets == ["digits"]
    found = {(result.metric_type, result.metric_value) for result in data.eval_results}
    assert found == {("fd_70", 18.25), ("precision", 0.5), ("fid_70", 7.5)}
    for result in data.eval_results:
        assert " of N = 70 images in features of " in result.metric_args["protocol"]
        assert "sampling seed 0" in result.metric_args["protocol"]
        assert (result.dataset_name, result.dataset_split) == ("digits", "train")
        assert ("FID" in result.metric_name) == (result.metric_type == "fid_70")
    assert "![Samples](samples.png)" in text
    assert "The first 64 samples, without selection: ema weights" in text
    assert f'udpm.load("hf://{NAME}")' in text
    assert "Licence of the weights: cc-by-4.0." in text


def test_a_run_without_scores_and_samples(hub, trained, tmp_path):
    run = Path(shutil.copytree(trained, tmp_path / "results/runs/digits/seed0"))
    assert push(run, "--dry-run", tmp_path / "bundle") == 0
    front = yaml.safe_load((tmp_path / "bundle/README.md").read_text().split("---\n")[1])
    assert "model-index" not in front
    assert "license" not in front
    assert "The first 16 samples, without selection" in (tmp_path / "bundle/README.md").read_text()


def test_a_later_push_replaces_what_an_earlier_one_made(hub, run, study, tmp_path, capsys):
    assert push(run) == 0
    hub.repositories[NAME].commit(hub.repositories[NAME].files | {"notes.txt": b"mine"})
    again = Path(shutil.copytree(study, tmp_path / "study"))
    (again / "scores/digits/seed0@inception.json").unlink()
    assert push(again / "runs/digits/seed0") == 0
    files = hub.repositories[NAME].files
    assert files["notes.txt"] == b"mine"
    assert "scores/seed0.json" in files
    assert "scores/seed0@inception.json" not in files
    assert len(hub.repositories[NAME].commits) == 4


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"model.bin": b"mine"}, "holds other files (model.bin), not a pushed run"),
        ({"bundle.json": b'{"format": "mine"}'}, "its bundle.json is not of a pushed run"),
        ({"bundle.json": b"["}, "not a readable record of a bundle"),
        ({"README.md": b"mine"}, "its README.md was edited there"),
        ({"samples.png": b"mine", "bundle.json": b'{"format": "udpm-bundle/1", "files": []}'}, "has its own "),
    ],
)
def test_a_repository_of_something_else_stays(hub, run, capsys, files, expected):
    assert push(run) == 0
    repository = hub.repositories[NAME]
    repository.commit((repository.files if "README.md" in files else {}) | files)
    before = repository.sha
    assert expected in error_of(capsys, push(run))
    assert repository.sha == before


def test_a_public_repository_is_not_called_private(hub, run, capsys):
    assert push(run) == 0
    assert "exists and is public" in error_of(capsys, push(run, "--private"))


@pytest.mark.parametrize(
    "name", ["digits", "a/b/c", "owner/", "/digits", "own er/digits", "owner/--digits", "o/n@main"]
)
def test_a_name_of_no_repository(hub, run, capsys, name):
    assert "not the name of a repository; expected OWNER/NAME" in error_of(capsys, push(run, name=name))
    assert hub.calls == []


def test_an_unfinished_run(hub, run, tmp_path, capsys):
    other = Path(shutil.copytree(run, tmp_path / "runs/digits/seed0"))
    (other / "complete.json").unlink()
    assert "record of a finished run not found" in error_of(capsys, push(other))
    (other / "complete.json").write_bytes((run / "complete.json").read_bytes())
    tiny.flip_byte(other / "weights.safetensors", 5000)
    assert "not the weights that complete.json records" in error_of(capsys, push(other))
    assert NAME not in hub.repositories


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("hf_secret", "does not accept the token"),
        ("hf_secr\x01et", "holds characters that no token has"),
        ("hf_sécret", "holds characters that no token has"),
        (READ_TOKEN, "does not allow this with the token"),
        (None, "no token for http://127.0.0.1"),
    ],
)
def test_a_token_that_is_of_no_use(hub, run, capsys, monkeypatch, token, expected):
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    line = error_of(capsys, push(run))
    assert expected in line
    assert hub.repositories == {}


@pytest.mark.parametrize(
    ("part", "status", "expected"),
    [
        ("PUT /blobs", None, "cannot reach http://127.0.0.1"),
        ("PUT /blobs", 507, "answered 507"),
        ("/preupload/", 500, "answered 500"),
        ("/commit/", 503, "answered 503"),
        ("/commit/", 412, "changed at http://127.0.0.1"),
        ("/commit/", None, "cannot reach http://127.0.0.1"),
        ("/validate-yaml", 403, "does not allow this with the token"),
        ("/whoami", 429, "takes no more requests now"),
    ],
)
def test_an_upload_that_fails_leaves_nothing(hub, run, capsys, part, status, expected):
    hub.failing[part] = status
    assert expected in error_of(capsys, push(run))
    assert hub.repositories == {}
    hub.failing.clear()
    assert push(run) == 0
    before = hub.repositories[NAME].sha
    hub.failing[part] = status
    capsys.readouterr()
    assert expected in error_of(capsys, push(run))
    assert hub.repositories[NAME].sha == before


def test_a_commit_whose_answer_is_lost_stays(hub, run, capsys):
    hub.failing["after /commit/"] = None
    assert f"look at {hub.url}/{NAME}, which was made" in error_of(capsys, push(run))
    assert "weights.safetensors" in hub.repositories[NAME].files


@pytest.mark.parametrize("rights", [True, False])
def test_ctrl_c_leaves_nothing_or_says_what(hub, run, capsys, monkeypatch, rights):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("huggingface_hub.hf_api.HfApi.preupload_lfs_files", interrupted)
    if rights:
        assert push(run) == 130
        assert hub.repositories == {}
    else:
        hub.failing["/repos/delete"] = 403
        assert f"interrupted; look at {hub.url}/{NAME}, which was made" in error_of(capsys, push(run))
        assert hub.repositories[NAME].files.keys() == {".gitattributes"}


def test_a_licence_that_the_hub_does_not_know(hub, run, capsys):
    assert '"license" must be one of [mit, ...]' in error_of(capsys, push(run, "--license", "nonsense"))
    assert hub.repositories == {}


def test_loading_what_is_not_there(hub, run, capsys, monkeypatch, tmp_path):
    assert push(run, "--private") == 0
    hub.repositories["owner/empty"] = type(hub.repositories[NAME])(private=False)

    def refused(address):
        with pytest.raises(UserError) as error:
            udpm.load(address)
        (line,) = error.value.mistakes
        code = tiny.call("sample", address, "--count", 1, "--output", tmp_path / "no.npz")
        assert error_of(capsys, code) == f"error: {line}"
        assert line.startswith(f"{address}: ")
        assert not (tmp_path / "no.npz").exists()
        return line

    capsys.readouterr()
    assert "no such repository" in refused("hf://owner/other")
    assert "no such revision" in refused(f"hf://{NAME}@v9")
    assert "names no revision after @" in refused(f"hf://{NAME}@")
    assert "has no weights.safetensors" in refused("hf://owner/empty")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert "does not accept the token" in refused(f"hf://{NAME}")
    monkeypatch.delenv("HF_TOKEN")
    line = refused(f"hf://{NAME}")
    assert "or it is private: set HF_TOKEN or run `hf auth login`" in line
    for address in ("hf://digits", "hf://datasets/owner/name", "hf://"):
        with pytest.raises(UserError, match="not the name of a repository"):
            udpm.load(address)


def test_fetched_weights_start_a_training(hub, run, tmp_path, capsys, monkeypatch, digits):
    assert push(run) == 0
    first, weights = hub.repositories[NAME].sha, (run / "weights.safetensors").read_bytes()
    folder, copy = tmp_path / "kept", tmp_path / "kept/owner--udpm-digits.safetensors"
    fetch = ("fetch", f"hf://{NAME}", "--folder", folder)
    assert tiny.call(*fetch, "--offline") == 2
    assert f"{copy}: not found, and downloads are switched off" in capsys.readouterr().err
    assert f"{NAME}: its weights.safetensors has SHA-256" in error_of(capsys, tiny.call(*fetch, "--sha256", "0" * 64))
    assert not folder.exists()
    for _ in range(2):
        assert tiny.call(*fetch, "--sha256", sha256(run / "weights.safetensors")) == 0
        assert f"{copy}: ok, SHA-256 " in capsys.readouterr().out
    assert copy.read_bytes() == weights
    # A later model of the same name does not replace it; its revision gets another file.
    other = weights[:-1] + bytes([weights[-1] ^ 1])
    hub.repositories[NAME].commit(hub.repositories[NAME].files | {"weights.safetensors": other})
    assert f"{copy}: differs from weights.safetensors of hf://{NAME}" in error_of(capsys, tiny.call(*fetch))
    assert copy.read_bytes() == weights
    assert tiny.call("fetch", f"hf://{NAME}@{first}", "--folder", folder) == 0
    assert (folder / f"owner--udpm-digits@{first}.safetensors").read_bytes() == weights
    monkeypatch.setenv("UDPM_OFFLINE", "1")
    assert tiny.call(*fetch) == 0
    config = tiny.write_config(tmp_path, training__iterations=1)
    train = ("train", config, "--dataset", digits / "dataset", "--cache", digits / "cache", "--run", tmp_path / "run")
    assert tiny.call(*train, "--set", f"weights={copy}") == 0


def test_an_address_is_no_file_to_start_from(hub, tmp_path, capsys):
    config = tiny.write_config(tmp_path)
    line = error_of(capsys, tiny.call("train", config, "--dry-run", "--set", "weights=hf://owner/name@v2"))
    assert "weights: hf://owner/name@v2 is an address, but must be a file, which stays the same; " in line
    assert line.endswith("`udpm fetch hf://owner/name@v2` writes resources/weights/owner--name@v2.safetensors")
    assert hub.calls == []


def closed_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def test_without_a_network(hub, run, capsys, monkeypatch):
    assert push(run) == 0
    first = udpm.load(f"hf://{NAME}", device="cpu").sample(1)
    away = f"http://user:hf_secret@127.0.0.1:{closed_port()}"
    monkeypatch.setattr(constants, "ENDPOINT", away)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{away}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: pytest.fail("waits"))
    capsys.readouterr()
    assert "cannot reach http://127.0.0.1" in error_of(capsys, push(run))
    assert udpm.load(f"hf://{NAME}", device="cpu").sample(1).tobytes() == first.tobytes()
    with pytest.raises(UserError, match=r"cannot reach http://127\.0\.0\.1") as error:
        udpm.load("hf://owner/other")
    assert "hf_secret" not in str(error.value)


def test_a_server_that_never_answers(hub, run, capsys, monkeypatch):
    assert push(run) == 0
    first = udpm.load(f"hf://{NAME}", device="cpu").sample(1)
    monkeypatch.setattr("udpm.core.hub.IDLE_SECONDS", 0.2)
    monkeypatch.setattr("udpm.core.hub.CONNECT_SECONDS", 0.2)
    hub.failing |= {"/whoami": "silence", "/resolve/": "silence"}
    capsys.readouterr()
    assert "timed out" in error_of(capsys, push(run))
    assert udpm.load(f"hf://{NAME}", device="cpu").sample(1).tobytes() == first.tobytes()
    with pytest.raises(UserError, match="timed out"):
        udpm.load("hf://owner/other")


@pytest.mark.parametrize("variable", ["UDPM_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline(hub, run, capsys, monkeypatch, variable):
    assert push(run) == 0
    first = udpm.load(f"hf://{NAME}", device="cpu").sample(1)
    monkeypatch.setenv(variable, "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", variable == "HF_HUB_OFFLINE")
    hub.calls.clear()
    capsys.readouterr()
    assert udpm.load(f"hf://{NAME}", device="cpu").sample(1).tobytes() == first.tobytes()
    with pytest.raises(UserError, match=rf"not in the cache, and downloads are switched off \({variable}\)"):
        udpm.load("hf://owner/other")
    assert f"{variable} switches the network off" in error_of(capsys, push(run))
    assert hub.calls == []


def test_a_file_that_is_no_model_is_not_loaded(hub, run):
    assert push(run) == 0
    repository = hub.repositories[NAME]
    for data in (b"\x80\x05pickle", repository.files["weights.safetensors"][:4000], b""):
        repository.commit(repository.files | {"weights.safetensors": data})
        with pytest.raises(UserError):
            udpm.load(f"hf://{NAME}")


def test_the_missing_extra_is_named(run, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if "hugging" in name else find_spec(name))
    assert "needs the hub extra: pip install 'udpm[hub]'" in error_of(capsys, push(run))
    with pytest.raises(UserError, match=re.escape("hf://owner/name: needs the hub extra: pip install 'udpm[hub]'")):
        udpm.load("hf://owner/name")


def test_as_a_user_does_it(hub, run, tmp_path):
    """In processes of their own, with the variables of huggingface_hub."""
    home = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    done = tiny.udpm("push", run, NAME, env=os.environ | home)
    assert f"{hub.url}/{NAME}" in done.stdout
    assert done.stderr == ""
    program = f"import udpm; print(udpm.load('hf://{NAME}', device='cpu').sample(1, seed=0).tobytes().hex())"
    loaded = subprocess.run([sys.executable, "-c", program], env=os.environ | home, capture_output=True, text=True)
    assert loaded.stdout.strip() == udpm.load(run, device="cpu").sample(1, seed=0).tobytes().hex(), loaded.stderr
    assert hub.tokens == {TOKEN, None}  # None for files, whose addresses are permission enough
    away = home | {"HF_ENDPOINT": f"http://127.0.0.1:{closed_port()}", "HF_HOME": str(tmp_path / "empty")}
    failed = tiny.udpm("push", run, NAME, env=os.environ | away, check=False, timeout=60)
    assert failed.returncode == 2
    assert failed.stderr.startswith(f"error: {NAME}: cannot reach http://127.0.0.1")
