"""What is checked on a compiled engine: parity, latency, accuracy, robustness; each as a gate."""
