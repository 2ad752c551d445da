"""Which operators a module runs, and which of them compute in INT8, observed at torch's dispatcher."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_CONVERSIONS = frozenset(
    {
        "quantize_per_tensor",
        "quantize_per_channel",
        "dequantize",
        "quantize_per_tensor_dynamic",
        "_make_per_tensor_quantized_tensor",
    }
)
_LAYOUT = frozenset(
    """
    _local_scalar_dense _reshape_alias _to_copy _unsafe_view alias chunk clone contiguous copy_ detach empty expand
    flatten is_pinned item lift_fresh permute q_scale q_zero_point reshape select slice split split_with_sizes squeeze
    t to transpose unbind unsqueeze view zeros
    """.split()  # noqa: SIM905 - thirty quoted names would be three times as long
)
_INT8_NAMESPACES = frozenset({"quantized", "onednn", "cpupack"})


class OperatorCounter(TorchDispatchMode):
    """Counts operators inside ``with``: ``calls`` counts all, ``int8`` and ``fp32`` those that compute.

    Conversions and changes of layout are only in ``calls``. A call is INT8 when its operator is in torch's
    ``quantized`` namespace or is cpupack's own, or when it works on a quantized tensor.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no annotation for it
        self.calls: Counter[str] = Counter()
        self.int8: Counter[str] = Counter()
        self.fp32: Counter[str] = Counter()

    def forget(self) -> None:
        """Reset all counts to zero."""
        for counts in (self.calls, self.int8, self.fp32):
            counts.clear()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        namespace, _, name = func._schema.name.partition("::")
        tensors = [each for each in (*args, result) if isinstance(each, torch.Tensor)]
        for each in args:
            if isinstance(each, (list, tuple)):
                tensors.extend(item for item in each if isinstance(item, torch.Tensor))
        if not tensors or name in _LAYOUT or "prepack" in name:
            return result
        full = f"{namespace}::{name}"
        self.calls[full] += 1
        if name not in _CONVERSIONS:
            # aten::quantized_lstm and quantized_gru take float tensors; their packed weights are not visible here.
            named_so = namespace in _INT8_NAMESPACES or name.startswith("quantized_")
            if named_so or any(each.is_quantized for each in tensors):
                self.int8[full] += 1
            elif any(each.is_floating_point() for each in tensors):
                self.fp32[full] += 1
        return result
