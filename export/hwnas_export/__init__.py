"""PyTorch -> ONNX -> engines, and the runners that feed them. Knows no search, no training."""
