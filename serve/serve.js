/* The page of `depthkit serve`: sends a picture, or one frame of the camera after the other, and shows its depth. */
import { decodeNpy } from "./depth.js";
import { Stage } from "./stage.js";

const LARGEST = 960; // pixels of the longer side of a picture as it is drawn
const FRAME = 640; // of a frame of the camera as it is sent
const QUALITY = 0.9; // of its JPEG
const BUSY_MS = 300; // until the next frame, after the server refused one
const CALM_MS = 2000; // without a refusal, until the last one is no longer shown
const PHASES = ["decode", "queue", "run", "encode"]; // of Server-Timing; a proxy may add its own

const $ = (id) => document.getElementById(id);
const stage = new Stage();
const picture = $("picture").getContext("2d", { alpha: false });

let token = sessionStorage.getItem("token") ?? "";
let model = null; // as described last: its path, and the unit of its depth
let blob = null, title = ""; // the picture that is shown, for another model
let camera = null; // from the click until it is stopped; its stream is null until the browser gives it
let asked = 0; // pictures and frames so far; the answer to an older one is not shown
const shown = []; // when the last frames of the camera were

/* Server */

/* The headers and body of an answer. Throws Error: a sentence, and the status if the server answered. */
async function ask(path, options = {}) {
  const headers = new Headers({ ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) });
  let response, body;
  try {
    response = await fetch(path, { ...options, headers });
    body = await response.arrayBuffer();
  } catch {
    throw new Error("the server does not answer; it was stopped, or the connection was lost");
  }
  if (response.ok) return { headers: response.headers, body };
  if (response.status === 401) $("key").hidden = false;
  throw Object.assign(new Error(refusal(response.status, body)), { status: response.status });
}

function refusal(status, body) {
  if (status === 401) return token ? "this is not the token of this server" : "this server wants its token";
  try {
    return parsed(body).error || `the server answered ${status}`;
  } catch { // it is a proxy's page
    return `the server answered ${status}`;
  }
}

const parsed = (body) => JSON.parse(new TextDecoder().decode(body));

async function start() {
  clearError();
  try {
    const models = parsed((await ask("v2/repository/index", { method: "POST" })).body);
    const palettes = parsed((await ask("palettes")).body);
    if (!$("key").hidden) $("file").focus(); // the form had it
    $("key").hidden = true;
    $("model").replaceChildren(...models.map(({ name, version }) => {
      const several = models.filter((other) => other.name === name).length > 1;
      return new Option(several ? `${name}, version ${version}` : name, `${name}/versions/${version}`);
    }));
    $("model").disabled = false;
    stage.offer(palettes, "turbo", null);
    await describe();
    setStatus("still", "ready");
  } catch (error) {
    fail(error);
  }
}

async function describe() {
  const path = $("model").value;
  const { name, platform, parameters } = parsed((await ask(`v2/models/${path}`)).body);
  if (path !== $("model").value) return;
  const { unit, answers } = parameters.v1_depth;
  model = { path, unit };
  stage.describe(unit === "metres", answers === "inverse");
  const { max_abs_mm: mm, max_abs_percent: percent } = parameters.gate;
  const difference = mm == null ? `${percent?.toPrecision(2)} %` : `${mm.toPrecision(2)} mm`;
  const gate = mm == null && percent == null ? "" : `; within ${difference} of its reference`;
  const network = parameters.network === name ? "" : `${parameters.network}, `;
  $("about").textContent = `${name}: ${network}${parameters.precision} by ${platform}${gate}`;
}

/* The depth of a JPEG, PNG or WebP, the `number`th that was asked for; null if it is no longer wanted. */
async function depthOf(content, number) {
  const path = $("model").value, [name, version] = path.split("/versions/");
  if (path !== model?.path) await describe();
  const query = new URLSearchParams({ model: name, version, size: "engine" });
  const begin = performance.now();
  const { headers, body } = await ask(`v1/depth?${query}`, {
    method: "POST", body: content, headers: { Accept: "application/x-npy", "Content-Type": content.type || "image/jpeg" },
  });
  const trip = performance.now() - begin, unit = headers.get("Depth-Unit") ?? model?.unit;
  const isWanted = () => number === asked && path === $("model").value;
  if (isWanted() && unit !== model.unit) await describe(); // the engine was opened again, with a scale or without
  if (!isWanted()) return null;
  const timing = (headers.get("Server-Timing") ?? "").matchAll(/(\w+);dur=([\d.]+)/g);
  const spent = Object.fromEntries([...timing].map(([, phase, ms]) => [phase, Number(ms)]));
  return { depth: decodeNpy(body, unit === "metres"), spent, trip };
}

function show({ depth, spent, trip }, size) {
  stage.show(depth, size);
  const ms = (value) => (Number.isFinite(value) ? `${value < 10 ? value.toFixed(1) : Math.round(value)} ms` : "–");
  $("trip").textContent = ms(trip);
  $("engine").textContent = ms(spent.run);
  $("server").textContent = ms(PHASES.reduce((sum, phase) => sum + spent[phase], 0));
}

