"""The machine code of our own kernels: what it must have, and no form that a device was seen to refuse."""

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


def _instructions(machine_code: list[bytes], part_of_name: bytes) -> dict[bytes, set[bytes]]:
    """The instructions' names, without what follows a dot, of the kernels whose name has that part."""
    kernels: dict[bytes, set[bytes]] = {}
    name = b""
    for line in machine_code:
        if match := re.search(rb"Function : (\S+)", line):
            name = match[1]
        elif part_of_name in name and (
            match := re.match(rb"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9]*)", line)
        ):
            kernels.setdefault(name, set()).add(match[1])
    return kernels


@pytest.fixture(scope="module")
def machine_code() -> list[bytes]:
    """Lines of the disassembly of libautodeploy_cuda."""
    tool, library = _cuobjdump(), _library()
    if tool is None:
        pytest.skip("no cuobjdump: it comes with the CUDA toolkit, and with Triton")
    if library is None:
        pytest.skip("no libautodeploy_cuda.so: it is built where nvcc is found")
    dump = subprocess.run([tool, "-sass", str(library)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return dump.stdout.splitlines()


def test_no_copy_has_the_form_that_a_device_refuses(machine_code: list[bytes]) -> None:
    copies = [line.strip() for line in machine_code if b"LDGSTS" in line]
    assert copies, "the library holds machine code of kernels that copy"
    assert not [line for line in copies if _REFUSED.search(line)]


def test_linears_of_some_rows_use_the_units_of_hopper(machine_code: list[bytes]) -> None:
    """Of a kernel that the compiler took for another architecture nothing would be left but an empty body."""
    if not any(line.startswith(b"arch = sm_90a") for line in machine_code):
        pytest.skip("the library is not built for sm_90a")
    kernels = _instructions(machine_code, b"wgmma_linear_kernel")
    assert kernels, "the library holds kernels of linear_wgmma_kernel.h"
    for name, instructions in kernels.items():
        missing = {b"HGMMA", b"UTMALDG"} - instructions
        assert not missing, f"{name.decode()} has no {missing}"
