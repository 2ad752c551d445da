"""A request on its way through the server: what it asks, what it has got so far, and who is told of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .line import Job
from .model import Data
from .scheduler import Refusal
from .steps import Outcome

Format = Callable[[npt.NDArray[np.float32], "Request"], Any]
"""Makes the answer from the logits, in an instance's thread."""


class RefusedError(Exception):
    """The request is not served."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal


@dataclass(frozen=True)
class Urgency:
    """When a request arrived, by when its answer must be there, and how urgent it is; seconds of ``time.monotonic``.

    ``deadline_s`` is ``promised_s`` less the time that an answer needs to get from an instance to the client.
    """

    arrived_s: float
    deadline_s: float
    priority: int
    promised_s: float = math.inf


@dataclass(eq=False)
class Request:
    """One request on its way: its jobs, the logits so far, and what was measured."""

    future: Outcome
    format: Format
    urgency: Urgency
    jobs: list[Job] = field(default_factory=list)
    logits: list[npt.NDArray[np.float32] | None] = field(default_factory=list)
    missing: int = 0
    over: bool = False
    started_s: float = 0.0
    prepare_s: float = 0.0
    compute_s: float = 0.0
    batch: int = 0
    finished_s: float = 0.0

    @property
    def queue_s(self) -> float:
        """Time from the arrival to the begin of its last call."""
        return max(0.0, self.started_s - self.urgency.arrived_s)


@dataclass(frozen=True)
class Part:
    request: Request
    number: int
    data: Data


@dataclass(frozen=True)
class Observer:
    """What is told of every call and every job, from instances' threads: for metrics."""

    call: Callable[[int, float, float], None] = lambda samples, prepare_s, compute_s: None
    wait: Callable[[float, float], None] = lambda predicted_s, waited_s: None
