"""FP32 graphs: tracing, finding chains, rewriting. Stages use this package; it imports no stage."""
