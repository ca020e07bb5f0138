"""A checkpoint is recognised by what is in it; a wrong one is refused in words, and no file is ever run."""

from __future__ import annotations

import io
import os
import pickle
import random
import zipfile
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import checkpoints
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mam_model.checkpoint import CheckpointError, Kind, convert, identify, load_m2m, load_sam, read_state_dict
from mam_model.m2m import MaskToMatte
from mam_model.published import PUBLISHED, sha256_of
from mam_model.sam import SAM_VIT_B, SAM_VIT_H, SAM_VIT_L, Sam

LOADERS = [(load_sam, "sams"), (load_m2m, "mam")]


@pytest.fixture(scope="module")
def sam_weights():
    return checkpoints.tiny_sam_state_dict()


@pytest.fixture(scope="module")
def m2m_weights():
    return checkpoints.tiny_m2m_state_dict()


def empty_weights(*keys: str) -> dict[str, torch.Tensor]:
    return {key: torch.zeros(1) for key in keys}


def assert_same_weights(network: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    loaded = network.state_dict()
    assert loaded.keys() == weights.keys()
    for key, tensor in weights.items():
        assert torch.equal(loaded[key], tensor), key


def trainer_pickle(weights: dict[str, torch.Tensor], prefix: str) -> dict:
    """What MAM's trainer saves, with the optimiser's and the scheduler's real states."""
    network = MaskToMatte()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.5, 0.999))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=16_000)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    scheduler.step()
    return {
        "iter": 20_000,
        "loss": torch.tensor(0.125),
        "state_dict": {prefix + key: tensor for key, tensor in weights.items()},
        "opt_state_dict": optimizer.state_dict(),
        "lr_state_dict": scheduler.state_dict(),
    }


class Hostile:
    """Pickled, it asks whoever loads it to make a folder."""

    def __init__(self, evidence: Path):
        self.evidence = evidence

    def __reduce__(self):
        return os.mkdir, (str(self.evidence),)


def test_sam_is_loaded_as_its_authors_publish_it(tiny_sam_file, sam_weights):
    network = load_sam(tiny_sam_file)
    assert asdict(network.config) == asdict(checkpoints.tiny_sam_config())
    assert_same_weights(network, sam_weights)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_mask_to_matte_is_loaded_as_its_trainer_saves_it(tmp_path, m2m_weights, prefix):
    torch.save(trainer_pickle(m2m_weights, prefix), tmp_path / "mam_vitb.pth")
    assert_same_weights(load_m2m(tmp_path / "mam_vitb.pth"), m2m_weights)


def test_a_prefix_that_only_some_keys_have_belongs_to_them(tmp_path):
    torch.save({"module.a": torch.zeros(1), "b.module.c": torch.zeros(1)}, tmp_path / "x.pth")
    assert read_state_dict(tmp_path / "x.pth").keys() == {"module.a", "b.module.c"}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_one_file_with_sam_and_mask_to_matte_serves_both_loaders(tmp_path, sam_weights, m2m_weights, prefix):
    whole = {"seg_model." + key: tensor for key, tensor in sam_weights.items()}
    whole.update({"m2m." + key: tensor for key, tensor in m2m_weights.items()})
    torch.save(trainer_pickle(whole, prefix), tmp_path / "mam_sam_vitb.pth")
    identity = identify(read_state_dict(tmp_path / "mam_sam_vitb.pth"))
    assert identity.kind is Kind.MATTING_ANYTHING
    assert "2 blocks of 64 channels" in identity.name
    assert_same_weights(load_sam(tmp_path / "mam_sam_vitb.pth"), sam_weights)
    assert_same_weights(load_m2m(tmp_path / "mam_sam_vitb.pth"), m2m_weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_are_float32_frozen_and_in_eval_mode(tmp_path, sam_weights, m2m_weights, dtype):
    for load, weights in ((load_sam, sam_weights), (load_m2m, m2m_weights)):
        stored = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in weights.items()}
        torch.save(stored, tmp_path / "weights.pth")
        network = load(tmp_path / "weights.pth")
        assert not any(module.training for module in network.modules())
        assert not any(parameter.requires_grad for parameter in network.parameters())
        for tensor in chain(network.parameters(), network.buffers()):
            assert not tensor.is_meta
            assert tensor.dtype is torch.float32 or not tensor.is_floating_point()


