"""Robustness: threat models in pixel units, attacks, and accuracies with their intervals."""
