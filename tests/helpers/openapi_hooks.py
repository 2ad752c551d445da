"""What a JSON Schema cannot say, for schemathesis: files are images, and lengths agree.

Loaded by its name in ``SCHEMATHESIS_HOOKS``. ``SAMPLE_SHAPE``, like ``3,16,16``, is set for a model that takes arrays.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
from typing import Any

import numpy as np
import schemathesis
from hypothesis import strategies
from PIL import Image
from schemathesis import GenerationMode

LENGTH = "Inference-Header-Content-Length"


def _image(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (5 + number, 4, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, ("PNG", "JPEG", "BMP")[number % 3])
    return out.getvalue()


def _npy(number: int) -> bytes:
    out = io.BytesIO()
    np.save(out, np.full(SHAPE, number, np.float32))
    return out.getvalue()


SHAPE = tuple(map(int, os.environ["SAMPLE_SHAPE"].split(","))) if "SAMPLE_SHAPE" in os.environ else None
FILES = [_image(number) if SHAPE is None else _npy(number) for number in range(6)]
schemathesis.openapi.format("byte", strategies.sampled_from([base64.b64encode(one).decode() for one in FILES]))
schemathesis.openapi.format("binary", strategies.sampled_from(FILES))
schemathesis.openapi.media_type("application/octet-stream", strategies.sampled_from(FILES))


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Make lengths agree in what is meant to be accepted."""
    if not case.path.endswith("/infer") or case.meta is None or case.meta.generation.mode != GenerationMode.POSITIVE:
        return
    if case.media_type == "application/octet-stream":
        case.headers[LENGTH] = "0"
        if SHAPE is not None:
            case.body = np.zeros((1, *SHAPE), np.float32).tobytes()
        return
    case.headers.pop(LENGTH, None)
    if isinstance(case.body, dict):
        case.body = json.loads(json.dumps(case.body))  # a copy: the generator keeps its own
        for one in case.body["inputs"]:
            size = math.prod(one["shape"][1:])
            if not isinstance(one["data"][0], list):
                one["data"] = one["data"][: len(one["data"]) // size * size]
            one["shape"][0] = len(one["data"]) if isinstance(one["data"][0], list) else len(one["data"]) // size
