/* Depth on a page: drawn in colours over a range, with a colour bar, and the number at a point.
   view.html and serve.html have the elements that it looks for. */
import { AutoRange, Painter, depthAt, pixelsOf, ticksOf } from "./depth.js";

const MOST_PIXELS = 640 * 480 * 1.1; // that depth is drawn at; numbers are read from the depth itself
const SPOKEN_MS = 500; // that the point rests before a screen reader says it
const FARTHEST = 1000; // metres that a range may reach to
const LEAST_REACH = 0.05; // metres of the range that follows the scene

const $ = (id) => document.getElementById(id);

export class Stage {
  depth = null; // as depth.js decodes it
  size = null; // height and width of the picture

  #painter = new Painter($("depth"));
  #bar = $("bar").getContext("2d", { alpha: false });
  #pictures = document.querySelector(".pictures");
  #marks = [...document.querySelectorAll(".stage")].map((stage) => this.#markOn(stage));
  #auto = new AutoRange(LEAST_REACH);
  #metric = true;
  #inverse = false;
  #range = [0, 1]; // near and far; of inverse depth, near is the larger
  #point = null; // share of the picture's width and height
  #speaking = 0;
  #palettes = {};
  #colours;

  constructor() {
    $("colormap").addEventListener("change", () => this.#setColours());
    $("auto").addEventListener("change", () => this.#restartRange());
    for (const id of ["low", "high"]) $(id).addEventListener("input", () => this.#typedRange());
    $("measured").addEventListener("keydown", (event) => this.#moveByKey(event));
    $("measured").addEventListener("focus", () => this.#point ?? this.#movePoint(0.5, 0.5));
    addEventListener("resize", () => this.#setRange(this.#range));
  }

  /* What depth's numbers are: metres, or without a unit; inverse depth, or depth. */
  describe(metric, inverse) {
    if (metric === this.#metric && inverse === this.#inverse) return;
    $("auto").checked = true; // a range that was typed is in other numbers
    this.#refuseRange("");
    [this.#metric, this.#inverse] = [metric, inverse];
    this.clear();
    $("unit").hidden = !metric;
    for (const [id, text] of [["nearest", "Nearest"], ["farthest", "Farthest"]]) $(id).textContent = metric ? `${text}, in metres` : text;
    const limits = metric ? { min: 0, max: FARTHEST } : { min: "", max: "" };
    for (const input of [$("low"), $("high")]) Object.assign(input, limits);
  }

  /* What to choose from: colormaps by name, the one at first, and a range or null, which follows the scene. */
  offer(palettes, colormap, range) {
    this.#palettes = palettes;
    if (!$("colormap").length) {
      $("colormap").append(...Object.keys(palettes).map((name) => new Option(name)));
      $("colormap").value = colormap;
      $("auto").checked = !range;
      this.#setRange(range ?? this.#range);
    }
    this.#setColours();
  }

  /* Draw the depth of a picture of this size. */
  show(depth, size) {
    Object.assign(this, { depth, size });
    this.#pictures.dataset.depth = "";
    if ($("auto").checked) this.#follow();
    this.#draw();
  }

  /* Show no depth until the next `show`. The range will follow that, and not the scenes so far. */
  clear() {
    this.depth = null;
    this.#forgetScenes();
    delete this.#pictures.dataset.depth;
    $("metres").textContent = "–";
    $("where").textContent = "";
  }

  #forgetScenes() {
    this.#auto = new AutoRange(this.#metric ? LEAST_REACH : 0);
  }

  #restartRange() {
    this.#refuseRange("");
    this.#forgetScenes();
    if (this.depth && $("auto").checked) this.#follow();
    this.#draw();
  }

  #draw() {
    if (!this.depth) return;
    const [tall, wide] = this.size;
    const share = Math.min(1, Math.sqrt(MOST_PIXELS / (tall * wide)));
    const size = [tall, wide].map((side) => Math.max(1, Math.round(side * share)));
    this.#painter.paint(this.depth, ...size, this.#colours, ...this.#range);
    this.#pictures.style.setProperty("--ratio", (wide / tall).toFixed(4));
    this.#drawPoint();
  }

  /* Range and colours */

  /* The range that suits the scene. */
  #follow() {
    const ends = this.#auto.follow(this.depth);
    this.#setRange(this.#inverse ? ends.toReversed() : ends);
  }

  #setRange([low, high]) {
    this.#range = [low, high];
    if ($("auto").checked) Object.assign($("low"), { value: low }), Object.assign($("high"), { value: high });
    else for (const [id, value] of [["low", low], ["high", high]]) if ($(id) !== document.activeElement) $(id).value = value;
    const width = $("ticks").clientWidth, key = `${low} ${high} ${width} ${this.#metric}`;
    if ($("ticks").dataset.key === key) return;
    $("ticks").dataset.key = key;
    const ticks = this.#metric
      ? ticksOf(low, high, width < 400 ? 4 : width < 700 ? 6 : 9).map(({ value, text }) => ({ value, text: `${text} m` }))
      : [{ value: low, text: "near" }, { value: high, text: "far" }];
    $("ticks").replaceChildren(...ticks.map(({ value, text }) => {
      const tick = document.createElement("li"), share = (value - low) / (high - low);
      tick.style.left = `${100 * share}%`;
      tick.className = share < 0.02 ? "first" : share > 0.98 ? "last" : "";
      tick.textContent = text;
      return tick;
    }));
  }

  #typedRange() {
    $("auto").checked = false;
    const [low, high] = [$("low"), $("high")].map((input) => (input.value === "" ? NaN : Number(input.value)));
    const wrong = this.#faultOf(low, high);
    this.#refuseRange(wrong);
    if (wrong) return;
    this.#setRange([low, high]);
    this.#draw();
  }

  #faultOf(low, high) {
    if (Number.isNaN(low) || Number.isNaN(high)) return "The range needs two numbers.";
    if (this.#metric && [low, high].some((end) => end < 0 || end > FARTHEST)) return `Give depths from 0 to ${FARTHEST} m.`;
    if (this.#inverse ? low > high : low < high) return "";
    return `The nearest depth must be ${this.#inverse ? "above" : "below"} the farthest.`;
  }

  /* Say what is wrong with the range that was typed; empty: nothing. */
  #refuseRange(wrong) {
    for (const input of [$("low"), $("high")]) input.setCustomValidity(wrong);
    if ($("wrong").textContent !== wrong) $("wrong").textContent = wrong; // which is spoken, once for all keys
  }

  #setColours() {
    this.#colours = pixelsOf(this.#palettes[$("colormap").value] ?? Object.values(this.#palettes)[0]);
    this.#bar.putImageData(new ImageData(new Uint8ClampedArray(this.#colours.buffer.slice(0)), 256, 1), 0, 0);
    this.#draw();
  }

  /* The point that is measured */

  #markOn(stage) {
    const mark = document.createElement("span");
    mark.className = "point";
    mark.hidden = true;
    const label = document.createElement("b");
    label.className = "figure";
    mark.append(label);
    stage.append(mark);
    const move = (event) => {
      const box = stage.getBoundingClientRect();
      this.#movePoint((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
    };
    stage.addEventListener("pointermove", move);
    stage.addEventListener("pointerdown", move);
    return { mark, label };
  }

