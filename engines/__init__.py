"""Build an engine file and its manifest from an ONNX file."""
