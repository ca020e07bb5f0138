"""Matrix products on a processor: another way to the same numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mam_model import products
from mam_model.products import Factor, product


@pytest.fixture(params=["ordered", "unordered", "unknown operators"])
def pytorch(request, monkeypatch):
    """PyTorch as it is, one that cannot keep oneDNN's order, and one whose operators take other arguments."""
    monkeypatch.setattr(products, "_order_is_kept", None)
    if request.param == "unordered":
        monkeypatch.setattr(products, "_order_is_kept", False)
    if request.param == "unknown operators":
        monkeypatch.setattr(products, "_ordered", lambda weight, rows: torch.ops.mkldnn.no_such_operator(weight))
        assert not products.keeps_order()


# The factor was told of 512 rows; the others are fewer and more.
@pytest.mark.parametrize("shape", [(8, 64, 96), (512, 96), (7, 40, 96), (600, 96), (1, 96)])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_factor_multiplies_as_a_linear_layer_does(shape, has_bias, dtype, pytorch):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(dtype)
    weight = torch.randn(130, 96, generator=generator).to(dtype)
    bias = torch.randn(130, generator=generator).to(dtype) if has_bias else None
    expected = F.linear(x, weight, bias)
    with torch.inference_mode():
        found = Factor(weight, bias, rows=512)(x)
        at_once = product(x, weight, bias)
    tolerance = {torch.float32: 2e-5, torch.bfloat16: 0.25, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(at_once, expected, rtol=0, atol=tolerance)


def test_an_order_is_used_for_the_number_of_rows_alone_that_it_was_made_for(monkeypatch):
    """For another number it can be five times as slow as none."""
    if not (products._convolves(torch.zeros(1)) and products.keeps_order()):
        pytest.skip("this PyTorch cannot keep oneDNN's order")
    asked = []
    monkeypatch.setattr(products, "_convolved", lambda picture, *_: asked.append(picture.shape[2]) or picture)
    factor = Factor(torch.randn(96, 96), rows=64)
    with torch.inference_mode():
        for rows in (64, 63, 65, 64):
            factor(torch.randn(rows, 96))
    assert asked == [64, 64]


def test_rows_of_a_view_are_multiplied_without_their_neighbours():
    grid = torch.randn(8, 8, 96)
    weight = torch.randn(32, 96)
    part = grid[2:5, 1:7]
    with torch.inference_mode():
        torch.testing.assert_close(Factor(weight, rows=18)(part), F.linear(part, weight), rtol=0, atol=2e-5)
