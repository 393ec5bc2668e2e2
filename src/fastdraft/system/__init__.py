"""What every package needs of the machine: errors, files, locks, cards, processes, progress, energy."""