@pytest.mark.parametrize("save", [torch.save, save_file])
def test_a_loaded_network_does_not_need_its_file(tmp_path, m2m_weights, save):
    path = tmp_path / "m2m"
    save(m2m_weights, path)
    network = load_m2m(path)
    with open(path, "r+b") as stream:
        stream.write(b"\0" * path.stat().st_size)
    path.unlink()
    assert_same_weights(network, m2m_weights)


def test_the_content_decides_and_not_the_suffix(tmp_path, m2m_weights):
    save_file(m2m_weights, tmp_path / "really_safetensors.pth")
    torch.save(m2m_weights, tmp_path / "really_a_pickle.safetensors")
    assert_same_weights(load_m2m(tmp_path / "really_safetensors.pth"), m2m_weights)
    assert_same_weights(load_m2m(tmp_path / "really_a_pickle.safetensors"), m2m_weights)


def test_files_of_old_pytorch_are_read(tmp_path, m2m_weights):
    torch.save(m2m_weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_same_weights(load_m2m(tmp_path / "old.pth"), m2m_weights)


@pytest.mark.parametrize("config, name", [(SAM_VIT_B, "SAM ViT-B"), (SAM_VIT_L, "SAM ViT-L"), (SAM_VIT_H, "SAM ViT-H")])
def test_the_published_sizes_of_sam_are_told_apart(config, name):
    with torch.device("meta"):
        identity = identify(Sam(config).state_dict())
    assert (identity.kind, identity.name) == (Kind.SAM, name)


def test_mask_to_matte_is_recognised(m2m_weights):
    assert identify(m2m_weights).kind is Kind.M2M


FOREIGN = {
    Kind.STABLE_DIFFUSION: empty_weights("model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.x"),
    Kind.SAM_2: empty_weights("image_encoder.trunk.pos_embed", "sam_mask_decoder.iou_token.weight", "memory_encoder.x"),
    Kind.SAM_3: empty_weights("detector.backbone.x", "tracker.sam_mask_decoder.iou_token.weight"),
    Kind.SAM_HQ: empty_weights(
        "image_encoder.pos_embed", "mask_decoder.iou_token.weight", "mask_decoder.hf_token.weight"
    ),
    Kind.MOBILE_SAM: empty_weights("image_encoder.patch_embed.seq.0.c.weight", "mask_decoder.iou_token.weight"),
    Kind.SAM_TRANSFORMERS: empty_weights(
        "vision_encoder.layers.0.attn.qkv.weight", "prompt_encoder.no_mask_embed.weight", "mask_decoder.iou_token.x"
    ),
    Kind.GROUNDING_DINO: empty_weights("bert.embeddings.x", "transformer.level_embed", "backbone.0.patch_embed.x"),
    Kind.ICON_MATTING: empty_weights("in_context_decoder.in_context_fusion.attn_module.norm.weight"),
    Kind.UNKNOWN: empty_weights("encoder.0.weight", "encoder.0.bias"),
}


@pytest.mark.parametrize("kind", FOREIGN, ids=lambda kind: kind.name)
@pytest.mark.parametrize("load, folder", LOADERS)
def test_a_foreign_model_is_refused_by_its_name(tmp_path, kind, load, folder):
    # As SAM 2 and Grounding DINO publish theirs.
    torch.save({"model": {"module." + key: tensor for key, tensor in FOREIGN[kind].items()}}, tmp_path / "file.pth")
    name = "not known here" if kind is Kind.UNKNOWN else kind.value.removesuffix(" for transformers")
    with pytest.raises(CheckpointError, match=f"file.pth is .*{name}") as caught:
        load(tmp_path / "file.pth")
    assert identify(FOREIGN[kind]).kind is kind
    assert_says_where_to_get(folder, caught)


def assert_says_where_to_get(folder: str, caught) -> None:
    assert f"models/{folder}" in str(caught.value)
    for file in PUBLISHED:
        assert file.folder != folder or (file.name in str(caught.value) and file.page in str(caught.value))


def test_sam_is_not_mask_to_matte_and_the_other_way_round(tiny_sam_file, tiny_m2m_file):
    with pytest.raises(CheckpointError, match="tiny_sam.pth is SAM.*Expected is Mask-to-Matte") as caught:
        load_m2m(tiny_sam_file)
    assert_says_where_to_get("mam", caught)
    with pytest.raises(CheckpointError, match="tiny_m2m.pth is Mask-to-Matte.*Expected is SAM") as caught:
        load_sam(tiny_m2m_file)
    assert_says_where_to_get("sams", caught)


def change(how):
    """What brings all of the weights into another form."""
    return lambda weights: weights.update({key: how(tensor) for key, tensor in weights.items()})


@pytest.mark.parametrize(
    "spoil, complaint",
    [
        (lambda weights: weights.pop("bn1.weight"), "1 of its tensors are missing, first bn1.weight"),
        (lambda weights: weights.update(extra=torch.zeros(1)), "1 of its tensors are unknown, first extra"),
        (lambda weights: weights.update({"bn1.bias": torch.zeros(7)}), "1 of its tensors are of another shape"),
        (change(lambda tensor: tensor.to(torch.int8)), "161 of its tensors hold no floating-point numbers"),
        (change(lambda tensor: tensor.to(torch.complex64)), "161 of its tensors hold no floating-point numbers"),
        (change(lambda tensor: tensor.to_sparse() if tensor.ndim else tensor), "hold no floating-point numbers"),
        (change(lambda tensor: tensor.to("meta")), "hold no floating-point numbers"),
        (lambda weights: weights.update({"bn1.bias": torch.full((32,), torch.nan)}), "1 of its tensors .*NaN or inf"),
        (lambda weights: weights.update({"bn1.bias": torch.full((32,), -torch.inf)}), "1 of its tensors .*NaN or inf"),
    ],
)
def test_weights_have_to_fit_exactly(tmp_path, m2m_weights, spoil, complaint):
    weights = dict(m2m_weights)
    spoil(weights)
    torch.save(weights, tmp_path / "m2m.pth")
    with pytest.raises(CheckpointError, match=complaint):
        load_m2m(tmp_path / "m2m.pth")


@pytest.mark.parametrize(
    "key, shape",
    [
        ("image_encoder.pos_embed", (1, 0, 0, 64)),
        ("image_encoder.pos_embed", ()),
        ("image_encoder.patch_embed.proj.weight", ()),
        ("image_encoder.blocks.0.attn.rel_pos_h", (13, 0)),
        ("image_encoder.blocks.0.attn.rel_pos_h", (13, 128)),
        ("prompt_encoder.no_mask_embed.weight", (256,)),
        ("prompt_encoder.no_mask_embed.weight", (1, 100)),
        ("mask_decoder.transformer.layers.0.mlp.lin1.weight", ()),
    ],
)
def test_a_sam_whose_size_cannot_be_read_off_is_still_called_sam(tmp_path, sam_weights, key, shape):
    torch.save({**sam_weights, key: torch.zeros(shape)}, tmp_path / "sam.pth")
    with pytest.raises(CheckpointError, match="sam.pth is SAM, but not as published: its size cannot be read off"):
        load_sam(tmp_path / "sam.pth")


@pytest.mark.parametrize("lost", ["prompt_encoder.no_mask_embed.weight", "mask_decoder.output_upscaling.0.weight"])
def test_a_sam_with_a_part_missing_is_still_called_sam(tmp_path, sam_weights, lost):
    torch.save({key: tensor for key, tensor in sam_weights.items() if key != lost}, tmp_path / "sam.pth")
    with pytest.raises(CheckpointError, match=f"sam.pth is SAM.*not as published.*{lost}") as caught:
        load_sam(tmp_path / "sam.pth")
    assert_says_where_to_get("sams", caught)


def zip_of(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


NO_CHECKPOINTS = {
    "empty": (b"", "is empty"),
    "zeros": (b"\0" * 4096, "only zeros"),
    "web page": (b"\n <!DOCTYPE html>\n<html><head><title>Google Drive</title>", "web page.*link led to a page"),
    "lower case page": (b"<html lang=en>", "web page"),
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:ec2df6\nsize 375042383\n", "git-lfs"),
    "server's note": (b"Entry not found", "text file.*Entry not found"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(range(200)), "neither a PyTorch nor a safetensors file"),
    "zip archive": (zip_of("mam/mam_vitb.pth", b"x"), "zip archive.*Unpack"),
    "TorchScript": (zip_of("net/constants.pkl", b"x"), "TorchScript program"),
    "number": (pickle.dumps(3, protocol=2), "incomplete or damaged"),
}


@pytest.mark.parametrize("case", NO_CHECKPOINTS)
@pytest.mark.parametrize("load, folder", LOADERS)
def test_what_is_no_checkpoint_is_called_what_it_is(tmp_path, case, load, folder):
    content, words = NO_CHECKPOINTS[case]
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"weights.pth .*{words}") as caught:
        load(tmp_path / "weights.pth")
    assert_says_where_to_get(folder, caught)


@pytest.mark.parametrize("name", ["m2m.pth", "old.pth", "m2m.safetensors"])
@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_an_interrupted_download_is_called_incomplete(tmp_path, m2m_weights, name, share):
    path = tmp_path / name
    if name == "m2m.safetensors":
        save_file(m2m_weights, path)
    else:
        torch.save(m2m_weights, path, _use_new_zipfile_serialization=name != "old.pth")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match=f"{name} is incomplete or damaged.*download it again"):
        load_m2m(path)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_file_with_some_bytes_destroyed_is_read_or_called_damaged(tmp_path, m2m_weights, is_zip):
    path = tmp_path / "m2m.pth"
    few = {key: tensor for key, tensor in m2m_weights.items() if tensor.numel() < 300}
    torch.save(few, path, _use_new_zipfile_serialization=is_zip)
    whole, draw = path.read_bytes(), random.Random(0)
    for _ in range(200):
        spoilt = bytearray(whole)
        for _ in range(draw.choice((1, 3, 10))):
            spoilt[draw.randrange(4, len(whole))] = draw.randrange(256)
        path.write_bytes(spoilt[: draw.choice((len(whole), draw.randrange(9, len(whole))))])
        try:
            read_state_dict(path)
        except CheckpointError as error:
            assert "m2m.pth" in str(error)


