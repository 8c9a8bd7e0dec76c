// Tri-planes as a field program (see siren_program.js): bilinear reads of three planes, then a decoder of one hidden layer.
//
//   logit = clamp(center (1 - |u / axes|), -limit, limit) + decoder_0(features),    color = sigmoid(decoder_123(features))
//
// The planes are in a texture array, four channels per layer, read texel by texel, because a GPU's own filter rounds positions
// between texels to 8 bits. Source: triplane/lookup.py, triplane/decoder.py.

const MAX_BALL_LOGIT = 6;

const TRIPLANE_GLSL = `
float activation(float x) {
  float bend = clamp(x, -1.0, 1.0) + 1.0;
  return 0.2 * x + 0.8 * (0.25 * bend * bend + max(x - 1.0, 0.0));
}
vec4 activation(vec4 x) { return vec4(activation(x.x), activation(x.y), activation(x.z), activation(x.w)); }
vec4 outputs(vec3 point) { // logit, then the color before its sigmoid
  vec3 coordinates = vec3(dot(frame[0].xyz, point), dot(frame[1].xyz, point), dot(frame[2].xyz, point));
  vec3 position = clamp(coordinates * 0.5 + 0.5, 0.0, 1.0) * float(SIZE - 1);
  vec3 low = min(floor(position), float(SIZE - 2));
  vec3 fraction = position - low;
  ivec3 texel = ivec3(low);
  vec4 features[CHANNELS];
  for (int c = 0; c < CHANNELS; c++) {
    vec4 xy = bilinear(texel.xy, fraction.xy, c);
    vec4 xz = bilinear(texel.xz, fraction.xz, CHANNELS + c);
    vec4 yz = bilinear(texel.yz, fraction.yz, 2 * CHANNELS + c);
    features[c] = IS_PRODUCT ? (1.0 + xy) * (1.0 + xz) * (1.0 + yz) - 1.0 : xy + xz + yz;
  }
  vec4 result = outputBias;
  for (int j = 0; j < HIDDEN; j++) {
    vec4 sum = hiddenBias[j];
    for (int c = 0; c < CHANNELS; c++) {
      int k = 4 * (j * CHANNELS + c);
      sum += hiddenWeight[k] * features[c].x + hiddenWeight[k + 1] * features[c].y;
      sum += hiddenWeight[k + 2] * features[c].z + hiddenWeight[k + 3] * features[c].w;
    }
    vec4 h = activation(sum);
    int k = 4 * j;
    result += outputWeight[k] * h.x + outputWeight[k + 1] * h.y + outputWeight[k + 2] * h.z + outputWeight[k + 3] * h.w;
  }
  float distance = length(coordinates * vec3(frame[0].w, frame[1].w, frame[2].w)); // 1 on the ball's surface
  result.x += clamp(frame[3].x * (1.0 - distance), -frame[3].y, frame[3].y);
  return result;
}
float occupancyLogit(vec3 point) { return outputs(point).x; }
vec3 fieldColor(vec3 point, vec3 direction) { return 1.0 / (1.0 + exp(-outputs(point).yzw)); }
#ifdef NEEDS_GRADIENT
vec3 logitGradient(vec3 point) { // differences over a tetrahedron two texels wide, because the gradient of bilinear planes is discontinuous
  vec3 sum = vec3(0.0);
  for (int corner = 0; corner < 4; corner++) {
    vec3 offset = corner == 0 ? vec3(1, -1, -1) : corner == 1 ? vec3(-1, -1, 1) : corner == 2 ? vec3(-1, 1, -1) : vec3(1);
    sum += outputs(point + frame[3].z * offset).x * offset;
  }
  return sum;
}
#endif
`;

class TriplaneProgram {
  constructor({ planeSize, planeChannels, decoderDim, isProduct }) {
    this.size = planeSize;
    this.groups = planeChannels / 4;
    this.hiddenGroups = decoderDim / 4;
    this.key = `triplane ${planeSize} ${planeChannels} ${decoderDim} ${isProduct}`;
    const numWeights = planeChannels * this.hiddenGroups;
    this.evaluationCost = 12 * planeChannels + planeChannels * decoderDim + 4 * decoderDim;
    this.colorCost = this.evaluationCost;
    this.declarations = `
#define SIZE ${planeSize}
#define CHANNELS ${this.groups}
#define HIDDEN ${this.hiddenGroups}
#define IS_PRODUCT ${isProduct}
precision highp sampler2DArray;
uniform sampler2DArray planes;
layout(std140) uniform Decoder {
  // rows of the matrix to plane coordinates, each with 1 / a semi-axis of the ball; then the ball's logit at its center before
  // the clamp, the limit, and the width of a texel
  vec4 frame[4];
  vec4 outputBias;
  vec4 hiddenBias[HIDDEN];
  vec4 outputWeight[${decoderDim}];
  vec4 hiddenWeight[${numWeights}];
};
vec4 bilinear(ivec2 texel, vec2 fraction, int layer) {
  vec4 top = mix(texelFetch(planes, ivec3(texel, layer), 0), texelFetch(planes, ivec3(texel + ivec2(1, 0), layer), 0), fraction.x);
  ivec3 below = ivec3(texel + ivec2(0, 1), layer);
  vec4 bottom = mix(texelFetch(planes, below, 0), texelFetch(planes, below + ivec3(1, 0, 0), 0), fraction.x);
  return mix(top, bottom, fraction.y);
}
${TRIPLANE_GLSL}`;
  }

