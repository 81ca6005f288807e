"""From what a user names to ONNX files, engines and contenders. Prints nothing."""
