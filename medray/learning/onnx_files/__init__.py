"""Networks that others saved as ONNX files: read, checked, and computed by onnxruntime."""
