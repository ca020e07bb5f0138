"""A small Grounding DINO in the layout of its authors, with seeded random weights and a vocabulary of a few words.

It finds nothing on purpose, but its boxes and scores differ from each other, and the way to them is the real one.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

WORDS = ("a", "the", "red", "dog", "dogs", "cat", "girl", "umbrella", "person", "left", "right", "hand", "##s")


def vocabulary() -> list[str]:
    """The network knows [CLS], [SEP], the full stop and the question mark by the numbers that BERT gave them."""
    tokens = [f"[unused{number}]" for number in range(1100)]
    for number, token in {
        0: "[PAD]",
        100: "[UNK]",
        101: "[CLS]",
        102: "[SEP]",
        103: "[MASK]",
        1012: ".",
        1029: "?",
    }.items():
        tokens[number] = token
    for number, word in enumerate((*WORDS, *"abcdefghijklmnopqrstuvwxyz"[1:], "astronaut"), start=200):
        tokens[number] = word
    return tokens


def config():
    """Two layers of each kind, 20 queries, a Swin of 8 channels and a BERT of 32."""
    from transformers import BertConfig, GroundingDinoConfig, SwinConfig

    swin = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 2],
        window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )
    bert = BertConfig(vocab_size=1100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    return GroundingDinoConfig(
        backbone_config=swin.to_dict(),
        text_config=bert.to_dict(),
        d_model=32,
        num_queries=20,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
    )


def save_tiny_grounding_dino(folder: Path, seed: int = 0, **settings) -> Path:
    """Writes the files that the authors publish.

    Args:
        settings: of save_pretrained, e.g. max_shard_size.
    """
    from transformers import GroundingDinoForObjectDetection

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = GroundingDinoForObjectDetection(config()).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.ndim > 1:
                    # At birth the weights are so small that all boxes and scores are alike.
                    parameter.add_(torch.randn_like(parameter) * 0.15)
    network.save_pretrained(folder, safe_serialization=True, **settings)
    (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
    always = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    _write(
        folder / "tokenizer_config.json",
        {
            "added_tokens_decoder": {str(number): {"content": token, **always} for number, token in special.items()},
            "clean_up_tokenization_spaces": True,
            "do_lower_case": True,
            "model_max_length": 512,
            "tokenizer_class": "BertTokenizer",
            **{f"{token.strip('[]').lower()}_token": token for token in special.values()},
        },
    )
    _write(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "GroundingDinoImageProcessor",
            "do_resize": True,
            "do_rescale": True,
            "do_normalize": True,
            "do_pad": True,
            "size": {"shortest_edge": 72, "longest_edge": 96},
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
            "resample": 2,
            "rescale_factor": 1 / 255,
            "format": "coco_detection",
        },
    )
    return folder


def _write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
