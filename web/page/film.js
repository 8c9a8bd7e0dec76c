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

/**
 * A generator: settings and tensors. Its `film` answers what the field's weights are modulated with. Where the tensors hold
 * those of a photo's latent (invert.py), that latent stands in for a seed: the seed null.
 */
class Generator {
  constructor(settings, tensors) {
    this.settings = settings;
    this.tensors = tensors;
    this.hasPhoto = "photo.frequencies" in tensors;
  }

  /** The FiLM parameters under a prefix of the tensors' names. */
  storedFilm(prefix) {
    return { frequencies: this.tensors[`${prefix}.frequencies`], phaseShifts: this.tensors[`${prefix}.phase_shifts`] };
  }

  /** FiLM parameters of a seed (bigint), truncated toward the mean; those of the photo (null) as they were found. */
  filmOfSeed(seed, psi) {
    if (seed === null) return this.storedFilm("photo");
    const film = mapLatent(this.tensors, latentFromSeed(seed, this.settings.latentDim, this.settings.latentDistribution));
    return psi === 1 ? film : lerpFilm(this.storedFilm("truncation_mean"), film, () => psi);
  }

  /**
   * FiLM parameters of a seed mixed with a second one's.
   * @param {number} shape 0 to 1: how much of the second seed the layers take that the surface depends on
   * @param {number} color the same for the color layer
   */
  film({ seed, secondSeed, shape, color, psi }) {
    const film = this.filmOfSeed(seed, psi);
    if (!shape && !color) return film;
    const numShape = this.settings.numLayers * this.settings.hiddenDim;
    return lerpFilm(film, this.filmOfSeed(secondSeed, psi), (i) => (i < numShape ? shape : color));
  }
}
