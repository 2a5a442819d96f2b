"""Extractors by name and by file, references of folders and of others, scores of anybody's images."""

import http.server
import json
import shutil
import threading
import urllib.error
import warnings
import zipfile

import inception
import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from scored import save_samples
from sklearn.datasets import load_sample_images

from udpm.cli import train
from udpm.config import Scoring, to_json
from udpm.core import devices
from udpm.core.devices import patch_torchvision
from udpm.core.errors import UserError
from udpm.core.files import INCEPTION, PublishedFile, fetch, sha256
from udpm.metrics import extractor as extractors
from udpm.metrics.distances import frechet_distance, statistics
from udpm.metrics.extractor import extract, load_extractor, open_extractor
from udpm.metrics.extractor_networks import Inputs
from udpm.metrics.reference import load_reference
from udpm.metrics.score import frechet_label

CPU = torch.device("cpu")
MODES = ("clean", "legacy_tensorflow", "legacy_pytorch")


def pictures(seed, count, side=12):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def write_folder(folder, images):
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:04}.png")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with a small network in Inception's place."""
    devices.configure("cpu", 1)
    return inception.write(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Two folders of images, an extractor of their pixels, its reference and its configuration."""
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "real", pictures(0, 40))
    write_folder(tmp_path / "drawn", pictures(1, 30) // 2)
    network = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten())
    torch.jit.save(torch.jit.trace(network, torch.zeros(2, 3, 12, 12)), "x.pt")
    (tmp_path / "scoring.json").write_text(to_json(Scoring(extractor="x.pt", threads=1, kernel_subsets=5)))
    assert tiny.call("reference", "real", "--config", "scoring.json", "--output", "r.npz") == 0
    return tmp_path


SCORE = ("score", "--images", "drawn", "--reference", "r.npz", "--config", "scoring.json", "--output", "s.json")


def standing_in(weights, mode="clean", **changes):
    options = {"weights_folder": str(weights.parent), "weights_sha256": sha256(weights), "threads": 1}
    return Scoring(extractor="inception", inception_mode=mode, download=False, **options | changes)


@pytest.mark.parametrize("mode", MODES)
def test_inceptions_features_are_clean_fids(weights, tmp_path, mode):
    patch_torchvision()
    from cleanfid.fid import get_folder_features
    from cleanfid.inception_torchscript import InceptionV3W

    images = pictures(0, 3, side=40)
    network = InceptionV3W(str(weights.parent), download=False, resize_inside=mode == "legacy_tensorflow").eval()
    options = {"num_workers": 0, "device": CPU, "mode": mode, "verbose": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = get_folder_features(str(write_folder(tmp_path / "images", images)), network, **options)
    ours = open_extractor(standing_in(weights, mode), None, CPU).features(images, 2)
    assert ours.shape == (3, 2048)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_three_modes_are_three_extractors(weights):
    found = [open_extractor(standing_in(weights, mode), None, CPU) for mode in MODES]
    assert len({extractor.inputs.describe() for extractor in found}) == 3
    assert not any(extractor.is_inception for extractor in found)
    probabilities = found[0].probabilities(found[0].features(pictures(0, 2), 2))
    assert probabilities.shape == (2, 1008)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)


def test_only_inceptions_50000_images_have_an_fid(weights):
    standin = open_extractor(standing_in(weights), None, CPU)
    real = extractors.Extractor(weights, "inception", INCEPTION.sha256, standin.module, CPU, {})
    assert frechet_label(real, 50_000) == ("fid", "FID")
    assert frechet_label(real, 10_000) == ("fid_10k", "FID-10k")
    assert frechet_label(real, 1_234) == ("fid_1234", "FID-1234")
    assert "FID" not in frechet_label(standin, 50_000)[1]


@pytest.mark.parametrize("resize", ["pil_bicubic", "pytorch_bilinear"])
def test_declared_inputs(resize):
    images = pictures(0, 4)
    own = Inputs().prepare(images, 1)
    assert own.dtype == torch.float32
    assert (own.permute(0, 2, 3, 1).numpy() == images).all()
    large = Inputs(24, resize, "-1..1").prepare(images, 2)
    assert large.shape == (4, 3, 24, 24)
    assert -1 <= large.min() < -0.5 < 0.5 < large.max() <= 1
    assert Inputs(24, resize).describe() != Inputs(24, resize, "0..1").describe()


@pytest.fixture
def server(tmp_path):
    """A local web server of a folder's files."""
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / "file.pt").write_bytes(b"weights" * 1000)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, directory=str(folder), **options)

        def do_GET(self):
            if not self.path.endswith("cut"):
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Length", "7000")
            self.end_headers()
            self.wfile.write(b"weights" * 500)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}/file.pt", sha256(folder / "file.pt")
        found.shutdown()


