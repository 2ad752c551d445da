"""The facts about the layers of a program, in the order in which they are lowered."""

from __future__ import annotations

from cpupack.artifacts import LayerFact
from cpupack.graph.native_model import Look
from cpupack.stages.quantize.native.program import Program


class Ledger:
    """Has a fact for each call that ``program`` computes.

    Beside each fact, ``looks`` says where the call's values are, None where they cannot be seen, and ``spans`` which
    layers, first to end, compute it.
    """

    def __init__(self, program: Program) -> None:
        self.facts: list[LayerFact] = []
        self.looks: list[Look | None] = []
        self.spans: list[tuple[int, int]] = []
        self._program = program
        self._from = 0

    def record(self, fact: LayerFact, look: Look | None) -> None:
        """Add the fact that the layers since the last one belong to."""
        self.facts.append(fact)
        self.looks.append(look)
        self.spans.append((self._from, len(self._program.layers)))
        self._from = len(self._program.layers)

    def begin(self) -> None:
        """Begin with another call: layers that were appended before belong to none of its facts."""
        self._from = len(self._program.layers)

    def end(self, told: int) -> None:
        """End a call before which there were ``told`` facts: its last layers belong to its last fact."""
        if len(self.facts) > told:
            self.spans[-1] = self.spans[-1][0], len(self._program.layers)
