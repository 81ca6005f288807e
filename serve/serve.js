/* The page of `depthkit serve`: sends a picture, or one frame of the camera after the other, and shows its depth. */
import { decodeNpy } from "./depth.js";
import { Stage } from "./stage.js";

const LARGEST = 960; // pixels of the longer side of a picture as it is drawn
const FRAME = 640; // of a frame of the camera as it is sent
const QUALITY = 0.9; // of its JPEG
const BUSY_MS = 300; // until the next frame, after the server refused one

const $ = (id) => document.getElementById(id);
const stage = new Stage();
const picture = $("picture").getContext("2d", { alpha: false });

let token = sessionStorage.getItem("token") ?? "";
let blob = null, title = ""; // the picture that is shown, for another model
let stream = null; // of the camera
let asked = 0; // requests so far; the answer to an older one is not shown
const shown = []; // when the last frames of the camera were

/* Server */

async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  if (response.status === 401) $("key").hidden = false;
  const text = await response.text();
  let sentence = text;
  try {
    sentence = JSON.parse(text).error;
  } catch { /* it is no JSON */ }
  throw Object.assign(new Error(sentence || `the server answered ${response.status}`), { status: response.status });
}

async function start() {
  try {
    const models = await (await ask("v2/repository/index", { method: "POST" })).json();
    const palettes = await (await ask("palettes")).json();
    $("key").hidden = true;
    $("model").replaceChildren(...models.map(({ name, version }) => {
      const several = models.filter((other) => other.name === name).length > 1;
      return new Option(several ? `${name}, version ${version}` : name, `${name}/versions/${version}`);
    }));
    $("model").disabled = false;
    stage.offer(palettes, "turbo", null);
    await describe();
    setStatus("still", "ready");
    clearError();
  } catch (error) {
    fail(error);
  }
}

async function describe() {
  const { name, platform, parameters } = await (await ask(`v2/models/${$("model").value}`)).json();
  stage.describe(parameters.unit === "metres", parameters.answers === "inverse");
  const { max_abs_mm: mm, max_abs_percent: percent } = parameters.gate;
  const difference = mm == null ? `${percent?.toPrecision(2)} %` : `${mm.toPrecision(2)} mm`;
  const gate = mm == null && percent == null ? "" : `; within ${difference} of its reference`;
  const network = parameters.network === name ? "" : `${parameters.network}, `;
  $("about").textContent = `${name}: ${network}${parameters.precision} by ${platform}${gate}`;
}

/* The depth of a JPEG, PNG or WebP; null if a newer one was asked for in the meantime. */
async function depthOf(content) {
  const [model, version] = $("model").value.split("/versions/");
  const query = new URLSearchParams({ model, version, size: "engine" });
  const begin = performance.now(), number = ++asked;
  const response = await ask(`v1/depth?${query}`, {
    method: "POST", body: content, headers: { Accept: "application/x-npy", "Content-Type": content.type || "image/jpeg" },
  });
  const depth = decodeNpy(await response.arrayBuffer());
  const spent = Object.fromEntries(
    response.headers.get("Server-Timing").split(", ").map((entry) => entry.split(";dur=")).map(([phase, ms]) => [phase, Number(ms)]),
  );
  return number === asked ? { depth, spent, trip: performance.now() - begin } : null;
}

function show({ depth, spent, trip }, size) {
  stage.show(depth, size);
  const ms = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
  $("trip").textContent = ms(trip);
  $("engine").textContent = ms(spent.run);
  $("server").textContent = ms(Object.values(spent).reduce((sum, phase) => sum + phase, 0));
}

function draw(source, height, width) {
  const share = Math.min(1, LARGEST / Math.max(height, width));
  Object.assign($("picture"), { height: Math.round(height * share), width: Math.round(width * share) });
  picture.drawImage(source, 0, 0, $("picture").width, $("picture").height);
  $("pictures").style.setProperty("--ratio", (width / height).toFixed(4));
  delete $("pictures").dataset.empty;
}

/* A picture */

