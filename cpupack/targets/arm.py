"""64-bit ARM: qnnpack, 8-bit activations (its kernels widen to 32 bits), per-channel weights."""

ENGINE = "qnnpack"
ACTIVATION_BITS = 8
PLATFORM_TAG = "manylinux_2_28_aarch64"
