"""Runs the command line: `python -m fastdraft`, `torchrun -m fastdraft`, `accelerate launch -m fastdraft`."""

from fastdraft.cli import main

main()
