"""Runs what sorted rows are compiled to, PTX for a large GPU, in NumPy: no device is there.

    python -m tests.torch_adapter.kernels.ptx

Triton's interpreter has no shared memory, and so no way through it back to where samples were. The
compiled kernel has no branch, so that all lanes of all its warps take every instruction together; a
barrier is then nothing. One JSON object a line: the case, and what its gradient is off by.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import torch
from triton.runtime import driver

from tests.torch_adapter.kernels.compiled import Driver
from visreg_torch.kernels._launch import OPTIONS
from visreg_torch.kernels._sorting import rank_of
from visreg_torch.kernels.sorted_rows import _options, _sorted_rows

TYPES = {
    "pred": np.bool_,
    **{f"{kind}{bits}": np.dtype(f"uint{bits}").type for kind in "bu" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": np.dtype(f"int{bits}").type for bits in (8, 16, 32, 64)},
    "f32": np.float32,
}
COMPARISONS = {
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "num": lambda a, b: (a == a) & (b == b),
    "nan": lambda a, b: (a != a) | (b != b),
}
BINARY = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "min": lambda a, b: np.fmin(a, b) if a.dtype == np.float32 else np.minimum(a, b),
    "max": lambda a, b: np.fmax(a, b) if a.dtype == np.float32 else np.maximum(a, b),
    "shl": np.left_shift,
    "shr": np.right_shift,
}
_BUFFER = 32  # bits of an address within a buffer
_TRITONS_OWN = 1 << 16  # where its shared memory starts, behind what the kernel declares


def instructions(ptx: str) -> list[str]:
    """The kernel's instructions, in order."""
    body = ptx[ptx.index("$L__func_begin0:") : ptx.index("$L__func_end0:")]
    found = []
    for line in body.split("\n"):
        text = line.split("//")[0].strip()
        if text and not text.startswith((".", "$")):
            found += [part.strip() for part in text.split(";") if part.strip(" {}")]
    return found