@pytest.mark.parametrize("share", [0.0001, 0.1, 0.5, 0.9, 0.98])
@pytest.mark.parametrize("length", [2 * 4096, 100_000, 1 << 20])
def test_a_download_with_a_hole_of_zeros_in_it_is_called_damaged(tmp_path, m2m_weights, share, length):
    path = tmp_path / "mam_vitb.pth"
    torch.save(m2m_weights, path)
    size = path.stat().st_size
    begin = int(share * size)
    with open(path, "r+b") as file:
        file.seek(begin)
        # The directory at the end says where the rest is; without it no such file can be read at all.
        file.write(bytes(min(length, int(0.99 * size) - begin)))
    with pytest.raises(CheckpointError, match="mam_vitb.pth is incomplete or damaged.*download it again"):
        load_m2m(path)


@pytest.mark.parametrize("has_crc", [True, False])
def test_zeros_that_belong_to_a_checkpoint_are_no_damage(tmp_path, has_crc):
    weights = {"zeros": torch.zeros(300_000), "some": torch.arange(300_000) % 5000 // 4000}
    computed = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(has_crc)
    try:
        torch.save(weights, tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(computed)
    loaded = read_state_dict(tmp_path / "x.pth")
    assert all(torch.equal(loaded[key], tensor) for key, tensor in weights.items())


@pytest.mark.parametrize("content", [torch.zeros(3), [torch.zeros(3)]])
def test_a_file_of_tensors_without_names_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="x.pth holds a (Tensor|list) instead of weights by name"):
        read_state_dict(tmp_path / "x.pth")


def test_a_file_without_weights_is_refused(tmp_path):
    torch.save({"iter": 3}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="without any weights"):
        read_state_dict(tmp_path / "x.pth")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="nothing.pth does not exist.*sam_vit_b_01ec64.pth"):
        load_sam(tmp_path / "nothing.pth")
    with pytest.raises(CheckpointError, match="is a folder"):
        load_sam(tmp_path)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle", "inside a trainer's file"])
