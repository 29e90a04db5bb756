"""Registers, stack frames and spills of every CUDA kernel on every architecture, as ptxas reports them.

    python csrc/tests/cuda_resources.py [--update] [LOG]

Fails where a kernel spills, or where cuda_resources.json does not name the same kernels; and, under the compiler that
this was written with, where fewer blocks of a kernel fit a multiprocessor than it says (counted as of 128 threads,
whatever the kernel has), or a stack frame has grown. --update writes the file anew. LOG is the output of a build of
the package with DYNPOOL_CMAKE_ARGS=-DCMAKE_CUDA_FLAGS=-Xptxas=-v; without it, the kernels are compiled here.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CSRC = Path(__file__).resolve().parents[1]
EXPECTED = Path(__file__).with_suffix(".json")
ARCHITECTURES = ("75", "80", "90", "100", "120")  # those of CMakeLists.txt
THREADS = 128  # of a block: kThreads in launch.cuh
REGISTERS = 65536  # of a multiprocessor


def nvcc() -> str:
    home = os.environ.get("CUDA_HOME")
    return str(Path(home) / "bin" / "nvcc") if home else "nvcc"


def compile_file(source: Path, folder: str) -> str:
    command = [nvcc(), "-c", source, "-O3", "-std=c++17", f"-I{CSRC}", "-Xptxas", "-v"]
    for archs in (ARCHITECTURES[:1], ARCHITECTURES[1:]):  # two PTX, as in CMakeLists.txt
        codes = ",".join(f"sm_{arch}" for arch in archs)
        command += ["-gencode", f"arch=compute_{archs[0]},code=[{codes}]"]
    run = subprocess.run([*command, "-o", Path(folder) / f"{source.stem}.o"], text=True, capture_output=True)
    if run.returncode:
        sys.exit(f"{source.name} does not compile:\n{run.stderr}")
    return run.stderr


def demangle(names: list[str]) -> list[str]:
    text = subprocess.run(["c++filt", "-p"], input="\n".join(names), text=True, capture_output=True, check=True).stdout
    clutter = re.compile(
        r"\((dynpool::)?(cuda::)?(\(anonymous namespace\)::)?(Nonlinearity|Mode|Access|Source|Case)\)"  # casts
        r"|dynpool::(cuda::)?|\(anonymous namespace\)::|baseline::"
    )
    return [clutter.sub("", name) for name in text.splitlines()]


def compile_all() -> str:
    sources = sorted((CSRC / "cuda").glob("*.cu"))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        return "\n".join(pool.map(lambda source: compile_file(source, folder), sources))


def resources(output: str) -> dict[str, dict[str, dict[str, int]]]:
    """kernel -> architecture -> registers, bytes of stack frame, spilled bytes."""
    found = re.findall(
        r"entry function '(\w+)' for 'sm_(\d+)'.*?"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
        output,
        re.DOTALL,
    )
    table: dict[str, dict[str, dict[str, int]]] = {}
    for name, (_, arch, stack, stores, loads, registers) in zip(
        demangle([row[0] for row in found]), found, strict=True
    ):
        spilled = int(stores) + int(loads)
        table.setdefault(name, {})[arch] = {"registers": int(registers), "stack": int(stack), "spilled": spilled}
    return table


def blocks(registers: int) -> int:
    """Blocks of a multiprocessor; a warp takes registers in multiples of 256."""
    warps = REGISTERS // (-(-registers * 32 // 256) * 256)
    return warps // (THREADS // 32)


def _frames_of(archs: dict[str, dict[str, int]]) -> dict[str, int]:
    return {arch: row["stack"] for arch, row in archs.items() if row["stack"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", nargs="?", type=Path, metavar="LOG")
    parser.add_argument("--update", action="store_true")
    arguments = parser.parse_args()
    about = subprocess.run([nvcc(), "--version"], text=True, capture_output=True, check=True).stdout
    compiler = re.findall(r"release [\d.]+, V([\d.]+)", about)[0]
    table = resources(arguments.log.read_text() if arguments.log else compile_all())
    if not table or any(set(archs) != set(ARCHITECTURES) for archs in table.values()):
        sys.exit(f"ptxas did not report kernels for each of {', '.join(ARCHITECTURES)}")
    registers = {name: {arch: row["registers"] for arch, row in archs.items()} for name, archs in sorted(table.items())}

    print(f"nvcc {compiler}; registers a thread (blocks of {THREADS} threads a multiprocessor)")
    print(f"{'kernel':<58}" + "".join(f"{'sm_' + arch:>11}" for arch in ARCHITECTURES))
    for name, archs in registers.items():
        print(f"{name:<58}" + "".join(f"{archs[arch]:>6} ({blocks(archs[arch]):>2})" for arch in ARCHITECTURES))

    failures = [
        f"{name} spills {row['spilled']} bytes on sm_{arch}"
        for name, archs in table.items()
        for arch, row in archs.items()
        if row["spilled"]
    ]
    stacks = {name: framed for name, archs in sorted(table.items()) if (framed := _frames_of(archs))}
    if arguments.update:
        content = {"compiler": compiler, "registers": registers, "stack": stacks}
        EXPECTED.write_text(json.dumps(content, indent=1) + "\n")
    else:
        expected = json.loads(EXPECTED.read_text())
        names = expected["registers"].keys()
        failures += [f"{name} is not in {EXPECTED.name}: --update" for name in registers.keys() - names]
        failures += [f"{name} of {EXPECTED.name} is not compiled: --update" for name in names - registers.keys()]
        if expected["compiler"] != compiler:
            print(f"{EXPECTED.name} is of nvcc {expected['compiler']}: blocks and stack frames not compared")
        else:
            failures += [
                f"{name} on sm_{arch}: {count} registers, {blocks(count)} blocks; were {before}, {blocks(before)}"
                for name, archs in registers.items()
                for arch, count in archs.items()
                if (before := expected["registers"].get(name, {}).get(arch)) and blocks(count) < blocks(before)
            ]
            failures += [
                f"{name} on sm_{arch}: a stack frame of {size} bytes; was {before}"
                for name, archs in stacks.items()
                for arch, size in archs.items()
                if size > (before := expected["stack"].get(name, {}).get(arch, 0))
            ]
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    main()