class Machine:
    """The lanes of one program: registers by name, shared memory, and the buffers of all."""

    def __init__(self, lanes: int, program: int, buffers: list[np.ndarray]) -> None:
        self.lanes, self.buffers = lanes, buffers
        self.shared = np.full(1 << 17, 0xA5, np.uint8)
        self.registers: dict[str, np.ndarray] = {
            "%ctaid.x": np.full(lanes, program, np.uint32),
            "%tid.x": np.arange(lanes, dtype=np.uint32),
        }

    def read(self, name: str, kind: str) -> np.ndarray:
        """A register or a constant as numbers of a type."""
        dtype = np.dtype(TYPES[kind])
        if name.startswith("0f"):
            return np.full(self.lanes, int(name[2:], 16), np.uint32).view(dtype)
        constant = {"places": 0, "global_smem": _TRITONS_OWN}.get(name)
        if constant is None and re.match(r"-?\d", name):
            constant = int(name.rstrip("U"), 0)
        if constant is not None:
            bits = constant & ((1 << (8 * dtype.itemsize)) - 1)
            return np.full(self.lanes, bits, f"uint{8 * dtype.itemsize}").view(dtype)
        x = self.registers[name]
        return x.view(dtype) if x.dtype.itemsize == dtype.itemsize else x.astype(dtype)

    def write(self, name: str, x: np.ndarray, where: np.ndarray | None) -> None:
        """Set a register, in the lanes where the instruction runs."""
        x = x if x.dtype == np.bool_ else x.view(f"uint{8 * x.dtype.itemsize}")
        if where is not None:
            x = np.where(where, x, self.registers.get(name, np.zeros_like(x)))
        self.registers[name] = x

    def memory(self, space: str, address: int) -> tuple[np.ndarray, int]:
        """Bytes, and where among them an address is."""
        if space == "shared":
            return self.shared, address
        return self.buffers[(address >> _BUFFER) - 1], address & ((1 << _BUFFER) - 1)

    def move(self, parts: list[str], given: list[str], where: np.ndarray | None) -> None:
        """A load or a store, of one number or several."""
        load, space, kind = parts[0] == "ld", parts[1], TYPES[parts[-1].replace("f", "b")]
        numbers, place = given if load else reversed(given)
        base, _, offset = place.strip("[] ").replace(" ", "").partition("+")
        at = self.read(base, "u32" if space == "shared" else "u64").astype(np.int64)
        width = np.dtype(kind).itemsize
        lanes = range(self.lanes) if where is None else np.nonzero(where)[0]
        for i, name in enumerate(numbers.strip("{} ").split("|")):
            x = np.zeros(self.lanes, kind) if load else self.read(name.strip(), parts[-1])
            for lane in lanes:
                memory, start = self.memory(space, int(at[lane]) + int(offset or 0) + i * width)
                assert 0 <= start <= len(memory) - width, "beyond its memory"
                if load:
                    x[lane] = memory[start : start + width].view(kind)[0]
                else:
                    memory[start : start + width] = x[lane : lane + 1].view(np.uint8)
            if load:
                self.write(name.strip(), x if width > 1 else x.astype(np.uint16), where)

    def step(self, text: str, arguments: list[Any]) -> None:
        """One instruction."""
        where = None
        if predicated := re.match(r"@(!?)(%p\d+)\s+(.*)", text):
            where = self.registers[predicated[2]] ^ bool(predicated[1])
            text = predicated[3]
        operation, rest = re.match(r"(\S+)\s*(.*)", text).groups()
        parts, kind = operation.split("."), operation.rsplit(".", 1)[-1]
        vectors = re.sub(r"\{[^}]*\}", lambda m: m[0].replace(",", "|"), rest)
        given = [part.strip() for part in vectors.split(",")]
        name = parts[0]
        if name in ("bar", "ret"):
            return
        if name in ("ld", "st") and parts[1] != "param":
            self.move(parts, given, where)
            return
        of = [self.read(g, kind) for g in given[1:]] if name in (*BINARY, "fma") else []
        if name == "ld":
            x = np.full(self.lanes, arguments[int(re.search(r"param_(\d+)", given[1])[1])])
            wide = given[0].startswith("%rd")
            x = x.astype(np.float32 if x.dtype.kind == "f" else np.int64 if wide else np.int32)
        elif name == "mul" and "wide" in parts:
            x = np.multiply(*[a.astype(TYPES[f"{kind[0]}64"]) for a in of])
        elif name == "shr" and kind[0] == "b":
            x = of[0] >> of[1]
        elif name in BINARY:
            x = BINARY[name](*of)
        elif name == "fma":
            x = (of[0].astype(np.float64) * of[1] + of[2]).astype(np.float32)
        elif name == "mad":
            wide = f"{kind[0]}64" if "wide" in parts else kind
            a, b = (self.read(g, kind).astype(TYPES[wide]) for g in given[1:3])
            x = a * b + self.read(given[3], wide)
        elif name == "mov" and "{" in rest:
            self.halves(given, where)
            return
        elif name == "prmt":
            a, b, selector = (self.read(g, kind).astype(np.uint64) for g in given[1:])
            both, x = a | (b << np.uint64(32)), np.zeros(self.lanes, np.uint64)
            for byte in range(4):
                which = (selector >> np.uint64(4 * byte)) & np.uint64(7)
                one = (both >> (which * np.uint64(8))) & np.uint64(0xFF)
                x |= one << np.uint64(8 * byte)
            x = x.astype(np.uint32)
        elif name in ("mov", "neg", "not", "abs"):
            unary = {"mov": np.copy, "neg": np.negative, "not": np.invert, "abs": np.abs}
            x = unary[name](self.read(given[1], kind))
        elif name == "bfe":
            first, bits = (int(g) for g in given[2:])
            x = (self.read(given[1], "u32") >> np.uint32(first)) & np.uint32((1 << bits) - 1)
            if kind[0] == "s":  # its highest bit is a sign
                x = np.where(x >> np.uint32(bits - 1), x | ~np.uint32((1 << bits) - 1), x)
            x = x.astype(np.uint32).view(TYPES[kind])
        elif name == "selp":
            x = np.where(self.registers[given[3]], *(self.read(g, kind) for g in given[1:3]))
        elif name == "setp":
            x = COMPARISONS[parts[1]](*(self.read(g, kind) for g in given[1:]))
        elif name == "shfl":
            lanes = self.read(given[1], kind).reshape(-1, 32)
            to = np.arange(32) ^ int(given[2]) if parts[2] == "bfly" else None
            if to is None:
                to = (self.read(given[2], "u32") & 31).reshape(-1, 32).astype(np.int64)
                x = np.take_along_axis(lanes, to, 1).reshape(-1)
            else:
                x = lanes[:, to].reshape(-1)
        elif name == "cvt":
            x = self.converted(given[1], parts[-2], kind)
        else:
            raise NotImplementedError(text)
        self.write(given[0], x, where)

    def halves(self, given: list[str], where: np.ndarray | None) -> None:
        """Two 16-bit registers to one of 32 bits, or back."""
        to, of = given
        if "{" in of:
            low, high = (self.read(g.strip(), "u16").astype(np.uint32) for g in of[1:-1].split("|"))
            self.write(to, low | (high << 16), where)
            return
        x = self.read(of, "u32")
        for name, half in zip(to[1:-1].split("|"), (x & 0xFFFF, x >> 16), strict=True):
            if name.strip() != "_":
                self.write(name.strip(), half.astype(np.uint16), where)

    def converted(self, name: str, to: str, kind: str) -> np.ndarray:
        """A conversion, rounded as the kernel asks for it."""
        if to == "bf16":
            bits = self.read(name, "u32")
            rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            return np.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FFF, rounded).astype(np.uint16)
        if kind == "bf16":
            return (self.read(name, "u16").astype(np.uint32) << 16).view(np.float32)
        x = self.read(name, kind)
        if kind == "f32":  # to an integer, toward zero; what is no number becomes 0
            x = np.trunc(np.clip(np.nan_to_num(x, nan=0.0), -(2.0**31), 2.0**31 - 128))
        return x.astype(TYPES[to])


