"""The config of a training run: what is read, what is refused, and how."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from mam_model.training.config import Schedule, TrainingError, read_config

LEAST = 'folder = "run"\nsam = "sam_vit_b_01ec64.pth"\n'
RENDERED = LEAST + "[rendered]\n"


def config(tmp_path: Path, text: str):
    file = tmp_path / "config.toml"
    file.write_text(text, encoding="utf-8")
    return read_config(file)


def test_numbers_that_are_not_given_are_the_papers(tmp_path):
    schedule = config(tmp_path, RENDERED).schedule
    assert (schedule.steps, schedule.batch, schedule.learning_rate) == (20_000, 80, 1e-3)
    assert (schedule.warm_up, schedule.betas, schedule.gradient_average) == (4000, (0.5, 0.999), 0.999)


def test_paths_are_relative_to_the_config(tmp_path):
    (tmp_path / "sam_vit_b_01ec64.pth").touch()
    text = LEAST + (
        '[[foregrounds]]\npictures = "fg"\nalphas = "/data/alpha"\n[[backgrounds]]\npictures = "../bg"\nshare = 2\n'
    )
    read = config(tmp_path, text)
    assert read.folder == tmp_path / "run"
    assert read.sam == str(tmp_path / "sam_vit_b_01ec64.pth")
    assert (read.foregrounds[0].pictures, read.foregrounds[0].alphas) == (tmp_path / "fg", Path("/data/alpha"))
    assert read.backgrounds[0].pictures == tmp_path / ".." / "bg"
    assert read.backgrounds[0].share == 2.0


def test_a_published_sam_may_be_named(tmp_path):
    assert config(tmp_path, RENDERED).sam == "sam_vit_b_01ec64.pth"


def test_several_data_sets_are_several_tables(tmp_path):
    text = RENDERED + (
        'kinds = ["hair", "fur"]\n[[composed]]\npictures = "a"\nalphas = "b"\nshare = 3\n'
        '[[composed]]\npictures = "c"\nalphas = "d"\n[augmentation]\nscale = [1, 1.25]\n'
    )
    read = config(tmp_path, text)
    assert [source.share for source in read.sources] == [3.0, 1.0, 1.0]
    assert read.rendered.kinds == ("hair", "fur")
    assert read.augmentation.scale == (1.0, 1.25)


@pytest.mark.parametrize(
    "text, sentence",
    [
        (
            RENDERED + "[schedule]\nlearning_rte = 1",
            "no key learning_rte in \\[schedule\\]. Did you mean learning_rate",
        ),
        ("seeed = 1\n" + RENDERED, "no key seeed in the top level. Did you mean seed"),
        (RENDERED + "[schedule]\nxyz = 1", "no key xyz in \\[schedule\\]. Known there are steps, batch"),
        ('sam = "x"\n[rendered]', "folder is missing"),
        (LEAST + '[[composed]]\npictures = "a"', "composed.alphas is missing"),
        (LEAST, "nothing to train on"),
        (LEAST + '[[foregrounds]]\npictures = "a"', "Add \\[\\[backgrounds\\]\\]"),
        (LEAST + "[rendered]\nshare = 0", "All shares are 0"),
        (LEAST + "[rendered]\nshare = -1", "A share is 0 or more; -1 is not"),
        (LEAST + '[rendered]\nkinds = ["unicorn"]', "unicorn is not a kind of picture that can be rendered"),
        (RENDERED + '[schedule]\nsteps = "many"', "schedule.steps is a whole number, not 'many'"),
        (RENDERED + "[schedule]\nsteps = 2.5", "schedule.steps is a whole number, not 2.5"),
        (RENDERED + "[schedule]\nsteps = true", "schedule.steps is a whole number, not True"),
        (RENDERED + "[schedule]\nsteps = 0", "steps goes from 1"),
        (RENDERED + "[schedule]\nlearning_rate = 2.0", "learning_rate lies above 0 and below 1"),
        (RENDERED + "[schedule]\nlearning_rate = nan", "learning_rate lies above 0 and below 1"),
        (RENDERED + "[schedule]\nbetas = [0.5]", "schedule.betas is written as a list of 2 values"),
        (RENDERED + "[schedule]\nones_until = 10\ntrimap_until = 5", "Exchange them"),
        (RENDERED + "[augmentation]\nscale = [2, 1]", "scale is a least and a greatest factor"),
        (RENDERED + '[validation]\npictures = "a"', "needs both of pictures and alphas"),
        ("tensorboard = 1\n" + RENDERED, "tensorboard is true or false, not 1"),
        ('precision = "fp8"\n' + RENDERED, "fp8 is not a precision. Choose one of auto, fp32, bf16"),
        ('embedding_cache = "c"\n' + RENDERED, "say with `distinct` how many"),
        (LEAST + "rendered = 3", "rendered is a table"),
        (LEAST + "foregrounds = 3", "foregrounds is written as \\[\\[foregrounds\\]\\] tables"),
        (LEAST + "foregrounds = [3]", "foregrounds is written as \\[\\[foregrounds\\]\\] tables"),
        ("folder = ", "is not a TOML file"),
        ('folder = ""\nsam = "x"\n[rendered]', "folder is a path"),
        ('folder = "~nobody-of-this-name/run"\nsam = "x"\n[rendered]', "folder is ~nobody.*no such user's folder"),
        ('folder = "run"\nsam = "~nobody-of-this-name/x.pth"\n[rendered]', "sam is ~nobody.*no such user's folder"),
    ],
)
def test_what_is_wrong_is_said_by_name(tmp_path, text, sentence):
    with pytest.raises(TrainingError, match=sentence):
        config(tmp_path, text)


def test_a_config_as_windows_editors_save_it_is_read(tmp_path):
    """They put a mark of three bytes before the first letter."""
    assert config(tmp_path, "\ufeff" + RENDERED).folder == tmp_path / "run"


def test_a_config_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(TrainingError, match="nowhere.toml cannot be read"):
        read_config(tmp_path / "nowhere.toml")


def test_the_learning_rate_grows_in_a_line_and_falls_along_a_cosine_to_nothing():
    schedule = Schedule(steps=100, warm_up=20, learning_rate=0.01)
    rates = [schedule.learning_rate_at(step) for step in range(100)]
    assert rates[:20] == pytest.approx([0.01 * (step + 1) / 20 for step in range(20)])
    assert rates[20] == pytest.approx(0.01)
    assert rates[60] == pytest.approx(0.005)
    assert rates[99] == pytest.approx(0.005 * (1 + math.cos(math.pi * 79 / 80)))
    assert rates[20:] == sorted(rates[20:], reverse=True)


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert Schedule(steps=10, warm_up=0, learning_rate=0.01).learning_rate_at(0) == pytest.approx(0.01)
