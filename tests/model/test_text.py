"""A text detector: its boxes are those that transformers itself reads off, and a wrong folder is called what it is.

The network is small and random; tokenizer, preprocessing and network are transformers' own.
"""

from __future__ import annotations

import builtins
import json
import shutil
import sys
from pathlib import Path

import grounding_dino
import pytest
import torch

from mam_model.checkpoint import CheckpointError, convert
from mam_model.prompt import PromptError
from mam_model.published import TEXT_DETECTORS, text_detector_sources
from mam_model.text import TransformersMissing, load_text_detector


@pytest.fixture(scope="module")
def detector(tiny_text_detector_folder):
    return load_text_detector(tiny_text_detector_folder)


@pytest.fixture
def folder(tiny_text_detector_folder, tmp_path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(tiny_text_detector_folder, tmp_path / "my-detector"))


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    return torch.rand(60, 90, 3, generator=torch.Generator().manual_seed(0))


def read_by_transformers(folder: Path, picture: torch.Tensor, subjects: list[str], threshold: float) -> dict:
    """The same picture and text through transformers' processor, network and post-processing."""
    from transformers import (
        BertTokenizerFast,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
    )

    processor = GroundingDinoProcessor(
        GroundingDinoImageProcessor.from_pretrained(folder), BertTokenizerFast.from_pretrained(folder)
    )
    network = GroundingDinoForObjectDetection.from_pretrained(folder).eval()
    levels = (picture * 255).round().to(torch.uint8).numpy()
    inputs = processor(images=levels, text=". ".join(subjects) + ".", return_tensors="pt")
    with torch.inference_mode():
        outputs = network(**inputs)
    (read,) = processor.post_process_grounded_object_detection(
        outputs, inputs["input_ids"], threshold, 0.0, target_sizes=[tuple(picture.shape[:2])]
    )
    return read


@pytest.mark.parametrize("threshold", [0.0, 0.9])
def test_boxes_and_scores_are_those_that_transformers_reads_off(
    detector, tiny_text_detector_folder, picture, threshold
):
    subjects = ["red dog", "girl"]
    read = read_by_transformers(tiny_text_detector_folder, picture, subjects, threshold)
    ours = detector.detect(picture, subjects, threshold, 0.0)
    expected = []
    for box, score in zip(read["boxes"], read["scores"]):
        x0, y0, x1, y1 = box.tolist()
        cut = (max(x0, 0), max(y0, 0), min(x1, 90), min(y1, 60))
        if cut[2] - cut[0] >= 1 and cut[3] - cut[1] >= 1:
            expected.append((float(score), cut))
    expected.sort(reverse=True)
    assert len(ours) == len(expected) > 2
    for detection, (score, box) in zip(ours, expected):
        assert detection.score == pytest.approx(score, abs=1e-5)
        assert detection.box_xyxy_px == pytest.approx(box, abs=1e-2)
    assert 0.0 < min(score for score, _ in expected) < max(score for score, _ in expected) < 1.0


def test_both_things_of_a_text_are_found(detector, picture):
    assert {found.subject for found in detector.detect(picture, ["red dog", "girl"], 0.0, 0.0)} == {0, 1}


def test_a_threshold_of_one_finds_nothing(detector, picture):
    assert detector.detect(picture, ["dog"], 1.0, 0.0) == []


def test_the_same_picture_gives_the_same_boxes(detector, picture):
    assert detector.detect(picture, ["dog"], 0.0, 0.0) == detector.detect(picture, ["dog"], 0.0, 0.0)


def test_every_thing_owns_its_words_and_no_full_stop(detector):
    text, tokens = detector._text(["red dogs", "girl"])
    words = detector.tokenizer.convert_ids_to_tokens(text["input_ids"][0].tolist())
    assert words == ["[CLS]", "red", "dogs", ".", "girl", ".", "[SEP]"]
    assert tokens == [[1, 2], [4]]


def test_a_word_that_falls_into_pieces_owns_all_of_them(detector):
    _, tokens = detector._text(["umbrellas", "cat"])
    assert tokens == [[1, 2], [4]]


def test_three_hundred_words_are_too_many(detector):
    with pytest.raises(PromptError, match="302 tokens long, and the detector reads 256"):
        detector.check(["dog " * 298 + "dog"])


@pytest.mark.parametrize("subject", ["😀", "狗", "qwertz"])
def test_a_thing_without_any_known_word_is_named(detector, subject):
    with pytest.raises(PromptError, match=f'knows no word of "{subject}"'):
        detector.check(["dog", subject])


def test_one_known_word_is_enough(detector):
    detector.check(["qwertz dog"])


