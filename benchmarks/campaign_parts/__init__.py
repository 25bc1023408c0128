"""What `benchmarks/campaign.py` does, a part a file. Case i of a part depends on the seed and on i only."""
