"""In-Context Matting: one picture with its subject marked shows what to cut out of any number of other pictures.

Guo, Ye, Cao, Lu: "In-Context Matting", CVPR 2024, arXiv 2403.15789, as its released configuration has it. A UNet of
Stable Diffusion 2.1 gives features and self-attention of a picture (`taps`); the features of the reference's region of
interest (`reference`) are sought in the target (`correspondence`), what was found is spread along the target's
self-attention, joined with its features (`fusion`) and drawn out to an alpha (`detail`, all of it in `decoder`).
`matching` is the whole way; `fit` brings pictures into the network's square and alphas back.

The diffusion model itself is not here: it is handed in as two callables, see `matching.Networks`.
"""
