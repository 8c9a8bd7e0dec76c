// The generator's weights, as stored in the page.

class DamagedWeights extends Error {}

function bytesOfBase64(text) {
  let binary;
  try {
    binary = atob(text);
  } catch {
    throw new DamagedWeights("they are not valid base64");
  }
  return Uint8Array.from(binary, (character) => character.charCodeAt(0));
}

/** CRC-32 (IEEE 802.3) of bytes, an unsigned integer. */
function crc32(bytes) {
  const table = Uint32Array.from({ length: 256 }, (_, index) => {
    let value = index;
    for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
    return value;
  });
  let remainder = 0xffffffff;
  for (const byte of bytes) remainder = table[(remainder ^ byte) & 255] ^ (remainder >>> 8);
  return ~remainder >>> 0;
}

/** The value of a half-precision number's 16 bits. */
function floatFromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** Little-endian numbers of a buffer. `dtype`: float16 or float32. */
function readNumbers(view, offset, count, dtype) {
  if (dtype === "float16") {
    return Float64Array.from({ length: count }, (_, i) => floatFromHalf(view.getUint16(offset + 2 * i, true)));
  }
  return Float64Array.from({ length: count }, (_, i) => view.getFloat32(offset + 4 * i, true));
}

/**
 * Named tensors of a model: {name: Float64Array}, row-major.
 * @param {object} packing what web/export.py wrote: tensors (name, shape, dtype, offset), numBytes, crc32
 * @param {string} base64 the bytes of all tensors
 */
function unpackTensors(packing, base64) {
  const bytes = bytesOfBase64(base64);
  if (bytes.length !== packing.numBytes) {
    throw new DamagedWeights(`there are ${bytes.length} bytes of them instead of ${packing.numBytes}`);
  }
  if (crc32(bytes) !== packing.crc32) throw new DamagedWeights("their checksum does not match");
  const view = new DataView(bytes.buffer);
  const tensors = {};
  for (const { name, shape, dtype, offset } of packing.tensors) {
    const count = shape.reduce((product, size) => product * size, 1);
    tensors[name] = readNumbers(view, offset, count, dtype);
  }
  return tensors;
}
