"""Draws time and memory of SupCon against N from benchmarks/results/similarity.csv."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

STYLES = {
    "s3h_ext": ("#c0392b", "o-"),
    "eager mask": ("#95a5a6", "s-"),
    "eager algebraic": ("#7f8c8d", "^-"),
    "compiled mask": ("#5dade2", "s--"),
    "compiled algebraic": ("#1f618d", "^--"),
    "pytorch-metric-learning": ("#d4a017", "D-"),
}


def draw(source: Path, path: Path) -> None:
    """Plots float32, D = 128, full step, of the CPU that most rows are of."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with source.open(newline="", encoding="utf-8") as stream:
        rows = [
            row
            for row in csv.DictReader(stream)
            if (row["case"], row["depth"], row["dtype"]) == ("supcon", "128", "float32")
        ]
    cpu = Counter(row["cpu"] for row in rows).most_common(1)[0][0]
    rows = [row for row in rows if row["cpu"] == cpu]
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.2), sharex=True)
    for axis, mode, column in (
        (axes[0], "full", "median_ms"),
        (axes[1], "memory", "extra_mib"),
    ):
        for peer, (colour, style) in STYLES.items():
            found = {
                int(row["rows"]): float(row[column])
                for row in rows
                if (row["peer"], row["mode"]) == (peer, mode) and row[column]
            }
            sizes = [size for size in sorted(found) if found[size] > 0]
            if not sizes:
                continue
            values = [found[size] for size in sizes]
            axis.plot(sizes, values, style, color=colour, label=peer, markersize=4)
    floors = {
        int(row["rows"]): float(row["floor_ms"])
        for row in rows
        if (row["peer"], row["mode"]) == ("s3h_ext", "full") and row["floor_ms"]
    }
    sizes = sorted(floors)
    axes[0].plot(sizes, [floors[n] for n in sizes], "k:", label="floor (hardware)")
    ticks = sorted({int(row["rows"]) for row in rows})
    for axis in axes:
        axis.set(xscale="log", xlabel="N")
        if axis.has_data():
            axis.set_yscale("log")
        axis.set_xticks(ticks, [f"{n:,}" for n in ticks], rotation=30)
        axis.minorticks_off()
        axis.grid(visible=True, alpha=0.3)
    axes[0].set(ylabel="ms", title=f"SupCon, forward + backward, D = 128, {cpu}")
    axes[1].set(ylabel="MiB", title="peak memory beyond the inputs")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