def test_a_download_is_checked_and_made_once(server, tmp_path, monkeypatch):
    url, digest = server
    path = fetch(PublishedFile("file.pt", url, digest), tmp_path / "here")
    assert sha256(path) == digest
    monkeypatch.setenv("UDPM_OFFLINE", "1")
    assert fetch(PublishedFile("file.pt", url, digest), tmp_path / "here") == path
    with pytest.raises(UserError, match=r"downloads are switched off; put file\.pt from http"):
        fetch(PublishedFile("file.pt", url, digest), tmp_path / "there")


def test_a_file_without_a_published_digest(server, tmp_path, monkeypatch, capsys):
    """Its digest is shown, to be pinned; a pinned one is checked."""
    url, digest = server
    monkeypatch.setitem(train.FILES, "dinov2", PublishedFile("file.pt", url, None))
    assert tiny.call("fetch", "dinov2", "--folder", tmp_path) == 0
    assert f"SHA-256 {digest}; none is published, so pin it with scoring.weights_sha256" in capsys.readouterr().out
    assert tiny.call("fetch", "dinov2", "--folder", tmp_path, "--sha256", digest) == 0
    assert tiny.call("fetch", "dinov2", "--folder", tmp_path, "--sha256", "0" * 64) == 2


@pytest.mark.parametrize("wrong", ["hash", "name", "host", "cut"])
def test_a_failed_download_leaves_nothing(server, tmp_path, wrong):
    url, digest = server
    file = {
        "hash": PublishedFile("file.pt", url, "0" * 64),
        "name": PublishedFile("file.pt", url + "x", digest),
        "host": PublishedFile("file.pt", "http://127.0.0.1:9/file.pt", digest),
        "cut": PublishedFile("file.pt", url + "?cut", None),
    }[wrong]
    with pytest.raises(UserError) as error:
        fetch(file, tmp_path / "here")
    assert all(part in str(error.value) for part in ("file.pt", file.url, str(tmp_path / "here")))
    assert not list((tmp_path / "here").iterdir())


def test_a_killed_feature_pass_resumes(project, monkeypatch):
    monkeypatch.setattr(extractors, "PART", 10)
    network, images = load_extractor("x.pt", CPU), pictures(0, 40)
    seen = []

    class Dying:
        def __getattr__(self, name):
            return getattr(network, name)

        def features(self, part, batch):
            if len(seen) == 2:
                raise KeyboardInterrupt
            seen.append(len(part))
            return network.features(part, batch)

    with pytest.raises(KeyboardInterrupt):
        extract(images, Dying(), 4, "kept")
    next(iter(project.joinpath("kept").iterdir())).write_bytes(b"half a fi")
    del seen[1:]
    with pytest.raises(KeyboardInterrupt):
        extract(images, Dying(), 4, "kept")
    found, digest = extract(images, network, 4, "kept")
    whole, same = extract(images, network, 4)
    assert (found == whole).all()
    assert digest == same
    assert len(list(project.joinpath("kept").iterdir())) == 4
    seen[:] = [0, 0]
    assert (extract(images, Dying(), 4, "kept")[0] == whole).all()


