"""`python -m fastdraft`, and so `torchrun -m fastdraft` and `accelerate launch -m fastdraft`."""

from fastdraft.cli import main

main()
