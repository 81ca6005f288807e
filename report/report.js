"use strict";
/* Two pictures of a frame on top of each other; the slider uncovers the left one. Without scripts the gallery stays. */
for (const scene of document.querySelectorAll("[data-scene]")) {
  const viewer = scene.querySelector("[data-viewer]");
  const gallery = scene.querySelector("details");
  const stage = viewer.querySelector("[data-stage]");
  const range = viewer.querySelector("input");
  const [frame, left, right] = viewer.querySelectorAll("select");
  const [over, under] = ["over", "under"].map((place) => {
    const image = document.createElement("img");
    image.className = place;
    image.draggable = false;
    stage.prepend(image); // the right picture ends up below
    return image;
  });

  const show = (image, view, caption) => {
    const shown = scene.querySelector(`[data-frame="${frame.value}"] [data-view="${view}"]`);
    image.src = shown.src;
    image.alt = shown.alt;
    image.classList.toggle("rough", shown.classList.contains("rough"));
    caption.textContent = shown.dataset.name;
  };
  const [leftName, rightName] = stage.querySelectorAll("[data-caption]");
  const choose = () => {
    show(over, left.value, leftName);
    show(under, right.value, rightName);
    for (const scale of viewer.querySelectorAll("[data-scale]")) scale.hidden = scale.dataset.scale !== frame.value;
  };
  const move = () => {
    stage.style.setProperty("--cut", `${range.value}%`);
    range.setAttribute("aria-valuetext", `${range.value} % ${leftName.textContent}`);
  };
  const drag = (event) => {
    if (event.buttons !== 1) return;
    const box = stage.getBoundingClientRect();
    range.value = Math.round((100 * (event.clientX - box.left)) / box.width);
    move();
  };
  for (const select of [frame, left, right]) select.addEventListener("change", () => { choose(); move(); });
  range.addEventListener("input", move);
  stage.addEventListener("pointerdown", drag);
  stage.addEventListener("pointermove", drag);
  choose();
  move();
  viewer.hidden = false;
  gallery.open = false;
}
addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
});
