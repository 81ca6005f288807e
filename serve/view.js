/* The live page: draws the newest frame, and answers the server when it has. */
import { decode } from "./depth.js";
import { Stage } from "./stage.js";

const FIGURES_MS = 500; // between two updates of the figures

const $ = (id) => document.getElementById(id);
const picture = $("picture").getContext("2d", { alpha: false });
const stage = new Stage();

let socket, hello, state = {}, shot = null, failed = false, wait = 500;
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
  stage.describe(hello.metric, hello.inverse);
  stage.offer(hello.palettes, hello.colormap, hello.range);
  $("smooth").disabled = hello.still;
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
    stage.show(shot.depth, shot.header.size);
    const now = performance.now();
    drawn.push({ at: now, age: shot.header.age + now - at, engine: shot.header.engine });
    while (drawn.length > 60 || now - drawn[0].at > 2000) drawn.shift();
    $("frame").textContent = hello.still ? shot.header.size.toReversed().join(" × ") : `frame ${shot.header.index}, ${shot.header.time.toFixed(2)} s`;
    ask({ do: "drawn" });
  });
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

/* Controls */

const toggle = () => (state.ended ? ask({ do: "again" }) : ask({ do: "pause", on: !state.paused }));
$("pause").addEventListener("click", toggle);
$("smooth").addEventListener("change", () => ask({ do: "smooth", on: $("smooth").checked }));
$("controls").addEventListener("submit", (event) => event.preventDefault());
addEventListener("keydown", (event) => {
  if (event.key !== " " || event.target.closest("button, input, select, summary") || $("pause").disabled) return;
  event.preventDefault();
  toggle();
});
document.addEventListener("visibilitychange", () => hello && ask({ do: "watch", on: !document.hidden }));
setInterval(showFigures, FIGURES_MS);
connect();
