// Start the page: unpack the weights, check the browser, and show the generator or a message that explains why not.

/** Show a message, and the recorded turn of the first model instead of the live view. */
function showProblem(sentence) {
  byId("problem").textContent = sentence;
  byId("problem").hidden = false;
  byId("turntable").hidden = false;
  byId("viewer").classList.add("recorded");
}

function initialState(generators, parameters) {
  const names = [...generators.keys()];
  const number = (name, value) => {
    const given = Number.parseFloat(parameters.get(name));
    return Number.isFinite(given) ? given : value;
  };
  const model = names.includes(parameters.get("model")) ? parameters.get("model") : names[0];
  const firstSeed = generators.get(model).hasPhoto ? null : 0n;
  const mode = parameters.get("mode");
  const degrees = Math.PI / 180;
  return {
    model,
    seed: parseSeed(parameters.get("seed") ?? "") ?? firstSeed,
    secondSeed: parseSeed(parameters.get("second_seed") ?? "") ?? 1n,
    shape: clamp(number("shape", 0), 0, 1),
    color: clamp(number("color", 0), 0, 1),
    psi: clamp(number("psi", 0.7), 0, 1.2),
    yaw: number("yaw", 0) * degrees,
    pitch: clamp(number("pitch", 0) * degrees, -MAX_PITCH_OFFSET, MAX_PITCH_OFFSET),
    zoom: clamp(number("zoom", 1), ZOOM.least, ZOOM.most),
    mode: MODES.includes(mode) ? mode : "image",
  };
}

function showBenchmark({ gpu, model, firstFrameMs, results }) {
  const table = document.createElement("table");
  const row = (kind, cells) => {
    const line = table.insertRow();
    for (const cell of cells) line.append(Object.assign(document.createElement(kind), { textContent: cell }));
  };
  row("th", ["size", "ms per frame", "frames per second", "points per pixel", "GFLOP per frame", "GFLOP per second"]);
  for (const { size, medianMs, pointsPerPixel, gflopPerFrame, gflops } of results) {
    const numbers = [medianMs, 1000 / medianMs, pointsPerPixel, gflopPerFrame, gflops];
    row("td", [`${size} px`, ...numbers.map((value) => value.toFixed(1))]);
  }
  byId("caption").textContent = `${model} on ${gpu}; first frame after ${firstFrameMs.toFixed(0)} ms`;
  document.querySelector("figure").append(table);
}

function start() {
  document.body.classList.toggle("embedded", window.parent !== window);
  const { models, depthColors } = JSON.parse(byId("data").textContent);
  const generators = new Map();
  try {
    for (const { name, settings, packing, base } of models) {
      const own = unpackTensors(packing, byId(`weights-${name}`).textContent);
      const shared = base === null ? {} : generators.get(base).tensors; // weights that tuning to a photo did not change
      generators.set(name, new Generator(settings, { ...shared, ...own }));
    }
  } catch (error) {
    if (!(error instanceof DamagedWeights)) throw error;
    showProblem(`The generator's weights in this page are damaged: ${error.message}. Download the page again.`);
    return;
  }
  const canvas = byId("canvas");
  if (!canvas.getContext("webgl2")) {
    showProblem("This browser does not support WebGL 2, which the page needs to run the generator. Showing a recorded rotation instead.");
    return;
  }
  const parameters = new URLSearchParams(location.search);
  let controls = null;
  const viewer = new Viewer(canvas, generators, {
    depthColors,
    state: initialState(generators, parameters),
    maxSize: parameters.has("size") ? clamp(Number.parseInt(parameters.get("size")) || SIZES.most, 8, SIZES.most) : undefined,
    inTextures: parameters.get("weights") === "textures",
    unrolls: parameters.has("products") ? parameters.get("products") === "unrolled" : undefined,
    onDraw: (frame) => controls.showFrame(frame),
    onError: (error) => {
      const cause = error instanceof ShaderError ? "This browser's graphics driver rejects the generator's shaders" : "The page cannot draw";
      showProblem(`${cause} (${error.message}).`);
    },
  });
  controls = new Controls(viewer);
  window.gof = { viewer, controls };
  if (parameters.has("benchmark")) {
    runBenchmark(viewer, (text) => (byId("caption").textContent = text)).then((result) => {
      window.gof.benchmark = result;
      showBenchmark(result);
    });
  }
}

start();
