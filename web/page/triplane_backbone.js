// Styles -> three feature planes: the StyleGAN2 synthesis network of triplane/backbone.py, once per latent.
// It runs in a worker (backbone_worker.js), so the page stays responsive meanwhile.
// Images are {size, channels, values}: values (size, size, channels), row-major, float64, which costs no conversions.

/** Twice the size, bilinear, as PyTorch's interpolate without aligned corners. */
function upsampled({ size, channels, values }) {
  const result = { size: 2 * size, channels, values: new Float64Array(4 * values.length) };
  for (let y = 0; y < 2 * size; y++) {
    const [above, below, dy] = neighbors(y, size);
    for (let x = 0; x < 2 * size; x++) {
      const [left, right, dx] = neighbors(x, size);
      const corners = [above * size + left, above * size + right, below * size + left, below * size + right];
      const weights = [(1 - dy) * (1 - dx), (1 - dy) * dx, dy * (1 - dx), dy * dx];
      const target = (y * 2 * size + x) * channels;
      for (let corner = 0; corner < 4; corner++) {
        const source = corners[corner] * channels;
        for (let c = 0; c < channels; c++) result.values[target + c] += weights[corner] * values[source + c];
      }
    }
  }
  return result;
}

/** Of an enlarged index: the two source indices and how far it lies between them. */
function neighbors(index, size) {
  const position = Math.max((index + 0.5) / 2 - 0.5, 0);
  const first = Math.floor(position);
  return [first, Math.min(first + 1, size - 1), position - first];
}

/** 3 x 3 convolution with a margin of zeros. taps: (9, inputs, outputs), row-major. */
function convolved({ size, channels, values }, taps, numOutputs) {
  const result = { size, channels: numOutputs, values: new Float64Array(size * size * numOutputs) };
  const sums = new Float64Array(numOutputs);
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < size; x++) {
      sums.fill(0);
      for (let tap = 0; tap < 9; tap++) {
        const [row, column] = [y + Math.floor(tap / 3) - 1, x + (tap % 3) - 1];
        if (row < 0 || row >= size || column < 0 || column >= size) continue;
        addProduct(sums, values, (row * size + column) * channels, channels, taps, tap * channels * numOutputs);
      }
      result.values.set(sums, (y * size + x) * numOutputs);
    }
  }
  return result;
}

/** sums += input matrix; input: values from `start` on, matrix (inputs, sums.length) from `place` on. Four inputs at a time. */
function addProduct(sums, values, start, numInputs, matrix, place) {
  const numOutputs = sums.length;
  const numFours = numInputs - (numInputs % 4);
  let k = place;
  for (let i = start; i < start + numFours; i += 4) {
    const [a, b, c, d] = [values[i], values[i + 1], values[i + 2], values[i + 3]];
    for (let o = 0; o < numOutputs; o++, k++) {
      const below = k + 2 * numOutputs;
      sums[o] += a * matrix[k] + b * matrix[k + numOutputs] + c * matrix[below] + d * matrix[below + numOutputs];
    }
    k += 3 * numOutputs;
  }
  for (let i = start + numFours; i < start + numInputs; i++) {
    for (let o = 0; o < numOutputs; o++, k++) sums[o] += values[i] * matrix[k];
  }
}

/** A convolution's weights (outputs, inputs, 3, 3) as taps (9, inputs, outputs), and per output and input the sum of squares. */
function arrangedWeights(weight, numOutputs) {
  const numInputs = weight.length / (9 * numOutputs);
  const taps = new Float64Array(weight.length);
  const squares = new Float64Array(numOutputs * numInputs);
  for (let o = 0; o < numOutputs; o++) {
    for (let i = 0; i < numInputs; i++) {
      for (let tap = 0; tap < 9; tap++) {
        const value = weight[(o * numInputs + i) * 9 + tap];
        taps[(tap * numInputs + i) * numOutputs + o] = value;
        squares[o * numInputs + i] += value * value;
      }
    }
  }
  return { taps, squares };
}

class TriplaneBackbone {
  constructor(settings, tensors) {
    this.settings = settings;
    this.tensors = tensors;
    this.arranged = new Map(); // of each convolution, made once
  }

  /** Planes of styles: an image of 3 * planeChannels channels. */
  planes(styles) {
    const { styleDim, numResolutions } = this.settings;
    let layer = 0;
    let before = { image: this.startImage(), demodulation: null, bias: null };
    let planes = null;
    for (let block = 0; block < numResolutions; block++) {
      let w;
      for (let conv = 0; conv < (block ? 2 : 1); conv++) {
        w = styles.subarray(layer * styleDim, (layer + 1) * styleDim);
        layer++;
        before = this.convolution(before, `triplane.backbone.blocks.${block}.${conv}`, w, block > 0 && conv === 0);
      }
      planes = this.toPlanes(before, `triplane.backbone.to_planes.${block}`, w, planes);
    }
    return planes;
  }

  /** The learned constant (channels, 4, 4), channels last. */
  startImage() {
    const start = this.tensors["triplane.backbone.start"];
    const channels = start.length / 16;
    const values = Float64Array.from({ length: start.length }, (_, i) => start[(i % channels) * 16 + Math.floor(i / channels)]);
    return { size: 4, channels, values };
  }

  /** The next layer's input: leakyRelu(x demodulation + bias) style; of the constant, only times the style. */
  modulated({ image, demodulation, bias }, style) {
    const { channels } = image;
    const values = image.values.map((value, i) => {
      const c = i % channels;
      return (demodulation ? leakyRelu(value * demodulation[c] + bias[c]) : value) * style[c];
    });
    return { ...image, values };
  }

  convolution(before, name, w, isUpsampled) {
    const { tensors } = this;
    const bias = tensors[`${name}.bias`];
    if (!this.arranged.has(name)) this.arranged.set(name, arrangedWeights(tensors[`${name}.weight`], bias.length));
    const { taps, squares } = this.arranged.get(name);
    const style = equalizedLinear(tensors, `${name}.affine`, w);
    const norms = linear(squares, new Float64Array(bias.length), style.map((value) => value * value));
    const demodulation = norms.map((norm) => Math.SQRT2 / Math.sqrt(norm + 1e-8));
    const image = convolved(this.modulated(before, style), taps, bias.length);
    return { image: isUpsampled ? upsampled(image) : image, demodulation, bias };
  }

  toPlanes(before, name, w, coarser) {
    const { tensors } = this;
    const bias = tensors[`${name}.bias`];
    const numInputs = before.image.channels;
    const gain = 1 / Math.sqrt(NUM_PLANES * this.settings.numResolutions * numInputs);
    const style = equalizedLinear(tensors, `${name}.affine`, w).map((value) => value * gain);
    const { size, values } = this.modulated(before, style);
    const planes = coarser ? upsampled(coarser) : { size, channels: bias.length, values: new Float64Array(size * size * bias.length) };
    const sums = new Float64Array(bias.length);
    for (let texel = 0; texel < size * size; texel++) {
      sums.set(bias);
      addProduct(sums, values, texel * numInputs, numInputs, tensors[`${name}.weight`], 0);
      for (let c = 0; c < bias.length; c++) planes.values[texel * bias.length + c] += sums[c];
    }
    return planes;
  }
}
