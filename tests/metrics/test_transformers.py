"""DINOv2 and CLIP: their published tensors, their arithmetic, their preprocessing and their files."""

import json

import fake_transformers
import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from udpm.config import Scoring, to_json
from udpm.core import devices
from udpm.core.errors import UserError
from udpm.core.files import CLIP, DINOV2, sha256
from udpm.metrics.extractor import open_extractor
from udpm.metrics.score import frechet_label
from udpm.metrics.vision_transformer import SIZES, VisionTransformer, resize_positions

CPU = torch.device("cpu")
KINDS = ("dinov2", "clip")


def pictures(seed, count, side=12):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with small networks in the places of both."""
    devices.configure("cpu", 1)
    folder = tmp_path_factory.mktemp("weights")
    return {"dinov2": fake_transformers.write_dinov2(folder), "clip": fake_transformers.write_clip(folder)}


def standing_in(weights, kind, **changes):
    digest = None if kind == "dinov2" else sha256(weights[kind])
    options = {"weights_folder": str(weights[kind].parent), "weights_sha256": digest, "download": False, "threads": 1}
    return Scoring(extractor=kind, **options | changes)


@pytest.mark.parametrize(("kind", "parameters", "features"), [("dinov2", 303_227_904, 1024), ("clip", 87_849_728, 512)])
def test_the_published_tensors_fit(kind, parameters, features):
    """On the meta device, which has shapes and no values."""
    tensors = fake_transformers.published_shapes(kind)
    network = VisionTransformer(kind, tensors)
    assert network.size == SIZES[kind]
    assert network(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, features)
    assert sum(value.numel() for value in network.network.parameters()) == parameters


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_too_few_or_of_another_shape_is_refused(kind):
    tensors = fake_transformers.published_shapes(kind)
    name = next(name for name in tensors if name.endswith("mlp.fc2.weight" if kind == "dinov2" else "mlp.c_fc.weight"))
    with pytest.raises(RuntimeError, match="Missing key"):
        VisionTransformer(kind, {key: value for key, value in tensors.items() if key != name})
    with pytest.raises(RuntimeError, match="size mismatch"):
        VisionTransformer(kind, tensors | {name: tensors[name][:-1]})


def test_clips_features_are_those_of_clips_own_layers(weights):
    found = open_extractor(standing_in(weights, "clip"), None, CPU)
    images = torch.rand(3, 3, 224, 224)
    with torch.inference_mode():
        expected = (
            fake_transformers.Clip().load(weights["clip"]).visual((images - found.module.mean) / found.module.deviation)
        )
        torch.testing.assert_close(found.module(images), expected, rtol=1e-4, atol=1e-5)


def test_dinov2s_features_are_those_of_its_equations(weights):
    found = open_extractor(standing_in(weights, "dinov2"), None, CPU)
    images = torch.rand(3, 3, 224, 224)
    tensors = torch.load(weights["dinov2"], weights_only=True)
    with torch.inference_mode():
        expected = fake_transformers.dinov2(tensors, (images - found.module.mean) / found.module.deviation)
        torch.testing.assert_close(found.module(images), expected, rtol=1e-4, atol=1e-5)


def test_dinov2s_positions_are_shifted_as_its_own():
    """Output pixel i of 16 lies at input (i + ½)·37/16.1 - ½, not at (i + ½)·37/16 - ½."""
    ramp = torch.arange(37.0)[None, :].expand(37, 37)
    embeddings = torch.cat([torch.zeros(1, 1, 1), ramp.reshape(1, -1, 1)], dim=1)
    found = resize_positions(embeddings, 16)[0, 1:, 0].reshape(16, 16)[8]
    expected = (torch.arange(16.0) + 0.5) * 37 / 16.1 - 0.5
    # Cubic interpolation bends a ramp a little, and the shift is 0.22 at its end.
    torch.testing.assert_close(found[1:-1], expected[1:-1], rtol=0, atol=0.05)
    assert torch.equal(resize_positions(embeddings, 37), embeddings)


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_resized_as_bytes(weights, kind):
    """Pillow's bicubic on bytes is what dgm-eval and clean-fid give DINOv2 and CLIP."""
    found = open_extractor(standing_in(weights, kind), None, CPU)
    images = pictures(0, 2, side=32)
    inputs = found.inputs.prepare(images, 1)
    expected = [np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC)) for image in images]
    assert inputs.dtype == torch.float32
    np.testing.assert_allclose(inputs.permute(0, 2, 3, 1).numpy() * 255, np.stack(expected), atol=1e-3)
    assert "rounded to bytes" in found.describe()["preprocessing"]


