"""Depth over HTTP: the live page of `depthkit view`. Needs the extra `serve`."""
