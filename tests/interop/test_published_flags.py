"""Flags of the published commands: each is accepted and converted to the key in the manual's table."""

import json
import shutil

import pytest
import tiny
import torch

from udpm.cli import main
from udpm.config import Experiment, ModelConfig
from udpm.config.load import load_dataset, load_experiment, resolve_run, validate
from udpm.core.errors import UserError
from udpm.interop.command_line import parse_command
from udpm.interop.convert import describe
from udpm.interop.flags import FLAGS, flag_table, read_flags, to_experiment

README = {
    "sample cifar10": (
        "python sample.py --checkpoints_dir <<CHECKPOINTS DIRECTORY>> --batch_size 1 --suffix UDPM32_CIFAR10 "
        "--img_size 32 --classes_num 10 --use_ema --n_samples 10 --net_type NCSN --            num_blocks_per_res 4 "
        "--model_channels 128 --model_ch_mult 2 2 2 --model_att_res 16 --t_type discrete --out_dir <<OUTPUT "
        "DIRECTORY>>"
    ),
    "sample afhqv2": (
        "python sample.py --checkpoints_dir <<CHECKPOINTS DIRECTORY>> --batch_size 1 --suffix UDPM64_AFHQv2 "
        "--img_size 64 --classes_num 0 --use_ema --n_samples 10 --net_type NCSN --num_blocks_per_res 4 "
        "--model_channels 128 --model_ch_mult 1 2 2 2 --model_att_res 16 --t_type discrete --out_dir <<OUTPUT "
        "DIRECTORY>>"
    ),
    "train cifar10": (
        "python train_DDP.py --training_steps 600000  --batch_per_GPU 64   --checkpoints_dir <<CHECKPOINTS_DIR>> "
        "--data_dir <<DATA_DIR>> --num_workers 4 --lr 1e-4 --lr_disc 1e-4 --suffix UDPM64_AFHQv2  --img_size 32 "
        "--epochs 100000 --EMA_weight 0.9999 --classes_num 10 --print_interval 100  --save_every 5000  "
        "--model_channels 128 --channels_mult 2 2 2 --attention_res 8 4 2  --net_type NCSN --num_blocks_per_res 4 "
        "--warmup_steps 5000 --disc_channels 192 --diffusion_steps 3 --alphas 0.5 0.2 1e-3 --sigmas 0.1 0.2 0.3 "
        "--disc_weight 2e-1 5e-1 1 --l1_weight 1 1 0 --lpips_weight 4 4 0 --dropout 0 --disc_dropout 0.4 "
        "--normalize_loss_inp --disc_loss_type noisy --disc_grad_pen 0.025 0.1 0.4 --disc_loss_type noisy "
        "--noisy_disc_std 0.4 --noisy_disc_std_factor 0.99 --class_disc  --use_amp"
    ),
    "train ffhq": (
        "python train_DDP.py --training_steps 600000  --batch_per_GPU 64 --checkpoints_dir <<CHECKPOINTS_DIR>> "
        "--data_dir <<DATA_DIR>>  --num_workers 4 --lr 1e-4 --lr_disc 1e-4 --suffix UDPM64_AFHQv2 --img_size 64 "
        "--epochs 100000 --EMA_weight 0.9999 --classes_num 0 --print_interval 100  --save_every 5000  "
        "--model_channels 128 --channels_mult 1 2 2 2 --attention_res 16 8 4  --net_type NCSN --num_blocks_per_res 4 "
        "--warmup_steps 5000 --disc_channels 192 --diffusion_steps 3 --alphas 0.5 0.2 1e-3 --sigmas 0.1 0.2 0.3 "
        "--disc_weight 2e-1 5e-1 1 --l1_weight 1 1 0 --lpips_weight 4 4 0 --dropout 0 --disc_dropout 0.2 "
        "--normalize_loss_inp --disc_loss_type noisy --disc_grad_pen 0.1 0.4 0.8 --noisy_disc_std 0.4 "
        "--noisy_disc_std_factor 0.99  --use_amp"
    ),
    "train afhqv2": (
        "python train_DDP.py --training_steps 600000  --batch_per_GPU 64 --checkpoints_dir <<CHECKPOINTS_DIR>> "
        "--data_dir <<DATA_DIR>> --num_workers 4 --lr 1e-4 --lr_disc 1e-4 --suffix UDPM64_AFHQv2 --img_size 64 "
        "--epochs 100000 --EMA_weight 0.9999 --classes_num 0 --print_interval 100  --save_every 5000  "
        "--model_channels 128 --channels_mult 1 2 2 2 --attention_res 16 8 4  --net_type NCSN --num_blocks_per_res 4 "
        "--warmup_steps 5000 --disc_channels 192 --diffusion_steps 3 --alphas 0.5 0.2 1e-3 --sigmas 0.1 0.2 0.3 "
        "--disc_weight 2e-1 5e-1 1 --l1_weight 1 1 0 --lpips_weight 4 4 0 --dropout 0.1 --disc_dropout 0.3 "
        "--normalize_loss_inp --disc_loss_type noisy --disc_grad_pen 0.1 0.4 0.8 --noisy_disc_std 0.4 "
        "--noisy_disc_std_factor 0.99  --use_amp"
    ),
}
"""The five commands of the published README, verbatim."""
SHIPPED = {"train cifar10": "cifar10", "train ffhq": "ffhq64", "train afhqv2": "afhqv2"}

