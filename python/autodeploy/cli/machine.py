"""What this machine has: processor, memory, threads, compiler, GPU. Read from the system, nothing is started but tools
that print their version."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

# Processor features that kernels choose by.
_X86_FEATURES = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
)
_ARM_FEATURES = ("asimd", "asimddp", "i8mm", "fphp", "bf16", "sve")


def processor() -> dict[str, object]:
    """Model name, architecture and the features that matter here."""
    name, flags = "", set()
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "model name" and not name:
            name = value
        elif key in ("flags", "Features") and not flags:
            flags = set(value.split())
    known = _X86_FEATURES if platform.machine() in ("x86_64", "AMD64") else _ARM_FEATURES
    return {
        "name": name or platform.processor(),
        "arch": platform.machine(),
        "features": [f for f in known if f in flags],
    }


def usable_threads() -> int:
    """Processors that this process may use: its affinity mask, cut by the cgroup's quota."""
    allowed = len(os.sched_getaffinity(0))
    quota = _cgroup_cpu_quota()
    return max(1, min(allowed, -(-quota[0] // quota[1]))) if quota else allowed


def available_memory() -> int:
    """Bytes that can still be used: of the machine, and of the cgroup where it has a limit."""
    match = re.search(r"MemAvailable:\s*(\d+) kB", _read("/proc/meminfo"))
    available = int(match.group(1)) * 1024 if match else 0
    for limit_file, used_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        limit, used = _read(limit_file).strip(), _read(used_file).strip()
        if limit.isdigit() and used.isdigit():
            available = min(available, max(0, int(limit) - int(used)))
    return available


def compiler() -> str | None:
    """First line of the C++ compiler's version, or None where there is none."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        path = shutil.which(name) if name else None
        if path is not None and (line := _first_line([path, "--version"])):
            return f"{path}: {line}"
    return None


def gpus() -> list[str]:
    """NVIDIA GPUs that the driver shows."""
    path = shutil.which("nvidia-smi")
    if path is None:
        return [p.name for p in Path("/proc/driver/nvidia/gpus").glob("*")]
    try:
        done = subprocess.run([path, "-L"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.startswith("GPU")]


def _cgroup_cpu_quota() -> tuple[int, int] | None:
    """(quota, period) in microseconds, or None where there is no limit."""
    words = _read("/sys/fs/cgroup/cpu.max").split()
    if len(words) != 2:
        words = [_read(f"/sys/fs/cgroup/cpu/cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    if all(word.isdigit() for word in words) and int(words[0]) > 0 and int(words[1]) > 0:
        return int(words[0]), int(words[1])
    return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _first_line(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.splitlines()[0] if done.returncode == 0 and done.stdout else ""
