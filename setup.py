"""Builds dynpool/_C by CMake; everything else stands in pyproject.toml.

Environment:
    DYNPOOL_CUDA=0|1|auto   leave the CUDA kernels out | fail without them (default: built where nvcc is found and can)
    CUDA_HOME               toolkit whose bin/nvcc to use
    DYNPOOL_CUDA_ARCHS      compute capabilities, "80;90"; else TORCH_CUDA_ARCH_LIST, "8.0;9.0+PTX"; else common ones
    DYNPOOL_REQUIRE_EXT=1   fail where the extension cannot be built, instead of installing the plain-torch path
    DYNPOOL_REQUIRE_CUDA=1  both of DYNPOOL_CUDA=1 and DYNPOOL_REQUIRE_EXT=1
    MAX_JOBS                parallel compilations
    DYNPOOL_CMAKE_ARGS      further arguments for CMake
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
STEERING = ("CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS", "CUDACXX", "CUDAFLAGS")
OLDEST = 75  # compute capability that the CUDA kernels are written for


def flag(name):
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "on")


def cuda_architectures():
    """Compute capabilities as CMake wants them, "80;90"; "" if all that are named are too old, None if none is."""
    given = os.environ.get("DYNPOOL_CUDA_ARCHS") or os.environ.get("TORCH_CUDA_ARCH_LIST")
    if not given:
        return None
    names = [re.fullmatch(r"(\d+)\.?(\d)[af]?(\+PTX)?", name) for name in re.split(r"[;, ]+", given.strip())]
    if not all(names):
        raise SystemExit(
            f"DYNPOOL_CUDA_ARCHS / TORCH_CUDA_ARCH_LIST must look like '8.0;9.0' or '80;90', got {given!r}"
        )
    numbers = sorted({int(name[1] + name[2]) for name in names})
    if too_old := [number for number in numbers if number < OLDEST]:
        print(f"dynpool: no CUDA kernels for compute capability {too_old}: below {OLDEST}", file=sys.stderr)
    return ";".join(str(number) for number in numbers if number >= OLDEST)


def tool(name):
    """A build tool: of the Python environment that builds, else of PATH."""
    beside = Path(sysconfig.get_path("scripts")) / name
    return str(beside) if beside.exists() else shutil.which(name)


def wanted_cuda():
    """ "0", "1" or "auto"."""
    names = {"0": "0 off false no", "1": "1 on true yes", "auto": "auto"}
    given = os.environ.get("DYNPOOL_CUDA") or ("1" if flag("DYNPOOL_REQUIRE_CUDA") else "auto")
    found = [value for value, spelt in names.items() if given.lower() in spelt.split()]
    if not found:
        raise SystemExit(f"DYNPOOL_CUDA must be 0, 1 or auto, got {given!r}")
    if flag("DYNPOOL_REQUIRE_CUDA") and found != ["1"]:
        raise SystemExit(f"DYNPOOL_REQUIRE_CUDA=1 contradicts DYNPOOL_CUDA={given}")
    return found[0]


class CMakeBuild(build_ext):
    def run(self):
        cuda = wanted_cuda()
        if cuda_architectures() == "":
            if cuda == "1":
                raise SystemExit(f"DYNPOOL_CUDA=1, but the CUDA kernels need a compute capability of {OLDEST} or more")
            cuda = "0"
        required = flag("DYNPOOL_REQUIRE_EXT") or cuda == "1"
        try:
            self.build_by_cmake(cuda)
        except (OSError, subprocess.CalledProcessError, ImportError) as error:
            if required:
                raise
            self.extensions = []
            Path(self.get_ext_fullpath("dynpool._C")).unlink(missing_ok=True)  # of an earlier build
            print(f"dynpool: built WITHOUT its kernels, on the plain-torch path ({error})", file=sys.stderr)

    def build_by_cmake(self, cuda):
        try:
            self.build_with(cuda)
        except subprocess.CalledProcessError as error:
            if cuda != "auto":
                raise
            print(f"dynpool: again without CUDA kernels, if they are why it does not build ({error})", file=sys.stderr)
            self.build_with("0")

    def build_with(self, cuda):
        import pybind11

        cmake, ninja = tool("cmake"), tool("ninja")
        if not cmake or not ninja:
            raise OSError("cmake and ninja are needed")
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        environment = dict(os.environ)
        if cuda_home := os.environ.get("CUDA_HOME"):
            environment["CUDACXX"] = str(Path(cuda_home) / "bin" / "nvcc")
        # An isolated build has another ninja and pybind11 each time: name them, or a cache of the last one is used.
        configure = [
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DDYNPOOL_CUDA={cuda}",
            *shlex.split(os.environ.get("DYNPOOL_CMAKE_ARGS", "")),
        ]
        if architectures := cuda_architectures():
            configure.append(f"-DDYNPOOL_CUDA_ARCHS={architectures}")
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        build.mkdir(parents=True, exist_ok=True)
        # What CMake looks at once, and would keep: compilers, their flags, architectures.
        steering = [environment.get(name) for name in STEERING] + [shutil.which("nvcc"), *configure[3:]]
        record = build / "configured.json"
        if not record.exists() or json.loads(record.read_text()) != steering:
            configure.append("--fresh")
        subprocess.run([cmake, "-S", ROOT, "-B", build, "-G", "Ninja", *configure], check=True, env=environment)
        record.write_text(json.dumps(steering))
        subprocess.run([cmake, "--build", build, "--parallel", jobs, "--target", "_C"], check=True, env=environment)

        target = Path(self.get_ext_fullpath("dynpool._C"))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_suffix(".new")  # a process may be using the old file
        self.copy_file(build / target.name, temporary)
        os.replace(temporary, target)
        print(f"dynpool: built {target.name}: {(build / 'summary.txt').read_text().strip()}", file=sys.stderr)

    def get_source_files(self):
        return [str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc").rglob("*.*"))] + ["CMakeLists.txt"]


setup(ext_modules=[Extension("dynpool._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