BASE = {"diffusion_steps": 3, "alphas": [0.5, 0.2, 0.1], "sigmas": [0.1, 0.2, 0.3], "img_size": 64}
BASE |= {"channels_mult": [1, 2, 2], "classes_num": 10, "disc_weight": [0.2, 0.5, 1], "EMA_weight": 0.999}
# flag: a published value, and what becomes of it.
LANDS = {
    "data_dir": ("/data/faces", "/data/faces"),
    "img_size": (128, 128),
    "diffusion_steps": (3, 3),
    "diffusion_scale": (2, 2),
    "alphas": ([0.9, 0.8, 0.7], [0.9, 0.8, 0.7]),
    "sigmas": ([0.3, 0.2, 0.1], [0.3, 0.2, 0.1]),
    "w_norm_type": ("sum", "sum"),
    "net_type": ("Dhariwal", "adm"),
    "model_channels": (64, 64),
    "channels_mult": ([2, 2], [2, 2]),
    "num_blocks_per_res": (2, 2),
    "attention_res": ([16, 8], [16, 8]),
    "dropout": (0.1, 0.1),
    "classes_num": (7, 7),
    "class_dropout_prob": (0.2, 0.2),
    "lr": (2e-4, 2e-4),
    "lr_disc": (3e-4, 3e-4),
    "EMA_weight": (0.99, 0.99),
    "warmup_steps": (10, 10),
    "batch_per_GPU": (16, 16),
    "num_workers": (4, 4),
    "training_steps": (1000, 1000),
    "epochs": (5, 5),
    "print_interval": (7, 7),
    "save_every": (70, 70),
    "seed": (3, [3]),
    "use_amp": (True, "bfloat16"),
    "l1_weight": ([1, 1, 0], [1, 1, 0]),
    "lpips_weight": ([4.0], 4.0),
    "disc_weight": ([0.1, 0.2, 0.3], [0.1, 0.2, 0.3]),
    "lpips_pow": (1.5, 1.5),
    "normalize_loss_inp": (True, True),
    "disc_channels": (32, 32),
    "disc_dropout": ([0.1, 0.2, 0.3], [0.1, 0.2, 0.3]),
    "disc_loss_type": ("diffusion", "diffusion"),
    "disc_grad_pen": ([0.1, 0.4, 0.8], [0.1, 0.4, 0.8]),
    "disc_grad_pen_factor": (0.9, 0.9),
    "noisy_disc_std_factor": (0.99, 0.99),
    "noisy_disc_std": (0.4, 0.4),
    "class_disc": (True, True),
    "upsample_disc_inp": (True, True),
    "start_disc_after": (100, 100),
    "update_disc_every": (2, 2),
    "ddp_backend": ("mpi", "gloo"),
    "from_itrs": (500_000, 500_000),
    "use_ema": (True, "ema"),
    "batch_size": (50, 50),
    "n_samples": (100, 100),
    "save_inter": (True, True),
    "save_jpg": (True, "jpg"),
    "save_separate": (True, "classes"),
    "seed1": (11, [11, 1, 2, 3]),
    "seed2": (12, [0, 12, 2, 3]),
    "seed3": (13, [0, 1, 13, 3]),
    "seed4": (14, [0, 1, 2, 14]),
}
# What an experiment has no key for: the manual says in words what takes its place.
IN_WORDS = {
    "checkpoints_dir": "checkpoints",
    "suffix": "faces",
    "out_dir": "out",
    "t_type": "discrete",
    "run_type": "swap",
}


