// The state of the view and when it is drawn: few pixels while something moves, more and more at rest.

const STRIP_MS = 24; // of GPU time per draw call, so that the browser stays responsive
const PRESENT_MS = 150; // between displays of an unfinished frame
const MOVING_MS = 40; // of GPU time per frame while moving
const REST_DELAY_MS = 120; // after the last change
const SIZES = { least: 48, rest: 256, most: 768 }; // pixels per side
const LONG_FRAME_MS = 4000; // beyond SIZES.rest, only as many pixels as this time allows
const ZOOM = { least: 0.35, most: 2 }; // times the field of view of training
const MAX_PITCH_OFFSET = 1.4; // radians from the mean

const SOFTWARE_RENDERER = /swiftshader|llvmpipe|softpipe|basic render/i; // names of renderers that run on the CPU

const FIELD_KEYS = ["model", "seed", "secondSeed", "shape", "color", "psi"];

const nextAnimationFrame = () => new Promise((resolve) => requestAnimationFrame(resolve));
const delay = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const clamp = (value, least, most) => Math.min(Math.max(value, least), most);

/**
 * The state of the page and the loop that draws it. State: model (name), seed and secondSeed (bigint; null: the photo), shape and color (0 to 1),
 * psi, yaw and pitch (radians from the mean pose), zoom (factor of the field of view), mode (one of MODES).
 */
class Viewer {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {Map<string, Generator>} generators
   * @param {{depthColors: number[][], state: object, onDraw: function, onError: function, maxSize?: number,
   *   inTextures?: boolean, unrolls?: boolean}} options the last two override the choice for this GPU; see SirenProgram
   */
  constructor(canvas, generators, options) {
    this.canvas = canvas;
    this.generators = generators;
    this.options = options;
    this.state = options.state;
    this.pixelsPerMs = 4; // a low initial estimate; measured from the first strip on
    this.version = 1; // of all that is shown
    this.rootsVersion = 1; // of all but the mode
    this.fieldVersion = 1;
    this.lastChange = 0;
    this.maxSize = options.maxSize ?? SIZES.most;
    this.swayStart = null;
    this.firstFrameMs = null; // from the navigation to the first live frame
    this.warm = new WeakSet(); // programs that have drawn once: drivers finish compiling only then
    canvas.addEventListener("webglcontextlost", (event) => {
      event.preventDefault();
      options.onDraw(null);
    });
    canvas.addEventListener("webglcontextrestored", () => this.start());
    this.start();
  }

  /** Start with a new context, initially and after a loss. */
  start() {
    this.gl = this.canvas.getContext("webgl2", { alpha: false, antialias: false, depth: false, powerPreference: "high-performance" });
    this.renderer = new Renderer(this.gl, this.options.depthColors);
    this.front = null;
    this.back = null;
    this.uploadedVersion = 0;
    this.shownVersion = 0;
    this.fitCanvas();
    this.wake();
  }

  // -- state -----------------------------------------------------------------------------------------------------------

  get generator() {
    return this.generators.get(this.state.model);
  }

  /** Change parts of the state and draw. */
  change(part) {
    const keys = Object.keys(part).filter((key) => part[key] !== this.state[key]);
    if (!keys.length) return;
    Object.assign(this.state, part);
    this.state.pitch = clamp(this.state.pitch, -MAX_PITCH_OFFSET, MAX_PITCH_OFFSET);
    this.state.zoom = clamp(this.state.zoom, ZOOM.least, ZOOM.most);
    this.version++;
    if (keys.some((key) => key !== "mode")) this.rootsVersion++;
    if (keys.some((key) => FIELD_KEYS.includes(key))) this.fieldVersion++;
    this.lastChange = performance.now();
    this.wake();
  }

  /** Let the camera swing around the front, or stop it where it is. */
  sway(on) {
    this.swayStart = on ? performance.now() - 1000 * Math.asin(clamp(this.state.yaw / 0.45, -1, 1)) : null;
    this.wake();
  }

