// The SIREN as a field program: what the renderer needs to evaluate a field in a fragment shader.
//
// A field program is an object with
//   key            text; programs of equal keys share their shaders
//   declarations   GLSL: uniform blocks, samplers and the functions below
//                    float occupancyLogit(vec3 point)                     0 is the surface, positive is solid
//                    vec3 fieldColor(vec3 point, vec3 direction)          in [0, 1]
//                    vec3 logitGradient(vec3 point)                       up to a positive factor, where NEEDS_GRADIENT is defined
//   createStorage(gl)            GPU storage for one field
//   upload(gl, storage, field)   fills it with what `fold` returned
//   attach(gl, program, storage) points a linked program's blocks and samplers to it
//   fold(generator, styles)      the field of given styles, plain numbers, or a promise of it
//   evaluationCost, colorCost    multiply-adds of an occupancy logit, and of a color at a root
//
// The renderer uses nothing else of a field, so a new kind of field is a new object of this form.
//
// FiLM folds into the weights: sin(gamma (W x + b) + beta) = sin((gamma W) x + (gamma b + beta)). Phases are stored in turns,
// minus a quarter turn: q = phase / 2 pi - 1/4. The sine is cos(2 pi q), and reducing q to [-1/2, 1/2] is exact in float32.

// sin(2 pi y) for |y| <= 1/4, odd minimax polynomial, error below 4e-9. GLSL guarantees its own sine only to 2^-11.
const SINE_GLSL = `
vec4 sine(vec4 q) {
  vec4 y = 0.25 - abs(q - floor(q + 0.5));
  vec4 s = y * y;
  return y * (6.28318516 + s * (-41.3416550 + s * (81.6010041 + s * (-76.5497823 + s * 39.5367059))));
}
vec4 cosine(vec4 q) { return sine(q + 0.25); }
`;

const MIN_BLOCK_BYTES = 16384; // guaranteed by WebGL 2

/** Offsets, in vec4s, of the small block, which holds all but the square matrices. groups = hiddenDim / 4. */
function smallLayout(groups, numLayers) {
  const first = (numLayers + 1) * groups; // after the biases of all layers, the color layer's last
  return { first, direction: first + 3 * groups, logit: first + 6 * groups, rgb: first + 7 * groups, heads: first + 10 * groups };
}

class SirenProgram {
  /**
   * @param {{hiddenDim: number, numLayers: number}} settings of the generator
   * @param {boolean} inTextures matrices are in textures instead of uniform blocks; see `weightsFit`
   * @param {boolean} unrolls products are unrolled, so that a GPU keeps activations in registers; software renderers compile
   *   loops three times as fast and run them at the same speed
   */
  constructor({ hiddenDim, numLayers }, { inTextures, unrolls }) {
    this.hiddenDim = hiddenDim;
    this.numLayers = numLayers;
    this.groups = hiddenDim / 4;
    this.inTextures = inTextures;
    this.unrolls = unrolls;
    this.layout = smallLayout(this.groups, numLayers);
    this.key = `siren ${hiddenDim} ${numLayers} ${inTextures ? "textures" : "blocks"} ${unrolls ? "unrolled" : "looped"}`;
    this.names = [];
    for (let layer = 1; layer < numLayers; layer++) this.names.push(`matrix${layer}`);
    this.names.push("matrixColor");
    this.evaluationCost = 3 * hiddenDim + (numLayers - 1) * hiddenDim ** 2 + hiddenDim;
    this.colorCost = this.evaluationCost + hiddenDim ** 2 + 6 * hiddenDim;
    this.declarations = this.writeDeclarations();
  }

  /** Whether a layer's matrix fits a uniform block of this GPU, which broadcasts it; else it goes into a texture. */
  static weightsFit(gl, hiddenDim) {
    return 4 * hiddenDim ** 2 <= Math.max(MIN_BLOCK_BYTES, gl.getParameter(gl.MAX_UNIFORM_BLOCK_SIZE));
  }

  // -- shader text -----------------------------------------------------------------------------------------------------

  writeDeclarations() {
    const { groups, layout, numLayers } = this;
    const parts = [SINE_GLSL, `layout(std140) uniform Small { vec4 small[${layout.heads + 1}]; };`];
    for (const name of this.names) parts.push(this.writeMatrix(name));
    parts.push(this.writePhases(), `vec4 hidden[${groups}];`, this.writeFirstLayer());
    for (let layer = 1; layer < numLayers; layer++) parts.push(this.writeLayer(layer));
    parts.push(this.writeFeatures(), this.writeLogit(), this.writeColor(), this.writeGradient());
    return parts.join("\n");
  }

  /** Element k of a matrix: four outputs' weights of one input, k = group * hiddenDim + input. */
  writeMatrix(name) {
    if (this.inTextures) {
      return `uniform sampler2D ${name}Texture;
#define ${name}(k) texelFetch(${name}Texture, ivec2((k) % ${this.hiddenDim}, (k) / ${this.hiddenDim}), 0)`;
    }
    return `layout(std140) uniform Block_${name} { vec4 ${name}Values[${this.groups * this.hiddenDim}]; };
#define ${name}(k) ${name}Values[k]`;
  }

