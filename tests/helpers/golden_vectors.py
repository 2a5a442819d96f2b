"""Vectors measured on the published code, and tolerances."""

import json
from pathlib import Path

import torch
from safetensors import safe_open

from udpm.interop.architecture import discriminator_names, from_published, generator_names
from udpm.networks.discriminator import Discriminator, DiscriminatorShape
from udpm.networks.unet import UNet, UNetShape

FOLDER = Path(__file__).parents[1] / "golden"


def load(name):
    """Return all tensors of a golden file, and its configuration under the published key names."""
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["config"])  # noqa: SIM118


def relative_error(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


def part(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def generator(name):
    tensors, config = load(name)
    shape = UNetShape(
        family={"NCSN": "ncsnpp", "DDPM": "ddpmpp", "Dhariwal": "adm"}[config["net_type"]],
        side=config["in_shape"],
        channels=config["model_channels"],
        multipliers=tuple(config["channel_mult"]),
        blocks=config["num_blocks_per_res"],
        attention=tuple(config["attn_resolutions"]),
        classes=config["classes_num"],
    )
    network = UNet(shape)
    network.load_state_dict(from_published(part(tensors, "net/"), generator_names(shape)))
    return network.eval(), tensors


def discriminator(name):
    tensors, config = load(name)
    shape = DiscriminatorShape(
        config["img_size"], config["diffusion_steps"], config["disc_channels"], config["classes_num"]
    )
    network = Discriminator(shape)
    network.load_state_dict(from_published(part(tensors, "disc/"), discriminator_names(shape)))
    return network.eval(), tensors


def torch_double(value):
    return torch.as_tensor(value, dtype=torch.float64)
