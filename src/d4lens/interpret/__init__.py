"""What a trained network computes on the way: activation patching, linear probes, symmetry and attribution."""
