// Latents of seeds, by the algorithm of PyTorch's CPU generator, so that a seed gives the same head as in Python.

/** The 32-bit Mersenne Twister (Matsumoto and Nishimura, 1998), seeded as PyTorch seeds it: with the low 32 bits. */
class MersenneTwister {
  /** @param {bigint} seed 0 <= seed < 2^63 */
  constructor(seed) {
    this.state = new Uint32Array(624);
    this.state[0] = Number(BigInt.asUintN(32, seed));
    for (let i = 1; i < 624; i++) {
      const previous = this.state[i - 1] ^ (this.state[i - 1] >>> 30);
      this.state[i] = Math.imul(1812433253, previous) + i;
    }
    this.index = 624;
  }

  /** The next 32 random bits, an unsigned integer. */
  next() {
    if (this.index === 624) this.refill();
    let bits = this.state[this.index++];
    bits ^= bits >>> 11;
    bits ^= (bits << 7) & 0x9d2c5680;
    bits ^= (bits << 15) & 0xefc60000;
    return (bits ^ (bits >>> 18)) >>> 0;
  }

  refill() {
    const state = this.state;
    for (let i = 0; i < 624; i++) {
      const mixed = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
      state[i] = state[(i + 397) % 624] ^ (mixed >>> 1) ^ (mixed & 1 ? 0x9908b0df : 0);
    }
    this.index = 0;
  }

  /** Uniform in [0, 1) with the 24 bits of a float32. */
  uniform() {
    return (this.next() & 0xffffff) / 0x1000000;
  }

  /** Uniform in [0, 1) with the 53 bits of a float64; the high word is drawn first. */
  uniformDouble() {
    const high = this.next() & 0x1fffff;
    return (high * 0x100000000 + this.next()) / 2 ** 53;
  }
}

/** Replace 16 uniform numbers by normal ones: number j and number j + 8 make a pair (Box and Muller). */
function makeNormal(values, start) {
  for (let j = start; j < start + 8; j++) {
    const radius = Math.sqrt(-2 * Math.log(1 - values[j]));
    const angle = 2 * Math.PI * values[j + 8];
    values[j] = radius * Math.cos(angle);
    values[j + 8] = radius * Math.sin(angle);
  }
}

/** torch.randn(count): from 16 on in groups of 16, and if count is not a multiple, the last 16 are drawn again. */
function normalNumbers(random, count) {
  if (count < 16) return fewNormalNumbers(random, count);
  const values = Float64Array.from({ length: count }, () => random.uniform());
  for (let start = 0; start + 16 <= count; start += 16) makeNormal(values, start);
  if (count % 16) {
    for (let i = count - 16; i < count; i++) values[i] = random.uniform();
    makeNormal(values, count - 16);
  }
  return values;
}

/** torch.randn of fewer than 16 numbers: pairs one after the other, in double precision. */
function fewNormalNumbers(random, count) {
  const values = new Float64Array(count + 1);
  for (let i = 0; i < count; i += 2) {
    const angle = 2 * Math.PI * random.uniformDouble();
    const radius = Math.sqrt(-2 * Math.log1p(-random.uniformDouble()));
    values[i] = radius * Math.cos(angle);
    values[i + 1] = radius * Math.sin(angle);
  }
  return values.subarray(0, count);
}

/** The latent of a seed, as generators/generator.py draws it: standard normal, or uniform in [-1, 1]. */
function latentFromSeed(seed, latentDim, distribution) {
  const random = new MersenneTwister(seed);
  if (distribution === "gaussian") return normalNumbers(random, latentDim);
  return Float64Array.from({ length: latentDim }, () => random.uniform() * 2 - 1);
}