@pytest.mark.parametrize("kind", KINDS)
def test_another_network_never_carries_the_published_name(weights, kind):
    found = open_extractor(standing_in(weights, kind), None, CPU)
    assert found.name == f"stand-in for {kind}"
    assert found.sha256 == sha256(weights[kind])
    assert frechet_label(found, 50_000) == ("fd_50k", f"FD (stand-in for {kind} features)")
    assert not found.classifies


def test_a_file_without_a_published_digest_is_named_by_its_own(weights, monkeypatch):
    monkeypatch.setitem(SIZES, "dinov2", (14, fake_transformers.WIDTH, fake_transformers.DEPTH))
    found = open_extractor(standing_in(weights, "dinov2"), None, CPU)
    assert found.name == f"DINOv2 ViT-L/14 {sha256(weights['dinov2'])[:8]}"


@pytest.mark.parametrize("kind", KINDS)
def test_scores_by_a_stand_in(weights, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, images in {"real": pictures(0, 30), "drawn": pictures(1, 20) // 2}.items():
        (tmp_path / name).mkdir()
        for number, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / name / f"{number:04}.png")
    config = standing_in(weights, kind, kernel_subsets=5, batch=10)
    (tmp_path / "scoring.json").write_text(to_json(config))
    common = ("--config", "scoring.json", "--output")
    assert tiny.call("reference", "real", *common, "r.npz") == 0
    assert tiny.call("score", "--images", "drawn", "--reference", "r.npz", *common, "s.json") == 0
    score = json.loads((tmp_path / "s.json").read_text())
    assert score["protocol"]["extractor"]["sha256"] == sha256(weights[kind])
    metrics = score["metrics"]
    assert all(metrics[name]["value"] is not None for name in ("frechet_distance", "precision", "recall"))
    assert metrics["inception_score"]["value"] is None


def test_files_that_are_none_of_theirs(weights, tmp_path):
    for name, content in {"dinov2": DINOV2, "clip": CLIP}.items():
        (tmp_path / content.name).write_bytes(b"PK\x03\x04 no archive")
        config = standing_in({name: tmp_path / content.name}, name)
        with pytest.raises(UserError, match=content.name):
            open_extractor(config, None, CPU)
    (tmp_path / CLIP.name).unlink()
    with pytest.raises(UserError, match=r"ViT-B-32\.pt: not found, and downloads are switched off; put ViT-B-32\.pt "):
        open_extractor(Scoring(extractor="clip", weights_folder=str(tmp_path), download=False), None, CPU)
    with pytest.raises(UserError, match=r"ViT-B-32\.pt: has SHA-256 [0-9a-f]{64}, expected 40d365715913"):
        open_extractor(standing_in(weights, "clip", weights_sha256=None), None, CPU)
    torch.save({"cls_token": torch.zeros(1, 1, 4)}, tmp_path / DINOV2.name)
    with pytest.raises(UserError, match=r"dinov2_vitl14_pretrain\.pth: not a file of DINOv2 ViT-L/14"):
        open_extractor(standing_in({"dinov2": tmp_path / DINOV2.name}, "dinov2"), None, CPU)


def test_without_timm(weights, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm.models", None)
    with pytest.raises(UserError, match=r"^scoring\.extractor: clip needs the features extra: pip install"):
        open_extractor(standing_in(weights, "clip"), None, CPU)
