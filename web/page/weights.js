// The generator's weights, as stored in the page.

class DamagedWeights extends Error {}

function bytesOfBase64(text) {
  let binary;
  try {
    binary = atob(text);
  } catch {
    throw new DamagedWeights("they are not valid base64");
  }
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
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

const HALF_POWERS = Float64Array.from({ length: 32 }, (_, exponent) => 2 ** (Math.max(exponent, 1) - 25));

/** The value of a finite half-precision number's 16 bits. */
function floatFromHalf(bits) {
  const exponent = (bits >> 10) & 31;
  const magnitude = ((exponent ? 1024 : 0) + (bits & 1023)) * HALF_POWERS[exponent];
  return bits & 0x8000 ? -magnitude : magnitude;
}

/** Little-endian numbers of a buffer. `dtype`: float16 or float32. Loops, because `from` with a function is ten times slower. */
function readNumbers(view, offset, count, dtype) {
  const numbers = new Float64Array(count);
  if (dtype === "float16") {
    for (let i = 0; i < count; i++) numbers[i] = floatFromHalf(view.getUint16(offset + 2 * i, true));
  } else {
    for (let i = 0; i < count; i++) numbers[i] = view.getFloat32(offset + 4 * i, true);
  }
  return numbers;
}

const QUANTIZED_BITS = 12;
const MAX_QUANTIZED = 2 ** (QUANTIZED_BITS - 1) - 1;

/** Rounded numbers, see `quantize` in web/export.py: a half-precision scale per row, then a stream of 12-bit integers. */
function readQuantized(view, offset, count, numRows) {
  const start = offset + 2 * numRows;
  const scales = readNumbers(view, offset, numRows, "float16");
  const perRow = count / numRows;
  const stream = new Uint8Array(view.buffer, view.byteOffset + start);
  const numbers = new Float64Array(count);
  for (let i = 0; i < count; i++) {
    const bit = QUANTIZED_BITS * i; // the bits lie in two bytes
    const byte = bit >> 3;
    const bits = (stream[byte] | (stream[byte + 1] << 8)) >> (bit & 7);
    numbers[i] = ((bits & (2 ** QUANTIZED_BITS - 1)) - MAX_QUANTIZED) * scales[Math.floor(i / perRow)];
  }
  return numbers;
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
    tensors[name] = dtype === "int12" ? readQuantized(view, offset, count, shape[0]) : readNumbers(view, offset, count, dtype);
  }
  return tensors;
}
