"""Random numbers, materials and procedural textures of the built-in rooms (see `scenes`).

This module uses only integers and operations that IEEE 754 rounds correctly (+ - * / sqrt floor, comparisons).
Their result does not depend on an element's position in a tensor, while exp, sin or pow may differ in the last bit
between a vector lane and a loop's scalar tail. So a scene's picture does not depend on the rest of its batch. Sums
over three axes are written out for the same reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "Draws",
    "Materials",
    "Sensor",
    "albedo",
    "develop",
    "draw_materials",
    "draw_sensor",
    "gather_rows",
    "preset_rows",
]

_BLOCK = 2048  # most uniform numbers per scene
_TILE = 256  # side of the noise tile in texels; a power of two, so that wrapping is a bit mask

Range = tuple[float, float]
Table = TypeVar("Table", bound="tuple[Tensor, ...]")


class Draws:
    """Uniform random numbers for a batch of scenes, drawn in a fixed order.

    Each seed has its own counter-based generator (Philox: Salmon et al., "Parallel random numbers: as easy as
    1, 2, 3", 2011), so a scene's numbers depend on its seed alone, and no global generator is used.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        blocks = [np.random.Generator(np.random.Philox(seed)).random(_BLOCK) for seed in seeds]
        self._block = torch.from_numpy(np.stack(blocks))
        self._used = 0

    def uniform(self, low: float | Tensor, high: float | Tensor, *shape: int) -> Tensor:
        """The next numbers, float64 (B, *shape), uniform in low .. high (both broadcast)."""
        start, self._used = self._used, self._used + int(np.prod(shape, dtype=int))
        unit = self._block[:, start : self._used].reshape(-1, *shape)
        return low + (high - low) * unit

    def pick(self, count: int, *shape: int) -> Tensor:
        """The next integers, int64 (B, *shape), uniform in 0 .. count - 1."""
        return self.uniform(0.0, count, *shape).long()

    def chance(self, probability: float | Tensor, *shape: int) -> Tensor:
        """The next booleans (B, *shape), true with this probability."""
        return self.uniform(0.0, 1.0, *shape) < probability


class Preset(NamedTuple):
    """A family of textures: a grid of cells with joints, plus grain. Lengths are in metres.

    The mix between the first and the second colour is the sum of cell parity (checker, stripes), a tint per
    cell (planks, books) and fractal noise (grain); joints always take the second colour.
    """

    red: float
    green: float
    blue: float
    spread: float = 0.12  # range of variation of each colour channel
    gain: Range = (0.6, 0.85)  # second colour relative to the first
    period_u: Range = (9.0, 9.0)
    period_v: Range = (9.0, 9.0)
    fit: float = 0.0  # 1: periods are fractions of the primitive's width and height
    shift: float = 0.0  # offset of each row in cells (a running bond is 0.5)
    joint: float = 0.0
    parity_u: float = 0.0
    parity_v: float = 0.0
    tint: float = 0.0
    noise: float = 0.15
    grain_u: float = 60.0  # noise texels per metre
    grain_v: float = 60.0
    specular: Range = (0.0, 0.1)
    emission: float = 0.0


_SQUARE: Range = (0.15, 0.5)
_PRESETS = {
    "paint": Preset(0.74, 0.69, 0.61, spread=0.16),
    "white": Preset(0.85, 0.84, 0.81, spread=0.06, noise=0.08),
    "plaster": Preset(0.70, 0.66, 0.58, spread=0.2, noise=0.7, grain_u=45, grain_v=45),
    "colour": Preset(0.45, 0.42, 0.42, spread=0.7, specular=(0.0, 0.5)),
    "stripes": Preset(0.68, 0.64, 0.58, 0.25, (0.7, 0.92), (0.05, 0.3), parity_u=1, noise=0.1),
    "wood": Preset(0.50, 0.34, 0.21, 0.12, (0.45, 0.75), noise=1.2, grain_u=14, grain_v=170, specular=(0.05, 0.3)),
    "planks": Preset(
        0.52, 0.36, 0.23, 0.12, (0.5, 0.75), (0.7, 1.6), (0.08, 0.18), shift=0.37, joint=0.005, tint=0.9, noise=0.8,
        grain_u=14, grain_v=150, specular=(0.05, 0.45),
    ),
    "tiles": Preset(
        0.66, 0.63, 0.58, 0.2, (0.55, 0.8), _SQUARE, _SQUARE, joint=0.01, tint=0.25, noise=0.25, specular=(0.1, 0.6)
    ),
    "checker": Preset(
        0.70, 0.67, 0.62, 0.2, (0.25, 0.8), _SQUARE, _SQUARE, parity_u=1, parity_v=1, noise=0.15, specular=(0.0, 0.5)
    ),
    "bricks": Preset(
        0.48, 0.27, 0.2, 0.14, (1.3, 1.6), (0.2, 0.26), (0.07, 0.09), shift=0.5, joint=0.012, tint=0.9, noise=0.5
    ),
    "carpet": Preset(0.42, 0.37, 0.34, 0.35, (0.4, 0.7), noise=1.3, grain_u=130, grain_v=130, specular=(0, 0)),
    "marble": Preset(0.68, 0.66, 0.63, 0.15, (0.35, 0.7), noise=1.4, grain_u=40, grain_v=70, specular=(0.3, 0.7)),
    "fabric": Preset(0.40, 0.37, 0.36, 0.5, (0.55, 0.8), noise=0.9, grain_u=200, grain_v=200, specular=(0, 0)),
    "panels": Preset(
        0.62, 0.52, 0.42, 0.25, (0.35, 0.6), (0.5, 0.5), (0.34, 1.0), fit=1, joint=0.012, noise=0.4, grain_u=170,
        grain_v=14, specular=(0.05, 0.3),
    ),
    "ceiling": Preset(0.82, 0.81, 0.78, 0.06, (0.75, 0.85), (0.6, 0.6), (0.6, 0.6), joint=0.02, noise=0.15),
    "books": Preset(0.45, 0.36, 0.32, 0.5, (0.2, 1.6), (0.025, 0.05), joint=0.004, tint=2.2),
    "picture": Preset(0.5, 0.46, 0.4, 0.6, (0.1, 0.9), (1, 1), (1, 1), fit=1, joint=0.035, noise=3.0),
    "window": Preset(
        0.78, 0.85, 0.95, 0.1, (0.15, 0.4), (0.5, 0.5), (0.5, 1.0), fit=1, joint=0.04, noise=0.5, grain_u=25,
        grain_v=25, emission=1.5,
    ),
    "door": Preset(0.6, 0.5, 0.4, 0.3, (0.7, 0.9), (1, 1), (0.5, 0.5), fit=1, joint=0.1, specular=(0.1, 0.3)),
    "lamp": Preset(0.9, 0.88, 0.82, 0.05, emission=2.0),
}  # fmt: skip


def preset_rows(options: Sequence[Sequence[str]]) -> Tensor:
    """Numbers of presets, int64 (len(options), n), from n names per row."""
    names = list(_PRESETS)
    return torch.tensor([[names.index(name) for name in line] for line in options])


class Materials(NamedTuple):
    """Texture and reflectance, one value per row (B, M), or per pixel (B, N) once gathered. Lengths are in metres."""

    red: Tensor
    green: Tensor
    blue: Tensor
    red2: Tensor
    green2: Tensor
    blue2: Tensor
    period_u: Tensor
    period_v: Tensor
    shift: Tensor
    joint: Tensor
    parity_u: Tensor
    parity_v: Tensor
    tint: Tensor
    noise: Tensor
    grain_u: Tensor
    grain_v: Tensor
    salt: Tensor  # shifts the noise and seeds the tint, so that equal presets differ
    specular: Tensor
    gloss: Tensor
    emission: Tensor


def draw_materials(draws: Draws, kind: Tensor, width: Tensor, height: Tensor) -> Materials:
    """Draw the materials of rows, given their presets `kind` (int64) and their sizes in metres, all (B, M)."""
    rows = kind.shape[1]
    table = torch.from_numpy(np.stack([np.hstack(preset) for preset in _PRESETS.values()]))[kind]
    (red, green, blue, spread, gain0, gain1, u0, u1, v0, v1, fit, shift, joint, *cells, spec0, spec1, emission) = (
        table.unbind(-1)
    )
    brightness = draws.uniform(0.65, 1.2, rows)
    first = [
        (mean * brightness + spread * draws.uniform(-0.5, 0.5, rows)).clamp(0.04, 0.92) for mean in (red, green, blue)
    ]
    gain = draws.uniform(gain0, gain1, rows)
    second = [(c * gain + 0.5 * spread * draws.uniform(-0.5, 0.5, rows)).clamp(0.03, 0.92) for c in first]
    size = draws.uniform(0.0, 1.0, rows)  # one number for both sides keeps square cells square
    period_u = (u0 + (u1 - u0) * size) * torch.where(fit > 0, width, 1.0)
    period_v = (v0 + (v1 - v0) * size) * torch.where(fit > 0, height, 1.0)
    salt = draws.uniform(0.0, 4096.0, rows).floor()
    specular, gloss = draws.uniform(spec0, spec1, rows), draws.uniform(0.0, 1.0, rows)
    columns = (*first, *second, period_u, period_v, shift, joint, *cells, salt, specular, gloss, emission)
    return Materials(*columns)


def gather_rows(table: Table, row: Tensor) -> Table:
    """Index a tuple of (B, M) columns by row numbers (B, N) int64: the same tuple with (B, N) columns."""
    columns = torch.stack(list(table))
    found = columns.gather(2, row.expand(len(table), *row.shape))
    return type(table)(*found)


def albedo(m: Materials, u: Tensor, v: Tensor, footprint: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Diffuse reflectance (red, green, blue), each (B, N), at surface coordinates u, v in metres.

    `footprint` is the width in metres that a pixel covers. Cells finer than that fade to their mean; joints widen and
    fade. This prevents aliasing of distant textures.
    """
    row_number = (v / m.period_v).floor()
    across = u / m.period_u + row_number * m.shift
    column_number = across.floor()
    in_u = (across - column_number) * m.period_u
    in_v = v - row_number * m.period_v

    stripe = column_number * m.parity_u + row_number * m.parity_v
    parity = stripe - 2.0 * (0.5 * stripe).floor()
    tint = _tint(column_number, row_number, m.salt)
    contrast = (torch.minimum(m.period_u, m.period_v) / footprint - 1.0).clamp(0.0, 1.0)
    grain = _fractal_noise(u * m.grain_u + 17.0 * m.salt, v * m.grain_v + 29.0 * m.salt)
    mix = contrast * ((parity - 0.5) * (m.parity_u + m.parity_v).clamp(max=1.0) + (tint - 0.5) * m.tint)
    mix = mix + (grain - 0.5) * m.noise + 0.5

    edge = torch.minimum(torch.minimum(in_u, m.period_u - in_u), torch.minimum(in_v, m.period_v - in_v))
    width = torch.maximum(m.joint, footprint)
    line = (0.5 + (0.5 * width - edge) / footprint).clamp(0.0, 1.0) * (m.joint / width)
    mix = mix + (1.0 - mix) * line
    red = (m.red + (m.red2 - m.red) * mix).clamp(0.02, 0.95)
    green = (m.green + (m.green2 - m.green) * mix).clamp(0.02, 0.95)
    blue = (m.blue + (m.blue2 - m.blue) * mix).clamp(0.02, 0.95)
    return red, green, blue


class Sensor(NamedTuple):
    """Effects of a camera's sensor on a picture, each (B, 1) except the balance."""

    mean: Tensor  # mean radiance after exposure
    balance: Tensor  # (B, 3): white balance gains
    vignette: Tensor  # loss of light in the corners
    blur: Tensor  # weight of each neighbouring pixel
    noise: Tensor  # standard deviation at full scale
    salt: Tensor  # start of the noise sequence


def draw_sensor(draws: Draws) -> Sensor:
    """Draw the sensors of a batch."""
    return Sensor(
        mean=draws.uniform(0.2, 0.5, 1),
        balance=draws.uniform(0.9, 1.1, 3),
        vignette=draws.uniform(0.0, 0.35, 1),
        blur=draws.uniform(0.05, 0.2, 1),
        noise=draws.uniform(0.003, 0.02, 1),
        salt=draws.uniform(0.0, 2.0**20, 1).floor(),
    )


def develop(radiance: Tensor, sensor: Sensor, size: tuple[int, int]) -> Tensor:
    """Turn radiance (3, B, H * W) into pictures, uint8 (B, H, W, 3): blur, exposure, vignetting, noise, tone curve."""
    height, width = size
    image = _blur(radiance.reshape(3, -1, height, width), sensor.blur[..., None])
    level = (radiance[0] + radiance[1] + radiance[2]) / 3.0
    total = (level.clamp(max=2.0) * 65536.0).long().sum(1, keepdim=True)  # integer sums do not depend on the order
    exposure = sensor.mean * (65536.0 * height * width) / total.clamp(min=1)
    down = (2.0 * torch.arange(height, device=image.device) + 1.0 - height)[:, None]
    across = 2.0 * torch.arange(width, device=image.device) + 1.0 - width
    corner = (down * down + across * across) / (height * height + width * width)  # 1 in the corners
    image = image * (exposure * sensor.balance).T[..., None, None] * (1.0 - sensor.vignette[..., None] * corner)
    image = image * (1.0 + image / 9.0) / (1.0 + image)  # Reinhard et al. 2002, white at 3
    image = image.clamp(0.0, 1.0).sqrt()  # gamma 2, near sRGB's
    noise = _sensor_noise(sensor.salt[..., None], size) * sensor.noise[..., None]
    return ((image + noise).clamp(0.0, 1.0) * 255.0 + 0.5).to(torch.uint8).permute(1, 2, 3, 0).contiguous()


def _blur(image: Tensor, weight: Tensor) -> Tensor:
    """The lens: a separable three-tap filter over (..., H, W) that repeats the border."""
    for dim in (-1, -2):
        last = image.shape[dim] - 1
        before = torch.cat((image.narrow(dim, 0, 1), image.narrow(dim, 0, last)), dim)
        after = torch.cat((image.narrow(dim, 1, last), image.narrow(dim, last, 1)), dim)
        image = image * (1.0 - 2.0 * weight) + (before + after) * weight
    return image


def _sensor_noise(salt: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearly normal noise (3, B, H, W) of unit variance: the sum of four uniform bytes (Irwin-Hall)."""
    pixel = torch.arange(3 * size[0] * size[1], device=salt.device).reshape(3, 1, *size)
    bits = _hash32((pixel + 4099 * salt.long()) & 0xFFFFFFFF)
    total = (bits & 255) + (bits >> 8 & 255) + (bits >> 16 & 255) + (bits >> 24)
    return (total.float() - 510.0) / 147.8


def _hash32(x: Tensor) -> Tensor:
    """Hash integers (int64, 0 .. 2^32 - 1) to 32 bits by rounds of xor-shift and multiply.

    After the finaliser of MurmurHash3 (Appleby 2011), with multipliers below 2^31 so that no product overflows int64.
    """
    x = ((x ^ (x >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x2C1B3C6D) & 0xFFFFFFFF
    return x ^ (x >> 16)


def _tint(column: Tensor, row: Tensor, salt: Tensor) -> Tensor:
    """A random number in 0 .. 1 for each cell."""
    key = (column.long() + 269 * row.long() + 7919 * salt.long()) & 0xFFFFFFFF
    return (_hash32(key) & 0xFFFF).float() / 65535.0


def _fractal_noise(u: Tensor, v: Tensor) -> Tensor:
    """Fractal noise in 0 .. 1, mean 0.5, at texel coordinates: the tile, repeated and bilinearly interpolated."""
    tile = _noise_tile(u.device)
    u0, v0 = u.floor(), v.floor()
    fu, fv = u - u0, v - v0
    left, right = u0.long() & (_TILE - 1), (u0.long() + 1) & (_TILE - 1)
    top = (v0.long() & (_TILE - 1)) * _TILE
    bottom = ((v0.long() + 1) & (_TILE - 1)) * _TILE
    upper = tile.take(top + left) * (1.0 - fu) + tile.take(top + right) * fu
    lower = tile.take(bottom + left) * (1.0 - fu) + tile.take(bottom + right) * fu
    return upper * (1.0 - fv) + lower * fv


@lru_cache(maxsize=8)
def _noise_tile(device: torch.device) -> Tensor:
    """A periodic tile of value noise summed over octaves (fBm; Ebert et al., "Texturing and Modeling", 2003)."""
    random = np.random.Generator(np.random.Philox(2003))
    total = np.zeros((_TILE, _TILE))
    for octave in range(6):
        cells = 4 << octave
        lattice = random.random((cells, cells)) - 0.5
        place = np.arange(_TILE) * cells / _TILE
        low = place.astype(int)
        weight = (place - low) ** 2 * (3.0 - 2.0 * (place - low))
        high = (low + 1) % cells
        rows = lattice[low] * (1.0 - weight)[:, None] + lattice[high] * weight[:, None]
        total += 0.62**octave * (rows[:, low] * (1.0 - weight) + rows[:, high] * weight)
    tile = np.clip(0.5 + 0.22 * total / total.std(), 0.0, 1.0)
    return torch.from_numpy(tile.astype(np.float32)).to(device)
