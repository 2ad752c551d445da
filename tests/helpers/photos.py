"""Made-up photos."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def photo(height: int, width: int) -> np.ndarray:
    """Return an image with large and small structures."""
    random = np.random.default_rng(height * 1000 + width)
    small = Image.fromarray(random.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((width, height))
    return (np.asarray(small, np.int64) + random.integers(-20, 20, (height, width, 3))).clip(0, 255).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()