@pytest.mark.parametrize("load", [read_state_dict, load_sam, load_m2m])
def test_a_hostile_pickle_is_named_and_not_run(tmp_path, m2m_weights, form, load):
    evidence = tmp_path / "was_run"
    path = tmp_path / "hostile.pth"
    content = {"state_dict": m2m_weights, "loss": Hostile(evidence)} if "trainer" in form else Hostile(evidence)
    if form == "bare pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    with pytest.raises(CheckpointError, match=r"hostile.pth was not loaded.*(posix|nt)\.mkdir.*nothing of it was run"):
        load(path)
    assert not evidence.exists()
    # The same file does run under a loader that trusts it; without this the line above would prove nothing.
    if form == "bare pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert evidence.is_dir()


def test_a_hostile_pickle_of_a_newer_protocol_is_not_called_damaged(tmp_path):
    path = tmp_path / "hostile.pth"
    path.write_bytes(pickle.dumps(Hostile(tmp_path / "was_run"), protocol=4))
    with pytest.raises(CheckpointError, match="was not loaded.*nothing of it was run") as refused:
        load_sam(path)
    assert "weights_only" not in str(refused.value)
    assert not (tmp_path / "was_run").exists()


def test_a_hostile_pickle_is_not_run_when_it_is_converted(tmp_path):
    torch.save(Hostile(tmp_path / "was_run"), tmp_path / "hostile.pth")
    with pytest.raises(CheckpointError, match="was not loaded"):
        convert(tmp_path / "hostile.pth", tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["hostile.pth"]


def test_conversion_keeps_weights_and_dtype_and_says_what_they_are(tmp_path, m2m_weights):
    half = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in m2m_weights.items()}
    torch.save(trainer_pickle(half, "module."), tmp_path / "mam_vitb.pth")
    sha256 = convert(tmp_path / "mam_vitb.pth", tmp_path / "mam_vitb.safetensors")
    assert sha256 == sha256_of(tmp_path / "mam_vitb.safetensors")
    with safe_open(tmp_path / "mam_vitb.safetensors", "pt") as stream:
        metadata = stream.metadata()
    assert "Mask-to-Matte" in metadata["content"]
    assert metadata["source_sha256"] == sha256_of(tmp_path / "mam_vitb.pth")
    converted = read_state_dict(tmp_path / "mam_vitb.safetensors")
    assert converted.keys() == half.keys()
    for key, tensor in half.items():
        assert converted[key].dtype is tensor.dtype and torch.equal(converted[key], tensor)
    assert identify(converted).kind is Kind.M2M
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mam_vitb.pth", "mam_vitb.safetensors"]


