"""Small servers of streams: MJPEG over HTTP, and RTSP."""

from __future__ import annotations

import io
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image


def jpeg(image: np.ndarray) -> bytes:
    """A JPEG file."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=95)
    return out.getvalue()


class MjpegServer:
    """A server of MJPEG: what `/video` sends is the test's to say."""

    def __init__(self) -> None:
        self.connections = 0
        self.stopping = threading.Event()
        self.play: Callable[[Callable[[bytes], None], int], None] = lambda *_: None
        camera = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments: object) -> None:
                pass

            def do_GET(self) -> None:
                camera.connections += 1
                if self.path == "/silent":
                    camera.stopping.wait(5)
                    return
                if self.path == "/private" and self.headers.get("Authorization") != "Basic bWU6c2VjcmV0":
                    self.send_response(401)
                    self.send_header("WWW-Authenticate", 'Basic realm="camera"')
                    self.end_headers()
                    return
                content = {"/video": "multipart/x-mixed-replace; boundary=frame", "/page": "text/html"}
                if self.path not in {*content, "/private"}:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Type", content.get(self.path, content["/video"]))
                self.end_headers()
                with suppress(OSError):
                    camera.play(self._part, camera.connections)

            def _part(self, data: bytes) -> None:
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                self.wfile.write(head.encode() + data + b"\r\n")
                self.wfile.flush()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class RtspServer:
    """A small RTSP server: it sends an MPEG transport stream in RTP, interleaved in the connection (RFC 2326, 2250)."""

    def __init__(self, stream: bytes) -> None:
        self._stream, self.stopping, self.connections = stream, threading.Event(), 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"rtsp://127.0.0.1:{self._listener.getsockname()[1]}/camera"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        self._listener.settimeout(0.05)
        while not self.stopping.is_set():
            with suppress(TimeoutError):
                connection, _ = self._listener.accept()
                self.connections += 1
                self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(5)
        with connection, suppress(OSError):
            while not self.stopping.is_set():
                request = b""
                while not request.endswith(b"\r\n\r\n"):
                    part = connection.recv(1)
                    if not part:
                        return
                    request += part
                method, headers = (
                    request.split()[0],
                    dict(line.split(": ", 1) for line in request.decode().splitlines()[1:] if ": " in line),
                )
                extra, body = "", ""
                if method == b"DESCRIBE":
                    body = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:1\r\n"
                    extra = "Content-Type: application/sdp\r\n"
                elif method == b"SETUP":
                    extra = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n"
                elif method == b"OPTIONS":
                    extra = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
                answer = (
                    f"RTSP/1.0 200 OK\r\nCSeq: {headers['CSeq']}\r\n{extra}Content-Length: {len(body)}\r\n\r\n{body}"
                )
                connection.sendall(answer.encode())
                if method == b"PLAY":
                    self._play(connection)
                    return

    def _play(self, connection: socket.socket) -> None:
        for count, begin in enumerate(range(0, len(self._stream), 7 * 188)):
            payload = self._stream[begin : begin + 7 * 188]
            packet = struct.pack(">BBHII", 0x80, 33, count & 0xFFFF, count * 900, 1) + payload
            connection.sendall(b"$\0" + struct.pack(">H", len(packet)) + packet)
            if self.stopping.wait(0.01):
                return
        self.stopping.wait(10)  # silent, but connected

    def close(self) -> None:
        self.stopping.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()