  /** q of every layer if the gradient needs it again, otherwise of the current layer only. */
  writePhases() {
    return `
#ifdef NEEDS_GRADIENT
vec4 phases[${this.numLayers * this.groups}];
#define PHASE(layer, j) phases[(layer) * ${this.groups} + (j)]
#else
vec4 phases[${this.groups}];
#define PHASE(layer, j) phases[j]
#endif`;
  }

  writeFirstLayer() {
    const { groups, layout } = this;
    return `
void layer0(vec3 point) {
  for (int j = 0; j < ${groups}; j++) {
    int k = ${layout.first} + 3 * j;
    PHASE(0, j) = small[j] + small[k] * point.x + small[k + 1] * point.y + small[k + 2] * point.z;
  }
${this.writeSines(0)}
}`;
  }

  writeSines(layer) {
    if (this.unrolls) return Array.from({ length: this.groups }, (_, j) => `  hidden[${j}] = sine(PHASE(${layer}, ${j}));`).join("\n");
    return `  for (int j = 0; j < ${this.groups}; j++) hidden[j] = sine(PHASE(${layer}, j));`;
  }

  /** q += matrix * hidden, for the four outputs whose elements begin at k. */
  writeProduct(name) {
    const terms = (i, m) => ["x", "y", "z", "w"].map((part, c) => `${name}(${m} + ${c}) * hidden[${i}].${part}`).join(" + ");
    return this.overInputs((i, m) => `q += ${terms(i, m)};`);
  }

  /** A statement for each group of inputs i, whose elements begin at m: unrolled, or in a loop. */
  overInputs(statement) {
    if (this.unrolls) return Array.from({ length: this.groups }, (_, i) => `    ${statement(i, `k + ${4 * i}`)}`).join("\n");
    return `    for (int i = 0; i < ${this.groups}; i++) {\n      int m = k + 4 * i;\n      ${statement("i", "m")}\n    }`;
  }

  writeLayer(layer) {
    const { groups, hiddenDim } = this;
    return `
void layer${layer}() {
  for (int j = 0; j < ${groups}; j++) {
    int k = j * ${hiddenDim};
    vec4 q = small[${layer * groups} + j];
${this.writeProduct(`matrix${layer}`)}
    PHASE(${layer}, j) = q;
  }
${this.writeSines(layer)}
}`;
  }

  writeFeatures() {
    const calls = Array.from({ length: this.numLayers }, (_, layer) => `  layer${layer}(${layer ? "" : "point"});`);
    return `void features(vec3 point) {\n${calls.join("\n")}\n}`;
  }

  writeLogit() {
    const { groups, layout } = this;
    return `
float occupancyLogit(vec3 point) {
  features(point);
  float logit = small[${layout.heads}].w;
  for (int j = 0; j < ${groups}; j++) logit += dot(small[${layout.logit} + j], hidden[j]);
  return logit;
}`;
  }

  writeColor() {
    const { groups, hiddenDim, layout, numLayers } = this;
    return `
vec3 fieldColor(vec3 point, vec3 direction) {
  features(point);
  vec3 color = small[${layout.heads}].xyz;
  for (int j = 0; j < ${groups}; j++) {
    int k = ${layout.direction} + 3 * j;
    vec4 q = small[${numLayers * groups} + j] + small[k] * direction.x + small[k + 1] * direction.y + small[k + 2] * direction.z;
    k = j * ${hiddenDim};
${this.writeProduct("matrixColor")}
    q = sine(q);
    k = ${layout.rgb} + 3 * j;
    color += vec3(dot(small[k], q), dot(small[k + 1], q), dot(small[k + 2], q));
  }
  return 1.0 / (1.0 + exp(-color));
}`;
  }

  /** The chain rule from the logit down: a matrix's transpose reads the same elements. */
  writeGradient() {
    const { groups, hiddenDim, layout, numLayers } = this;
    const steps = [];
    for (let layer = numLayers - 1; layer > 0; layer--) {
      const terms = (m) => [0, 1, 2, 3].map((c) => `dot(matrix${layer}(${m} + ${c}), g)`).join(", ");
      const product = this.overInputs((i, m) => `hidden[${i}] += vec4(${terms(m)});`);
      steps.push(`
  for (int j = 0; j < ${groups}; j++) gradient[j] *= cosine(PHASE(${layer}, j));
  for (int j = 0; j < ${groups}; j++) hidden[j] = vec4(0.0);
  for (int j = 0; j < ${groups}; j++) {
    int k = j * ${hiddenDim};
    vec4 g = gradient[j];
${product}
  }
  gradient = hidden;`);
    }
    return `
#ifdef NEEDS_GRADIENT
vec3 logitGradient(vec3 point) {
  features(point);
  vec4 gradient[${groups}];
  for (int j = 0; j < ${groups}; j++) gradient[j] = small[${layout.logit} + j];
${steps.join("\n")}
  vec3 sum = vec3(0.0);
  for (int j = 0; j < ${groups}; j++) {
    vec4 g = gradient[j] * cosine(PHASE(0, j));
    int k = ${layout.first} + 3 * j;
    sum += vec3(dot(small[k], g), dot(small[k + 1], g), dot(small[k + 2], g));
  }
  return sum;
}
#endif`;
  }

