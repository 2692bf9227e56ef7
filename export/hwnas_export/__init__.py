"""ONNX models, engines and the runners that run them. Knows no search and no training."""

import os

# ONNX Runtime from 1.29 on reports its use to its vendor unless it is told not to, and reads this
# when it is first imported, which is never before this line. Who wants it sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
