"""What joins the halves: from what a user means to ONNX files, engines and contenders. Prints nothing."""
