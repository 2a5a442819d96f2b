"""Command-line flags of the published code, and the equivalent key of each in an experiment."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udpm.core.errors import UserError
from udpm.core.reading import read_json

GIVEN = object()
"""Default of flags that are ignored unless given."""
FAMILIES = {"NCSN": "ncsnpp", "DDPM": "ddpmpp", "Dhariwal": "adm"}
NOISE_KINDS = {"standard": "none", "noisy": "noisy", "diffusion": "diffusion"}
BACKENDS = {"nccl": "auto", "gloo": "gloo", "mpi": "gloo"}
PAPER_EMA = 0.9999
PAPER_SCHEDULE = {"levels": 3, "alphas": [0.5, 0.2, 1e-3], "sigmas": [0.1, 0.2, 0.3]}
PUBLISHED_COUNT = 8
"""Number of images of a sampling command without n_samples."""
LOSS_WEIGHTS = ("l1_weight", "lpips_weight", "disc_weight")


def _same(value: Any) -> Any:
    return value


def _level_values(value: Any) -> Any:
    """Return one value, or one for each level; a list of one is a single value, and an empty one is 0."""
    if value is None or value == []:
        return 0.0
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _choice(options: dict[str, str]) -> Callable[[Any], str]:
    def chosen(value: Any) -> str:
        if value not in options:
            raise ValueError(f"is {value!r}; expected one of {', '.join(options)}")
        return options[value]

    return chosen


def _discrete(value: Any) -> None:
    if value != "discrete":
        raise ValueError(f"is {value!r}; discrete is the only kind of time")


@dataclass(frozen=True)
class Flag:
    """One flag of the published commands.

    Attributes:
        name: name without the dashes.
        kind: type of its values: int, float, str or bool.
        default: default of the published command.
        home: dotted key of the experiment, or a description of the replacement.
        meaning: conversion of the value, for the manual.
        convert: converts the published value to ours; raises ValueError if there is none.
        many: True if it takes several values.
        also: alternative names.
        command: "training", "sampling" or "latents".
    """

    name: str
    kind: type
    default: Any
    home: str
    meaning: str = ""
    convert: Callable[[Any], Any] = _same
    many: bool = False
    also: tuple[str, ...] = ()
    command: str = "training"

    @property
    def is_key(self) -> bool:
        """True if the home is a key of the experiment or of its data set."""
        return " " not in self.home

    @property
    def may_be_none(self) -> bool:
        """True if `none` is a valid value."""
        return self.default is None or self.convert is _level_values or self.name in {"EMA_weight", "from_itrs"}


def _sampling(name: str, kind: type, home: str, meaning: str = "", convert: Callable = _same) -> Flag:
    return Flag(name, kind, GIVEN, home, meaning, convert, command="sampling")


FLAGS = (
    Flag("checkpoints_dir", str, None, "`results` in config.yaml", "runs are in `results/runs/NAME/seedN/`"),
    Flag("data_dir", str, None, "dataset.path", "of a new data set, unless --dataset names one"),
    Flag("suffix", str, "", "the experiment's name", "`--name`"),
    Flag("img_size", int, 256, "dataset.side"),
    Flag("diffusion_steps", int, 5, "process.levels"),
    Flag("diffusion_scale", int, 2, "process.factor"),
    Flag("alphas", float, None, "process.alphas", many=True),
    Flag("sigmas", float, None, "process.sigmas", many=True),
    Flag("w_norm_type", str, "norm", "process.normalization"),
    Flag("net_type", str, "NCSN", "generator.family", "NCSN, DDPM, Dhariwal: ncsnpp, ddpmpp, adm", _choice(FAMILIES)),
    Flag("model_channels", int, 128, "generator.channels"),
    Flag(
        "channels_mult", int, [1, 4], "generator.channel_multipliers", many=True, also=("model_ch_mult", "channel_mult")
    ),
    Flag("num_blocks_per_res", int, 4, "generator.blocks"),
    Flag(
        "attention_res",
        int,
        [32, 16, 8],
        "generator.attention",
        "sides that are not a level of the network are left out, since they never had attention",
        many=True,
        also=("model_att_res", "attn_resolutions"),
    ),
    Flag("dropout", float, 0.0, "generator.dropout"),
    Flag("classes_num", int, 0, "dataset.classes", "above 1 also sets `generator.class_conditional`"),
    Flag("class_dropout_prob", float, 0.0, "generator.label_dropout"),
    Flag("lr", float, 1e-4, "training.learning_rate"),
    Flag("lr_disc", float, 1e-4, "training.discriminator_learning_rate"),
    Flag("EMA_weight", float, PAPER_EMA, "training.ema_decay", "0 or none: no average, and `sampling.weights` is raw"),
    Flag("warmup_steps", int, 5000, "training.warmup"),
    Flag("batch_per_GPU", int, 1, "training.batch", "times the number of GPUs (`--gpus`), since the batch is global"),
    Flag("num_workers", int, 0, "training.workers"),
    Flag("training_steps", int, 2_000_000, "training.iterations"),
    Flag("epochs", int, 1000, "training.epochs"),
    Flag("print_interval", int, 100, "training.log_every"),
    Flag("save_every", int, 5000, "training.checkpoint_every", "kept copies: `training.keep_every`, also 10 000"),
    Flag("seed", int, 0, "seeds", "in a sampling command: `sampling.seed`"),
    Flag(
        "use_amp",
        bool,
        False,
        "training.precision",
        "bfloat16, else float32",
        lambda value: "bfloat16" if value else "float32",
    ),
    Flag("l1_weight", float, None, "losses.reconstruction_weight", convert=_level_values, many=True),
    Flag("lpips_weight", float, None, "losses.lpips_weight", convert=_level_values, many=True),
    Flag(
        "disc_weight",
        float,
        None,
        "losses.adversarial_weight",
        "none or all 0: no discriminator is trained",
        _level_values,
        many=True,
    ),
    Flag("lpips_pow", float, 2.0, "losses.lpips_exponent"),
    Flag("normalize_loss_inp", bool, False, "losses.normalize"),
    Flag("disc_channels", int, 64, "discriminator.channels"),
    Flag("disc_dropout", float, 0.0, "discriminator.dropout", convert=_level_values, many=True),
    Flag(
        "disc_loss_type", str, "standard", "losses.discriminator_noise.kind", "standard is none", _choice(NOISE_KINDS)
    ),
    Flag("disc_grad_pen", float, 0.0, "losses.r1_gamma", convert=_level_values, many=True),
    Flag("disc_grad_pen_factor", float, 1.0, "losses.r1_decay_per_1000"),
    Flag("noisy_disc_std_factor", float, 1.0, "losses.discriminator_noise.decay_per_1000"),
    Flag("noisy_disc_std", float, 0.0, "losses.discriminator_noise.std", convert=_level_values, many=True),
    Flag("class_disc", bool, False, "discriminator.class_conditional"),
    Flag("upsample_disc_inp", bool, False, "losses.upsample_discriminator_input"),
    Flag("start_disc_after", int, 0, "losses.adversarial_start"),
    Flag("update_disc_every", int, 1, "training.discriminator_every"),
    Flag("ddp_backend", str, "nccl", "training.backend", "nccl is auto: nccl on GPUs; mpi is gloo", _choice(BACKENDS)),
    _sampling("from_itrs", int, "sampling.iteration"),
    _sampling("use_ema", bool, "sampling.weights", "ema, else raw", lambda value: "ema" if value else "raw"),
    _sampling("batch_size", int, "sampling.batch"),
    _sampling("n_samples", int, "sampling.count", "total over all classes, as published"),
    _sampling("save_inter", bool, "sampling.intermediate"),
    _sampling("save_jpg", bool, "sampling.image_format", "jpg, else png", lambda value: "jpg" if value else "png"),
    _sampling(
        "save_separate",
        bool,
        "sampling.images",
        "classes: one folder per class; the sample set itself is one lossless file",
        lambda value: "classes" if value else "none",
    ),
    _sampling("out_dir", str, "`results` in config.yaml", "or `udpm sample --output`"),
    _sampling("t_type", str, "discrete time", "the only kind", _discrete),
    Flag(
        "run_type",
        str,
        GIVEN,
        "`udpm latents perturb`, `swap` or `interpolate`",
        "`snakemake figures` makes all of them",
        command="latents",
    ),
    *(
        Flag(f"seed{number}", int, GIVEN, "latents.seeds", f"its {ordinal} entry", command="latents")
        for number, ordinal in enumerate(("first", "second", "third", "fourth"), start=1)
    ),
)
BY_NAME = {name: flag for flag in FLAGS for name in (flag.name, *flag.also)}


def read_flags(path: str | Path) -> tuple[dict[str, Any], list[str]]:
    """Read a published ``config_SUFFIX.json``.

    Returns:
        Values by flag, and the names in it that are not flags.

    Raises:
        UserError: missing, not a JSON object, or a value of the wrong type.
    """
    given = read_json(path, "published configuration")
    known = {BY_NAME[name].name: value for name, value in given.items() if name in BY_NAME}
    for name, value in known.items():
        if not _fits(BY_NAME[name], value):
            wanted = f"{BY_NAME[name].kind.__name__}{' values' if BY_NAME[name].many else ''}"
            raise UserError(f"{path}: {name}: expected {wanted}, got {value!r}")
    return known, sorted(set(given) - set(BY_NAME))


def to_experiment(
    flags: dict[str, Any], name: str, source: str, dataset: str | None = None, gpus: int = 1
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Convert published flags to an experiment and a data set; missing flags have the published defaults.

    Args:
        flags: flags from `read_flags` or `parse_command`.
        name: name of the experiment, and of its data set unless `dataset` is given.
        source: origin of the flags, for errors and the description.
        dataset: name of an existing data set.
        gpus: number of GPUs that batch_per_GPU refers to.

    Returns:
        Values for ``experiments/NAME.yaml``, values for ``datasets/NAME.yaml``, and notes for the user.

    Raises:
        UserError: a value that has no equivalent.
    """
    values: dict[str, Any] = {"description": f"from {source}"}
    notes: list[str] = []
    given = _completed(_filled(flags, name, dataset, notes), notes)
    for flag in FLAGS:
        if flag.name not in given or flag.name.startswith("seed"):
            continue
        value = _converted(flag, given[flag.name], source)
        if flag.is_key:
            _put(values, flag.home, value)
    if any(BY_NAME[flag].command == "sampling" for flag in flags):
        _put(values, "sampling.seed", given["seed"])
        values["sampling"].setdefault("count", PUBLISHED_COUNT)
    else:
        values["seeds"] = [given["seed"]]
    if any(f"seed{number}" in given for number in range(1, 5)):
        values["latents"] = {"seeds": [given.get(f"seed{number}", number - 1) for number in range(1, 5)]}
    images = values.pop("dataset")
    values["training"]["batch"] *= gpus
    if images["path"] is None and dataset is None and "data_dir" not in flags:
        notes.append(f"no data_dir given: set `path` in datasets/{name}.yaml to the folder of your images")
    _settle(values, images, notes if flags.get("attention_res") else [])
    prepared = {"source": "folder", **images, "path": images["path"] or f"resources/{name}"}
    values["dataset"] = dataset or name
    values["scoring"] = {"extractor": "inception"}
    return values, prepared, notes


