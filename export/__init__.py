"""Export a run bundle to a checked ONNX file."""
