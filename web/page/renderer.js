// Frames of a field, strip by strip, so that no single draw call is long.

class ShaderError extends Error {}

/** The name of the GPU, as reported by the browser. */
function gpuName(gl) {
  const names = gl.getExtension("WEBGL_debug_renderer_info");
  return gl.getParameter(names ? names.UNMASKED_RENDERER_WEBGL : gl.RENDERER);
}

/** Wait until the GPU has done what was submitted, without blocking the page. Resolves at once when the context is lost. */
function gpuIdle(gl) {
  const sync = gl.fenceSync(gl.SYNC_GPU_COMMANDS_COMPLETE, 0);
  gl.flush();
  return new Promise((resolve) => {
    const check = () => {
      if (sync && !gl.isContextLost() && gl.clientWaitSync(sync, 0, 0) === gl.TIMEOUT_EXPIRED) {
        setTimeout(check, 0);
      } else {
        gl.deleteSync(sync);
        resolve();
      }
    };
    check();
  });
}

/** Compile and link without blocking the page where the browser can. Throws ShaderError. */
async function buildProgram(gl, fragmentText) {
  const program = gl.createProgram();
  const shaders = [[gl.VERTEX_SHADER, VERTEX_GLSL], [gl.FRAGMENT_SHADER, fragmentText]].map(([kind, text]) => {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, text);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
    return shader;
  });
  gl.linkProgram(program);
  const parallel = gl.getExtension("KHR_parallel_shader_compile");
  while (parallel && !gl.isContextLost() && !gl.getProgramParameter(program, parallel.COMPLETION_STATUS_KHR)) {
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  if (!gl.isContextLost() && !gl.getProgramParameter(program, gl.LINK_STATUS)) {
    const logs = [...shaders.map((shader) => gl.getShaderInfoLog(shader)), gl.getProgramInfoLog(program)];
    throw new ShaderError(logs.filter(Boolean).join(" "));
  }
  shaders.forEach((shader) => gl.deleteShader(shader));
  return program;
}

/** The two images of one frame: roots (bits of t, points evaluated) and the shaded pixels, size x size, bottom row first. */
class Frame {
  constructor(gl, size) {
    this.size = size;
    this.roots = Frame.createImage(gl, size, gl.RG32UI, gl.NEAREST);
    this.pixels = Frame.createImage(gl, size, gl.RGBA8, gl.LINEAR);
  }

  static createImage(gl, size, format, filter) {
    const texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.texStorage2D(gl.TEXTURE_2D, 1, format, size, size);
    for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, name, filter);
    for (const name of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, name, gl.CLAMP_TO_EDGE);
    const framebuffer = gl.createFramebuffer();
    gl.bindFramebuffer(gl.FRAMEBUFFER, framebuffer);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
    return { texture, framebuffer };
  }

  release(gl) {
    for (const { texture, framebuffer } of [this.roots, this.pixels]) {
      gl.deleteTexture(texture);
      gl.deleteFramebuffer(framebuffer);
    }
  }
}

/**
 * All resources of one WebGL context. A view is {yaw, pitch, fovDegrees, mode}; see camera.js and MODES.
 * Strips are rows [start, end) of a frame, counted from the bottom.
 */
class Renderer {
  /** @param {number[][]} depthColors from far to near, 8 colors in [0, 1] */
  constructor(gl, depthColors) {
    this.gl = gl;
    this.depthColors = depthColors.flat();
    this.programs = new Map();
    this.storages = new Map();
    this.field = null;
    gl.bindVertexArray(gl.createVertexArray());
  }

  /** Show another field. @param {object} settings of the generator @param {object} values what `fieldProgram.fold` returned */
  setField(fieldProgram, settings, values) {
    if (!this.storages.has(fieldProgram.key)) this.storages.set(fieldProgram.key, fieldProgram.createStorage(this.gl));
    this.field = { program: fieldProgram, settings, storage: this.storages.get(fieldProgram.key) };
    fieldProgram.upload(this.gl, this.field.storage, values);
  }

  /** A linked program, built at its first use. */
  program(key, text) {
    if (!this.programs.has(key)) this.programs.set(key, buildProgram(this.gl, text()));
    return this.programs.get(key);
  }

  /** The programs that a mode needs: {root, shading, present}. Throws ShaderError. */
  async programsOf(mode) {
    const field = this.field.program;
    const [root, shading, present] = await Promise.all([
      this.program(`root ${field.key}`, () => rootShader(field)),
      this.program(`${mode} ${field.key}`, () => shadingShader(field, mode)),
      this.program("present", () => PRESENT_GLSL),
    ]);
    return { root, shading, present };
  }