def _fits(flag: Flag, value: Any) -> bool:
    if value is None:
        return flag.default is None
    if isinstance(value, list):
        return flag.many and all(_fits(flag, part) and not isinstance(part, list) for part in value)
    if isinstance(value, bool) or flag.kind is bool:
        return isinstance(value, bool) and flag.kind is bool
    return isinstance(value, (int, float) if flag.kind is float else flag.kind)


def flag_table() -> str:
    """Return a markdown table of every published flag, its default, and its equivalent here."""
    rows = ["| flag | default | here | |", "|---|---|---|---|"]
    for flag in FLAGS:
        names = ", ".join(f"`{name}`" for name in (flag.name, *flag.also))
        default = "–" if flag.default is GIVEN or flag.default in (None, "") else f"`{json.dumps(flag.default)}`"
        home = f"`{flag.home}`" if flag.is_key else flag.home
        rows.append(f"| {names} | {default} | {home} | {flag.meaning} |")
    return "\n".join(rows)


def _filled(flags: dict[str, Any], name: str, dataset: str | None, notes: list[str]) -> dict[str, Any]:
    """Remove placeholders from flags, and add notes that say what to write instead."""
    replacements = {
        "data_dir": f"set `path` in datasets/{name}.yaml to the folder of your images (resources/{name} until then)"
        if dataset is None
        else f"not needed; the images are those of data set {dataset}",
        "suffix": f"not needed; the experiment is called {name}",
    }
    held = {flag: value for flag, value in flags.items() if is_placeholder(value) and BY_NAME[flag].kind is str}
    for flag, value in held.items():
        if BY_NAME[flag].convert is _same:
            instead = replacements.get(flag, "not needed; replaced by " + BY_NAME[flag].home)
            notes.append(f"--{flag} {value} is a placeholder: {instead}")
    return {flag: value for flag, value in flags.items() if flag not in held or BY_NAME[flag].convert is not _same}