def run(ptx: str, arguments: list[Any], programs: int, warps: int) -> list[Any]:
    """Run a kernel's programs; arrays among the arguments come back as they were left."""
    buffers = [np.frombuffer(bytearray(a.tobytes()), np.uint8) for a in arguments if _is_array(a)]
    places = iter(range(1, len(buffers) + 1))
    given = [next(places) << _BUFFER if _is_array(a) else a for a in arguments]
    for program in range(programs):
        machine = Machine(32 * warps, program, buffers)
        for instruction in instructions(ptx):
            machine.step(instruction, given)
    left = iter(buffers)
    return [next(left).view(a.dtype).reshape(a.shape) if _is_array(a) else a for a in arguments]


def _is_array(x: Any) -> bool:
    return isinstance(x, np.ndarray)


# --- sorted rows ----------------------------------------------------------------------------------

ROWS, WIDTH = 5, 8192


def compiled(n: int, masked: bool, exact: bool) -> tuple[str, int]:
    """PTX of rows of n samples, and how many warps a program has."""

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    options = _options(n, True)
    tensors = [
        empty(1, ROWS, WIDTH),
        None,
        None,
        empty(options["BLOCK"]),
        empty(n, dtype=torch.uint8) if masked else None,
        empty(ROWS),
        empty(1, ROWS, WIDTH, dtype=torch.bfloat16),
    ]
    kernel = _sorted_rows.run(
        *tensors,
        *(ROWS, n, ROWS, WIDTH, 1, 0.5),
        BACK=1,
        EXACT=exact,
        grid=(1,),
        warmup=True,
        **OPTIONS,
        **options,
    )
    return kernel.asm["ptx"], options["num_warps"]


def case(n: int, masked: bool, exact: bool) -> dict[str, Any]:
    """What the gradient of normal rows, one with ties, one collapsed, one not finite, is off by."""
    rng = np.random.default_rng(0)
    p = np.zeros((ROWS, WIDTH), np.float32)
    p[:, :n] = rng.standard_normal((ROWS, n))
    p[2, :n] = np.round(4 * p[2, :n])
    p[3, :n] = 7.0
    p[4, 1] = np.nan
    keep = np.ones(n, np.uint8)
    if masked:
        keep[2:] = rng.random(n - 2) < 0.7
    kept = np.nonzero(keep)[0]
    ranks = (torch.arange(1, len(kept) + 1, dtype=torch.float64) / (len(kept) + 1)).numpy()
    q = torch.special.ndtri(torch.from_numpy(ranks)).numpy()
    block = _options(n, True)["BLOCK"]
    targets = np.full(block, np.nan, np.float32)
    targets[: len(kept)] = q
    targets = targets[[rank_of(column, block.bit_length() - 1) for column in range(block)]]

    ptx, warps = compiled(n, masked, exact)
    values, out = np.zeros(ROWS, np.float32), np.full((ROWS, WIDTH), 0x7FC0, np.uint16)
    arrays = [p, targets, *([keep] if masked else []), values, out]
    # Constants of the kernel are no parameters; behind the others are two of triton's own.
    left = run(ptx, [*arrays, ROWS, n, ROWS, WIDTH, 0.5, 0, 0], ROWS, warps)
    values, out = left[len(arrays) - 2 : len(arrays)]
    gradient = (out.astype(np.uint32) << 16).view(np.float32)
    assert np.isnan(gradient[:, n:]).all(), "written beyond the row"
    assert np.isnan(values[4]) and np.isnan(gradient[4, kept]).all()
    worst = {"value": 0.0, "gradient": 0.0}
    for row in range(4):
        x = 0.5 * p[row, :n].astype(np.float64)
        expected = np.zeros(n)
        order = kept[np.argsort(x[kept], kind="stable")]
        expected[order] = x[order] - q
        off = np.abs(gradient[row, :n] - expected).max() / np.abs(expected).max()
        value = np.sum(expected**2)
        worst["gradient"] = max(worst["gradient"], float(off))
        worst["value"] = max(worst["value"], float(abs(values[row] - value) / value))
    return {"n": n, "masked": masked, "exact": exact, **worst}


CASES = [(512, False, False), (500, False, True), (300, True, False), (4000, False, True)]

if __name__ == "__main__":
    np.seterr(all="ignore")
    driver.set_active(Driver())
    for n, masked, exact in CASES:
        print(json.dumps(case(n, masked, exact)), flush=True)