def lookup(values, dataset, home):
    section, _, key = home.partition(".")
    if section == "dataset" and key:
        return dataset[key]
    found = values
    for part in home.split("."):
        found = found[part]
    return found


def test_the_table_knows_every_flag_of_the_published_commands():
    assert {flag.name for flag in FLAGS} == LANDS.keys() | IN_WORDS.keys()
    assert {flag.name for flag in FLAGS if flag.is_key} == LANDS.keys()
    table = flag_table()
    assert all(f"| `{flag.name}`" in table for flag in FLAGS)
    assert flag_table() in (tiny.ROOT / "docs/published-code.md").read_text()


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_a_flag_of_a_json_lands_where_the_table_says(tmp_path, flag):
    given, expected = LANDS.get(flag.name) or (IN_WORDS[flag.name], None)
    (tmp_path / "config_x.json").write_text(json.dumps(BASE | {flag.name: given}))
    flags, unused = read_flags(tmp_path / "config_x.json")
    values, dataset, _ = to_experiment(flags, "x", "config_x.json")
    assert not unused
    validate(Experiment, values, "x")
    if flag.is_key:
        assert lookup(values, dataset, flag.home) == expected


@pytest.mark.parametrize("flag", [flag for flag in FLAGS if flag.is_key], ids=lambda flag: flag.name)
def test_a_flag_of_a_command_line_says_the_same(flag):
    given, expected = LANDS[flag.name]
    words = given if isinstance(given, list) else [given]
    text = "" if given is True else " ".join(map(str, words))
    flags, gpus = parse_command(f"python train.py --{flag.name} {text}")
    assert gpus == 1
    values, dataset, _ = to_experiment({**BASE, **flags}, "x", "a command")
    assert lookup(values, dataset, flag.home) == expected


@pytest.mark.parametrize("name", ["model_ch_mult", "channel_mult"])
def test_sampling_calls_the_network_by_other_names(name):
    flags, _ = parse_command(f"python sample.py --n_samples 10 --{name} 1 2 --model_att_res 16 --seed 5")
    values, _, notes = to_experiment(flags, "x", "a command")
    assert values["generator"]["channel_multipliers"] == [1, 2]
    assert values["generator"]["attention"] == []
    assert values["sampling"]["seed"] == 5
    assert "seeds" not in values
    # These commands never carry the schedule.
    assert values["process"]["alphas"] == [0.5, 0.2, 1e-3]
    assert any("using the paper's schedule" in note for note in notes)


