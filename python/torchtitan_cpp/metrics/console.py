"""The console lines of a step and of a validation, in torchtitan's format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TextIO


@dataclass(frozen=True, kw_only=True)
class Color:
    """Escape sequences of a terminal; the default is no color at all."""

    red: str = ""
    green: str = ""
    yellow: str = ""
    blue: str = ""
    magenta: str = ""
    cyan: str = ""
    orange: str = ""
    turquoise: str = ""
    reset: str = ""


NO_COLOR = Color()
TERMINAL_COLOR = Color(
    red="\033[31m",
    green="\033[32m",
    yellow="\033[33m",
    blue="\033[34m",
    magenta="\033[35m",
    cyan="\033[36m",
    orange="\033[38;2;180;60;0m",
    turquoise="\033[38;2;54;234;195m",
    reset="\033[39m",
)


def choose_color(stream: TextIO, *, disabled: bool) -> Color:
    """Colors for a terminal; none for a file, a pipe, or where the user wants none."""
    return NO_COLOR if disabled or not stream.isatty() else TERMINAL_COLOR


def step_line(
    color: Color,
    *,
    step: int,
    loss: float,
    grad_norm: float,
    memory_gib: float,
    memory_percent: float,
    tps: float,
    tflops: float | None,
    mfu: float | None,
) -> str:
    """The line of one logged training step.

    Args:
        tps: tokens per second and device.
        tflops: 1e12 model flops per second and device; None prints ``n/a``.
        mfu: percent of the device's peak; None prints ``n/a``.
    """
    shown_tflops = "n/a" if tflops is None else f"{tflops:,.2f}"
    shown_mfu = "n/a" if mfu is None else f"{mfu:.2f}%"
    return (
        f"{color.red}step: {step:2}  "
        f"{color.green}loss: {loss:8.5f}  "
        f"{color.orange}grad_norm: {grad_norm:7.4f}  "
        f"{color.turquoise}memory: {memory_gib:5.2f}GiB({memory_percent:.2f}%)  "
        f"{color.blue}tps: {round(tps):,}  "
        f"{color.cyan}tflops: {shown_tflops}  "
        f"{color.magenta}mfu: {shown_mfu}{color.reset}"
    )


def validation_line(
    color: Color,
    *,
    step: int,
    loss: float,
    memory_gib: float,
    memory_percent: float,
    tps: float,
) -> str:
    """The line of one validation; ``tps`` counts validation tokens only."""
    return (
        f"{color.yellow}validate step: {step:2}  "
        f"{color.green}loss: {loss:7.4f}  "
        f"{color.turquoise}memory: {memory_gib:5.2f}GiB({memory_percent:.2f}%)  "
        f"{color.blue}tps: {round(tps):,}{color.reset}"
    )
