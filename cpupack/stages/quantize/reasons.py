"""Why calls stay FP32, in the words of ``inspect`` and the report: the same for all engines."""

from __future__ import annotations

SKIPPED = "listed in skip"
DIVISOR = "what it divides would be infinite where INT8 rounds it to zero"
ROOT = "a root of a power, between which rounding to INT8 would be a large error"
NO_FLOATS = "gives or takes values that are not float32 (indices, truth values), for which INT8 has no codes"
DECODES = (
    "decodes what the last layers give (boxes, places, parts of unlike ranges), which INT8 would round to few steps"
)
PIECES = "is part of a spline: INT8 would have few steps where it is not zero"
ANGLES = "gives angles of several turns, between which rounding to INT8 would be a large error"
STEEP = "is steep where most values are (a logarithm, a root), so the steps of INT8 before it would be large errors"
CHOOSES = "scores what is chosen by order (a sort, a top-k): INT8 would make equal scores of unequal ones"
HIDES = "hides values behind a number for which INT8 has no code (a mask)"
INFINITE = "gives or takes values that are not finite, which a later layer replaces"
ROWS = "lays inputs or outputs side by side, which have no range in common"
BOXES = "chooses boxes, or takes what is in them: coordinates have finer steps than INT8"
BY_ROWS = "takes and gives float32 values: its activations get a scale for each row"
FEW_PRODUCTS = "has few products beside the recurrent layers before it: INT8 would cost accuracy and save nothing"
LEVELS = "brings the channels of the input, whose ranges differ, to one range"
BESIDE = "reads no layer with weights, and none reads it: INT8 would cost accuracy and save nothing"
SPECTRUM = "belongs to a spectrum, whose values go over many powers of ten"
WAVEFORM = "reads sound, of which a normalization makes quiet samples as loud as others: INT8 has few codes for them"
DYNAMIC = 'mode = "dynamic" takes linear and recurrent layers only'
INTERPOLATION = "interpolates in a way that torch has in FP32 alone"
FINER_READER = "the FP32 layer that reads it needs finer steps than INT8 has"
MOVES_CONSTANT = "repeats a constant, which INT8 does not make faster"
NO_BATCH = "the native engine has no kernel for values whose first dimension is not the batch"


def wrong_on(engine: str) -> str:
    """Return the reason of a call that an engine of torch computes wrongly."""
    return f"{engine} computes it wrongly in INT8"
