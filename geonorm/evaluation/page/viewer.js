"use strict";
// The map viewer of a consistency report: two maps of a place, one on each side of a line that can be moved.
(() => {
  const NO_DATA = 255;
  const FLIP = [214, 20, 20];
  const MOST_CSS_PX = 24; // sides of a cell at the largest zoom
  const NEAR_LINE_PX = 14;
  const STEP = 1.5; // of a zoom by key or button
  const IMAGE = "image";

  const get = (id) => document.getElementById(id);
  const stage = get("stage");
  const canvas = stage.querySelector("canvas");
  const pen = canvas.getContext("2d");
  const { scenes, start } = JSON.parse(get("scenes").textContent);

  // What is shown. Places are in cells of the scene, `scale` in device pixels per cell.
  const view = { scene: null, image: null, left: null, right: null, split: 0.5, scale: 1, row: 0, col: 0 };
  let chosen = start.map((at) => key(scenes[0].layers[at]));
  let loading = 0;

  // Reading what the page holds

  function key(layer) {
    return layer ? JSON.stringify([layer.model, layer.grid]) : IMAGE;
  }

  function nameOf(layer) {
    if (!layer) return "The image";
    return layer.grid ? `${layer.model}, ${layer.grid}` : layer.model;
  }

  async function inflate(text) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  async function labelsOf(scene, layer) {
    if (!layer.pixels) {
      const stored = await inflate(layer.labels);
      if (layer.base !== null) {
        const base = await labelsOf(scene, scene.layers[layer.base]);
        for (let at = 0; at < stored.length; at++) stored[at] ^= base[at];
      }
      layer.pixels = stored;
    }
    return layer.pixels;
  }

  async function imageOf(scene) {
    const image = new Image();
    image.src = get(`image-${scenes.indexOf(scene)}`).getAttribute("href");
    await image.decode();
    return image;
  }

  function layerOf(scene, chosenKey) {
    return scene.layers.find((layer) => key(layer) === chosenKey) ?? null;
  }

  // Pictures made of labels

  // Cells whose number has no colour stay clear.
  function painted(scene, numbers, colors) {
    const palette = new Uint8ClampedArray(4 * 256);
    colors.forEach((color, number) => color && palette.set([...color, 255], 4 * number));
    const words = new Uint32Array(palette.buffer);
    const data = new ImageData(scene.width, scene.height);
    new Uint32Array(data.data.buffer).set(Uint32Array.from(numbers, (number) => words[number]));
    const picture = new OffscreenCanvas(scene.width, scene.height);
    picture.getContext("2d").putImageData(data, 0, 0);
    return picture;
  }

  async function side(scene, layer) {
    if (!layer) return { layer, labels: null, picture: null };
    const labels = await labelsOf(scene, layer);
    return { layer, labels, picture: painted(scene, labels, scene.classes.map(({ color }) => color)) };
  }

  function compare(scene, left, right) {
    if (!left.labels || !right.labels) return null;
    const differ = new Uint8Array(left.labels.length);
    let flips = 0;
    let pixels = 0;
    for (let at = 0; at < differ.length; at++) {
      if (left.labels[at] === NO_DATA || right.labels[at] === NO_DATA) continue;
      pixels += 1;
      differ[at] = left.labels[at] !== right.labels[at];
      flips += differ[at];
    }
    return { flips, pixels, picture: flips ? painted(scene, differ, [null, FLIP]) : null };
  }

  // Drawing

  function fitScale() {
    return Math.min(canvas.width / view.scene.width, canvas.height / view.scene.height);
  }

  function ratio() {
    return canvas.width / stage.clientWidth;
  }

  function keepInside() {
    const least = fitScale();
    view.scale = Math.min(Math.max(view.scale, least), Math.max(least, MOST_CSS_PX * ratio()));
    const inside = (at, cells, shown) => (shown >= cells ? cells / 2 : Math.min(Math.max(at, shown / 2), cells - shown / 2));
    view.row = inside(view.row, view.scene.height, canvas.height / view.scale);
    view.col = inside(view.col, view.scene.width, canvas.width / view.scale);
    // Where nothing can be moved, a finger scrolls the page.
    stage.style.touchAction = view.scale > least ? "none" : "pan-y";
  }

  function corner() {
    return { x: canvas.width / 2 - view.col * view.scale, y: canvas.height / 2 - view.row * view.scale };
  }

  let waiting = false;
  function draw() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      if (view.scene) paint();
    });
  }

  function paint() {
    const { scene, scale } = view;
    const { x, y } = corner();
    const line = Math.round(view.split * canvas.width);
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.imageSmoothingEnabled = scale < 1;
    pen.drawImage(view.image, x, y, scene.width * scale, scene.height * scale);
    pen.imageSmoothingEnabled = false;
    for (const [shown, from, to] of [[view.left, 0, line], [view.right, line, canvas.width]]) {
      pen.save();
      pen.beginPath();
      pen.rect(from, 0, to - from, canvas.height);
      pen.clip();
      if (shown.picture) {
        pen.globalAlpha = get("opacity").value / 100;
        pen.drawImage(shown.picture, x, y, scene.width * scale, scene.height * scale);
        pen.globalAlpha = 1;
      }
      if (get("flips").checked && view.found?.picture) drawFlips(x, y);
      if (get("seams").checked && shown.layer) drawSeams(scene.seams[shown.layer.grid] ?? [[], []], x, y);
      pen.restore();
    }
    get("swipe").value = 100 * view.split;
    get("swipe").setAttribute("aria-valuetext", sides());
    stage.querySelector(".divider").style.left = `${100 * view.split}%`;
  }

  function drawFlips(x, y) {
    const { scene, scale } = view;
    // Where several cells share a pixel of the screen, each gets its turn, so that no difference goes unseen.
    const turns = Math.min(4, Math.max(1, Math.ceil(1 / scale)));
    for (let down = 0; down < turns; down++) {
      for (let across = 0; across < turns; across++) {
        pen.drawImage(
          view.found.picture, x + across * scale, y + down * scale, scene.width * scale, scene.height * scale
        );
      }
    }
  }

  function drawSeams([rows, cols], x, y) {
    const { scene, scale } = view;
    const width = Math.max(1, Math.round(ratio()));
    const across = (top, left, height, length) => pen.fillRect(Math.round(left), Math.round(top), length, height);
    for (const [color, offset] of [["#000", 1], ["#fff", 0]]) {
      pen.fillStyle = color;
      for (const row of rows) across(y + row * scale + offset * width, x, width, scene.width * scale);
      for (const col of cols) across(y, x + col * scale + offset * width, scene.height * scale, width);
    }
  }

  // Words

  function percent(part, whole) {
    const value = (100 * part) / Math.max(1, whole);
    const distance = Math.min(value, 100 - value);
    const decimals = distance > 0 ? Math.min(12, Math.max(0, 1 - Math.floor(Math.log10(distance)))) : 0;
    return `${value.toFixed(decimals)} %`;
  }

  function sides() {
    const left = Math.round(100 * view.split);
    return `${left} % ${nameOf(view.left.layer)}; ${100 - left} % ${nameOf(view.right.layer)}`;
  }

  function tell() {
    const [left, right] = [view.left, view.right].map((shown) => nameOf(shown.layer));
    const { cell } = view.scene;
    let text = `${left} beside ${right[0].toLowerCase() === "t" ? right.toLowerCase() : right}.`;
    if (view.found) {
      const { flips, pixels } = view.found;
      const of = cell > 1 ? `, one of each ${cell} by ${cell}, ` : " ";
      const share = flips ? `(${percent(flips, pixels)})` : "– the maps are the same here";
      text = `${left} against ${right}: ${flips.toLocaleString("en")} of ${pixels.toLocaleString("en")} pixels${of}differ ${share}.`;
    }
    get("status").textContent = text;
    stage.querySelector(".side.left").textContent = left;
    stage.querySelector(".side.right").textContent = right;
  }

  function tellPlace(place) {
    const { scene } = view;
    const row = Math.floor(place.row);
    const col = Math.floor(place.col);
    const inside = row >= 0 && col >= 0 && row < scene.height && col < scene.width;
    const at = row * scene.width + col;
    const label = ({ layer, labels }) => layer && `${nameOf(layer)}: ${scene.classes[labels[at]]?.name ?? "no data"}`;
    const words = inside && [
      `row ${(scene.row + row * scene.cell).toLocaleString("en")}, column ${(scene.col + col * scene.cell).toLocaleString("en")}`,
      label(view.left),
      label(view.right),
    ];
    get("here").textContent = words ? words.filter(Boolean).join(" · ") : "";
  }

  function legend() {
    const items = [...view.scene.classes, { name: "labels that differ", color: FLIP }].map(({ name, color }) => {
      const item = document.createElement("li");
      const swatch = document.createElement("span");
      swatch.style.backgroundColor = `rgb(${color.join(" ")})`;
      item.append(swatch, name);
      return item;
    });
    get("legend").replaceChildren(...items);
  }

  // Choosing

  function fill(select, scene, chosenKey) {
    const groups = new Map();
    for (const layer of scene.layers) {
      if (!groups.has(layer.model)) {
        groups.set(layer.model, document.createElement("optgroup"));
        groups.get(layer.model).label = layer.model;
      }
      groups.get(layer.model).append(new Option(nameOf(layer), key(layer)));
    }
    select.replaceChildren(new Option("The image", IMAGE), ...groups.values());
    select.value = layerOf(scene, chosenKey) ? chosenKey : IMAGE;
  }

  async function show(number) {
    const scene = scenes[number];
    get("scene").value = number;
    get("previous").disabled = number === 0;
    get("next").disabled = number === scenes.length - 1;
    fill(get("left"), scene, chosen[0]);
    fill(get("right"), scene, chosen[1]);
    await choose(scene);
  }

  async function choose(scene) {
    const turn = ++loading;
    stage.setAttribute("aria-busy", "true");
    const keys = [get("left").value, get("right").value];
    const image = scene === view.scene ? view.image : await imageOf(scene);
    const left = await side(scene, layerOf(scene, keys[0]));
    const right = await side(scene, layerOf(scene, keys[1]));
    if (turn !== loading) return; // another choice was made meanwhile
    const fresh = scene !== view.scene;
    Object.assign(view, { scene, image, left, right, found: compare(scene, left, right) });
    if (fresh) {
      legend();
      fit();
    }
    tell();
    paint();
    stage.setAttribute("aria-busy", "false");
  }

  // Moving about

  function fit() {
    view.scale = 0;
    keepInside();
    draw();
  }

  function zoom(factor, at = { x: canvas.width / 2, y: canvas.height / 2 }) {
    const before = placeOf(at);
    view.scale *= factor;
    keepInside();
    const after = placeOf(at);
    view.row += before.row - after.row;
    view.col += before.col - after.col;
    keepInside();
    draw();
  }

  function pan(rows, cols) {
    const before = [view.row, view.col];
    view.row += rows;
    view.col += cols;
    keepInside();
    draw();
    return view.row !== before[0] || view.col !== before[1];
  }

  function placeOf({ x, y }) {
    const from = corner();
    return { row: (y - from.y) / view.scale, col: (x - from.x) / view.scale };
  }

  function pointOf(event) {
    const box = stage.getBoundingClientRect();
    return { x: (event.clientX - box.left) * ratio(), y: (event.clientY - box.top) * ratio() };
  }

  function isAtLine(point) {
    return Math.abs(point.x - view.split * canvas.width) <= NEAR_LINE_PX * ratio();
  }

  const fingers = new Map();
  let dragsLine = false;

  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !view.scene) return;
    const point = pointOf(event);
    stage.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, point);
    dragsLine = fingers.size === 1 && isAtLine(point);
    stage.classList.toggle("dragging", !dragsLine);
  });

  stage.addEventListener("pointermove", (event) => {
    if (!view.scene) return;
    const point = pointOf(event);
    const before = fingers.get(event.pointerId);
    if (!before) {
      stage.classList.toggle("at-line", isAtLine(point));
      tellPlace(placeOf(point));
      return;
    }
    if (dragsLine) {
      view.split = Math.min(1, Math.max(0, point.x / canvas.width));
      draw();
    } else if (fingers.size === 1) {
      pan((before.y - point.y) / view.scale, (before.x - point.x) / view.scale);
    } else if (fingers.size === 2) {
      const [other] = [...fingers].filter(([id]) => id !== event.pointerId).map(([, found]) => found);
      const apart = (one) => Math.max(1, Math.hypot(one.x - other.x, one.y - other.y));
      zoom(apart(point) / apart(before), { x: (point.x + other.x) / 2, y: (point.y + other.y) / 2 });
    }
    fingers.set(event.pointerId, point);
  });

  for (const name of ["pointerup", "pointercancel"]) {
    stage.addEventListener(name, (event) => {
      fingers.delete(event.pointerId);
      dragsLine = false;
      stage.classList.remove("dragging");
    });
  }

  let hinting;
  stage.addEventListener(
    "wheel",
    (event) => {
      const hint = stage.querySelector(".hint");
      clearTimeout(hinting);
      hint.hidden = event.ctrlKey || document.activeElement === stage;
      if (!hint.hidden) {
        hinting = setTimeout(() => (hint.hidden = true), 1500);
        return; // the page scrolls
      }
      event.preventDefault();
      zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), pointOf(event));
    },
    { passive: false }
  );

  stage.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const rows = canvas.height / view.scale / 8;
    const cols = canvas.width / view.scale / 8;
    const done = {
      ArrowUp: () => pan(-rows, 0),
      ArrowDown: () => pan(rows, 0),
      ArrowLeft: () => pan(0, -cols),
      ArrowRight: () => pan(0, cols),
      "+": () => zoom(STEP),
      "=": () => zoom(STEP),
      "-": () => zoom(1 / STEP),
      0: () => fit(),
    }[event.key];
    // At the edge an arrow scrolls the page.
    if (done && done() !== false) event.preventDefault();
  });

  get("swipe").addEventListener("input", () => {
    view.split = get("swipe").value / 100;
    draw();
  });
  get("in").addEventListener("click", () => zoom(STEP));
  get("out").addEventListener("click", () => zoom(1 / STEP));
  get("fit").addEventListener("click", fit);
  get("full").addEventListener("click", () => zoom(ratio() / view.scale));
  for (const id of ["flips", "seams", "opacity"]) get(id).addEventListener("input", draw);
  for (const [which, id] of ["left", "right"].entries()) {
    get(id).addEventListener("change", () => {
      chosen[which] = get(id).value;
      choose(view.scene);
    });
  }
  get("scene").addEventListener("change", () => show(Number(get("scene").value)));
  get("previous").addEventListener("click", () => show(Number(get("scene").value) - 1));
  get("next").addEventListener("click", () => show(Number(get("scene").value) + 1));
  for (const button of document.querySelectorAll("[data-scene]")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      await show(Number(button.dataset.scene));
      get("viewer").scrollIntoView();
      get("scene").focus();
    });
  }

  // On paper everything is unfolded.
  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details:not([open])")) {
      details.open = true;
      details.dataset.folded = "";
    }
  });
  addEventListener("afterprint", () => {
    for (const details of document.querySelectorAll("details[data-folded]")) {
      details.open = false;
      delete details.dataset.folded;
    }
  });

  get("viewer").hidden = false;
  if (typeof DecompressionStream === "undefined" || typeof OffscreenCanvas === "undefined") {
    get("viewer").textContent = "The viewer needs a browser of 2023 or later; the pictures below do not.";
    return;
  }
  new ResizeObserver(() => {
    const whole = view.scene && view.scale <= fitScale() * 1.001;
    const before = canvas.width;
    canvas.width = Math.round(stage.clientWidth * devicePixelRatio);
    canvas.height = Math.round(stage.clientHeight * devicePixelRatio);
    if (!view.scene) return;
    view.scale = whole ? 0 : (view.scale * canvas.width) / before;
    keepInside();
    paint();
  }).observe(stage);
  show(0);
})();
