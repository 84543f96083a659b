"""Peak memory of this process: the resident set on a CPU, the allocator on CUDA."""

from __future__ import annotations

import os
import platform
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from torchtitan_cpp.logging import logger

BYTES_PER_MIB = 2**20
BYTES_PER_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class DeviceMemoryStats:
    """Peaks in bytes. On a CPU they cover the process's life, on CUDA the steps since
    the last logged one."""

    capacity_bytes: int
    """Memory of the device; on a CPU what this process may use at most."""
    max_reserved_bytes: int
    """Peak resident set on a CPU, peak taken by the caching allocator on CUDA."""
    max_active_bytes: int | None = None
    """Peak of blocks in use; None where nothing counts them."""
    max_tensor_bytes: int | None = None
    """Peak of bytes that tensors asked for; None where nothing counts them."""
    num_alloc_retries: int = 0
    """Allocations of this process that had to free the allocator's cache first."""
    num_ooms: int = 0
    """Allocations of this process that failed."""

    @property
    def max_reserved_gib(self) -> float:
        return self.max_reserved_bytes / BYTES_PER_GIB

    @property
    def max_reserved_percent(self) -> float:
        return 100 * self.max_reserved_bytes / self.capacity_bytes

    def as_metrics(self) -> dict[str, float]:
        """The values under torchtitan's keys; what is not counted is left out."""
        metrics: dict[str, float] = {}
        if self.max_active_bytes is not None:
            metrics["memory/max_active(GiB)"] = self.max_active_bytes / BYTES_PER_GIB
            metrics["memory/max_active(%)"] = (
                100 * self.max_active_bytes / self.capacity_bytes
            )
        metrics["memory/max_reserved(GiB)"] = self.max_reserved_gib
        metrics["memory/max_reserved(%)"] = self.max_reserved_percent
        metrics["memory/num_alloc_retries"] = self.num_alloc_retries
        metrics["memory/num_ooms"] = self.num_ooms
        return metrics


class MemoryMonitor(Protocol):
    """Reads the peaks of one device."""

    device_name: str

    def get_peak_stats(self) -> DeviceMemoryStats: ...

    def reset_peak_stats(self) -> None:
        """Forget the peaks so far, where the device can."""


class CpuMemoryMonitor:
    """Peak resident set of this process, never reset: the kernel keeps one peak, and
    it is what decides whether a run fits."""

    def __init__(self) -> None:
        self.device_name = _cpu_name()
        self.capacity_bytes = _usable_bytes()

    def get_peak_stats(self) -> DeviceMemoryStats:
        return DeviceMemoryStats(
            capacity_bytes=self.capacity_bytes,
            max_reserved_bytes=peak_resident_bytes(),
        )

    def reset_peak_stats(self) -> None:
        return


class CudaMemoryMonitor:
    """Statistics of torch's caching allocator on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.device_name = torch.cuda.get_device_name(device)
        properties = torch.cuda.get_device_properties(device)
        self.capacity_bytes = int(properties.total_memory)
        self.reset_peak_stats()

    def get_peak_stats(self) -> DeviceMemoryStats:
        found: dict[str, Any] = torch.cuda.memory_stats(self.device)
        stats = DeviceMemoryStats(
            capacity_bytes=self.capacity_bytes,
            max_reserved_bytes=int(found["reserved_bytes.all.peak"]),
            max_active_bytes=int(found["active_bytes.all.peak"]),
            max_tensor_bytes=int(found["allocated_bytes.all.peak"]),
            num_alloc_retries=int(found["num_alloc_retries"]),
            num_ooms=int(found["num_ooms"]),
        )
        if stats.num_alloc_retries > 0:
            logger.warning(
                "%d CUDA memory allocation retries.", stats.num_alloc_retries
            )
        if stats.num_ooms > 0:
            logger.warning("%d CUDA OOM errors thrown.", stats.num_ooms)
        return stats

    def reset_peak_stats(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)


def build_memory_monitor(device: torch.device) -> MemoryMonitor:
    """The monitor of ``device``; says on the log what the device is.

    Raises:
        ValueError: for a device that is neither a CPU nor CUDA.
    """
    monitor: CpuMemoryMonitor | CudaMemoryMonitor
    if device.type == "cpu":
        monitor = CpuMemoryMonitor()
    elif device.type == "cuda":
        monitor = CudaMemoryMonitor(device)
    else:
        raise ValueError(
            f"build_memory_monitor: expected a cpu or cuda device, but found {device}"
        )
    logger.info(
        "%s capacity: %s with %.2fGiB memory",
        device.type.upper(),
        monitor.device_name,
        monitor.capacity_bytes / BYTES_PER_GIB,
    )
    return monitor


def peak_resident_bytes() -> int:
    """Peak resident set of this process so far.

    Read from /proc where there is one: ``getrusage`` also remembers the peak of the
    program that this process was before ``exec``.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        status = ""
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _usable_bytes() -> int:
    """Physical memory, or the control group's limit where that is lower."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return physical
    return min(physical, int(limit)) if limit.isdecimal() else physical


def _cpu_name() -> str:
    try:
        description = Path("/proc/cpuinfo").read_text()
    except OSError:
        description = ""
    for line in description.splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