  #movePoint(x, y) {
    const inside = (share) => Math.min(Math.max(share, 0), 1 - 1e-9);
    this.#point = [inside(x), inside(y)];
    this.#drawPoint();
    clearTimeout(this.#speaking);
    const speak = () => {
      $("spoken").textContent = this.depth ? `${$("metres").textContent}, ${$("where").textContent}` : "no depth yet";
    };
    this.#speaking = setTimeout(speak, SPOKEN_MS);
  }

  #moveByKey(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const [across, down] = steps[event.key] ?? [0, 0];
    if (!(across || down) || !this.depth) return;
    event.preventDefault();
    const [height, width] = this.size, step = event.shiftKey ? 20 : 2;
    const to = (share, side, by) => (Math.floor(share * side) + by * step + 0.5) / side;
    this.#movePoint(to(this.#point?.[0] ?? 0.5, width, across), to(this.#point?.[1] ?? 0.5, height, down));
  }

  #drawPoint() {
    if (!this.depth || !this.#point) return;
    const [height, width] = this.size;
    const [column, row] = [Math.floor(this.#point[0] * width), Math.floor(this.#point[1] * height)];
    const found = depthAt(this.depth, row, column, height, width);
    const number = () => (this.#metric ? `${found.toFixed(found < 1 ? 3 : 2)} m` : String(Number(found.toPrecision(4))));
    const text = Number.isNaN(found) ? "no depth" : number();
    for (const { mark, label } of this.#marks) {
      mark.hidden = false;
      mark.style.left = `${100 * this.#point[0]}%`;
      mark.style.top = `${100 * this.#point[1]}%`;
      mark.classList.toggle("left", this.#point[0] > 0.75);
      label.textContent = text;
    }
    $("metres").textContent = text;
    $("where").textContent = `column ${column}, row ${row}`;
    const share = (found - this.#range[0]) / (this.#range[1] - this.#range[0]);
    $("marker").hidden = Number.isNaN(found);
    $("marker").style.left = `${100 * Math.min(Math.max(share, 0), 1)}%`;
  }
}
