"""Finding what a text describes: Grounding DINO (Liu et al., arXiv 2303.05499), as the transformers library runs it.

A detector is a folder in the layout of its authors: config.json, preprocessor_config.json, the vocabulary, and the
weights as safetensors. Nothing is fetched from anywhere and no code of the folder is run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import CheckpointError, check_safetensors
from .detections import Detection, detections_of
from .picture import check_picture
from .prompt import PromptError
from .published import text_detector_sources

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_TOKENIZERS = ("vocab.txt", "tokenizer.json")
_MODEL_TYPE = "grounding-dino"
_LARGEST_JSON_BYTES = 1 << 24
# Beyond, the preprocessing would make the shorter side vanish.
_LONGEST_TO_SHORTEST = 100

# Settings by which transformers would fetch an image encoder, a compiled attention or Python code.
_FROM_ELSEWHERE = (
    "backbone",
    "use_timm_backbone",
    "use_pretrained_backbone",
    "attn_implementation",
    "_attn_implementation",
    "auto_map",
)

# What a folder of the hub can turn out to be instead, by the model_type of its config.json.
_OTHER_MODELS = {
    "owlvit": "OWL-ViT, another text detector",
    "owlv2": "OWLv2, another text detector",
    "mm-grounding-dino": "MM Grounding DINO, a successor under other names",
    "omdet-turbo": "OmDet-Turbo, another text detector",
    "florence2": "Florence-2, a captioner that also gives boxes",
    "bert": "BERT, a text encoder",
    "clip": "CLIP, an encoder of pictures and texts",
    "swin": "Swin, an image encoder",
    "sam": "SAM for transformers",
    "sam2": "SAM 2 for transformers",
    "sam3": "SAM 3 for transformers",
    "rt_detr": "RT-DETR, a detector without text",
    "detr": "DETR, a detector without text",
}


class TransformersMissing(RuntimeError):
    """The transformers library is absent, broken or too old; the sentence says what to do."""


class TextDetector(nn.Module):
    """Grounding DINO with its vocabulary and its preprocessing.

    Args:
        network: transformers' GroundingDinoForObjectDetection.
        tokenizer: its tokenizer, with offsets.
        image_processor: its GroundingDinoImageProcessor.
    """

    def __init__(self, network: nn.Module, tokenizer: Any, image_processor: Any):
        super().__init__()
        self.network = network
        self.tokenizer = tokenizer
        self.image_processor = image_processor

    @torch.inference_mode()
    def detect(
        self, picture: Tensor, subjects: Sequence[str], box_threshold: float, text_threshold: float
    ) -> list[Detection]:
        """The boxes of everything in a picture that one of the subjects describes.

        Args:
            picture: float [H, W, C] in 0..1, of which the first three channels are looked at.
            subjects: lower case and without full stops; see `detections.subjects_of`.
            box_threshold, text_threshold: 0..1, see `detections.detections_of`.
        Returns:
            By descending score; overlapping boxes are still in it.
        Raises:
            PromptError: when there is no subject; when the text is longer than the network reads, or holds a subject
                without any known word; or when the picture is a mere line.
            ValueError: when it is no picture, see `check_picture`, or a threshold lies outside of 0..1.
        """
        check_picture(picture)
        for threshold in (box_threshold, text_threshold):
            if not 0 <= threshold <= 1:
                raise ValueError(f"A threshold lies between 0 and 1, not at {threshold:g}.")
        height, width = picture.shape[:2]
        if max(height, width) > _LONGEST_TO_SHORTEST * min(height, width):
            raise PromptError(
                f"The picture is {width} x {height} pixels, too narrow to find anything in it by text. Crop it, or "
                "draw a box instead."
            )
        text, tokens_of_subjects = self._text(subjects)
        device = next(self.network.parameters()).device
        seen = self.image_processor(images=_as_levels(picture), input_data_format="channels_last", return_tensors="pt")
        outputs = self.network(
            pixel_values=seen["pixel_values"].to(device, torch.float32),
            pixel_mask=seen["pixel_mask"].to(device),
            **{name: part.to(device) for name, part in text.items()},
        )
        return detections_of(
            outputs.pred_boxes[0].float().cpu(),
            outputs.logits[0].float().cpu().sigmoid(),
            tokens_of_subjects,
            width,
            height,
            box_threshold,
            text_threshold,
        )

    def check(self, subjects: Sequence[str]) -> None:
        """Refuses what `detect` would refuse, without a picture."""
        self._text(subjects)

    def _text(self, subjects: Sequence[str]) -> tuple[dict[str, Tensor], list[list[int]]]:
        """What the network is given for "girl. umbrella.", and which of its tokens belong to which subject."""
        if isinstance(subjects, str) or not subjects:
            raise PromptError('What to find is a list of one subject or more, such as ["girl", "umbrella"].')
        text = "".join(f"{subject}. " for subject in subjects).strip()
        read = self.tokenizer(text, return_tensors="pt", return_token_type_ids=True, return_offsets_mapping=True)
        ids = read["input_ids"][0].tolist()
        most = self.network.config.max_text_len
        if len(ids) > most:
            raise PromptError(
                f"The text is {len(ids)} tokens long, and the detector reads {most}: about {most * 2 // 3} words. "
                "Name only what to cut out, in a few words."
            )
        offsets = read["offset_mapping"][0].tolist()
        tokens_of_subjects, start = [], 0
        for subject in subjects:
            end = start + len(subject)
            tokens = [place for place, (low, high) in enumerate(offsets) if start <= low < high <= end]
            if all(ids[place] == self.tokenizer.unk_token_id for place in tokens):
                raise PromptError(
                    f'The detector knows no word of "{subject}". Describe the subject in other English words.'
                )
            tokens_of_subjects.append(tokens)
            start = end + len(". ")
        return {name: read[name] for name in ("input_ids", "token_type_ids", "attention_mask")}, tokens_of_subjects


def _as_levels(picture: Tensor):
    """The first three channels as uint8 [H, W, 3] in NumPy, which every version of the preprocessing takes."""
    return (picture[..., :3].detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def load_text_detector(folder: Path) -> TextDetector:
    """Builds the Grounding DINO of a folder.

    Args:
        folder: as published: config.json, preprocessor_config.json, vocab.txt or tokenizer.json, and
            model.safetensors, whole or in parts with an index.
    Returns:
        The detector in float32 and eval mode, without gradients, on the CPU.
    Raises:
        CheckpointError: another model, a file missing, only a pickle, or a damaged file; says which and what to do.
        TransformersMissing: transformers is absent, broken or older than 4.50.
    """
    folder = Path(folder)
    _check_folder(folder)
    config_class, network_class, tokenizer_class, image_processor_class = _classes()
    try:
        config = config_class.from_pretrained(folder, local_files_only=True)
        network, report = network_class.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        tokenizer = tokenizer_class.from_pretrained(folder, local_files_only=True)
        image_processor = image_processor_class.from_pretrained(folder, local_files_only=True)
    # transformers lets through whatever its many readers raise.
    except Exception as error:
        raise CheckpointError(
            f"The folder {folder.name} could not be read as Grounding DINO: {_first_line(error)}. "
            f"A file in it is damaged or of another model. {text_detector_sources()}"
        ) from error
    # Tables that follow from the configuration are not stored by every version of transformers.
    learned = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    if missing := sorted(learned & set(report["missing_keys"])):
        raise CheckpointError(
            f"The weights in {folder.name} are not all of Grounding DINO: {len(missing)} tensors are missing, first "
            f"{missing[0]}. {text_detector_sources()}"
        )
    # The network would run, and find nothing.
    if wrong := sorted(name for name, weight in network.named_parameters() if not weight.isfinite().all()):
        raise CheckpointError(
            f"The weights in {folder.name} are damaged: {len(wrong)} tensors hold numbers that are none (NaN or "
            f"infinite), first {wrong[0]}. {text_detector_sources()}"
        )
    # BERT has a vector for each word of its vocabulary; a missing word would be taken for an unknown one.
    words = config.text_config.vocab_size
    if len(tokenizer) < words:
        raise CheckpointError(
            f"The vocabulary in {folder.name} is incomplete: it has {len(tokenizer):,} of {words:,} words. Delete "
            f"{' or '.join(name for name in _TOKENIZERS if (folder / name).is_file())} and download it again. "
            f"{text_detector_sources()}"
        )
    return TextDetector(network.float(), tokenizer, image_processor).requires_grad_(False).eval()


def _classes() -> tuple[type, type, type, type]:
    try:
        from transformers import (
            BertTokenizerFast,
            GroundingDinoConfig,
            GroundingDinoForObjectDetection,
            GroundingDinoImageProcessor,
        )
    # A broken installation fails in many ways, because transformers imports its parts only here.
    except Exception as error:
        raise TransformersMissing(
            f"Finding subjects by text needs the library transformers, 4.50 or newer, which could not be used "
            f"({_first_line(error)}): run `pip install --upgrade transformers` in ComfyUI's Python."
        ) from error
    return GroundingDinoConfig, GroundingDinoForObjectDetection, BertTokenizerFast, GroundingDinoImageProcessor


def _check_folder(folder: Path) -> None:
    """Refuses a folder that is no complete Grounding DINO, by its files and its configuration alone."""
    if (folder / "config.json").is_file():
        config = _json(folder / "config.json")
        kind = config.get("model_type")
        if kind != _MODEL_TYPE:
            what = _OTHER_MODELS.get(kind, f'a model of the type "{kind}"' if kind else "no model of transformers")
            raise CheckpointError(
                f"The folder {folder.name} holds {what}. Expected is Grounding DINO. {text_detector_sources()}"
            )
        for part in (config, config.get("text_config"), config.get("backbone_config")):
            for key in _FROM_ELSEWHERE:
                if isinstance(part, dict) and part.get(key):
                    raise CheckpointError(
                        f'The configuration in {folder.name} asks for code or weights from elsewhere ("{key}"), and '
                        f"nothing is fetched. {text_detector_sources()}"
                    )
    missing = [name for name in ("config.json", "preprocessor_config.json") if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        missing.append(" or ".join(_TOKENIZERS))
    weights = _weights(folder)
    if not weights:
        pickles = sorted(path.name for kind in ("*.bin", "*.pth", "*.pt") for path in folder.glob(kind))
        if pickles:
            raise CheckpointError(
                f"The folder {folder.name} holds its weights as {pickles[0]} only, a pickle, which can run any program "
                f"and is not read. Get {_WEIGHTS} from the same page, or convert it in this pack's folder with "
                f"`python -m mam_model convert {pickles[0]} {_WEIGHTS}`."
            )
        missing.append(_WEIGHTS)
    missing += [path.name for path in weights if not path.is_file()]
    if missing:
        # From a terminal any folder can be named.
        among = "of models/grounding-dino" if folder.parent.name == "grounding-dino" else "there"
        raise CheckpointError(
            f"In the folder {folder.name} {among} is no {', no '.join(missing)}. {text_detector_sources()}"
        )
    for path in weights:
        check_safetensors(path)


def _weights(folder: Path) -> list[Path]:
    """The files of weights that there should be: one, or the parts that an index lists; none when there is neither."""
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    if not (folder / _INDEX).is_file():
        return []
    parts = _json(folder / _INDEX).get("weight_map")
    names = set(parts.values()) if isinstance(parts, dict) else set()
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise CheckpointError(f"{_INDEX} in {folder.name} does not list the parts of the weights. Download it again.")
    return [folder / name for name in sorted(names)]


def _json(path: Path) -> dict:
    try:
        if path.stat().st_size > _LARGEST_JSON_BYTES:
            raise ValueError("it is far too large")
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no settings")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path.name} in {path.parent.name} cannot be read ({_first_line(error)}). Download it again."
        ) from error
    return content


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).strip().rstrip(".")[:200]