  createFrame(size) {
    return new Frame(this.gl, size);
  }

  /** Find the roots of a strip and shade them. `keepsRoots`: the frame has the roots of this view already. */
  drawStrip(programs, frame, view, start, end, keepsRoots = false) {
    if (!keepsRoots) this.drawRoots(programs.root, frame, view, start, end);
    const gl = this.gl;
    this.begin(programs.shading, frame.pixels.framebuffer, frame.size, view, start, end);
    this.field.program.attach(gl, programs.shading, this.field.storage);
    gl.bindTexture(gl.TEXTURE_2D, frame.roots.texture);
    const { settings } = this.field;
    const location = (name) => gl.getUniformLocation(programs.shading, name);
    gl.uniform1i(location("roots"), 0);
    gl.uniform1i(location("fillsWithFarEnd"), settings.fillsWithFarEnd ? 1 : 0);
    gl.uniform3f(location("background"), settings.background, settings.background, settings.background);
    if (view.mode === "depth") gl.uniform3fv(location("depthColors"), this.depthColors);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
    gl.disable(gl.SCISSOR_TEST);
  }

  drawRoots(program, frame, view, start, end) {
    const gl = this.gl;
    this.begin(program, frame.roots.framebuffer, frame.size, view, start, end);
    this.field.program.attach(gl, program, this.field.storage);
    const { settings } = this.field;
    const location = (name) => gl.getUniformLocation(program, name);
    gl.uniform1i(location("numCoarse"), settings.numCoarse);
    gl.uniform1i(location("numRootSteps"), settings.numRootSteps);
    gl.uniform1i(location("bisects"), settings.rootMethod === "bisection" ? 1 : 0);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
  }

  begin(program, framebuffer, size, view, start, end) {
    const gl = this.gl;
    const { settings } = this.field;
    const { origin, axes } = cameraOf(view.yaw, view.pitch);
    gl.bindFramebuffer(gl.FRAMEBUFFER, framebuffer);
    gl.viewport(0, 0, size, size);
    gl.enable(gl.SCISSOR_TEST);
    gl.scissor(0, start, size, end - start);
    gl.useProgram(program);
    const location = (name) => gl.getUniformLocation(program, name);
    gl.uniform3fv(location("origin"), origin);
    gl.uniformMatrix3fv(location("axes"), false, axes);
    gl.uniform1f(location("focalLength"), focalLength(view.fovDegrees));
    gl.uniform1i(location("size"), size);
    gl.uniform1f(location("tNear"), settings.tNear);
    gl.uniform1f(location("tFar"), settings.tFar);
  }

  /** Draw rows [0, numRows) of a frame on the canvas, scaled up. */
  present(program, frame, numRows = frame.size) {
    const gl = this.gl;
    const canvasSize = gl.drawingBufferWidth;
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.viewport(0, 0, canvasSize, canvasSize);
    gl.enable(gl.SCISSOR_TEST);
    gl.scissor(0, 0, canvasSize, Math.floor((canvasSize * numRows) / frame.size));
    gl.useProgram(program);
    gl.bindTexture(gl.TEXTURE_2D, frame.pixels.texture);
    gl.uniform1i(gl.getUniformLocation(program, "frame"), 0);
    gl.uniform1i(gl.getUniformLocation(program, "canvasSize"), canvasSize);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
    gl.disable(gl.SCISSOR_TEST);
  }

  /** Shaded pixels, (size, size, 4) bytes, bottom row first. */
  readPixels(frame) {
    const bytes = new Uint8Array(4 * frame.size ** 2);
    this.gl.bindFramebuffer(this.gl.FRAMEBUFFER, frame.pixels.framebuffer);
    this.gl.readPixels(0, 0, frame.size, frame.size, this.gl.RGBA, this.gl.UNSIGNED_BYTE, bytes);
    return bytes;
  }

  /** {t: Float32Array, numPoints: total}: roots, bottom row first, -1 without a surface; points evaluated to find them. */
  readRoots(frame) {
    const count = frame.size ** 2;
    const bits = new Uint32Array(4 * count);
    this.gl.bindFramebuffer(this.gl.FRAMEBUFFER, frame.roots.framebuffer);
    this.gl.readPixels(0, 0, frame.size, frame.size, this.gl.RGBA_INTEGER, this.gl.UNSIGNED_INT, bits);
    const floats = new Float32Array(bits.buffer);
    const t = Float32Array.from({ length: count }, (_, i) => floats[4 * i]);
    let numPoints = 0;
    for (let i = 0; i < count; i++) numPoints += bits[4 * i + 1];
    return { t, numPoints };
  }
}
