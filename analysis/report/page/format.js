/* Numbers and tokens as text. */
const Format = (() => {
  const NARROW = "\u202f";

  function whole(value) {
    if (!Number.isFinite(value)) return "–";
    return String(Math.round(value)).replace(/\B(?=(\d{3})+$)/g, NARROW);
  }

  /* Three significant digits. */
  function number(value) {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
    if (value === 0) return "0";
    const size = Math.abs(Number(value.toPrecision(3)));
    if (size >= 1e6 || size < 1e-4) return value.toExponential(2).replace("-", "−");
    if (size >= 1000) return (value < 0 ? "−" : "") + whole(size);
    const digits = Math.max(0, 2 - Math.floor(Math.log10(size)));
    return value.toFixed(Math.min(digits, 6)).replace("-", "−");
  }

  /* A number on an axis: as short as it can be. */
  const tick = (value) => {
    const text = number(value);
    return text.includes(".") && !text.includes("e") ? text.replace(/\.?0+$/, "") : text;
  };

  const percent = (share) => (Number.isFinite(share) ? `${number(100 * share)}${NARROW}%` : "–");

  const UNITS = [
    ["GiB", 2 ** 30],
    ["MiB", 2 ** 20],
    ["KiB", 2 ** 10],
  ];

  function byteUnit(count) {
    const [name, size] = UNITS.find(([, least]) => count >= least) || ["bytes", 1];
    return { name, size };
  }

  function bytes(count) {
    const { name, size } = byteUnit(count);
    return size === 1
      ? `${whole(count)}${NARROW}B`
      : `${(count / size).toFixed(count >= 100 * size ? 0 : 1)}${NARROW}${name}`;
  }

  const plural = (count, one, many) => `${whole(count)} ${count === 1 ? one : many || one + "s"}`;

  const KINDS = ["prefill", "decode", "step"];
  const kind = (code) => KINDS[code] || "event";

  /* The letters that stand for bytes in a byte-level vocabulary (GPT-2): printable bytes stand for themselves. */
  const BYTES = new Map();
  for (let byte = 0, above = 256; byte < 256; byte++) {
    const printable = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
    BYTES.set(String.fromCharCode(printable ? byte : above++), byte);
  }

  /* The text of such a token; of one that is part of a letter, its bytes in hexadecimal. */
  function fromBytes(text) {
    if (![...text].every((letter) => BYTES.has(letter))) return text;
    const bytes = Uint8Array.from(text, (letter) => BYTES.get(letter));
    try {
      return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    } catch {
      return `‹${[...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join(" ")}›`;
    }
  }

  const capital = (text) => text[0].toUpperCase() + text.slice(1);

  /* A byte-level vocabulary writes a space as Ġ and a line break as Ċ; SentencePiece writes a space as ▁. They are
     taken for that only where no token has a plain space: then the texts are pieces of a vocabulary. */
  function artefacts(tokens) {
    const plain = tokens.some((text) => text.length > 1 && text.includes(" "));
    return {
      byteLevel: !plain && tokens.some((text) => text.startsWith("Ġ")),
      pieces: !plain && tokens.some((text) => text.startsWith("▁")),
    };
  }

  function readable(text, style) {
    let shown = text;
    if (style.byteLevel) shown = fromBytes(text);
    if (style.pieces)
      shown = shown
        .replace(/▁/g, " ")
        .replace(/^<0x0A>$/, "\n")
        .replace(/^<0x09>$/, "\t");
    return shown;
  }

  /* Control characters as their pictures; direction overrides, which would turn the page around, as marks. */
  function visible(text) {
    return text
      .replace(/\r?\n|\r/g, "⏎")
      .replace(/\t/g, "⇥")
      .replace(/[\u0000-\u001f]/g, (sign) => String.fromCharCode(0x2400 + sign.charCodeAt(0)))
      .replace(/\u007f/g, "␡")
      .replace(/[\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, "◌");
  }

  /* One line, for labels: spaces at the ends are marked. */
  function label(text) {
    if (text === "") return "∅";
    return visible(text).replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length));
  }

  return {
    whole,
    number,
    tick,
    percent,
    bytes,
    byteUnit,
    plural,
    kind,
    artefacts,
    readable,
    visible,
    label,
    capital,
    NARROW,
  };
})();