async function showPicture(content, name) {
  stopCamera();
  [blob, title] = [content, name];
  setStatus("connecting", `computing the depth of ${name}`);
  try {
    const bitmap = await createImageBitmap(content).catch(() => {
      throw new Error(`${name} is no picture that this browser opens; take a JPEG, PNG or WebP`);
    });
    const { height, width } = bitmap;
    draw(bitmap, height, width);
    bitmap.close();
    const found = await depthOf(content);
    if (!found) return;
    stage.restartRange();
    show(found, [height, width]);
    $("frame").textContent = `${width} × ${height}`;
    setStatus("still", name);
    clearError();
  } catch (error) {
    fail(error);
  }
}

/* The camera */

async function startCamera() {
  try {
    if (!navigator.mediaDevices) throw new Error("a browser gives its camera only to https:// and to localhost; forward the port (ssh -L), or use https");
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: FRAME } } });
  } catch (error) {
    fail(error.name === "NotAllowedError" ? new Error("the browser does not allow the camera") : error);
    return;
  }
  blob = null;
  clearError();
  $("camera").textContent = "Stop the camera";
  $("fps").textContent = "–";
  stage.restartRange();
  const video = Object.assign(document.createElement("video"), { srcObject: stream, muted: true, playsInline: true });
  await video.play();
  setStatus("live", "camera");
  play(video, stream);
}

function stopCamera() {
  if (!stream) return;
  for (const track of stream.getTracks()) track.stop();
  stream = null;
  shown.length = 0;
  $("camera").textContent = "Use the camera";
  setStatus("paused", "camera stopped");
}

/* One frame after the other: the next is taken when the last was answered, so that none is old. */
async function play(video, ours) {
  const canvas = document.createElement("canvas"), context = canvas.getContext("2d", { alpha: false });
  while (stream === ours) {
    await new Promise(requestAnimationFrame); // which waits while the page is hidden
    const { videoHeight: height, videoWidth: width } = video;
    if (!height || stream !== ours) continue;
    const share = Math.min(1, FRAME / Math.max(height, width));
    Object.assign(canvas, { height: Math.round(height * share), width: Math.round(width * share) });
    context.drawImage(video, 0, 0, canvas.width, canvas.height);
    const frame = await new Promise((done) => canvas.toBlob(done, "image/jpeg", QUALITY));
    try {
      const found = await depthOf(frame);
      if (!found || stream !== ours) continue;
      draw(canvas, canvas.height, canvas.width);
      show(found, [canvas.height, canvas.width]);
      $("frame").textContent = `${canvas.width} × ${canvas.height}`;
      countFrame();
      clearError();
    } catch (error) {
      if (stream !== ours) return;
      if (error.status !== 503) stopCamera();
      fail(error);
      await new Promise((done) => setTimeout(done, BUSY_MS));
    }
  }
}

function countFrame() {
  const now = performance.now();
  shown.push(now);
  while (now - shown[0] > 2000) shown.shift();
  if (shown.length > 1) $("fps").textContent = ((1000 * (shown.length - 1)) / (now - shown[0])).toFixed(1);
}

/* What is said */

function setStatus(now, text) {
  $("status").dataset.now = now;
  $("status").textContent = text;
}

function fail(error) {
  $("error").textContent = error.message;
  $("error").hidden = false;
  setStatus("failed", "no depth");
}

function clearError() {
  if ($("error").hidden) return;
  $("error").hidden = true;
  if (stream) setStatus("live", "camera");
}

/* Controls */

$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  if (file) showPicture(file, file.name);
  $("file").value = ""; // so that the same file can be chosen again
});
$("camera").addEventListener("click", () => (stream ? stopCamera() : startCamera()));
$("model").addEventListener("change", async () => {
  await describe().catch(fail);
  stage.restartRange();
  if (blob) showPicture(blob, title);
});
$("key").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  sessionStorage.setItem("token", token);
  start();
});
$("controls").addEventListener("submit", (event) => event.preventDefault());
for (const kind of ["dragover", "dragleave", "drop"]) {
  addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.toggle("dropping", kind === "dragover");
    const [file] = kind === "drop" ? event.dataTransfer.files : [];
    if (file) showPicture(file, file.name);
  });
}
start();
