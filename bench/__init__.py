"""Speed and memory against peers, side by side in one run, as ratios. `python -m bench` writes `build/results/bench.json`."""
