"""Bundle in, checked ONNX file out."""
