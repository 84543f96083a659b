"""Peak rates of accelerators, the denominator of model flops utilization."""

from __future__ import annotations

PEAK_BF16_FLOPS: tuple[tuple[str, float], ...] = (
    ("A100", 312e12),
    ("H100 NVL", 835e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("H20", 148e12),
    ("B200", 2.25e15),
    ("L40S", 362e12),
    ("MI355X", 2500e12),
    ("MI300X", 1300e12),
    ("MI325X", 1300e12),
    ("MI250X", 191.5e12),
)
"""Dense bfloat16 peak in flops per second by a part of the device's name, from the
makers' data sheets (H20: press reports; MI250X: one of its two dies). The first row
that matches counts, so a longer name stands above the name that it contains."""


def get_peak_flops(device_name: str) -> float | None:
    """Dense bfloat16 peak of a device in flops per second; None where it is unknown.

    Args:
        device_name: as ``torch.cuda.get_device_name`` gives it.
    """
    wanted = device_name.lower()
    for part, flops in PEAK_BF16_FLOPS:
        if part.lower() in wanted:
            return flops
    return None