def test_a_folder_a_zip_and_an_npz_score_alike(project):
    with zipfile.ZipFile("drawn.zip", "w") as archive:
        for path in sorted(project.joinpath("drawn").iterdir()):
            archive.write(path, path.name)
    np.savez("drawn.npz", pictures(1, 30) // 2)
    found = []
    for name in ("drawn", "drawn.zip", "drawn.npz"):
        assert tiny.call(*SCORE[:2], name, *SCORE[3:]) == 0
        found.append(json.loads(project.joinpath("s.json").read_text()))
    assert found[0]["metrics"] == found[1]["metrics"] == found[2]["metrics"]
    assert len({score["subject"]["images_sha256"] for score in found}) == 1
    assert found[0]["metrics"]["kernel_distance"]["subset_size"] == 30
    assert "no data set" in found[0]["metrics"]["nearest_distance"]["reason"]


def test_a_count_takes_some(project):
    assert tiny.call(*SCORE, "--count", 20) == 0
    assert json.loads(project.joinpath("s.json").read_text())["protocol"]["n"] == 20


def test_a_score_can_be_made_again_from_itself(project, capsys):
    assert tiny.call(*SCORE, "--count", 20) == 0
    first = project.joinpath("s.json")
    for name in ("scoring.json",):
        project.joinpath(name).unlink()
    assert tiny.call("score", "--again", first, "--output", "again.json") == 0
    assert json.loads(project.joinpath("again.json").read_text()) == json.loads(first.read_text())
    Image.fromarray(pictures(7, 1)[0]).save(next(iter(sorted(project.joinpath("drawn").iterdir()))))
    for path in project.joinpath("drawn").iterdir():
        Image.fromarray(pictures(8, 1)[0]).save(path)
    assert tiny.call("score", "--again", first, "--output", "third.json") == 2
    assert "the images changed since" in capsys.readouterr().err
    assert not project.joinpath("third.json").exists()


@pytest.mark.parametrize("moved", [False, True])
def test_a_score_can_be_made_again_from_another_folder(project, tmp_path_factory, monkeypatch, moved):
    """Its paths are relative to the score itself, so that the whole folder may move, too."""
    project.joinpath("scores").mkdir()
    assert tiny.call(*SCORE[:-1], "scores/s.json") == 0
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    folder = project.rename(elsewhere / "moved") if moved else project
    monkeypatch.chdir(elsewhere)
    assert tiny.call("score", "--again", folder / "scores/s.json", "--output", "again.json") == 0
    first, again = (json.loads(path.read_text()) for path in (folder / "scores/s.json", elsewhere / "again.json"))
    assert first["request"].pop("base") == ".."
    assert elsewhere.joinpath(again["request"].pop("base")).resolve() == folder.resolve()
    assert again == first
    assert tiny.call("score", "--again", "again.json", "--output", "third.json") == 0


def test_a_score_copied_without_its_files_is_made_again_where_they_are(project):
    project.joinpath("scores").mkdir()
    assert tiny.call(*SCORE[:-1], "scores/s.json") == 0
    project.joinpath("far/away").mkdir(parents=True)
    shutil.copy("scores/s.json", "far/away/s.json")
    assert tiny.call("score", "--again", "far/away/s.json", "--output", "again.json") == 0


def test_a_score_behind_a_link_finds_its_files(project, tmp_path_factory, monkeypatch):
    scratch = tmp_path_factory.mktemp("scratch")
    project.joinpath("results").symlink_to(scratch)
    assert tiny.call(*SCORE[:-1], "results/s.json") == 0
    monkeypatch.chdir(scratch)
    assert tiny.call("score", "--again", "s.json", "--output", "again.json") == 0


def test_authenticity_needs_a_reference_without_mirror_images(project):
    assert tiny.call(*SCORE) == 0
    assert json.loads(project.joinpath("s.json").read_text())["metrics"]["authenticity"]["value"] is not None
    assert tiny.call("reference", "real", "--config", "scoring.json", "--flips", "--output", "f.npz") == 0
    flipped = ("score", "--images", "drawn", "--reference", "f.npz", "--config", "scoring.json", "--output", "t.json")
    assert tiny.call(*flipped) == 0
    metric = json.loads(project.joinpath("t.json").read_text())["metrics"]["authenticity"]
    assert metric["value"] is None
    assert "mirror images" in metric["reason"]


def test_imports_published_statistics(project):
    with np.load("r.npz") as arrays:
        np.savez("published.npz", mu=arrays["mu"], sigma=arrays["sigma"])
        mu, sigma, width = arrays["mu"], arrays["sigma"], arrays["features"].shape[1]
    assert mu.dtype == sigma.dtype == np.float64
    assert mu.shape == (width,)
    options = ("--import", "--config", "scoring.json", "--output", "theirs.npz")
    assert tiny.call("reference", "published.npz", *options) == 0
    assert tiny.call(*SCORE) == 0
    own = json.loads(project.joinpath("s.json").read_text())["metrics"]
    assert tiny.call(*SCORE[:4], "theirs.npz", *SCORE[5:]) == 0
    metrics = json.loads(project.joinpath("s.json").read_text())["metrics"]
    assert metrics["frechet_distance"] == own["frechet_distance"]
    for name in ("kernel_distance", "precision", "recall"):
        assert metrics[name]["value"] is None
        assert metrics[name]["reason"] == "the reference holds mu and sigma only"


def test_flips_double_a_reference(project):
    command = ("reference", "real", "--config", "scoring.json", "--flips", "--output", "f.npz")
    assert tiny.call(*command) == 0
    reference = load_reference("f.npz")
    network = load_extractor("x.pt", CPU)
    images = pictures(0, 40)
    both = np.concatenate([network.features(part, 9) for part in (images, images[:, :, ::-1])])
    np.testing.assert_allclose(reference.mu, both.mean(0, dtype=np.float64), rtol=1e-6)
    assert (reference.record["n"], reference.record["flips"]) == (80, True)


@pytest.mark.parametrize(
    ("mode", "resize"), [("clean", "pil_bicubic"), ("legacy_pytorch", "pytorch_bilinear"), ("legacy_tensorflow", None)]
)
def test_distances_are_clean_fids_of_the_same_folders(tmp_path, monkeypatch, mode, resize):
    monkeypatch.chdir(tmp_path)
    patch_torchvision()
    from cleanfid.fid import compute_fid

    real = write_folder(tmp_path / "real", pictures(0, 60))
    drawn = write_folder(tmp_path / "drawn", pictures(1, 60) // 2)
    side = 299 if resize else 12
    network = torch.nn.Sequential(torch.nn.AvgPool2d(side // 3), torch.nn.Flatten())
    module = torch.jit.trace(network, torch.zeros(2, 3, side, side))
    torch.jit.save(module, "x.pt")
    options = {"mode": mode, "custom_feat_extractor": module, "num_workers": 0, "device": CPU}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = compute_fid(str(real), str(drawn), verbose=False, use_dataparallel=False, **options)
    declared = {"input_side": side, "input_resize": resize} if resize else {}
    (tmp_path / "scoring.json").write_text(to_json(Scoring(extractor="x.pt", threads=1, **declared)))
    assert tiny.call("reference", "real", "--config", "scoring.json", "--output", "r.npz") == 0
    assert tiny.call(*SCORE) == 0
    ours = json.loads((tmp_path / "s.json").read_text())["metrics"]["frechet_distance"]["value"]
    assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.fixture
def ranges(project):
    """A sample set of 30 and its configuration, which cuts it into three."""
    record = {
        "classes": 3,
        "run_seed": 0,
        "seed": 0,
        "weights": "ema",
        "weights_sha256": "0" * 64,
        "posterior": "scalar",
    }
    save_samples("samples.npz", pictures(1, 30) // 2, np.arange(30) % 3, record)
    project.joinpath("three.json").write_text(to_json(Scoring(extractor="x.pt", threads=1, ranges=3)))
    command = {"source": "folder", "path": "real", "side": 12}
    project.joinpath("dataset.json").write_text(json.dumps(command))
    assert tiny.call("prepare", "dataset.json", "--output", "dataset") == 0
    assert tiny.call("reference", "dataset", "--config", "three.json", "--output", "d.npz") == 0
    options = ("--reference", "d.npz", "--dataset", "dataset", "--config", "three.json", "--output", "s.json")
    return ("score", "--samples", "samples.npz", *options)


def test_scores_report_the_first_and_the_best_of_three_ranges(project, ranges):
    assert tiny.call(*ranges) == 0
    found = json.loads(project.joinpath("s.json").read_text())
    best = found["metrics"]["frechet_distance_best"]
    reference, network = load_reference("d.npz"), load_extractor("x.pt", CPU)
    parts = [network.features(pictures(1, 30)[start : start + 10] // 2, 10) for start in (0, 10, 20)]
    expected = [frechet_distance(reference.mu, reference.sigma, *statistics(part)) for part in parts]
    assert best["values"] == pytest.approx(expected)
    assert best["value"] == min(best["values"])
    assert found["metrics"]["frechet_distance"]["value"] == best["values"][0]
    assert found["protocol"]["n"] == 10
    assert tiny.call("table", "s.json", "--output", "t") == 0
    assert "best of its ranges" in project.joinpath("t.md").read_text()


def test_ranges_must_be_equal(ranges, capsys):
    assert tiny.call(*ranges, "--count", 29) == 2
    assert "29 samples cannot be cut into 3 equal ranges" in capsys.readouterr().err


def rescored(folder, **changes):
    """Change the configuration that images are scored with."""
    values = json.loads(folder.joinpath("scoring.json").read_text())
    folder.joinpath("scoring.json").write_text(json.dumps(values | changes))


def broken_features(folder):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(1))
    torch.jit.save(torch.jit.trace(lambda x: network(x * 1e38 * 1e38), torch.zeros(2, 3, 12, 12)), str(folder / "x.pt"))


def another_extractor(folder):
    torch.jit.save(torch.jit.trace(torch.nn.Flatten(), torch.zeros(2, 3, 12, 12)), str(folder / "x.pt"))


def without_request(folder):
    """A score as older versions wrote it."""
    assert tiny.call(*SCORE[:-1], "old.json") == 0
    score = json.loads((folder / "old.json").read_text())
    del score["request"]
    (folder / "old.json").write_text(json.dumps(score))


SCORE_LINE = " ".join(SCORE)
REFERENCE_LINE = "reference real --config scoring.json --output out.npz"
URL = "from https://nvlabs-fi-cdn.nvidia.com/"
BAD = {
    "fewer images than --count": (
        lambda f: None,
        f"{SCORE_LINE} --count 31",
        "drawn: has 30 images, fewer than --count 31",
    ),
    "fewer images than neighbours": (
        lambda f: rescored(f, neighbours=30),
        SCORE_LINE,
        "scoring.neighbours: 30 needs more than 30 drawn images",
    ),
    "one image": (
        lambda f: write_folder(f / "one", pictures(0, 1)),
        SCORE_LINE.replace("drawn", "one"),
        "1 samples cannot be cut into 1 equal ranges of 2 or more",
    ),
    "another size": (
        lambda f: write_folder(f / "large", pictures(0, 4, side=16)),
        SCORE_LINE.replace("drawn", "large"),
        "images have 16×16 pixels, but the reference real was made of 12×12; bring them to its size",
    ),
    "other channels": (
        lambda f: np.savez(f / "grey.npz", images=pictures(0, 4)[..., :2]),
        SCORE_LINE.replace("drawn", "grey.npz"),
        "grey.npz: images is uint8 (4, 12, 12, 2); expected uint8 (N, height, width, 3)",
    ),
    "an array of something else": (
        lambda f: np.savez(f / "other.npz", mu=np.zeros(3)),
        SCORE_LINE.replace("drawn", "other.npz"),
        "other.npz: mu is float64 (3,); expected uint8 (N, height, width, 3)",
    ),
    "another extractor": (another_extractor, SCORE_LINE, "x.pt: not the extractor of the reference (SHA-256"),
    "another preprocessing": (
        lambda f: rescored(f, input_range="0..1"),
        SCORE_LINE,
        "at their own side, in [0, 1], but the reference's is none: images enter",
    ),
    "features that are not numbers": (broken_features, REFERENCE_LINE, "x.pt: its features are not finite"),
    "an empty folder": (
        lambda f: (f / "empty").mkdir(),
        SCORE_LINE.replace("drawn", "empty"),
        "empty: no images; looked for .png",
    ),
    "no folder": (lambda f: None, SCORE_LINE.replace("drawn", "nowhere"), "nowhere: no such folder or .zip"),
    "a mixed folder": (
        lambda f: Image.fromarray(pictures(0, 1, side=16)[0]).save(f / "drawn/0003a.png"),
        SCORE_LINE,
        "drawn: 0003a.png has 16×16 pixels, but 0000.png has 12×12; bring them to one size (udpm prepare)",
    ),
    "a damaged image": (
        lambda f: (f / "drawn/0004.png").write_bytes(b"rubbish"),
        SCORE_LINE,
        "drawn: 0004.png not a readable image",
    ),
    "weights of another hash": (
        lambda f: (inception.write(f / "w"), rescored(f, extractor="inception", weights_folder="w")),
        REFERENCE_LINE,
        "w/inception-2015-12-05.pt: has SHA-256",
    ),
    "missing weights, offline": (
        lambda f: rescored(f, extractor="inception", weights_folder="w", download=False),
        REFERENCE_LINE,
        f"w/inception-2015-12-05.pt: not found, and downloads are switched off; put inception-2015-12-05.pt {URL}",
    ),
    "no network": (
        lambda f: None,
        "fetch inception --folder w",
        "w/inception-2015-12-05.pt: cannot be downloaded (<urlopen error",
    ),
    "fetched weights of another hash": (
        lambda f: inception.write(f / "w"),
        "fetch inception --folder w --offline",
        "remove it, and put inception-2015-12-05.pt",
    ),
    "statistics without a record": (
        lambda f: np.savez(f / "r.npz", mu=np.zeros(3), sigma=np.eye(3)),
        SCORE_LINE,
        "r.npz: not a reference: it has no record; `udpm reference [--import]` makes it",
    ),
    "published statistics that are none": (
        lambda f: np.savez(f / "p.npz", mu=np.zeros(3), sigma=np.eye(4)),
        "reference p.npz --import --config scoring.json --output out.npz",
        "p.npz: sigma is float64 (4, 4); expected floating-point (3, 3)",
    ),
    "published statistics of another width": (
        lambda f: (np.savez(f / "p.npz", mu=np.zeros(3), sigma=np.eye(3)), rescored(f, input_side=12)),
        "reference p.npz --import --config scoring.json --output out.npz",
        "p.npz: has statistics of 3 features, but extractor x gives 27",
    ),
    "the digits' extractor without its file": (
        lambda f: rescored(f, extractor="digits"),
        REFERENCE_LINE,
        "digits is trained by `udpm extractor`; give its file with --extractor",
    ),
    "a score that says nothing": (
        without_request,
        "score --again old.json --output s.json",
        "old.json: does not record how it was made",
    ),
    "no reference": (
        lambda f: None,
        "score --images drawn --config scoring.json --output s.json",
        "--reference is missing",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(project, case, capsys, monkeypatch):
    def refused(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refused)
    prepare, command, expected = BAD[case]
    prepare(project)
    tiny.assert_refused(project, command, expected, capsys)


# --- EfficientNet-Lite0 ----------------------------------------------------------------------------------------------

LITE0_SCORING = Scoring(extractor="lite0", threads=1)


@pytest.fixture(scope="module")
def lite0():
    return open_extractor(LITE0_SCORING, None, CPU)


def test_lite0_is_the_published_network(lite0):
    """Features and every 50th logit of the weights' own implementation, for ten parts of photographs."""
    photos = load_sample_images().images
    parts = [photo[40 * k : 40 * k + 128, 60 * k : 60 * k + 128] for photo in photos for k in range(5)]
    with torch.inference_mode(), np.load(tiny.ROOT / "tests/golden/lite0_features.npz") as expected:
        found = lite0.module(torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2).float())
        np.testing.assert_allclose(found, expected["features"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(lite0.module.logits(found)[:, ::50], expected["logits"], rtol=1e-4, atol=1e-4)


def test_lite0_is_never_called_fid(lite0):
    assert frechet_label(lite0, 50_000) == ("fd_50k", "FD (EfficientNet-Lite0 features)")
    assert not lite0.is_inception
    assert lite0.classifies
    assert not lite0.knows_labels
    described = lite0.describe()["preprocessing"]
    assert described.startswith("to 128×128 by clean-fid's PIL bicubic, in [0, 255]; then (x - 127) / 128")


def test_lite0_scores_without_a_download(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UDPM_OFFLINE", "1")
    write_folder(tmp_path / "real", pictures(0, 12, side=32))
    write_folder(tmp_path / "drawn", pictures(1, 8, side=32) // 2)
    (tmp_path / "scoring.json").write_text(to_json(LITE0_SCORING.model_copy(update={"kernel_subsets": 5})))
    assert tiny.call("reference", "real", "--config", "scoring.json", "--output", "r.npz") == 0
    assert tiny.call(*SCORE) == 0
    found = json.loads((tmp_path / "s.json").read_text())
    distance = found["metrics"]["frechet_distance"]
    assert distance["value"] > 1
    assert distance["warning"] == "8 images are too few for 1280 features: the covariance is singular"
    assert found["metrics"]["inception_score"]["label"] == "Inception score (EfficientNet-Lite0 classes)"


def test_without_lite0s_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^scoring\.extractor: lite0 needs the features extra: pip install"):
        open_extractor(LITE0_SCORING, None, CPU)


def test_another_file_in_lite0s_place(tmp_path):
    path = tmp_path / "efficientnet-lite0-57934424.pth"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"efficientnet-lite0-57934424\.pth: has SHA-256 .*, expected 579344248a93"):
        open_extractor(LITE0_SCORING, path, CPU)
