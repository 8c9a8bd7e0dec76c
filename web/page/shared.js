// What the page and its worker share: linear layers and their activation.

const NUM_PLANES = 3;
const LEAKY_SLOPE = 0.2;
const leakyRelu = (value) => (value < 0 ? LEAKY_SLOPE * value : value);

/** weight x + bias; weight (outputs, inputs) row-major. */
function linear(weight, bias, input) {
  const output = Float64Array.from(bias);
  for (let row = 0; row < output.length; row++) {
    const start = row * input.length;
    for (let column = 0; column < input.length; column++) output[row] += weight[start + column] * input[column];
  }
  return output;
}

/** A layer with equalized learning rate: weights are scaled when used. */
function equalizedLinear(tensors, name, input, rate = 1) {
  const gain = rate / Math.sqrt(input.length);
  const scaled = input.map((value) => value * gain);
  return linear(tensors[`${name}.weight`], tensors[`${name}.bias`].map((value) => value * rate), scaled);
}
