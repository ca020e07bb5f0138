"""The figures that the paper reports, to be read beside one's own.

Li, Jain, Shi: "Matting Anything", arXiv 2306.05399, with SAM ViT-B; and SAM's mask alone under the same prompts. An
ellipsis stands for digits that the copy at hand does not show.
"""

from __future__ import annotations

from collections.abc import Mapping

# (benchmark, prompt) -> engine -> column of the record -> figure, in its units.
FIGURES: Mapping[tuple[str, str], Mapping[str, Mapping[str, str]]] = {
    ("ppm-100", "box"): {"mam": {"mse": "4.6"}},
    ("am-2k", "box"): {"mam": {"sad": "17.30"}, "sam-mask": {"sad": "25.00"}},
    ("pm-10k", "box"): {"mam": {"sad": "25.8…"}},
    ("rwp-636", "box"): {"mam": {"imq_mad": "54.40", "imq_mse": "76.45"}},
    ("him2k-natural", "box"): {"mam": {"imq_mad": "68.8…", "imq_mse": "81.5…"}},
    ("refmatte-rw100", "box"): {
        "mam": {"sad": "29.2…", "mse": "15.…", "mad": "16.…"},
        "sam-mask": {"sad": "33.5…"},
    },
    ("refmatte-rw100", "point"): {"mam": {"sad": "168.…"}},
    ("refmatte-rw100", "text"): {"mam": {"sad": "120.…"}},
}


def figures(benchmark: str, prompt: str) -> Mapping[str, Mapping[str, str]]:
    """The paper's figures of a benchmark: by engine ("mam", "sam-mask"), then by column of the record."""
    return FIGURES.get((benchmark, prompt), {})
