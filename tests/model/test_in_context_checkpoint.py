"""The decoder's file is read as its trainer saves it, without running anything, and nothing else is taken for it."""

from __future__ import annotations

import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mam_model.__main__ import main
from mam_model.checkpoint import CheckpointError, Kind, convert, identify, load_in_context_decoder, read_state_dict
from mam_model.in_context.decoder import InContextDecoder
from mam_model.published import published_file, sources
from tests.references import in_context

PREFIX = "in_context_decoder."
CALLBACK = "icm.models.in_context_matting.ModifiedModelCheckpoint"


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Under the published names."""
    return {PREFIX + key: tensor for key, tensor in in_context.reference_decoder().state_dict().items()}


@contextmanager
def imported(name: str) -> Iterator[type]:
    """The class of that name, as if its package were installed, until the end of the block."""
    module, _, short = name.rpartition(".")
    parts = module.split(".")
    modules = [".".join(parts[: count + 1]) for count in range(len(parts))]
    before = set(sys.modules)
    for part in modules:
        sys.modules.setdefault(part, types.ModuleType(part))
    made = type(short, (), {"__module__": module})
    setattr(sys.modules[module], short, made)
    try:
        yield made
    finally:
        for part in modules:
            if part not in before:
                del sys.modules[part]


def lightning_file(path: Path, weights: dict[str, torch.Tensor], **more) -> Path:
    """What PyTorch Lightning 1.4 saves: callbacks are keyed by their class."""
    with imported(CALLBACK) as callback:
        content = {
            "epoch": 9,
            "global_step": 5000,
            "pytorch-lightning_version": "1.4.2",
            "callbacks": {callback: {"best_model_score": torch.tensor(0.25), "best_model_path": "a.ckpt"}},
            "state_dict": OrderedDict(weights),
            "optimizer_states": [{"state": {0: {"step": 1, "exp_avg": torch.zeros(3)}}, "param_groups": []}],
            **more,
        }
        torch.save(content, path)
    return path


class Hostile:
    """Pickled, it asks whoever loads it to make a folder."""

    def __init__(self, evidence: Path):
        self.evidence = evidence

    def __reduce__(self):
        return Path.mkdir, (self.evidence,)


def assert_same(decoder: InContextDecoder, weights: dict[str, torch.Tensor]) -> None:
    loaded = decoder.state_dict()
    assert {PREFIX + key for key in loaded} == weights.keys()
    for key, tensor in loaded.items():
        assert torch.equal(tensor, weights[PREFIX + key]), key


def test_the_decoder_is_recognised_by_its_keys(weights):
    assert identify(weights).kind is Kind.ICON_MATTING
    bare = {key.removeprefix(PREFIX): tensor for key, tensor in weights.items()}
    assert identify(bare).kind is Kind.ICON_MATTING


@pytest.mark.parametrize("prefix", [PREFIX, ""], ids=["published", "without prefix"])
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_weights_alone_are_loaded(tmp_path, weights, prefix, suffix):
    renamed = {prefix + key.removeprefix(PREFIX): tensor for key, tensor in weights.items()}
    path = tmp_path / f"decoder{suffix}"
    save_file(renamed, path) if suffix == ".safetensors" else torch.save({"state_dict": renamed}, path)
    decoder = load_in_context_decoder(path)
    assert decoder.config == in_context.CONFIG
    assert_same(decoder, weights)
    assert not decoder.training
    assert not any(parameter.requires_grad for parameter in decoder.parameters())


def test_a_frozen_diffusion_model_in_the_file_is_left_out(tmp_path, weights):
    frozen = {"feature_extractor.prompt_embeds": torch.zeros(1, 77, 8)}
    save_file({**weights, **frozen}, tmp_path / "decoder.safetensors")
    assert_same(load_in_context_decoder(tmp_path / "decoder.safetensors"), weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_decoder_of_any_precision_becomes_float32(tmp_path, weights, dtype):
    other = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in weights.items()}
    save_file(other, tmp_path / "decoder.safetensors")
    decoder = load_in_context_decoder(tmp_path / "decoder.safetensors")
    assert {parameter.dtype for parameter in decoder.parameters()} == {torch.float32}
    counter = "detail_decoder.convstream.convs.0.bn.num_batches_tracked"
    assert decoder.state_dict()[counter].dtype == torch.int64


def test_the_published_sizes_are_read_off_the_shapes():
    with torch.device("meta"):
        published = InContextDecoder()
    assert len(published.state_dict()) == 89
    assert sum(parameter.numel() for parameter in published.parameters()) == 21_101_585
    assert type(published.config).from_state_dict(published.state_dict()) == published.config
    assert (published.config.side, published.config.latent_side) == (768, 96)


SPOILED = {
    "one missing": (
        lambda w: w.pop(PREFIX + "in_context_fusion.attn_module.norm.bias"),
        "1 of its tensors are missing",
    ),
    "one too many": (lambda w: w.update({PREFIX + "extra.weight": torch.zeros(1)}), "1 of its tensors are unknown"),
    "a stranger": (lambda w: w.update({"loss.weight": torch.zeros(1)}), "1 of its tensors are unknown"),
    "another shape": (
        lambda w: w.update({PREFIX + "detail_decoder.matting_head.matting_convs.3.bias": torch.zeros(2)}),
        "1 of its tensors are of another shape",
    ),
    "no size": (
        lambda w: w.pop(PREFIX + "in_context_fusion.ft_module_list.0.conv.weight"),
        "its size cannot be read off",
    ),
    "no square grid": (
        lambda w: w.update({PREFIX + "in_context_fusion.attn_module_list.0.conv.weight": torch.zeros(12, 37, 3, 3)}),
        "37 tokens make no square grid",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_decoder_has_to_fit_exactly(tmp_path, weights, case):
    spoil, complaint = SPOILED[case]
    spoiled = dict(weights)
    spoil(spoiled)
    save_file(spoiled, tmp_path / "decoder.safetensors")
    with pytest.raises(CheckpointError, match=f"IconMatting.*{complaint}") as caught:
        load_in_context_decoder(tmp_path / "decoder.safetensors")
    assert "models/in_context_matting" in str(caught.value)


def test_the_diffusion_model_can_be_downloaded_and_the_decoder_only_by_hand():
    """The authors' decoder lies where no program gets it; who lists the files has to say so."""
    decoder = published_file("in_context_matting.ckpt")
    assert decoder.url is None and "Baidu" in decoder.purpose
    backbone = published_file("v2-1_768-ema-pruned.safetensors")
    assert backbone.url and backbone.size_is_exact and backbone.size == "5.2 GB"
    for folder, file in (("in_context_matting", decoder), ("checkpoints", backbone)):
        assert file.page in sources(folder) and f"models/{folder}" in sources(folder)


