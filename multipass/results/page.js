"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const by = id => document.getElementById(id);
const all = selector => [...document.querySelectorAll(selector)];
const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0)).buffer;
// Places in the data are LPS, NiiVue's are RAS.
const ras = ([left, back, up]) => [-left, -back, up];

const COMMON = {
  isRadiologicalConvention: true,
  dragAndDropEnabled: false,
  show3Dcrosshair: false,
  backColor: [0, 0, 0, 1],
  loadingText: "",
};
const MULTIPLANAR = 3;
const RENDER = 4;
const STEPS = {
  ArrowUp: [0, 0, 1],
  ArrowDown: [0, 0, -1],
  ArrowLeft: [1, 0, 0],
  ArrowRight: [-1, 0, 0],
  PageUp: [0, 1, 0],
  PageDown: [0, -1, 0],
};

async function slicesOf(canvas) {
  const slices = new Niivue({ ...COMMON, multiplanarShowRender: 0 });
  await slices.attachToCanvas(canvas);
  await slices.loadFromArrayBuffer(bytes(data.ct), "ct.nii.gz");
  await slices.loadFromArrayBuffer(bytes(data.labels), "labels.nii.gz");
  slices.setSliceType(MULTIPLANAR);
  slices.onLocationChange = tellPlace;
  canvas.addEventListener("keydown", event => {
    if (!STEPS[event.key]) return;
    event.preventDefault();
    slices.moveCrosshairInVox(...STEPS[event.key]);
  });
  return slices;
}

async function bonesOf(canvas) {
  const bones = new Niivue(COMMON);
  await bones.attachToCanvas(canvas);
  for (const mesh of data.meshes)
    await bones.loadFromArrayBuffer(bytes(mesh.mz3), `${mesh.value}.mz3`);
  bones.setSliceType(RENDER);
  bones.setRenderAzimuthElevation(180, 10);
  return bones;
}

function tellPlace(place) {
  const [hounsfield, value] = place.values.map(shown => Math.round(shown.value));
  const [right, front, up] = Array.from(place.mm, Math.round);
  const name = value ? `, ${data.names[value - 1]}` : "";
  by("place").textContent =
    `${hounsfield} HU${name}, at ${-right}, ${-front}, ${up} mm (to the left, back, up)`;
}

function lookAt(slices, placeMm) {
  const inside = slices.mm2frac(ras(placeMm)).map(part => Math.min(Math.max(part, 0), 1));
  slices.scene.crosshairPos = inside;
  slices.createOnLocationChange();
  slices.drawScene();
}

function showWindow(slices) {
  const [low, high] = [Number(by("low").value), Number(by("high").value)];
  slices.volumes[0].cal_min = low;
  slices.volumes[0].cal_max = Math.max(high, low + 1);
  slices.setOpacity(1, Number(by("opacity").value));
  slices.updateGLVolume();
  by("window").textContent = `${low} to ${high} HU`;
}

function showBones({ slices, bones }) {
  const shown = new Set(all("[data-value]:checked").map(box => Number(box.dataset.value)));
  const values = data.names.map((_, k) => k + 1);
  const column = c => [0, ...data.colours.map(rgb => rgb[c])];
  slices.volumes[1].setColormapLabel({
    R: column(0),
    G: column(1),
    B: column(2),
    A: [0, ...values.map(value => (shown.has(value) ? 255 : 0))],
    I: [0, ...values],
    labels: ["", ...data.names],
  });
  slices.updateGLVolume();
  data.meshes.forEach((mesh, n) => {
    bones.meshes[n].visible = shown.has(mesh.value);
  });
  bones.drawScene();
}

function listen(viewers) {
  for (const id of ["low", "high", "opacity"])
    by(id).addEventListener("input", () => showWindow(viewers.slices));
  for (const button of all("[data-window]"))
    button.addEventListener("click", () => {
      [by("low").value, by("high").value] = button.dataset.window.split(",");
      showWindow(viewers.slices);
    });
  for (const box of all("[data-value]"))
    box.addEventListener("change", () => {
      if (by("all")) by("all").checked = all("[data-value]").every(one => one.checked);
      showBones(viewers);
    });
  by("all")?.addEventListener("change", event => {
    for (const box of all("[data-value]")) box.checked = event.target.checked;
    showBones(viewers);
  });
  for (const button of all("[data-place]"))
    button.addEventListener("click", () => {
      lookAt(viewers.slices, JSON.parse(button.dataset.place));
      by("slices").scrollIntoView({ block: "nearest" });
    });
}

async function start() {
  const viewers = { slices: await slicesOf(by("slices")), bones: await bonesOf(by("bones")) };
  showBones(viewers);
  showWindow(viewers.slices);
  listen(viewers);
  if (data.start) lookAt(viewers.slices, data.start);
  by(location.hash.slice(1))?.querySelector("[data-place]")?.click();
  window.viewers = viewers;
  document.body.dataset.ready = "yes";
}

start().catch(error => {
  by("place").textContent = `The viewer did not start: ${error}`;
});
