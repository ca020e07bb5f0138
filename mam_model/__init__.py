"""Matting Anything: soft mattes from points, boxes, scribbles and masks.

The frozen Segment Anything Model finds the target, the Mask-to-Matte network predicts its alpha at three scales, and
the scales are merged into one matte (Li, Jain, Shi: "Matting Anything", arXiv 2306.05399). Pictures are float tensors
[H, W, 3] in sRGB, 0..1; mattes are float tensors [H, W], 1 = subject; coordinates are pixels of the original picture.
"""