@pytest.mark.parametrize("subjects", ["dog", "", []])
def test_a_text_that_is_no_list_and_an_empty_list_are_refused(detector, picture, subjects):
    with pytest.raises(PromptError, match="a list of one subject or more"):
        detector.detect(picture, subjects, 0.0, 0.0)


@pytest.mark.parametrize(
    "spoilt, sentence",
    [
        (lambda picture: (255 * picture).to(torch.uint8), "Divide 8-bit values by 255"),
        (lambda picture: picture * float("nan"), "NaN or infinite"),
        (lambda picture: picture[..., 0], "height x width x 3"),
        (lambda picture: picture[None], "height x width x 3"),
        (lambda picture: picture.numpy(), "a PyTorch tensor, not a ndarray"),
    ],
    ids=["8 bits", "NaN", "grey", "a batch", "NumPy"],
)
def test_what_is_no_picture_is_refused_instead_of_searched(detector, picture, spoilt, sentence):
    with pytest.raises(ValueError, match=sentence):
        detector.detect(spoilt(picture), ["dog"], 0.0, 0.0)


def test_the_alpha_channel_of_a_picture_is_not_looked_at(detector, picture):
    rgba = torch.cat((picture, torch.zeros(60, 90, 1)), dim=-1)
    found = detector.detect(picture, ["dog"], 0.0, 0.0)
    assert found and detector.detect(rgba, ["dog"], 0.0, 0.0) == found


@pytest.mark.parametrize("thresholds", [(35, 0.25), (0.35, -1), (float("nan"), 0.25)])
def test_a_threshold_outside_of_0_to_1_is_refused_instead_of_finding_nothing(detector, picture, thresholds):
    with pytest.raises(ValueError, match="between 0 and 1"):
        detector.detect(picture, ["dog"], *thresholds)


@pytest.mark.parametrize("size", [(2000, 8), (8, 2000)])
def test_a_mere_line_is_refused(detector, size):
    with pytest.raises(PromptError, match="too narrow"):
        detector.detect(torch.rand(*size, 3), ["dog"], 0.0, 0.0)


def test_the_network_is_frozen_and_in_float32(detector):
    assert not detector.training and not any(module.training for module in detector.modules())
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in detector.parameters())


def test_weights_in_half_precision_are_read_as_float32(folder, picture):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    halves = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    save_file(halves, folder / "model.safetensors", {"format": "pt"})
    detector = load_text_detector(folder)
    assert all(parameter.dtype == torch.float32 for parameter in detector.parameters())
    assert detector.detect(picture, ["dog"], 0.0, 0.0)


def test_weights_may_lie_in_parts(tmp_path, picture, detector):
    parts = grounding_dino.save_tiny_grounding_dino(tmp_path / "parts", max_shard_size="300KB")
    assert not (parts / "model.safetensors").exists() and len(list(parts.glob("*.safetensors"))) > 1
    whole = detector.detect(picture, ["dog"], 0.0, 0.0)
    assert load_text_detector(parts).detect(picture, ["dog"], 0.0, 0.0) == whole
    missing = sorted(parts.glob("*.safetensors"))[1]
    missing.unlink()
    with pytest.raises(CheckpointError, match=f"In the folder parts .* is no {missing.name}"):
        load_text_detector(parts)


@pytest.mark.parametrize("entry", ["../model.safetensors", "/model.safetensors", 5])
def test_an_index_that_leads_out_of_the_folder_is_refused(folder, entry):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": entry}}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="does not list the parts"):
        load_text_detector(folder)


def test_the_fast_tokenizers_file_will_do_instead_of_the_vocabulary(folder, detector, picture):
    detector.tokenizer.save_pretrained(folder)
    (folder / "vocab.txt").unlink(missing_ok=True)
    assert (folder / "tokenizer.json").is_file()
    again = load_text_detector(folder)
    assert again.detect(picture, ["red dog"], 0.0, 0.0) == detector.detect(picture, ["red dog"], 0.0, 0.0)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "vocab.txt", "model.safetensors"])
def test_an_incomplete_folder_names_the_missing_file_and_where_to_get_it(folder, file):
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=f"In the folder my-detector .*is no {file}") as refusal:
        load_text_detector(folder)
    assert text_detector_sources() in str(refusal.value)


def test_an_empty_folder_names_all_that_is_missing(tmp_path):
    with pytest.raises(CheckpointError, match="no config.json, no preprocessor_config.json, no vocab.txt or tokeni"):
        load_text_detector(tmp_path)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("owlvit", "OWL-ViT"), ("owlv2", "OWLv2"), ("bert", "BERT, a text encoder"), ("yolos", 'the type "yolos"')],
)
def test_the_folder_of_another_model_is_called_what_it_is(folder, kind, name):
    (folder / "config.json").write_text(json.dumps({"model_type": kind}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"my-detector holds .*{name}.*Expected is Grounding DINO") as refusal:
        load_text_detector(folder)
    assert text_detector_sources() in str(refusal.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 5000, "\x00\x01"])
