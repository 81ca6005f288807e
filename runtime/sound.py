"""Carry the sound of a source over to a video that is being written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from ..errors import DataError
from .source import Sound
from .video import open_container

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.container import OutputContainer
    from av.packet import Packet

__all__ = ["SoundTrack"]

_COPIED: Final = frozenset({"aac", "mp3", "opus", "flac"})
"""Codecs that MP4 takes and browsers play. Others are decoded and encoded as AAC."""
_RATES: Final = frozenset({8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000})  # that AAC has here
_RATE: Final = 48_000
_PRIMING: Final = 2  # packets before the first picture that a decoder needs to start


class SoundTrack:
    """The sound of a source, as a stream of an open MP4. For one thread at a time.

    Attributes:
        notes: why it could not be carried over, or not to its end.
    """

    def __init__(self, out: OutputContainer, sound: Sound) -> None:
        """Add the stream, before anything is written. Sound that cannot be opened leaves a note and no stream."""
        from av.error import FFmpegError

        self.notes: list[str] = []
        self._out, self._sound, self._reached = out, sound, 0.0
        self._waiting: Packet[Any] | None = None
        self._packets: Iterator[Any] = iter(())
        self._container: Any = None
        try:
            self._container = open_container(sound.place, "its sound")
            self._stream = self._container.streams[sound.stream]
            self._packets = self._copied() if sound.codec in _COPIED else self._encoded()
        except (DataError, FFmpegError, ValueError, LookupError) as error:
            self.close()
            self.notes.append(f"its sound ({sound.codec}) cannot be carried over: {error}")

    def until(self, time: float | None) -> None:
        """Write what begins to sound before `time`; None: all the rest.

        Raises FFmpegError, OSError: the output cannot be written.
        """
        while (packet := self._pending()) is not None and (time is None or _seconds(packet) < time):
            self._waiting = None
            self._reached = _seconds(packet)
            self._out.mux(packet)

    def close(self) -> None:
        """Close what is read."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def _pending(self) -> Packet[Any] | None:
        """The next packet to write. Errors in reading end the sound with a note."""
        from av.error import FFmpegError

        if self._container is None or self._waiting is not None:
            return self._waiting
        try:
            packet = next(self._packets, None)
        except (FFmpegError, ValueError) as error:
            self.notes.append(f"its sound ends at {self._reached:.1f} s, where it cannot be read further: {error}")
            packet = None
        if packet is None:
            self.close()
        self._waiting = packet
        return packet

    def _copied(self) -> Iterator[Packet[Any]]:
        """The packets as they are, at times on the clock of the frames."""
        track = self._out.add_stream_from_template(self._stream)
        shift = round(self._sound.start / (self._stream.time_base or 1))

        def packets() -> Iterator[Packet[Any]]:
            for packet in self._container.demux(self._stream):
                if packet.dts is None:
                    continue
                packet.dts -= shift
                packet.pts = packet.dts if packet.pts is None else packet.pts - shift
                if packet.dts < -_PRIMING * (packet.duration or 0):
                    continue
                packet.stream = track
                yield packet

        return packets()

    def _encoded(self) -> Iterator[Packet[Any]]:
        """The sound as AAC."""
        from av.audio.resampler import AudioResampler

        context = self._stream.codec_context
        rate = context.sample_rate if context.sample_rate in _RATES else _RATE
        layout = "mono" if context.layout.nb_channels == 1 else "stereo"  # browsers play no more everywhere
        track: Any = self._out.add_stream("aac", rate=rate, layout=layout)
        resampler = AudioResampler("fltp", layout, rate, frame_size=1024)
        begin = self._sound.start

        def packets() -> Iterator[Packet[Any]]:
            for frame in _heard(self._container.decode(self._stream), begin):
                for part in resampler.resample(frame):
                    yield from track.encode(part)
            for part in resampler.resample(None):
                yield from track.encode(part)
            yield from track.encode(None)

        return packets()


def _seconds(packet: Packet[Any]) -> float:
    """When it has to be decoded."""
    return float((packet.dts or 0) * (packet.time_base or 0))


def _heard(frames: Iterator[AudioFrame], begin: float) -> Iterator[AudioFrame]:
    """The frames that end after `begin` seconds, with times that count from it."""
    for frame in frames:
        if frame.pts is None or frame.time_base is None:
            continue
        frame.pts -= round(begin / frame.time_base)
        if frame.pts + frame.samples / frame.sample_rate / frame.time_base > 0:
            yield frame
