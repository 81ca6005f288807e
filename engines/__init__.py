"""ONNX in, engine file and manifest out."""
