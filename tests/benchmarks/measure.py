"""How it is measured: interleaved times, peak memory and import time of fresh processes."""

import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[2]
THREADS = 2


def limit_threads():
    """Hold this process, and those it starts, to `THREADS` cores and BLAS threads.

    Call before the libraries are imported: they count the cores they may use when they load.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    for variable in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ[variable] = str(THREADS)


def interleaved_times(functions, rounds):
    """Seconds of each function in each round: A B A B.

    Two dictionaries (name -> list): wall time, and the process's CPU time, which other programs on
    the machine disturb less. Whatever slows the machine for a while slows neighbours in time
    alike, so that ratios within a round are steadier than ratios of medians. A call that is not
    timed comes before each that is, as in a training loop: the memory that another function has
    just given back to the system is cleared in the first.
    """
    wall, cpu = ({name: [] for name in functions} for _ in range(2))
    for _ in range(rounds):
        for name, function in functions.items():
            function()
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            function()
            wall[name].append(time.perf_counter() - wall_start)
            cpu[name].append(time.process_time() - cpu_start)
    return wall, cpu


def fresh_process(*arguments):
    """Standard output of a new interpreter of this environment, started in the repository."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr}")
    return done.stdout


def import_times(runs):
    """Seconds that importing NumPy takes, and visreg_core after it, each in fresh processes."""
    program = (
        "import time; a = time.perf_counter(); import numpy; b = time.perf_counter();"
        "import visreg_core; print(b - a, time.perf_counter() - b)"
    )
    pairs = [tuple(map(float, fresh_process("-c", program).split())) for _ in range(runs)]
    return [p[0] for p in pairs], [p[1] for p in pairs]


def module_json(module, *arguments, quick):
    """What a module of this package prints as JSON, run in a fresh process."""
    flags = ["--quick"] if quick else []
    return json.loads(fresh_process("-m", f"tests.benchmarks.{module}", *arguments, *flags))


def machine():
    """Processor, cores and versions: what times depend on."""
    versions = {}
    for name in ("numpy", "scipy", "torch", "POT"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": THREADS,
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        **versions,
        "BLAS": blas(),
    }


def processor():
    """Name of the CPU, and the numbers that tell more than the vague names in virtual machines."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    fields = dict(
        map(str.strip, line.split(":", 1))
        for line in info.read_text().split("\n\n")[0].splitlines()
        if ":" in line
    )
    keys = [key for key in ("cpu family", "model", "stepping") if key in fields]
    numbers = ", ".join(f"{key} {fields[key]}" for key in keys)
    return f"{fields.get('model name', platform.processor())} ({numbers})"


def blas():
    import numpy as np

    found = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return f"{found['name']} {found['version']}"