def _completed(flags: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    given = {flag.name: flag.default for flag in FLAGS if flag.default is not GIVEN} | flags
    given |= {name: None for name in ("alphas", "sigmas") if given[name] == []}
    if given["alphas"] is None and given["sigmas"] is None and flags.get("diffusion_steps", 3) == 3:
        # The published README's sampling commands leave the schedule out; the paper has only one.
        notes.append("alphas and sigmas are not given: using the paper's schedule")
        given |= {"diffusion_steps": PAPER_SCHEDULE["levels"]}
        given |= {key: PAPER_SCHEDULE[key] for key in ("alphas", "sigmas")}
    return given


def _settle(values: dict[str, Any], images: dict[str, Any], notes: list[str]) -> None:
    """Reconcile keys that the published code does not check against each other."""
    generator, training = values["generator"], values["training"]
    generator["class_conditional"] = images["classes"] > 1
    if not generator["class_conditional"]:
        images["classes"] = 0
        generator["label_dropout"] = 0.0
        values["discriminator"]["class_conditional"] = False
    sides = [images["side"] // 2 >> depth for depth in range(len(generator["channel_multipliers"]))]
    absent = [side for side in generator["attention"] if side not in sides]
    if absent:
        notes.append(f"left out attention at side {', '.join(map(str, absent))}: the network's levels are {sides}")
        generator["attention"] = [side for side in generator["attention"] if side in sides]
    training["ema_decay"] = training["ema_decay"] or 0.0
    if not training["ema_decay"] and values.get("sampling", {}).get("weights") == "ema":
        # A sampling command does not give the decay of the average.
        training["ema_decay"] = PAPER_EMA
    if not training["ema_decay"]:
        values.setdefault("sampling", {})["weights"] = "raw"
    weights = values["losses"]["adversarial_weight"]
    if not any(weights if isinstance(weights, list) else [weights]):
        del values["discriminator"]


def _converted(flag: Flag, value: Any, source: str) -> Any:
    if flag.many and flag.convert is _same and value is not None and not isinstance(value, list):
        value = [value]
    try:
        return flag.convert(value)
    except ValueError as problem:
        raise UserError(f"{source}: {flag.name} {problem}") from None


def _put(values: dict[str, Any], home: str, value: Any) -> None:
    *sections, key = home.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[key] = value


PLACEHOLDER = re.compile(r"<[^<>]+>|^\{[A-Za-z_ ]+\}$|^\[[A-Za-z_ ]+\]$|^/path/to(/|$)|^\.\.\.$|^…$")
"""Placeholders for the user's values in instructions: <<DATA_DIR>>, <data>/faces, /path/to/images."""


def is_placeholder(value: Any) -> bool:
    """Return True for a placeholder such as <<DATA_DIR>>."""
    return isinstance(value, str) and PLACEHOLDER.search(value) is not None
