// The page's controls: they change the viewer's state and show it.

const MODE_NAMES = { image: "Image", surface: "Surface", normals: "Normals", depth: "Depth" };
const TURN_STEP = 0.06; // radians per arrow key
const ZOOM_STEP = 1.1;
const MAX_SEED = 2n ** 63n - 1n;
const MAX_RANDOM_SEED = 1_000_000;

const byId = (id) => document.getElementById(id);
const randomSeed = () => BigInt(Math.floor(Math.random() * MAX_RANDOM_SEED));

/** Parse a seed; null if the text is not one. */
function parseSeed(text) {
  if (!/^[0-9]{1,19}$/.test(text)) return null;
  const seed = BigInt(text);
  return seed <= MAX_SEED ? seed : null;
}

class Controls {
  /** @param {Viewer} viewer */
  constructor(viewer) {
    this.viewer = viewer;
    this.canvas = viewer.canvas;
    this.pointers = new Map();
    this.addChoice("models", "model", [...viewer.generators.keys()].map((name) => [name, name]), (name) => this.changeModel(name));
    this.addChoice("modes", "mode", MODES.map((mode) => [mode, MODE_NAMES[mode]]), (mode) => this.change({ mode }));
    byId("models").hidden = viewer.generators.size < 2;
    this.addSeed("seed", "another", "seed");
    this.addSeed("second-seed", "another-second", "secondSeed");
    for (const key of ["psi", "shape", "color"]) this.addSlider(key);
    this.addButtons();
    this.addPointer();
    this.addKeys();
    new ResizeObserver(() => viewer.fitCanvas()).observe(this.canvas);
    this.showState();
  }

  change(part) {
    this.viewer.change(part);
    this.showState();
  }

  // -- parts -----------------------------------------------------------------------------------------------------------

  /** Switch to another generator: to its photo if it has one, else with the current seed. */
  changeModel(model) {
    const seed = this.viewer.generators.get(model).hasPhoto ? null : (this.viewer.state.seed ?? 0n);
    this.change({ model, seed });
  }

  addChoice(id, key, choices, onChoice) {
    for (const [value, text] of choices) {
      const label = document.createElement("label");
      const input = Object.assign(document.createElement("input"), { type: "radio", name: key, value });
      input.addEventListener("change", () => onChoice(value));
      label.append(input, Object.assign(document.createElement("span"), { textContent: text }));
      byId(id).append(label);
    }
  }

  addSeed(id, buttonId, key) {
    const input = byId(id);
    input.addEventListener("input", () => {
      const seed = parseSeed(input.value);
      input.setCustomValidity(seed === null ? "a whole number from 0 to 2^63 - 1" : "");
      if (seed !== null) this.viewer.change({ [key]: seed });
      this.showCaption();
    });
    input.addEventListener("change", () => this.showState());
    byId(buttonId).addEventListener("click", () => this.change({ [key]: randomSeed() }));
  }

  addSlider(key) {
    const input = byId(key);
    input.addEventListener("input", () => this.change({ [key]: Number(input.value) }));
  }

  addButtons() {
    byId("controls").addEventListener("submit", (event) => event.preventDefault());
    byId("reset").addEventListener("click", () => this.reset());
    byId("save").addEventListener("click", () => this.save());
    byId("sway").addEventListener("click", () => this.setSway(this.viewer.swayStart === null));
    byId("show-details").addEventListener("click", () => this.toggleDetails());
  }

  setSway(on) {
    this.viewer.sway(on);
    byId("sway").setAttribute("aria-pressed", String(on));
    this.showCaption();
  }

  toggleDetails() {
    const details = byId("details");
    details.hidden = !details.hidden;
    byId("show-details").setAttribute("aria-pressed", String(!details.hidden));
  }

  reset() {
    this.setSway(false);
    this.change({ yaw: 0, pitch: 0, zoom: 1 });
  }

  turn(yaw, pitch) {
    this.setSway(false);
    this.change({ yaw: this.viewer.state.yaw + yaw, pitch: this.viewer.state.pitch + pitch });
  }

  zoomBy(factor) {
    this.change({ zoom: this.viewer.state.zoom * factor });
  }

