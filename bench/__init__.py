"""Side-by-side measurements: Redrive against what one would write by hand, on the same servers, in the same run.

    python -m bench                      everything, in full: bench/results.json and docs/benchmarks.md
    python -m bench reading waiting      some parts; the others keep the figures that they had
    python -m bench --smoke              all of it in seconds, to see that it still works; its figures mean nothing
    python -m bench report               the tables again, from the figures that are there

The compared programs take turns, round by round, so that other load on the machine meets them all. Figures are medians
over the rounds; ratios are medians of each round's own ratio. Servers are private ones, on free ports of 127.0.0.1.
"""