  /** The planes of styles, made in a worker, and the decoder: {decoder, planes}, Float32Arrays in the layout of the shader. */
  async fold(generator, styles) {
    const { tensors, settings } = generator;
    generator.planeMaker ??= new PlaneMaker(settings, tensors);
    const values = await generator.planeMaker.planes(styles);
    return { decoder: this.decoder(tensors, settings), planes: this.layered(values) };
  }

  /** (size, size, 3 * channels) -> (3 * channels / 4, size, size, 4). */
  layered(values) {
    const numChannels = 4 * NUM_PLANES * this.groups;
    const texels = this.size ** 2;
    const result = new Float32Array(values.length);
    for (let i = 0; i < values.length; i++) {
      const [texel, channel] = [Math.floor(i / numChannels), i % numChannels];
      result[4 * (Math.floor(channel / 4) * texels + texel) + (channel % 4)] = values[i];
    }
    return result;
  }

  decoder(tensors, { tau }) {
    const [numChannels, hiddenDim] = [4 * this.groups, 4 * this.hiddenGroups];
    const stored = (name) => tensors[`triplane.decoder.${name}`];
    const extent = tensors["triplane.extent"][0];
    const orientation = tensors["triplane.orientation"];
    const result = new Float32Array(4 * (5 + this.hiddenGroups + hiddenDim + numChannels * this.hiddenGroups));
    const [radius, slope] = [tensors["triplane.ball_radius"][0], tensors["triplane.ball_slope"][0]];
    const stretch = tensors["triplane.ball_stretch"] ?? [1, 1, 1];
    for (let row = 0; row < 3; row++) {
      for (let column = 0; column < 3; column++) result[4 * row + column] = orientation[3 * row + column] / extent;
      result[4 * row + 3] = extent / (radius * stretch[row]);
    }
    result.set([slope * radius, MAX_BALL_LOGIT, (2 * extent) / (this.size - 1)], 12);
    result.set(stored("output_bias"), 16);
    result[16] -= Math.log(tau / (1 - tau));
    result.set(stored("hidden_bias"), 20);
    const outputs = 5 + this.hiddenGroups;
    stored("output_weight").forEach((value, i) => {
      result[4 * (outputs + (i % hiddenDim)) + Math.floor(i / hiddenDim)] = value / Math.sqrt(hiddenDim);
    });
    stored("hidden_weight").forEach((value, i) => {
      result[place(outputs + hiddenDim, numChannels, Math.floor(i / numChannels), i % numChannels)] = value / Math.sqrt(numChannels);
    });
    return result;
  }

  createStorage(gl) {
    const storage = { decoder: gl.createBuffer(), planes: gl.createTexture() };
    gl.bindTexture(gl.TEXTURE_2D_ARRAY, storage.planes);
    gl.texStorage3D(gl.TEXTURE_2D_ARRAY, 1, gl.RGBA32F, this.size, this.size, NUM_PLANES * this.groups);
    for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D_ARRAY, name, gl.NEAREST);
    return storage;
  }

  upload(gl, storage, { decoder, planes }) {
    gl.bindBuffer(gl.UNIFORM_BUFFER, storage.decoder);
    gl.bufferData(gl.UNIFORM_BUFFER, decoder, gl.DYNAMIC_DRAW);
    gl.bindTexture(gl.TEXTURE_2D_ARRAY, storage.planes);
    const numLayers = NUM_PLANES * this.groups;
    gl.texSubImage3D(gl.TEXTURE_2D_ARRAY, 0, 0, 0, 0, this.size, this.size, numLayers, gl.RGBA, gl.FLOAT, planes);
  }

  attach(gl, program, storage) {
    const index = gl.getUniformBlockIndex(program, "Decoder");
    if (index === gl.INVALID_INDEX) return;
    gl.uniformBlockBinding(program, index, 0);
    gl.bindBufferBase(gl.UNIFORM_BUFFER, 0, storage.decoder);
    gl.activeTexture(gl.TEXTURE1);
    gl.bindTexture(gl.TEXTURE_2D_ARRAY, storage.planes);
    gl.uniform1i(gl.getUniformLocation(program, "planes"), 1);
    gl.activeTexture(gl.TEXTURE0);
  }
}
