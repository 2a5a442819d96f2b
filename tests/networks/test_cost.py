"""Cost of an image: published sizes, counting, tables, bad input."""

import pandas as pd
import pytest
import tiny
import torch
from torch.utils.flop_counter import FlopCounterMode

from udpm.cli import main
from udpm.config import resolve_run
from udpm.core.errors import UserError
from udpm.networks.inference import count_cost
from udpm.networks.layers import SelfAttention
from udpm.report.paper.tables import cost_table

CONFIG = tiny.ROOT / "config"


def published(name):
    return count_cost(resolve_run(name, 0, CONFIG))


@pytest.mark.parametrize(
    ("name", "parameters", "calls", "full", "fed_full"),
    [
        ("cifar10", (57.74e6, 56.40e6, 18.95e6), None, 20.99e9, 21.51e9),
        ("ffhq64", (65.41e6, 64.08e6, 23.86e6), (11.14e9, 2.77e9, 0.70e9), 42.52e9, 46.59e9),
        ("afhqv2", (65.41e6, 64.08e6, 23.86e6), (11.14e9, 2.77e9, 0.70e9), 42.52e9, 46.59e9),
    ],
)
def test_the_papers_networks(name, parameters, calls, full, fed_full):
    cost = published(name)
    found = (cost.generator_parameters, cost.full_side_parameters, cost.discriminator_parameters)
    assert found == pytest.approx(parameters, rel=0.01)
    assert cost.total == pytest.approx(sum(calls) if calls else 7.05e9, rel=0.01)
    if calls:
        assert cost.calls == pytest.approx(calls, rel=0.01)
    assert cost.full_side == pytest.approx(full, rel=0.01)
    assert cost.generator_at_full_side == pytest.approx(fed_full, rel=0.01)
    assert (cost.ratio, cost.own_ratio) == pytest.approx((cost.total / full, cost.total / fed_full), rel=0.01)


def test_attention_products_are_counted():
    channels, side = 8, 4
    with torch.device("meta"):
        attention = SelfAttention(channels, heads=2, eps=1e-6, gain=1.0)
    with FlopCounterMode(display=False) as counter:
        attention(torch.empty(1, channels, side, side, device="meta"))
    positions = side**2
    linear, products = 4 * positions * channels**2, 2 * positions**2 * channels
    assert counter.get_total_flops() == 2 * (linear + products)


@pytest.mark.parametrize("family", ["ncsnpp", "ddpmpp", "adm"])
def test_every_family_is_counted(family):
    cost = count_cost(tiny.run_config(generator__family=family, generator__channels=64))
    assert len(cost.calls) == 3
    assert 0.2 < cost.ratio < 0.5
    # A call costs a quarter of the next finer one's, but for attention and the embedding.
    assert cost.calls[0] > 3.5 * cost.calls[1] > 3.5**2 * cost.calls[2] * 0.8


def test_a_model_without_discriminator(tmp_path):
    costs = {"plain": count_cost(tiny.run_config(losses__adversarial_weight=0.0))}
    assert costs["plain"].discriminator_parameters is None
    table = cost_table(costs)
    assert table.shown["discriminator (M)"].tolist() == ["–"]
    assert "discriminator" not in table.full["network"].tolist()


def test_no_such_network_at_the_full_side():
    config = tiny.run_config(
        process__levels=1,
        process__alphas=[0.5],
        process__sigmas=[0.1],
        generator__family="adm",
        generator__channels=32,
        generator__channel_multipliers=[2, 1, 2],
        generator__attention=[8],
        **tiny.ANY_LEVELS,
    )
    with pytest.raises(UserError, match=r"for the full side 16: .* attention of family adm at side 8 has 32 channels"):
        count_cost(config)


def test_tables(tmp_path):
    costs = {name: count_cost(tiny.run_config(generator__channels=width)) for name, width in (("a_b", 8), ("c", 16))}
    for name in ("first", "second"):
        cost_table(costs).write(tmp_path / name)
    for suffix in (".csv", ".md", ".tex", ".html"):
        assert (tmp_path / f"first{suffix}").read_bytes() == (tmp_path / f"second{suffix}").read_bytes()
    table = pd.read_csv(tmp_path / "first.csv")
    rows = table[table["experiment"] == "a_b"]
    assert rows["level"].dropna().tolist() == [1, 2, 3]
    assert rows["input_side"].dropna().tolist() == [8, 4, 2, 16, 16]
    one, all_levels = rows[rows["level"].notna()], rows[rows["calls"] == 3]
    assert all_levels["multiply_adds"].tolist() == [one["multiply_adds"].sum()]
    assert table["version_torch"].notna().all()
    markdown = (tmp_path / "first.md").read_text()
    assert "average pooling" in markdown.replace("\n", " ")
    assert r"a\_b" in (tmp_path / "first.tex").read_text()
    assert "<title>Cost</title>" in (tmp_path / "first.html").read_text()


def test_the_command(capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(["cost", "digits", "cifar10", "--config", str(CONFIG), "--output", str(tmp_path / "cost")])
    assert not stop.value.code
    shown = capsys.readouterr().out
    assert (tmp_path / "cost.md").read_text().startswith(shown)
    assert [line.split()[1] for line in shown.splitlines()[2:4]] == ["digits", "cifar10"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", "Missing argument 'EXPERIMENT...'"),
        ("digit", "digit.yaml: no such file; did you mean digits?"),
        ("digits ../x", "'../x': not a valid name"),
    ],
)
def test_bad_input(arguments, expected, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(["cost", *arguments.split(), "--config", str(CONFIG), "--output", str(tmp_path / "cost")])
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert len(lines) == 1
    assert expected in lines[0]
    assert not list(tmp_path.iterdir())