def test_a_damaged_configuration_is_named(folder, content):
    (folder / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match="config.json in my-detector cannot be read"):
        load_text_detector(folder)


def test_a_configuration_without_a_type_belongs_to_no_model(folder):
    (folder / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="holds no model of transformers"):
        load_text_detector(folder)


@pytest.mark.parametrize("part", [None, "text_config", "backbone_config"])
@pytest.mark.parametrize(
    "setting", ["use_timm_backbone", "use_pretrained_backbone", "backbone", "attn_implementation", "auto_map"]
)
def test_nothing_that_a_configuration_names_is_fetched_from_elsewhere(folder, part, setting):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (config[part] if part else config)[setting] = "somebody/something"
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"asks for code or weights from elsewhere .*{setting}"):
        load_text_detector(folder)


def test_a_pickle_is_not_read_and_can_be_converted(folder, detector, picture):
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="pytorch_model.bin only, a pickle.*convert pytorch_model.bin") as refusal:
        load_text_detector(folder)
    assert "python -m mam_model convert pytorch_model.bin model.safetensors" in str(refusal.value)
    convert(folder / "pytorch_model.bin", folder / "model.safetensors")
    converted = load_text_detector(folder)
    assert converted.detect(picture, ["dog"], 0.0, 0.0) == detector.detect(picture, ["dog"], 0.0, 0.0)


def test_a_pickle_under_the_name_of_safetensors_is_not_read(folder):
    torch.save({"a": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="under a wrong name"):
        load_text_detector(folder)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git-lfs pointer"),
    ],
)
def test_weights_that_never_arrived_are_noticed(folder, content, what):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=what):
        load_text_detector(folder)


def test_weights_that_broke_off_are_damaged(folder):
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError, match="my-detector could not be read as Grounding DINO"):
        load_text_detector(folder)


def test_weights_that_lack_a_part_are_refused_instead_of_made_up(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    gone = next(key for key in weights if "text_projection" in key)
    del weights[gone]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"1 tensors are missing, first {gone}"):
        load_text_detector(folder)


def test_weights_that_are_not_numbers_are_refused_instead_of_finding_nothing(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    spoilt = next(key for key in weights if "text_projection.bias" in key)
    weights[spoilt][0] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"1 tensors hold numbers that are none .*, first {spoilt}"):
        load_text_detector(folder)


@pytest.mark.parametrize("content", ["", "<!DOCTYPE html>", "\n".join(grounding_dino.vocabulary()[:900])])
def test_a_vocabulary_that_broke_off_is_refused(folder, content):
    (folder / "vocab.txt").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match="vocabulary in my-detector is incomplete.*1,100 words. Delete vocab.txt"):
        load_text_detector(folder)


def test_weights_of_another_size_are_refused(folder):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["num_queries"] = 30
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match="could not be read as Grounding DINO"):
        load_text_detector(folder)


@pytest.mark.parametrize(
    "error", [ImportError("No module named 'transformers'"), RuntimeError("operator nms is missing")]
)
def test_without_a_working_transformers_one_sentence_says_what_to_do(tiny_text_detector_folder, monkeypatch, error):
    importing = builtins.__import__

    def failing(name, *args, **kwargs):
        if name == "transformers":
            raise error
        return importing(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    monkeypatch.setattr(builtins, "__import__", failing)
    with pytest.raises(TransformersMissing) as refusal:
        load_text_detector(tiny_text_detector_folder)
    said = str(refusal.value)
    assert str(error) in said and "pip install --upgrade transformers" in said and "\n" not in said


def test_whatever_text_detector_can_be_downloaded_can_be_verified():
    assert [model.name for model in TEXT_DETECTORS] == ["grounding-dino-tiny", "grounding-dino-base"]
    for model in TEXT_DETECTORS:
        names = [file.name for file in model.files]
        assert {"config.json", "preprocessor_config.json", "vocab.txt", "model.safetensors"} < set(names)
        assert names[-1] == "model.safetensors"
        assert f"{model.name} ({model.size}) from {model.page}" in text_detector_sources()
        for file in model.files:
            assert file.url.startswith(model.page + "/resolve/") and file.url.endswith("/" + file.name)
            assert len(bytes.fromhex(file.sha256)) == 32 and file.size_is_exact
            # A name of a branch would bring other bytes one day.
            assert len(file.url.split("/")[-2]) == 40
