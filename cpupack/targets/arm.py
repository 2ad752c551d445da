"""64-bit ARM: 8-bit activations (qnnpack's kernels widen to 32 bits)."""

ACTIVATION_BITS = 8
PLATFORM_TAG = "manylinux_2_28_aarch64"