def test_shared_and_strided_weights_are_converted(tmp_path, sam_weights):
    weights = dict(sam_weights)
    weights["mask_decoder.iou_token.weight"] = weights["prompt_encoder.no_mask_embed.weight"]
    strided = weights["image_encoder.neck.0.weight"].to(memory_format=torch.channels_last)
    weights["image_encoder.neck.0.weight"] = strided
    torch.save(weights, tmp_path / "sam.pth")
    convert(tmp_path / "sam.pth", tmp_path / "sam.safetensors")
    assert_same_weights(load_sam(tmp_path / "sam.safetensors"), weights)


def test_conversion_replaces_a_file_only_when_told_to(tmp_path, tiny_m2m_file):
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"mine")
    with pytest.raises(CheckpointError, match="exists already"):
        convert(tiny_m2m_file, out)
    assert out.read_bytes() == b"mine"
    assert convert(tiny_m2m_file, out, overwrite=True) == sha256_of(out)
    load_m2m(out)


def test_a_conversion_that_fails_leaves_nothing_behind(tmp_path, tiny_m2m_file, monkeypatch):
    def full_drive(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_drive)
    with pytest.raises(CheckpointError, match="could not be written.*No space left"):
        convert(tiny_m2m_file, tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_conversion_refuses_what_it_does_not_know(tmp_path, tiny_m2m_file):
    torch.save(empty_weights("a", "b"), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="not known here"):
        convert(tmp_path / "x.pth", tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="has to end in .safetensors"):
        convert(tiny_m2m_file, tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match="could not be written"):
        convert(tiny_m2m_file, tmp_path / "no_such_folder" / "x.safetensors")
