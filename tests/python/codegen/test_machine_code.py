"""The machine code of our own kernels has no form that a device was seen to refuse."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

# A copy into shared memory with an offset in a uniform register, and a cache policy in another: of ptxas 13.0,
# an H100 ends such kernels with cudaErrorIllegalInstruction (kernels/cuda/mma.h, ReadOnce).
_REFUSED = re.compile(rb"LDGSTS\S* \[R\d+\+UR\d+[^\]]*\], desc\[UR1\]")


def _cuobjdump() -> str | None:
    found = shutil.which("cuobjdump") or shutil.which("/usr/local/cuda/bin/cuobjdump")
    if found:
        return found
    try:
        import triton
    except ImportError:
        return None
    bundled = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return str(bundled) if bundled.exists() else None


def _library() -> Path | None:
    from autodeploy._load_native import load_native

    path = Path(load_native().__file__).parent / "libautodeploy_cuda.so"
    return path if path.exists() else None


def test_the_pattern_tells_the_refused_form_from_others() -> None:
    assert _REFUSED.search(b"LDGSTS.E.BYPASS.LTC128B.128 [R11+UR0+0x220], desc[UR1][R12.64+0x200], !P0 ;")
    assert not _REFUSED.search(b"LDGSTS.E.BYPASS.LTC128B.128 [R75+0x210], desc[UR4][R22.64], !P0 ;")


def test_no_copy_has_the_form_that_a_device_refuses() -> None:
    tool, library = _cuobjdump(), _library()
    if tool is None:
        pytest.skip("no cuobjdump: it comes with the CUDA toolkit, and with Triton")
    if library is None:
        pytest.skip("no libautodeploy_cuda.so: it is built where nvcc is found")
    dump = subprocess.run([tool, "-sass", str(library)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    copies = [line.strip() for line in dump.stdout.splitlines() if b"LDGSTS" in line]
    assert copies, "the library holds machine code of kernels that copy"
    assert not [line for line in copies if _REFUSED.search(line)]