@pytest.mark.parametrize(
    "keys, name",
    [
        (("model.diffusion_model.input_blocks.0.0.weight",), "a Stable Diffusion checkpoint"),
        (("encoder.weight",), "not known here"),
    ],
)
def test_another_model_is_called_what_it_is(tmp_path, keys, name):
    save_file({key: torch.zeros(1) for key in keys}, tmp_path / "other.safetensors")
    page = published_file("in_context_matting.ckpt").page
    with pytest.raises(CheckpointError, match=f"{name}.*Expected is the decoder of In-Context Matting.*{page}"):
        load_in_context_decoder(tmp_path / "other.safetensors")


def test_a_lightning_file_names_the_class_in_its_way_and_how_to_convert_it(tmp_path, weights):
    path = lightning_file(tmp_path / "icm.ckpt", weights)
    with pytest.raises(CheckpointError, match=f"asks Python for {CALLBACK}.*mam_model convert icm.ckpt"):
        load_in_context_decoder(path)


def test_a_lightning_file_is_converted_without_importing_anything_of_it(tmp_path, weights):
    path = lightning_file(tmp_path / "icm.ckpt", weights)
    convert(path, tmp_path / "icm.safetensors")
    assert not any(name.split(".")[0] == "icm" for name in sys.modules)
    assert load_file(tmp_path / "icm.safetensors").keys() == weights.keys()
    assert_same(load_in_context_decoder(tmp_path / "icm.safetensors"), weights)


def test_the_command_converts_a_lightning_file(tmp_path, weights, capsys):
    path = lightning_file(tmp_path / "icm.ckpt", weights)
    assert main(["convert", str(path), str(tmp_path / "icm.safetensors")]) == 0
    assert "IconMatting" in capsys.readouterr().out


def test_objects_of_unknown_classes_are_left_out(tmp_path, weights):
    with imported("somewhere.Settings") as settings:
        kept = settings()
        kept.learning_rate = 1e-4
        path = lightning_file(tmp_path / "icm.ckpt", weights, hyper_parameters=kept)
    assert read_state_dict(path, allow_unknown_classes=True).keys() == weights.keys()


def test_after_a_conversion_the_class_is_unknown_again(tmp_path, weights):
    path = lightning_file(tmp_path / "icm.ckpt", weights)
    convert(path, tmp_path / "icm.safetensors")
    with pytest.raises(CheckpointError, match=CALLBACK):
        read_state_dict(path)


@pytest.mark.parametrize("convert_it", [True, False], ids=["converted", "loaded"])
def test_a_lightning_file_that_calls_something_stays_inert_and_is_refused(tmp_path, weights, convert_it):
    evidence = tmp_path / "was_run"
    path = lightning_file(tmp_path / "icm.ckpt", weights, loops=Hostile(evidence))
    with pytest.raises(CheckpointError, match="was not loaded.*nothing of it was run"):
        if convert_it:
            convert(path, tmp_path / "icm.safetensors")
        else:
            load_in_context_decoder(path)
    assert not evidence.exists()
    assert not (tmp_path / "icm.safetensors").exists()
    # The same file does run under a loader that trusts it; without this the lines above would prove nothing.
    with imported(CALLBACK):
        torch.load(path, weights_only=False)
    assert evidence.is_dir()


def test_a_call_through_a_builtin_is_refused_too(tmp_path, weights):
    class Evaluated:
        def __reduce__(self):
            return eval, ("__import__('os').getpid()",)

    path = lightning_file(tmp_path / "icm.ckpt", weights, loops=Evaluated())
    with pytest.raises(CheckpointError, match="asks Python .*eval"):
        convert(path, tmp_path / "icm.safetensors")


def test_a_file_that_names_endlessly_many_classes_is_given_up(tmp_path, weights):
    classes = []
    for number in range(120):
        with imported(f"flood.Class{number}") as made:
            classes.append(made)
    sys.modules["flood"] = types.ModuleType("flood")
    try:
        for made in classes:
            setattr(sys.modules["flood"], made.__name__, made)
        path = lightning_file(tmp_path / "icm.ckpt", weights, flood=classes)
    finally:
        del sys.modules["flood"]
    with pytest.raises(CheckpointError, match="asks Python for flood.Class"):
        convert(path, tmp_path / "icm.safetensors")
