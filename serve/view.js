/* The live page: draws the newest frame, and answers the server when it has. */
import { AutoRange, Painter, decode, depthAt, pixelsOf, ticksOf } from "./depth.js";

const MOST_PIXELS = 640 * 480 * 1.1; // that depth is drawn at; numbers are read from the depth itself
const FIGURES_MS = 500; // between two updates of the figures
const SPOKEN_MS = 500; // that the point rests before a screen reader says it

const $ = (id) => document.getElementById(id);
const pictures = document.querySelector(".pictures");
const painter = new Painter($("depth"));
const picture = $("picture").getContext("2d", { alpha: false });
const bar = $("bar").getContext("2d", { alpha: false });

let socket, hello, state = {}, shot = null, failed = false, wait = 500;
let colours, range = [0, 1] /* near and far */, auto = new AutoRange();
let point = null; // share of the picture's width and height
let speaking = 0;
const drawn = []; // the last frames: when they were drawn, their age and the engine's time

/* Server */

function connect() {
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/frames`);
  socket.binaryType = "arraybuffer";
  socket.onmessage = ({ data }) => (typeof data === "string" ? told(JSON.parse(data)) : received(data));
  socket.onclose = () => {
    if (failed) return;
    setStatus("connecting", "no connection; trying again");
    setTimeout(connect, (wait = Math.min(2 * wait, 8000)));
  };
}

function ask(wish) {
  if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(wish));
}

function told(message) {
  if (message.kind === "hello") greet(message);
  if (message.kind === "state") showState(message);
  if (message.kind === "error") {
    failed = true;
    $("error").textContent = message.text;
    $("error").hidden = false;
    setStatus("failed", "stopped");
    for (const control of [$("pause"), $("smooth")]) control.disabled = true;
  }
}

function greet(message) {
  hello = message;
  wait = 500;
  document.title = `${hello.title} – depthkit view`;
  $("title").textContent = hello.title;
  $("model").textContent = hello.model;
  if (!$("colormap").length) {
    $("colormap").append(...Object.keys(hello.palettes).map((name) => new Option(name)));
    $("colormap").value = hello.colormap;
    $("auto").checked = !hello.range;
    setUnit();
    setRange(hello.range ?? range);
  }
  $("smooth").disabled = hello.still;
  setColours();
  ask({ do: "watch", on: !document.hidden });
}

function showState(message) {
  state = message;
  $("smooth").checked = state.smooth;
  $("pause").disabled = hello.still || (state.ended && !state.again);
  $("pause").textContent = state.ended && state.again ? "Play again" : state.paused ? "Continue" : "Pause";
  const playing = hello.live ? ["live", "live"] : ["playing", hello.loop ? "playing in a loop" : "playing"];
  const resting = hello.still ? ["still", "one picture"] : ["ended", "end of the source"];
  setStatus(...(state.ended || hello.still ? resting : state.paused ? ["paused", "paused"] : playing));
  $("faults").replaceChildren(...state.faults.map((fault) => Object.assign(document.createElement("li"), { textContent: fault })));
  $("faults").hidden = !state.faults.length;
}

function setStatus(now, text) {
  $("status").dataset.now = now;
  if ($("status").textContent !== text) $("status").textContent = text;
}

/* Frames */

async function received(buffer) {
  const at = performance.now(), next = decode(buffer);
  const bitmap = await createImageBitmap(next.picture);
  requestAnimationFrame(() => {
    shot = next;
    const { height, width } = bitmap;
    if ($("picture").width !== width || $("picture").height !== height) Object.assign($("picture"), { height, width });
    picture.drawImage(bitmap, 0, 0);
    bitmap.close();
    if ($("auto").checked) follow();
    drawDepth();
    const now = performance.now();
    drawn.push({ at: now, age: shot.header.age + now - at, engine: shot.header.engine });
    while (drawn.length > 60 || now - drawn[0].at > 2000) drawn.shift();
    $("frame").textContent = hello.still ? shot.header.size.toReversed().join(" × ") : `frame ${shot.header.index}, ${shot.header.time.toFixed(2)} s`;
    ask({ do: "drawn" });
  });
}

function drawDepth() {
  if (!shot) return;
  const [tall, wide] = shot.header.size;
  const share = Math.min(1, Math.sqrt(MOST_PIXELS / (tall * wide)));
  const size = [tall, wide].map((side) => Math.max(1, Math.round(side * share)));
  painter.paint(shot.depth, ...size, colours, ...range);
  pictures.style.setProperty("--ratio", (wide / tall).toFixed(4));
  drawPoint();
}

function showFigures() {
  const middle = (of) => drawn.map((each) => each[of]).sort((a, b) => a - b)[drawn.length >> 1];
  const ms = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
  if (!shot || state.paused || failed) return;
  if (hello.still) $("engine").textContent = ms(shot.header.engine);
  if (state.ended) return;
  const span = drawn.length > 1 ? drawn.at(-1).at - drawn[0].at : 0;
  const idle = performance.now() - (drawn.at(-1)?.at ?? 0) > 2000;
  $("fps").textContent = idle ? "0" : span ? ((1000 * (drawn.length - 1)) / span).toFixed(1) : "–";
  if (!drawn.length) return;
  $("engine").textContent = ms(middle("engine"));
  $("age").textContent = ms(middle("age"));
  const { dropped, skipped, shown } = shot.header;
  $("dropped").textContent = dropped + skipped;
  $("of").textContent = ` of ${dropped + shown}`;
}

/* Range and colours */

/* Without metres, numbers have no unit, and the bar has none at all. */
function setUnit() {
  $("unit").hidden = !hello.metric;
  if (hello.metric) return;
  $("nearest").textContent = "Nearest";
  $("farthest").textContent = "Farthest";
  for (const input of [$("low"), $("high")]) Object.assign(input, { min: "", max: "", step: "any" });
}

/* The range that suits the scene; of inverse depth, the nearest is the largest. */
function follow() {
  const ends = auto.follow(shot.depth);
  setRange(hello.inverse ? ends.toReversed() : ends);
}

function setRange([low, high]) {
  range = [low, high];
  if ($("auto").checked) Object.assign($("low"), { value: low }), Object.assign($("high"), { value: high });
  else for (const [id, value] of [["low", low], ["high", high]]) if ($(id) !== document.activeElement) $(id).value = value;
  const key = `${low} ${high} ${$("ticks").clientWidth}`;
  if ($("ticks").dataset.key === key) return;
  $("ticks").dataset.key = key;
  const width = $("ticks").clientWidth, most = width < 400 ? 4 : width < 700 ? 6 : 9;
  const ticks = hello.metric
    ? ticksOf(low, high, most).map(({ value, text }) => ({ value, text: `${text} m` }))
    : [{ value: low, text: "near" }, { value: high, text: "far" }];
  $("ticks").replaceChildren(...ticks.map(({ value, text }) => {
    const tick = document.createElement("li"), share = (value - low) / (high - low);
    tick.style.left = `${100 * share}%`;
    tick.className = share < 0.02 ? "first" : share > 0.98 ? "last" : "";
    tick.textContent = text;
    return tick;
  }));
}

function typedRange() {
  $("auto").checked = false;
  const [low, high] = [$("low"), $("high")].map((input) => (input.value === "" ? NaN : Number(input.value)));
  const wrong = (hello.inverse ? low > high : low < high)
    ? ""
    : `The nearest depth must be ${hello.inverse ? "above" : "below"} the farthest.`;
  $("high").setCustomValidity(wrong);
  if (wrong || !$("low").checkValidity() || !$("high").checkValidity()) return;
  setRange([low, high]);
  drawDepth();
}

function setColours() {
  colours = pixelsOf(hello.palettes[$("colormap").value] ?? hello.palettes[hello.colormap]);
  bar.putImageData(new ImageData(new Uint8ClampedArray(colours.buffer.slice(0)), 256, 1), 0, 0);
  drawDepth();
}

/* The point that is measured */

const points = [...document.querySelectorAll(".stage")].map((stage) => {
  const mark = document.createElement("span");
  mark.className = "point";
  mark.hidden = true;
  const label = document.createElement("b");
  label.className = "figure";
  mark.append(label);
  stage.append(mark);
  const move = (event) => {
    const box = stage.getBoundingClientRect();
    movePoint((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  };
  stage.addEventListener("pointermove", move);
  stage.addEventListener("pointerdown", move);
  return { mark, label };
});

function movePoint(x, y) {
  const inside = (share) => Math.min(Math.max(share, 0), 1 - 1e-9);
  point = [inside(x), inside(y)];
  drawPoint();
  clearTimeout(speaking);
  speaking = setTimeout(() => ($("spoken").textContent = `${$("metres").textContent}, ${$("where").textContent}`), SPOKEN_MS);
}

function drawPoint() {
  if (!shot || !point) return;
  const [height, width] = shot.header.size;
  const [column, row] = [Math.floor(point[0] * width), Math.floor(point[1] * height)];
  const depth = depthAt(shot.depth, row, column, height, width);
  const number = () => (hello.metric ? `${depth.toFixed(depth < 1 ? 3 : 2)} m` : String(Number(depth.toPrecision(4))));
  const text = Number.isNaN(depth) ? "no depth" : number();
  for (const { mark, label } of points) {
    mark.hidden = false;
    mark.style.left = `${100 * point[0]}%`;
    mark.style.top = `${100 * point[1]}%`;
    mark.classList.toggle("left", point[0] > 0.75);
    label.textContent = text;
  }
  $("metres").textContent = text;
  $("where").textContent = `column ${column}, row ${row}`;
  const share = (depth - range[0]) / (range[1] - range[0]);
  $("marker").hidden = Number.isNaN(depth);
  $("marker").style.left = `${100 * Math.min(Math.max(share, 0), 1)}%`;
}

/* Controls */

const toggle = () => (state.ended ? ask({ do: "again" }) : ask({ do: "pause", on: !state.paused }));
$("pause").addEventListener("click", toggle);
$("smooth").addEventListener("change", () => ask({ do: "smooth", on: $("smooth").checked }));
$("colormap").addEventListener("change", setColours);
$("auto").addEventListener("change", () => {
  $("high").setCustomValidity("");
  auto = new AutoRange();
  if (!shot) return;
  if ($("auto").checked) follow();
  drawDepth();
});
for (const id of ["low", "high"]) $(id).addEventListener("input", typedRange);
$("controls").addEventListener("submit", (event) => event.preventDefault());
$("measured").addEventListener("keydown", (event) => {
  const [across, down] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
  if (!(across || down) || !shot) return;
  event.preventDefault();
  const [height, width] = shot.header.size, step = event.shiftKey ? 20 : 2;
  const to = (share, side, by) => (Math.floor(share * side) + by * step + 0.5) / side;
  movePoint(to(point?.[0] ?? 0.5, width, across), to(point?.[1] ?? 0.5, height, down));
});
$("measured").addEventListener("focus", () => point ?? movePoint(0.5, 0.5));
addEventListener("keydown", (event) => {
  if (event.key !== " " || event.target.closest("button, input, select") || $("pause").disabled) return;
  event.preventDefault();
  toggle();
});
addEventListener("resize", () => hello && setRange(range));
document.addEventListener("visibilitychange", () => hello && ask({ do: "watch", on: !document.hidden }));
setInterval(showFigures, FIGURES_MS);
connect();
