"""The benchmarks still fit the library, and their arithmetic is right. Nothing is timed here."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import click, matte, run, timing
from benchmarks.networks import CONFIGS, person_finder
from mam_model.matting import MattingAnything
from mam_model.prompt import Prompt
from tests.references import chain

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with chain.single_thread(), torch.inference_mode():
        yield


def test_a_ratio_is_that_of_ways_that_ran_in_turn():
    """The machine was busy in the second run, which both ways felt."""
    times = timing.Times([(1.0, 2.0), (10.0, 20.0), (1.0, 4.0)])
    assert times.median(0) == 1
    assert times.ratio(1) == (2, 2, 3)
    assert timing.Times([(2.0, 5.0)]).ratio(1) == (2.5, 2.5, 2.5)


def test_every_way_has_its_turn_in_every_run():
    calls = []
    times = timing.in_turn([lambda: calls.append("a"), lambda: calls.append("b")], 2)
    assert calls == ["a", "b"] * 3
    assert len(times.rows) == 2 and all(len(row) == 2 for row in times.rows)


def test_what_could_not_be_measured_is_left_out_of_the_table():
    assert timing.megabytes(float("nan"), 5.0) == ""
    assert timing.megabytes(82.4, 2475.0) == "82 MB, beside it 2,475 MB"
    rows = timing.table([timing.Line("encoder", timing.duration(2.5)), timing.Line("decoder", timing.duration(0.0161))])
    assert rows.splitlines()[2:] == ["| encoder | 2.50 s |  |  |  |", "| decoder | 16.1 ms |  |  |  |"]


def test_a_peak_of_memory_is_told_in_bytes_on_every_system(monkeypatch):
    unix = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda whose: SimpleNamespace(ru_maxrss=2**20))
    monkeypatch.setitem(sys.modules, "resource", unix)
    for system, peak in (("linux", 2**30), ("darwin", 2**20)):
        monkeypatch.setattr(sys, "platform", system)
        assert timing.peak_bytes() == peak
    monkeypatch.setitem(sys.modules, "resource", None)
    assert math.isnan(timing.peak_bytes())


def test_both_ways_of_the_benchmark_give_one_matte():
    ours, whole, published = (way() for way in matte.ways_of_subject("small", (256, 192), 1, torch.float32, CPU))
    assert ours.any() and not ours.all()
    for other in (whole, published):
        assert int(((ours - other).abs() > 2e-5).sum()) <= 1


def test_time_and_operations_belong_to_the_innermost_stage():
    matting = MattingAnything(chain.reference_sam(), chain.reference_m2m())
    picture = torch.rand(60, 90, 3, generator=torch.Generator().manual_seed(0))
    prompts = [Prompt(box_xyxy_px=(10.0, 10.0, 60.0, 50.0))]
    calls = []
    with click.Stages(CPU, lambda: len(calls)).watched() as stages:
        matting.matte(picture, prompts)
    names = {name for name, _, _ in click.STAGES}
    assert set(stages.seconds) == names and min(stages.seconds.values()) > 0
    assert set(stages.operations.values()) == {0}
    found = [(name, seconds, 10**9) for name, seconds in stages.seconds.items()]
    assert "A 3 x 3 convolution runs at 100 GFLOP/s." in click.table(found, 1e11)


@pytest.mark.parametrize("arguments", [["--sizes", "x"], ["--only", "nonsense"]])
def test_a_part_or_size_that_does_not_exist_is_refused(arguments, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["run.py", *arguments])
    with pytest.raises(SystemExit):
        run.main()
    assert "The sizes are b, l, h, the parts encoder" in capsys.readouterr().err


def test_the_drawn_person_is_found_wherever_one_clicks():
    config = CONFIGS["b"].__class__(depth=2, embed_dim=256, num_heads=4, global_attention=(1,))
    sam = person_finder(config)
    image = torch.rand(96, 128, 3, generator=torch.Generator().manual_seed(0))
    embedding = sam.encode(image)
    masks = [sam.decode(embedding, [Prompt(points_px=(at,), labels=(1,))]).network_mask for at in ((5, 5), (60, 50))]
    assert torch.equal(*masks)
    assert 0.1 < masks[0].mean() < 0.5