function draw(source, height, width) {
  const share = Math.min(1, LARGEST / Math.max(height, width));
  Object.assign($("picture"), { height: Math.round(height * share), width: Math.round(width * share) });
  picture.drawImage(source, 0, 0, $("picture").width, $("picture").height);
  $("pictures").style.setProperty("--ratio", (width / height).toFixed(4));
  $("frame").textContent = `${width} × ${height}`;
  delete $("pictures").dataset.empty;
}

/* A picture */

async function showPicture(content, name) {
  const number = ++asked;
  stopCamera();
  clearError();
  setStatus("connecting", `computing the depth of ${name}`);
  try {
    const bitmap = await createImageBitmap(content).catch(() => {
      throw new Error(`${name} is no picture that this browser opens; take a JPEG, PNG or WebP`);
    });
    if (number !== asked) return;
    const { height, width } = bitmap;
    [blob, title] = [content, name];
    stage.clear();
    for (const figure of ["trip", "server", "engine"]) $(figure).textContent = "–";
    draw(bitmap, height, width);
    bitmap.close();
    const found = await depthOf(content, number);
    if (!found) return;
    show(found, [height, width]);
    setStatus("still", name);
  } catch (error) {
    if (number === asked) fail(error);
  }
}

/* The camera */

const NO_CAMERA = {
  NotAllowedError: "the browser does not allow the camera",
  NotFoundError: "the browser finds no camera",
  NotReadableError: "the camera does not start; does another program use it?",
};

async function startCamera() {
  const ours = (camera = { stream: null });
  const video = Object.assign(document.createElement("video"), { muted: true, playsInline: true });
  $("camera").textContent = "Stop the camera";
  clearError();
  setStatus("connecting", "waiting for the camera");
  try {
    if (!navigator.mediaDevices) throw new Error("a browser gives its camera only to https:// and to localhost; forward the port (ssh -L), or use https");
    ours.stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: FRAME } } });
    if (camera !== ours) return stop(ours);
    const ended = () => lose(ours, new Error("the camera has ended; is it still connected?"));
    for (const track of ours.stream.getTracks()) track.addEventListener("ended", ended);
    video.srcObject = ours.stream;
    await video.play();
  } catch (error) {
    lose(ours, NO_CAMERA[error.name] ? new Error(NO_CAMERA[error.name]) : error);
  }
  if (camera !== ours) return;
  asked += 1; // a picture's depth is no longer wanted
  stage.clear();
  setStatus("live", "camera");
  play(video, ours);
}

/* Stop a camera that failed, unless it was stopped before. */
function lose(ours, error) {
  if (camera !== ours) return;
  stopCamera();
  fail(error);
}

function stopCamera() {
  if (!camera) return;
  stop(camera);
  camera = null;
  shown.length = 0;
  $("fps").textContent = "–";
  $("camera").textContent = "Use the camera";
  setStatus("paused", "camera stopped");
}

function stop({ stream }) {
  for (const track of stream?.getTracks() ?? []) track.stop();
}

/* One frame after the other: the next is taken when the last was answered, so that none is old. */
async function play(video, ours) {
  const canvas = document.createElement("canvas"), context = canvas.getContext("2d", { alpha: false });
  let refused = -Infinity;
  while (camera === ours) {
    await new Promise(requestAnimationFrame); // which waits while the page is hidden
    const { videoHeight: height, videoWidth: width } = video;
    if (!height || camera !== ours) continue;
    const share = Math.min(1, FRAME / Math.max(height, width));
    Object.assign(canvas, { height: Math.round(height * share), width: Math.round(width * share) });
    context.drawImage(video, 0, 0, canvas.width, canvas.height);
    const frame = await new Promise((done) => canvas.toBlob(done, "image/jpeg", QUALITY));
    if (camera !== ours) return;
    try {
      const found = await depthOf(frame, ++asked);
      if (!found || camera !== ours) continue;
      [blob, title] = [frame, "a frame of the camera"];
      draw(canvas, canvas.height, canvas.width);
      show(found, [canvas.height, canvas.width]);
      countFrame();
      if (performance.now() - refused < CALM_MS) continue;
      clearError();
      setStatus("live", "camera");
    } catch (error) {
      if (error.status !== 503) return lose(ours, error);
      if (camera !== ours) return;
      refused = performance.now();
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

/* What is said. A screen reader speaks each change, so what is the same is not written again. */

function setText(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

function setStatus(now, text) {
  $("status").dataset.now = now;
  setText("status", text);
}

function fail(error) {
  const isBrowsers = error instanceof TypeError || error instanceof SyntaxError || error instanceof RangeError;
  if (isBrowsers) console.error(error);
  setText("error", isBrowsers ? "the server's answer has another form than this page expects; does a proxy change it?" : error.message);
  $("error").hidden = false;
  setStatus("failed", "failed");
}

function clearError() {
  $("error").hidden = true;
}

/* Controls */

$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  if (file) showPicture(file, file.name);
  $("file").value = ""; // so that the same file can be chosen again
});
$("camera").addEventListener("click", () => (camera ? stopCamera() : startCamera()));
$("model").addEventListener("change", () => {
  if (camera) return; // its next frame is for the other model
  if (blob) showPicture(blob, title);
  else describe().then(() => (clearError(), setStatus("still", "ready")), fail);
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
