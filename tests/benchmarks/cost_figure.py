"""The figure of cost against the number of samples: time and memory, a line for each way."""

import statistics

BASELINES = ("eager", "compiled")  # dashed


def draw_cost(works, path):
    """Draw works ``{"name", "size": {"n"}, "seconds": {way: list}, "peak_bytes": {way: number}}``.

    A way that has no peak, because nothing counted it, has no line of memory.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = {}
    for work in works:
        for way, times in work["seconds"].items():
            point = (work["size"]["n"], statistics.median(times), work["peak_bytes"][way])
            lines.setdefault((work["name"], way), []).append(point)
    figure, (of_time, of_memory) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    colors = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(name for name, _ in lines))}
    for (loss, way), points in sorted(lines.items()):
        n, seconds, peak = zip(*sorted(points), strict=True)
        style = {"ls": "--" if way in BASELINES else "-", "color": colors[loss], "marker": "."}
        of_time.loglog(n, seconds, label=f"{loss}, {way}", **style)
        if None not in peak:
            of_memory.loglog(n, [p / 1e9 for p in peak], **style)
    of_time.set(xlabel="samples N", ylabel="seconds a step")
    of_memory.set(xlabel="samples N", ylabel="peak above the embeddings (GB)")
    figure.legend(*of_time.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)
