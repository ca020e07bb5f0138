"""Measuring a matte: the numbers of mam_model.metrics as outputs and as a table on the node."""

from __future__ import annotations

import pytest
import torch

from .graphs import disc, node


@pytest.fixture
def measured(comfy, tensors):
    def measure(alpha, truth, trimap=None, **settings):
        graph = {"alpha": node(tensors(alpha)), "truth": node(tensors(truth))}
        inputs = {"alpha": ("alpha", 0), "truth": ("truth", 0), **settings}
        if trimap is not None:
            graph["trimap"] = node(tensors(trimap))
            inputs["trimap"] = ("trimap", 0)
        return comfy.run({**graph, "measure": node("MAM_MatteMetrics", **inputs)})

    return measure


def numbers(run) -> list[float]:
    return [run.output("measure", slot) for slot in range(6)]


def test_a_perfect_matte_has_no_error(measured):
    truth = disc(40, 50, 25, 20, 12)[None]
    run = measured(truth, truth)
    assert run.ok, run.error
    assert numbers(run)[:5] == [0, 0, 0, 0, 0]


def test_a_constant_error_gives_the_numbers_that_one_can_work_out(measured):
    truth = torch.zeros(1, 20, 50)
    run = measured(truth + 0.25, truth)
    sad, mse, mad, *_ = numbers(run)
    assert sad == pytest.approx(1000 * 0.25 / 1000)
    assert mse == pytest.approx(0.0625 * 1000)
    assert mad == pytest.approx(250)
    assert len(run.output("measure", 6).splitlines()) == 2


def test_only_the_band_counts_when_a_trimap_is_given(measured):
    truth = torch.zeros(1, 20, 50)
    alpha = truth.clone()
    alpha[:, :, :25] = 1
    trimap = torch.zeros(1, 20, 50)
    trimap[:, :, 24:26] = 0.5
    assert numbers(measured(alpha, truth, trimap))[2] == pytest.approx(500)


def test_a_batch_gives_the_mean_and_the_table_each_frame(measured):
    truth = torch.zeros(2, 10, 10)
    alpha = truth.clone()
    alpha[1] = 0.5
    run = measured(alpha, truth)
    assert numbers(run)[2] == pytest.approx(250)
    table = run.output("measure", 6)
    assert "frame 0" in table and "frame 1" in table and "mean" in table
    assert run.ui["measure"]["images"]


def test_a_frame_without_a_band_counts_in_no_mean_and_the_table_says_so(measured):
    truth = torch.stack((disc(40, 50, 25, 20, 12), torch.zeros(40, 50), disc(40, 50, 20, 20, 9)))
    trimap = truth.clone()
    trimap[[0, 2], 10:30, 10:40] = 0.5
    alpha = (truth + 0.05).clamp(0, 1)
    expected = numbers(measured(alpha[::2], truth[::2], trimap[::2]))
    run = measured(alpha, truth, trimap)
    assert run.ok, run.error
    assert numbers(run) == pytest.approx(expected)
    assert run.output("measure", 6).splitlines()[2].split("\t")[:2] == ["frame 1", "no band"]


def test_a_frame_that_cannot_be_measured_is_named(measured):
    truth = disc(40, 50, 25, 20, 12).repeat(3, 1, 1)
    broken = truth.clone()
    broken[1] *= 255
    run = measured(broken, truth)
    assert run.failed_node == "measure"
    assert run.error.startswith("Frame 1: The predicted matte has values from 0 to 255")


def test_of_a_long_batch_the_worst_frames_are_shown_and_all_are_in_the_table(comfy, measured, monkeypatch):
    view, drawn = comfy.module("mam_model.view"), []
    text_table = view.text_table
    monkeypatch.setattr(view, "text_table", lambda rows: drawn.append(rows) or text_table(rows))
    truth = torch.zeros(30, 20, 50)
    # Frame 29 is the worst, frame 28 the best.
    errors = torch.linspace(0.01, 0.3, 30)[[*range(1, 29), 0, 29]]
    run = measured(truth + errors[:, None, None], truth)
    assert run.ok, run.error
    assert len(run.output("measure", 6).splitlines()) == 1 + 30 + 1
    (rows,) = drawn
    assert [row[0] for row in rows] == ["worst of 30", "frame 29", *(f"frame {i}" for i in range(27, 4, -1)), "mean"]
    assert rows[1][1] == "0.300"
    measured(truth[:24] + 0.1, truth[:24])
    assert [row[0] for row in drawn[-1]] == ["", *(f"frame {i}" for i in range(24)), "mean"]


def test_instances_are_matched_in_any_order(measured):
    subjects = torch.stack([disc(40, 80, 20, 20, 12), disc(40, 80, 60, 20, 15)])
    run = measured(subjects.flip(0), subjects, compare="instances of one picture")
    assert run.ok, run.error
    assert numbers(run) == pytest.approx([0, 0, 0, 0, 0, 1])
    missing = measured(subjects[:1].clone(), subjects, compare="instances of one picture")
    assert missing.output("measure", 5) == pytest.approx(1 / 1.5)
    assert missing.output("measure", 6).splitlines()[2].split("\t") == ["matched", "1", "invented", "0", "missed 1"]


def test_a_trimap_is_refused_for_instances_instead_of_going_unheard(measured):
    subjects = torch.stack((disc(40, 60, 15, 20, 9), disc(40, 60, 44, 20, 9)))
    run = measured(subjects, subjects, torch.full((1, 40, 60), 0.5), compare="instances of one picture")
    assert run.failed_node == "measure" and "no use for a trimap" in run.error


def test_mattes_of_another_size_are_refused_with_both_sizes(measured):
    alpha, other = torch.zeros(1, 10, 12), torch.zeros(1, 20, 24)
    for sizes, name in (((alpha, other), "truth"), ((alpha, alpha, other), "trimap")):
        run = measured(*sizes)
        assert not run.ok and f"12 x 10 pixels but the {name} is 24 x 20" in run.error


def test_a_trimap_without_a_band_says_so(measured):
    truth = disc(20, 20, 10, 10, 5)[None]
    run = measured(truth, truth, torch.ones(1, 20, 20))
    assert not run.ok and "unknown" in run.error