  advanceSway() {
    const seconds = (performance.now() - this.swayStart) / 1000;
    this.change({ yaw: 0.45 * Math.sin(seconds), pitch: 0.12 * Math.sin(2 * seconds) });
  }

  /** Return the state as the renderer's view. */
  view() {
    const { settings } = this.generator;
    const { yaw, pitch, zoom, mode } = this.state;
    return { yaw: settings.meanYaw + yaw, pitch: settings.meanPitch + pitch, fovDegrees: settings.fovDegrees * zoom, mode };
  }

  /** Whether the camera is outside the range of training poses. */
  isBeyondTraining() {
    const { yawLimit, pitchLimit } = this.generator.settings;
    return Math.abs(this.state.yaw) > yawLimit || Math.abs(this.state.pitch) > pitchLimit;
  }

  async uploadField() {
    if (this.uploadedVersion === this.fieldVersion) return;
    const { fieldVersion, generator, renderer } = this;
    const { network, settings } = generator;
    const inTextures = this.options.inTextures ?? false;
    const unrolls = this.options.unrolls ?? !SOFTWARE_RENDERER.test(gpuName(this.gl));
    const program = network.createProgram(this.gl, settings, { inTextures, unrolls });
    const values = await program.fold(generator, generator.styles(this.state));
    if (this.isGone(renderer)) return;
    renderer.setField(program, settings, values);
    this.uploadedVersion = fieldVersion;
  }

  // -- drawing ---------------------------------------------------------------------------------------------------------

  /** Set the canvas's resolution from its size on the screen. */
  fitCanvas() {
    const wanted = 64 * Math.ceil((this.canvas.clientWidth * devicePixelRatio) / 64);
    const size = Math.min(clamp(wanted, SIZES.rest, SIZES.most), this.maxSize);
    if (this.canvas.width !== size) {
      this.canvas.width = this.canvas.height = size;
      this.version++;
      this.wake();
    }
  }

  wake() {
    if (this.running) return;
    this.running = this.run()
      .catch((error) => this.options.onError(error))
      .finally(() => (this.running = null));
  }

  async run() {
    while (!this.gl.isContextLost()) {
      await nextAnimationFrame();
      if (this.swayStart !== null) this.advanceSway();
      if (this.shownVersion !== this.version) await this.drawMoving();
      else if (this.front.size < this.restSize()) await this.refine();
      else if (this.swayStart === null) return;
    }
  }

  movingSize() {
    const side = Math.sqrt(this.pixelsPerMs * MOVING_MS);
    return Math.min(Math.max(16 * Math.floor(side / 16), SIZES.least), this.canvas.width);
  }

  restSize() {
    const affordable = 64 * Math.floor(Math.sqrt(this.pixelsPerMs * LONG_FRAME_MS) / 64);
    return Math.min(Math.max(affordable, SIZES.rest), this.canvas.width);
  }

  /** Draw the current state at the size that the time of a frame allows. A change of mode keeps the roots. */
  async drawMoving() {
    const { version, rootsVersion, renderer } = this;
    const keepsRoots = this.front?.rootsVersion === rootsVersion && this.front.size <= this.canvas.width;
    const frame = keepsRoots ? this.front : this.takeBack(this.movingSize());
    const view = this.view();
    await this.uploadField();
    if (this.isGone(renderer)) return;
    const programs = await renderer.programsOf(view.mode);
    const started = performance.now();
    await this.drawStrips(programs, frame, view, { keepsRoots });
    if (this.isGone(renderer)) return;
    frame.rootsVersion = rootsVersion;
    this.show(programs, frame, version, performance.now() - started);
  }

