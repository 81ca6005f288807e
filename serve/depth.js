/* Depth as numbers: what a message holds, depth at a pixel, colours, and the range that suits a scene. */

/* A message of serve/wire.py. */
export function decode(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const [height, width] = header.depth;
  const levels = new Uint16Array(buffer, 4 + length, height * width);
  const picture = new Blob([new Uint8Array(buffer, 4 + length + levels.byteLength)], { type: "image/jpeg" });
  return { header, depth: { levels, height, width, unit: header.unit, offset: header.offset, none: 0 }, picture };
}

/* A float32 array of two dimensions in NumPy's format, as depth whose levels are its numbers. Of metres, 0 is no depth. */
export function decodeNpy(buffer, metric) {
  const view = new DataView(buffer), long = view.getUint8(6) > 1;
  const start = long ? 12 : 10, length = long ? view.getUint32(8, true) : view.getUint16(8, true);
  const header = new TextDecoder("latin1").decode(new Uint8Array(buffer, start, length));
  const [, height, width] = header.match(/'<f4'.*'shape': \((\d+), (\d+)\)/).map(Number);
  const levels = new Float32Array(buffer, start + length, height * width);
  return { levels, height, width, unit: 1, offset: 0, none: metric ? 0 : NaN };
}

const isDepth = (level, none) => Number.isFinite(level) && level !== none;

/* For each of `goal` pixels: the two of `length` around it, and the second one's share; as depthkit's resize_depth. */
function neighbours(length, goal) {
  const before = new Uint32Array(goal), after = new Uint32Array(goal), share = new Float32Array(goal);
  for (let i = 0; i < goal; i++) {
    const centre = ((i + 0.5) * length) / goal - 0.5, floor = Math.floor(centre);
    before[i] = Math.min(Math.max(floor, 0), length - 1);
    after[i] = Math.min(Math.max(floor + 1, 0), length - 1);
    share[i] = centre - floor;
  }
  return { before, after, share };
}

/* The depth at pixel (row, column) of a frame of height x width; not a number where there is none. */
export function depthAt({ levels, height: h, width: w, unit, offset, none }, row, column, height, width) {
  const y = ((row + 0.5) * h) / height - 0.5, x = ((column + 0.5) * w) / width - 0.5;
  const top = Math.floor(y), left = Math.floor(x);
  const level = (r, c) => {
    const found = levels[Math.min(Math.max(r, 0), h - 1) * w + Math.min(Math.max(c, 0), w - 1)];
    return isDepth(found, none) ? found : NaN;
  };
  const between = (a, b, share) => (share ? a + share * (b - a) : a);
  const upper = between(level(top, left), level(top, left + 1), x - left);
  const lower = between(level(top + 1, left), level(top + 1, left + 1), x - left);
  return offset + unit * between(upper, lower, y - top);
}

/* Draws depth at any size: interpolates first and colours then, so that no false colours appear at edges. */
export class Painter {
  #key = "";

  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
  }

  /* `colours` are 256 pixels, from the depth `near` to `far`, of which either may be the larger. */
  paint(depth, height, width, colours, near, far) {
    this.#resize(depth, height, width);
    const { stretched, rows, columns, pixels } = this;
    const { levels, height: h, width: w } = depth;
    for (let row = 0; row < h; row++) {
      for (let i = 0, at = row * width, from = row * w; i < width; i++, at++) {
        const a = levels[from + columns.before[i]];
        stretched[at] = a + columns.share[i] * (levels[from + columns.after[i]] - a);
      }
    }
    const low = (near - depth.offset) / depth.unit, reach = (far - near) / depth.unit;
    const scale = 256 / (Math.abs(reach) > 1e-6 ? reach : 1e-6);
    for (let row = 0, at = 0; row < height; row++) {
      const share = rows.share[row];
      let upper = rows.before[row] * width, lower = rows.after[row] * width;
      for (let i = 0; i < width; i++, at++, upper++, lower++) {
        const level = (stretched[upper] + share * (stretched[lower] - stretched[upper]) - low) * scale;
        pixels[at] = colours[level > 255 ? 255 : level > 0 ? level | 0 : 0];
      }
    }
    this.context.putImageData(this.image, 0, 0);
  }

  #resize({ height: h, width: w }, height, width) {
    const key = [h, w, height, width].join();
    if (key === this.#key) return;
    this.#key = key;
    Object.assign(this.canvas, { height, width });
    this.image = this.context.createImageData(width, height);
    this.pixels = new Uint32Array(this.image.data.buffer);
    this.stretched = new Float32Array(h * width);
    this.rows = neighbours(h, height);
    this.columns = neighbours(w, width);
  }
}

/* 256 colours in base64 as pixels of an ImageData. */
export function pixelsOf(palette) {
  const bytes = Uint8Array.from(atob(palette), (letter) => letter.charCodeAt(0));
  const rgba = new Uint8ClampedArray(4 * 256).fill(255);
  for (let i = 0; i < 256; i++) rgba.set(bytes.subarray(3 * i, 3 * i + 3), 4 * i);
  return new Uint32Array(rgba.buffer);
}

/* A round number of at least `least`: 1, 2 or 5 times a power of ten. */
function round(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].find((n) => n * power >= least * 0.999) * power;
}

/* Round numbers to write at a colour bar, about `most` of them, with their text. */
export function ticksOf(low, high, most) {
  const step = round((high - low) / most), digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const found = [];
  for (let n = Math.ceil(low / step - 1e-6); n * step <= high + 1e-6 * step; n++) {
    found.push({ value: n * step, text: (n * step).toFixed(digits) });
  }
  return found;
}

const SETTLING_MS = 700;

/* A range [low, high] that follows the scene: round, and unchanged until the scene has left it or fills it no longer. */
export class AutoRange {
  range = null;
  at = -Infinity;

  /* `least` is the reach below which differences are noise. */
  constructor(least = 0) {
    this.least = least;
  }

  /* Look at the next frame's depth. */
  follow({ levels, unit, offset, none }) {
    const sampled = levels.filter((level, i) => i % 7 === 0 && isDepth(level, none)).sort();
    if (!sampled.length) return this.range ?? [0, 1];
    const at = (share) => offset + unit * sampled[Math.round(share * (sampled.length - 1))];
    const low = at(0.02), high = at(0.98);
    // Averages over the last second, so that one frame moves nothing.
    const now = performance.now(), fresh = 1 - Math.exp((this.at - now) / SETTLING_MS);
    this.at = now;
    this.low = low - (1 - fresh) * (low - (this.low ?? low));
    this.high = high - (1 - fresh) * (high - (this.high ?? high));
    const finest = 1e-4 * Math.max(Math.abs(this.low), Math.abs(this.high)); // of which float32 tells steps apart
    const span = Math.max(this.high - this.low, this.least, finest) || 1;
    const [least, most] = this.range ?? [Infinity, -Infinity];
    const left = least - this.low > 0.05 * span || this.high - most > 0.05 * span;
    if (left || most - least > 1.8 * span) {
      const step = round(span / 8);
      const from = Math.floor(this.low / step), to = Math.max(Math.ceil(this.high / step), from + 1);
      this.range = [from, to].map((steps) => Number((steps * step).toPrecision(6)));
    }
    return this.range;
  }
}
