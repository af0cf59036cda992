from __future__ import annotations

import logging

import pytest
import torch
from made_up import fill, images

from vitlet.checkpoint import fit
from vitlet.models.deit import deit
from vitlet.models.positions import resize_positions


@torch.no_grad()
def test_positions_of_another_image_size_are_resized(caplog: pytest.LogCaptureFixture) -> None:
    config = {"dim": 32, "depth": 1, "heads": 2, "patch_size": 8, "num_classes": 3}
    small, large = (fill(deit(**config, img_size=size)) for size in (32, 48))
    with caplog.at_level(logging.INFO, "vitlet"):
        fit(large, small.state_dict(), "deit")
    assert "resized pos_embed" in caplog.text
    assert large.pos_embed.shape == (1, 37, 32)
    assert torch.equal(large.pos_embed[:, 0], small.pos_embed[:, 0])
    assert torch.isfinite(large(images("large", 1, 48))).all()


def test_resizing_keeps_constant_and_linear_positions() -> None:
    rows = torch.linspace(0, 1, 8)[:, None].expand(8, 8)
    positions = torch.stack((torch.ones(8, 8), rows), -1).reshape(1, 1, 64, 2)
    resized = resize_positions(positions, 256)
    assert resized is not None and resized.shape == (1, 1, 256, 2)
    grid = resized.reshape(16, 16, 2)
    assert torch.allclose(grid[..., 0], torch.ones(16, 16), atol=1e-6)
    assert torch.allclose(grid[..., 1], grid[:, :1, 1].expand(16, 16), atol=1e-6)
    assert (grid[1:, 0, 1] > grid[:-1, 0, 1]).all()


def test_token_counts_that_are_no_square_are_not_resized() -> None:
    assert resize_positions(torch.zeros(1, 77, 8), 64) is None
    assert resize_positions(torch.zeros(1, 197, 8), 196) is None
    assert resize_positions(torch.zeros(1, 0, 8), 196) is None