  async save() {
    const { model, seed, mode } = this.viewer.state;
    const url = URL.createObjectURL(await this.viewer.toBlob());
    Object.assign(document.createElement("a"), { href: url, download: `${model}_${seed ?? "photo"}_${mode}.png` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  }

  // -- mouse, touch, keys ----------------------------------------------------------------------------------------------

  /** Turn with one pointer (the width of the image is half a turn), and zoom with two. */
  addPointer() {
    const { canvas, pointers } = this;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    });
    canvas.addEventListener("pointermove", (event) => {
      const last = pointers.get(event.pointerId);
      if (!last) return;
      const before = this.spread();
      const [dx, dy] = [event.clientX - last.x, event.clientY - last.y];
      Object.assign(last, { x: event.clientX, y: event.clientY });
      if (pointers.size === 1) {
        const radians = Math.PI / canvas.clientWidth;
        this.turn(dx * radians, -dy * radians);
      } else if (before > 0) {
        this.zoomBy(before / Math.max(this.spread(), 1));
      }
    });
    for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) {
      canvas.addEventListener(name, (event) => pointers.delete(event.pointerId));
    }
    const onWheel = (event) => {
      const embedded = document.body.classList.contains("embedded");
      if (embedded && document.activeElement !== canvas) return; // the wheel scrolls the surrounding page until the head has the focus
      event.preventDefault();
      this.zoomBy(Math.exp(clamp(event.deltaY, -100, 100) * 0.0015));
    };
    canvas.addEventListener("wheel", onWheel, { passive: false });
  }

  /** Distance between the first two pointers, 0 with fewer. */
  spread() {
    const [a, b] = this.pointers.values();
    return b ? Math.hypot(a.x - b.x, a.y - b.y) : 0;
  }

  addKeys() {
    const turns = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    const actions = {
      "+": () => this.zoomBy(1 / ZOOM_STEP),
      "=": () => this.zoomBy(1 / ZOOM_STEP),
      "-": () => this.zoomBy(ZOOM_STEP),
      n: () => this.change({ seed: randomSeed() }),
      s: () => this.save(),
      i: () => this.toggleDetails(),
      Home: () => this.reset(),
    };
    MODES.forEach((mode, i) => (actions[i + 1] = () => this.change({ mode })));
    this.canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const turn = turns[event.key];
      const action = turn ? () => this.turn(turn[0] * TURN_STEP, turn[1] * TURN_STEP) : actions[event.key];
      if (!action) return;
      event.preventDefault();
      action();
    });
  }

  // -- what is shown ---------------------------------------------------------------------------------------------------

  showState() {
    const { state } = this.viewer;
    for (const key of ["model", "mode"]) {
      for (const input of document.querySelectorAll(`input[name="${key}"]`)) input.checked = input.value === state[key];
    }
    for (const [id, key] of [["seed", "seed"], ["second-seed", "secondSeed"]]) {
      byId(id).value = state[key] ?? "";
      byId(id).setCustomValidity("");
    }
    for (const key of ["psi", "shape", "color"]) {
      byId(key).value = state[key];
      byId(key).previousElementSibling.value = state[key].toFixed(2);
    }
    this.showCaption();
  }

  showCaption() {
    const { viewer } = this;
    if (!byId("turntable").hidden) return; // the caption says that a recorded turn stands in
    const { model, seed, yaw, pitch } = viewer.state;
    const degrees = (radians) => `${Math.round((radians * 180) / Math.PI)}°`;
    const still = Math.abs(yaw) + Math.abs(pitch) < 0.01 ? "front" : `yaw ${degrees(yaw)}, pitch ${degrees(pitch)}`;
    const where = viewer.swayStart === null ? still : "swaying"; // read aloud once, not at every frame
    const warning = viewer.isBeyondTraining() ? ", outside the training poses" : "";
    const text = `${model}, ${seed === null ? "the photo" : `seed ${seed}`}, ${where}${warning}`;
    if (byId("caption").textContent !== text) byId("caption").textContent = text;
  }

  /** @param {{size: number, ms: number} | null} frame null: the GPU's context is lost */
  showFrame(frame) {
    if (frame) {
      byId("turntable").hidden = true; // not needed any more
      byId("details").textContent = `${frame.size} px in ${frame.ms.toFixed(0)} ms`;
    } else {
      byId("caption").textContent = "The graphics card was reset. The image will reappear when the browser restores the graphics context.";
      return;
    }
    this.showCaption();
  }
}