def test_a_pasted_command_line(tmp_path, monkeypatch, capsys):
    """The paper's CIFAR-10 run becomes the experiment that this project ships."""
    (tmp_path / "config").symlink_to(tiny.ROOT / "config")
    text = """CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc_per_node=2 train.py --checkpoints_dir ckpt \\
      --data_dir "/data/c 10" --suffix cifar --img_size 32 --diffusion_steps 3 --alphas 0.5 0.2 1e-3 \\
      --sigmas 0.1 0.2 0.3 --channels_mult 2 2 2 --attention_res 8 4 2 \\
      --classes_num 10 --class_disc --EMA_weight=0.9999 --batch_per_GPU 32 --use_amp True \\
      --training_steps 600000 --epochs 100000 --l1_weight 1 1 0 --lpips_weight 4 4 0 --disc_weight 0.2 0.5 1 \\
      --normalize_loss_inp --disc_channels 192 --disc_dropout 0.4 --disc_loss_type noisy --noisy_disc_std 0.4 \\
      --noisy_disc_std_factor 0.99 --disc_grad_pen 0.025 0.1 0.4"""
    flags, gpus = parse_command(text)
    values, dataset, _ = to_experiment(flags, "x", "a command", gpus=gpus)
    assert dataset == {"source": "folder", "path": "/data/c 10", "side": 32, "classes": 10}
    ours = load_experiment("cifar10", tiny.ROOT / "config")
    theirs = validate(Experiment, values, "x")
    for section in ("process", "generator", "discriminator", "losses"):
        assert getattr(theirs, section) == getattr(ours, section)
    different = {
        key: value
        for key, value in theirs.training.model_dump().items()
        if value != getattr(ours.training, key) and key not in {"epochs", "discriminator_learning_rate"}
    }
    assert different == {}
    assert load_dataset("cifar10", tiny.ROOT / "config").classes == 10


def test_batches_count_all_gpus():
    flags, gpus = parse_command("torchrun --standalone --nproc-per-node 4 train.py --batch_per_GPU 16")
    assert gpus == 4
    values, _, _ = to_experiment(BASE | flags, "x", "a command", gpus=gpus)
    assert values["training"]["batch"] == 64
    assert parse_command("torchrun --nnodes=2 --nproc_per_node=4 train.py --lr 1")[1] == 8


def test_what_is_not_given_takes_the_published_default():
    values, dataset, _ = to_experiment({**BASE, "disc_weight": None, "EMA_weight": 0}, "x", "a command")
    assert "discriminator" not in values
    assert values["sampling"]["weights"] == "raw"
    assert values["training"]["iterations"] == 2_000_000
    assert values["training"]["batch"] == 1
    assert dataset["path"] == "resources/x"
    assert validate(Experiment, values, "x").losses.normalize is False
    plain = {name: value for name, value in BASE.items() if name != "EMA_weight"}
    assert to_experiment(plain, "x", "a command")[0]["training"]["ema_decay"] == 0.9999
    flags, _ = parse_command("sample.py --use_ema")
    assert to_experiment(flags, "x", "a command")[0]["sampling"] == {"weights": "ema", "seed": 0, "count": 8}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with this project's configuration."""
    shutil.copytree(tiny.ROOT / "config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", [name for name in README if name.startswith("train")])
def test_published_training_commands_are_accepted_verbatim(project, capsys, command):
    assert tiny.call("import", "--name", "pasted", "--command", README[command]) == 0
    shown = capsys.readouterr().out
    assert "--data_dir <<DATA_DIR>> is a placeholder: set `path` in" in shown
    assert "--checkpoints_dir <<CHECKPOINTS_DIR>> is a placeholder: not needed" in shown
    assert "<" not in "".join(path.read_text() for path in project.glob("config/*/pasted.yaml"))
    theirs, ours = resolve_run("pasted", 0), resolve_run(SHIPPED[command], 0, tiny.ROOT / "config")
    for section in ("process", "generator", "discriminator", "losses"):
        assert getattr(theirs, section) == getattr(ours, section)