  /** Draw the same state at a larger size, unless something changes in the meantime. */
  async refine() {
    while (performance.now() - this.lastChange < REST_DELAY_MS) {
      await delay(20);
      if (this.shownVersion !== this.version) return;
    }
    const { version, rootsVersion, renderer, front } = this;
    const frame = this.takeBack(Math.min(this.restSize(), Math.max(SIZES.rest, 2 * front.size)));
    const view = this.view();
    await this.uploadField();
    if (this.isGone(renderer)) return;
    const programs = await renderer.programsOf(view.mode);
    const started = performance.now();
    const isStale = () => this.version !== version || this.swayStart !== null || this.isGone(renderer);
    let presented = started;
    const onStrip = (numRows) => {
      if (performance.now() - presented < PRESENT_MS) return;
      presented = performance.now();
      renderer.present(programs.present, front);
      renderer.present(programs.present, frame, numRows);
    };
    await this.drawStrips(programs, frame, view, { isStale, onStrip });
    if (isStale()) return;
    frame.rootsVersion = rootsVersion;
    this.show(programs, frame, version, performance.now() - started);
  }

  /** Whether the context that a renderer was made in is lost. */
  isGone(renderer) {
    return this.renderer !== renderer || this.gl.isContextLost();
  }

  /** Draw a frame, and measure the pixels per millisecond. */
  async drawStrips(programs, frame, view, { keepsRoots = false, isStale = () => false, onStrip = () => {} } = {}) {
    const { renderer } = this;
    await this.warmUp(programs, frame, view);
    for (let start = 0; start < frame.size; ) {
      const numRows = 2 * clamp(Math.floor((this.pixelsPerMs * STRIP_MS) / (2 * frame.size)), 1, frame.size); // GPUs shade 2 x 2 pixels
      const end = Math.min(start + numRows, frame.size);
      const before = performance.now();
      if (this.isGone(renderer)) return;
      renderer.drawStrip(programs, frame, view, start, end, keepsRoots);
      await gpuIdle(this.gl);
      if (!keepsRoots) this.learnSpeed((end - start) * frame.size, performance.now() - before);
      if (isStale()) return;
      onStrip(end);
      start = end;
    }
  }

  /** Draw once without measuring, so that drivers finish compiling. */
  async warmUp(programs, frame, view) {
    if (this.warm.has(programs.root) && this.warm.has(programs.shading)) return;
    this.renderer.drawStrip(programs, frame, view, 0, 1, this.warm.has(programs.root));
    await gpuIdle(this.gl);
    this.warm.add(programs.root).add(programs.shading);
  }

  /** Update the estimate of the speed, at most by a factor of 2, because the times of short strips are inaccurate. */
  learnSpeed(numPixels, ms) {
    const measured = numPixels / Math.max(ms, 0.5);
    this.pixelsPerMs = clamp(0.5 * (this.pixelsPerMs + measured), 0.25, 2 * this.pixelsPerMs);
  }

  takeBack(size) {
    if (this.back?.size !== size) {
      this.back?.release(this.gl);
      this.back = this.renderer.createFrame(size);
    }
    return this.back;
  }

  show(programs, frame, version, ms) {
    if (frame !== this.front) [this.front, this.back] = [frame, this.front];
    this.shownVersion = version;
    this.firstFrameMs ??= performance.now();
    this.renderer.present(programs.present, this.front);
    this.options.onDraw({ size: frame.size, ms });
  }

  // -- results for callers ---------------------------------------------------------------------------------------------

  /** Resolves when the current state is shown at full quality. */
  async settled() {
    while (this.running) await this.running;
  }

  /** Return the canvas as a PNG file: at full quality, or while it sways, as it is. */
  async toBlob() {
    if (this.swayStart === null) await this.settled();
    const { present } = await this.renderer.programsOf(this.state.mode);
    this.renderer.present(present, this.front); // the browser keeps the drawing only until the next frame
    return new Promise((resolve) => this.canvas.toBlob(resolve, "image/png"));
  }

  /** Render the state off screen: {pixels, t, numPoints, ms}; see `Renderer.readPixels` and `readRoots`, bottom row first. */
  async capture(size) {
    await this.uploadField();
    const programs = await this.renderer.programsOf(this.state.mode);
    const frame = this.renderer.createFrame(size);
    await gpuIdle(this.gl);
    const started = performance.now();
    await this.drawStrips(programs, frame, this.view());
    const ms = performance.now() - started;
    const result = { pixels: this.renderer.readPixels(frame), ...this.renderer.readRoots(frame), ms };
    frame.release(this.gl);
    return result;
  }
}
