"""Numbers and their intervals: predictions under the eight symmetries, metrics, paired comparisons."""
