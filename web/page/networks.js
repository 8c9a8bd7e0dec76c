// The two kinds of generators and their styles. A network is an object with
//   styles(tensors, z)            the mapping network: latent -> styles, one flat Float64Array
//   stored(tensors, prefix)       styles stored as tensors: the truncation mean, or those of a photo
//   isAppearance(settings, i)     whether style number i belongs to the second half of the layers, which a mix takes from the
//                                 appearance, as style_mixing.py does by default
//   createProgram(gl, settings, how)  the field program; how: what SirenProgram's constructor takes

/** pi-GAN's SIREN. Styles: frequencies of all FiLM layers, the color layer's last, then their phase shifts. */
const SIREN_NETWORK = {
  styles(tensors, z) {
    let hidden = z;
    for (const index of [0, 2, 4]) {
      const name = `siren.mapping_network.network.${index}`;
      hidden = linear(tensors[`${name}.weight`], tensors[`${name}.bias`], hidden).map(leakyRelu);
    }
    const name = "siren.mapping_network.network.6";
    return linear(tensors[`${name}.weight`], tensors[`${name}.bias`], hidden);
  },
  stored(tensors, prefix) {
    return Float64Array.of(...tensors[`${prefix}.frequencies`], ...tensors[`${prefix}.phase_shifts`]);
  },
  isAppearance({ numLayers, hiddenDim }, i) {
    return i % ((numLayers + 1) * hiddenDim) >= Math.floor((numLayers + 1) / 2) * hiddenDim;
  },
  createProgram(gl, settings, { inTextures, unrolls }) {
    return new SirenProgram(settings, { inTextures: inTextures || !SirenProgram.weightsFit(gl, settings.hiddenDim), unrolls });
  },
};

const MAPPING_RATE = 0.1; // learning rate of the tri-planes' mapping network, over that of the other layers

/** EG3D's tri-planes. Styles: the w of each layer of the backbone, coarse to fine. */
const TRIPLANE_NETWORK = {
  styles(tensors, z) {
    const meanSquare = z.reduce((sum, value) => sum + value * value, 0) / z.length;
    let w = z.map((value) => value / Math.sqrt(meanSquare + 1e-8));
    for (const layer of ["hidden", "output"]) {
      const name = `triplane.mapping_network.${layer}`;
      const product = equalizedLinear(tensors, name, w, MAPPING_RATE);
      w = product.map((value) => Math.SQRT2 * leakyRelu(value));
    }
    const numLayers = tensors["truncation_mean.styles"].length / w.length;
    return Float64Array.from({ length: numLayers * w.length }, (_, i) => w[i % w.length]);
  },
  stored: (tensors, prefix) => tensors[`${prefix}.styles`],
  isAppearance({ numStyleLayers, styleDim }, i) {
    return Math.floor(i / styleDim) >= Math.floor(numStyleLayers / 2);
  },
  createProgram: (gl, settings) => new TriplaneProgram(settings),
};

const NETWORKS = { siren: SIREN_NETWORK, triplane: TRIPLANE_NETWORK };

function lerp(start, end, weightOf) {
  return start.map((value, i) => value + weightOf(i) * (end[i] - value));
}

/**
 * A generator: settings and tensors. Its styles determine the field. If the tensors contain the styles of a photo
 * (invert.py), the seed null selects them.
 */
class Generator {
  constructor(settings, tensors) {
    this.settings = settings;
    this.tensors = tensors;
    this.network = NETWORKS[settings.network];
    this.hasPhoto = Object.keys(tensors).some((name) => name.startsWith("photo."));
  }

  /** Styles of a seed (bigint), truncated toward the mean; those of the photo (null) as they were found. */
  stylesOfSeed(seed, psi) {
    if (seed === null) return this.network.stored(this.tensors, "photo");
    const { latentDim, latentDistribution } = this.settings;
    const styles = this.network.styles(this.tensors, latentFromSeed(seed, latentDim, latentDistribution));
    return psi === 1 ? styles : lerp(this.network.stored(this.tensors, "truncation_mean"), styles, () => psi);
  }

  /**
   * Styles of a seed mixed with a second one's.
   * @param {number} shape 0 to 1: how much of the second seed the layers take that give the geometry
   * @param {number} color the same for the layers that give the appearance
   */
  styles({ seed, secondSeed, shape, color, psi }) {
    const styles = this.stylesOfSeed(seed, psi);
    if (!shape && !color) return styles;
    const weightOf = (i) => (this.network.isAppearance(this.settings, i) ? color : shape);
    return lerp(styles, this.stylesOfSeed(secondSeed, psi), weightOf);
  }
}