@pytest.mark.parametrize("command", [name for name in README if name.startswith("sample")])
def test_a_sampling_command_does_not_describe_a_training(project, capsys, command):
    arguments = ["import", "--name", "pasted", "--command", README[command]]
    before = tiny.snapshot(project)
    assert tiny.call(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    expected = "a sampling command, which does not describe a training; give its checkpoint too: udpm import model_ema"
    assert f"{expected}_state_UDPM" in line
    assert tiny.snapshot(project) == before


@pytest.mark.parametrize("command", [name for name in README if name.startswith("sample")])
def test_published_sampling_commands_are_accepted_with_a_checkpoint(project, capsys, command):
    flags, _ = parse_command(README[command])
    values, images, _ = to_experiment(flags, "x", "a command")
    # The checkpoints that go with these commands have attention at every level but the finest.
    sides = [images["side"] // 2 >> depth for depth in range(1, len(flags["channels_mult"]))]
    generator = values["generator"] | {"channels": 16, "blocks": 1, "attention": sides}
    model = {"process": values["process"], "generator": generator, "side": images["side"]}
    torch.save(tiny.as_published(validate(ModelConfig, model | {"classes": images["classes"]}, "x")), "their.pt")
    text = README[command].replace("--model_channels 128", "--model_channels 16").replace("per_res 4", "per_res 1")
    assert tiny.call("import", "their.pt", "--name", "pasted", "--command", text + " --from_itrs 9999") == 0
    shown = capsys.readouterr().out
    assert f"attention is at sides {sides}, according to the tensors, not [16]" in shown
    assert "--out_dir <<OUTPUT DIRECTORY>> is a placeholder: not needed" in shown
    experiment = load_experiment("pasted")
    assert (experiment.training, experiment.generator.attention) == ("imported", sides)
    assert (experiment.sampling.count, experiment.sampling.weights, experiment.sampling.iteration) == (10, "ema", None)
    assert tiny.call("info", experiment.weights) == 0
    assert json.loads(capsys.readouterr().out)["iteration"] == 9999


def test_from_itrs_and_a_file_name_agree(project, capsys):
    config = resolve_run("digits-paper", 0).model
    small = config.model_copy(update={"generator": config.generator.model_copy(update={"channels": 8})})
    torch.save(tiny.as_published(small), "model_ema_state_x_epoch_3_itr_20000.pt")
    flags = "--img_size 16 --classes_num 10 --model_channels 8 --model_ch_mult 1 2 --num_blocks_per_res "
    flags += (
        f"{config.generator.blocks} --diffusion_steps 3 --use_ema --alphas {' '.join(map(str, config.process.alphas))}"
    )
    flags += f" --sigmas {' '.join(map(str, config.process.sigmas))} --suffix x"
    arguments = ["import", "model_ema_state_x_epoch_3_itr_20000.pt", "--output", "out.safetensors", "--command"]
    before = tiny.snapshot(project)
    assert tiny.call(*arguments, f"sample.py {flags} --from_itrs 30000") == 2
    assert "from_itrs is 30000, but model_ema_state_x_epoch_3_itr_20000.pt has iteration 20000" in (
        capsys.readouterr().err
    )
    assert tiny.snapshot(project) == before
    assert tiny.call(*arguments, f"sample.py {flags} --from_itrs 20000") == 0


def test_a_json_of_the_published_code_holds_empty_lists():
    empty = {"alphas": [], "sigmas": [], "disc_weight": [], "lpips_weight": [], "l1_weight": [1.0]}
    values, _, notes = to_experiment(BASE | empty | {"channels_mult": 4}, "x", "a JSON")
    assert values["losses"]["lpips_weight"] == 0
    assert values["generator"]["channel_multipliers"] == [4]
    assert any("using the paper's schedule" in note for note in notes)


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("train.py -- lr 1", {"lr": 1.0}),
        ("train.py –lr 1 —suffix x", {"lr": 1.0, "suffix": "x"}),
        ("train.py --data_dir << MY DATA DIR >> --lr 1", {"data_dir": "<< MY DATA DIR >>", "lr": 1.0}),
        ("train.py --data_dir <data>/a --lr 1", {"data_dir": "<data>/a", "lr": 1.0}),
        ("train.py --lr 1 \\ \n  --dropout 0.5 > log.txt 2>&1 &", {"lr": 1.0, "dropout": 0.5}),
        ("train.py --lr 1 2>> log | tee x", {"lr": 1.0}),
        ("train.py --disc_weight none --EMA_weight none", {"disc_weight": None, "EMA_weight": None}),
    ],
)
def test_shell_syntax_around_a_pasted_line(text, flags):
    assert parse_command(text) == (flags, 1)


