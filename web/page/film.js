// Latent -> mapping network -> FiLM parameters (Chan et al., "pi-GAN", CVPR 2021). Everything in double precision.

const LEAKY_SLOPE = 0.2;

/** weight x + bias; weight (outputs, inputs) row-major. */
function linear(weight, bias, input) {
  const output = Float64Array.from(bias);
  for (let row = 0; row < output.length; row++) {
    const start = row * input.length;
    for (let column = 0; column < input.length; column++) output[row] += weight[start + column] * input[column];
  }
  return output;
}

/** FiLM parameters of all layers, the color layer's last: {frequencies, phaseShifts}, (numLayers + 1) * hiddenDim each. */
function mapLatent(tensors, z) {
  let hidden = z;
  for (const index of [0, 2, 4]) {
    const name = `siren.mapping_network.network.${index}`;
    hidden = linear(tensors[`${name}.weight`], tensors[`${name}.bias`], hidden);
    hidden = hidden.map((value) => (value < 0 ? LEAKY_SLOPE * value : value));
  }
  const name = "siren.mapping_network.network.6";
  const output = linear(tensors[`${name}.weight`], tensors[`${name}.bias`], hidden);
  const half = output.length / 2;
  return { frequencies: output.subarray(0, half), phaseShifts: output.subarray(half) };
}

/** start + weight * (end - start); `weightOf(i)` may differ from parameter to parameter. */
function lerp(start, end, weightOf) {
  return start.map((value, i) => value + weightOf(i) * (end[i] - value));
}

function lerpFilm(start, end, weightOf) {
  return {
    frequencies: lerp(start.frequencies, end.frequencies, weightOf),
    phaseShifts: lerp(start.phaseShifts, end.phaseShifts, weightOf),
  };
}

/** A generator: settings and tensors. Its `film` answers what the field's weights are modulated with. */
class Generator {
  constructor(settings, tensors) {
    this.settings = settings;
    this.tensors = tensors;
    this.mean = { frequencies: tensors["truncation_mean.frequencies"], phaseShifts: tensors["truncation_mean.phase_shifts"] };
    this.films = new Map();
  }

  /** FiLM parameters of a seed (bigint) without truncation. */
  filmOfSeed(seed) {
    if (!this.films.has(seed)) {
      if (this.films.size > 64) this.films.clear();
      const z = latentFromSeed(seed, this.settings.latentDim, this.settings.latentDistribution);
      this.films.set(seed, mapLatent(this.tensors, z));
    }
    return this.films.get(seed);
  }

  /**
   * FiLM parameters of a seed mixed with a second one's, then truncated toward the mean.
   * @param {number} shape 0 to 1: how much of the second seed the layers below the surface take
   * @param {number} color the same for the color layer, which the surface does not depend on
   */
  film({ seed, secondSeed, shape, color, psi }) {
    const numShape = this.settings.numLayers * this.settings.hiddenDim;
    let film = this.filmOfSeed(seed);
    if (shape || color) film = lerpFilm(film, this.filmOfSeed(secondSeed), (i) => (i < numShape ? shape : color));
    return psi === 1 ? film : lerpFilm(this.mean, film, () => psi);
  }
}