  // -- weights ---------------------------------------------------------------------------------------------------------

  /** FiLM folded into the weights: {small, matrices}, Float32Arrays in the layout of the shader. */
  fold(generator, styles) {
    const { hiddenDim, groups, layout, numLayers, names } = this;
    const { tensors, settings } = generator;
    const [frequencies, phaseShifts] = [styles.subarray(0, styles.length / 2), styles.subarray(styles.length / 2)];
    const small = new Float32Array(4 * (layout.heads + 1));
    const matrices = [];
    for (let layer = 0; layer <= numLayers; layer++) {
      const name = layer < numLayers ? `siren.network.${layer}.layer` : "siren.color_layer_sine.layer";
      const weight = tensors[`${name}.weight`];
      const numInputs = weight.length / hiddenDim;
      const matrix = layer > 0 ? new Float32Array(hiddenDim ** 2) : null;
      for (let row = 0; row < hiddenDim; row++) {
        const index = layer * hiddenDim + row;
        const turns = (15 * frequencies[index] + 30) / (2 * Math.PI);
        small[index] = turns * tensors[`${name}.bias`][row] + phaseShifts[index] / (2 * Math.PI) - 0.25;
        const numVector = layer === 0 || layer === numLayers ? 3 : 0; // inputs that are a point or a direction
        const scale = layer === 0 ? settings.pointScale : settings.viewDependent ? 1 : 0;
        const start = layer === 0 ? layout.first : layout.direction;
        for (let column = 0; column < numVector; column++) {
          small[place(start, 3, row, column)] = turns * scale * weight[row * numInputs + column];
        }
        for (let column = numVector; column < numInputs; column++) {
          matrix[place(0, hiddenDim, row, column - numVector)] = turns * weight[row * numInputs + column];
        }
      }
      if (matrix) matrices.push(matrix);
    }
    small.set(tensors["siren.final_layer.weight"], 4 * layout.logit);
    for (let group = 0; group < groups; group++) {
      for (let channel = 0; channel < 3; channel++) {
        const start = channel * hiddenDim + 4 * group;
        const values = tensors["siren.color_layer_linear.0.weight"].subarray(start, start + 4);
        small.set(values, 4 * (layout.rgb + 3 * group + channel));
      }
    }
    const threshold = Math.log(settings.tau / (1 - settings.tau));
    small.set(tensors["siren.color_layer_linear.0.bias"], 4 * layout.heads);
    small[4 * layout.heads + 3] = tensors["siren.final_layer.bias"][0] - threshold;
    if (matrices.length !== names.length) throw new Error("one matrix per layer after the first");
    return { small, matrices };
  }

  createStorage(gl) {
    const storage = { small: gl.createBuffer(), matrices: this.names.map(() => (this.inTextures ? gl.createTexture() : gl.createBuffer())) };
    for (const texture of this.inTextures ? storage.matrices : []) {
      gl.bindTexture(gl.TEXTURE_2D, texture);
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
    }
    return storage;
  }

  upload(gl, storage, { small, matrices }) {
    const toBuffer = (buffer, values) => {
      gl.bindBuffer(gl.UNIFORM_BUFFER, buffer);
      gl.bufferData(gl.UNIFORM_BUFFER, values, gl.DYNAMIC_DRAW);
    };
    const toTexture = (texture, values) => {
      gl.bindTexture(gl.TEXTURE_2D, texture);
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA32F, this.hiddenDim, this.groups, 0, gl.RGBA, gl.FLOAT, values);
    };
    toBuffer(storage.small, small);
    matrices.forEach((values, i) => (this.inTextures ? toTexture : toBuffer)(storage.matrices[i], values));
  }

  /** The field uses texture units from 1 on. A program has no locations for matrices that it does not use. */
  attach(gl, program, storage) {
    const attachBlock = (name, binding, buffer) => {
      const index = gl.getUniformBlockIndex(program, name);
      if (index === gl.INVALID_INDEX) return;
      gl.uniformBlockBinding(program, index, binding);
      gl.bindBufferBase(gl.UNIFORM_BUFFER, binding, buffer);
    };
    attachBlock("Small", 0, storage.small);
    this.names.forEach((name, i) => {
      if (!this.inTextures) {
        attachBlock(`Block_${name}`, 1 + i, storage.matrices[i]);
        return;
      }
      gl.activeTexture(gl.TEXTURE0 + 1 + i);
      gl.bindTexture(gl.TEXTURE_2D, storage.matrices[i]);
      gl.uniform1i(gl.getUniformLocation(program, `${name}Texture`), 1 + i);
    });
    gl.activeTexture(gl.TEXTURE0);
  }
}

/** Index of a number: matrices and vectors are stored by groups of four outputs, input after input. */
function place(start, numInputs, output, input) {
  return 4 * (start + Math.floor(output / 4) * numInputs + input) + (output % 4);
}
