"""Peak rates of accelerators, for the share of them that training reaches (MFU)."""

from __future__ import annotations

# Dense matrix products (no sparsity), floating-point operations per second: bfloat16 and TF32 ("float32" at
# torch's precision "high"). From NVIDIA's datasheets of the H100, H200, A100, L40S, L4 and the Ada white
# paper (RTX 4090, accumulation in float32). The first part that a device's name contains counts.
PEAK_FLOPS: dict[str, tuple[float, float]] = {
    "H100 PCIe": (756e12, 378e12),
    "H100": (989e12, 494e12),
    "H200": (989e12, 494e12),
    "A100": (312e12, 156e12),
    "L40S": (362e12, 183e12),
    "L4": (121e12, 60e12),
    "RTX 4090": (165e12, 82.6e12),
}


def peak_flops(device_name: str, precision: str) -> float | None:
    """The peak rate of a device for "bfloat16" or "float32"; None for one that the table does not have."""
    for part, (bfloat16, float32) in PEAK_FLOPS.items():
        if part in device_name:
            return bfloat16 if precision == "bfloat16" else float32
    return None


def utilization(flops: float, seconds: float, ranks: int, device_name: str, precision: str) -> float | None:
    """Share of the peak of all ranks' devices that `flops` in `seconds` are; None where it is not known."""
    peak = peak_flops(device_name, precision)
    return None if peak is None or seconds <= 0 else flops / (seconds * ranks * peak)
