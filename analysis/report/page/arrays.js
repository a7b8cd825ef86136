/* Unpacks the arrays of the page: base64, gzip, byte planes, then the numbers. */
const Arrays = (() => {
  const TYPES = {
    u8: Uint8Array,
    u16: Uint16Array,
    i32: Int32Array,
    f32: Float32Array,
    f64: Float64Array,
    f16: Uint16Array,
    logarithmic: Uint8Array,
    even: Uint8Array,
  };
  const LEVELS = 253;
  const NAN_CODE = 255;

  /* Numbers with a shape, the last index running fastest. */
  class Tensor {
    constructor(shape, data) {
      this.shape = shape;
      this.data = data;
      this.strides = shape.map((_, axis) => shape.slice(axis + 1).reduce((product, size) => product * size, 1));
    }

    offset(...indices) {
      return indices.reduce((sum, index, axis) => sum + index * this.strides[axis], 0);
    }

    at(...indices) {
      return this.data[this.offset(...indices)];
    }

    /* The numbers below some leading indices, as a view. */
    row(...indices) {
      const begin = this.offset(...indices);
      return this.data.subarray(begin, begin + this.strides[indices.length - 1]);
    }
  }

  const HALVES = Float32Array.from({ length: 65536 }, (_, bits) => {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return exponent ? sign * 2 ** (exponent - 15) * (1 + fraction / 1024) : sign * 2 ** -24 * fraction;
  });

  async function unzip(text) {
    const binary = atob(text);
    const bytes = new Uint8Array(binary.length);
    for (let at = 0; at < binary.length; at++) bytes[at] = binary.charCodeAt(at);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  function gather(planes, width) {
    if (width === 1) return planes;
    const count = planes.length / width;
    const bytes = new Uint8Array(planes.length);
    for (let plane = 0; plane < width; plane++) {
      for (let at = 0; at < count; at++) bytes[at * width + plane] = planes[plane * count + at];
    }
    return bytes;
  }

  function fromHalves(codes, scale) {
    const values = new Float32Array(codes.length);
    for (let at = 0; at < codes.length; at++) values[at] = HALVES[codes[at]] * scale;
    return values;
  }

  function fromBytes(codes, { type, shape, low, high }) {
    const values = new Float32Array(codes.length);
    const size = codes.length / shape[0] || 1;
    for (let at = 0; at < codes.length; at++) {
      const first = Math.floor(at / size);
      const place = low[first] + ((codes[at] - 1) / LEVELS) * (high[first] - low[first]);
      if (codes[at] === NAN_CODE) values[at] = NaN;
      else if (codes[at] === 0) values[at] = type === "even" ? -Infinity : 0;
      else values[at] = type === "even" ? place : Math.exp(place);
    }
    return values;
  }

  async function decode(encoded) {
    const Type = TYPES[encoded.type];
    const codes = new Type(gather(await unzip(encoded.data), Type.BYTES_PER_ELEMENT).buffer);
    if (encoded.type === "f16") return new Tensor(encoded.shape, fromHalves(codes, encoded.scale));
    if (encoded.type === "logarithmic" || encoded.type === "even") {
      return new Tensor(encoded.shape, fromBytes(codes, encoded));
    }
    const offset = encoded.offset || 0;
    return new Tensor(encoded.shape, offset ? Int32Array.from(codes, (code) => code + offset) : codes);
  }

  async function decodeAll(encoded) {
    const names = Object.keys(encoded);
    const tensors = await Promise.all(names.map((name) => decode(encoded[name])));
    return Object.fromEntries(names.map((name, index) => [name, tensors[index]]));
  }

  return { Tensor, decodeAll };
})();
