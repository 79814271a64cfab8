"""Peak memory of one candidate of one work, above its inputs and gradients; prints JSON.

    python -m tests.benchmarks.peak_memory WORK CANDIDATE [--quick]

Run in a fresh process: libraries are loaded and warmed up by the work's quick size first.
"""

import argparse
import ctypes
import json
import resource

from tests.benchmarks.measure import limit_threads


def resident(field):
    """A field of /proc/self/status in bytes."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise OSError(f"expected a line {field} in /proc/self/status; found none")


def reset_peak():
    """Let the recorded peak fall to what is resident now; False where the kernel refuses."""
    try:
        with open("/proc/self/clear_refs", "w") as clear_refs:
            clear_refs.write("5")
    except PermissionError:
        return False
    return True


def peak_above(prepare, small_inputs, inputs):
    """Peak bytes of a candidate's one run above what was resident before, gradients included.

    Returns it with the gradients' bytes and the name of the counter.
    """
    prepare(*small_inputs)()
    run = prepare(*inputs)
    # Freed memory that the allocator keeps would be used again without being seen.
    ctypes.CDLL(None).malloc_trim(0)
    if reset_peak():
        method = "VmHWM"
        before = resident("VmRSS")
        _, gradients = run()
        peak = resident("VmHWM")
    else:
        # Too low where making the inputs took more than the work.
        method = "ru_maxrss"
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        _, gradients = run()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return peak - before, sum(g.nbytes for g in gradients), method


def measure(work, candidate, quick):
    prepare = work.candidates[candidate]
    peak, gradient_bytes, method = peak_above(prepare, work.inputs(quick=True), work.inputs(quick))
    return {
        "method": method,
        "gradient_mb": gradient_bytes / 1e6,
        "above_mb": (peak - gradient_bytes) / 1e6,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("work")
    parser.add_argument("candidate")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    limit_threads()
    from tests.benchmarks.works import WORKS

    print(json.dumps(measure(WORKS[arguments.work], arguments.candidate, arguments.quick)))


if __name__ == "__main__":
    main()
