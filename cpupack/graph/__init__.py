"""FP32 graphs: tracing, finding chains and rewriting them. Stages use this; it knows no stage."""
