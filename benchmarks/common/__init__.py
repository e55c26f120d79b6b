"""What every benchmark shares: environments, machine, processes, results."""
