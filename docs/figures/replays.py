"""Draws replays.svg: how often each step is made again with Binomial(slots), by its formula."""

from pathlib import Path

from matplotlib import rcParams
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from odeopt.checkpoint.binomial import optimal_replays

LENGTHS = (100, 1_000, 10_000, 100_000)
SLOTS = (3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 100, 150, 200)


def draw():
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for steps in LENGTHS:
        slots = [s for s in SLOTS if s <= steps]
        replays = [optimal_replays(steps, s) / steps for s in slots]
        axes.plot(slots, replays, marker="o", markersize=3, label=f"{steps:,} steps")
    axes.set(
        xscale="log", xlabel="slots for kept states", ylabel="replays of each step", ylim=(0, 12)
    )
    axes.set_xticks([3, 5, 10, 20, 50, 100, 200], ["3", "5", "10", "20", "50", "100", "200"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    rcParams["svg.hashsalt"] = "odeopt"  # the same file each time
    target = Path(__file__).with_suffix(".svg")
    FigureCanvasSVG(draw()).print_svg(target, metadata={"Date": None})