@pytest.mark.parametrize("value", ["<<DATA_DIR>>", "<data dir>", "/path/to/data", "{DATA}", "[YOUR DATA]", "..."])
def test_placeholders_are_not_written_into_a_configuration(value):
    flags, _ = parse_command(f"train.py --data_dir '{value}'")
    _, images, notes = to_experiment(BASE | flags, "x", "a command")
    assert images["path"] == "resources/x"
    assert any(f"--data_dir {value} is a placeholder" in note for note in notes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "torchrun --nproc_per_node=² train.py --lr 1",
            "--nproc_per_node: expected a whole number of 1 or more, got '²'",
        ),
        ("torchrun --nproc_per_node gpu train.py --lr 1", "give the number of GPUs by --gpus"),
        ("torchrun --nnodes=0 train.py --lr 1", "--nnodes: expected a whole number of 1 or more, got '0'"),
        ("train.py --channels_mult none", "--channels_mult: expected int, got 'none'"),
        ("train.py --alphas 0.5 none 0.1", "--alphas: expected float, got '0.5 none 0.1'"),
        ("train.py --n_samples <<N>>", "--n_samples: <<N>> is a placeholder; write a whole number instead"),
        ("train.py --alphas <a 1> <a 2>", "--alphas: <a 1> <a 2> is a placeholder; write a number instead"),
        ("train.py --data_dir <<DATA DIR --lr 1", "unterminated placeholder"),
        ("train.py -- --lr 1", "--: expected the name of a flag"),
        ("train.py --lr 1 --", "--: expected the name of a flag"),
        ("train.py -lr 1", "-lr: flags begin with two dashes; did you mean --lr?"),
        ("train.py --lr 1", "no loss has a weight above 0, so there is nothing to train"),
        ("train.py --alfas 1", "--alfas: not a flag of the published commands; did you mean --alphas?"),
        ("train.py --lr", "--lr: expected one value, got none"),
        ("train.py --lr 1 2", "--lr: expected one value, got 1 2"),
        ("train.py --batch_per_GPU many", "--batch_per_GPU: expected int, got 'many'"),
        ("train.py --use_amp maybe", "--use_amp: expected true or false, got 'maybe'"),
        ("", "a published command line: empty"),
        ("train.py stray --lr 1", "stray: unexpected before the first flag"),
        ("train.py --lr '1", "a published command line: No closing quotation"),
        ("train.py --t_type continuous --n_samples 3", "t_type is 'continuous'; discrete is the only kind of time"),
        ("train.py --disc_loss_type hinge", "disc_loss_type is 'hinge'; expected one of standard, noisy, diffusion"),
        ("train.py --alphas 0.5 0.2 --sigmas 0.1 0.2 0.3 --diffusion_steps 3", "alphas: has 2 values, but levels is 3"),
    ],
)
def test_mistakes_in_a_command_line(tmp_path, monkeypatch, capsys, text, expected):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["import", "--name", "x", "--command", text])
    assert stop.value.code == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert expected in errors[0]
    assert not list(tmp_path.iterdir())


def test_json_and_command_line_together_are_refused(tmp_path):
    with pytest.raises(UserError, match="give one of them"):
        describe(tmp_path / "x.json", "train.py --lr 1", "x", None, None)
